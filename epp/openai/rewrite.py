"""Another model name in a body of which nothing else changes."""

from __future__ import annotations

import msgspec
import numpy as np
from msgspec import Raw, Struct

from epp.openai.body import BYTE_ORDER_MARK
from epp.openai.canonical import NOTHING, UNREADABLE
from epp.openai.scan import mend


class _Model(Struct, gc=False):
    model: Raw = NOTHING


_QUOTE = ord('"')
_decode = msgspec.json.Decoder(_Model).decode


def rewrite_model(body: bytes, new_model: str, *, truncated: bool = False) -> bytes:
    """`body` with the string that is the value of the outermost object's `model` replaced; every other byte stays.

    Of several such members the last is replaced: it is the one that JSON parsers of model servers take. Where there is
    none, or it is no string, or `body` is no JSON object, the very `body` comes back. `truncated` says that `body` is
    only the beginning; what comes after it fits the result as it fitted `body`.
    """
    if body.startswith(BYTE_ORDER_MARK):
        return BYTE_ORDER_MARK + rewrite_model(body[len(BYTE_ORDER_MARK) :], new_model, truncated=truncated)
    span = _model_span(mend(body) if truncated else body)
    if span is None:
        return body
    start, end = span
    return b"".join((body[:start], msgspec.json.encode(new_model), body[end:]))


def _model_span(body: bytes) -> tuple[int, int] | None:
    """Where the value begins and ends. A decoded `Raw` is a view into the body, so addresses tell."""
    try:
        value = _decode(body).model
    except UNREADABLE:
        return None
    view = memoryview(value)
    if not view or view[0] != _QUOTE:
        return None
    start = _address(value) - _address(body)
    return start, start + len(view)


def _address(buffer: bytes) -> int:
    address: int = np.frombuffer(buffer, np.uint8).__array_interface__["data"][0]
    return address
