"""Requests that wait for their turn, through a real Envoy: served later, refused in time, or gone with their client."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Answer, Scene
from tests.waiting import PATIENCE_S, wait_for

FLOW = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: active-request-scorer}
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: active-request-scorer}]}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
  noEndpointRequestTTL: 30s
"""
"""One request at a time for each server."""

WAITS = "llm_d_epp_flow_control_queue_size"
ENDINGS = "llm_d_epp_flow_control_requests_total"
BOTH = pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])


class Later:
    """A request in a thread of its own."""

    def __init__(self, scene: Scene, how: str = "json", **headers: str) -> None:
        self.answer: Answer | None = None
        self.begun = threading.Event()
        self._headers = {"x-answer": how, **{name.replace("_", "-"): value for name, value in headers.items()}}
        self._scene = scene
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.answer = self._scene.ask(headers=self._headers, begun=self.begun)

    def wait(self) -> Answer:
        self._thread.join(PATIENCE_S)
        assert self.answer is not None
        return self.answer


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flow") / "flow.yaml"
    path.write_text(FLOW)
    return path


@pytest.fixture(scope="module")
def scenes(make_scene: Callable[..., Scene], config: Path) -> Callable[[Path], Scene]:
    """One scene with one server for each Envoy configuration, which holds what it is told to."""
    made: dict[Path, Scene] = {}

    def scene_of(source: Path) -> Scene:
        if source not in made:
            made[source] = make_scene(1)
            made[source].start_picker(f"--config-file={config}")
            made[source].start_envoy(source)
        scene = made[source]
        scene.origins[0].hold()
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        return scene

    return scene_of


def occupied(scene: Scene) -> Later:
    """The only server has all that it may have."""
    count = len(scene.origins[0].received)
    first = Later(scene, "late")
    wait_for(lambda: len(scene.origins[0].received) == count + 1)
    return first


@BOTH
def test_a_request_waits_until_another_has_ended(scenes: Callable[[Path], Scene], source: Path) -> None:
    scene = scenes(source)
    count = len(scene.origins[0].received)
    first = occupied(scene)
    second = Later(scene)
    wait_for(lambda: scene.metric(WAITS) == 1)
    assert len(scene.origins[0].received) == count + 1
    scene.origins[0].release()
    assert first.wait().status == second.wait().status == 200
    assert json.loads(scene.origins[0].last.body) == CHAT
    assert scene.metric(WAITS) == 0


def impatient(config: dict[str, Any]) -> None:
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    ext_proc = next(f for f in manager["http_filters"] if f["name"] == "envoy.filters.http.ext_proc")
    ext_proc["typed_config"]["message_timeout"] = "2s"


def test_envoy_lets_a_request_wait_beyond_its_message_timeout(make_scene: Callable[..., Scene], config: Path) -> None:
    scene = make_scene(1)
    scene.start_picker(f"--config-file={config}")
    scene.start_envoy(LEAN, impatient)
    scene.origins[0].hold()
    first = occupied(scene)
    second = Later(scene)
    wait_for(lambda: scene.metric(WAITS) == 1)
    time.sleep(3.0)
    assert scene.metric(WAITS) == 1
    assert len(scene.origins[0].received) == 1
    scene.origins[0].release()
    assert first.wait().status == second.wait().status == 200
    assert scene.metric("llm_d_epp_request_total") == 2


@BOTH
def test_a_wait_that_is_too_long_is_a_429_that_says_when_to_return(
    scenes: Callable[[Path], Scene], source: Path
) -> None:
    scene = scenes(source)
    first = occupied(scene)
    refused = Later(scene, x_llm_d_max_queue_wait_ms="200").wait()
    assert refused.status == 429
    assert refused.headers["x-llm-d-request-dropped-reason"] == "rejected-ttl-expired"
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.json()["error"]["type"] == "rate_limit_error"
    scene.origins[0].release()
    assert first.wait().status == 200


@BOTH
def test_a_client_that_leaves_gives_up_its_place(scenes: Callable[[Path], Scene], source: Path) -> None:
    scene = scenes(source)
    first = occupied(scene)
    count = len(scene.origins[0].received)
    body = json.dumps(CHAT).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", scene.port)) as client:
        client.sendall(head.encode() + body)
        wait_for(lambda: scene.metric(WAITS) == 1)
    wait_for(lambda: scene.metric(WAITS) == 0)
    scene.origins[0].release()
    assert first.wait().status == 200
    assert len(scene.origins[0].received) == count


