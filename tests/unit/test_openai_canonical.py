"""The canonical prompt: one text, one form; what comes later in a conversation is appended."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.openai.body import parse
from epp.openai.canonical import _CHUNK_PAIRS, _VECTOR_BYTES, texts

PATHS = {"chat": "/v1/chat/completions", "messages": "/v1/messages", "responses": "/v1/responses"}


def prompt(body: dict[str, Any], api: str = "chat", **dump: Any) -> bytes:
    (only,) = parse({":path": PATHS[api]}, json.dumps({"model": "m", **body}, **dump).encode()).prompts
    return only


def says(role: str, content: object, **more: object) -> dict[str, object]:
    return {"role": role, "content": content, **more}


texts_of_any_kind = st.text(max_size=40) | st.sampled_from(
    ["\\u0041", "C:\\users", 'a "quote"\n', "/", "\x00\x1f\x7f", "é😀"]
)
contents = (
    texts_of_any_kind | st.none() | st.lists(texts_of_any_kind.map(lambda t: {"type": "text", "text": t}), max_size=3)
)
tool_calls = st.just([{"id": "1", "type": "function", "function": {"name": "ls", "arguments": '{"path": "é"}'}}])
turns = st.builds(says, st.sampled_from(["system", "user", "assistant", "tool"]), contents) | st.builds(
    says, st.just("assistant"), contents, tool_calls=tool_calls, reasoning_content=texts_of_any_kind
)
tools: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.just(
    {"tools": [{"type": "function", "function": {"name": "ls"}}]}
)


@settings(max_examples=150, deadline=None)
@given(conversation=st.lists(turns, min_size=2, max_size=6), tools=tools, data=st.data())
def test_a_turn_begins_the_next(conversation: list[dict[str, Any]], tools: dict[str, Any], data: st.DataObject) -> None:
    length = data.draw(st.integers(1, len(conversation) - 1))
    earlier = prompt({"messages": conversation[:length], **tools, "temperature": 0.1})
    later = prompt({**tools, "messages": conversation, "stream": True, "user": "someone"})
    assert later.startswith(earlier + b"\n")


@settings(max_examples=150, deadline=None)
@given(conversation=st.lists(st.builds(says, st.just("user"), contents), min_size=1, max_size=4), large=st.booleans())
def test_one_text_has_one_form_whoever_wrote_the_json(conversation: list[dict[str, Any]], large: bool) -> None:
    if large:
        conversation = [says("system", "x" * _VECTOR_BYTES), *conversation]
    escaped = prompt({"messages": conversation})
    assert escaped == prompt({"messages": conversation}, ensure_ascii=False, separators=(",", ":"), indent=2)
    assert (
        escaped
        == parse({":path": PATHS["chat"]}, msgspec.json.encode({"messages": conversation, "model": "m"})).prompts[0]
    )


@settings(max_examples=100, deadline=None)
@given(text=texts_of_any_kind)
def test_a_list_of_one_text_part_is_its_text(text: str) -> None:
    parts = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]
    assert prompt({"messages": [says("user", text)]}) == prompt({"messages": [says("user", parts)]})
    assert prompt({"system": text, "messages": [says("user", "x")]}, "messages") == prompt(
        {"system": parts, "messages": [says("user", parts[:0] or "x")]}, "messages"
    )


@pytest.mark.parametrize(
    "at", [0, 1, 2 * _CHUNK_PAIRS - 2, 2 * _CHUNK_PAIRS - 1, 2 * _CHUNK_PAIRS, 3 * _CHUNK_PAIRS + 1]
)
def test_an_escape_is_found_wherever_it_stands(at: int) -> None:
    text = "x" * at + "é" + "y" * (4 * _CHUNK_PAIRS - at)
    assert texts(json.dumps(text).encode()) == (text.encode(),)
    assert texts(json.dumps(text + "\n").encode()) == ((text + "\\n").encode(),)


def test_different_conversations_differ() -> None:
    forms = [
        [says("user", "ab")],
        [says("user", "a"), says("user", "b")],
        [says("user", ["a"]), says("user", "b")],
        [says("assistant", "ab")],
        [says("user", "ab"), says("assistant", None)],
        [says("user", None, tool_calls=[{"function": {"name": "ab"}}])],
        [says("user", [{"type": "image_url", "image_url": {"url": "https://a/b.png"}}])],
        [says("user", [{"type": "image_url", "image_url": {"url": "https://a/c.png"}}])],
        [says("user", [{"type": "input_audio", "input_audio": {"data": "YWI=", "format": "wav"}}])],
        [says("user", [{"type": "refusal", "refusal": "ab"}, {"type": "text", "text": "ab"}])],
    ]
    assert len({prompt({"messages": form}) for form in forms}) == len(forms)


def test_tools_come_first_wherever_they_stand_in_the_body() -> None:
    listed = [{"type": "function", "function": {"name": "ls"}}]
    before = prompt({"tools": listed, "messages": [says("user", "x")]})
    assert before == prompt({"messages": [says("user", "x")], "tools": listed})
    assert before.startswith(json.dumps(listed).encode())


def test_tools_of_any_api_are_taken_whole() -> None:
    listed = [{"name": "ls", "input_schema": {"type": "object"}, "text": "t"}]
    rest: dict[str, dict[str, Any]] = {"messages": {"messages": [says("user", "x")]}, "responses": {"input": "x"}}
    for api, body in rest.items():
        assert prompt({"tools": listed, **body}, api).startswith(json.dumps(listed).encode())


def test_the_line_that_changes_with_every_request_is_left_out() -> None:
    def asked(hash_: str) -> bytes:
        billing = {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cch={hash_};"}
        system = [billing, {"type": "text", "text": "You are a coding agent."}]
        return prompt({"system": system, "messages": [says("user", "x")]}, "messages")

    assert asked("eb6c6") == asked("00000") == b'"You are a coding agent."\n"user""x"'


def test_results_of_tools_within_results_are_taken_as_they_are() -> None:
    content: object = "x"
    for _ in range(300):
        content = [{"type": "tool_result", "content": content}]
    written = prompt({"messages": [says("user", content)]}, "messages")
    assert written.count(b"tool_result") == 298


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b'"a\\nb"', (b"a\\nb",)),
        (b'[ "a", "b" ]', (b"a", b"b")),
        (b"[" + b" " * 100 + b"1]", (b"\1\0\0\0",)),
        (b"[1,-1]", (b"[1,-1]",)),
        (b"[4294967296]", (b"[4294967296]",)),
        (b"[[1],[]]", (b"\1\0\0\0", b"")),
        (b'["a",[1],7]', (b"a", b"\1\0\0\0", b"7")),
        (b"[]", ()),
        (b"", ()),
        (b"7", (b"7",)),
    ],
)
def test_prompts(raw: bytes, expected: tuple[bytes, ...]) -> None:
    assert texts(raw) == expected


def test_a_lone_surrogate_stays_as_it_is() -> None:
    assert texts(b'"\\ud83d"') == (b"\\ud83d",)
