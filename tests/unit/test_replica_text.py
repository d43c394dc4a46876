"""What the stand-in tokenizer shares and what the dialects make of a body."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.replica.dialects import DIALECTS, Answer, Chat, Refusal, Stamp, Usage, parse, plain_prompts
from bench.replica.text import answer, chat_prompt, padded, token_count

STAMP = Stamp("1", "base", 7)


@given(content=st.binary(max_size=20), reply_tokens=st.integers(1, 40))
def test_the_next_turn_begins_with_this_one_and_its_answer(content: bytes, reply_tokens: int) -> None:
    turn = [("system", b"be nice"), ("user", content)]
    reply = answer(5, reply_tokens)
    prompt = chat_prompt(turn)
    assert len(prompt) % 4 == 0
    assert chat_prompt([*turn, ("assistant", reply), ("user", b"more")]).startswith(prompt + reply)


def test_answers_are_whole_ascii_tokens_that_json_leaves_alone() -> None:
    text = answer(12345, 10_000)
    assert token_count(text) == 10_000
    assert json.dumps(text.decode()) == f'"{text.decode()}"'
    assert answer(12345, 10) == text[:40]
    assert answer(12346, 10) != text[:40]


@given(st.binary(max_size=9))
def test_padding_adds_less_than_a_token(text: bytes) -> None:
    assert token_count(padded(text)) == token_count(text) == len(padded(text)) / 4


def test_parts_are_joined_and_an_image_counts_by_its_bytes() -> None:
    def prompt(url: str) -> bytes:
        parts = [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": url}}]
        ask = parse(json.dumps({"messages": [{"role": "user", "content": parts}]}).encode())
        return Chat().prompts(ask)[0]

    assert b"look" in prompt("a")
    assert prompt("a") == prompt("a") != prompt("b")
    assert len(prompt("a")) > 1024


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "truncated"),
        (b'{"model": 3}', "Expected `str`"),
        (b'\xff{"model": "base"}', "malformed"),
    ],
)
def test_what_is_no_request_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message) as caught:
        parse(body)
    assert caught.value.status == 400
    assert json.loads(caught.value.body())["error"]["code"] == 400


def test_unknown_fields_and_odd_types_in_them_are_not_judged() -> None:
    assert parse(b'{"model": "base", "temperature": "0", "stop": {}}').model == "base"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("abc", [b"abc"]),
        (["abc", "de"], [b"abc", b"de"]),
        ([1, 256], [b"\x01\0\0\0\0\x01\0\0"]),
        ([[1], [2]], [b"\x01\0\0\0", b"\x02\0\0\0"]),
    ],
)
def test_prompts_in_every_form(prompt: Any, expected: list[bytes]) -> None:
    assert plain_prompts(prompt, "prompt") == expected


@pytest.mark.parametrize("prompt", [None, [], ["a", 1], [1 << 32], [-1]])
def test_no_prompt_is_refused(prompt: Any) -> None:
    with pytest.raises(Refusal):
        plain_prompts(prompt, "prompt")


@pytest.mark.parametrize("path", DIALECTS)
def test_every_piece_of_a_stream_is_an_event_of_json(path: str) -> None:
    dialect = DIALECTS[path]
    before, after = dialect.piece(STAMP, 0)
    usage = Usage(10, 4, 2)
    stream = dialect.opening(STAMP, 0) + before + b"the " + after + dialect.closing(STAMP, 0, "stop")
    stream += dialect.ending(STAMP, [Answer("the ", "stop")], usage, True)
    events = stream.decode().split("\n\n")
    assert events.pop() == ""
    data = [line.removeprefix("data: ") for event in events for line in event.split("\n") if line.startswith("data: ")]
    decoded = [json.loads(entry) for entry in data if entry != "[DONE]"]
    assert any("the " in json.dumps(entry) for entry in decoded)
    assert "cached_tokens" in json.dumps(decoded[-1])
    assert msgspec.json.encode(dialect.whole(STAMP, [Answer("the ", "stop")], usage))
