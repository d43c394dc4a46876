"""Requests that wait at the dispatcher: late binding, every ending once, and nothing left behind. Virtual time."""

from __future__ import annotations

import gc
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import inf

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.account import Account, Place
from epp.configuration import build, load
from epp.dispatcher import Dispatcher, Policy
from epp.drops import Drop, Reason
from epp.endpoint import Endpoints
from epp.extproc.events import Arrival, Cause, Finished, Routed, Steer
from epp.extproc.session import open_session
from epp.flow.control import FlowControl
from epp.flow.evictions import CONFIRMED_WITHIN_S, Evictions
from epp.flow.settings import BandSettings, Fairness, FlowSettings, Policies, Static
from epp.ledger import Ledger
from epp.observe.flow import FlowRecord
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.observe.text import write
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import PrefixIndex
from epp.request import Request
from epp.resources.store import InForce, Source, Store
from epp.waiting import MAX_WAIT_HEADER, SLO_HEADERS, Queue
from tests.unit.test_dispatcher import LONG, NOW_S, chat, members
from tests.unit.test_resources_store import HERE_ONLY, objective
from tests.unit.test_session import FULL, Book, Wire, body, headers

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
- {type: active-request-scorer}
flowControl: {saturationDetector: {pluginRef: concurrency-detector}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: active-request-scorer}]}
"""
"""A pool is full with one request of ours for each endpoint, on average."""

FLOW = FlowSettings(ttl_s=10.0, empty_ttl_s=100.0)
END = Finished(Cause.COMPLETE)


class Hall:
    """A dispatcher with a queue, and everything it works on in reach."""

    def __init__(
        self,
        endpoints: int = 2,
        flow: FlowSettings = FLOW,
        evictions: Evictions[Account] | None = None,
        resources: InForce | None = None,
    ) -> None:
        rng = random.Random(1)
        self.now_s = NOW_S
        self.endpoints = Endpoints()
        self.endpoints.replace(members(endpoints))
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex()
        self.metrics = Metrics()
        self.faults: list[tuple[str, Exception]] = []
        self.woken = 0
        self.record = FlowRecord(self.metrics, "pool", "concurrency-detector")
        self.control: FlowControl[Place] = FlowControl(flow, self.now_s, pool_empty=not endpoints)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(load(CONFIG, "test"), rng, PluginFaults(lambda line: None)),
            ledger=self.ledger,
            index=self.index,
            metrics=self.metrics,
            estimator=TokenEstimator(),
            policy=Policy(look_share=0.0),
            rng=rng,
            timer=lambda: 0.0,
            faults=lambda kind, error: self.faults.append((kind, error)),
            picks=PickLog(),
            queue=Queue(self.control, self.record, self._wake, evictions),
            resources=resources,
        )

    def _wake(self) -> None:
        self.woken += 1

    def route(self, arrival: Arrival | None = None) -> tuple[object, Account] | Waiter:
        routed = self.dispatcher.route(arrival or chat(), self.now_s, self.now_s)
        return routed if isinstance(routed, tuple) else Waiter(routed)

    def serve(self, arrival: Arrival | None = None) -> Account:
        routed = self.route(arrival)
        assert isinstance(routed, tuple)
        return routed[1]

    def wait(self, arrival: Arrival | None = None) -> Waiter:
        routed = self.route(arrival)
        assert isinstance(routed, Waiter)
        return routed

    def pump(self, seconds: float = 0.0) -> bool:
        self.now_s += seconds
        return self.dispatcher.pump(self.now_s)

    def end(self, account: Account) -> None:
        self.dispatcher.finished(account, END, self.now_s)

    def have(self, endpoints: int) -> None:
        self.endpoints.replace(members(endpoints))
        self.dispatcher.pool_changed(self.now_s)

    def in_flight(self) -> float:
        return float(self.endpoints.in_flight.sum())


class Waiter:
    """Who called `route` and was told to wait. `ticket` is that of then."""

    def __init__(self, place: Place) -> None:
        assert place.ticket is not None
        self.place = place
        self.ticket = place.ticket
        self.answers: list[Routed[Account]] = []
        place.resume = self.answers.append

    @property
    def account(self) -> Account:
        [answer] = self.answers
        assert isinstance(answer, tuple)
        return answer[1]

    @property
    def drop(self) -> Drop:
        [answer] = self.answers
        assert isinstance(answer, Drop)
        return answer


def named(**headers: str) -> Mapping[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def test_with_room_nobody_waits() -> None:
    hall = Hall()
    first, second = hall.serve(), hall.serve()
    assert first.endpoint != second.endpoint
    assert hall.control.requests == 0
    assert hall.record.endings == {("Dispatched", 0): 2}


def test_who_waits_goes_when_another_ends_to_where_there_is_room_then() -> None:
    hall = Hall()
    hall.serve()
    second = hall.serve()
    waiter = hall.wait()
    assert hall.woken == 1
    assert hall.pump(1.0)
    assert waiter.answers == []
    hall.end(second)
    assert hall.woken == 2
    assert not hall.pump()
    assert waiter.account.endpoint == second.endpoint
    assert hall.in_flight() == 2
    assert waiter.account.opened_s == NOW_S


def test_one_turn_for_each_room() -> None:
    hall = Hall()
    running = [hall.serve(), hall.serve()]
    waiters = [hall.wait() for _ in range(5)]
    for account in running:
        hall.end(account)
    hall.pump()
    assert [len(waiter.answers) for waiter in waiters] == [1, 1, 0, 0, 0]


def test_who_waited_too_long_is_told_so() -> None:
    hall = Hall()
    hall.serve(), hall.serve()
    waiter = hall.wait()
    hall.pump(9.999)
    assert waiter.answers == []
    hall.pump(0.001)
    assert waiter.drop.reason is Reason.TTL_EXPIRED
    assert "waited 10.0 s" in waiter.drop.message
    assert waiter.drop.retry_after_s is not None
    assert hall.metrics.refusals[Reason.TTL_EXPIRED] == 1


def test_a_client_may_say_how_long_it_waits() -> None:
    hall = Hall()
    hall.serve(), hall.serve()
    hasty = hall.wait(chat(headers={MAX_WAIT_HEADER: "1500"}))
    with pytest.raises(Drop) as refused:
        hall.route(chat(headers={MAX_WAIT_HEADER: "0"}))
    assert refused.value.reason is Reason.TTL_EXPIRED
    odd = [hall.wait(chat(headers={MAX_WAIT_HEADER: value})) for value in ("soon", "-1", "nan", "")]
    hall.pump(1.5)
    assert hasty.drop.reason is Reason.TTL_EXPIRED
    assert all(waiter.answers == [] for waiter in odd)
    assert all(waiter.ticket.max_wait_s == inf for waiter in odd)


def test_a_wanted_first_token_counts_from_the_arrival() -> None:
    hall = Hall()
    hall.serve(), hall.serve()
    for header in SLO_HEADERS:
        assert hall.wait(chat(headers={header: "250"})).ticket.slo_deadline_s == NOW_S + 0.25


def test_without_endpoints_requests_wait_for_one() -> None:
    hall = Hall(0)
    waiter = hall.wait()
    hall.pump(99.0)
    hall.have(1)
    hall.pump()
    assert waiter.account.endpoint == hall.endpoints.members[0]
    assert hall.faults == []


def test_without_endpoints_for_too_long_is_another_refusal() -> None:
    hall = Hall(0)
    waiter = hall.wait()
    hall.pump(100.0)
    assert waiter.drop.reason is Reason.TTL_EXPIRED_NO_ENDPOINTS
    assert waiter.drop.status == 503


def test_the_last_endpoint_goes_and_another_comes_while_somebody_waits() -> None:
    hall = Hall(1)
    running = hall.serve()
    waiter = hall.wait()
    hall.have(0)
    hall.end(running)
    hall.pump(50.0)
    assert waiter.answers == []
    hall.endpoints.replace(members(3)[2:])
    hall.dispatcher.pool_changed(hall.now_s)
    hall.pump()
    assert waiter.account.endpoint.name == "pod-2"


def test_a_hint_whose_endpoint_has_gone_meanwhile_is_refused() -> None:
    hall = Hall(2)
    accounts = [hall.serve(), hall.serve()]
    waiter = hall.wait(chat(subset=("10.0.0.2:8000",)))
    hall.have(1)
    for account in accounts:
        hall.end(account)
    hall.pump()
    assert waiter.drop.reason is Reason.NO_ENDPOINTS
    assert hall.in_flight() == 0


def test_a_client_that_left_is_counted_and_gets_no_turn() -> None:
    hall = Hall(1)
    running = hall.serve()
    waiter = hall.wait()
    waiter.place.cancel(hall.now_s)
    waiter.place.cancel(hall.now_s)
    hall.end(running)
    hall.pump()
    assert waiter.answers == []
    assert hall.in_flight() == 0
    assert hall.metrics.refusals == {Reason.CLIENT_GONE: 1}
    assert hall.record.endings[("EvictedContextCancelled", 0)] == 1


def test_draining_refuses_who_waits_and_who_would() -> None:
    hall = Hall(1)
    hall.serve()
    waiter = hall.wait()
    hall.dispatcher.drain(hall.now_s)
    assert waiter.drop.reason is Reason.SHUTTING_DOWN
    with pytest.raises(Drop) as refused:
        hall.route()
    assert refused.value.reason is Reason.SHUTTING_DOWN


def test_a_full_queue_is_told_with_a_time_to_return() -> None:
    hall = Hall(1, FlowSettings(default=BandSettings(max_requests=1)))
    hall.serve()
    hall.wait()
    with pytest.raises(Drop) as refused:
        hall.route()
    assert refused.value.reason is Reason.SATURATED
    assert dict(refused.value.headers())["retry-after"].isdecimal()


def test_the_cost_of_a_turn_is_the_uncached_prompt() -> None:
    policies = Policies(ordering="shortest-prompt")
    hall = Hall(1, FlowSettings(default=BandSettings(policies=policies)))
    hall.serve(chat(LONG))
    cached, fresh = hall.wait(chat(LONG)), hall.wait(chat("never seen before " * 60))
    assert cached.ticket.tokens < 10 < fresh.ticket.tokens


def test_one_that_cannot_be_answered_does_not_hold_up_others() -> None:
    hall = Hall(2)
    accounts = [hall.serve(), hall.serve()]
    broken, whole = hall.wait(), hall.wait()

    def fail(routed: Routed[Account]) -> None:
        raise ConnectionError("gone")

    broken.place.resume = fail
    for account in accounts:
        hall.end(account)
    hall.pump()
    assert len(whole.answers) == 1
    assert [kind for kind, _ in hall.faults] == ["resume"]


def broken(*args: object, **more: object) -> None:
    raise ZeroDivisionError


@pytest.mark.parametrize("name", ["metrics.refused", "metrics.stage", "record.ended"])
def test_whoever_waited_is_answered_though_it_cannot_be_counted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    running = hall.serve()
    waiters = [hall.wait(chat(headers={MAX_WAIT_HEADER: "1500"})) for _ in range(3)] + [hall.wait()]
    owner, method = name.split(".")
    monkeypatch.setattr(getattr(hall, owner), method, broken)
    hall.pump(1.5)
    assert {waiter.drop.reason for waiter in waiters[:3]} == {Reason.TTL_EXPIRED}
    hall.end(running)
    hall.pump()
    assert waiters[3].account.endpoint == running.endpoint
    assert {kind for kind, _ in hall.faults} == {"record"}


def test_times_that_cannot_be_counted_cost_nobody_a_place_or_an_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    monkeypatch.setattr(hall.metrics, "staged", broken)
    monkeypatch.setattr(hall.metrics, "stage", broken)
    running = hall.serve()
    waiter = hall.wait()
    hall.end(running)
    hall.pump()
    hall.end(waiter.account)
    assert hall.in_flight() == 0
    assert {kind for kind, _ in hall.faults} == {"record"}


def test_where_it_cannot_be_told_how_full_the_pool_is_nobody_waits_on(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    hall.serve()
    waiter = hall.wait()
    monkeypatch.setattr(hall.ledger, "advance", broken)
    hall.pump()
    assert waiter.account.endpoint in hall.endpoints.members
    assert {kind for kind, _ in hall.faults} == {"flow", "pick"}


@pytest.mark.parametrize("name", ["control.expire", "control.next", "record.cycle"])
def test_a_round_that_fails_is_noted_and_the_next_one_comes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    running = hall.serve()
    waiter = hall.wait()
    hall.end(running)
    owner, method = name.split(".")
    with monkeypatch.context() as planted:
        planted.setattr(getattr(hall, owner), method, broken)
        assert hall.pump()
    assert {kind for kind, _ in hall.faults} == {"flow"}
    assert not hall.pump()
    assert waiter.account.endpoint == running.endpoint


def test_one_that_goes_on_because_of_a_bug_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    running = hall.serve()
    monkeypatch.setattr(hall.record, "enqueued", broken)
    out_of_turn = hall.serve()
    assert hall.control.requests == 0
    hall.end(running)
    hall.end(out_of_turn)
    hall.pump()
    assert hall.in_flight() == 0
    assert [kind for kind, _ in hall.faults] == ["flow"]


def test_an_objective_that_changes_moves_nobody_who_waits() -> None:
    store = Store(HERE_ONLY, "default")
    store.replace(Source.DIRECTORY, [objective("gold", 10), objective("silver", 5)])
    hall = Hall(1, resources=store.of("pool"))
    running = hall.serve()
    gold = {"x-llm-d-inference-objective": "gold"}
    before, silver = hall.wait(chat(headers=gold)), hall.wait(chat(headers={"x-llm-d-inference-objective": "silver"}))
    store.replace(Source.DIRECTORY, [objective("gold", 1)])
    after = hall.wait(chat(headers=gold))
    for waiter, priority in ((before, 10), (silver, 5), (after, 1)):
        hall.end(running)
        hall.pump()
        running = waiter.account
        assert running.request.priority == priority
    assert hall.control.requests == 0


def test_service_of_a_program_is_its_prompts_as_they_go_and_twice_its_answers() -> None:
    band = BandSettings(policies=Policies(fairness="program-aware"))
    hall = Hall(2, FlowSettings(default=band))
    alice = hall.route(chat("word " * 400, headers=named(x_llm_d_inference_fairness_id="alice"), can_look=True))
    assert isinstance(alice, tuple)
    steer, account = alice
    assert isinstance(steer, Steer) and steer.look
    prompt = account.request.prompt_tokens
    assert hall.control.attained(hall.now_s) == {"alice": prompt}
    account.status, account.content_type = 200, "application/json"
    tail = b'{"usage": {"prompt_tokens": 9, "completion_tokens": 50}}'
    hall.dispatcher.finished(account, Finished(Cause.COMPLETE, tail, len(tail)), hall.now_s)
    assert hall.control.attained(hall.now_s) == {"alice": prompt + 100}
    hall.serve(chat(headers=named(x_llm_d_inference_fairness_id="bob")))
    hall.control.served(0, "bob", 3 * (prompt + 100) - hall.control.attained(hall.now_s)["bob"], hall.now_s)
    page = "".join(
        write(family, openmetrics=False) for family in hall.record.families(lambda: hall.dispatcher.look(hall.now_s))
    )
    assert f'llm_d_epp_program_aware_attained_service_tokens{{program_id="alice"}} {prompt + 100}' in page
    assert 'llm_d_epp_program_aware_avg_wait_time_milliseconds{program_id="bob"} 0.0\n' in page
    assert "llm_d_epp_program_aware_jains_fairness_index 0.8\n" in page


def test_below_priority_0_waits_rather_than_be_shed(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1)
    monkeypatch.setattr(hall.dispatcher, "_request", below(hall.dispatcher._request))
    running = hall.serve()
    waiter = hall.wait()
    assert waiter.place.request.priority == -1
    hall.end(running)
    hall.pump()
    assert waiter.account.request.priority == -1


def test_a_turn_is_a_turn_whatever_the_ceiling_of_a_limit_above_1() -> None:
    hall = Hall(1, FlowSettings(limit=Static(3.0)))
    accounts = [hall.serve() for _ in range(3)]
    assert len(accounts) == 3
    hall.wait()


def below(request: Callable[..., Request]) -> Callable[..., Request]:
    """Requests of priority -1."""
    return lambda *args: msgspec.structs.replace(request(*args), priority=-1)


class Arena:
    """A hall where requests of priority -1 fill the pool, and may be ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, endpoints: int = 2) -> None:
        self.hall = Hall(endpoints, evictions=Evictions(0.25))
        self.evicted: list[tuple[Account, Drop]] = []
        with monkeypatch.context() as patch:
            patch.setattr(self.hall.dispatcher, "_request", below(self.hall.dispatcher._request))
            self.running = [self.serve() for _ in range(endpoints)]

    def serve(self) -> Account:
        routed = self.hall.route()
        assert isinstance(routed, tuple)
        steer, account = routed
        assert isinstance(steer, Steer)
        if steer.evictable:
            self.hall.dispatcher.runs(account, lambda drop: self.evicted.append((account, drop)))
        return account

    def end(self, account: Account, cause: Cause = Cause.EVICTED) -> None:
        self.hall.dispatcher.finished(account, Finished(cause), self.hall.now_s)

    def page(self) -> str:
        look = self.hall.dispatcher.look(self.hall.now_s)
        return "".join(write(family, openmetrics=False) for family in self.hall.record.families(lambda: look))


