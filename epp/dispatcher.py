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

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.account import Account, Place, labels
from epp.decisions.recording import Recording
from epp.drops import OUTCOMES, Drop, Reason
from epp.endpoint import Candidates, Endpoint, Endpoints, IntArray
from epp.extproc.events import Arrival, Cause, Finished, Started, Steer, connected_not
from epp.ledger import Ledger
from epp.observe.flow import Now
from epp.observe.logs import PickLog, RefusalLog
from epp.observe.metrics import Metrics
from epp.openai.body import OPAQUE, Parsed, parse
from epp.openai.rewrite import rewrite_model
from epp.openai.tokens import TokenEstimator
from epp.openai.usage import Usage, event_count, usage
from epp.pipeline import Pick, Pipeline, least_in_flight, unjudged
from epp.prefix.fingerprints import fingerprints, seed_of
from epp.prefix.index import PrefixIndex
from epp.pressure import Pressure, Step
from epp.quota.quota import Grant, Quota
from epp.request import BLOCK_BYTES, NO_FINGERPRINTS, Request, first_of
from epp.resources.store import InForce
from epp.retry import Returns
from epp.waiting import Queue, Waits

OBJECTIVE_HEADERS = ("x-llm-d-inference-objective", "x-gateway-inference-objective")
FAIRNESS_HEADERS = ("x-llm-d-inference-fairness-id", "x-gateway-inference-fairness-id")
REWRITE_HEADERS = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")

CONTROL_HEADERS = OBJECTIVE_HEADERS + FAIRNESS_HEADERS + REWRITE_HEADERS
"""Meant for us: taken out of what the model server gets. The first spelling of each wins over its older alias."""

_CONTROLS = frozenset(CONTROL_HEADERS)

FAIRNESS_ID_CHARS = 256
"""What counts of a fairness id: clients choose them, and those of thousands who are gone are remembered."""

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


