"""What is read from request bodies of every API, and which bodies are refused with which words."""

from __future__ import annotations

import json
from array import array
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.openai.api import COMPUTES_NOTHING, NAMES_MODEL, SUFFIXES, Kind
from epp.openai.body import MAX_VALUES, OPAQUE, READERS, Parsed, parse

PATHS = {
    Kind.CHAT: "/v1/chat/completions",
    Kind.COMPLETIONS: "/v1/completions",
    Kind.RESPONSES: "/v1/responses",
    Kind.MESSAGES: "/v1/messages",
    Kind.EMBEDDINGS: "/v1/embeddings",
    Kind.POOLING: "/pooling",
    Kind.RERANK: "/v1/rerank",
    Kind.GENERATE: "/inference/v1/generate",
    Kind.IMAGES: "/v1/images/generations",
    Kind.COUNT_TOKENS: "/v1/messages/count_tokens",
    Kind.TOKENIZE: "/tokenize",
    Kind.RENDER: "/v1/chat/completions/render",
    Kind.CONVERSATIONS: "/v1/conversations",
}
MODEL = "meta-llama/Llama-3.1-8B-Instruct"
HELLO = [{"role": "user", "content": "Hello"}]


def headers(kind: Kind, **more: str) -> dict[str, str]:
    return {":method": "POST", ":path": PATHS[kind], "content-type": "application/json", **more}


def read(kind: Kind, body: object) -> Parsed:
    return parse(headers(kind), json.dumps(body).encode())


def ids(*values: int) -> bytes:
    return array("I", values).tobytes()


def test_every_kind_has_a_path_and_a_reader() -> None:
    assert set(PATHS) == set(SUFFIXES.values()) == set(READERS)


def expect(
    kind: Kind,
    model: str = "",
    stream: bool = False,
    max_tokens: int | None = None,
    salt: str = "",
    prompts: tuple[bytes, ...] = (),
) -> Parsed:
    return Parsed(kind, model, stream, max_tokens, salt, prompts, sum(map(len, prompts)))


