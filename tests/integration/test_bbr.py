"""A body-based router and the picker behind one real Envoy, as gateways wire them, and the cases of the concepts document.

Chatbot and recommender: two models, two pools. English-bot and spanish-bot: two adapters of one base model, one pool.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.processes import ENVOY_CONFIGS, Process, answers, free_port
from tests.integration.conftest import CHAT, Answer, Scene
from tests.integration.origin import Origin
from tests.integration.test_pools import ROUTES
from tests.waiting import wait_for

BBR = ENVOY_CONFIGS / "bbr.yaml"
NAMES = ("gemma", "gemma-next", "deepseek", "llm-base")


class Routed(Scene):
    """A scene with a router in front of the picker; two origins for each pool of `NAMES`, in order."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.router_grpc, self.router_health, self.router_metrics = free_port(), free_port(), free_port()
        self.router: Process | None = None
        self.eds = self.stand.directory / "eds" / "{pool}.yaml"

    @property
    def by_pool(self) -> dict[str, list[Origin]]:
        return {name: list(self.origins[2 * number : 2 * number + 2]) for number, name in enumerate(NAMES)}

    def pool_of(self, answer: Answer) -> str:
        return next(name for name, origins in self.by_pool.items() if self.origin_of(answer) in origins)

    def start(self, *router_args: str, edit: Callable[[dict[str, Any]], None] | None = None) -> None:
        own = [arg for arg in self.picker_args() if not arg.startswith("--endpoint=")]
        pools = [f"--pool-name={name}" for name in NAMES]
        endpoints = [f"--endpoint={name}={o.address}" for name, origins in self.by_pool.items() for o in origins]
        self.picker = self.stand.picker([*own, *pools, *endpoints], metrics=self.metrics)
        self.start_router(*router_args)
        self.start_envoy(BBR, lambda config: self._wire(config, edit))

    def start_router(self, *args: str) -> None:
        argv = [
            "--host=127.0.0.1",
            f"--grpc-port={self.router_grpc}",
            f"--grpc-health-port={self.router_health}",
            f"--metrics-port={self.router_metrics}",
            f"--resources={ROUTES / 'adapters'}",
            "--secure-serving=false",
            "--metrics-endpoint-auth=false",
        ]
        self.router = self.stand.start("bbr", [sys.executable, "-m", "epp", "bbr", *argv, *args])
        self.router.wait_until(lambda: answers(f"http://127.0.0.1:{self.router_metrics}/readyz"), 20.0)

    def model(self, name: str, **more: object) -> Answer:
        return self.ask({**CHAT, "model": name, **more})

    def astray(self) -> int:
        """Requests that came to a server of another pool than the one whose server was picked."""
        pool = {origin.address: name for name, origins in self.by_pool.items() for origin in origins}
        return sum(
            pool[one.headers["x-gateway-destination-endpoint"]] != pool[origin.address]
            for origin in self.origins
            for one in origin.received
        )

    def counted(self, name: str) -> float:
        """A metric of the router."""
        metrics, self.metrics = self.metrics, self.router_metrics
        try:
            return self.metric(name)
        finally:
            self.metrics = metrics

    def _wire(self, config: dict[str, Any], edit: Callable[[dict[str, Any]], None] | None) -> None:
        cluster = next(one for one in config["static_resources"]["clusters"] if one["name"] == "bbr")
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"]["socket_address"]["port_value"] = self.router_grpc
        if edit is not None:
            edit(config)


def full_duplex(config: dict[str, Any]) -> None:
    """The router as gateways that follow its documents wire it: every byte is echoed."""
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    mode = next(one for one in manager["http_filters"] if one["name"] == "bbr")["typed_config"]["processing_mode"]
    mode.update(request_body_mode="FULL_DUPLEX_STREAMED", request_trailer_mode="SEND")


@pytest.fixture
def routed(make_scene: Callable[..., Scene]) -> Routed:
    scene = make_scene(2 * len(NAMES))
    return Routed(scene.stand, scene.origins)


MODES = pytest.mark.parametrize("edit", [None, full_duplex], ids=["buffered", "full duplex"])


@MODES
def test_chatbot_and_recommender_have_pools_of_their_own(
    routed: Routed, edit: Callable[[dict[str, Any]], None] | None
) -> None:
    routed.start(edit=edit)
    split = Counter(routed.pool_of(routed.model("chatbot")) for _ in range(100))
    assert split.keys() == {"gemma", "gemma-next"}
    assert 2 <= split["gemma-next"] <= 25
    assert routed.astray() == 0
    for name in ("gemma", "gemma-next"):
        assert routed.metric(f'epp_pool_requests_total{{name="{name}",by="call"}}') == split[name]
    assert Counter(routed.pool_of(routed.model("recommender")) for _ in range(10)) == {"deepseek": 10}
    # Mirrored as well, and answered once.
    mirror = routed.by_pool["gemma-next"]
    wait_for(lambda: sum(len(origin.received) for origin in mirror) == split["gemma-next"] + 10)
    assert routed.counted("bbr_success_total") == 110


