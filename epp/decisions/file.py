"""The decision log's file: written off the request path, rotated, bounded."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from epp.decisions.encoder import KEY_BYTES, Encoder
from epp.decisions.recording import Record, Recording

DEFAULT_MAX_BYTES = 2**30
PARTS = 8
"""Files that share the bound: FILE is written, FILE.1 to FILE.7 are what came before, the highest number the oldest."""

INTERVAL_S = 0.25
_SLICE = 64
"""Records encoded in one turn of the loop, under a millisecond of work: others want the loop too."""
_SLICE_INTERVAL_S = 0.002
_BATCH_BYTES = 2**20

Part = list[bytes]
"""Lines of one file."""


class DecisionFile:
    """Empties `recording` into `path`, which it appends to, from `start` to `close`.

    All files together hold at most `max_bytes`. Encoding is done on the loop, a slice at a time; writing, a batch at a time, in the
    loop's executor. Where a write fails, its lines are lost, `failed(error)` is called, and the next batch is tried.
    `count(fate, lines)` hears of lines "written" and "lost".
    """

    def __init__(
        self,
        path: Path,
        recording: Recording,
        *,
        pool: str,
        max_bytes: int,
        failed: Callable[[Exception], None],
        count: Callable[[str, int], None],
    ) -> None:
        self.path = path
        self._recording = recording
        self._part_bytes = max_bytes // PARTS
        self._failed = failed
        self._count = count
        self._loop = asyncio.get_running_loop()
        self._encoder = Encoder(
            secrets.token_bytes(KEY_BYTES),
            run=secrets.token_hex(8),
            started=datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
            zero_s=self._loop.time(),
            pool=pool,
        )
        self._parts: list[Part] = [[]]
        self._batch_bytes = 0
        self._file_bytes = 0
        self._untold = True
        self._timer: asyncio.TimerHandle | None = None
        self._writing: asyncio.Future[None] | None = None

    def start(self) -> None:
        """Raises OSError where the file cannot be written."""
        with self.path.open("ab") as file:
            self._file_bytes = file.tell()
        self._begin()
        self._timer = self._loop.call_later(INTERVAL_S, self._turn)

    async def close(self) -> None:
        """Write what was recorded until now. Safe to call twice, and where it was never started."""
        if self._timer is None:
            return
        self._timer.cancel()
        self._timer = None
        while self._writing is not None or self._batch_bytes or len(self._recording):
            if self._writing is not None:
                await asyncio.wait((self._writing,))
                # Its callback runs in the turn after.
                await asyncio.sleep(0)
            else:
                self._encode()
                self._write()

    def _turn(self) -> None:
        if self._writing is None:
            self._encode()
            if not len(self._recording) or self._batch_bytes >= _BATCH_BYTES:
                self._write()
        hurry = len(self._recording) and self._writing is None
        self._timer = self._loop.call_later(_SLICE_INTERVAL_S if hurry else INTERVAL_S, self._turn)

    def _encode(self) -> None:
        for record in self._recording.take(_SLICE):
            try:
                self._place(record)
            except Exception as error:
                self._count("lost", 1)
                self._failed(error)

    def _place(self, record: Record) -> None:
        """Into the file, or into the next one where this one is full."""
        if self._untold:
            self._begin()
        lines = self._encoder.encode(record)
        if not self._fits(lines):
            self._next_part()
            lines = self._encoder.encode(record)
        self._add(lines)

    def _begin(self) -> None:
        """Tell the run, in the file that is written or in the next one."""
        self._untold = False
        line = [self._encoder.begin()]
        if self._fits(line):
            self._add(line)
        else:
            self._next_part()

    def _next_part(self) -> None:
        self._parts.append([])
        self._file_bytes = 0
        self._add([self._encoder.begin()])

    def _fits(self, lines: Part) -> bool:
        return not self._file_bytes or self._file_bytes + sum(map(len, lines)) <= self._part_bytes

    def _add(self, lines: Part) -> None:
        self._parts[-1] += lines
        size = sum(map(len, lines))
        self._batch_bytes += size
        self._file_bytes += size

    def _write(self) -> None:
        if not self._batch_bytes:
            return
        parts, self._parts, self._batch_bytes = self._parts, [[]], 0
        self._writing = asyncio.ensure_future(asyncio.to_thread(_append, self.path, parts))
        lines = sum(map(len, parts))
        self._writing.add_done_callback(lambda done: self._settle(done.exception(), lines))

    def _settle(self, error: BaseException | None, lines: int) -> None:
        self._writing = None
        self._count("lost" if error is not None else "written", lines)
        if isinstance(error, Exception):
            # With it a file may have lost its first lines.
            self._untold = True
            self._failed(error)


def _append(path: Path, parts: Sequence[Part]) -> None:
    """The first of `parts` goes to the end of the file, each further one to a new file in its place. Raises OSError."""
    for number, lines in enumerate(parts):
        if number:
            _rotate(path)
        if lines:
            with path.open("a+b") as file:
                file.write(_mended(file) + b"".join(lines))


def _mended(file: BinaryIO) -> bytes:
    """What ends the last line, where a full disk or the end of a process has cut it."""
    if not file.seek(0, os.SEEK_END):
        return b""
    file.seek(-1, os.SEEK_END)
    return b"" if file.read(1) == b"\n" else b"\n"


def _rotate(path: Path) -> None:
    names = [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, PARTS))]
    for older, newer in zip(reversed(names), reversed(names[:-1]), strict=False):
        if newer.exists():
            os.replace(newer, older)