def test_one_that_runs_gives_way_to_one_that_waits_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    hall = arena.hall
    waiter = hall.wait()
    hall.pump(1.5)
    [(account, drop)] = arena.evicted
    assert account is arena.running[-1]
    assert drop.reason is Reason.EVICTED and "after 1.5 s" in drop.message
    assert dict(drop.headers())["retry-after"].isdecimal()
    assert waiter.answers == [] and hall.in_flight() == 2, "its server works until it hears of it"
    assert hall.metrics.refusals == {}
    hall.now_s += 0.02
    arena.end(account)
    assert account.evict is None, "a cycle for the collector"
    hall.pump()
    assert waiter.account.endpoint == account.endpoint
    assert hall.in_flight() == 2
    assert hall.metrics.refusals == {Reason.EVICTED: 1}
    page = arena.page()
    assert 'llm_d_epp_flow_control_revocations_issued_total{priority="-1",inference_pool="pool"} 1\n' in page
    assert 'llm_d_epp_flow_control_revocations_total{outcome="confirmed",inference_pool="pool"} 1\n' in page
    assert 'revocation_confirmation_seconds_bucket{inference_pool="pool",le="0.01"} 0\n' in page
    assert 'revocation_confirmation_seconds_bucket{inference_pool="pool",le="0.025"} 1\n' in page


