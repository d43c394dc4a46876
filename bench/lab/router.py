"""What the simulation asks of whoever routes: production's picker or another system's policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import msgspec

from bench.lab.offered import Offered
from bench.lab.scene import Scene
from bench.replica.engine import Stats
from bench.replica.profiles import Profile


class Flight:
    """One request on its way. The simulation alone changes it."""

    __slots__ = (
        "available_tokens",
        "cached_tokens",
        "first_s",
        "hashes",
        "id",
        "offered",
        "picked_s",
        "router",
        "server",
    )

    def __init__(self, id: str, offered: Offered, hashes: Sequence[int], available_tokens: int, router: Router) -> None:
        self.id = id
        self.offered = offered
        self.hashes = hashes
        self.available_tokens = available_tokens
        self.router = router
        self.server = -1
        self.picked_s = 0.0
        self.first_s = -1.0
        self.cached_tokens = 0


class Page(msgspec.Struct, frozen=True):
    """What a server's metrics page says: the engine's own account and the size of its KV cache."""

    stats: Stats
    block_size: int
    num_blocks: int
    adapter_slots: int


class World(Protocol):
    """What a router may do to the simulation, and see of it beyond what it is told."""

    @property
    def profiles(self) -> Sequence[Profile]:
        """What each server is, by its index."""
        ...

    def send(self, flight: Flight, server: int, now_s: float) -> None: ...

    def refuse(self, flight: Flight) -> None: ...

    def wake(self, tick: Callable[[float], bool]) -> None:
        """Call `tick` with the time in a moment, and again every 5 ms for as long as it says True."""
        ...

    def cached_tokens(self, server: int, hashes: Sequence[int]) -> int:
        """Leading tokens of that content that the server has in its prefix cache now."""
        ...

    def first_tokens(self, server: int, flight: Flight | None, now_s: float) -> Mapping[str, float]:
        """When each request there that has no token yet would get its first, if `flight` came too and nobody after it: what nobody can
        know, for an oracle."""
        ...


class Router(Protocol):
    """Decides, and hears what became of it, when a picker would. Servers are known by their index."""

    def arrive(self, flight: Flight, now_s: float) -> None:
        """Send it, refuse it, or keep it for later."""
        ...

    def first_token(self, flight: Flight, now_s: float) -> None: ...

    def finished(self, flight: Flight, now_s: float, *, whole: bool) -> None:
        """The answer's end; not `whole` where its server was lost."""
        ...

    def asked(self, server: int, now_s: float) -> object:
        """A scrape goes out. What is returned comes back with its answer."""
        ...

    def reported(self, server: int, mark: object, page: Page, now_s: float) -> None: ...

    def members(self, servers: Sequence[int], now_s: float) -> None:
        """The servers that exist now. Told before the first request, and before the ends of those that a loss takes with it."""
        ...


NewRouter = Callable[[World, Scene, int], Router]
"""Makes a router for a run in that scene; all its chance comes from the seed."""
