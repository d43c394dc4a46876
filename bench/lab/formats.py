"""Traces from files: Mooncake's blocks, Azure's lengths, requests with their text, or the picker's own decision log, told apart by what
the first line holds.

- Mooncake: JSON lines `{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [...]}`; `block_tokens` (512),
  `model` and `tenant` may be added. Equal ids behind equal ids are equal text.
- Azure: CSV with `TIMESTAMP,ContextTokens,GeneratedTokens`. It tells nothing of the text, so no two prompts share any.
- Text: JSON lines with an OpenAI request in `body` (or the request itself), or with `input` and `output` as plain text. Tokens are
  estimated as production does before servers have told it better, four bytes each. `timestamp` is in seconds, milliseconds or microseconds,
  whichever makes sense; without it requests come one a second. The answer's length is `output_tokens`, that of `output`, or
  the request's own limit.
- Decision log: `bench.lab.decision_log`.

Lines are read as they are needed, so a trace may be longer than memory. Times begin at 0; lines that are not in the order of their times are
put into it, up to `WINDOW` of them apart.
"""

from __future__ import annotations

import csv
import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from bench.lab import decision_log
from bench.lab.lines import excerpt, lines_of, reason
from bench.lab.offered import MISSING_OUTPUT_TOKENS, Offered, TraceError
from bench.policies import BLOCK_TOKENS
from bench.replica.kv import TOKEN_BYTES
from epp.drops import Drop
from epp.openai.body import parse
from epp.prefix.fingerprints import fingerprints, seed_of

AZURE_HEADER = b"TIMESTAMP,"
_AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
_KNOWN = (
    "known are the picker's decision log, JSON lines of Mooncake's traces or of OpenAI requests, and Azure's CSV "
    f"({_AZURE}); docs/replay.md shows each"
)

WINDOW = 1000
"""Lines between which the order of times may be another than that of lines: a log that is written as answers end."""

LONGEST_GAP_S = 7 * 86_400.0
"""Between two requests. More is a slip in a timestamp, and would be simulated for hours."""


class _Line(msgspec.Struct, kw_only=True):
    """All that any of the JSON formats may hold."""

    timestamp: float | None = None
    input_length: int | None = None
    output_length: int | None = None
    hash_ids: list[int] | None = None
    block_tokens: int = 512
    model: str = ""
    tenant: str = ""
    session_id: str = ""
    body: msgspec.Raw = msgspec.Raw(b"")
    url: str = ""
    path: str = ""
    input: msgspec.Raw = msgspec.Raw(b"")
    output: msgspec.Raw = msgspec.Raw(b"")
    output_tokens: int | None = None


def read_file(path: Path) -> Iterator[Offered]:
    """The requests of a file. Raises TraceError, also while it is read."""
    yield from read(lines_of(path), str(path))


