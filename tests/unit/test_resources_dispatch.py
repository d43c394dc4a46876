"""Objects at work on requests: priorities, models, and who is turned away, through the real dispatcher."""

from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from epp.dispatcher import CONTROL_HEADERS, OBJECTIVE_HEADERS, Dispatcher, Policy
from epp.drops import Reason
from epp.endpoint import Report
from epp.observe.logs import PickLog
from epp.pressure import Step
from epp.resources.objects import Resource, Rule, Target
from epp.resources.rules import Rules
from epp.resources.store import Source, Store
from tests.unit.test_dispatcher import NOW_S, Desk, chat
from tests.unit.test_resources_store import HERE_ONLY, model, objective, rewrite

SERVED = "x-gateway-model-name-rewrite"
CROWDED = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker}
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
saturationDetector: {pluginRef: concurrency-detector}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: max-score-picker}]}
"""


class RuledDesk(Desk):
    """A desk whose dispatcher goes by `objects`."""

    def __init__(self, *objects: Resource, seed: int = 1, config: str = "") -> None:
        super().__init__(2, seed=seed, config=config)
        self.store = Store(HERE_ONLY, "default")
        self.store.replace(Source.DIRECTORY, objects)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=self.pipeline,
            ledger=self.ledger,
            index=self.index,
            metrics=self.metrics,
            estimator=self.estimator,
            policy=Policy(look_share=0.0),
            rng=random.Random(seed),
            timer=self._timer,
            faults=lambda kind, error: self.faults.append((kind, error)),
            picks=PickLog(),
            pressure=self.pressure,
            resources=self.store.of("pool"),
        )

    def ask(self, asked: str = "base", **headers: str) -> tuple[str, str, int]:
        """The model in the body that goes on, the client's, and the priority."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        steer, account = self.route(chat(model=asked, headers=named))
        body = steer.body if steer.body is not None else chat(model=asked).body
        served = json.loads(body)["model"]
        assert account.request.target_model == served
        assert steer.turn_back == ((served, asked) if served != asked else None)
        return served, account.request.model, account.request.priority

    def report(self, now_s: float = NOW_S, **fields: float) -> None:
        for slot in self.endpoints.slots.tolist():
            self.endpoints.report(slot, Report(**fields), now_s)  # type: ignore[arg-type]


def test_a_bug_in_the_rules_costs_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = RuledDesk(objective("gold", 10))

    def broken(*args: object) -> int:
        raise RuntimeError("planted")

    monkeypatch.setattr(Rules, "priority", broken)
    assert desk.ask(x_llm_d_inference_objective="gold") == ("base", "base", 0)
    assert {kind for kind, _ in desk.faults} == {"read"}


class TestPriority:
    @pytest.mark.parametrize("header", OBJECTIVE_HEADERS)
    def test_either_header_names_an_objective(self, header: str) -> None:
        desk = RuledDesk(objective("gold", 10))
        steer, account = desk.route(chat(headers={header: "gold"}))
        assert account.request.priority == 10
        assert header in CONTROL_HEADERS
        assert steer.remove_headers == (header,)
        assert [key[2] for key in desk.metrics.series] == [10]

    def test_unknown_or_absent_is_0(self) -> None:
        desk = RuledDesk(objective("gold", 10))
        assert desk.ask()[2] == 0
        assert desk.ask(x_gateway_inference_objective="silver")[2] == 0

    def test_tenants_are_told_apart_by_their_id_or_else_by_a_known_objective(self) -> None:
        desk = RuledDesk(objective("gold", 10))

        def tenant(**headers: str) -> str:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return desk.route(chat(headers=named))[1].request.fairness_id

        assert tenant(x_llm_d_inference_fairness_id="a", x_llm_d_inference_objective="gold") == "a"
        assert tenant(x_llm_d_inference_objective="gold") == "gold"
        assert tenant(x_llm_d_inference_objective="invented") == "default-flow"
        assert Desk().route(chat(headers={OBJECTIVE_HEADERS[0]: "gold"}))[1].request.fairness_id == "default-flow"

    def test_without_objects_a_header_means_nothing(self) -> None:
        _, account = Desk().route(chat(headers={OBJECTIVE_HEADERS[0]: "gold"}))
        assert account.request.priority == 0

    def test_objects_that_change_count_from_the_next_request_on(self) -> None:
        desk = RuledDesk(objective("gold", 10))
        desk.store.replace(Source.DIRECTORY, [objective("gold", 3)])
        assert desk.ask(x_gateway_inference_objective="gold")[2] == 3