def test_nobody_gives_way_to_an_equal_or_a_lower_one(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    monkeypatch.setattr(arena.hall.dispatcher, "_request", below(arena.hall.dispatcher._request))
    arena.hall.wait()
    arena.hall.pump(1.0)
    assert arena.evicted == []


def test_one_of_priority_0_runs_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch, 1)
    hall = arena.hall
    arena.end(arena.running[0], Cause.COMPLETE)
    arena.serve()
    hall.wait()
    hall.pump(1.0)
    assert arena.evicted == []


def test_one_that_ends_by_itself_is_not_counted_as_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    hall = arena.hall
    first, second = hall.wait(), hall.wait()
    hall.pump()
    assert len(arena.evicted) == 1
    assert 'pending_reclaim{inference_pool="pool"} 0.5\n' in arena.page()
    arena.end(arena.evicted[0][0], Cause.COMPLETE)
    hall.pump()
    assert hall.metrics.refusals == {}
    assert len(first.answers) == 1
    assert len(arena.evicted) == 1, "the room that was made shows first"
    hall.pump(0.25)
    assert len(arena.evicted) == 2
    assert second.answers == []


def test_metrics_are_told_while_those_told_to_end_have_lost_their_endpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    arena.hall.wait()
    arena.hall.pump()
    assert len(arena.evicted) == 1
    arena.hall.endpoints.replace([])
    arena.hall.dispatcher.pool_changed(arena.hall.now_s)
    assert 'pending_reclaim{inference_pool="pool"} 0.0\n' in arena.page()


