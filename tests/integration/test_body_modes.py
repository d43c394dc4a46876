"""A real Envoy in every body mode: what the client sent arrives, what the server answered arrives, and we saw the end."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Scene
from tests.waiting import PATIENCE_S, wait_for

MODES: dict[str, tuple[Path, str, str, str]] = {
    "lean": (LEAN, "BUFFERED_PARTIAL", "NONE", "SEND"),
    "lean without trailers": (LEAN, "BUFFERED_PARTIAL", "NONE", "SKIP"),
    "buffered": (LEAN, "BUFFERED", "BUFFERED", "SEND"),
    "buffered request only": (LEAN, "BUFFERED", "NONE", "SEND"),
    "streamed": (LEAN, "STREAMED", "STREAMED", "SEND"),
    "headers only": (LEAN, "NONE", "NONE", "SEND"),
    "full duplex": (FULL_DUPLEX, "FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED", "SEND"),
    "full duplex request only": (FULL_DUPLEX, "FULL_DUPLEX_STREAMED", "NONE", "SEND"),
}
READS_BODY = [name for name in MODES if name not in {"headers only", "streamed"}]
SHOWS_ANSWER = ["buffered", "streamed", "full duplex"]


def with_modes(request: str, response: str, trailers: str) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        # Request trailers over HTTP/1.1 are dropped unless asked for.
        manager["http_protocol_options"] = {"enable_trailers": True}
        for cluster in config["static_resources"]["clusters"]:
            if cluster["name"] == "servers":
                cluster["typed_extension_protocol_options"] = {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http_protocol_options": {"enable_trailers": True}},
                    }
                }
        ext_proc = next(f for f in manager["http_filters"] if f["name"] == "envoy.filters.http.ext_proc")
        modes = ext_proc["typed_config"]["processing_mode"]
        modes.update(request_body_mode=request, response_body_mode=response, response_trailer_mode=trailers)
        if request in {"STREAMED", "BUFFERED_PARTIAL"}:
            # With a retry policy Envoy passes on twice some bodies of the first (envoyproxy/envoy issue 36119), and of the second
            # nearly every one that trailers follow.
            for host in manager["route_config"]["virtual_hosts"]:
                host.pop("retry_policy", None)
                for route in host["routes"]:
                    route.get("route", {}).pop("retry_policy", None)

    return edit


@pytest.fixture(scope="module", params=["http2", "grpc.aio"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def scenes(transport: str, make_scene: Callable[..., Scene]) -> Callable[[str], Scene]:
    """One running scene for each mode, started when first asked for."""
    running: dict[str, Scene] = {}

    def scene(mode: str) -> Scene:
        if mode not in running:
            source, request, response, trailers = MODES[mode]
            running[mode] = made = make_scene(3)
            made.start_picker(f"--transport={transport}", "--look-share=0")
            made.start_envoy(source, with_modes(request, response, trailers))
        return running[mode]

    return scene


@pytest.mark.parametrize("mode", MODES)
class TestEveryMode:
    def test_a_json_answer_comes_whole_from_the_picked_server(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        answer = scene.ask()
        assert answer.status == 200
        body = json.dumps(CHAT).encode()
        assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()
        received = scene.origin_of(answer).last
        assert received.body == body
        assert received.headers["x-gateway-destination-endpoint"].split(",")[0] == scene.origin_of(answer).address

    def test_an_event_stream_comes_whole(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        answer = scene.ask({**CHAT, "stream": True}, headers={"x-answer": "sse:200"})
        assert answer.status == 200
        assert answer.body.count(b"data: ") == 202
        assert answer.body.endswith(b"data: [DONE]\n\n")

    def test_a_megabyte_passes_byte_for_byte(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        chat = {"model": "base", "messages": [{"role": "user", "content": "lorem ipsum " * 90_000}]}
        body = json.dumps(chat).encode()
        answer = scene.ask(body)
        assert answer.status == 200
        assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()

    def test_a_request_without_body_is_answered(self, scenes: Callable[[str], Scene], mode: str) -> None:
        assert scenes(mode).ask(None, method="GET", path="/v1/models").status == 200

    def test_response_trailers_pass(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        with socket.create_connection(("127.0.0.1", scene.port), timeout=PATIENCE_S) as client:
            body = json.dumps(CHAT).encode()
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-answer: trailers\r\ncontent-type: application/json\r\n"
            head += f"te: trailers\r\ncontent-length: {len(body)}\r\n\r\n"
            client.sendall(head.encode() + body)
            answer = read_until(client, b"x-checksum: abc\r\n\r\n")
        assert b"HTTP/1.1 200" in answer

    def test_request_trailers_end_a_body(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        body = json.dumps(CHAT | {"user": "with trailers"}).encode()
        with socket.create_connection(("127.0.0.1", scene.port), timeout=PATIENCE_S) as client:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            client.sendall(f"{head}transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n".encode())
            client.sendall(b"%x\r\n%s\r\n0\r\nx-sum: 1\r\n\r\n" % (len(body), body))
            answer = read_until(client, b"}}")
        assert b"HTTP/1.1 200" in answer
        assert body in [got.body for origin in scene.origins for got in origin.received]

    def test_nothing_stays_in_flight(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        for _ in range(3):
            assert scene.ask().status == 200
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        assert scene.metric("llm_d_epp_request_total") >= 3


@pytest.mark.parametrize("mode", READS_BODY)
class TestModesThatShowThePrompt:
    def test_a_prompt_returns_to_where_its_prefix_is(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        long = {"model": "base", "messages": [{"role": "user", "content": f"{mode} " + "once upon a time " * 300}]}
        servers = {scene.ask(long).headers["x-server"] for _ in range(6)}
        assert len(servers) == 1

    def test_a_rewritten_model_changes_only_its_value(self, scenes: Callable[[str], Scene], mode: str) -> None:
        scene = scenes(mode)
        answer = scene.ask(headers={"x-gateway-model-name-rewrite": "base-v2-tuned"})
        assert answer.status == 200
        received = scene.origin_of(answer).last
        assert received.body == json.dumps(CHAT).encode().replace(b'"base"', b'"base-v2-tuned"')
        assert "x-gateway-model-name-rewrite" not in received.headers

    def test_bad_json_is_refused_with_what_is_wrong(self, scenes: Callable[[str], Scene], mode: str) -> None:
        answer = scenes(mode).ask(b'{"model": "base", "messages": [')
        assert answer.status == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"

    def test_a_missing_model_is_refused(self, scenes: Callable[[str], Scene], mode: str) -> None:
        answer = scenes(mode).ask({"messages": [{"role": "user", "content": "hi"}]})
        assert answer.status == 400
        assert "model" in answer.json()["error"]["message"]


@pytest.mark.parametrize("mode", SHOWS_ANSWER)
def test_the_answer_speaks_of_the_model_that_was_asked_for(scenes: Callable[[str], Scene], mode: str) -> None:
    scene = scenes(mode)
    rewrite = {"x-gateway-model-name-rewrite": "base-v2-tuned"}
    if mode != "streamed":
        assert scene.ask(headers=rewrite).json()["model"] == "base"
        stream = scene.ask({**CHAT, "stream": True}, headers={**rewrite, "x-answer": "sse:50"})
        assert b"base-v2-tuned" not in stream.body
        assert stream.body.count(b'"model": "base"') == 51
    before = scene.metric("llm_d_epp_request_input_tokens_sum")
    scene.ask()
    wait_for(lambda: scene.metric("llm_d_epp_request_input_tokens_sum") == before + 11)


def read_until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while end not in received:
        piece = client.recv(65536)
        assert piece, f"the connection ended after {received[-300:]!r}"
        received += piece
    return received
