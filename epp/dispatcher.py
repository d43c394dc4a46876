"""From an arrived request to a pick, and the account of it until the answer ends.

`Dispatcher` owns nothing but the order of things: it reads the body, looks up the prefix, runs the pipeline, takes the
ledger entry in the same step, and settles all of it when the exchange says what became of the request. It is synchronous;
times come from the caller, except the fine clock that the stage histograms are measured with.
"""

from __future__ import annotations

import random
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping
from math import inf

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.decisions.recording import Recording
from epp.drops import OUTCOMES, Drop, Reason
from epp.endpoint import Candidates, Endpoint, Endpoints, IntArray
from epp.extproc.events import Arrival, Cause, Finished, Routed, Started, Steer, connected_not
from epp.flow.control import FlowControl
from epp.flow.evictions import Evictions
from epp.flow.ticket import REASONS, Ending, Settled, Ticket
from epp.ledger import Entry, Ledger
from epp.observe.flow import DISPATCHED, QUEUED, FlowRecord, Now, Reclaim
from epp.observe.logs import DecisionLog, RefusalLog
from epp.observe.metrics import Metrics
from epp.openai.api import Kind
from epp.openai.body import OPAQUE, Parsed, parse
from epp.openai.rewrite import rewrite_model
from epp.openai.tokens import TokenEstimator
from epp.openai.usage import Usage, event_count, usage
from epp.pipeline import Pick, Pipeline, least_in_flight, unjudged
from epp.prefix.fingerprints import fingerprints, seed_of
from epp.prefix.index import PrefixIndex
from epp.pressure import Pressure, Step
from epp.quota.quota import Grant, Quota
from epp.request import BLOCK_BYTES, NO_FINGERPRINTS, Request
from epp.resources.store import InForce
from epp.retry import Returns

OBJECTIVE_HEADERS = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
MAX_WAIT_HEADER = "x-llm-d-max-queue-wait-ms"
"""The longest wait for its turn that a client accepts, in milliseconds. What is no number says nothing."""

SLO_HEADERS = ("x-llm-d-slo-ttft-ms", "x-slo-ttft-ms")
"""The time to first token that a client wants, in milliseconds from its arrival."""

REWRITE_HEADERS = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")

CONTROL_HEADERS = OBJECTIVE_HEADERS + FAIRNESS_HEADERS + REWRITE_HEADERS
"""Meant for us: taken out of what the model server gets. The first spelling of each wins over its older alias."""

_CONTROLS = frozenset(CONTROL_HEADERS)

NOBODY = ("", "", 0, "default-flow")
"""The metric labels of a request that was not understood: model, target model, priority, fairness id."""

Choice = tuple[Pick, float, Candidates]
"""The pick, the share of the prompt that its first endpoint is believed to have cached, [0, 1], and whom it was made among."""

Announce = Callable[[str], tuple[tuple[str, str], ...]]

_SUBSETS_REMEMBERED = 256
# Reading a member off its enum costs 0.17 µs each time in Python 3.11, a module's name 0.02.
_RANDOM = Step.RANDOM

_LEFT_OUT = {Step.NO_PREFIX: "no-prefix", Step.RANDOM: "random"}


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """What an operator may set about dispatching.

    `look_share` is the share of hidden answers whose body is asked for, [0, 1]. `ignore_subset` passes over the
    gateway's subset hint. `emit_scores` puts every candidate's score into dynamic metadata. `max_prefix_blocks` bounds how
    much of a prompt is fingerprinted, in blocks. A request counts `output_ratio` tokens for each of its prompt's as its answer
    to come, at most `max_output_tokens` and what the client itself allows.
    """

    look_share: float = 0.01
    ignore_subset: bool = False
    emit_scores: bool = False
    max_prefix_blocks: int = 2048
    output_ratio: float = 0.0
    max_output_tokens: int | None = None


class Account:
    """One routed request until its end: what to settle, and with whom. `grant` is None where no quota holds, `evict` where
    nobody may end it, `recorded` 0 where no decision log holds the pick. `dispatcher` is the one that routed it, and the one
    to tell what becomes of it.
    """

    __slots__ = (
        "content_type",
        "dispatcher",
        "endpoint",
        "entry",
        "evict",
        "grant",
        "kind",
        "opened_s",
        "picked",
        "recorded",
        "request",
        "status",
        "ttft_s",
    )

    def __init__(
        self,
        request: Request,
        kind: Kind,
        endpoint: Endpoint,
        entry: Entry,
        opened_s: float,
        grant: Grant | None,
        recorded: int,
        dispatcher: Dispatcher,
    ) -> None:
        self.dispatcher = dispatcher
        self.request = request
        self.kind = kind
        self.endpoint = self.picked = endpoint
        self.entry = entry
        self.grant = grant
        self.recorded = recorded
        self.opened_s = opened_s
        self.status = 0
        self.content_type = ""
        self.ttft_s: float | None = None
        self.evict: Callable[[Drop], None] | None = None