CASES: list[tuple[Kind, dict[str, Any], Parsed]] = [
    (
        Kind.CHAT,
        {
            "messages": [{"role": "system", "content": "Be brief."}, *HELLO],
            "model": MODEL,
            "temperature": "0",
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 10,
            "max_completion_tokens": 20,
            "cache_salt": "tenant-1",
        },
        expect(Kind.CHAT, MODEL, True, 20, "tenant-1", (b'\n"system""Be brief."\n"user""Hello"',)),
    ),
    (
        Kind.COMPLETIONS,
        {"model": MODEL, "prompt": "Once upon a time", "max_tokens": 0, "stream": False},
        expect(Kind.COMPLETIONS, MODEL, False, 0, "", (b"Once upon a time",)),
    ),
    (
        Kind.COMPLETIONS,
        {"model": MODEL, "prompt": ["one", "three"]},
        expect(Kind.COMPLETIONS, MODEL, prompts=(b"one", b"three")),
    ),
    (
        Kind.COMPLETIONS,
        {"model": MODEL, "prompt": [1, 2, 128_000]},
        expect(Kind.COMPLETIONS, MODEL, prompts=(ids(1, 2, 128_000),)),
    ),
    (
        Kind.COMPLETIONS,
        {"model": MODEL, "prompt": [[1, 2], [3]]},
        expect(Kind.COMPLETIONS, MODEL, prompts=(ids(1, 2), ids(3))),
    ),
    (Kind.COMPLETIONS, {"model": MODEL, "prompt": []}, expect(Kind.COMPLETIONS, MODEL)),
    (Kind.COMPLETIONS, {"model": MODEL, "prompt_embeds": "…"}, expect(Kind.COMPLETIONS, MODEL)),
    (
        Kind.RESPONSES,
        {
            "model": "gpt-oss-20b",
            "instructions": "Be brief.",
            "input": "Hello",
            "max_output_tokens": 64,
            "max_tokens": 9,
        },
        expect(Kind.RESPONSES, "gpt-oss-20b", False, 64, "", (b'"Be brief."\n"user""Hello"',)),
    ),
    (
        Kind.RESPONSES,
        {
            "model": "gpt-oss-20b",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
                {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Ask."}]},
                {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "rain"},
            ],
        },
        expect(Kind.RESPONSES, "gpt-oss-20b", prompts=(b'\n"user""Weather?"\n"Ask."\n"weather""{}"\n"rain"',)),
    ),
    (Kind.RESPONSES, {"model": "gpt-oss-20b", "prompt": {"id": "pmpt_1"}}, expect(Kind.RESPONSES, "gpt-oss-20b")),
    (
        Kind.MESSAGES,
        {
            "model": "qwen",
            "max_tokens": 1024,
            "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            "messages": HELLO,
            "stream": True,
        },
        expect(Kind.MESSAGES, "qwen", True, 1024, "", (b'"Be brief."\n"user""Hello"',)),
    ),
    (
        Kind.MESSAGES,
        {
            "model": "qwen",
            "max_tokens": 1,
            "messages": [
                *HELLO,
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                        {"type": "tool_use", "id": "t1", "name": "ls", "input": {"path": "/"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "bin"}]}
                    ],
                },
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t2", "content": "etc"}]},
            ],
        },
        expect(
            Kind.MESSAGES,
            "qwen",
            max_tokens=1,
            prompts=(b'\n"user""Hello"\n"assistant""Hm.""ls"{"path": "/"}\n"user""bin"\n"user""etc"',),
        ),
    ),
    (
        Kind.EMBEDDINGS,
        {"model": "bge", "input": ["a", "bc"], "encoding_format": "float"},
        expect(Kind.EMBEDDINGS, "bge", prompts=(b"a", b"bc")),
    ),
    (
        Kind.EMBEDDINGS,
        {"model": "vlm2vec", "messages": HELLO},
        expect(Kind.EMBEDDINGS, "vlm2vec", prompts=(b'\n"user""Hello"',)),
    ),
    (Kind.POOLING, {"input": "text"}, expect(Kind.POOLING, prompts=(b"text",))),
    (
        Kind.RERANK,
        {"model": "bge", "query": "capital?", "documents": ["Paris", {"text": "Rome"}], "top_n": 1},
        expect(Kind.RERANK, "bge", prompts=(b'"capital?"["Paris", {"text": "Rome"}]',)),
    ),
    (Kind.RERANK, {"text_1": "a", "text_2": "b"}, expect(Kind.RERANK, prompts=(b'"a""b"',))),
    (
        Kind.GENERATE,
        {"token_ids": [5, 6], "sampling_params": {"max_tokens": 7}, "stream": True, "cache_salt": "s"},
        expect(Kind.GENERATE, "", True, 7, "s", (ids(5, 6),)),
    ),
    (
        Kind.GENERATE,
        {"input_ids": [[5], [6]], "sampling_params": {"max_new_tokens": 8}},
        expect(Kind.GENERATE, max_tokens=8, prompts=(ids(5), ids(6))),
    ),
    (Kind.GENERATE, {"text": "Hello"}, expect(Kind.GENERATE, prompts=(b"Hello",))),
    (Kind.IMAGES, {"model": "flux", "prompt": "A cat"}, expect(Kind.IMAGES, "flux", prompts=(b"A cat",))),
    (Kind.COUNT_TOKENS, {"model": "qwen", "messages": HELLO}, expect(Kind.COUNT_TOKENS, "qwen")),
    (Kind.TOKENIZE, {"model": "qwen", "prompt": "Hello"}, expect(Kind.TOKENIZE, "qwen")),
    (Kind.RENDER, {"model": "qwen", "messages": HELLO}, expect(Kind.RENDER, "qwen")),
    (Kind.CONVERSATIONS, {"items": HELLO}, expect(Kind.CONVERSATIONS)),
]


@pytest.mark.parametrize(("kind", "body", "parsed"), CASES)
def test_what_matters_is_taken_out(kind: Kind, body: dict[str, Any], parsed: Parsed) -> None:
    assert read(kind, body) == parsed