class Dispatcher:
    """Implements `epp.extproc.events.Dispatcher`.

    `timer` is a monotonic clock in seconds for measuring our own stages; `faults(kind, error)` takes note of a bug of ours
    that was done without, `kind` being the step that failed: read, quota, flow, pick, steer, record, decision-log, resume, evict or
    usage. `pressure` says what picks leave out for the loop's sake; without it, nothing. `resources` says which priority a request
    has and which model serves it; without it, 0 and the one it asks for. `quota` says who may use how much; without it, everybody
    anything. `queue` lets requests wait while the pool is full; without it, those below priority 0 are refused then and all others
    go on. `announce` gives the headers that tell routes of a request, by the model it asks for. `recording` takes down every
    decision and its outcome for the decision log. Its draws have a generator of their own, seeded from `rng`: the nth request draws
    the same whatever else is left to chance.
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
        picks: PickLog,
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
        self._evictions = queue.evictions if queue is not None else None
        self._counted = queue.control if queue is not None and queue.control.counts_service else None
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
        self._picks = picks
        self._waits: Waits | None = None
        if queue is not None:
            self._waits = Waits(
                queue,
                endpoints=endpoints,
                ledger=ledger,
                pipeline=pipeline,
                index=index,
                metrics=metrics,
                returns=self._returns,
                timer=timer,
                faults=faults,
                serve=self._serve,
                refused=self._refused,
            )
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
            if self._waits is not None:
                place = self._waits.line_up(arrival, parsed, request, grant, opened_s, now_s)
                if place is not None:
                    self._staged(now_s - opened_s, read - began, None)
                    return place
            choice = self._choose(request, self._eligible(arrival.subset), now_s)
        except Drop as drop:
            self._refused(drop, request, grant, opened_s, now_s)
            raise
        routed = self._commit(arrival, parsed, request, choice, opened_s, now_s, grant)
        self._staged(now_s - opened_s, read - began, self._timer() - read)
        return routed

    def _staged(self, body_s: float, parse_s: float, decide_s: float | None) -> None:
        """`decide_s` is None where that is still to come. The request has its place or its endpoint: it is answered in any case."""
        try:
            if decide_s is None:
                self._metrics.stage("body", max(0.0, body_s))
                self._metrics.stage("parse", parse_s)
            else:
                self._metrics.staged(max(0.0, body_s), parse_s, decide_s)
        except Exception as error:
            self._faults("record", error)

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
            self._metrics.refused(*labels(request), OUTCOMES[drop.reason])
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
            target = first_of(headers, REWRITE_HEADERS) or model
        priority = 0
        if self._resources is not None:
            try:
                target, priority = self._ruled(headers, model, target, arrival.can_rewrite)
            except Drop:
                raise
            except Exception as error:
                self._faults("read", error)
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
            fairness_id="default-flow" if plain else self._flow(headers),
            body_bytes=len(arrival.body),
        )

    def _flow(self, headers: Mapping[str, str]) -> str:
        named = first_of(headers, FAIRNESS_HEADERS) or self._objective(headers) or "default-flow"
        return named[:FAIRNESS_ID_CHARS]

    def _objective(self, headers: Mapping[str, str]) -> str | None:
        """The objective that a request names, where there is one of that name."""
        if self._resources is None:
            return None
        named = first_of(headers, OBJECTIVE_HEADERS)
        return named if named in self._resources.rules.objectives else None

    def _ruled(self, headers: Mapping[str, str], model: str, asked: str, can_rewrite: bool) -> tuple[str, int]:
        """The model that serves and the priority, by the objects in force; `asked` is the model by body and header.

        Raises Drop where only known models are served and `model` is none of them.
        """
        assert self._resources is not None
        rules = self._resources.rules
        rules.admit(model)
        priority = rules.priority(first_of(headers, OBJECTIVE_HEADERS), model)
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
            if request.priority < 0 and self._waits is None:
                self._spare(request, slots, now_s)
            if self._pressure.step is _RANDOM:
                candidates = self._endpoints.candidates(now_s, None, slots)
                return unjudged(candidates, self._rng.randrange(len(candidates))), 0.0, candidates
            self._ledger.advance(now_s)
            blocks = len(request.fingerprints)
            holdings = self._index.holdings(request.fingerprints) if blocks else None
            candidates = self._endpoints.candidates(now_s, holdings, slots)
            pick = self._pipeline.pick(request, candidates)
            slot = pick.slots[0]
            held = holdings.hit_blocks.item(slot) if holdings is not None and slot < len(holdings.hit_blocks) else 0
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
        self._metrics.decided(*labels(request), request.body_bytes, request.prompt_tokens)
        self._returns.left(request.priority, now_s)
        self._metrics.picked(pick.endpoints[0], request.target_model)
        if self._pressure.step:
            self._metrics.degraded(_LEFT_OUT[self._pressure.step])
        if len(request.fingerprints):
            self._index.record(pick.slots[0], request.fingerprints)
            self._metrics.prefix_match(hit_share, round(request.prompt_bytes * hit_share))
        self._picks.note(request, pick, now_s)

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
                evictable=self._evictions is not None and request.priority < 0,
            )
        except Exception as error:
            self._faults("steer", error)
            return Steer(destination=destination)

    # --- waiting ---------------------------------------------------------------------------------------------------

    def pump(self, now_s: float) -> bool:
        """`Waits.pump`: whether anybody still waits, or may."""
        if self._waits is None:
            return False
        try:
            return self._waits.pump(now_s)
        except Exception as error:
            # It is asked again 200 times a second: to the loop each would be a traceback in the log.
            self._faults("flow", error)
            return True

    def pool_changed(self, now_s: float) -> None:
        """The membership of the pool is another one."""
        if self._waits is not None:
            self._waits.pool_changed(now_s)

    def load_fell(self) -> None:
        """Somebody who waits may have room now."""
        if self._waits is not None:
            self._waits.load_fell()

    def drain(self, now_s: float) -> None:
        """Refuse all who wait, and all who would have to from now on."""
        if self._waits is not None:
            self._waits.drain(now_s)

    def look(self, now_s: float) -> Now:
        """Flow control as it is now, for metrics. There is a queue."""
        assert self._waits is not None
        return self._waits.look(now_s)

    def _serve(self, place: Place, now_s: float) -> tuple[Steer, Account]:
        """Its turn has come: an endpoint is chosen now. Raises Drop."""
        choice = self._choose(place.request, self._eligible(place.arrival.subset), now_s)
        return self._commit(place.arrival, place.parsed, place.request, choice, place.opened_s, now_s, place.grant)

    # --- what became of it -----------------------------------------------------------------------------------------

    def runs(self, account: Account, evict: Callable[[Drop], None]) -> None:
        account.evict = evict
        if self._evictions is not None:
            self._evictions.began(account, account.request.priority)

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
            if self._waits is not None:
                self._waits.load_fell()
        self._metrics.first_token(*labels(account.request), waited_s, streamed)

    def finished(self, account: Account, notice: Finished, now_s: float) -> None:
        self._ledger.release(account.entry, now_s)
        if self._waits is not None:
            self._waits.load_fell()
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
            *labels(account.request),
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
            drop = account.eviction(now_s)
            self._metrics.evicted(*labels(request), OUTCOMES[drop.reason])
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