def test_one_that_does_not_end_is_counted_and_another_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    arena.hall.control.settings = msgspec.structs.replace(FLOW, ttl_s=60.0)
    waiter = arena.hall.wait()
    arena.hall.pump()
    arena.hall.pump(CONFIRMED_WITHIN_S)
    assert len(arena.evicted) == 2
    assert waiter.answers == []
    assert 'revocations_total{outcome="timed_out",inference_pool="pool"} 1\n' in arena.page()


def test_one_that_cannot_be_told_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(monkeypatch)
    hall = arena.hall

    for account in arena.running:
        account.evict = broken
    waiter = hall.wait()
    hall.pump()
    assert {kind for kind, _ in hall.faults} == {"evict"}
    arena.end(arena.running[0], Cause.COMPLETE)
    hall.pump()
    assert len(waiter.answers) == 1


@contextmanager
def left_to_the_collector() -> Iterator[list[int]]:
    """How many objects only the collector can free of what was made inside; the list is filled at the end."""
    gc.collect()
    gc.disable()
    found: list[int] = []
    try:
        yield found
        found.append(gc.collect())
    finally:
        gc.enable()


class Call:
    """A request that comes by a session of its own."""

    def __init__(self, hall: Hall) -> None:
        self.wire = Wire()
        self.session = open_session(hall.dispatcher, lambda: hall.now_s, FULL, Book())(self.wire)
        for message in (headers(), body()):
            self.session.received(message.SerializeToString())