@pytest.mark.parametrize(("kind", "body", "parsed"), CASES)
def test_the_beginning_of_a_body_is_never_refused(kind: Kind, body: dict[str, Any], parsed: Parsed) -> None:
    text = json.dumps(body).encode()
    for end in range(len(text) + 1):
        beginning = parse(headers(kind), text[:end], truncated=True)
        assert beginning.kind is kind
        assert beginning.model in ("", parsed.model)
        assert (beginning.model == parsed.model) == (parsed.model == "" or _has_model(text[:end], parsed.model))
        assert beginning.prompt_bytes == sum(map(len, beginning.prompts))
    assert parse(headers(kind), text, truncated=True) == parsed


def _has_model(cut: bytes, model: str) -> bool:
    return f'"model": "{model}"'.encode() in cut


@pytest.mark.parametrize("position", ["first", "last"])
def test_the_prompt_of_a_beginning_begins_the_prompt(position: str) -> None:
    turns = [{"role": "user", "content": 'Grüße, \\ "\n" 😀 ' * 3}, {"role": "assistant", "content": "ok"}] * 3
    members: list[tuple[str, object]] = [("messages", turns), ("temperature", 0.5)]
    members.insert(0 if position == "first" else 2, ("model", "m"))
    for ascii_only in (True, False):
        text = json.dumps(dict(members), ensure_ascii=ascii_only).encode()
        whole = parse(headers(Kind.CHAT), text).prompts[0]
        for end in range(len(text)):
            parsed = parse(headers(Kind.CHAT), text[:end], truncated=True)
            for prompt in parsed.prompts:
                assert whole.startswith(prompt.removesuffix(b'"')), (end, prompt)
            reach = sum(map(len, parsed.prompts))
            assert reach >= whole.count(b"ok", 0, reach) * 8
        assert parsed.prompt_bytes == len(whole)


OPAQUE_REQUESTS = {
    "unknown path": ({":path": "/v1/models"}, b"{"),
    "unknown path, no JSON": ({":path": "/upload", "content-type": "application/octet-stream"}, b"\x00\x01"),
    "compressed": (headers(Kind.CHAT, **{"content-encoding": "gzip"}), b"\x1f\x8b"),
    "compressed, of unknown kind": (headers(Kind.CHAT, **{"content-encoding": "x-new"}), b"?"),
    "multipart": ({":path": "/v1/completions", "content-type": "Multipart/form-data; boundary=x"}, b"--x"),
    "GET": ({":method": "GET", ":path": "/v1/conversations"}, b""),
    "no path, no JSON": ({}, b"\xff"),
    "no path, no object": ({}, b"[1]"),
    "no path, unknown shape": ({}, b'{"model": "m", "audio": "x"}'),
    "no path, no model": ({}, b'{"messages": []}'),
    "no path, nested too deeply": ({}, b"[" * 100_000),
}


@pytest.mark.parametrize(("of", "body"), OPAQUE_REQUESTS.values(), ids=OPAQUE_REQUESTS)
@pytest.mark.parametrize("truncated", [False, True])
def test_what_cannot_be_read_is_opaque(of: dict[str, str], body: bytes, truncated: bool) -> None:
    assert parse(of, body, truncated=truncated) == OPAQUE


def test_identity_encoding_and_any_content_type_are_read() -> None:
    for more in ({"content-encoding": "identity"}, {"content-type": "application/x-www-form-urlencoded"}):
        assert parse(headers(Kind.CHAT, **more), json.dumps({"model": "m", "messages": HELLO}).encode()).model == "m"


SHAPES: list[tuple[dict[str, Any], Kind]] = [
    ({"model": "m", "messages": HELLO}, Kind.CHAT),
    ({"model": "m", "messages": HELLO, "system": "s"}, Kind.MESSAGES),
    ({"model": "m", "prompt": "p"}, Kind.COMPLETIONS),
    ({"model": "m", "input": "i"}, Kind.EMBEDDINGS),
    ({"model": "m", "input": [{"role": "user", "content": "i"}]}, Kind.RESPONSES),
    ({"query": "q", "documents": ["d"]}, Kind.RERANK),
    ({"token_ids": [1]}, Kind.GENERATE),
    ({"input_ids": [1]}, Kind.GENERATE),
]


