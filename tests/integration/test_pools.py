"""Several pools behind one picker and a real Envoy: the request's model finds the pool, the pool finds the server."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from bench.processes import ENVOY_CONFIGS, ROOT
from tests.integration.conftest import CHAT, Answer, Scene
from tests.integration.origin import Origin
from tests.waiting import wait_for

ROUTES = ROOT / "deploy" / "routes"
POOLS = ENVOY_CONFIGS / "pools.yaml"
NAMES = ("gemma", "gemma-next", "deepseek")


class Pools(Scene):
    """A scene whose origins, two a pool, belong to the pools of `NAMES` in order."""

    @property
    def by_pool(self) -> dict[str, list[Origin]]:
        return {name: list(self.origins[2 * number : 2 * number + 2]) for number, name in enumerate(NAMES)}

    def pool_of(self, answer: Answer) -> str:
        return next(name for name, origins in self.by_pool.items() if self.origin_of(answer) in origins)

    def received(self, pool: str) -> list[str]:
        """The models that a pool's servers were asked for."""
        return [json.loads(one.body)["model"] for origin in self.by_pool[pool] for one in origin.received]

    def start(
        self,
        routes: str,
        *args: str,
        source: Path = POOLS,
        edit: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self.eds = self.stand.directory / "eds" / "{pool}.yaml"
        endpoints = [f"--endpoint={name}={o.address}" for name, origins in self.by_pool.items() for o in origins]
        own = [arg for arg in self.picker_args() if not arg.startswith("--endpoint=")]
        pools = [f"--pool-name={name}" for name in NAMES]
        self.picker = self.stand.picker(
            [*own, *pools, *endpoints, f"--resources={ROUTES / routes}", *args], metrics=self.metrics
        )
        self.start_envoy(source, edit)

    def model(self, name: str, **headers: str) -> Answer:
        return self.ask(
            {**CHAT, "model": name}, headers={key.replace("_", "-"): value for key, value in headers.items()}
        )


@pytest.fixture
def pools(make_scene: Callable[..., Scene]) -> Pools:
    scene = make_scene(2 * len(NAMES))
    return Pools(scene.stand, scene.origins)


def test_each_model_is_answered_by_its_pool(pools: Pools) -> None:
    pools.start("split", "--body-based-routing", "--seed=3")
    assert Counter(pools.pool_of(pools.model("recommender")) for _ in range(10)) == {"deepseek": 10}
    split = Counter(pools.pool_of(pools.model("chatbot")) for _ in range(100))
    assert split.keys() == {"gemma", "gemma-next"}
    assert 2 <= split["gemma-next"] <= 25
    # Nobody said anything of this one: the first pool's servers know it or not.
    assert pools.pool_of(pools.model("unknown")) == "gemma"
    # Within the pool the pick counts: both servers had some.
    assert all(origin.received for origin in pools.by_pool["gemma"])
    assert pools.metric("epp_pool_requests_total") == 111
    assert pools.metric("llm_d_epp_request_running") == 0


def test_a_prompt_that_comes_after_its_headers_finds_its_pool_too(pools: Pools) -> None:
    """Envoy 1.40 would keep the route of the headers where the body mode is BUFFERED_PARTIAL."""
    pools.start("split", "--body-based-routing")
    for after_s in (0.0, 0.02, 0.1):
        answer = pools.ask({**CHAT, "model": "recommender"}, body_after_s=after_s)
        assert pools.pool_of(answer) == "deepseek"


def test_a_client_cannot_choose_its_pool(pools: Pools) -> None:
    pools.start("split", "--body-based-routing")
    for _ in range(5):
        answer = pools.model(
            "recommender",
            x_gateway_inference_pool="gemma",
            x_gateway_model_name="chatbot",
            x_gateway_destination_endpoint=pools.by_pool["gemma"][0].address,
        )
        assert pools.pool_of(answer) == "deepseek"
    received = [one for origin in pools.by_pool["deepseek"] for one in origin.received]
    assert {one.headers["x-gateway-model-name"] for one in received} == {"recommender"}


def test_a_route_can_name_the_pool_itself(pools: Pools) -> None:
    pools.start("split", "--body-based-routing")
    for model in ("chatbot", "unknown"):
        assert pools.pool_of(pools.model(model, host="deepseek.example.com")) == "deepseek"
    assert pools.metric('epp_pool_requests_total{name="deepseek",by="call"}') == 2


def test_what_is_mirrored_arrives_twice_and_is_answered_once(pools: Pools) -> None:
    pools.start("split", "--body-based-routing")
    answers = [pools.model("recommender") for _ in range(10)]
    assert {pools.pool_of(answer) for answer in answers} == {"deepseek"}
    wait_for(lambda: pools.received("gemma-next") == ["recommender"] * 10)
    assert pools.received("gemma") == []


def test_without_the_picker_the_first_pool_answers(pools: Pools) -> None:
    pools.start("split", "--body-based-routing")
    assert pools.pool_of(pools.model("recommender")) == "deepseek"
    assert pools.picker is not None
    pools.picker.kill()
    assert pools.pool_of(pools.model("recommender")) == "gemma"
    assert pools.pool_of(pools.model("recommender", host="deepseek.example.com")) == "deepseek"


def test_routes_are_followed_while_running(pools: Pools, tmp_path: Path) -> None:
    shutil.copy(ROUTES / "models" / "models.yaml", tmp_path / "routes.yaml")
    pools.start(str(tmp_path), "--body-based-routing")
    assert pools.pool_of(pools.model("chatbot")) == "gemma"
    text = (tmp_path / "routes.yaml").read_text()
    (tmp_path / "routes.yaml").write_text(text.replace("value: chatbot", "value: x").replace("recommender", "chatbot"))
    wait_for(lambda: pools.pool_of(pools.model("chatbot")) == "deepseek")


def forward_metadata(config: dict[str, Any]) -> None:
    """The pool by dynamic metadata, forwarded to the picker, instead of by metadata of the call."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    filters = manager["http_filters"]
    for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
        route.pop("typed_per_filter_config", None)
    picker = next(one for one in filters if one["name"] == "envoy.filters.http.ext_proc")
    picker["typed_config"]["metadata_options"]["forwarding_namespaces"] = {"untyped": ["pools"]}
    told: Mapping[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config",
        "metadata": [{"metadata_namespace": "pools", "value": {"x-gateway-inference-pool": "deepseek"}}],
    }
    filters.insert(0, {"name": "envoy.filters.http.set_metadata", "typed_config": told})


def test_dynamic_metadata_can_name_the_pool(pools: Pools) -> None:
    pools.start("split", "--body-based-routing", edit=forward_metadata)
    assert pools.pool_of(pools.model("chatbot")) == "deepseek"
    assert pools.metric('epp_pool_requests_total{name="deepseek",by="metadata"}') == 1