class Place:
    """A request that waits for its turn: a `Waiting` of `epp.extproc.events`."""

    __slots__ = ("_leave", "arrival", "grant", "opened_s", "parsed", "request", "resume", "ticket")

    def __init__(
        self,
        arrival: Arrival,
        parsed: Parsed,
        request: Request,
        grant: Grant | None,
        opened_s: float,
        leave: Callable[[Place, float], None],
    ) -> None:
        self.arrival = arrival
        self.parsed = parsed
        self.request = request
        self.grant = grant
        self.opened_s = opened_s
        self.resume: Callable[[Routed[Account]], None]
        self.ticket: Ticket[Place] | None = None
        self._leave = leave

    def cancel(self, now_s: float) -> None:
        # Its wait may have ended in the very step that is being told to somebody else now.
        self.resume = _unheard
        self._leave(self, now_s)

    def answer(self, routed: Routed[Account]) -> None:
        """The wait is over; from now on it holds neither its ticket nor who waited."""
        resume, self.resume = self.resume, _unheard
        # Together they would live until the collector came by, and the body with them.
        self.ticket = None
        resume(routed)


def _unheard(routed: Routed[Account]) -> None:
    pass


class Queue(msgspec.Struct, frozen=True, eq=False):
    """Flow control, and who hears of it. `wake` asks for a `Dispatcher.pump` soon; it may be called at any time. `evictions` None:
    whoever runs may run to its end.
    """

    control: FlowControl[Place]
    record: FlowRecord
    wake: Callable[[], None]
    evictions: Evictions[Account] | None = None


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
    Ending.EVICTED_PRESSURE: "The request gave way to one of higher priority after {waited_s:.1f} s, because too many wait. "
    "Try again later.",
    Ending.EVICTED_SHUTTING_DOWN: "This endpoint picker is going down; the request waited {waited_s:.1f} s. Try again.",
}


_EVICTED = "The request gave way to one of higher priority after {ran_s:.1f} s. Try again later."