@pytest.mark.parametrize(("body", "kind"), SHAPES)
def test_without_a_path_the_shape_decides(body: dict[str, Any], kind: Kind) -> None:
    parsed = parse({}, json.dumps(body).encode())
    assert parsed.kind is kind
    assert parsed.prompts
    assert parsed.model == body.get("model", "")


NOT_JSON = "The request body is not valid JSON ({}). Send one JSON object in UTF-8 with the model and the prompt."
NO_MESSAGES = '"messages" must be a list with at least one message object. Add the messages to answer.'
REFUSALS = {
    b"": "The request body is empty. Send a JSON object with the model and the prompt.",
    b" \n": "The request body is empty. Send a JSON object with the model and the prompt.",
    b'{"model": "m"': NOT_JSON.format("it ends too early"),
    b'{"model": "m"} x': NOT_JSON.format("trailing characters (byte 16)"),
    b"{'model': 'm'}": NOT_JSON.format("object keys must be strings (byte 1)"),
    b'{"model": "m", "x": NaN}': NOT_JSON.format("invalid character (byte 20)"),
    b'["m"]': "The request body is JSON, but not an object. Send one JSON object with the model and the prompt.",
    b"{}": 'The request names no model. Add "model" with the name of a served model.',
    b'{"model": null}': 'The request names no model. Add "model" with the name of a served model.',
    b'{"model": 7}': '"model" must be the name of a served model as a non-empty string, not 7.',
    b'{"model": ""}': '"model" must be the name of a served model as a non-empty string, not "".',
    b'{"model": "m\xff"}': '"model" must be the name of a served model as a non-empty string, not "m�".',
    b'{"model": "m"}': NO_MESSAGES,
    b'{"model": "m", "messages": []}': NO_MESSAGES,
    b'{"model": "m", "messages": null}': NO_MESSAGES,
    b'{"model": "m", "messages": "Hello"}': NO_MESSAGES,
    b'{"model": "m", "messages": ["Hello"]}': NO_MESSAGES,
    b'{"model": "m", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}": (
        "The request body is nested too deeply. Send JSON with fewer levels of lists and objects."
    ),
}


@pytest.mark.parametrize(("body", "message"), REFUSALS.items(), ids=[body[:24].decode("latin-1") for body in REFUSALS])
def test_refusal_says_what_is_wrong_and_what_to_do(body: bytes, message: str) -> None:
    for kind in (Kind.CHAT, Kind.MESSAGES):
        with pytest.raises(Drop) as drop:
            parse(headers(kind), body)
        assert drop.value.reason is Reason.BAD_REQUEST
        assert drop.value.message == message


@pytest.mark.parametrize("kind", set(PATHS) - NAMES_MODEL)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"model": 7}', b"\xff", b"[" * 100_000])
def test_kinds_that_need_no_model_are_never_refused(kind: Kind, body: bytes) -> None:
    assert parse(headers(kind), body) == Parsed(kind)


@pytest.mark.parametrize("kind", NAMES_MODEL - {Kind.CHAT, Kind.MESSAGES})
def test_a_prompt_of_an_unknown_form_is_routed_by_model(kind: Kind) -> None:
    for prompt in (None, 7, True, {"a": 1}, [None], [["a"]], [{"a": [1]}]):
        parsed = read(kind, {"model": "m", "input": prompt, "prompt": prompt})
        assert parsed.model == "m"


def test_the_last_of_duplicate_keys_counts() -> None:
    body = (
        b'{"model": "a", "messages": [], "model": "b", "messages": [{"role": "user", "content": "x", "content": "y"}]}'
    )
    assert parse(headers(Kind.CHAT), body) == Parsed(Kind.CHAT, "b", prompts=(b'\n"user""y"',), prompt_bytes=10)


