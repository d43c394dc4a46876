"""What clients send by mistake or malice, through a real Envoy: refused with a reason or passed on whole, never a 5xx."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Answer, Scene

DEEP = 100_000
STORY = b"the rain in Spain stays mainly in the plain. "
MULTIPART = (
    b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nwhisper\r\n'
    b'--b\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n\x00\xff\xfe{"\r\n--b--\r\n'
)
REFUSED: dict[str, tuple[bytes, str]] = {
    "nothing but space": (b" \r\n", "empty"),
    "no JSON": (b"model=base&prompt=hello", "not valid JSON"),
    "cut off": (b'{"model": "base", "messages": [{"role": "user", "content": "hel', "ends too early"),
    "a list": (b'[{"model": "base"}]', "not an object"),
    "lists in lists": (b"[" * DEEP, "JSON"),
    "deep in the prompt": (
        b'{"model": "base", "messages": [{"role": "user", "content": ' + b"[" * DEEP + b"]" * DEEP + b"}]}",
        "nested too deeply",
    ),
    "deep elsewhere": (
        b'{"x": ' + b'{"x": ' * DEEP + b"1" + b"}" * DEEP + b', "model": "base", "messages": [{"role": "user"}]}',
        "nested too deeply",
    ),
    "no UTF-8 in the model": (
        b'{"model": "b\xff\xfe", "messages": [{"role": "user", "content": "hi"}]}',
        '"model" must be',
    ),
    "no model": (b'{"messages": [{"role": "user", "content": "hi"}]}', "names no model"),
    "a model that is none": (b'{"model": 7, "messages": [{"role": "user", "content": "hi"}]}', "not 7"),
    "no messages": (b'{"model": "base", "messages": []}', "messages"),
}
PASSED: dict[str, tuple[str, str, dict[str, str], bytes]] = {
    "an unknown path": ("POST", "/v2/whatever", {}, b'{"what": '),
    "a multipart upload": (
        "POST",
        "/v1/audio/transcriptions",
        {"content-type": "multipart/form-data; boundary=b"},
        MULTIPART,
    ),
    "multipart to a known path": (
        "POST",
        "/v1/completions",
        {"content-type": "multipart/form-data; boundary=b"},
        MULTIPART,
    ),
    "a compressed body": (
        "POST",
        "/v1/chat/completions",
        {"content-encoding": "gzip"},
        gzip.compress(json.dumps(CHAT).encode(), mtime=0),
    ),
    "odd values that are the server's business": (
        "POST",
        "/v1/chat/completions",
        {},
        b'{"model": "base", "temperature": "0", "stop": {"a": [null]}, "messages": [{"role": 5, "content": 9e999}]}',
    ),
    "no UTF-8 in the prompt": (
        "POST",
        "/v1/chat/completions",
        {},
        b'{"model": "base", "messages": [{"role": "user", "content": "\xff\xfe hello"}]}',
    ),
    "no body at all": ("POST", "/v1/chat/completions", {}, b""),
    "a DELETE with a body": ("DELETE", "/v1/responses/1", {}, b"{"),
}


@pytest.fixture(scope="module", params=[LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def source(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


@pytest.fixture(scope="module")
def scene(source: Path, make_scene: Callable[..., Scene]) -> Iterator[Scene]:
    made = make_scene(2)
    made.start_picker("--look-share=0")
    made.start_envoy(source)
    yield made
    # Whatever was sent, nothing failed and nothing is left.
    assert made.picker_answers()
    assert made.metric("llm_d_epp_request_running") == 0
    assert made.picker is not None
    assert "Traceback" not in made.picker.log.read_text()


@pytest.mark.parametrize("what", REFUSED)
def test_it_is_refused_with_what_is_wrong(scene: Scene, what: str) -> None:
    body, words = REFUSED[what]
    answer = scene.ask(body)
    assert answer.status == 400
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert words in error["message"]
    assert len(error["message"]) < 400


@pytest.mark.parametrize("what", PASSED)
def test_it_is_passed_on_byte_for_byte(scene: Scene, what: str) -> None:
    method, path, headers, body = PASSED[what]
    answer = scene.ask(body, method=method, path=path, headers=headers)
    assert answer.status == 200
    assert scene.origin_of(answer).last.body == body


def test_a_request_for_the_models_passes(scene: Scene) -> None:
    answer = scene.ask(None, method="GET", path="/v1/models")
    assert answer.status == 200
    assert scene.origin_of(answer).last.path == "/v1/models"


def test_of_two_models_the_last_counts_and_is_the_one_rewritten(scene: Scene) -> None:
    body = b'{"model": "first", "messages": [{"role": "user", "content": "hi"}], "model" : "last"}'
    answer = scene.ask(body, headers={"x-gateway-model-name-rewrite": "served"})
    assert answer.status == 200
    assert scene.origin_of(answer).last.body == body.replace(b'"last"', b'"served"')
    assert answer.json()["model"] == "last"


def test_a_prompt_of_64_mb_flows_by_in_lean_mode_and_is_over_the_limit_of_full_duplex(
    scene: Scene, source: Path
) -> None:
    """Lean: routed on the beginning that Envoy holds. Full duplex: one sentence above 64 MiB."""
    prompt = STORY * (64 * 1024 * 1024 // len(STORY) + 1)
    body = b'{"model": "base", "messages": [{"role": "user", "content": "' + prompt + b'"}]}'
    refused = scene.metric("llm_d_epp_request_error_total")
    answer = send_all(scene.port, body)
    if source == LEAN:
        assert answer.status == 200
        assert answer.json()["sha256"] == hashlib.sha256(body).hexdigest()
    else:
        assert answer.status == 413
        assert "exceeds 67108864 bytes" in answer.json()["error"]["message"]
        assert scene.metric("llm_d_epp_request_error_total") == refused + 1
    assert scene.ask().status == 200


def test_the_limit_of_full_duplex_can_be_set(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(1)
    scene.start_picker("--max-body-size=100Ki")
    scene.start_envoy(FULL_DUPLEX)
    below = json.dumps({**CHAT, "user": "x" * 90_000}).encode()
    assert scene.ask(below).status == 200
    answer = send_all(scene.port, json.dumps({**CHAT, "user": "x" * 110_000}).encode())
    assert answer.status == 413
    error = answer.json()["error"]
    assert "exceeds 102400 bytes" in error["message"]
    assert error["type"] == "invalid_request_error"


def send_all(port: int, body: bytes) -> Answer:
    """One POST, by a client that reads an early answer instead of stopping at a closed door."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
        )
        try:
            client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
            client.sendall(body)
        except ConnectionError:
            pass
        received = b""
        while piece := client.recv(65536):
            received += piece
    first, _, rest = received.partition(b"\r\n\r\n")
    return Answer(int(first.split(b" ", 2)[1]), {}, rest)
