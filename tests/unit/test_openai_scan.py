"""A JSON text cut anywhere is mended to the longest well-formed beginning."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.openai.scan import _CHUNK, mend

MENDED = {
    b"": b"",
    b"{": b"{}",
    b'{"mod': b"{}",
    b'{"model"': b"{}",
    b'{"model" :': b"{}",
    b'{"model": "m': b"{}",
    b'{"a": 1, "model": "m': b'{"a": 1}',
    b'{"model": "m"': b'{"model": "m"}',
    b'{"model": "m",': b'{"model": "m"}',
    b'{"model": "m", "n": 12': b'{"model": "m"}',
    b'{"n": 12,': b'{"n": 12}',
    b'{"n": -1.5e': b"{}",
    b'{"n": nul': b"{}",
    b'{"prompt": "Once': b'{"prompt": "Once"}',
    b'{"mod\\u0065l": "m': b"{}",
    b'{"pro\\u006dpt": "m': b'{"pro\\u006dpt": "m"}',
    b'{"prompt": ["a", "b': b'{"prompt": ["a", "b"]}',
    b'{"prompt": ["a", ': b'{"prompt": ["a"]}',
    b'{"prompt": [1, 2': b'{"prompt": [1]}',
    b'{"prompt": [[1], [2, 3': b'{"prompt": [[1], [2]]}',
    b'{"messages": [{"role": "user", "content": "a\\': b'{"messages": [{"role": "user", "content": "a"}]}',
    b'{"messages": [{"role": "user", "content": "a\\\\': b'{"messages": [{"role": "user", "content": "a\\\\"}]}',
    b'{"messages": [{"role": "user", "content": "a\\"': b'{"messages": [{"role": "user", "content": "a\\""}]}',
    b'{"messages": [{"role": "user", "content": "a\\\\\\"]}': b'{"messages": [{"role": "user", "content": "a\\\\\\"]}"}]}',
    b'{"prompt": "a\\u00e': b'{"prompt": "a"}',
    b'{"prompt": "a\\\\u00e': b'{"prompt": "a\\\\u00e"}',
    b'{"prompt": "a\\ud83d': b'{"prompt": "a"}',
    b'{"prompt": "a\\ud83d\\ude': b'{"prompt": "a"}',
    b'{"prompt": "a\\ud83d\\ude00': b'{"prompt": "a\\ud83d\\ude00"}',
    b'{"prompt": "a\\\\ud83d': b'{"prompt": "a\\\\ud83d"}',
    b'{"prompt": "\xc3': b'{"prompt": ""}',
    b'{"prompt": "\xc3\xa9': b'{"prompt": "\xc3\xa9"}',
    b'{"prompt": "\xf0\x9f\x98': b'{"prompt": ""}',
    b'{"prompt": "{[}': b'{"prompt": "{[}"}',
    b'{"a": {"b": [{}, {"c": "d"}, {"e"': b'{"a": {"b": [{}, {"c": "d"}, {}]}}',
}


@pytest.mark.parametrize(("cut", "mended"), MENDED.items())
def test_mended(cut: bytes, mended: bytes) -> None:
    assert mend(cut) == mended


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", '\\"', "{[", "é😀"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=15,
)


def _begins(beginning: Any, whole: Any) -> bool:
    """Whether `beginning` is `whole` with things missing at its end only."""
    if isinstance(beginning, dict):
        pairs = list(zip(beginning.items(), whole.items(), strict=False))
        return all(a[0] == b[0] and (a[1] == b[1] or (a is pairs[-1][0] and _begins(a[1], b[1]))) for a, b in pairs)
    if isinstance(beginning, list):
        inner = list(zip(beginning, whole, strict=False))
        return (
            inner[:-1] == inner[: len(inner) - 1]
            and all(a == b for a, b in inner[:-1])
            and (not inner or _begins(*inner[-1]))
        )
    return bool(beginning == whole or (isinstance(whole, str) and whole.startswith(beginning)))


@settings(max_examples=120, deadline=None)
@given(
    body=st.dictionaries(
        st.sampled_from(["prompt", "model", "messages", "x", '"']), json_values, min_size=1, max_size=4
    ),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 2]),
    padding=st.sampled_from([0, _CHUNK - 20]),
)
def test_every_beginning_of_json_becomes_json(
    body: dict[str, Any], ascii_only: bool, indent: int | None, padding: int
) -> None:
    text = b" " * padding + json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode()
    assert mend(text) == text
    cuts = range(padding + 1, len(text)) if not padding else range(padding + 1, len(text), 7)
    for end in cuts:
        mended = mend(text[:end])
        assert _begins(json.loads(mended), body), (text[:end], mended)
        kept = len(mended) - len(mended.lstrip(b" ")) + 1
        assert mended[:kept] == text[:kept]


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=64) | st.text('{}[]"\\,: \n1au', max_size=32).map(str.encode))
def test_anything_is_mended_without_error(cut: bytes) -> None:
    mend(cut)