class Dispatcher:
    """Implements `epp.extproc.events.Dispatcher`.

    `timer` is a monotonic clock in seconds for measuring our own stages; `faults(kind, error)` takes note of a bug of ours
    that was done without, `kind` being the step that failed: read, quota, flow, pick, steer, record, decision-log, resume, evict or
    usage. `pressure` says what picks leave out for the loop's sake; without it, nothing. `resources` says which priority a request
    has and which model serves it; without it, 0 and the one it asks for. `quota` says who may use how much; without it, everybody
    anything. `queue` lets requests wait while the pool is full; without it, those below priority 0 are refused then and all others
    go on. `announce` gives the headers that tell routes of a request, by the model it asks for. `recording` takes down every decision and its outcome for the decision log. Its draws have a generator of their own,
    seeded from `rng`: the nth request draws the same whatever else is left to chance.
    """

    def __init__(
        self,
        *,
        endpoints: Endpoints,
        pipeline: Pipeline,
        ledger: Ledger,
        index: PrefixIndex,
        metrics: Metrics,
        estimator: TokenEstimator,
        policy: Policy,
        rng: random.Random,
        timer: Callable[[], float],
        faults: Callable[[str, Exception], None],
        decisions: DecisionLog,
        pressure: Pressure | None = None,
        resources: InForce | None = None,
        quota: Quota | None = None,
        queue: Queue | None = None,
        recording: Recording | None = None,
        announce: Announce | None = None,
    ) -> None:
        self._announce = announce
        self._recording = recording
        self._queue = queue
        self._evicts = queue is not None and queue.evictions is not None
        self._counted = queue.control if queue is not None and queue.control.counts_service else None
        self._looked = 1.0
        self._looked_s = -inf
        self._passed = 0
        self._quota = quota
        self._returns = Returns(rng)
        self._refusals = RefusalLog()
        self._resources = resources
        self._draws = random.Random(rng.getrandbits(64)) if resources is not None else rng
        self._pressure = pressure if pressure is not None else Pressure()
        self._endpoints = endpoints
        self._pipeline = pipeline
        self._ledger = ledger
        self._index = index
        self._metrics = metrics
        self._estimator = estimator
        self._policy = policy
        self._rng = rng
        self._timer = timer
        self._faults = faults
        self._decisions = decisions
        self._subsets: OrderedDict[tuple[str, ...], IntArray] = OrderedDict()
        self._subsets_generation = -1

    # --- the pick --------------------------------------------------------------------------------------------------

    def route(
        self, arrival: Arrival, opened_s: float, now_s: float, parsed: Parsed | None = None
    ) -> tuple[Steer, Account] | Place:
        """Read, pick, take the ledger entry, and say where to; or let the request wait. Raises Drop.

        `parsed` is what the body says, where somebody has read it already.

        A bug of ours on the way costs the quality of this pick, never the request.
        """
        began = self._timer()
        request: Request | None = None
        grant: Grant | None = None
        try:
            parsed, request = self._read(arrival, parsed)
            read = self._timer()
            if self._quota is not None:
                grant = self._admit(self._quota, request, now_s)
            if self._queue is not None:
                place = self._line_up(self._queue, arrival, parsed, request, grant, opened_s, now_s)
                if place is not None:
                    self._metrics.stage("body", max(0.0, now_s - opened_s))
                    self._metrics.stage("parse", read - began)
                    return place
            choice = self._choose(request, self._eligible(arrival.subset), now_s)
        except Drop as drop:
            self._refused(drop, request, grant, opened_s, now_s)
            raise
        routed = self._commit(arrival, parsed, request, choice, opened_s, now_s, grant)
        decided = self._timer()
        self._metrics.staged(max(0.0, now_s - opened_s), read - began, decided - read)
        return routed

    def _line_up(
        self,
        queue: Queue,
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
            if self._passes(queue, request, now_s):
                return None
            # Its prompts are a copy of most of the body: whoever waits would hold twice what it is counted as.
            unread = msgspec.structs.replace(parsed, prompts=())
            place = Place(arrival, unread, request, grant, opened_s, self._left)
            self._enqueue(queue, place, now_s)
        except Drop:
            raise
        except Exception as error:
            # Better out of turn than refused.
            self._faults("flow", error)
            if place is not None and place.ticket is not None:
                # Nobody would ever release what its turn took.
                queue.control.cancel(place.ticket, now_s)
            return None
        return place

    def _admit(self, quota: Quota, request: Request, now_s: float) -> Grant | None:
        """What the quota charged. Raises Drop."""
        try:
            return quota.admit(request, now_s)
        except Drop:
            raise
        except Exception as error:
            self._faults("quota", error)
            return None

    def _refused(self, drop: Drop, request: Request | None, grant: Grant | None, opened_s: float, now_s: float) -> None:
        """Everything that a refusal entails: when to come back, the count, the log line, and the charge given back."""
        priority = request.priority if request is not None else 0
        ahead = self._queue.control.waiting(priority) if self._queue is not None else 0
        try:
            self._returns.advise(drop, now_s, priority=priority, ahead=ahead, generation=self._endpoints.generation)
            self._metrics.refused(*_labels(request), OUTCOMES[drop.reason])
            self._refusals.note(drop, request, now_s)
        except Exception as error:
            self._faults("record", error)
        if grant is not None and self._quota is not None:
            try:
                self._quota.cancel(grant, now_s)
            except Exception as error:
                self._faults("quota", error)
        if self._recording is not None:
            try:
                self._recording.refused(request, drop.reason.value, opened_s, now_s)
            except Exception as error:
                self._faults("decision-log", error)

    def _read(self, arrival: Arrival, parsed: Parsed | None) -> tuple[Parsed, Request]:
        try:
            if parsed is None:
                parsed = (
                    parse(arrival.headers, arrival.body, truncated=arrival.truncated) if arrival.has_body else OPAQUE
                )
            return parsed, self._request(arrival, parsed)
        except Drop:
            raise
        except Exception as error:
            self._faults("read", error)
            return OPAQUE, self._request(arrival, OPAQUE)

    def _request(self, arrival: Arrival, parsed: Parsed) -> Request:
        headers = arrival.headers
        model = parsed.model
        plain = _CONTROLS.isdisjoint(headers)
        target = model
        if not plain and model and arrival.can_rewrite:
            target = _first(headers, REWRITE_HEADERS) or model
        priority = 0
        if self._resources is not None:
            target, priority = self._ruled(headers, model, target, arrival.can_rewrite)
        return Request(
            request_id=headers.get("x-request-id") or str(uuid.UUID(int=self._rng.getrandbits(128), version=4)),
            path=headers.get(":path", ""),
            model=model,
            target_model=target,
            headers=headers,
            prompt_bytes=parsed.prompt_bytes,
            prompt_tokens=self._estimator.tokens(target, parsed.prompt_bytes) if parsed.prompt_bytes else 0,
            fingerprints=self._fingerprints(parsed, target),
            max_tokens=parsed.max_tokens,
            stream=parsed.stream,
            priority=priority,
            fairness_id="default-flow"
            if plain
            else _first(headers, FAIRNESS_HEADERS) or self._objective(headers) or "default-flow",
            body_bytes=len(arrival.body),
        )

    def _objective(self, headers: Mapping[str, str]) -> str | None:
        """The objective that a request names, where there is one of that name."""
        if self._resources is None:
            return None
        named = _first(headers, OBJECTIVE_HEADERS)
        return named if named in self._resources.rules.objectives else None

    def _ruled(self, headers: Mapping[str, str], model: str, asked: str, can_rewrite: bool) -> tuple[str, int]:
        """The model that serves and the priority, by the objects in force; `asked` is the model by body and header.

        Raises Drop where only known models are served and `model` is none of them.
        """
        assert self._resources is not None
        rules = self._resources.rules
        rules.admit(model)
        priority = rules.priority(_first(headers, OBJECTIVE_HEADERS), model)
        if not model or not can_rewrite:
            return asked, priority
        rewriting = rules.rewriting(model)
        if rewriting is not None:
            target = rewriting.draw(self._draws)
            self._metrics.rewritten(rewriting.name, model, target)
            return target, priority
        known = rules.models.get(model)
        return known.draw(self._draws) if known is not None and known.draw is not None else asked, priority

    def _fingerprints(self, parsed: Parsed, target: str) -> NDArray[np.uint64]:
        # Less than a block: prefilled in a few milliseconds anywhere, and identical short prompts must not gather on one server.
        if parsed.prompt_bytes < BLOCK_BYTES or self._pressure.step:
            return NO_FINGERPRINTS
        return fingerprints(parsed.prompts, seed_of(target, parsed.cache_salt), self._policy.max_prefix_blocks)

    def _eligible(self, subset: tuple[str, ...] | None) -> IntArray | None:
        """Slots that the gateway's hint leaves, None for all. Raises Drop when none is left."""
        if not self._endpoints.members:
            raise Drop(Reason.NO_ENDPOINTS, "the pool has no ready endpoint: start a model server or wait for one")
        if subset is None or self._policy.ignore_subset:
            return None
        if self._subsets_generation != self._endpoints.generation:
            self._subsets.clear()
            self._subsets_generation = self._endpoints.generation
        slots = self._subsets.get(subset)
        if slots is None:
            slots = self._subsets[subset] = _matching(self._endpoints, subset)
            if len(self._subsets) > _SUBSETS_REMEMBERED:
                self._subsets.popitem(last=False)
        if not len(slots):
            raise Drop(
                Reason.NO_ENDPOINTS,
                f"none of the {len(subset)} endpoints that the gateway allows is a ready member of the pool",
            )
        return slots

    def _choose(self, request: Request, slots: IntArray | None, now_s: float) -> Choice:
        """Raises Drop."""
        try:
            if request.priority < 0 and self._queue is None:
                self._spare(request, slots, now_s)
            if self._pressure.step is _RANDOM:
                candidates = self._endpoints.candidates(now_s, None, slots)
                return unjudged(candidates, self._rng.randrange(len(candidates))), 0.0, candidates
            self._ledger.advance(now_s)
            blocks = len(request.fingerprints)
            hits = self._index.match(request.fingerprints) if blocks else None
            candidates = self._endpoints.candidates(now_s, hits, slots)
            pick = self._pipeline.pick(request, candidates)
            slot = pick.slots[0]
            held = hits.item(slot) if hits is not None and slot < len(hits) else 0
            return pick, held / blocks if blocks else 0.0, candidates
        except Drop:
            raise
        except Exception as error:
            self._faults("pick", error)
            candidates = self._endpoints.candidates(now_s, None, slots)
            return least_in_flight(candidates), 0.0, candidates

    def _spare(self, request: Request, slots: IntArray | None, now_s: float) -> None:
        """Raises Drop where all that could serve a request below priority 0 are full."""
        self._ledger.advance(now_s)
        if self._pipeline.saturation(self._endpoints.candidates(now_s, None, slots)) >= 1.0:
            raise Drop(
                Reason.SATURATED,
                f"The model servers are saturated, and a request of priority {request.priority} is not to add to it. Try again "
                "later.",
            )

    def _commit(
        self,
        arrival: Arrival,
        parsed: Parsed,
        request: Request,
        choice: Choice,
        opened_s: float,
        now_s: float,
        grant: Grant | None,
    ) -> tuple[Steer, Account]:
        """Take what was decided: ledger, prefix index, metrics, and the words for Envoy."""
        pick, hit_share, candidates = choice
        endpoint = pick.endpoints[0]
        rewritten = request.target_model != request.model
        # The answer of a rewritten model has to be seen: its name is turned back there. A quota of tokens needs its usage, and so
        # does an order that goes by service.
        limited = grant is not None and grant.counts_tokens
        counts = self._counted is not None and self._counted.goes_by_service(request.priority)
        look = arrival.can_look and (rewritten or limited or counts or self._samples(parsed))
        steer = self._steer(arrival, request, pick, look)
        # Before the ledger counts this request among what the pick went by.
        recorded = 0 if self._recording is None else self._take_down(request, pick, candidates, opened_s, now_s)
        uncached = round(request.prompt_tokens * (1.0 - hit_share))
        entry = self._ledger.take(
            pick.slots[0],
            uncached,
            now_s,
            # The first byte of an answer that is not streamed comes with its last: it says nothing about prefill.
            sees_body=(arrival.sees_answer or look) and parsed.stream,
            answer_tokens=self._answer_tokens(request) if self._policy.output_ratio else 0,
        )
        # From here on a failure would leave an entry that nobody releases.
        try:
            self._record(request, pick, hit_share, now_s)
            if self._counted is not None:
                self._counted.served(request.priority, request.fairness_id, uncached, now_s)
        except Exception as error:
            self._faults("record", error)
        return steer, Account(request, parsed.kind, endpoint, entry, opened_s, grant, recorded, self)

    def _take_down(self, request: Request, pick: Pick, candidates: Candidates, opened_s: float, now_s: float) -> int:
        assert self._recording is not None
        try:
            return self._recording.picked(request, pick, candidates, opened_s, now_s)
        except Exception as error:
            self._faults("decision-log", error)
            return 0

    def _answer_tokens(self, request: Request) -> int:
        limits = [limit for limit in (self._policy.max_output_tokens, request.max_tokens) if limit is not None]
        return min([round(self._policy.output_ratio * request.prompt_tokens), *limits])

    def _samples(self, parsed: Parsed) -> bool:
        """Whether this answer's body is asked for, to learn from."""
        return parsed.prompt_bytes > 0 and self._rng.random() < self._policy.look_share

    def _record(self, request: Request, pick: Pick, hit_share: float, now_s: float) -> None:
        self._metrics.decided(*_labels(request), request.body_bytes, request.prompt_tokens)
        self._returns.left(request.priority, now_s)
        self._metrics.picked(pick.endpoints[0], request.target_model)
        if self._pressure.step:
            self._metrics.degraded(_LEFT_OUT[self._pressure.step])
        if len(request.fingerprints):
            self._index.record(pick.slots[0], request.fingerprints)
            self._metrics.prefix_match(hit_share, round(request.prompt_bytes * hit_share))
        self._decisions.note(request, pick, now_s)

    def _steer(self, arrival: Arrival, request: Request, pick: Pick, look: bool) -> Steer:
        destinations, slots = self._endpoints.destinations, pick.slots
        destination = destinations[slots[0]] if len(slots) == 1 else ",".join([destinations[slot] for slot in slots])
        rewritten = request.target_model != request.model
        try:
            headers = () if "x-request-id" in arrival.headers else (("x-request-id", request.request_id),)
            return Steer(
                destination=destination,
                set_headers=headers if self._announce is None else (*self._announce(request.model), *headers),
                remove_headers=()
                if _CONTROLS.isdisjoint(arrival.headers)
                else tuple([name for name in CONTROL_HEADERS if name in arrival.headers]),
                body=rewrite_model(arrival.body, request.target_model, truncated=arrival.truncated)
                if rewritten
                else None,
                turn_back=(request.target_model, request.model) if rewritten else None,
                look=look,
                scores=pick.scores_by_destination() if self._policy.emit_scores else None,
                evictable=self._evicts and request.priority < 0,
            )
        except Exception as error:
            self._faults("steer", error)
            return Steer(destination=destination)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def pump(self, now_s: float) -> bool:
        """End waits whose time is over, and let go whose turn it is; they are answered by `resume`. Whether anybody still waits.

        An endpoint is chosen now, not when the request came.
        """
        queue = self._queue
        if queue is None:
            return False
        began = self._timer()
        control = queue.control
        for settled in control.expire(now_s):
            self._turn_away(settled, now_s)
        for _ in range(_TURNS_AT_ONCE):
            if not control.requests:
                break
            saturation = self._saturation(now_s)
            next_one = control.next(saturation, now_s)
            if next_one is None:
                if queue.evictions is not None:
                    self._make_room(queue, queue.evictions, saturation, now_s)
                break
            self._let_go(queue, next_one, now_s)
        queue.record.cycle(self._timer() - began)
        if not control.requests:
            control.collect(now_s)
        return control.requests > 0

    def pool_changed(self, now_s: float) -> None:
        """The membership of the pool is another one."""
        if self._queue is not None:
            self._looked_s = -inf
            self._queue.control.pool_changed(not len(self._endpoints), now_s)
            self._queue.wake()

    def load_fell(self) -> None:
        """Somebody who waits may have room now."""
        if self._queue is not None and self._queue.control.requests:
            self._queue.wake()

    def drain(self, now_s: float) -> None:
        """Refuse all who wait, and all who would have to from now on."""
        if self._queue is not None:
            for settled in self._queue.control.drain(now_s):
                self._turn_away(settled, now_s)

    def look(self, now_s: float) -> Now:
        """Flow control as it is now, for metrics. There is a queue."""
        assert self._queue is not None
        self._queue.control.collect(now_s)
        state = self._queue.control.state()
        waiting = [(_labels(one.payload.request), one.body_bytes) for one in self._queue.control.tickets()]
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
            reclaim=self._reclaim(self._queue, saturation),
            attained=self._queue.control.attained(now_s) if self._counted is not None else None,
        )

    def _reclaim(self, queue: Queue, saturation: float) -> Reclaim | None:
        if queue.evictions is None:
            return None
        blocked, told = queue.control.blocked, queue.evictions.told
        target = max(0.0, saturation - blocked[1]) if blocked is not None else 0.0
        in_flight = self._in_flight()
        # Those told to end run on where their endpoints have left the pool, and take none of its room.
        return Reclaim(target, told * saturation / in_flight if in_flight else 0.0)

    def _saturation(self, now_s: float) -> float:
        """How full the pool is; 1 where it has no endpoint."""
        if not len(self._endpoints):
            return 1.0
        self._ledger.advance(now_s)
        return self._pipeline.saturation(self._endpoints.candidates(now_s))

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

    def _passes(self, queue: Queue, request: Request, now_s: float) -> bool:
        control = queue.control
        passes = control.passes(request.priority, self._saturation_below(control.free_below, now_s), now_s)
        if passes:
            queue.record.ended(_labels(request), DISPATCHED, 0.0)
        return passes

    def _enqueue(self, queue: Queue, place: Place, now_s: float) -> None:
        """Raises Drop where the request may not wait."""
        began = self._timer()
        request = place.request
        place.ticket = ticket = Ticket(
            place,
            priority=request.priority,
            fairness_id=request.fairness_id,
            tokens=self._uncached(request),
            body_bytes=request.body_bytes,
            max_wait_s=_milliseconds(request.headers.get(MAX_WAIT_HEADER)),
            slo_deadline_s=place.opened_s + _milliseconds(_first(request.headers, SLO_HEADERS)),
        )
        refused: Drop | None = None
        outcome = QUEUED
        for settled in queue.control.submit(ticket, now_s):
            if settled.ticket is ticket:
                refused, outcome = self._drop(queue, settled), settled.ending.value
            else:
                self._turn_away(settled, now_s)
        queue.record.enqueued(_labels(request), outcome, self._timer() - began)
        if refused is not None:
            place.ticket = None
            raise refused
        queue.wake()

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

    def _let_go(self, queue: Queue, settled: Settled[Place], now_s: float) -> None:
        place = settled.ticket.payload
        began = self._timer()
        request = place.request
        self._note_ending(queue, settled)
        try:
            choice = self._choose(request, self._eligible(place.arrival.subset), now_s)
            routed = self._commit(place.arrival, place.parsed, request, choice, place.opened_s, now_s, place.grant)
        except Drop as drop:
            self._refuse(place, drop, now_s)
            return
        except Exception as error:
            self._faults("resume", error)
            self._refuse(place, Drop(Reason.INTERNAL, "The endpoint picker failed on this request. Try again."), now_s)
            return
        self._metrics.stage("decide", self._timer() - began)
        self._resume(place, routed)

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
        assert self._queue is not None
        self._refuse(settled.ticket.payload, self._drop(self._queue, settled), now_s)

    def _make_room(self, queue: Queue, evictions: Evictions[Account], saturation: float, now_s: float) -> None:
        """End requests that run for those who wait above them. They are accounted for when they are `finished`."""
        queue.record.unconfirmed(evictions.overdue(now_s))
        if queue.control.blocked is None:
            return
        priority, ceiling = queue.control.blocked
        for account, level in evictions.due(priority, saturation, ceiling, self._in_flight(), now_s):
            drop = Drop(Reason.EVICTED, _EVICTED.format(ran_s=now_s - account.opened_s))
            self._returns.advise(drop, now_s, priority=level, ahead=queue.control.waiting(level))
            queue.record.told_to_end(level)
            try:
                assert account.evict is not None
                account.evict(drop)
            except Exception as error:
                self._faults("evict", error)

    def _in_flight(self) -> float:
        return float(self._endpoints.in_flight[self._endpoints.slots].sum())

    def _left(self, place: Place, now_s: float) -> None:
        """The client of `place` is gone."""
        assert self._queue is not None
        ticket, place.ticket = place.ticket, None
        settled = self._queue.control.cancel(ticket, now_s) if ticket is not None else None
        if settled is not None:
            self._refused(self._drop(self._queue, settled), place.request, place.grant, place.opened_s, now_s)

    def _drop(self, queue: Queue, settled: Settled[Place]) -> Drop:
        self._note_ending(queue, settled)
        return Drop(REASONS[settled.ending], _TOLD[settled.ending].format(waited_s=settled.waited_s))

    def _note_ending(self, queue: Queue, settled: Settled[Place]) -> None:
        """Its wait is over already: whoever waited has to hear of it in any case."""
        try:
            queue.record.ended(_labels(settled.ticket.payload.request), settled.ending.value, settled.waited_s)
        except Exception as error:
            self._faults("record", error)

    # --- what became of it -----------------------------------------------------------------------------------------

    def runs(self, account: Account, evict: Callable[[Drop], None]) -> None:
        account.evict = evict
        if self._queue is not None and self._queue.evictions is not None:
            self._queue.evictions.began(account, account.request.priority)

    def started(self, account: Account, notice: Started, now_s: float) -> Mapping[str, str]:
        """The answer's headers: follow the endpoint that really served, and let plugins add headers."""
        account.status = notice.status
        account.content_type = notice.headers.get("content-type", "")
        if notice.served is not None and notice.served != account.endpoint.destination:
            self._follow(account, notice.served, now_s)
        added = self._pipeline.responded(account.request, account.endpoint, notice.headers, now_s)
        return added if account.grant is None else {**added, **self._rate_headers(account.grant, now_s)}

    def _rate_headers(self, grant: Grant, now_s: float) -> Mapping[str, str]:
        assert self._quota is not None
        try:
            return self._quota.headers(grant, now_s)
        except Exception as error:
            self._faults("quota", error)
            return {}

    def _follow(self, account: Account, served: str, now_s: float) -> None:
        slot = self._endpoints.slot_by_destination(served)
        if slot is None:
            return
        endpoint = self._endpoints.at(slot)
        assert endpoint is not None
        self._ledger.move(account.entry, slot, now_s)
        if len(account.request.fingerprints):
            self._index.record(slot, account.request.fingerprints)
        account.endpoint = endpoint

    def first_body(self, account: Account, now_s: float) -> None:
        """The answer's body began: the first token of a stream, the end of all work where the answer is in one piece."""
        waited_s = now_s - account.opened_s
        streamed = account.request.stream
        if streamed:
            account.ttft_s = waited_s
            self._ledger.first_token(account.entry, now_s)
            self.load_fell()
        self._metrics.first_token(*_labels(account.request), waited_s, streamed)

    def finished(self, account: Account, notice: Finished, now_s: float) -> None:
        self._ledger.release(account.entry, now_s)
        self.load_fell()
        if account.status == 503 and connected_not(notice.tail):
            self._pass_over(account.endpoint, now_s)
        counted = self._usage(account, notice)
        if account.evict is not None:
            self._ran(account, notice.cause is Cause.EVICTED, now_s)
        if self._counted is not None:
            request, answer_tokens = account.request, _answer_tokens(account, notice, counted)
            self._counted.served(request.priority, request.fairness_id, 2.0 * answer_tokens, now_s)
        if account.grant is not None:
            self._settle(account, account.grant, notice, counted, now_s)
        self._metrics.finished(
            *_labels(account.request),
            status=account.status,
            aborted=notice.cause is Cause.ABORTED,
            duration_s=now_s - account.opened_s,
            # An answer that was to be shown may still not have been: a mode override takes effect only where Envoy allows it.
            response_bytes=notice.body_bytes or None,
            usage=counted,
            ttft_s=account.ttft_s,
        )
        if account.recorded:
            self._note_end(account, notice, counted, now_s)

    def _note_end(self, account: Account, notice: Finished, counted: Usage | None, now_s: float) -> None:
        assert self._recording is not None
        try:
            self._recording.ended(
                account.recorded,
                now_s,
                status=account.status,
                aborted=notice.cause is not Cause.COMPLETE,
                ttft_s=account.ttft_s,
                usage=counted,
                served=account.endpoint.destination if account.endpoint is not account.picked else "",
            )
        except Exception as error:
            self._faults("decision-log", error)

    def _pass_over(self, endpoint: Endpoint, now_s: float) -> None:
        """Nobody else is sent to a server that takes no connections. Its next metrics page brings it back: one without is tried on."""
        slot = self._endpoints.slot_by_destination(endpoint.destination)
        if slot is not None and self._endpoints.fresh(slot, now_s):
            self._endpoints.set_unreachable(slot, True)

    def _ran(self, account: Account, evicted: bool, now_s: float) -> None:
        """The end of a request that might have been told to end."""
        queue, request = self._queue, account.request
        # Together they would live until the collector came by.
        account.evict = None
        if queue is not None and queue.evictions is not None:
            told_s = queue.evictions.ended(account, request.priority, now_s)
            if told_s is not None:
                queue.record.confirmed(told_s)
        if evicted:
            drop = Drop(Reason.EVICTED, _EVICTED.format(ran_s=now_s - account.opened_s))
            self._metrics.evicted(*_labels(request), OUTCOMES[drop.reason])
            self._refusals.note(drop, request, now_s)

    def _settle(self, account: Account, grant: Grant, notice: Finished, counted: Usage | None, now_s: float) -> None:
        assert self._quota is not None
        try:
            if notice.cause is Cause.EVICTED:
                # It has to come again: whatever it got is of no use.
                self._quota.cancel(grant, now_s)
            else:
                self._quota.settle(grant, _spent(account, notice, counted), now_s)
        except Exception as error:
            self._faults("quota", error)

    def _usage(self, account: Account, notice: Finished) -> Usage | None:
        if not notice.tail:
            return None
        try:
            counted = usage(notice.tail, account.content_type, account.kind)
            if counted is not None and counted.prompt_tokens:
                self._estimator.learn(account.request.target_model, account.request.prompt_bytes, counted.prompt_tokens)
            return counted
        except Exception as error:
            self._faults("usage", error)
            return None


