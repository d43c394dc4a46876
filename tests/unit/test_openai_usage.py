"""Usage is found at the end of answers of every API, whatever else is there."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.openai.api import Kind
from epp.openai.usage import Usage, event_count, usage

JSON, SSE = "application/json", "text/event-stream; charset=utf-8"


def events(*values: dict[str, Any], done: bool = True) -> bytes:
    lines = [f"data: {json.dumps(value)}\n\n" for value in values]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


def chunk(text: str, **more: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}], **more}


CHAT_USAGE = {
    "prompt_tokens": 100,
    "total_tokens": 107,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 64},
}
RESPONSES_USAGE = {
    "input_tokens": 50,
    "input_tokens_details": {"cached_tokens": 48},
    "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 55,
}
ANSWERS: dict[str, tuple[Kind, str, bytes, Usage | None]] = {
    "chat": (Kind.CHAT, JSON, json.dumps({"choices": [], "usage": CHAT_USAGE}).encode(), Usage(100, 7, 64)),
    "chat, indented": (
        Kind.CHAT,
        JSON,
        json.dumps({"usage": CHAT_USAGE, "choices": [{"x": 1}]}, indent=2).encode(),
        Usage(100, 7, 64),
    ),
    "chat, no details": (
        Kind.CHAT,
        JSON,
        b'{"usage":{"prompt_tokens":1,"completion_tokens":2,"prompt_tokens_details":null}}',
        Usage(1, 2),
    ),
    "chat stream": (
        Kind.CHAT,
        SSE,
        events(chunk("a"), chunk("b"), {"choices": [], "usage": CHAT_USAGE}),
        Usage(100, 7, 64),
    ),
    "chat stream with usage in every chunk": (
        Kind.CHAT,
        SSE,
        events(
            chunk("a", usage={"prompt_tokens": 9, "completion_tokens": 1}),
            chunk("b", usage={"prompt_tokens": 9, "completion_tokens": 2}),
        ),
        Usage(9, 2),
    ),
    "chat stream, null usage last": (
        Kind.CHAT,
        SSE,
        events({"usage": CHAT_USAGE}, chunk("b", usage=None)),
        Usage(100, 7, 64),
    ),
    "chat stream without usage": (Kind.CHAT, SSE, events(chunk("a")), None),
    "text that looks like usage": (Kind.CHAT, SSE, events(chunk('"usage": {"prompt_tokens": 1}')), None),
    "a value that is usage": (Kind.CHAT, JSON, b'{"x": "usage", "y": ["usage", {"prompt_tokens": 1}]}', None),
    "embeddings": (Kind.EMBEDDINGS, JSON, b'{"usage":{"prompt_tokens":8,"total_tokens":8}}', Usage(8)),
    "responses": (
        Kind.RESPONSES,
        JSON,
        json.dumps({"usage": RESPONSES_USAGE, "user": None}).encode(),
        Usage(50, 5, 48),
    ),
    "responses stream": (
        Kind.RESPONSES,
        SSE,
        events(
            {"type": "response.created", "response": {"usage": None}},
            {"type": "response.completed", "response": {"output": [], "usage": RESPONSES_USAGE}},
            done=False,
        ),
        Usage(50, 5, 48),
    ),
    "messages": (
        Kind.MESSAGES,
        JSON,
        b'{"usage":{"input_tokens":10,"cache_creation_input_tokens":5,"cache_read_input_tokens":85,"output_tokens":3}}',
        Usage(100, 3, 85),
    ),
    "messages stream": (
        Kind.MESSAGES,
        SSE,
        events(
            {
                "type": "message_start",
                "message": {"usage": {"input_tokens": 10, "cache_read_input_tokens": 90, "output_tokens": 1}},
            },
            {"type": "content_block_delta", "delta": {"text": "a"}},
            {"type": "message_delta", "usage": {"output_tokens": 12}},
            {"type": "message_stop"},
            done=False,
        ),
        Usage(100, 12, 90),
    ),
    "messages stream of vLLM": (
        Kind.MESSAGES,
        SSE,
        events(
            {"type": "message_start", "message": {"usage": {"input_tokens": 0, "output_tokens": 0}}},
            {"type": "message_delta", "usage": {"input_tokens": 100, "output_tokens": 12}},
            done=False,
        ),
        Usage(100, 12),
    ),
    "messages stream, start unseen": (
        Kind.MESSAGES,
        SSE,
        b'ens":90}}}\n\n' + events({"type": "message_delta", "usage": {"output_tokens": 12}}, done=False),
        Usage(None, 12),
    ),
    "sglang generate": (
        Kind.GENERATE,
        JSON,
        b'{"text":"x","meta_info":{"prompt_tokens":4,"completion_tokens":2,"cached_tokens":3}}',
        Usage(4, 2, 3),
    ),
    "numbers in strings": (
        Kind.CHAT,
        JSON,
        b'{"usage":{"prompt_tokens":"12","completion_tokens":3.0,"prompt_tokens_details":{"cached_tokens":" 1"}}}',
        Usage(12, 3),
    ),
    "odd types": (
        Kind.CHAT,
        JSON,
        b'{"usage":{"prompt_tokens":true,"completion_tokens":[1],"prompt_tokens_details":"x","input_tokens":-1}}',
        None,
    ),
    "huge numbers": (
        Kind.CHAT,
        JSON,
        b'{"usage":{"prompt_tokens":1e999,"completion_tokens":%s}}' % (b"9" * 4100),
        None,
    ),
    "a usage too deep": (Kind.CHAT, JSON, b'{"usage":{"x":' + b"[" * 4000, None),
    "a broken usage after a whole one": (
        Kind.CHAT,
        SSE,
        b'data: {"usage":{"prompt_tokens":1}}\n\ndata: {"usage":{"prompt_tok',
        Usage(1),
    ),
    "error": (Kind.CHAT, JSON, b'{"error":{"message":"no"}}', None),
    "empty": (Kind.CHAT, JSON, b"", None),
    "no JSON": (Kind.CHAT, "audio/mpeg", b'{"usage":{"prompt_tokens":1}}', None),
    "opaque": (Kind.OPAQUE, "application/problem+json", b'{"usage":{"prompt_tokens":1}}', Usage(1)),
}


@pytest.mark.parametrize(("kind", "content_type", "tail", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_usage(kind: Kind, content_type: str, tail: bytes, expected: Usage | None) -> None:
    assert usage(tail, content_type, kind) == expected


@pytest.mark.parametrize(("kind", "content_type", "tail", "expected"), ANSWERS.values(), ids=ANSWERS)
def test_any_end_of_an_answer_gives_the_same_or_less(
    kind: Kind, content_type: str, tail: bytes, expected: Usage | None
) -> None:
    for start in range(0, len(tail), max(1, len(tail) // 200)):
        found = usage(tail[start:], content_type, kind)
        assert found is None or kind is Kind.MESSAGES or found == expected


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(max_size=60)
    | st.sampled_from(['"usage":{"prompt_tokens":7}', '\\"usage\\":{}', 'data: {"usage":{}}']),
    kind=st.sampled_from(Kind),
)
def test_text_of_an_answer_never_passes_for_usage(text: str, kind: Kind) -> None:
    tail = events(chunk(text), {"text": text, "logprobs": {"tokens": [text, "usage"]}})
    assert usage(tail, SSE, kind) is None
    assert usage(json.dumps({"text": text}, ensure_ascii=False).encode(), JSON, kind) is None


@settings(max_examples=200, deadline=None)
@given(
    tail=st.binary(max_size=80)
    | st.text('{}[]":,\n usagemtinfo_1e9-', max_size=80).map(lambda t: ('"usage":{' + t).encode()),
    kind=st.sampled_from(Kind),
)
def test_no_tail_raises(tail: bytes, kind: Kind) -> None:
    usage(tail, JSON, kind)


@pytest.mark.parametrize("seen", [1, 40, 10_000])
def test_events_of_a_stream_are_counted_by_its_end(seen: int) -> None:
    body = events(*[chunk("\ndata: x")] * seen, done=False)
    assert event_count(body[-16_384:], len(body)) == pytest.approx(seen, rel=0.01)


def test_what_is_no_stream_has_no_events() -> None:
    assert event_count(b"", 0) == 0
    assert event_count(b'{"text": "data: x"}', 19) == 0
