"""The dispatcher over its real collaborators: no sockets, no clock, chance from a seed."""

from __future__ import annotations

import json
import logging
import random
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, consumes, invariant, multiple, rule

from epp import dispatcher as module
from epp.account import Account
from epp.configuration import build, load, load_default
from epp.dispatcher import CONTROL_HEADERS, Dispatcher, Policy
from epp.drops import Drop, Reason
from epp.endpoint import Endpoint, Endpoints, Report
from epp.extproc.events import Arrival, Cause, Finished, Started, Steer
from epp.ledger import Ledger
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import PrefixIndex
from epp.pressure import Pressure, Step

NOW_S = 50.0
LONG = "once upon a time in a far away land " * 60
RANKED = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker, parameters: {maxNumOfEndpoints: 3}}
"""


def members(n: int) -> list[Endpoint]:
    return [Endpoint(name=f"pod-{number}", address=f"10.0.0.{number + 1}", port=8000) for number in range(n)]


class Desk:
    """A dispatcher with everything it works on in reach."""

    def __init__(
        self, endpoints: list[Endpoint] | int = 4, *, policy: Policy | None = None, seed: int = 1, config: str = ""
    ) -> None:
        rng = random.Random(seed)
        self.endpoints = Endpoints()
        self.endpoints.replace(members(endpoints) if isinstance(endpoints, int) else endpoints)
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex()
        self.metrics = Metrics()
        self.estimator = TokenEstimator()
        self.faults: list[tuple[str, Exception]] = []
        self.skipped = PluginFaults(lambda line: None)
        self.pipeline = build(load(config, "test") if config else load_default(), rng, self.skipped)
        self.ticks = 0.0
        self.pressure = Pressure(0.05)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=self.pipeline,
            ledger=self.ledger,
            index=self.index,
            metrics=self.metrics,
            estimator=self.estimator,
            policy=policy or Policy(look_share=0.0),
            rng=rng,
            timer=self._timer,
            faults=lambda kind, error: self.faults.append((kind, error)),
            picks=PickLog(),
            pressure=self.pressure,
        )

    def _timer(self) -> float:
        self.ticks += 1.0
        return self.ticks

    def route(self, arrival: Arrival | None = None, now_s: float = NOW_S) -> tuple[Steer, Account]:
        routed = self.dispatcher.route(arrival or chat(), now_s, now_s)
        assert isinstance(routed, tuple)
        return routed

    def refusal(self, arrival: Arrival) -> Drop:
        with pytest.raises(Drop) as caught:
            self.route(arrival)
        return caught.value

    def in_flight(self) -> dict[str, float]:
        e = self.endpoints
        return {one.destination: e.in_flight.item(slot) for slot, one in zip(e.slots, e.members, strict=True)}

    def running(self) -> int:
        return sum(series.running for series in self.metrics.series.values())

    def errors(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for series in self.metrics.series.values():
            for code, count in series.errors.items():
                total[code] = total.get(code, 0) + count
        return total

    def slot(self, number: int) -> int:
        return int(self.endpoints.slots[number])


def chat(
    text: str = LONG,
    *,
    headers: Mapping[str, str] | None = None,
    model: str = "base",
    path: str = "/v1/chat/completions",
    body: bytes | None = None,
    has_body: bool = True,
    truncated: bool = False,
    can_rewrite: bool = True,
    sees_answer: bool = True,
    can_look: bool = False,
    subset: tuple[str, ...] | None = None,
    **fields: object,
) -> Arrival:
    content = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
    return Arrival(
        headers={":method": "POST", ":path": path, "content-type": "application/json", **(headers or {})},
        body=json.dumps(content).encode() if body is None else body,
        has_body=has_body,
        truncated=truncated,
        can_rewrite=can_rewrite,
        sees_answer=sees_answer,
        can_look=can_look,
        subset=subset,
    )


def complete(tail: bytes = b"", body_bytes: int = 0) -> Finished:
    return Finished(Cause.COMPLETE, tail, body_bytes)


class TestPressure:
    def press(self, desk: Desk, step: Step) -> None:
        now_s = 0.0
        while desk.pressure.step < step:
            desk.pressure.beat(1.0, now_s := now_s + 1.0)

    def test_a_pressed_loop_does_no_prefix_work_and_still_goes_by_load(self) -> None:
        desk = Desk(4)
        self.press(desk, Step.NO_PREFIX)
        picked = [desk.route()[0].destination for _ in range(8)]
        assert sorted(desk.in_flight().values()) == [2.0] * 4
        assert len(set(picked)) == 4
        assert len(desk.index) == 0
        assert desk.metrics.degradations == {"no-prefix": 8}

    def test_a_loop_pressed_harder_takes_any_endpoint_that_can_be_reached(self) -> None:
        desk = Desk(4)
        desk.endpoints.set_unreachable(desk.slot(2), True)
        self.press(desk, Step.RANDOM)
        for _ in range(60):
            steer, account = desk.route(chat(headers={"x-gateway-model-name-rewrite": "other"}))
            assert b'"model": "other"' in (steer.body or b"")
            desk.dispatcher.finished(account, complete(), NOW_S)
            assert desk.running() == 0
        picks = {key[1]: count[0] for key, count in desk.metrics.picks.items()}
        assert set(picks) == {"pod-0", "pod-1", "pod-3"}
        assert min(picks.values()) >= 10
        assert desk.metrics.degradations == {"random": 60}

    def test_nothing_is_counted_without_pressure(self) -> None:
        desk = Desk(4)
        desk.route()
        assert desk.metrics.degradations == {}
        assert len(desk.index)


class TestOneRequest:
    def test_it_goes_to_a_member_and_is_in_flight_until_its_end(self) -> None:
        desk = Desk()
        steer, account = desk.route()
        assert steer.destination in {one.destination for one in desk.endpoints.members}
        assert desk.in_flight()[steer.destination] == 1
        assert desk.running() == 1
        desk.dispatcher.started(account, Started(200, {"content-type": "application/json"}), NOW_S + 1)
        desk.dispatcher.finished(account, complete(), NOW_S + 2)
        assert set(desk.in_flight().values()) == {0}
        assert not desk.endpoints.in_flight_tokens.any()
        assert desk.running() == 0
        assert desk.metrics.statuses[200] == 1

    def test_tokens_in_flight_are_what_is_not_cached(self) -> None:
        desk = Desk(2)
        steer, account = desk.route()
        first = desk.endpoints.in_flight_tokens.sum()
        assert first == account.request.prompt_tokens == desk.estimator.tokens("base", account.request.prompt_bytes)
        desk.dispatcher.finished(account, complete(), NOW_S)
        again, _ = desk.route()
        assert again.destination == steer.destination
        assert desk.endpoints.in_flight_tokens.sum() == 0
        assert desk.metrics.prefix_hit_ratio[-1] == 1.0

    def test_different_prompts_spread(self) -> None:
        desk = Desk(4)
        for number in range(20):
            desk.route(chat(f"{number} " + LONG))
        assert set(desk.in_flight().values()) == {5}

    def test_short_prompts_have_no_fingerprints_and_do_not_gather(self) -> None:
        desk = Desk(4)
        accounts = [desk.route(chat("hello"))[1] for _ in range(8)]
        assert not any(len(account.request.fingerprints) for account in accounts)
        assert set(desk.in_flight().values()) == {2}
        assert len(desk.index) == 0

    def test_the_prefix_is_bounded(self) -> None:
        desk = Desk(policy=Policy(max_prefix_blocks=3, look_share=0.0))
        _, account = desk.route()
        assert len(account.request.fingerprints) == 3

    def test_another_model_or_salt_is_another_prefix(self) -> None:
        desk = Desk(8)
        prints = [
            desk.route(arrival)[1].request.fingerprints.tolist()
            for arrival in (chat(), chat(model="other"), chat(cache_salt="s"), chat())
        ]
        assert prints[0] == prints[3]
        assert len({tuple(one) for one in prints}) == 3

    def test_a_request_without_body_goes_by_load(self) -> None:
        desk = Desk()
        arrival = chat(path="/v1/models", body=b"", has_body=False, headers={":method": "GET"})
        for _ in range(4):
            steer, account = desk.route(arrival)
            assert account.request.model == "" and steer.body is None
        assert set(desk.in_flight().values()) == {1}

    def test_a_bad_body_is_refused_and_counted(self) -> None:
        desk = Desk()
        drop = desk.refusal(chat(body=b'{"model": "base", "messages": ['))
        assert drop.reason is Reason.BAD_REQUEST
        assert desk.errors() == {"BadRequest": 1}
        assert set(desk.in_flight().values()) == {0}
        assert desk.running() == 0

    def test_the_stages_are_measured(self) -> None:
        desk = Desk()
        desk.dispatcher.route(chat(), NOW_S - 0.25, NOW_S)
        assert desk.metrics.stages["body"][-1] == 0.25
        assert desk.metrics.stages["parse"][-1] == 1.0
        assert desk.metrics.stages["decide"][-1] == 1.0

    def test_a_ranked_list_is_given_best_first(self) -> None:
        desk = Desk(5, config=RANKED)
        steer, account = desk.route()
        names = steer.destination.split(",")
        assert len(names) == len(set(names)) == 3
        assert names[0] == account.endpoint.destination
        assert desk.in_flight()[names[0]] == 1 and sum(desk.in_flight().values()) == 1

    def test_scores_are_told_only_where_asked_for(self) -> None:
        assert Desk().route()[0].scores is None
        steer, _ = Desk(3, policy=Policy(emit_scores=True)).route()
        assert steer.scores is not None
        assert set(steer.scores) == {one.destination for one in members(3)}


class TestAnswersToCome:
    @pytest.mark.parametrize(
        ("policy", "max_tokens", "expected"),
        [
            (Policy(look_share=0.0), 50, 0),
            (Policy(output_ratio=2.0), None, 2.0),
            (Policy(output_ratio=2.0, max_output_tokens=100), None, 100),
            (Policy(output_ratio=2.0, max_output_tokens=100), 50, 50),
            (Policy(output_ratio=0.001, max_output_tokens=100), 50, 1),
        ],
    )
    def test_they_count_until_the_end(self, policy: Policy, max_tokens: int | None, expected: float) -> None:
        desk = Desk(2, policy=policy)
        _, account = desk.route(chat(stream=True, max_tokens=max_tokens))
        prompt = account.request.prompt_tokens
        answer = expected * prompt if expected == 2.0 else expected
        assert desk.endpoints.in_flight_tokens.sum() == prompt + answer
        desk.dispatcher.first_body(account, NOW_S + 1)
        assert desk.endpoints.in_flight_tokens.sum() == answer
        desk.dispatcher.finished(account, complete(), NOW_S + 2)
        assert not desk.endpoints.in_flight_tokens.any()

    def test_they_move_with_the_request(self) -> None:
        desk = Desk(2, policy=Policy(output_ratio=2.0))
        steer, account = desk.route()
        before = desk.endpoints.in_flight_tokens.sum()
        other = next(one for one in desk.endpoints.members if one.destination != steer.destination)
        desk.dispatcher.started(account, Started(200, {}, other.destination), NOW_S)
        assert desk.endpoints.in_flight_tokens.sum() == before
        assert desk.endpoints.in_flight_tokens[desk.endpoints.slot_by_destination(other.destination)] == before
        desk.dispatcher.finished(account, complete(), NOW_S)
        assert not desk.endpoints.in_flight_tokens.any()

    def test_they_do_not_pass_for_prompt_tokens_worked_off(self) -> None:
        """The rate is learned from prompts alone."""
        rates = []
        for ratio in (0.0, 3.0):
            desk = Desk(1, policy=Policy(output_ratio=ratio))
            # One is always behind another: what stands between two first tokens is the later one's prompt.
            accounts = [desk.route(chat(f"{number} {LONG}", stream=True))[1] for number in range(20)]
            for number, account in enumerate(accounts):
                desk.dispatcher.first_body(account, NOW_S + number + 0.5)
                desk.dispatcher.finished(account, complete(), NOW_S + number + 0.6)
            rates.append(desk.ledger.prefill_rate(desk.slot(0)))
        assert rates[0] == rates[1] != 10_000


class TestHeaders:
    @pytest.mark.parametrize("name", ["x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite"])
    def test_a_rewrite_splices_the_model_and_turns_it_back(self, name: str) -> None:
        arrival = chat(headers={name: "base-v2"})
        steer, account = Desk().route(arrival)
        assert steer.body == arrival.body.replace(b'"base"', b'"base-v2"')
        assert steer.turn_back == ("base-v2", "base")
        assert (account.request.model, account.request.target_model) == ("base", "base-v2")

    def test_the_newer_spelling_of_a_rewrite_wins_unless_it_is_empty(self) -> None:
        both = {"x-gateway-model-name-rewrite": "old", "x-llm-d-model-name-rewrite": "new"}
        assert Desk().route(chat(headers=both))[1].request.target_model == "new"
        empty = {**both, "x-llm-d-model-name-rewrite": ""}
        assert Desk().route(chat(headers=empty))[1].request.target_model == "old"

    @pytest.mark.parametrize(
        "arrival",
        [
            chat(headers={"x-gateway-model-name-rewrite": "new"}, can_rewrite=False),
            chat(headers={"x-gateway-model-name-rewrite": "base"}),
            chat(headers={"x-gateway-model-name-rewrite": "new"}, path="/unknown"),
        ],
        ids=["the body has gone", "the same name", "no model known"],
    )
    def test_where_nothing_can_or_need_be_rewritten_the_body_stays(self, arrival: Arrival) -> None:
        steer, account = Desk().route(arrival)
        assert steer.body is None and steer.turn_back is None
        assert account.request.target_model == account.request.model

    def test_the_rewritten_model_is_what_the_prefix_belongs_to(self) -> None:
        desk = Desk()
        plain = desk.route(chat(model="base-v2"))[1].request
        rewritten = desk.route(chat(headers={"x-gateway-model-name-rewrite": "base-v2"}))[1].request
        assert rewritten.fingerprints.tolist() == plain.fingerprints.tolist()

    def test_a_hidden_answer_is_looked_at_where_its_model_must_be_turned_back(self) -> None:
        desk = Desk()
        steer, account = desk.route(
            chat(headers={"x-gateway-model-name-rewrite": "m2"}, sees_answer=False, can_look=True, stream=True)
        )
        assert steer.look
        assert account.entry.visible

    def test_control_headers_are_removed_and_nothing_else(self) -> None:
        given = dict.fromkeys(CONTROL_HEADERS, "x") | {"authorization": "x"}
        assert set(Desk().route(chat(headers=given))[0].remove_headers) == set(CONTROL_HEADERS)
        assert Desk().route()[0].remove_headers == ()

    def test_a_request_id_is_kept_or_made(self) -> None:
        steer, account = Desk().route(chat(headers={"x-request-id": "mine"}))
        assert steer.set_headers == () and account.request.request_id == "mine"
        steer, account = Desk(seed=7).route()
        assert steer.set_headers == (("x-request-id", account.request.request_id),)
        assert uuid.UUID(account.request.request_id).version == 4
        assert Desk(seed=7).route()[1].request.request_id == account.request.request_id

    def test_the_flow_is_named_by_either_header(self) -> None:
        assert Desk().route()[1].request.fairness_id == "default-flow"
        old = {"x-gateway-inference-fairness-id": "a"}
        assert Desk().route(chat(headers=old))[1].request.fairness_id == "a"
        both = {**old, "x-llm-d-inference-fairness-id": "b"}
        assert Desk().route(chat(headers=both))[1].request.fairness_id == "b"


class TestSubset:
    @pytest.mark.parametrize(
        ("subset", "allowed"),
        [
            (("10.0.0.2:8000",), {"10.0.0.2:8000"}),
            (("10.0.0.2:8000", " 10.0.0.3:8000 "), {"10.0.0.2:8000", "10.0.0.3:8000"}),
            (("10.0.0.2",), {"10.0.0.2:8000", "10.0.0.2:8001"}),
            (("fd00::1",), {"[fd00::1]:8000"}),
            (("[fd00::1]",), {"[fd00::1]:8000"}),
            (("[fd00::1]:8000", "10.9.9.9:1"), {"[fd00::1]:8000"}),
        ],
    )
    def test_only_the_named_are_picked(self, subset: tuple[str, ...], allowed: set[str]) -> None:
        extra = [
            Endpoint(name="second-port", address="10.0.0.2", port=8001),
            Endpoint(name="six", address="fd00::1", port=8000),
        ]
        desk = Desk([*members(4), *extra])
        picked = {desk.route(chat(f"{n} {LONG}", subset=subset))[0].destination for n in range(12)}
        assert picked == allowed

    @pytest.mark.parametrize("subset", [(), ("10.9.9.9:8000",), ("10.0.0.1:9999",), ("",)])
    def test_none_left_is_a_503(self, subset: tuple[str, ...]) -> None:
        desk = Desk()
        drop = desk.refusal(chat(subset=subset))
        assert drop.status == 503 and drop.reason is Reason.NO_ENDPOINTS
        assert ("x-llm-d-request-dropped-reason", "rejected-no-endpoints") in drop.headers()
        assert desk.errors() == {"ServiceUnavailable": 1}

    def test_it_can_be_passed_over(self) -> None:
        desk = Desk(policy=Policy(ignore_subset=True, look_share=0.0))
        assert desk.route(chat(subset=()))[0].destination

    def test_what_it_names_follows_the_membership(self) -> None:
        desk = Desk()
        hint = ("10.0.0.2:8000",)
        assert desk.route(chat(subset=hint))[0].destination == "10.0.0.2:8000"
        # The slot of the one that left goes to another endpoint.
        desk.endpoints.replace([one for one in members(9) if one.address != "10.0.0.2"])
        assert desk.refusal(chat(subset=hint)).status == 503
        desk.endpoints.replace(members(9))
        assert desk.route(chat(subset=hint))[0].destination == "10.0.0.2:8000"

    def test_hints_beyond_number_are_not_remembered(self) -> None:
        desk = Desk()
        for number in range(module._SUBSETS_REMEMBERED + 50):
            desk.route(chat("hi", subset=("10.0.0.2", str(number))))
        assert len(desk.dispatcher._subsets) == module._SUBSETS_REMEMBERED


class TestWhoCanBePicked:
    def test_an_empty_pool_is_a_503(self) -> None:
        drop = Desk(0).refusal(chat())
        assert drop.status == 503 and drop.reason is Reason.NO_ENDPOINTS

    def test_a_bad_request_to_an_empty_pool_is_a_bad_request(self) -> None:
        assert Desk(0).refusal(chat(body=b"{")).reason is Reason.BAD_REQUEST

    def test_the_unreachable_are_left_out_while_another_lives(self) -> None:
        desk = Desk(3)
        for number in (0, 2):
            desk.endpoints.set_unreachable(desk.slot(number), True)
        assert {desk.route(chat(f"{n} {LONG}"))[0].destination for n in range(9)} == {"10.0.0.2:8000"}
        subset = ("10.0.0.1", "10.0.0.2")
        assert desk.route(chat(subset=subset))[0].destination == "10.0.0.2:8000"

    def test_they_are_tried_where_no_other_is_left(self) -> None:
        desk = Desk(2)
        desk.endpoints.set_unreachable(desk.slot(0), True)
        assert desk.route(chat(subset=("10.0.0.1",)))[0].destination == "10.0.0.1:8000"
        desk.endpoints.set_unreachable(desk.slot(1), True)
        assert desk.route()[0].destination


class TestNewMembers:
    """A server that joins is idle and cold. Our own account of what it was given keeps a burst from falling on it alone."""

    @pytest.mark.parametrize("report", [None, Report(waiting=0.0, running=0.0, kv_usage=0.0)], ids=["unknown", "idle"])
    def test_one_that_joins_in_a_burst_gets_about_its_share(self, report: Report | None) -> None:
        desk = Desk(8)
        for slot in range(8):
            desk.endpoints.report(slot, Report(waiting=0.0, running=20.0, kv_usage=0.5), NOW_S)
        desk.endpoints.replace(members(9))
        joined = desk.endpoints.slot_of("default/pod-8")
        assert joined is not None
        if report is not None:
            desk.endpoints.report(joined, report, NOW_S)
        for number in range(90):
            desk.route(chat(f"{number} {LONG}"), NOW_S + number * 0.001)
        assert 5 <= desk.endpoints.in_flight[joined] <= 15


class TestServersThatTakeNoConnections:
    REFUSED = (
        b"upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, "
        b"transport failure reason: delayed connect error: Connection refused"
    )

    def answered(self, desk: Desk, status: int, tail: bytes) -> int:
        """How many members can still be reached after such an answer."""
        _, account = desk.route()
        desk.dispatcher.started(account, Started(status, {"content-type": "text/plain"}, None), NOW_S)
        desk.dispatcher.finished(account, complete(tail, len(tail)), NOW_S)
        return int((~desk.endpoints.unreachable[desk.endpoints.slots]).sum())

    def reporting(self) -> Desk:
        desk = Desk(3)
        for slot in desk.endpoints.slots.tolist():
            desk.endpoints.report(slot, Report(waiting=0.0, running=0.0, kv_usage=0.0), NOW_S)
        return desk

    def test_they_are_passed_over_until_they_report_again(self) -> None:
        desk = self.reporting()
        assert self.answered(desk, 503, self.REFUSED) == 2
        (down,) = desk.endpoints.slots[desk.endpoints.unreachable[desk.endpoints.slots]].tolist()
        desk.endpoints.report(down, Report(waiting=0.0), NOW_S)
        assert not desk.endpoints.unreachable.any()

    @pytest.mark.parametrize(
        ("status", "tail"),
        [
            (503, b'{"error": "the model is loading"}'),
            (503, REFUSED.replace(b"remote connection failure", b"connection termination")),
            (200, REFUSED),
            (503, b""),
        ],
    )
    def test_other_answers_say_nothing_about_connections(self, status: int, tail: bytes) -> None:
        assert self.answered(self.reporting(), status, tail) == 3

    def test_one_that_never_reports_is_tried_on(self) -> None:
        assert self.answered(Desk(3), 503, self.REFUSED) == 3


class TestLooking:
    def looks(self, desk: Desk, n: int, **changes: Any) -> int:
        arrivals = [chat(f"{number}", sees_answer=False, **{"can_look": True, **changes}) for number in range(n)]
        return sum(desk.route(arrival)[0].look for arrival in arrivals)

    def test_the_share_is_kept(self) -> None:
        assert 150 < self.looks(Desk(policy=Policy(look_share=0.2)), 1000) < 250
        assert self.looks(Desk(policy=Policy(look_share=0.0)), 50) == 0
        assert self.looks(Desk(policy=Policy(look_share=1.0)), 50) == 50

    @pytest.mark.parametrize("changes", [{"can_look": False}, {"path": "/unknown"}, {"has_body": False}])
    def test_only_where_it_can_be_and_there_is_a_prompt(self, changes: dict[str, Any]) -> None:
        assert self.looks(Desk(policy=Policy(look_share=1.0)), 5, **changes) == 0

    @pytest.mark.parametrize(
        ("sees_answer", "look", "stream", "visible"),
        [(True, 0.0, True, True), (True, 0.0, False, False), (False, 0.0, True, False), (False, 1.0, True, True)],
    )
    def test_first_tokens_are_waited_for_only_where_they_will_be_seen(
        self, sees_answer: bool, look: float, stream: bool, visible: bool
    ) -> None:
        desk = Desk(policy=Policy(look_share=look))
        _, account = desk.route(chat(sees_answer=sees_answer, can_look=not sees_answer, stream=stream))
        assert account.entry.visible is visible
        # The hidden ones are let go by estimate, those to be seen wait for their first token.
        desk.ledger.advance(NOW_S + 1000)
        assert bool(desk.endpoints.in_flight_tokens.any()) is visible
        desk.dispatcher.first_body(account, NOW_S + 1000)
        assert bool(desk.endpoints.in_flight_tokens.any()) is False


class TestAnswers:
    def test_the_one_that_really_served_takes_over(self) -> None:
        desk = Desk(3)
        steer, account = desk.route()
        other = next(one for one in desk.endpoints.members if one.destination != steer.destination)
        desk.dispatcher.started(account, Started(200, {}, other.destination), NOW_S + 1)
        assert desk.in_flight() == {
            one.destination: float(one.destination == other.destination) for one in desk.endpoints.members
        }
        slot = desk.endpoints.slot_by_destination(other.destination)
        assert slot is not None
        assert desk.index.match(account.request.fingerprints)[slot] == len(account.request.fingerprints)
        assert account.endpoint is other
        desk.dispatcher.finished(account, complete(), NOW_S + 2)
        assert set(desk.in_flight().values()) == {0}
        assert not desk.endpoints.in_flight_tokens.any()

    @pytest.mark.parametrize("served", [None, "10.9.9.9:1"])
    def test_a_stranger_takes_over_nothing(self, served: str | None) -> None:
        desk = Desk(3)
        steer, account = desk.route()
        desk.dispatcher.started(account, Started(200, {}, served), NOW_S)
        assert desk.in_flight()[steer.destination] == 1

    def test_usage_teaches_the_estimator_and_is_counted(self) -> None:
        desk = Desk()
        _, account = desk.route(chat(headers={"x-gateway-model-name-rewrite": "m2"}))
        desk.dispatcher.started(account, Started(200, {"content-type": "application/json"}), NOW_S + 1)
        prompt_tokens = account.request.prompt_bytes // 2
        counts = {"prompt_tokens": prompt_tokens, "completion_tokens": 5}
        tail = json.dumps({"model": "m2", "choices": [], "usage": counts}).encode()
        desk.dispatcher.finished(account, complete(tail, len(tail)), NOW_S + 2)
        assert desk.estimator.bytes_per_token("m2") < 4
        assert desk.estimator.bytes_per_token("base") == 4
        (series,) = desk.metrics.series.values()
        assert series.input_tokens[-1] == prompt_tokens
        assert series.output_tokens[-1] == 5
        assert series.response_bytes[-1] == len(tail)

    def test_an_answer_that_was_not_shown_has_no_size(self) -> None:
        desk = Desk(policy=Policy(look_share=1.0))
        _, account = desk.route(chat(sees_answer=False, can_look=True))
        desk.dispatcher.finished(account, complete(), NOW_S)
        (series,) = desk.metrics.series.values()
        assert sum(series.response_bytes) == 0

    def test_time_to_first_token_is_kept_apart_for_streams(self) -> None:
        desk = Desk()
        for stream in (True, False):
            routed = desk.dispatcher.route(chat(stream=stream), NOW_S - 1, NOW_S)
            assert isinstance(routed, tuple)
            account = routed[1]
            desk.dispatcher.first_body(account, NOW_S + 1)
        (series,) = desk.metrics.series.values()
        assert (series.ttft_streamed[-1], series.ttft_whole[-1]) == (2.0, 2.0)

    def test_an_abort_and_a_server_error_are_counted(self) -> None:
        desk = Desk()
        _, account = desk.route()
        desk.dispatcher.finished(account, Finished(Cause.ABORTED), NOW_S + 1)
        _, account = desk.route()
        desk.dispatcher.started(account, Started(503, {}), NOW_S + 1)
        desk.dispatcher.finished(account, complete(), NOW_S + 1)
        (series,) = desk.metrics.series.values()
        assert series.aborted == 1
        assert desk.errors() == {"ModelServerError": 1}
        assert desk.running() == 0


def explode(*_: object, **__: object) -> Any:
    raise ZeroDivisionError("planted")


FAILURES: dict[str, tuple[str, Callable[[Desk, pytest.MonkeyPatch], None]]] = {
    "parse": ("read", lambda desk, patch: patch.setattr(module, "parse", explode)),
    "fingerprints": ("read", lambda desk, patch: patch.setattr(module, "fingerprints", explode)),
    "estimator": ("read", lambda desk, patch: patch.setattr(desk.estimator, "tokens", explode)),
    "ledger": ("pick", lambda desk, patch: patch.setattr(desk.ledger, "advance", explode)),
    "index": ("pick", lambda desk, patch: patch.setattr(desk.index, "holdings", explode)),
    "pipeline": ("pick", lambda desk, patch: patch.setattr(desk.pipeline, "pick", explode)),
    "rewrite": ("steer", lambda desk, patch: patch.setattr(module, "rewrite_model", explode)),
    "record": ("record", lambda desk, patch: patch.setattr(desk.index, "record", explode)),
    "metrics": ("record", lambda desk, patch: patch.setattr(desk.metrics, "picked", explode)),
    "the pick log": ("record", lambda desk, patch: patch.setattr(PickLog, "note", explode)),
}


class TestBugsOfOurOwn:
    @pytest.mark.parametrize("what", FAILURES)
    def test_each_costs_quality_and_never_the_request(self, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk(3)
        kind, plant = FAILURES[what]
        plant(desk, monkeypatch)
        accounts = []
        for number in range(6):
            arrival = chat(f"{number} {LONG}", headers={"x-gateway-model-name-rewrite": "m2"})
            steer, account = desk.route(arrival)
            assert steer.destination == account.endpoint.destination
            accounts.append(account)
        assert {name for name, _ in desk.faults} == {kind}
        assert len(desk.faults) == 6
        assert all(isinstance(error, ZeroDivisionError) for _, error in desk.faults)
        # Spread by what is in flight, whatever else is lost.
        assert set(desk.in_flight().values()) == {2}
        assert desk.running() == 6
        for account in accounts:
            desk.dispatcher.finished(account, complete(), NOW_S + 1)
        assert set(desk.in_flight().values()) == {0}
        assert not desk.endpoints.in_flight_tokens.any()
        assert desk.running() == 0

    def test_a_failed_pick_still_rewrites_the_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        monkeypatch.setattr(desk.pipeline, "pick", explode)
        steer, _ = desk.route(chat(headers={"x-gateway-model-name-rewrite": "m2"}))
        assert steer.turn_back == ("m2", "base")
        assert steer.remove_headers == ("x-gateway-model-name-rewrite",)

    def test_a_failed_pick_keeps_to_the_subset(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        monkeypatch.setattr(desk.pipeline, "pick", explode)
        assert desk.route(chat(subset=("10.0.0.3",)))[0].destination == "10.0.0.3:8000"
        assert desk.refusal(chat(subset=())).status == 503

    def test_a_failed_pick_can_be_logged(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        desk = Desk()
        monkeypatch.setattr(desk.pipeline, "pick", explode)
        with caplog.at_level(logging.DEBUG, "epp.decision"):
            _, account = desk.route()
        assert [kind for kind, _ in desk.faults] == ["pick"]
        assert caplog.records[0].getMessage() == f"picked {account.endpoint.key}"

    def test_usage_that_cannot_be_read_still_ends_the_account(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        monkeypatch.setattr(module, "usage", explode)
        _, account = desk.route()
        desk.dispatcher.finished(account, complete(b"{}", 2), NOW_S)
        assert [kind for kind, _ in desk.faults] == ["usage"]
        assert desk.running() == 0


class Lives(RuleBasedStateMachine):
    """Requests that arrive, are answered and end in any legal order while servers come, go, fail and report."""

    accounts: Bundle[Account] = Bundle("accounts")

    def __init__(self) -> None:
        super().__init__()
        self.desk = Desk(3, policy=Policy(look_share=0.2, output_ratio=0.5))
        self.now_s = NOW_S
        self.open: list[Account] = []

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 3.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(
        target=accounts,
        text=st.sampled_from(["hi", LONG, "b" + LONG, LONG + LONG]),
        stream=st.booleans(),
        sees_answer=st.booleans(),
        rewrite=st.sampled_from(["", "m2"]),
        subset=st.sampled_from([None, ("10.0.0.1", "10.0.0.2"), ("10.0.0.3:8000",)]),
    )
    def arrive(
        self, text: str, stream: bool, sees_answer: bool, rewrite: str, subset: tuple[str, ...] | None
    ) -> Account | MultipleResults[Account]:
        arrival = chat(
            text,
            headers={"x-gateway-model-name-rewrite": rewrite},
            stream=stream,
            sees_answer=sees_answer,
            can_look=not sees_answer,
            subset=subset,
        )
        try:
            steer, account = self.desk.route(arrival, self.now_s)
        except Drop as drop:
            assert drop.reason is Reason.NO_ENDPOINTS
            assert subset is not None or not len(self.desk.endpoints)
            return multiple()
        assert steer.destination in {one.destination for one in self.desk.endpoints.members}
        self.open.append(account)
        return account

    @rule(account=accounts, served=st.sampled_from([None, "10.0.0.1:8000", "10.0.0.4:8000", "10.9.9.9:1"]))
    def start(self, account: Account, served: str | None) -> None:
        self.desk.dispatcher.started(account, Started(200, {}, served), self.now_s)

    @rule(account=accounts)
    def first_body(self, account: Account) -> None:
        self.desk.dispatcher.first_body(account, self.now_s)

    @rule(account=consumes(accounts), cause=st.sampled_from(Cause))
    def finish(self, account: Account, cause: Cause) -> None:
        self.desk.dispatcher.finished(account, Finished(cause), self.now_s)
        self.open.remove(account)

    @rule(present=st.sets(st.integers(0, 5)))
    def replace(self, present: set[int]) -> None:
        change = self.desk.endpoints.replace([one for n, one in enumerate(members(6)) if n in present])
        for slot, _ in change.removed:
            self.desk.index.forget(slot)

    @rule(number=st.integers(0, 5), down=st.booleans())
    def fail(self, number: int, down: bool) -> None:
        slot = self.desk.endpoints.slot_of(f"default/pod-{number}")
        if slot is not None:
            self.desk.endpoints.set_unreachable(slot, down)

    @rule(
        number=st.integers(0, 5),
        waiting=st.integers(0, 3),
        running=st.integers(0, 3),
        total=st.integers(0, 5000),
    )
    def report(self, number: int, waiting: int, running: int, total: int) -> None:
        slot = self.desk.endpoints.slot_of(f"default/pod-{number}")
        if slot is None:
            return
        report = Report(waiting=waiting, running=running, kv_usage=0.5, prompt_tokens_total=float(total))
        mark = self.desk.ledger.report_sent(slot, self.now_s)
        self.now_s += 0.01
        self.desk.endpoints.report(slot, report, self.now_s)
        self.desk.ledger.reported(slot, mark, report, self.now_s)

    @invariant()
    def nothing_is_negative_and_all_is_counted(self) -> None:
        endpoints = self.desk.endpoints
        for column in (endpoints.in_flight, endpoints.in_flight_tokens, endpoints.picked_since_report):
            assert (column >= 0).all()
        assert endpoints.in_flight.sum() <= len(self.open)
        assert self.desk.running() == len(self.open)
        assert not self.desk.faults
        assert not self.desk.skipped.counts
        if not self.open:
            assert not endpoints.in_flight.any()
            assert not endpoints.in_flight_tokens.any()
            assert not endpoints.picked_since_report.any()

    def teardown(self) -> None:
        for account in list(self.open):
            self.finish(account, Cause.ABORTED)
        self.nothing_is_negative_and_all_is_counted()


Lives.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestLives = Lives.TestCase


def test_everything_ends_at_zero_whatever_the_order() -> None:
    """Long lives from a seed: what a few dozen generated steps do not reach."""
    rng = random.Random(3)
    desk = Desk(4, policy=Policy(look_share=0.3))
    live: list[Account] = []
    now_s = NOW_S
    for step in range(3000):
        now_s += rng.expovariate(20)
        if rng.random() < 0.55 or not live:
            arrival = chat(
                LONG[: rng.randrange(4, len(LONG))],
                stream=rng.random() < 0.5,
                sees_answer=step % 2 == 0,
                can_look=step % 2 == 1,
            )
            live.append(desk.route(arrival, now_s)[1])
        else:
            account = live.pop(rng.randrange(len(live)))
            if rng.random() < 0.8:
                served = rng.choice([None, *(one.destination for one in desk.endpoints.members)])
                desk.dispatcher.started(account, Started(200, {}, served), now_s)
                desk.dispatcher.first_body(account, now_s)
            desk.dispatcher.finished(account, complete(), now_s)
        if step % 100 == 99:
            kept = rng.sample(range(6), rng.randrange(1, 6))
            for slot, _ in desk.endpoints.replace([members(6)[number] for number in kept]).removed:
                desk.index.forget(slot)
    for account in live:
        desk.dispatcher.finished(account, Finished(Cause.ABORTED), now_s)
    assert desk.running() == 0
    assert not np.concatenate([desk.endpoints.in_flight, desk.endpoints.in_flight_tokens]).any()
    assert not desk.endpoints.picked_since_report.any()
    assert not desk.faults
