"""What a client sees when a server, the picker, or the client itself goes away, through a real Envoy."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Answer, Scene, ask
from tests.integration.test_body_modes import read_until
from tests.waiting import PATIENCE_S, wait_for

STREAM = {**CHAT, "stream": True}
RANKED = str(Path(__file__).resolve().parents[2] / "config" / "ranked.yaml")


def chat(text: str, **more: object) -> dict[str, object]:
    return {"model": "base", "messages": [{"role": "user", "content": text}], **more}


def failing(allow: bool) -> Callable[[dict[str, Any]], None]:
    def edit(config: dict[str, Any]) -> None:
        manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        ext_proc = next(f for f in manager["http_filters"] if f["name"] == "envoy.filters.http.ext_proc")
        ext_proc["typed_config"]["failure_mode_allow"] = allow

    return edit


def started(scene: Scene, source: Path = LEAN, *, allow: bool = True) -> Scene:
    # ORIGINAL_DST takes one address: a list is for the cluster of lean.yaml.
    scene.start_picker(*[f"--config-file={RANKED}"] * (source is LEAN))
    scene.start_envoy(source, failing(allow))
    return scene


def begin_stream(scene: Scene, events: int) -> socket.socket:
    """A streamed request whose first event has arrived."""
    client = socket.create_connection(("127.0.0.1", scene.port), timeout=PATIENCE_S)
    body = json.dumps(STREAM).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-answer: slow:{events}\r\ncontent-length: {len(body)}\r\n"
    )
    client.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    read_until(client, b"token ")
    return client


def rest_of(client: socket.socket) -> bytes:
    """Everything until the end of the chunked answer, or until the connection breaks."""
    received = b""
    try:
        while not received.endswith(b"0\r\n\r\n"):
            piece = client.recv(65536)
            if not piece:
                break
            received += piece
    except ConnectionError:
        pass
    return received


@pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
class TestPeersThatGo:
    def test_a_client_that_leaves_frees_its_server(self, make_scene: Callable[..., Scene], source: Path) -> None:
        scene = started(make_scene(2), source)
        client = begin_stream(scene, 400)
        assert scene.metric("llm_d_epp_request_running") == 1
        client.close()
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        wait_for(lambda: any(origin.aborted.is_set() for origin in scene.origins))

    def test_a_server_that_dies_mid_answer_ends_the_account(
        self, make_scene: Callable[..., Scene], source: Path
    ) -> None:
        scene = started(make_scene(2), source)
        answer = scene.ask(STREAM, headers={"x-answer": "die:5"})
        assert answer.cut
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        assert scene.ask().status == 200

    def test_a_picker_that_is_told_to_end_finishes_what_it_has(
        self, make_scene: Callable[..., Scene], source: Path
    ) -> None:
        scene = started(make_scene(2), source)
        client = begin_stream(scene, 20)
        assert scene.picker is not None
        scene.picker.signal(signal.SIGTERM)
        assert rest_of(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        client.close()
        wait_for(lambda: scene.picker is not None and not scene.picker.running)
        assert scene.picker.child.returncode == 0


class TestPickerKilled:
    @pytest.mark.parametrize("allow", [True, False], ids=["fail open", "fail closed"])
    def test_in_lean_mode(self, make_scene: Callable[..., Scene], allow: bool) -> None:
        scene = started(make_scene(2), allow=allow)
        client = begin_stream(scene, 20)
        assert scene.picker is not None
        scene.picker.kill()
        whole = rest_of(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        client.close()
        assert whole is allow
        assert scene.ask().status == (200 if allow else 500)

    def test_a_hung_picker_costs_a_timeout_at_most(self, make_scene: Callable[..., Scene]) -> None:
        scene = started(make_scene(2))
        assert scene.picker is not None
        os.kill(scene.picker.pid, signal.SIGSTOP)
        try:
            assert scene.ask().status == 200
        finally:
            os.kill(scene.picker.pid, signal.SIGCONT)
        wait_for(lambda: scene.ask(headers={"x-gateway-model-name-rewrite": "m2"}).status == 200)

    def test_in_full_duplex_new_requests_fail_until_it_is_back(self, make_scene: Callable[..., Scene]) -> None:
        scene = started(make_scene(2), FULL_DUPLEX, allow=False)
        assert scene.picker is not None
        scene.picker.kill()
        assert scene.ask().status == 500
        scene.start_picker()
        wait_for(lambda: scene.ask().status == 200)


class TestDestinations:
    @pytest.mark.parametrize("alive", [True, False], ids=["picker alive", "picker dead"])
    def test_a_client_never_chooses_its_server(self, make_scene: Callable[..., Scene], alive: bool) -> None:
        scene = started(make_scene(2))
        stranger = make_scene(1).origins[0]
        if not alive:
            assert scene.picker is not None
            scene.picker.kill()
        for _ in range(4):
            answer = scene.ask(headers={"x-gateway-destination-endpoint": stranger.address})
            assert answer.status == 200
        assert not stranger.received

    def test_a_server_that_refuses_connections_is_followed_by_the_next(self, make_scene: Callable[..., Scene]) -> None:
        scene = started(make_scene(3))
        scene.origins[0].close()
        answers: list[Answer] = [scene.ask({**CHAT, "user": str(number)}) for number in range(12)]
        assert {answer.status for answer in answers} == {200}
        assert {answer.headers["x-server"] for answer in answers} <= {"origin-1", "origin-2"}

    def test_in_full_duplex_a_server_that_refuses_costs_one_request(self, make_scene: Callable[..., Scene]) -> None:
        scene = make_scene(3)
        scene.start_picker("--refresh-metrics-interval=5s")
        scene.start_envoy(FULL_DUPLEX)
        prompt = chat("once upon a time " * 100)
        wait_for(lambda: all(origin.scrapes for origin in scene.origins))
        scene.origin_of(scene.ask(prompt)).close()
        statuses = [scene.ask(prompt).status for _ in range(6)]
        # A scrape may find it out before the first request does.
        assert statuses.count(503) <= 1
        assert statuses[1:] == [200] * 5
        assert scene.metric("epp_pool_unreachable_endpoints") == 1

    def test_two_hundred_at_once_all_get_answers(self, make_scene: Callable[..., Scene]) -> None:
        scene = started(make_scene(3))
        statuses: list[int] = []

        def one(number: int) -> None:
            answer = ask(scene.port, chat(f"Number {number}.", stream=True), headers={"x-answer": "slow:3"})
            statuses.append(answer.status)

        clients = [threading.Thread(target=one, args=(number,)) for number in range(200)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        assert statuses == [200] * 200
        wait_for(lambda: scene.metric("llm_d_epp_request_running") == 0)
        # How evenly depends on who is first to end; that none is forgotten does not.
        assert all(origin.received for origin in scene.origins)


def short_sighted(config: dict[str, Any]) -> None:
    listener = config["static_resources"]["listeners"][0]
    listener["per_connection_buffer_limit_bytes"] = 65536
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"][0]["request_body_buffer_limit"] = 262144


class TestBufferLimit:
    def test_a_prompt_beyond_the_buffer_is_routed_on_its_beginning(self, make_scene: Callable[..., Scene]) -> None:
        scene = make_scene(2)
        scene.start_picker(f"--config-file={RANKED}")
        scene.start_envoy(LEAN, short_sighted)
        story = "the rain in Spain stays mainly in the plain. " * 80_000
        body = json.dumps({"model": "base", "messages": [{"role": "user", "content": story}]}).encode()
        assert len(body) > 3_000_000
        answers = [scene.ask(body) for _ in range(4)]
        assert {answer.status for answer in answers} == {200}
        assert {len(origin.last.body) for origin in scene.origins if origin.received} == {len(body)}
        assert len({answer.headers["x-server"] for answer in answers}) == 1
        assert scene.metric("llm_d_epp_request_size_bytes_sum") < 4 * 524288
