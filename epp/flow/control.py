"""Flow control: who waits, for how long, and who goes next. Synchronous; times and the pool's saturation are handed in.

A request asks `passes` first, which costs no objects. If it must wait, the caller makes a ticket of it and calls `submit`. Every
ticket gets exactly one `Settled`, from `submit` itself or later from `next`, `expire`, `cancel`, `drain`, or the `submit` of a
ticket that takes its room. A change of what gave a ticket its priority does not move it: it waits where it came in.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from itertools import chain
from math import inf
from typing import Generic

import msgspec

from epp.flow.band import Band, BandState
from epp.flow.heap import Heap
from epp.flow.limits import new_ceilings
from epp.flow.programs import ProgramAware
from epp.flow.settings import FlowSettings
from epp.flow.ticket import Ending, Payload, Settled, Ticket

IDLE_S = 600.0
"""How long a band that was made on demand is kept without a request."""


class FlowControlState(msgspec.Struct, frozen=True):
    """What waits now; bands with the highest priority first."""

    requests: int
    bytes: int
    max_requests: float
    max_bytes: float
    bands: tuple[BandState, ...]


class FlowControl(Generic[Payload]):
    """The only owner of what waits. `requests` and `bytes` of it are read freely, and `blocked`: the highest priority that waits
    and the ceiling that it met, as of the latest `next`; None where nobody waited for room. Below a saturation of `free_below`
    `passes` does not depend on it.

    Saturation is how full the pool is, ≥ 0, as its detector says. A pool without endpoints takes nothing, whatever its saturation.
    """

    def __init__(self, settings: FlowSettings, now_s: float, *, pool_empty: bool = False) -> None:
        self.settings = settings
        self.requests = 0
        self.bytes = 0
        self.blocked: tuple[int, float] | None = None
        self._ceilings = new_ceilings(settings.limit)
        self.free_below = self._ceilings.free_below
        bands = (settings.default, settings.negative, *settings.bands.values())
        self.counts_service = any(band.policies.fairness == "program-aware" for band in bands)
        self._bands: dict[int, Band[Payload]] = {}
        self._priorities: list[int] = []
        self._deadlines: Heap[Ticket[Payload]] = Heap()
        self._pool_empty = pool_empty
        self._pool_since_s = now_s
        self._draining = False
        for priority in settings.bands:
            self._provide(priority, now_s)

    def __repr__(self) -> str:
        pool = "no endpoints" if self._pool_empty else "endpoints"
        return f"<FlowControl {self.requests} waiting, {self.bytes} bytes, {len(self._bands)} bands, {pool}>"

    # --- arrivals --------------------------------------------------------------------------------------------------

    def passes(self, priority: int, saturation: float, now_s: float) -> bool:
        """Whether a request of `priority` may go on at once: the pool has room for it, and nobody before it waits."""
        if self._pool_empty or (self.requests and self._outranked(priority)):
            return False
        band = self._bands.get(priority) or self._provide(priority, now_s)
        band.idle_since_s = now_s
        if saturation < self.free_below:
            return True
        priorities = self._priorities
        return saturation < self._ceilings.of(saturation, priorities)[priorities.index(priority)]

    def submit(self, ticket: Ticket[Payload], now_s: float) -> list[Settled[Payload]]:
        """Let `ticket` wait. Returns who could not, itself or others: the queue is full, or it had no time to wait."""
        if self._draining:
            return [Settled(ticket, Ending.REJECTED_SHUTTING_DOWN, 0.0)]
        band = self._bands.get(ticket.priority) or self._provide(ticket.priority, now_s)
        ticket.enqueued_s = now_s
        deadline_s = self._deadline_s(ticket)
        if deadline_s <= now_s:
            return [Settled(ticket, self._expired(), 0.0)]
        evicted = self._make_room(band, ticket, now_s)
        if evicted is None:
            full = Ending.REJECTED_NO_ENDPOINTS if self._pool_empty else Ending.REJECTED_CAPACITY
            return [Settled(ticket, full, 0.0)]
        if deadline_s < inf:
            ticket.due = self._deadlines.push(deadline_s, ticket)
        band.add(ticket)
        self.requests += 1
        self.bytes += ticket.held_bytes
        return evicted

    # --- departures ------------------------------------------------------------------------------------------------

    def next(self, saturation: float, now_s: float) -> Settled[Payload] | None:
        """Whose turn it is, if the pool has room. Call `expire` before, and again with the new saturation until it says None.

        The highest band that waits decides: while the pool has no room for it, nobody below goes, and `blocked` says so.
        """
        self.blocked = None
        if not self.requests or self._pool_empty:
            return None
        ceilings = self._ceilings.of(saturation, self._priorities)
        for priority, ceiling in zip(self._priorities, ceilings, strict=True):
            band = self._bands[priority]
            if band.tickets:
                if saturation >= ceiling:
                    self.blocked = (priority, ceiling)
                    return None
                return self._settle(band, band.take(), Ending.DISPATCHED, now_s)
        return None

    def cancel(self, ticket: Ticket[Payload], now_s: float) -> Settled[Payload] | None:
        """The client is gone. None where the ticket's wait is over already."""
        return self._give_up(ticket, Ending.EVICTED_CANCELLED, now_s) if ticket.waiting else None

    def expire(self, now_s: float) -> list[Settled[Payload]]:
        """Those whose time is over at `now_s`."""
        expired: list[Settled[Payload]] = []
        deadlines = self._deadlines
        while deadlines.floor() <= now_s:
            ticket = deadlines.top()
            if ticket is None or ticket.due is None or ticket.due.key > now_s:
                break
            expired.append(self._give_up(ticket, self._expired(), now_s))
        return expired

    @property
    def next_deadline_s(self) -> float:
        """`expire` finds nobody before; inf: never."""
        return self._deadlines.floor()

    def drain(self, now_s: float) -> list[Settled[Payload]]:
        """End all waits, for good: from now on nobody may wait. Who need not still passes."""
        self._draining = True
        waiting = [ticket for band in self._bands.values() for ticket in band.tickets]
        return [self._give_up(ticket, Ending.EVICTED_SHUTTING_DOWN, now_s) for ticket in waiting]

    # --- what was served -------------------------------------------------------------------------------------------

    def goes_by_service(self, priority: int) -> bool:
        """Whether the order at that priority depends on what was `served`. Never where not `counts_service`."""
        return self.counts_service and self.settings.band(priority).policies.fairness == "program-aware"

    def served(self, priority: int, fairness_id: str, tokens: float, now_s: float) -> None:
        """So many tokens were given to a request of that flow, whether or not it had to wait for them."""
        band = self._bands.get(priority)
        if band is not None and isinstance(band.turns, ProgramAware):
            band.turns.served(fairness_id, tokens, now_s)

    def attained(self, now_s: float) -> dict[str, float]:
        """Tokens that were `served` by fairness id, as much as still counts."""
        sums: dict[str, float] = {}
        for band in self._bands.values():
            if isinstance(band.turns, ProgramAware):
                for fairness_id, tokens in band.turns.attained(now_s).items():
                    sums[fairness_id] = sums.get(fairness_id, 0.0) + tokens
        return sums

    # --- the surroundings ------------------------------------------------------------------------------------------

    def pool_changed(self, empty: bool, now_s: float) -> None:
        """The pool has lost its last endpoint, or has one again: the other time to live counts from now on.

        Each has its own account, which goes on where it stood: a pool that comes and goes lets nobody wait for longer than both
        together. What a client itself said it would wait for goes on. O(n log n) in what waits, once for each such change.
        """
        if empty is self._pool_empty:
            return
        since_s, self._pool_since_s = self._pool_since_s, now_s
        self._pool_empty = empty
        self._deadlines = Heap()
        for band in self._bands.values():
            for ticket in band.tickets:
                if not empty:
                    ticket.empty_s += now_s - max(ticket.enqueued_s, since_s)
                deadline_s = self._deadline_s(ticket)
                ticket.due = self._deadlines.push(deadline_s, ticket) if deadline_s < inf else None

    def collect(self, now_s: float) -> None:
        """Forget bands made on demand that had no request for `IDLE_S`. Call it now and then: O(n) in the bands."""
        idle = [
            priority
            for priority, band in self._bands.items()
            if now_s - band.idle_since_s >= IDLE_S and not band.tickets and priority not in self.settings.bands
        ]
        if idle:
            for priority in idle:
                del self._bands[priority]
            self._priorities = [priority for priority in self._priorities if priority in self._bands]

    def waiting(self, priority: int) -> int:
        """How many requests wait at that priority."""
        band = self._bands.get(priority)
        return len(band.tickets) if band is not None else 0

    def tickets(self) -> Iterator[Ticket[Payload]]:
        """Everybody who waits, the highest priority first and in order of arrival. Not to be kept over a change."""
        for priority in self._priorities:
            yield from self._bands[priority].tickets

    def state(self) -> FlowControlState:
        bands = tuple([self._bands[priority].state() for priority in self._priorities])
        return FlowControlState(self.requests, self.bytes, self.settings.max_requests, self.settings.max_bytes, bands)

    # --- inside ----------------------------------------------------------------------------------------------------

    def _provide(self, priority: int, now_s: float) -> Band[Payload]:
        band: Band[Payload] = Band(priority, self.settings.band(priority), now_s)
        self._bands[priority] = band
        insort(self._priorities, priority, key=lambda known: -known)
        return band

    def _outranked(self, priority: int) -> bool:
        """Whether somebody waits whose turn would come before a newcomer's."""
        for known in self._priorities:
            if known < priority:
                return False
            if self._bands[known].tickets:
                return True
        return False

    def _make_room(self, band: Band[Payload], ticket: Ticket[Payload], now_s: float) -> list[Settled[Payload]] | None:
        """Those who give way to `ticket`: of lower bands, the lowest first and the newest of it, and what those cannot give, or its
        own band has no room for, of whoever hoards in its own. None where that is not enough.
        """
        size = ticket.held_bytes
        own_requests: float = len(band.tickets) + 1 - band.settings.max_requests
        own_bytes: float = band.bytes + size - band.settings.max_bytes
        over_requests = self.requests + 1 - self.settings.max_requests
        over_bytes = self.bytes + size - self.settings.max_bytes
        if own_requests <= 0 and own_bytes <= 0 and over_requests <= 0 and over_bytes <= 0:
            return []
        lower: list[Band[Payload]] = []
        if over_requests > 0 or over_bytes > 0:
            lower = [self._bands[known] for known in reversed(self._priorities) if known < ticket.priority]
            own_requests = max(own_requests, over_requests - sum(len(one.tickets) for one in lower))
            own_bytes = max(own_bytes, over_bytes - sum(one.bytes for one in lower))
        fits = own_requests <= 0 and own_bytes <= 0
        victims = [] if fits else band.hoarded(ticket, own_requests, own_bytes)
        if victims is None:
            return None
        over_requests -= len(victims)
        over_bytes -= sum(victim.held_bytes for victim in victims)
        for victim in chain.from_iterable(one.newest() for one in lower):
            if over_requests <= 0 and over_bytes <= 0:
                break
            victims.append(victim)
            over_requests -= 1
            over_bytes -= victim.held_bytes
        return [self._give_up(victim, Ending.EVICTED_PRESSURE, now_s) for victim in victims]

    def _deadline_s(self, ticket: Ticket[Payload]) -> float:
        if self._pool_empty:
            ends_s = max(ticket.enqueued_s, self._pool_since_s) + self.settings.empty_ttl_s - ticket.empty_s
        else:
            own_s = self.settings.band(ticket.priority).ttl_s
            ends_s = ticket.enqueued_s + ticket.empty_s + (self.settings.ttl_s if own_s is None else own_s)
        return min(ends_s, ticket.enqueued_s + ticket.max_wait_s)

    def _expired(self) -> Ending:
        return Ending.EVICTED_NO_ENDPOINTS if self._pool_empty else Ending.EVICTED_TTL

    def _give_up(self, ticket: Ticket[Payload], ending: Ending, now_s: float) -> Settled[Payload]:
        band = self._bands[ticket.priority]
        band.remove(ticket)
        return self._settle(band, ticket, ending, now_s)

    def _settle(self, band: Band[Payload], ticket: Ticket[Payload], ending: Ending, now_s: float) -> Settled[Payload]:
        self.requests -= 1
        self.bytes -= ticket.held_bytes
        band.idle_since_s = now_s
        if ticket.due is not None:
            self._deadlines.discard(ticket.due)
            ticket.due = None
        return Settled(ticket, ending, max(0.0, now_s - ticket.enqueued_s))
