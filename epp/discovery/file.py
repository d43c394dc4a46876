"""Endpoints from a file, followed while running: the `file-discovery` of the configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from pathlib import Path

from epp.discovery.document import MAX_BYTES, parse_endpoints
from epp.discovery.names import Lookup, Resolution, system_lookup
from epp.discovery.source import DiscoveryError, OnChange
from epp.endpoint import Endpoint

logger = logging.getLogger("epp.discovery")

POLL_S = 0.25
"""How often the file is looked at: one `stat`, 3 µs."""

MAX_UNSTEADY_LOOKS = 8
"""Looks in a row, two seconds of them, that may each see another file before it is read all the same."""

Signature = tuple[int, ...]


class FollowedFile:
    """A file and what was last read from it, looked at from time to time.

    The file may be written in place, replaced by rename, or reached through links that are swapped, as Kubernetes does
    with a mounted ConfigMap: what `stat` says behind all links tells. A change is read once two looks in a row see the same, so a
    file that is just being written is let be.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Signature | None = None
        self._read: Signature | None = None
        self._unsteady = 0
        self._complaint: str | None = None

    def load(self) -> tuple[Endpoint, ...]:
        """Read now. Raises DiscoveryError."""
        try:
            signature = self._signature()
            with self.path.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        except OSError as error:
            raise DiscoveryError(f"{self.path} cannot be read: {error.strerror or error}") from error
        self._seen = self._read = signature
        return parse_endpoints(data, str(self.path))

    def look(self) -> tuple[Endpoint, ...] | None:
        """What a changed file now says; None where nothing changed or what it says is not usable, which is logged once."""
        try:
            signature = self._signature()
        except OSError as error:
            # Read it again when it is back, even if it is the same file.
            self._seen = self._read = None
            self._complain(f"{self.path} cannot be read: {error.strerror or error}")
            return None
        self._unsteady = 0 if signature == self._seen else self._unsteady + 1
        self._seen = signature
        # A file that is written anew before every look would otherwise never be read.
        if 0 < self._unsteady < MAX_UNSTEADY_LOOKS or signature == self._read:
            return None
        self._unsteady = 0
        try:
            endpoints = self.load()
        except DiscoveryError as error:
            self._complain(str(error))
            return None
        if self._complaint is not None:
            logger.info("%s is usable again: %d endpoints", self.path, len(endpoints))
            self._complaint = None
        return endpoints

    def _signature(self) -> Signature:
        seen = os.stat(self.path)
        return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            logger.error("%s; the endpoints known before stay", complaint)


class FileDiscovery:
    """The `file-discovery`. `watch_file` False reads it once at the start."""

    def __init__(
        self,
        path: str | Path,
        on_change: OnChange,
        *,
        watch_file: bool = True,
        poll_s: float = POLL_S,
        lookup: Lookup = system_lookup,
        rng: random.Random | None = None,
    ) -> None:
        self._file = FollowedFile(Path(path))
        self._watch_file = watch_file
        self._poll_s = poll_s
        self._resolution = Resolution(on_change, lookup=lookup, rng=rng)
        self._timer: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        await self._resolution.begin(self._file.load())
        if self._watch_file:
            self._look_later()

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        await self._resolution.close()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._poll_s, self._look)

    def _look(self) -> None:
        self._look_later()
        endpoints = self._file.look()
        if endpoints is not None:
            self._resolution.update(endpoints)