def test_however_a_wait_ends_nothing_is_left_to_the_collector() -> None:
    hall = Hall(1, msgspec.structs.replace(FLOW, max_requests=4))

    def each_ending() -> None:
        running = hall.serve()
        calls = [Call(hall) for _ in range(5)]
        assert calls[4].wire.parts() == ["immediate_response"], "no room to wait"
        calls[0].session.closed(False)
        hall.end(running)
        hall.pump()
        assert calls[1].wire.parts() == ["request_headers", "request_body"]
        hall.pump(10.0)
        assert calls[2].wire.parts() == ["immediate_response"], "too long"
        for call in calls[1:]:
            call.session.closed(False)
        assert hall.in_flight() == 0 and hall.control.requests == 0

    each_ending()
    with left_to_the_collector() as found:
        each_ending()
    assert found == [0]


def test_one_that_gave_way_leaves_nothing_to_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(1, evictions=Evictions(0.0))
    request = hall.dispatcher._request

    def gives_way() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(hall.dispatcher, "_request", below(request))
            call = Call(hall)
        waiter = hall.wait()
        hall.pump(1.0)
        assert call.wire.parts()[-1] == "immediate_response"
        call.session.closed(False)
        hall.pump(1.0)
        hall.end(waiter.account)

    gives_way()
    with left_to_the_collector() as found:
        gives_way()
    assert found == [0]