class TestModels:
    def test_an_object_goes_before_the_header_and_the_header_before_the_body(self) -> None:
        desk = RuledDesk(rewrite("r", Rule(("food",), (Target("food-v1"),))))
        assert desk.ask("food") == ("food-v1", "food", 0)
        assert desk.ask("food", **{SERVED: "by-header"})[0] == "food-v1"
        assert desk.ask("other", **{SERVED: "by-header"})[0] == "by-header"
        assert desk.ask("other")[0] == "other"

    def test_the_header_does_not_choose_the_rule(self) -> None:
        desk = RuledDesk(rewrite("r", Rule(("food",), (Target("food-v1"),))))
        assert desk.ask("other", **{SERVED: "food"})[0] == "food"

    def test_every_decision_is_counted(self) -> None:
        desk = RuledDesk(rewrite("canary", Rule(("food",), (Target("v1", 90), Target("v2", 10), Target("food", 5)))))
        served = Counter(desk.ask("food")[0] for _ in range(60))
        desk.ask("other")
        assert {("canary", "food", name): count for name, count in served.items()} == desk.metrics.rewrites
        assert served["v1"] > 40

    def test_draws_hang_on_the_seed_and_on_nothing_else(self) -> None:
        objects = rewrite("canary", Rule(("food",), (Target("v1", 1), Target("v2", 1))))
        one, other = RuledDesk(objects, seed=5), RuledDesk(objects, seed=5)
        mine = [one.ask("food", x_request_id=str(number))[0] for number in range(40)]
        theirs = [(other.ask("other"), other.ask("food"))[1][0] for _ in range(40)]
        assert mine == theirs
        assert mine != [RuledDesk(objects, seed=6).ask("food")[0] for _ in range(1)] * 40

    def test_the_prefix_is_that_of_the_model_that_serves(self) -> None:
        desk = RuledDesk(rewrite("r", Rule(("food",), (Target("v1"),))))
        _, through = desk.route(chat(model="food"))
        _, direct = desk.route(chat(model="v1"))
        assert through.request.fingerprints.tolist() == direct.request.fingerprints.tolist()

    def test_what_names_no_model_is_let_be(self) -> None:
        desk = RuledDesk(rewrite("r", Rule((), (Target("v1"),))), model("a"))
        steer, account = desk.route(chat(has_body=False, can_rewrite=False, body=b""))
        assert (steer.body, account.request.target_model) == (None, "")
        assert not desk.metrics.rewrites

    def test_models_of_the_old_api(self) -> None:
        desk = RuledDesk(model("chat", Target("llama"), priority=1), model("plain", priority=-1))
        assert desk.ask("chat") == ("llama", "chat", 1)
        assert desk.ask("plain") == ("plain", "plain", -1)
        assert desk.ask("plain", **{SERVED: "by-header"})[0] == "by-header"
        assert desk.ask("chat", **{SERVED: "by-header"})[0] == "llama"

    def test_a_model_that_nobody_knows_is_404(self) -> None:
        desk = RuledDesk(model("chat"), model("code"))
        drop = desk.refusal(chat(model="chta"))
        assert (drop.reason, drop.status) == (Reason.NOT_FOUND, 404)
        assert "Known models: chat, code." in drop.message
        assert json.loads(drop.body())["error"]["code"] == "model_not_found"
        assert desk.errors() == {"NotFound": 1}
        assert desk.in_flight() == {"10.0.0.1:8000": 0, "10.0.0.2:8000": 0}
        assert [key[0] for key in desk.metrics.series] == [""]


class TestShedding:
    """Without flow control."""

    def full(self) -> RuledDesk:
        desk = RuledDesk(objective("batch", -1), objective("normal", 0))
        desk.report(waiting=5.0, kv_usage=0.1)
        return desk

    def test_below_0_is_shed_when_all_are_full(self) -> None:
        drop = self.full().refusal(chat(headers={OBJECTIVE_HEADERS[0]: "batch"}))
        assert (drop.reason, drop.status) == (Reason.SATURATED, 429)
        assert "saturated" in drop.message

    @pytest.mark.parametrize("name", ["normal", "unknown"])
    def test_others_pass(self, name: str) -> None:
        self.full().ask(x_gateway_inference_objective=name)

    def test_below_0_passes_where_there_is_room(self) -> None:
        desk = RuledDesk(objective("batch", -1))
        desk.report(waiting=4.0, kv_usage=0.1)
        assert desk.ask(x_gateway_inference_objective="batch")[2] == -1

    def test_nothing_known_is_not_full(self) -> None:
        assert RuledDesk(objective("batch", -1)).ask(x_gateway_inference_objective="batch")[2] == -1

    def test_what_was_known_long_ago_is_not_full(self) -> None:
        desk = RuledDesk(objective("batch", -1))
        desk.report(NOW_S - 60.0, waiting=500.0, kv_usage=1.0)
        assert desk.ask(x_gateway_inference_objective="batch")[2] == -1

    def test_only_those_count_that_the_gateway_allows(self) -> None:
        desk = RuledDesk(objective("batch", -1))
        desk.report(waiting=50.0, kv_usage=0.1)
        desk.endpoints.report(desk.slot(1), Report(waiting=0.0, kv_usage=0.0), NOW_S)
        batch = {OBJECTIVE_HEADERS[0]: "batch"}
        desk.route(chat(headers=batch, subset=("10.0.0.2:8000",)))
        assert desk.refusal(chat(headers=batch, subset=("10.0.0.1:8000",))).reason is Reason.SATURATED

    def test_by_the_detector_that_is_configured(self) -> None:
        desk = RuledDesk(objective("batch", -1), config=CROWDED)
        batch = chat(headers={OBJECTIVE_HEADERS[0]: "batch"})
        for _ in range(2):
            desk.route(batch)
        assert desk.refusal(batch).reason is Reason.SATURATED
        desk.ask()

    def test_also_while_picks_are_random(self) -> None:
        desk = self.full()
        desk.pressure.step = Step.RANDOM
        assert desk.refusal(chat(headers={OBJECTIVE_HEADERS[0]: "batch"})).reason is Reason.SATURATED

    def test_an_empty_pool_is_503(self) -> None:
        desk = self.full()
        desk.endpoints.replace([])
        assert desk.refusal(chat(headers={OBJECTIVE_HEADERS[0]: "batch"})).status == 503