def _spent(account: Account, notice: Finished, counted: Usage | None) -> int | None:
    """Tokens of prompt and answer as far as the end of the exchange tells, None where it does not."""
    if account.status >= 400:
        return 0
    if counted is not None and counted.prompt_tokens is not None:
        return counted.prompt_tokens + (counted.completion_tokens or 0)
    if not account.request.stream or not notice.tail:
        return None
    return account.request.prompt_tokens + _answer_tokens(account, notice, counted)


def _answer_tokens(account: Account, notice: Finished, counted: Usage | None) -> int:
    """Tokens of the answer, 0 where nothing tells."""
    if counted is not None and counted.completion_tokens is not None:
        return counted.completion_tokens
    if not account.request.stream or not notice.tail:
        return 0
    # A stream says its usage only where the client asked for it. It has an event for each token, or nearly.
    return event_count(notice.tail, notice.body_bytes)


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    for name in names:
        value = headers.get(name)
        if value:
            return value
    return None


def _milliseconds(value: str | None) -> float:
    """Seconds; inf where `value` is no number of milliseconds."""
    try:
        seconds = float(value) / 1000.0 if value else inf
    except ValueError:
        return inf
    return seconds if seconds >= 0.0 else inf


def _labels(request: Request | None) -> tuple[str, str, int, str]:
    """Metric labels: model, target model, priority, fairness id."""
    if request is None:
        return NOBODY
    return request.model, request.target_model, request.priority, request.fairness_id


def _matching(endpoints: Endpoints, subset: tuple[str, ...]) -> IntArray:
    """Slots of the members that `subset` names: `ip:port` is one endpoint, an IP alone is all of its ports."""
    named = {item.strip() for item in subset}
    bare = {item.strip("[]") for item in named}
    return np.array(
        [
            slot
            for slot, endpoint in zip(endpoints.slots, endpoints.members, strict=True)
            if endpoint.destination in named or endpoint.address in bare
        ],
        dtype=np.intp,
    )
