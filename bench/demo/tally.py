"""What has become of the requests so far. Pure: events in, figures out."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

import msgspec

from bench.load.client import Result, Sent
from bench.load.summary import Quantiles, quantiles

RECENT = 4


class Cache(msgspec.Struct, frozen=True):
    """Tokens that a server, or all of them, looked up in the prefix cache and found there."""

    queried: float = 0.0
    found: float = 0.0

    @property
    def rate(self) -> float | None:
        """None before anything was looked up."""
        return self.found / self.queried if self.queried > 0 else None

    def __add__(self, other: Cache) -> Cache:
        return Cache(self.queried + other.queried, self.found + other.found)

    def since(self, before: Cache) -> Cache:
        return Cache(self.queried - before.queried, self.found - before.found)


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """A server at one moment: the picker's view of it, and the server's own cache counters. None is unknown."""

    reachable: bool = True
    in_flight: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    cache: Cache | None = None


UNSEEN = Seen()

Snapshot = Mapping[str, Seen]
"""Every server's name to how it is."""


class Tally:
    """Owns what is known of one run's requests. `servers` are their names in order, `total` how many requests there will be.

    A request's server is what the answer's header names, until then, or where there is no such header, what the picker decided.
    """

    def __init__(self, servers: Sequence[str], total: int, base_model: str) -> None:
        self.servers = tuple(servers)
        self.total = total
        self.results: list[Result] = []
        self.recent: deque[Result] = deque(maxlen=RECENT)
        self.errors = 0
        self._base = base_model
        self._model_of: dict[str, str] = {}
        self._server_of: dict[str, str] = {}
        self._first_s: list[float] = []

    def take(self, event: Sent | Result) -> None:
        if isinstance(event, Sent):
            self._model_of[event.id] = event.model
            return
        self.results.append(event)
        self.recent.append(event)
        self.errors += not event.ok
        if event.ttft_s is not None:
            self._first_s.append(event.ttft_s)
        if event.replica in self.servers:
            self._server_of[event.id] = event.replica

    def decided(self, id: str, server: str) -> None:
        """The picker chose `server`. Later choices for the same request, and those for requests of others, have no effect."""
        if id in self._model_of and server in self.servers:
            self._server_of.setdefault(id, server)

    def server_of(self, id: str) -> str | None:
        return self._server_of.get(id)

    def number_of(self, id: str) -> str:
        """The server's place in the list, from 1; `?` where it is not known."""
        server = self._server_of.get(id)
        return "?" if server is None else str(self.servers.index(server) + 1)

    def requests(self) -> Mapping[str, int]:
        """Of every server."""
        counts = Counter(self._server_of.values())
        return {server: counts[server] for server in self.servers}

    def adapters(self) -> Mapping[str, tuple[str, ...]]:
        """The adapters that each server was asked for."""
        found: dict[str, set[str]] = {server: set() for server in self.servers}
        for id, server in self._server_of.items():
            if self._model_of[id] != self._base:
                found[server].add(self._model_of[id])
        return {server: tuple(sorted(names)) for server, names in found.items()}

    def first_token(self) -> Quantiles:
        """Over the streams so far."""
        return quantiles(self._first_s)
