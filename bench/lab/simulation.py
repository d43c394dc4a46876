"""A run under virtual time: requests of a trace, routers, servers, and what passes between them.

Engines are advanced together to each next event, and what they did meanwhile is told in order, so the work is that of events and
of engine steps, not of ticks. The one inexactness: a request that had to wait for its turn reaches its engine no earlier than the
event at which it was let go, at most 5 ms after what let it go.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf, nan

from bench.lab.fleet import Fleet
from bench.lab.offered import Offered, block_hashes, chain
from bench.lab.record import Outcome, Record
from bench.lab.router import Flight, NewRouter, Page, Router
from bench.lab.scene import Scene
from bench.replica.engine import FirstToken, Work
from epp.signals.schedule import phase_s
from epp.ticker import TICK_S

REMEMBERED = 4_000_000
"""Blocks of text in the endless cache that hits are compared with; the least recently seen are forgotten."""

_IDLE_S = 1.0
"""How far to look ahead where nothing but engine steps is due."""


class Simulation:
    """One run, for the sake of its `records`."""

    def __init__(self, offered: Iterable[Offered], scene: Scene, new_router: NewRouter) -> None:
        self._scene = scene
        self._offered = iter(offered)
        self._rng = random.Random(scene.seed)
        self._fleet = Fleet(scene.servers)
        self._longest = min(one.longest for one in scene.servers)
        self._flights: list[dict[str, Flight]] = [{} for _ in scene.servers]
        self._undecided = 0
        self._arriving = True
        self._heap: list[tuple[float, int, Callable[[float], None]]] = []
        self._order = itertools.count()
        self._ids = itertools.count()
        self._reached_s = 0.0
        self._endless = EndlessCache()
        self._ended: list[Record] = []
        self._routers: list[Router] = [
            new_router(_Window(self, self._fleet), scene, self._rng.getrandbits(32)) for _ in range(scene.pickers)
        ]

    def records(self) -> Iterator[Record]:
        """Run: one record for each request of the trace, in the order of their ends. To be read once."""
        self._tell_members(0.0)
        self._begin_scrapes()
        for loss in self._scene.losses:
            self.at(loss.at_s, partial(self._lose, loss.server))
            if loss.back_s < inf:
                self.at(loss.back_s, partial(self._restore, loss.server))
        self._expect_next()
        while self._arriving or self._undecided or any(self._flights):
            at_s = self._heap[0][0] if self._heap else self._reached_s + _IDLE_S
            if at_s > self._reached_s:
                # What the servers do until then may have to be told first.
                self._advance(at_s)
                continue
            _, _, happen = heapq.heappop(self._heap)
            happen(at_s)
            if self._ended:
                yield from self._ended
                self._ended.clear()

    def at(self, at_s: float, happen: Callable[[float], None]) -> None:
        """Let `happen(at_s)` be called at that time, after what was asked for the same time before."""
        heapq.heappush(self._heap, (at_s, next(self._order), happen))

    def soon(self, happen: Callable[[float], None]) -> None:
        """Let it be called next."""
        self.at(self._reached_s, happen)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _expect_next(self) -> None:
        offered = next(self._offered, None)
        if offered is None:
            self._arriving = False
        else:
            self.at(max(offered.at_s, self._reached_s), partial(self._arrive, offered))

    def _arrive(self, offered: Offered, now_s: float) -> None:
        chained = chain(offered)
        router = self._routers[0] if len(self._routers) == 1 else self._rng.choice(self._routers)
        flight = Flight(
            f"r{next(self._ids)}",
            offered,
            block_hashes(offered, chained),
            min(self._endless.take(chained) * offered.block_tokens, offered.prompt_tokens - 1),
            router,
        )
        self._undecided += 1
        if offered.prompt_tokens + offered.output_tokens > self._longest:
            self.refuse(flight, Outcome.TOO_LONG)
        else:
            router.arrive(flight, now_s)
        self._expect_next()

    def send(self, flight: Flight, server: int, now_s: float) -> None:
        self._fleet.submit(server, self._work(flight, server), now_s + self._scene.network_s)
        flight.server = server
        flight.picked_s = now_s
        self._flights[server][flight.id] = flight
        self._undecided -= 1

    def first_tokens(self, server: int, flight: Flight | None, now_s: float) -> dict[str, float]:
        work = None if flight is None else self._work(flight, server)
        return self._fleet.first_tokens(server, work, now_s + self._scene.network_s)

    def _work(self, flight: Flight, server: int) -> Work:
        offered = flight.offered
        adapter = offered.model if offered.model and self._fleet.profiles[server].max_loras else None
        return Work(flight.id, offered.prompt_tokens, offered.output_tokens, flight.hashes, adapter)

    def refuse(self, flight: Flight, outcome: Outcome = Outcome.REFUSED) -> None:
        self._undecided -= 1
        self._record(flight, outcome)

    def _advance(self, until_s: float) -> None:
        for done_s, server, event in self._fleet.advance(until_s):
            flight = self._flights[server].get(event.id)
            if flight is not None:
                flight.cached_tokens = event.cached_tokens
                tell = self._first_token if isinstance(event, FirstToken) else self._finish
                self.at(done_s + self._scene.network_s, partial(tell, flight))
        self._reached_s = until_s

    def _first_token(self, flight: Flight, now_s: float) -> None:
        if flight.id in self._flights[flight.server]:
            flight.first_s = now_s
            flight.router.first_token(flight, now_s)

    def _finish(self, flight: Flight, now_s: float) -> None:
        if self._flights[flight.server].pop(flight.id, None) is None:
            return
        if flight.first_s < 0:
            flight.first_s = now_s
        flight.router.finished(flight, now_s, whole=True)
        self._record(flight, Outcome.DONE, now_s)

    def _record(self, flight: Flight, outcome: Outcome, end_s: float = nan) -> None:
        offered = flight.offered
        self._ended.append(
            Record(
                id=flight.id,
                at_s=offered.at_s,
                prompt_tokens=offered.prompt_tokens,
                output_tokens=offered.output_tokens,
                model=offered.model,
                tenant=offered.tenant,
                outcome=outcome,
                server=flight.server,
                picked_s=flight.picked_s if flight.server >= 0 else nan,
                ttft_s=flight.first_s - offered.at_s if flight.first_s >= 0 else nan,
                e2e_s=end_s - offered.at_s,
                cached_tokens=flight.cached_tokens,
                available_tokens=flight.available_tokens,
            )
        )

    # --- servers -----------------------------------------------------------------------------------------------------

    def _lose(self, server: int, now_s: float) -> None:
        self._fleet.lose(server)
        lost = list(self._flights[server].values())
        self._flights[server].clear()
        self._tell_members(now_s)
        for flight in lost:
            flight.router.finished(flight, now_s, whole=False)
            self._record(flight, Outcome.LOST)

    def _restore(self, server: int, now_s: float) -> None:
        self._fleet.restore(server, now_s)
        self._tell_members(now_s)

    def _tell_members(self, now_s: float) -> None:
        for router in self._routers:
            router.members(self._fleet.alive, now_s)

    def _begin_scrapes(self) -> None:
        interval_s = self._scene.scrape_interval_s
        if interval_s == inf:
            return
        for number, router in enumerate(self._routers):
            shift_s = self._rng.uniform(0.0, interval_s) if number else 0.0
            for server in range(len(self._fleet)):
                self.at(phase_s(server, interval_s) + shift_s, partial(self._scrape, router, server))

    def _scrape(self, router: Router, server: int, now_s: float) -> None:
        """Question, page and answer of one scrape, of which the page may be the oldest."""
        scene = self._scene
        half_s = scene.scrape_delay_s / 2
        ask_s = now_s + max(0.0, scene.page_age_s - half_s)
        scrape = _Scrape(self._fleet, router, server)
        self.at(ask_s, scrape.ask)
        self.at(now_s + max(0.0, half_s - scene.page_age_s), scrape.write)
        self.at(ask_s + scene.scrape_delay_s, scrape.answer)
        self.at(now_s + scene.scrape_interval_s, partial(self._scrape, router, server))


class EndlessCache:
    """A prefix cache that all servers share and that forgets next to nothing: what could have been found at best."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._remembered = remembered
        self._seen: OrderedDict[int, None] = OrderedDict()

    def take(self, chained: Sequence[int]) -> int:
        """How many leading blocks are there; after that all of them are."""
        seen = self._seen
        known = next((i for i, value in enumerate(chained) if value not in seen), len(chained))
        for value in chained[:known]:
            seen.move_to_end(value)
        seen.update(dict.fromkeys(chained[known:]))
        while len(seen) > self._remembered:
            seen.popitem(last=False)
        return known


