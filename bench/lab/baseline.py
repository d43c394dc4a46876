"""Another system's policy as a router: it sees scrapes, its own requests, and of answers what the scene shows.

In lean mode that is their end alone: no first token, no usage. None of them has a way to look at some.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from bench.lab.router import Flight, NewRouter, Page, Router, World
from bench.lab.scene import Scene
from bench.policies import (
    BLOCK_TOKENS,
    Asked,
    Holds,
    Policy,
    Scraped,
    SeesEnd,
    SeesFirstToken,
    SeesRouted,
    SeesServers,
)
from epp.endpoint import Adapters

_NOTHING = Scraped()


class Baseline:
    """Implements `bench.lab.router.Router` and `bench.policies.View`."""

    def __init__(self, policy: Policy, world: World, rng: random.Random, *, sees_answers: bool = True) -> None:
        self.now_s = 0.0
        self.rng = rng
        self.servers: Sequence[int] = ()
        self._policy = policy
        self._world = world
        self._sees_answers = sees_answers
        self._scraped: dict[int, Scraped] = {}
        self._held: dict[str, Flight] = {}
        self._asked: dict[str, Asked] = {}
        self._routed = policy.routed if isinstance(policy, SeesRouted) else _nothing
        self._first_token = policy.first_token if sees_answers and isinstance(policy, SeesFirstToken) else _nothing
        self._ended = policy.finished if isinstance(policy, SeesEnd) else _nothing
        self._release = policy.release if isinstance(policy, Holds) else None

    # --- what the policy sees ----------------------------------------------------------------------------------------

    def scraped(self, server: int) -> Scraped:
        return self._scraped.get(server, _NOTHING)

    def cached_tokens(self, server: int, request: Asked) -> int:
        return self._world.cached_tokens(server, request.blocks)

    # --- what happens to it ------------------------------------------------------------------------------------------

    def arrive(self, flight: Flight, now_s: float) -> None:
        self.now_s = now_s
        offered = flight.offered
        asked = Asked(
            id=flight.id,
            arrived_s=now_s,
            prompt_tokens=offered.prompt_tokens,
            blocks=flight.hashes[: offered.prompt_tokens // BLOCK_TOKENS],
            model=offered.model,
            tenant=offered.tenant,
            priority=offered.priority,
        )
        server = self._policy.pick(asked, self) if self.servers else None
        if server is not None:
            self._send(flight, asked, server)
        elif self._release is None:
            self._world.refuse(flight)
        else:
            self._held[flight.id] = flight
            self._world.wake(self._tick)

    def first_token(self, flight: Flight, now_s: float) -> None:
        self._first_token(self._asked[flight.id], flight.server, now_s)
        self._changed()

    def finished(self, flight: Flight, now_s: float, *, whole: bool) -> None:
        output_tokens = flight.offered.output_tokens if whole and self._sees_answers else 0
        self._ended(self._asked.pop(flight.id), flight.server, output_tokens, now_s)
        self._changed()

    def asked(self, server: int, now_s: float) -> None:
        return None

    def reported(self, server: int, mark: object, page: Page, now_s: float) -> None:
        stats = page.stats
        self._scraped[server] = Scraped(
            reported_s=now_s,
            waiting=float(stats.waiting),
            running=float(stats.running),
            kv_usage=stats.kv_usage,
            kv_tokens=page.block_size * page.num_blocks,
            prompt_tokens_total=float(stats.prompt_tokens),
            cached_tokens_total=float(stats.hit_tokens),
            adapters=Adapters(frozenset(stats.running_adapters), frozenset(stats.waiting_adapters), page.adapter_slots),
        )
        self._changed()

    def members(self, servers: Sequence[int], now_s: float) -> None:
        before, self.servers = set(self.servers), tuple(servers)
        for server in before.difference(servers):
            self._scraped.pop(server, None)
        if isinstance(self._policy, SeesServers):
            for server in sorted(before.difference(servers)):
                self._policy.left(server, now_s)
            for server in sorted(set(servers) - before):
                self._policy.joined(server, now_s)

    def _send(self, flight: Flight, asked: Asked, server: int) -> None:
        self._asked[flight.id] = asked
        self._routed(asked, server, self.now_s)
        self._world.send(flight, server, self.now_s)

    def _changed(self) -> None:
        if self._held:
            self._world.wake(self._tick)

    def _tick(self, now_s: float) -> bool:
        self.now_s = now_s
        assert self._release is not None
        while self._held and self.servers:
            released = self._release(self)
            if released is None:
                break
            asked, server = released
            self._send(self._held.pop(asked.id), asked, server)
        return bool(self._held)


def baseline(new_policy: Callable[[], Policy]) -> NewRouter:
    """A fresh policy for each run."""

    def new(world: World, scene: Scene, seed: int) -> Router:
        return Baseline(new_policy(), world, random.Random(seed), sees_answers=not scene.lean)

    return new


def _nothing(*_: object) -> None:
    pass