def test_a_byte_order_mark_is_skipped() -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"model": "m", "messages": HELLO}).encode()
    assert parse(headers(Kind.CHAT), body).model == "m"
    assert parse(headers(Kind.CHAT), body[:20], truncated=True).model == "m"


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("5", 5),
        ('"5"', 5),
        ("5.0", 5),
        ("0", 0),
        ("-1", None),
        ("null", None),
        ("1e999", None),
        ("9" * 5000, None),
        ("[1]", None),
    ],
)
def test_odd_limits_do_not_matter(limit: str, expected: int | None) -> None:
    body = (
        f'{{"model": "m", "messages": [{{"role": "user"}}], "max_tokens": {limit}, "seed": {limit}, "stream": {limit}}}'
    )
    parsed = parse(headers(Kind.CHAT), body.encode())
    assert (parsed.max_tokens, parsed.stream) == (expected, False)


def test_max_tokens_stands_in_for_a_useless_max_completion_tokens() -> None:
    assert (
        read(Kind.CHAT, {"model": "m", "messages": HELLO, "max_tokens": 3, "max_completion_tokens": None}).max_tokens
        == 3
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)
odd_messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("role", "content", "tool_calls", "reasoning", "name", "output", "summary"), json_values
        ),
    ),
    max_size=4,
)
odd_bodies = st.fixed_dictionaries(
    {},
    optional={
        "model": st.just("m") | json_values,
        "messages": odd_messages | json_values,
        **dict.fromkeys(
            (
                "prompt",
                "input",
                "tools",
                "system",
                "stream",
                "max_tokens",
                "cache_salt",
                "query",
                "token_ids",
                "sampling_params",
            ),
            json_values,
        ),
    },
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from([None, *PATHS]), body=odd_bodies, cut=st.floats(0, 1))
def test_any_json_object_is_read_or_refused(kind: Kind | None, body: dict[str, Any], cut: float) -> None:
    of = {} if kind is None else headers(kind)
    text = json.dumps(body).encode()
    try:
        parsed = parse(of, text)
    except Drop as drop:
        assert drop.reason is Reason.BAD_REQUEST
        no_model = not (isinstance(body.get("model"), str) and body["model"])
        assert no_model or (_kind(kind, body) in (Kind.CHAT, Kind.MESSAGES) and not _are_messages(body.get("messages")))
    else:
        assert parsed.prompt_bytes == sum(map(len, parsed.prompts))
    parse(of, text[: int(cut * len(text))], truncated=True)


def _kind(kind: Kind | None, body: dict[str, Any]) -> Kind:
    return kind or (Kind.MESSAGES if "system" in body else Kind.CHAT)


def _are_messages(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from([None, *PATHS]), body=st.binary(max_size=64), truncated=st.booleans())
def test_any_octets_are_read_or_refused(kind: Kind | None, body: bytes, truncated: bool) -> None:
    try:
        parse({} if kind is None else headers(kind), body, truncated=truncated)
    except Drop as drop:
        assert kind in NAMES_MODEL and not truncated, drop.message


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (Kind.CHAT, {"messages": [{"role": "user"}] * MAX_VALUES}),
        (Kind.COMPLETIONS, {"prompt": [[1, 2, 3]] * MAX_VALUES}),
        (Kind.EMBEDDINGS, {"input": ["abc"] * 2 * MAX_VALUES}),
    ],
)
def test_a_body_of_too_many_values_is_its_own_prompt(kind: Kind, fields: dict[str, Any]) -> None:
    text = json.dumps({"model": "base", "stream": True, **fields}).encode()
    parsed = parse(headers(kind), text)
    assert parsed.prompts == (text,)
    assert (parsed.model, parsed.stream, parsed.prompt_bytes) == ("base", True, len(text))


def test_a_long_prompt_of_few_values_is_read() -> None:
    ids = list(range(2 * MAX_VALUES))
    assert read(Kind.COMPLETIONS, {"model": "base", "prompt": ids}).prompts == (array("I", ids).tobytes(),)


def test_a_crowded_body_that_computes_nothing_has_no_prompt() -> None:
    kind = next(kind for kind in READERS if kind in COMPUTES_NOTHING)
    assert read(kind, {"model": "base", "input": [[]] * 4 * MAX_VALUES}).prompts == ()