class _Window:
    """The simulation as one router sees it: a `World`."""

    def __init__(self, simulation: Simulation, fleet: Fleet) -> None:
        self._simulation = simulation
        self._tick_due = False
        self.send = simulation.send
        self.refuse = simulation.refuse
        self.first_tokens = simulation.first_tokens
        self.cached_tokens = fleet.cached_tokens
        self.profiles = fleet.profiles

    def wake(self, tick: Callable[[float], bool]) -> None:
        if not self._tick_due:
            self._tick_due = True
            self._simulation.soon(partial(self._tick, tick))

    def _tick(self, tick: Callable[[float], bool], now_s: float) -> None:
        self._tick_due = False
        if tick(now_s) and not self._tick_due:
            self._tick_due = True
            self._simulation.at(now_s + TICK_S, partial(self._tick, tick))


class _Scrape:
    """One scrape. It is told only where one and the same server heard the question and wrote the page."""

    def __init__(self, fleet: Fleet, router: Router, server: int) -> None:
        self._fleet = fleet
        self._router = router
        self._server = server
        self._mark: object = None
        self._page: Page | None = None
        self._life = fleet.life[server]

    def ask(self, now_s: float) -> None:
        if self._is_there():
            self._mark = self._router.asked(self._server, now_s)

    def write(self, now_s: float) -> None:
        self._page = self._fleet.page(self._server)

    def answer(self, now_s: float) -> None:
        if self._page is not None and self._is_there():
            self._router.reported(self._server, self._mark, self._page, now_s)

    def _is_there(self) -> bool:
        return self._fleet.lives(self._server, self._life)