def test_the_official_client_comes_back_after_a_429(scenes: Callable[[Path], Scene]) -> None:
    scene = scenes(LEAN)
    first = occupied(scene)
    limits = {"x-llm-d-max-queue-wait-ms": "100"}

    def client(retries: int) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"http://127.0.0.1:{scene.port}/v1", api_key="k", max_retries=retries, timeout=PATIENCE_S
        )

    with client(0) as hasty, pytest.raises(openai.RateLimitError):
        hasty.completions.create(model="base", prompt="Say hello.", extra_headers=limits)
    threading.Timer(0.5, scene.origins[0].release).start()
    with client(5) as patient:
        patient.completions.create(model="base", prompt="Say hello.", extra_headers=limits)
    assert first.wait().status == 200


def test_a_burst_is_served_one_by_one_and_whole(scenes: Callable[[Path], Scene]) -> None:
    scene = scenes(LEAN)
    scene.origins[0].release()
    answers = [Later(scene) for _ in range(40)]
    assert [later.wait().status for later in answers] == [200] * 40
    wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
    assert scene.metric("llm_d_epp_inflight_requests") == 0
    assert scene.metric(WAITS) == 0


def test_a_pool_that_was_scaled_to_zero_wakes_up(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    scene = make_scene(1)
    listed = tmp_path / "endpoints.yaml"
    listed.write_text("endpoints: []\n")
    discovery = "dataLayer: {discovery: {pluginRef: file-discovery}}\n"
    config = tmp_path / "flow.yaml"
    plugin = f"plugins:\n- {{type: file-discovery, parameters: {{path: {listed}}}}}"
    config.write_text(discovery + FLOW.replace("plugins:", plugin, 1))
    origins, scene.origins = scene.origins, []
    scene.start_picker(f"--config-file={config}")
    scene.start_envoy(LEAN)
    waiting = Later(scene)
    wait_for(lambda: scene.metric(WAITS) == 1)
    port = origins[0].port
    listed.write_text(f"endpoints:\n- {{name: one, namespace: default, address: 127.0.0.1, port: '{port}'}}\n")
    assert waiting.wait().status == 200


def test_who_waits_while_the_picker_goes_down_is_told(make_scene: Callable[..., Scene], config: Path) -> None:
    scene = make_scene(1)
    picker = scene.start_picker(f"--config-file={config}", "--drain-timeout=10s")
    scene.start_envoy(LEAN)
    first = occupied(scene)
    second = Later(scene)
    wait_for(lambda: scene.metric(WAITS) == 1)
    picker.signal(signal.SIGTERM)
    refused = second.wait()
    assert refused.status == 503
    assert refused.headers["x-llm-d-request-dropped-reason"] == "rejected-shutting-down"
    assert refused.headers["retry-after"] == "1"
    scene.origins[0].release()
    assert first.wait().status == 200


OBJECTIVES = """
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {name: batch}
spec: {priority: -1, poolRef: {name: pool}}
"""


@pytest.fixture(scope="module")
def evicting(make_scene: Callable[..., Scene], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Scene]:
    """As `scenes`, where requests of the objective `batch` give way while they run."""
    directory = tmp_path_factory.mktemp("evicting")
    config = directory / "flow.yaml"
    config.write_text(FLOW.replace("flowControl:\n", "flowControl:\n  enableEviction: true\n"))
    objectives = directory / "objectives"
    objectives.mkdir()
    (objectives / "batch.yaml").write_text(OBJECTIVES)
    made: dict[Path, Scene] = {}

    def scene_of(source: Path) -> Scene:
        if source not in made:
            made[source] = make_scene(1)
            made[source].start_picker(f"--config-file={config}", f"--resources={objectives}", "--pool-name=pool")
            made[source].start_envoy(source)
        scene = made[source]
        scene.origins[0].hold()
        scene.origins[0].aborted.clear()
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        return scene

    return scene_of


@BOTH
@pytest.mark.parametrize("begun", [False, True], ids=["before its answer", "in its answer"])
def test_a_running_request_gives_way_to_one_above_it(
    evicting: Callable[[Path], Scene], source: Path, begun: bool
) -> None:
    scene = evicting(source)
    [origin] = scene.origins
    count = len(origin.received)
    revoked = scene.metric("llm_d_epp_flow_control_revocations_total")
    batch = Later(scene, "hold:5" if begun else "late", x_llm_d_inference_objective="batch")
    wait_for(lambda: len(origin.received) == count + 1)
    if begun:
        assert batch.begun.wait(10)
    urgent = Later(scene, "json")
    evicted = batch.wait()
    assert urgent.wait().status == 200
    assert origin.aborted.wait(10), "its server goes on with it"
    if begun:
        assert (evicted.status, evicted.cut) == (200, True)
    else:
        assert evicted.status == 429
        assert evicted.headers["x-llm-d-request-dropped-reason"] == "evicted"
        assert 1 <= int(evicted.headers["retry-after"]) <= 60
        assert evicted.json()["error"]["code"] == "evicted"
    wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
    assert scene.metric("llm_d_epp_inflight_requests") == 0
    assert scene.metric("llm_d_epp_flow_control_revocations_total") == revoked + 1
    assert len(origin.received) == count + 2
