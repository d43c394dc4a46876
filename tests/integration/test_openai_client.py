"""What the official `openai` client makes of us, through a real Envoy: errors by class, retries, streams, rate headers."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.integration.conftest import FULL_DUPLEX, LEAN, Scene
from tests.waiting import PATIENCE_S, wait_for

# A thousand tokens that do not come back while a test runs; requests to one model that come back every four seconds.
QUOTA = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker}
- type: quota
  parameters:
    tenant: api-key
    limits:
    - {tokensPerMinute: 1, burstSeconds: 60000}
    - {model: few, requestsPerMinute: 15, burstSeconds: 4}
"""

NO_ENDPOINTS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
dataLayer:
  discovery: {{pluginRef: file-discovery}}
plugins:
- {{type: max-score-picker}}
- {{type: file-discovery, parameters: {{path: {path}}}}}
"""

MODELS = """
apiVersion: inference.networking.x-k8s.io/v1alpha2
kind: InferenceModel
metadata: {name: base}
spec: {modelName: base, criticality: Standard, poolRef: {name: pool}}
"""

HELLO: list[Any] = [{"role": "user", "content": "Say hello."}]
BOTH = pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])


def client(scene: Scene, key: str, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"http://127.0.0.1:{scene.port}/v1", api_key=key, max_retries=retries, timeout=PATIENCE_S
    )


def error_of(raised: openai.APIStatusError) -> tuple[str | None, str | None, str | None]:
    """Type, code and param as the client read them from the body."""
    return raised.type, raised.code, raised.param


def quotas(scene: Scene) -> list[dict[str, Any]]:
    connection = http.client.HTTPConnection("127.0.0.1", scene.metrics, timeout=PATIENCE_S)
    connection.request("GET", "/debug/quotas")
    rows: list[dict[str, Any]] = json.loads(connection.getresponse().read())
    connection.close()
    return rows


@pytest.fixture(scope="module")
def limited(make_scene: Callable[..., Scene], tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Scene]:
    """One scene with a quota for each Envoy configuration."""
    config = tmp_path_factory.mktemp("quota") / "quota.yaml"
    config.write_text(QUOTA)
    made: dict[Path, Scene] = {}

    def scene_of(source: Path) -> Scene:
        if source not in made:
            made[source] = make_scene(2)
            made[source].start_picker(f"--config-file={config}")
            made[source].start_envoy(source)
        return made[source]

    return scene_of


@BOTH
class TestQuota:
    def test_beyond_it_is_a_rate_limit_error(self, limited: Callable[[Path], Scene], source: Path) -> None:
        scene = limited(source)
        with client(scene, "sk-tokens") as openai_client:
            long = {"x-answer": "sse:1500"}
            for _ in openai_client.chat.completions.create(
                model="base", messages=HELLO, stream=True, extra_headers=long
            ):
                pass
            # The server counted 11 and 1500.
            wait_for(lambda: any(row["remaining"] < -500 for row in quotas(scene)))
            with pytest.raises(openai.RateLimitError) as caught:
                openai_client.chat.completions.create(model="base", messages=HELLO)
        raised = caught.value
        assert error_of(raised) == ("rate_limit_error", "rate_limit_exceeded", None)
        assert "tokens a minute" in raised.message and "send a shorter prompt" in raised.message
        headers = raised.response.headers
        assert headers["x-llm-d-request-dropped-reason"] == "rejected-over-quota"
        assert headers["x-ratelimit-limit-tokens"] == "1000"
        assert headers["content-type"] == "application/json"
        assert int(headers["retry-after"]) >= 60

    def test_its_retry_comes_when_told_and_is_served(self, limited: Callable[[Path], Scene], source: Path) -> None:
        scene = limited(source)
        with client(scene, "sk-retry", retries=2) as openai_client:
            openai_client.chat.completions.create(model="few", messages=HELLO, max_tokens=1)
            before = scene.metric("epp_refusals_total")
            answer = openai_client.chat.completions.create(model="few", messages=HELLO, max_tokens=1)
        assert answer.usage is not None and answer.usage.total_tokens == 18
        # By its own backoff of half a second the client would have been refused again, at a request every four seconds.
        assert scene.metric("epp_refusals_total") == before + 1

    def test_an_answer_says_what_is_left_and_usage_settles_it(
        self, limited: Callable[[Path], Scene], source: Path
    ) -> None:
        scene = limited(source)
        with client(scene, "sk-headers") as openai_client:
            raw = openai_client.chat.completions.with_raw_response.create(model="base", messages=HELLO, max_tokens=300)
            headers = raw.headers
            assert headers["x-ratelimit-limit-tokens"] == "1000"
            # What the answer is taken for, whatever more the client allows, and a few for the prompt.
            assert 1000 - 256 - 20 <= int(headers["x-ratelimit-remaining-tokens"]) < 1000 - 256
            assert "h" in headers["x-ratelimit-reset-tokens"]
            # The server counted 18.
            wait_for(lambda: any(row["remaining"] == pytest.approx(982, abs=0.5) for row in quotas(scene)))

    def test_a_stream_is_whole_and_counted(self, limited: Callable[[Path], Scene], source: Path) -> None:
        scene = limited(source)
        with client(scene, "sk-stream") as openai_client:
            stream = openai_client.chat.completions.create(
                model="base", messages=HELLO, max_tokens=300, stream=True, extra_headers={"x-answer": "sse:100"}
            )
            chunks = list(stream)
        assert sum(len(chunk.choices) for chunk in chunks) == 100
        assert chunks[-1].usage is not None and chunks[-1].usage.completion_tokens == 100
        assert "x-ratelimit-remaining-tokens" in stream.response.headers
        # The server counted 11 and 100.
        wait_for(lambda: any(row["remaining"] == pytest.approx(889, abs=0.5) for row in quotas(scene)))

    def test_no_key_is_told_or_logged(self, limited: Callable[[Path], Scene], source: Path) -> None:
        scene = limited(source)
        with client(scene, "sk-very-secret") as openai_client:
            openai_client.chat.completions.create(model="base", messages=HELLO, max_tokens=1)
        assert scene.picker is not None
        seen = json.dumps(quotas(scene)) + scene.picker.output(10_000)
        assert quotas(scene) and "secret" not in seen

    def test_what_cannot_be_understood_is_a_bad_request_error(
        self, limited: Callable[[Path], Scene], source: Path
    ) -> None:
        with (
            client(limited(source), "sk-bad", retries=2) as openai_client,
            pytest.raises(openai.BadRequestError) as caught,
        ):
            openai_client.chat.completions.create(model="", messages=HELLO)
        assert error_of(caught.value) == ("invalid_request_error", "bad_request", None)
        assert "model" in caught.value.message


@BOTH
def test_an_unknown_model_is_a_not_found_error(make_scene: Callable[..., Scene], tmp_path: Path, source: Path) -> None:
    (tmp_path / "models.yaml").write_text(MODELS)
    scene = make_scene(1)
    scene.start_picker(f"--resources={tmp_path}", "--pool-name=pool")
    scene.start_envoy(source)
    with client(scene, "sk", retries=2) as openai_client:
        assert openai_client.chat.completions.create(model="base", messages=HELLO).model == "base"
        with pytest.raises(openai.NotFoundError) as caught:
            openai_client.chat.completions.create(model="nobody", messages=HELLO)
    assert error_of(caught.value) == ("invalid_request_error", "model_not_found", "model")
    assert "nobody" in caught.value.message and "base" in caught.value.message
    assert scene.metric("epp_refusals_total") == 1


@BOTH
def test_an_empty_pool_is_a_server_error_that_a_retry_outlives(
    make_scene: Callable[..., Scene], tmp_path: Path, source: Path
) -> None:
    endpoints = tmp_path / "endpoints.yaml"
    endpoints.write_text("endpoints: []\n")
    config = tmp_path / "config.yaml"
    config.write_text(NO_ENDPOINTS.format(path=endpoints))
    scene = make_scene(1)
    (origin,) = scene.origins
    scene.origins = []
    scene.start_picker(f"--config-file={config}")
    scene.start_envoy(source)
    with client(scene, "sk", retries=0) as openai_client:
        with pytest.raises(openai.InternalServerError) as caught:
            openai_client.chat.completions.create(model="base", messages=HELLO)
        assert caught.value.status_code == 503
        assert error_of(caught.value) == ("service_unavailable_error", "rejected_no_endpoints", None)
        assert caught.value.response.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 3
        host, _, port = origin.address.partition(":")
        endpoints.write_text(f"endpoints: [{{name: a, address: {host}, port: '{port}'}}]\n")
        patient = openai_client.with_options(max_retries=8)
        assert patient.chat.completions.create(model="base", messages=HELLO).model == "base"