def read(lines: Iterable[bytes], name: str) -> Iterator[Offered]:
    """The requests of `lines`, called `name` in messages. Raises TraceError, also while they are read."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    first = next(numbered, None)
    if first is None:
        raise TraceError(f"{name}: there is no request in it: it is empty")
    if decision_log.begins(first[1]):
        places = ((f"{name}:{number}", line) for number, line in itertools.chain([first], numbered))
        return ordered(decision_log.offered(decision_log.joined(places)))
    if first[1].startswith(AZURE_HEADER):
        return _placed(_azure(numbered, name), name)
    if not first[1].lstrip().startswith(b"{"):
        raise TraceError(f"{name}:{first[0]}: a log of no known format begins with {excerpt(first[1])}; {_KNOWN}")
    return _placed(_json(itertools.chain([first], numbered), name), name)


def _placed(requests: Iterable[tuple[int, Offered]], name: str) -> Iterator[Offered]:
    """In order of time, from 0 on. `requests` come with the numbers of their lines."""
    waiting: list[tuple[float, int, Offered]] = []
    zero_s: float | None = None
    latest_s = -math.inf

    def next_one() -> Offered:
        nonlocal zero_s, latest_s
        at_s, number, one = heapq.heappop(waiting)
        if zero_s is None:
            zero_s = latest_s = at_s
        if at_s < latest_s:
            raise TraceError(
                f"{name}:{number}: its time is {latest_s - at_s:,.6g} s before that of a line far above; sort the file by time first"
            )
        if at_s > latest_s + LONGEST_GAP_S:
            raise TraceError(
                f"{name}:{number}: it comes {(at_s - latest_s) / 86_400:,.3g} days after the request before; correct its time, or cut the "
                "file here"
            )
        latest_s = at_s
        return msgspec.structs.replace(one, at_s=at_s - zero_s)

    for number, one in requests:
        heapq.heappush(waiting, (one.at_s, number, one))
        if len(waiting) > WINDOW:
            yield next_one()
    while waiting:
        yield next_one()


def ordered(requests: Iterable[Offered]) -> Iterator[Offered]:
    """From 0 on. A request that is earlier than the one before comes with that one."""
    zero_s: float | None = None
    latest_s = 0.0
    for request in requests:
        if zero_s is None:
            zero_s = request.at_s
        latest_s = max(latest_s, request.at_s - zero_s)
        yield msgspec.structs.replace(request, at_s=latest_s)


def _azure(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[int, Offered]]:
    fresh = itertools.count()
    for number, line in lines:
        row = next(csv.reader([line.decode("utf-8", "replace")]))
        try:
            at_s = datetime.fromisoformat(row[0][:26]).timestamp()
            prompt_tokens, output_tokens = int(row[1]), int(row[2])
            if prompt_tokens < 0 or output_tokens < 0:
                raise ValueError
        except (ValueError, IndexError):
            raise TraceError(f"{name}:{number}: expected {_AZURE}, not {excerpt(line)}") from None
        blocks = list(itertools.islice(fresh, -(-max(1, prompt_tokens) // 512)))
        offered = Offered(at_s=at_s, prompt_tokens=max(1, prompt_tokens), output_tokens=output_tokens, blocks=blocks)
        yield number, offered


def _json(lines: Iterable[tuple[int, bytes]], name: str) -> Iterator[tuple[int, Offered]]:
    decode = msgspec.json.Decoder(_Line).decode
    scale = 0.0
    for index, (number, raw) in enumerate(lines):
        try:
            if decision_log.begins(raw):
                raise ValueError("a line of a decision log among those of a trace; a log is of one format")
            line = decode(raw)
            reads: Callable[[_Line, bytes], Offered] = _blocks if line.hash_ids is not None else _text
            offered = reads(line, raw)
        except (ValueError, msgspec.MsgspecError, Drop) as error:
            raise TraceError(f"{name}:{number}: {reason(error, raw)}") from None
        if line.timestamp is None:
            yield number, msgspec.structs.replace(offered, at_s=float(index))
            continue
        scale = scale or _seconds_per_unit(line.timestamp, line.hash_ids is not None)
        yield number, msgspec.structs.replace(offered, at_s=line.timestamp * scale)


def _seconds_per_unit(timestamp: float, is_blocks: bool) -> float:
    """Mooncake counts milliseconds; a Unix time gives itself away by its size."""
    if timestamp > 1e14:
        return 1e-6
    return 1e-3 if is_blocks or timestamp > 1e11 else 1.0


def _blocks(line: _Line, raw: bytes) -> Offered:
    ids, tokens = line.hash_ids or [], line.block_tokens
    if line.input_length is None or line.output_length is None:
        raise ValueError("beside hash_ids, input_length and output_length are needed, in tokens")
    if tokens <= 0 or tokens % BLOCK_TOKENS:
        raise ValueError(f"block_tokens is {tokens}; it must be a multiple of {BLOCK_TOKENS}")
    if line.output_length < 0:
        raise ValueError(f"output_length is {line.output_length}; it counts tokens")
    if ids and not (min(ids) >= 0 and max(ids) < 1 << 64):
        raise ValueError(f"hash_ids: {min(0, *ids) or max(ids)} is not from 0 to 2^64 - 1")
    if not 0 < line.input_length <= len(ids) * tokens:
        raise ValueError(f"{len(ids)} blocks of {tokens} tokens cannot be a prompt of {line.input_length}")
    return Offered(
        at_s=0.0,
        prompt_tokens=line.input_length,
        output_tokens=line.output_length,
        blocks=ids,
        block_tokens=tokens,
        model=line.model,
        tenant=line.tenant or line.session_id,
    )


def _text(line: _Line, raw: bytes) -> Offered:
    if bytes(line.input).startswith(b'"') and not bytes(line.body):
        text = msgspec.json.decode(line.input, type=str).encode()
        answer = msgspec.json.decode(line.output, type=str).encode() if bytes(line.output) else b""
        return _of_text((text,), line, len(answer) // TOKEN_BYTES or None)
    parsed = parse({":path": line.path or line.url} if line.path or line.url else {}, bytes(line.body) or raw)
    if not parsed.prompts:
        raise ValueError("expected hash_ids, a text in input, or an OpenAI request, itself or in body")
    return _of_text(parsed.prompts, line, parsed.max_tokens)


def _of_text(prompts: tuple[bytes, ...], line: _Line, likely_output_tokens: int | None) -> Offered:
    tokens = max(1, -(-sum(map(len, prompts)) // TOKEN_BYTES))
    told = line.output_tokens or likely_output_tokens
    # Our own fingerprints: one for each started block of `BLOCK_TOKENS` tokens.
    blocks = fingerprints(prompts, seed_of(""), 1 << 30).tolist()
    return Offered(
        at_s=0.0,
        prompt_tokens=tokens,
        output_tokens=told if told is not None else MISSING_OUTPUT_TOKENS,
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        tenant=line.tenant or line.session_id,
    )