def test_nothing_is_said_of_evictions_where_there_are_none() -> None:
    hall = Hall(1)
    look = hall.dispatcher.look(hall.now_s)
    assert not [one.name for one in hall.record.families(lambda: look) if "revocation" in one.name]


def test_a_first_token_makes_room_too() -> None:
    hall = Hall(1)
    running = hall.serve(chat(stream=True))
    hall.wait()
    woken = hall.woken
    hall.dispatcher.first_body(running, hall.now_s)
    assert hall.woken == woken + 1


def test_load_that_falls_wakes_nobody_where_nobody_waits() -> None:
    hall = Hall(1)
    hall.end(hall.serve())
    hall.dispatcher.load_fell()
    assert hall.woken == 0


def test_who_leaves_while_another_is_told_hears_nothing() -> None:
    hall = Hall(1)
    hall.serve()
    first, second = hall.wait(), hall.wait()
    told = second.answers
    first.place.resume = lambda routed: second.place.cancel(hall.now_s)
    hall.pump(10.0)
    assert told == []
    assert hall.control.requests == 0


def test_metrics_of_the_queue() -> None:
    hall = Hall(1, FlowSettings(max_requests=10))
    account = hall.serve()
    hall.wait(chat(headers=named(x_llm_d_inference_fairness_id="alice")))
    hall.wait(chat(headers=named(x_llm_d_inference_fairness_id="bob")))
    hall.end(account)
    hall.pump(0.3)
    page = "".join(
        write(family, openmetrics=False) for family in hall.record.families(lambda: hall.dispatcher.look(hall.now_s))
    )
    assert (
        'llm_d_epp_flow_control_queue_size{fairness_id="bob",priority="0",inference_pool="pool",model_name="base",'
        'target_model_name="base"} 1\n'
    ) in page
    assert 'fairness_id="alice",priority="0",outcome="Dispatched",inference_pool="pool"' in page
    assert 'llm_d_epp_flow_control_requests_total{outcome="Dispatched",priority="0",inference_pool="pool"} 2\n' in page
    assert 'llm_d_epp_flow_control_pool_saturation{inference_pool="pool",stage="effective"} 1.0\n' in page
    assert 'llm_d_epp_flow_control_global_capacity_utilization_requests{inference_pool="pool"} 0.1\n' in page
    assert "inference_extension_flow_control_queue_bytes{" in page
    assert "llm_d_epp_flow_control_dispatch_cycle_duration_seconds_count 1\n" in page
    for prefix in ("llm_d_epp", "inference_extension"):
        name = f"{prefix}_flow_control_request_enqueue_duration_seconds_count"
        assert f'{name}{{fairness_id="bob",priority="0",outcome="NotYetFinalized"}} 1\n' in page


