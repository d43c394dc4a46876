"""Those who wait for their turn: lined up while the pool is full, let go when it has room, answered whatever happens.

`Waits` owns the requests' side of flow control: which request holds which ticket, and what was last seen of how full the pool is.
Synchronous; times come from the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

import msgspec

from epp.account import Account, Place, labels
from epp.drops import Drop, Reason
from epp.endpoint import Endpoints
from epp.extproc.events import Arrival, Routed, Steer
from epp.flow.control import FlowControl
from epp.flow.evictions import Evictions
from epp.flow.ticket import REASONS, Ending, Settled, Ticket
from epp.ledger import Ledger
from epp.observe.flow import DISPATCHED, QUEUED, FlowRecord, Now, Reclaim
from epp.observe.metrics import Metrics
from epp.openai.body import Parsed
from epp.pipeline import Pipeline
from epp.prefix.index import PrefixIndex
from epp.quota.quota import Grant
from epp.request import Request, first_of
from epp.retry import Returns

MAX_WAIT_HEADER = "x-llm-d-max-queue-wait-ms"
"""The longest wait for its turn that a client accepts, in milliseconds. What is no number says nothing."""

SLO_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
"""The time to first token that a client wants, in milliseconds from its arrival."""

_TURNS_AT_ONCE = 64
"""Requests let go in one `pump`, 4 ms of work: others want the loop too."""

_LOOK_HOLDS_S = 0.05
"""How old a saturation may be to go by: as young as the youngest reports usually are."""

_TOLD = {
    Ending.REJECTED_CAPACITY: "Too many requests wait for a model server already. Try again later.",
    Ending.REJECTED_NO_ENDPOINTS: "There is no ready model server, and too many requests wait for one. Try again later.",
    Ending.REJECTED_SHUTTING_DOWN: "This endpoint picker is going down and no model server has room. Try again.",
    Ending.EVICTED_TTL: "The request waited {waited_s:.1f} s, and no model server had room for it. Try again later.",
    Ending.EVICTED_NO_ENDPOINTS: "The request waited {waited_s:.1f} s, and there was no ready model server. Try again later.",
    Ending.EVICTED_CANCELLED: "The client left after {waited_s:.1f} s.",
    Ending.EVICTED_PRESSURE: "Too many requests wait for a model server. This one gave way after {waited_s:.1f} s to one of higher "
    "priority, or of a client who has fewer that wait. Try again later.",
    Ending.EVICTED_SHUTTING_DOWN: "This endpoint picker is going down; the request waited {waited_s:.1f} s. Try again.",
}


class Queue(msgspec.Struct, frozen=True, eq=False):
    """Flow control, and who hears of it. `wake` asks for a `Waits.pump` soon; it may be called at any time. `evictions` None:
    whoever runs may run to its end.
    """

    control: FlowControl[Place]
    record: FlowRecord
    wake: Callable[[], None]
    evictions: Evictions[Account] | None = None


class Waits:
    """Everybody who waits for `queue`. Each who was given a `Place` is answered once, unless its client leaves first.

    `serve` picks for a request whose turn has come, or raises Drop. `refused` settles whatever a refusal entails; its request is
    answered here. `timer` and `faults` are the dispatcher's.
    """

    def __init__(
        self,
        queue: Queue,
        *,
        endpoints: Endpoints,
        ledger: Ledger,
        pipeline: Pipeline,
        index: PrefixIndex,
        metrics: Metrics,
        returns: Returns,
        timer: Callable[[], float],
        faults: Callable[[str, Exception], None],
        serve: Callable[[Place, float], tuple[Steer, Account]],
        refused: Callable[[Drop, Request, Grant | None, float, float], None],
    ) -> None:
        self._queue = queue
        self._control = queue.control
        self._record = queue.record
        self._endpoints = endpoints
        self._ledger = ledger
        self._pipeline = pipeline
        self._index = index
        self._metrics = metrics
        self._returns = returns
        self._timer = timer
        self._faults = faults
        self._serve = serve
        self._refused = refused
        self._looked = 1.0
        self._looked_s = -inf
        self._passed = 0

    def __repr__(self) -> str:
        return f"<Waits {self._control!r}>"

    # --- arrivals --------------------------------------------------------------------------------------------------

    def line_up(
        self,
        arrival: Arrival,
        parsed: Parsed,
        request: Request,
        grant: Grant | None,
        opened_s: float,
        now_s: float,
    ) -> Place | None:
        """Its place where the request has to wait, None where it may go on. Raises Drop."""
        place: Place | None = None
        try:
            if self._passes(request, now_s):
                return None
            # Its prompts are a copy of most of the body: whoever waits would hold twice what it is counted as.
            unread = msgspec.structs.replace(parsed, prompts=())
            place = Place(arrival, unread, request, grant, opened_s, self._left)
            self._enqueue(place, now_s)
        except Drop:
            raise
        except Exception as error:
            # Better out of turn than refused.
            self._faults("flow", error)
            if place is not None and place.ticket is not None:
                # Nobody would ever release what its turn took.
                self._control.cancel(place.ticket, now_s)
            return None
        return place

    def _passes(self, request: Request, now_s: float) -> bool:
        control = self._control
        passes = control.passes(request.priority, self._saturation_below(control.free_below, now_s), now_s)
        if passes:
            self._record.ended(labels(request), DISPATCHED, 0.0)
        return passes

    def _enqueue(self, place: Place, now_s: float) -> None:
        """Raises Drop where the request may not wait."""
        began = self._timer()
        request = place.request
        place.ticket = ticket = Ticket(
            place,
            priority=request.priority,
            fairness_id=request.fairness_id,
            tokens=self._uncached(request),
            held_bytes=request.body_bytes + _size(request.headers),
            max_wait_s=_milliseconds(request.headers.get(MAX_WAIT_HEADER)),
            slo_deadline_s=place.opened_s + _milliseconds(first_of(request.headers, SLO_HEADERS)),
        )
        refused: Drop | None = None
        outcome = QUEUED
        for settled in self._control.submit(ticket, now_s):
            if settled.ticket is ticket:
                refused, outcome = self._drop(settled), settled.ending.value
            else:
                self._turn_away(settled, now_s)
        self._record.enqueued(labels(request), outcome, self._timer() - began)
        if refused is not None:
            place.ticket = None
            raise refused
        self._queue.wake()

    def _uncached(self, request: Request) -> int:
        """Prompt tokens that would be prefilled where most of them are cached."""
        blocks = len(request.fingerprints)
        if not blocks:
            return request.prompt_tokens
        try:
            hits = self._index.match(request.fingerprints)
            held = int(hits.max()) if len(hits) else 0
        except Exception as error:
            self._faults("pick", error)
            held = 0
        return round(request.prompt_tokens * (1.0 - held / blocks))

    def _left(self, place: Place, now_s: float) -> None:
        """The client of `place` is gone."""
        ticket, place.ticket = place.ticket, None
        settled = self._control.cancel(ticket, now_s) if ticket is not None else None
        if settled is not None:
            self._refused(self._drop(settled), place.request, place.grant, place.opened_s, now_s)

    # --- turns -----------------------------------------------------------------------------------------------------

    def pump(self, now_s: float) -> bool:
        """End waits whose time is over, and let go whose turn it is; they are answered by `resume`. Whether anybody still waits.

        An endpoint is chosen now, not when the request came.
        """
        began = self._timer()
        control = self._control
        for settled in control.expire(now_s):
            self._turn_away(settled, now_s)
        for _ in range(_TURNS_AT_ONCE):
            if not control.requests:
                break
            saturation = self._saturation(now_s)
            next_one = control.next(saturation, now_s)
            if next_one is None:
                if self._queue.evictions is not None:
                    self._make_room(self._queue.evictions, saturation, now_s)
                break
            self._let_go(next_one, now_s)
        self._record.cycle(self._timer() - began)
        if not control.requests:
            control.collect(now_s)
        return control.requests > 0

    def pool_changed(self, now_s: float) -> None:
        """The membership of the pool is another one."""
        self._looked_s = -inf
        self._control.pool_changed(not len(self._endpoints), now_s)
        self._queue.wake()

    def load_fell(self) -> None:
        """Somebody who waits may have room now."""
        if self._control.requests:
            self._queue.wake()

    def drain(self, now_s: float) -> None:
        """Refuse all who wait, and all who would have to from now on."""
        for settled in self._control.drain(now_s):
            self._turn_away(settled, now_s)

    def _let_go(self, settled: Settled[Place], now_s: float) -> None:
        place = settled.ticket.payload
        began = self._timer()
        self._passed += 1
        self._note_ending(settled)
        try:
            routed = self._serve(place, now_s)
        except Drop as drop:
            self._refuse(place, drop, now_s)
            return
        except Exception as error:
            self._faults("resume", error)
            self._refuse(place, Drop(Reason.INTERNAL, "The endpoint picker failed on this request. Try again."), now_s)
            return
        decided = self._timer()
        self._resume(place, routed)
        try:
            self._metrics.stage("decide", decided - began)
        except Exception as error:
            self._faults("record", error)

    def _resume(self, place: Place, routed: Routed[Account]) -> None:
        """Others wait for their answers too, whatever becomes of this one."""
        try:
            place.answer(routed)
        except Exception as error:
            self._faults("resume", error)

    def _refuse(self, place: Place, drop: Drop, now_s: float) -> None:
        self._refused(drop, place.request, place.grant, place.opened_s, now_s)
        self._resume(place, drop)

    def _turn_away(self, settled: Settled[Place], now_s: float) -> None:
        self._refuse(settled.ticket.payload, self._drop(settled), now_s)

    def _drop(self, settled: Settled[Place]) -> Drop:
        self._note_ending(settled)
        return Drop(REASONS[settled.ending], _TOLD[settled.ending].format(waited_s=settled.waited_s))

    def _note_ending(self, settled: Settled[Place]) -> None:
        """Its wait is over already: whoever waited has to hear of it in any case."""
        try:
            self._record.ended(labels(settled.ticket.payload.request), settled.ending.value, settled.waited_s)
        except Exception as error:
            self._faults("record", error)

    def _make_room(self, evictions: Evictions[Account], saturation: float, now_s: float) -> None:
        """End requests that run for those who wait above them. They are accounted for when they are `finished`."""
        control, record = self._control, self._record
        record.unconfirmed(evictions.overdue(now_s))
        if control.blocked is None:
            return
        priority, ceiling = control.blocked
        for account, level in evictions.due(priority, saturation, ceiling, self._in_flight(), now_s):
            drop = account.eviction(now_s)
            self._returns.advise(drop, now_s, priority=level, ahead=control.waiting(level))
            record.told_to_end(level)
            try:
                assert account.evict is not None
                account.evict(drop)
            except Exception as error:
                self._faults("evict", error)

    # --- how full the pool is --------------------------------------------------------------------------------------

    def _saturation(self, now_s: float) -> float:
        """How full the pool is; 1 where it has no endpoint."""
        if not len(self._endpoints):
            return 1.0
        try:
            self._ledger.advance(now_s)
            return self._pipeline.saturation(self._endpoints.candidates(now_s))
        except Exception as error:
            # Better too early than never.
            self._faults("flow", error)
            return 0.0

    def _saturation_below(self, enough: float, now_s: float) -> float:
        """As `_saturation`, or a value below `enough` that it has not passed: the last look, and one endpoint filled by each request
        since. Telling it takes 4 µs at 8 endpoints and 10 at 1,000, most of what flow control costs a request that need not wait.
        """
        self._passed += 1
        if now_s - self._looked_s < _LOOK_HOLDS_S:
            most = self._looked + self._passed / (len(self._endpoints) or 1)
            if most < enough:
                return most
        self._looked = self._saturation(now_s)
        self._looked_s = now_s
        self._passed = 0
        return self._looked

    def _in_flight(self) -> float:
        return float(self._endpoints.in_flight[self._endpoints.slots].sum())

    # --- what metrics show -----------------------------------------------------------------------------------------

    def look(self, now_s: float) -> Now:
        """Flow control as it is now, for metrics."""
        control = self._control
        control.collect(now_s)
        state = control.state()
        waiting = [(labels(one.payload.request), one.held_bytes) for one in control.tickets()]
        candidates = self._endpoints.candidates(now_s)
        saturation = self._saturation(now_s)
        return Now(
            waiting=waiting,
            levels=state.bands,
            requests=state.requests,
            bytes=state.bytes,
            max_requests=state.max_requests,
            max_bytes=state.max_bytes,
            saturation=saturation,
            stale_endpoints=int((~candidates.fresh).sum()),
            reclaim=self._reclaim(saturation),
            attained=control.attained(now_s) if control.counts_service else None,
        )

    def _reclaim(self, saturation: float) -> Reclaim | None:
        if self._queue.evictions is None:
            return None
        blocked, told = self._control.blocked, self._queue.evictions.told
        target = max(0.0, saturation - blocked[1]) if blocked is not None else 0.0
        in_flight = self._in_flight()
        # Those told to end run on where their endpoints have left the pool, and take none of its room.
        return Reclaim(target, told * saturation / in_flight if in_flight else 0.0)


def _size(headers: Mapping[str, str]) -> int:
    """Bytes: clients may send 60 KB of them with each request, more than most bodies have."""
    return sum(map(len, headers)) + sum(map(len, headers.values()))


def _milliseconds(value: str | None) -> float:
    """Seconds; inf where `value` is no number of milliseconds."""
    try:
        seconds = float(value) / 1000.0 if value else inf
    except ValueError:
        return inf
    return seconds if seconds >= 0.0 else inf
