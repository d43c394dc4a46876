"""The servers of a run: one engine each, lost and restored, all advanced together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

from bench.lab.router import Page
from bench.replica.engine import Engine, Event, FirstToken, Work
from bench.replica.profiles import Profile

_LEAP_S = 0.2


class Fleet:
    """Owns the engines. Times are those of the run; `life` of a server tells one engine in its place from the next."""

    def __init__(self, profiles: Sequence[Profile]) -> None:
        self.profiles = tuple(profiles)
        self.life = [0] * len(profiles)
        self._engines: list[Engine | None] = [Engine(one) for one in profiles]
        self._zero_s = [0.0] * len(profiles)

    def __len__(self) -> int:
        return len(self.profiles)

    def lives(self, server: int, life: int) -> bool:
        """Whether the engine of that `life` is there."""
        return self.life[server] == life and self._engines[server] is not None

    @property
    def alive(self) -> list[int]:
        return [server for server, engine in enumerate(self._engines) if engine is not None]

    def submit(self, server: int, work: Work, at_s: float) -> None:
        """Raises ValueError where the server is gone."""
        engine = self._engines[server]
        if engine is None:
            raise ValueError(f"request {work.id} was sent to server {server}, which is gone")
        engine.submit(work, max(at_s - self._zero_s[server], engine.now_s))

    def advance(self, until_s: float) -> Iterator[tuple[float, int, Event]]:
        """What happened until then as (when, server, event), server by server."""
        for server, engine in enumerate(self._engines):
            if engine is not None:
                zero_s = self._zero_s[server]
                for event in engine.advance(until_s - zero_s):
                    yield zero_s + event.at_s, server, event

    def lose(self, server: int) -> None:
        self._engines[server] = None
        self.life[server] += 1

    def restore(self, server: int, now_s: float) -> None:
        """An engine with a cold cache."""
        self._engines[server] = Engine(self.profiles[server])
        self._zero_s[server] = now_s
        self.life[server] += 1

    def page(self, server: int) -> Page | None:
        """None where the server is gone."""
        engine = self._engines[server]
        if engine is None:
            return None
        profile = engine.profile
        return Page(engine.stats(), profile.block_size, profile.num_blocks, profile.max_loras)

    def first_tokens(self, server: int, work: Work | None, at_s: float) -> dict[str, float]:
        """When those on the server that have no token yet would get their first, if `work` came at `at_s` and nobody after it."""
        engine = self._engines[server]
        if engine is None:
            raise ValueError(f"server {server} is gone")
        zero_s = self._zero_s[server]
        twin = engine.copy()
        if work is not None:
            twin.submit(work, max(at_s - zero_s, twin.now_s))
        waiting = twin.unanswered
        found: dict[str, float] = {}
        while waiting and twin.next_s < inf:
            # By leaps, because steps of decoding alone cost least together.
            for event in twin.advance(twin.next_s + _LEAP_S):
                if isinstance(event, FirstToken):
                    found[event.id] = zero_s + event.at_s
                    waiting.discard(event.id)
        return found

    def cached_tokens(self, server: int, hashes: Sequence[int]) -> int:
        """Leading tokens of that content that the server has in its prefix cache now."""
        engine = self._engines[server]
        return 0 if engine is None else engine.cached_tokens(hashes)