def test_names_of_flows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.observe.metrics.MAX_NAMES", 3)
    hall = Hall(1)
    hall.serve()
    for number in range(20):
        hall.wait(chat(headers=named(x_llm_d_inference_fairness_id=f"tenant-{number}")))
    look = hall.dispatcher.look(hall.now_s)
    sizes = next(one for one in hall.record.families(lambda: look) if one.name == "llm_d_epp_flow_control_queue_size")
    flows = {labels[0] for labels, _ in sizes.values}  # type: ignore[union-attr]  # it is no histogram
    assert len(flows) <= 4 and "other" in flows
    assert {flow for flow, _, _ in hall.record.enqueues} == flows


def test_a_burst_within_one_turn_of_the_loop_fills_the_pool_and_no_more() -> None:
    for size in (1, 2, 3, 8, 50):
        hall = Hall(size)
        routed = [hall.route() for _ in range(3 * size)]
        assert [isinstance(one, Waiter) for one in routed] == [False] * size + [True] * 2 * size


def test_saturation_is_not_told_anew_for_requests_that_pass_whatever_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall(100)
    waits = hall.dispatcher._waits
    assert waits is not None
    looks = 0
    saturation = waits._saturation

    def look(now_s: float) -> float:
        nonlocal looks
        looks += 1
        return saturation(now_s)

    monkeypatch.setattr(waits, "_saturation", look)
    for _ in range(100):
        hall.serve()
    assert looks <= 3
    hall.wait()


def test_those_whose_turn_has_come_fill_the_pool_for_who_comes_after_them() -> None:
    hall = Hall(0)
    for _ in range(3):
        hall.wait()
    hall.have(4)
    hall.wait()
    assert not hall.pump()
    assert hall.in_flight() == 4
    hall.wait()


def test_a_pool_that_shrinks_is_looked_at_anew() -> None:
    hall = Hall(10)
    for _ in range(4):
        hall.serve()
    busy = [one for one in hall.endpoints.members if hall.endpoints.in_flight[hall.endpoints.slot_of(one.key)]]
    hall.endpoints.replace(busy)
    hall.dispatcher.pool_changed(hall.now_s)
    hall.wait()


def test_saturation_is_told_anew_when_time_has_passed() -> None:
    hall = Hall(8)
    hall.serve()
    for slot in hall.endpoints.slots.tolist():
        hall.ledger.take(slot, 1, hall.now_s, sees_body=True)
    hall.now_s += 0.06
    hall.wait()


