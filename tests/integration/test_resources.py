"""Objects from a directory at work through a real Envoy, followed while it runs."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Answer, Scene
from tests.integration.test_body_modes import read_until
from tests.waiting import PATIENCE_S, wait_for

OBJECTIVE_HEADER = "x-gateway-inference-objective"

CANARY = """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModelRewrite
metadata: {name: canary}
spec:
  poolRef: {name: pool}
  rules:
  - matches: [{model: {value: food-review}}]
    targets:
    - {modelRewrite: food-review-v1, weight: 90}
    - {modelRewrite: food-review-v2, weight: 10}
"""

CROWDED = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker}
# In no profile: there it would be a filter too, and turn everybody away.
- {type: concurrency-detector, parameters: {maxConcurrency: 1}}
saturationDetector: {pluginRef: concurrency-detector}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: max-score-picker}]}
"""


def objective(name: str, priority: int) -> str:
    return f"""---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceObjective
metadata: {{name: {name}}}
spec: {{priority: {priority}, poolRef: {{name: pool}}}}
"""


def model(name: str, target: str) -> str:
    return f"""---
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {{name: {name}}}
spec: {{modelName: {name}, criticality: Critical, poolRef: {{name: pool}}, targetModels: [{{name: {target}}}]}}
"""


def ruled(make_scene: Callable[..., Scene], directory: Path, source: Path, *args: str, origins: int = 1) -> Scene:
    scene = make_scene(origins)
    scene.start_picker(f"--resources={directory}", "--pool-name=pool", *args)
    scene.start_envoy(source)
    return scene


def asked_for(scene: Scene) -> list[str]:
    """The models that the servers were asked for, in order, of one server."""
    (origin,) = scene.origins
    return [json.loads(request.body)["model"] for request in origin.received]


@pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def test_a_split_is_the_same_for_the_same_seed(make_scene: Callable[..., Scene], tmp_path: Path, source: Path) -> None:
    (tmp_path / "canary.yaml").write_text(CANARY)
    runs: list[list[str]] = []
    for _ in range(2):
        scene = ruled(make_scene, tmp_path, source, "--seed=3")
        answers = [scene.ask({**CHAT, "model": "food-review"}) for _ in range(60)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.json()["model"] for answer in answers} == {"food-review"}
        runs.append(asked_for(scene))
    assert runs[0] == runs[1]
    shares = Counter(runs[0])
    assert shares.keys() == {"food-review-v1", "food-review-v2"}
    assert shares["food-review-v1"] >= 45
    assert scene.metric("inference_extension_model_rewrite_decisions_total") == 60
    scene.ask(headers={"x-gateway-model-name-rewrite": "by-header"})
    assert asked_for(scene)[-1] == "by-header"


def held(scene: Scene) -> socket.socket:
    """A request whose answer has begun and does not end until the origins are told."""
    client = socket.create_connection(("127.0.0.1", scene.port), timeout=PATIENCE_S)
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-answer: hold:2\r\ncontent-length: {len(body)}\r\n"
    client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    read_until(client, b"token ")
    return client


@pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def test_only_what_may_be_shed_is_shed(make_scene: Callable[..., Scene], tmp_path: Path, source: Path) -> None:
    (tmp_path / "objectives.yaml").write_text(objective("batch", -1) + objective("gold", 10))
    scene = ruled(make_scene, tmp_path, source, f"--config-text={CROWDED}", origins=2)

    def ask(name: str) -> Answer:
        return scene.ask(headers={OBJECTIVE_HEADER: name})

    assert ask("batch").status == 200
    assert OBJECTIVE_HEADER not in next(o for o in scene.origins if o.received).last.headers
    wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
    with held(scene) as one, held(scene) as other:
        shed = ask("batch")
        assert shed.status == 429
        assert shed.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"
        assert shed.json()["error"]["type"] == "rate_limit_error"
        assert [ask(name).status for name in ("gold", "unknown")] == [200, 200]
        for origin in scene.origins:
            origin.release()
        for client in (one, other):
            read_until(client, b"[DONE]")
    wait_for(lambda: ask("batch").status == 200)


def test_unknown_models_are_told_which_there_are_until_they_are_known(
    make_scene: Callable[..., Scene], tmp_path: Path
) -> None:
    (tmp_path / "models.yaml").write_text(model("chat", "llama") + "---\nkind: Nonsense\napiVersion: v1\n")
    scene = ruled(make_scene, tmp_path, LEAN)
    answer = scene.ask()
    assert answer.status == 404
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "model_not_found", "model")
    assert error["message"] == "The model 'base' does not exist here. Known models: chat."
    assert scene.ask({**CHAT, "model": "chat"}).json()["model"] == "chat"
    assert asked_for(scene) == ["llama"]
    (tmp_path / "models.yaml").write_text(model("base", "qwen") + "---\nkind: [")
    wait_for(lambda: scene.ask().status == 200)
    assert asked_for(scene)[-1] == "qwen"
    assert scene.ask({**CHAT, "model": "chat"}).status == 200, "a file that is broken in part keeps what it said"
    (tmp_path / "models.yaml").unlink()
    wait_for(lambda: scene.ask({**CHAT, "model": "anything"}).status == 200)
    assert asked_for(scene)[-1] == "anything"
