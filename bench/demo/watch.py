"""Looks at the running parts: the picker's view of its servers, the servers' cache counters, the picker's decisions."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import aiohttp
import msgspec

from bench.demo.scene import Scene
from bench.demo.tally import Cache, Seen, Snapshot

_CACHE_LINE = re.compile(rb"^vllm:prefix_cache_(queries|hits)_total(?:\{[^}]*\})? (\S+)", re.MULTILINE)
_TIMEOUT = aiohttp.ClientTimeout(total=2.0)


class _Row(msgspec.Struct):
    """One endpoint of the picker's /debug/endpoints."""

    endpoint: str
    reachable: bool
    in_flight: float
    waiting: float | None
    kv_usage: float | None


class _Decision(msgspec.Struct):
    """A line of the picker's log, of which only decisions have `picked`."""

    logger: str = ""
    request_id: str = ""
    picked: list[str] = []


_rows = msgspec.json.Decoder(list[_Row])
_decision = msgspec.json.Decoder(_Decision)


def server_name(endpoint: str) -> str:
    """`host:port` of the picker's `namespace/host:port`."""
    return endpoint.split("/", 1)[-1]


def read_cache(page: bytes) -> Cache | None:
    """The prefix cache counters of a vLLM metrics page, over all its series; None where it has none."""
    totals = {b"queries": 0.0, b"hits": 0.0}
    found = _CACHE_LINE.findall(page)
    for name, value in found:
        totals[name] += float(value)
    return Cache(totals[b"queries"], totals[b"hits"]) if found else None


async def look(scene: Scene, client: aiohttp.ClientSession) -> Snapshot:
    """Every server as it is now. What does not answer is left unknown."""
    rows, caches = await asyncio.gather(
        _picker_rows(scene, client), asyncio.gather(*(_cache(server, client) for server in scene.servers))
    )
    seen: dict[str, Seen] = {}
    for server, cache in zip(scene.servers, caches, strict=True):
        row = rows.get(server)
        seen[server] = Seen(cache=cache) if row is None else _seen(row, cache)
    return seen


def _seen(row: _Row, cache: Cache | None) -> Seen:
    return Seen(
        reachable=row.reachable, in_flight=row.in_flight, waiting=row.waiting, kv_usage=row.kv_usage, cache=cache
    )


async def _picker_rows(scene: Scene, client: aiohttp.ClientSession) -> Mapping[str, _Row]:
    page = await _get(f"{scene.metrics_url}/debug/endpoints", client)
    return {} if page is None else {server_name(row.endpoint): row for row in _rows.decode(page)}


async def _cache(server: str, client: aiohttp.ClientSession) -> Cache | None:
    page = await _get(f"http://{server}/metrics", client)
    return None if page is None else read_cache(page)


async def _get(url: str, client: aiohttp.ClientSession) -> bytes | None:
    try:
        async with client.get(url, timeout=_TIMEOUT) as response:
            return await response.read() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def caches(seen: Snapshot) -> Mapping[str, Cache]:
    """The cache counters of the servers that have any."""
    return {server: one.cache for server, one in seen.items() if one.cache is not None}


def since(seen: Snapshot, before: Mapping[str, Cache]) -> Snapshot:
    """With only what was counted after `before`: a server of the user's has a past."""
    return {
        server: msgspec.structs.replace(one, cache=one.cache and one.cache.since(before.get(server, Cache())))
        for server, one in seen.items()
    }


class Decisions:
    """Follows the picker's log. Owns the open file; `close` it."""

    def __init__(self, log: Path) -> None:
        self._file: BinaryIO = log.open("rb")
        self._rest = b""

    def new(self) -> Iterator[tuple[str, str]]:
        """(request id, server) of every decision since the last call."""
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return parse_decisions(lines)

    def close(self) -> None:
        self._file.close()


def parse_decisions(lines: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """(request id, server) of the lines of the picker's log that are decisions."""
    for line in lines:
        try:
            decision = _decision.decode(line)
        except msgspec.DecodeError:
            # Not every line of a process's output is its log's: a warning of an interpreter or a library is none.
            continue
        if decision.logger == "epp.decision" and decision.picked:
            yield decision.request_id, server_name(decision.picked[0])