@pytest.mark.parametrize("fairness", ["weighted-tokens", "program-aware"])
def test_flows_that_are_gone_are_remembered_by_the_beginning_of_their_names(fairness: Fairness) -> None:
    hall = Hall(1, FlowSettings(default=BandSettings(policies=Policies(fairness=fairness))))
    running = hall.serve()
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(100):
            waiter = hall.wait(chat(headers={"x-llm-d-inference-fairness-id": str(number) + 50_000 * "x"}))
            hall.end(running)
            hall.pump(0.001)
            running = waiter.account
        del waiter
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1_000_000


class Machine(RuleBasedStateMachine):
    """Whatever happens: one answer for each who waits, and a ledger that counts those who run and no others."""

    def __init__(self) -> None:
        super().__init__()
        band = BandSettings(max_requests=6, policies=Policies(fairness="weighted-tokens", ordering="shortest-prompt"))
        self.hall = Hall(2, FlowSettings(default=band, ttl_s=10.0, empty_ttl_s=30.0, max_requests=8))
        self.waiters: list[Waiter] = []
        self.left: set[Waiter] = set()
        self.running: list[Account] = []

    @rule(tenant=st.sampled_from("abc"), words=st.integers(1, 300), wait=st.sampled_from(["", "0", "2000"]))
    def arrive(self, tenant: str, words: int, wait: str) -> None:
        headers = {"x-llm-d-inference-fairness-id": tenant, MAX_WAIT_HEADER: wait}
        try:
            routed = self.hall.route(chat("word " * words, headers=headers))
        except Drop:
            return
        if isinstance(routed, Waiter):
            self.waiters.append(routed)
        else:
            self.running.append(routed[1])

    @rule(seconds=st.sampled_from([0.0, 0.0, 0.5, 5.0, 40.0]))
    def pump(self, seconds: float) -> None:
        self.hall.pump(seconds)
        self.collect()

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.hall.end(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(self.waiters))
        waiter.place.cancel(self.hall.now_s)
        if not waiter.answers:
            self.left.add(waiter)

    @rule(endpoints=st.integers(0, 3))
    def members(self, endpoints: int) -> None:
        self.hall.have(endpoints)

    @rule()
    def drain(self) -> None:
        if len(self.waiters) > 12:
            self.hall.dispatcher.drain(self.hall.now_s)
            self.collect()

    def collect(self) -> None:
        for waiter in self.waiters:
            if waiter.answers and isinstance(waiter.answers[0], tuple) and waiter not in self.left:
                self.running.append(waiter.account)
                self.left.add(waiter)

    @invariant()
    def one_answer_each(self) -> None:
        waiting = [one for one in self.waiters if not one.answers and one not in self.left]
        assert self.hall.control.requests == len(waiting)
        assert all(len(one.answers) <= 1 for one in self.waiters)
        assert not self.hall.faults

    @invariant()
    def the_ledger_counts_those_who_run(self) -> None:
        keys = {endpoint.key for endpoint in self.hall.endpoints.members}
        here = [account for account in self.running if account.endpoint.key in keys]
        # One whose endpoint left and came back runs on the endpoint that was.
        assert self.hall.in_flight() <= len(here)

    def teardown(self) -> None:
        self.hall.dispatcher.drain(self.hall.now_s)
        self.collect()
        for account in self.running:
            self.hall.end(account)
        assert self.hall.in_flight() == 0
        assert self.hall.control.requests == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_bug_in_flow_control_lets_requests_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    hall = Hall()

    def broken(*args: object) -> bool:
        raise RuntimeError("planted")

    monkeypatch.setattr(hall.control, "passes", broken)
    monkeypatch.setattr(hall.control, "submit", broken)
    accounts = [hall.serve() for _ in range(5)]
    assert {kind for kind, _ in hall.faults} == {"flow"}
    assert hall.in_flight() == 5
    monkeypatch.undo()
    for account in accounts:
        hall.end(account)
    assert hall.in_flight() == 0