@MODES
def test_english_bot_and_spanish_bot_share_a_base_model(
    routed: Routed, edit: Callable[[dict[str, Any]], None] | None
) -> None:
    routed.start(edit=edit)
    for model in ("english-bot", "spanish-bot", "llm-base"):
        answer = routed.model(model)
        assert routed.pool_of(answer) == "llm-base"
        assert answer.json()["model"] == model
        headers = routed.origin_of(answer).last.headers
        assert headers["x-gateway-model-name"] == model
        assert headers["x-gateway-base-model-name"] == "llm-base"
    answer = routed.model("french-bot")
    assert routed.pool_of(answer) == "gemma"
    assert routed.origin_of(answer).last.headers["x-gateway-base-model-name"] == ""


@MODES
def test_a_prompt_that_comes_after_its_headers_finds_its_pool_too(
    routed: Routed, edit: Callable[[dict[str, Any]], None] | None
) -> None:
    routed.start(edit=edit)
    for after_s in (0.0, 0.02, 0.1):
        answer = routed.ask({**CHAT, "model": "english-bot"}, body_after_s=after_s)
        assert routed.pool_of(answer) == "llm-base"
    assert routed.astray() == 0


@MODES
def test_not_a_byte_of_a_body_changes(routed: Routed, edit: Callable[[dict[str, Any]], None] | None) -> None:
    routed.start(edit=edit)
    odd = b' { "stop" :null,"temperature":"0", "n": 1.0e0 ,"model":"recommender","prompt":"\\u00e9\xc3\xa9\\/"}\n\n'
    long = json.dumps({"model": "recommender", "prompt": "x" * 300_000}).encode()
    for body in (odd, long):
        answer = routed.ask(body, path="/v1/completions")
        assert routed.pool_of(answer) == "deepseek"
        assert routed.origin_of(answer).last.body == body


@MODES
def test_bad_json_is_a_bad_request(routed: Routed, edit: Callable[[dict[str, Any]], None] | None) -> None:
    routed.start(edit=edit)
    answer = routed.ask(b'{"model": "recommender"')
    assert answer.status == 400
    assert answer.json()["error"]["message"].startswith("Failed to parse request body")
    assert routed.counted('epp_refusals_total{reason="bad-request",status="400"}') == 1
    assert not any(origin.received for origin in routed.origins)


def test_a_client_cannot_say_its_model_by_header(routed: Routed) -> None:
    routed.start()
    answer = routed.ask({**CHAT, "model": "recommender"}, headers={"x-gateway-model-name": "chatbot"})
    assert routed.pool_of(answer) == "deepseek"


def test_without_the_router_requests_go_by_the_last_route(routed: Routed) -> None:
    routed.start()
    assert routed.pool_of(routed.model("recommender")) == "deepseek"
    assert routed.router is not None
    routed.router.kill()
    assert routed.pool_of(routed.model("recommender")) == "gemma"


def test_a_stream_passes_whole(routed: Routed) -> None:
    routed.start()
    answer = routed.ask({**CHAT, "model": "recommender", "stream": True}, headers={"x-answer": "sse:5"})
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert not answer.cut


def test_adapters_are_followed_while_it_runs(routed: Routed, tmp_path: Path) -> None:
    text = (ROUTES / "adapters" / "adapters.yaml").read_text()
    (tmp_path / "adapters.yaml").write_text(text)
    routed.start(f"--resources={tmp_path}")
    assert routed.pool_of(routed.model("french-bot")) == "gemma"
    (tmp_path / "adapters.yaml").write_text(text.replace("- spanish-bot", "- french-bot"))
    wait_for(lambda: routed.pool_of(routed.model("french-bot")) == "llm-base")
    assert routed.pool_of(routed.model("spanish-bot")) == "gemma"


@MODES
@pytest.mark.parametrize(
    "model", ["m" * 100_000, "\u00e9" * 4096, " gemma ", "\u2028"], ids=["long", "foreign", "spaces", "line"]
)
def test_no_name_of_a_model_makes_envoy_fail(
    routed: Routed, model: str, edit: Callable[[dict[str, Any]], None] | None
) -> None:
    routed.start(edit=edit)
    assert routed.model(model).status == 200
