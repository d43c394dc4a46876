"""A rewrite changes the model as the server reads it, and not one byte more."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.openai.rewrite import rewrite_model

REWRITTEN = {
    b'{"model":"a","prompt":"b"}': b'{"model":"new","prompt":"b"}',
    b'{"prompt":"b","model":"a"}': b'{"prompt":"b","model":"new"}',
    b' {\n\t"model" :\r "a" , "x" : 1 } ': b' {\n\t"model" :\r "new" , "x" : 1 } ',
    b'{"metadata":{"model":"a"},"model":"a"}': b'{"metadata":{"model":"a"},"model":"new"}',
    b'{"x":"\\"model\\":\\"a\\"","model":"a"}': b'{"x":"\\"model\\":\\"a\\"","model":"new"}',
    b'{"model":"a","model":"b"}': b'{"model":"a","model":"new"}',
    b'{"mod\\u0065l":"a"}': b'{"mod\\u0065l":"new"}',
    b'{"model":"a\\"}"}': b'{"model":"new"}',
    b'\xef\xbb\xbf{"model":"a"}': b'\xef\xbb\xbf{"model":"new"}',
    b'{"x":"\xff","model":"a"}': b'{"x":"\xff","model":"new"}',
}


@pytest.mark.parametrize(("body", "rewritten"), REWRITTEN.items())
def test_rewritten(body: bytes, rewritten: bytes) -> None:
    assert rewrite_model(body, "new") == rewritten


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b'["model"]', b'{"Model":"a"}', b'{"x":{"model":"a"}}', b'{"model":null}', b'{"model":["a"', b"\xff"],
)
@pytest.mark.parametrize("truncated", [False, True])
def test_where_there_is_no_model_the_very_body_comes_back(body: bytes, truncated: bool) -> None:
    assert rewrite_model(body, "new", truncated=truncated) is body


def test_the_new_name_is_escaped() -> None:
    assert json.loads(rewrite_model(b'{"model":"a"}', 'ä"\\\n')) == {"model": 'ä"\\\n'}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["model", '"model":"x"', "\\"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["model", "x", "é", '"']), inner, max_size=4)
    ),
    max_leaves=12,
)
names = st.text(max_size=12)


@settings(max_examples=150, deadline=None)
@given(
    members=st.lists(st.tuples(st.sampled_from(["model", "x", "y", "modelx"]), json_values), max_size=5),
    name=names,
    new=names,
    at=st.integers(0, 5),
    style=st.sampled_from(
        [{}, {"indent": 3}, {"ensure_ascii": False}, {"separators": (",", ":")}, {"separators": (" ,\r\n", "\t: ")}]
    ),
)
def test_only_the_model_changes(
    members: list[tuple[str, Any]], name: str, new: str, at: int, style: dict[str, Any]
) -> None:
    last = min(at, len(members))
    members = [*members[:last], ("model", name), *[member for member in members[last:] if member[0] != "model"]]
    # json.dumps writes no duplicate keys, so each member is written alone.
    pieces = [json.dumps({key: value}, **style)[1:-1].encode() for key, value in members]
    value = json.dumps(name, **style).encode()
    start = pieces[last].rindex(value)
    before = b"{" + b"".join(piece + b"," for piece in pieces[:last]) + pieces[last][:start]
    after = pieces[last][start + len(value) :] + b"".join(b"," + piece for piece in pieces[last + 1 :]) + b"}"
    body, expected = before + value + after, before + msgspec.json.encode(new) + after
    assert rewrite_model(body, new) == expected
    assert json.loads(expected) == {**json.loads(body), "model": new}
    for end in range(len(before + value), len(body), 3):
        assert rewrite_model(body[:end], new, truncated=True) == expected[: len(expected) - (len(body) - end)]


@pytest.mark.parametrize("end", range(len(b'{"x": [1, {"model": "q"}], "model": "a", "prompt": "bcd')))
def test_a_beginning_is_rewritten_once_the_model_is_in_it(end: int) -> None:
    cut = b'{"x": [1, {"model": "q"}], "model": "a", "prompt": "bcd'[:end]
    expected = cut.replace(b'"model": "a"', b'"model": "new"')
    assert rewrite_model(cut, "new", truncated=True) == expected
