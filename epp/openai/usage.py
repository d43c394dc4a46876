"""What an answer says it cost, read from its end."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping

import msgspec
from msgspec import Struct

from epp.openai.api import Kind
from epp.openai.canonical import UNREADABLE


class Usage(Struct, frozen=True):
    """Tokens by the server's own count; None where the answer does not say.

    `cached_tokens` of the `prompt_tokens` were found in the server's prefix cache.
    """

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


_NOTHING = Usage()
_GENERATE, _MESSAGES = Kind.GENERATE, Kind.MESSAGES


def event_count(tail: bytes, body_bytes: int) -> int:
    """About how many server-sent events an answer of `body_bytes` has that ends with `tail`: as many a byte as `tail` has."""
    if not tail:
        return 0
    # A line break within JSON is escaped, so text cannot pass for an event.
    seen = tail.count(b"\ndata:") + tail.startswith(b"data:")
    return round(seen * max(body_bytes, len(tail)) / len(tail))


_OBJECT_START = re.compile(rb"\s*:\s*(?=\{)")
_OBJECT_BYTES = 4_096
"""More than any usage object has."""

_decode_object = msgspec.json.Decoder(dict[str, object]).decode
_read_object = json.JSONDecoder().raw_decode


def usage(tail: bytes, content_type: str, kind: Kind) -> Usage | None:
    """The usage in the last bytes of an answer, JSON or server-sent events; None where there is none. Raises nothing.

    An answer's text cannot pass for usage: within a JSON string its quotes are escaped. Of several usages the last one
    counts. Anthropic messages say the prompt's tokens at the start of a stream and the answer's at its end: what
    `tail` has of them is put together, and tokens read from and written to the cache are added to the prompt's.
    """
    if "json" not in content_type and "event-stream" not in content_type:
        return None
    found = _NOTHING
    # SGLang's own API counts in "meta_info".
    for counts in _objects_from_the_end(tail, b'"meta_info"' if kind is _GENERATE else b'"usage"'):
        one = _usage_of(counts, kind)
        found = one if found is _NOTHING else _merged(found, one)
        if kind is not _MESSAGES or None not in (found.prompt_tokens, found.completion_tokens):
            break
    return None if found is _NOTHING or found == _NOTHING else found


def _objects_from_the_end(tail: bytes, key: bytes) -> Iterator[Mapping[str, object]]:
    at = tail.rfind(key)
    while at >= 0:
        start = at + len(key)
        if tail[start : start + 2] == b":{":
            start += 1
        else:
            colon = _OBJECT_START.match(tail, start)
            start = colon.end() if colon is not None else 0
        if start:
            value = _object_at(tail, start)
            if value is not None:
                yield value
        at = tail.rfind(key, 0, at)


def _object_at(tail: bytes, start: int) -> Mapping[str, object] | None:
    """The JSON object that begins there; None where it is none, or cut short."""
    end = tail.find(b"}", start) + 1
    if tail.find(b"{", start + 1, end) >= 0:
        while 0 < end < start + _OBJECT_BYTES and tail.count(b"{", start, end) > tail.count(b"}", start, end):
            end = tail.find(b"}", end) + 1
    try:
        # Where braces stand in strings the end is another, and the slower reader finds it.
        return _decode_object(tail[start:end])
    except UNREADABLE:
        pass
    try:
        value: Mapping[str, object]
        value, _ = _read_object(tail[start : start + _OBJECT_BYTES].decode("utf-8", "replace"))
        return value
    except (ValueError, RecursionError):
        return None


def _usage_of(counts: Mapping[str, object], kind: Kind) -> Usage:
    prompt = _first(counts, "prompt_tokens", "input_tokens")
    cached = _first(counts, "cached_tokens", "cache_read_input_tokens")
    if cached is None:
        details = counts.get("prompt_tokens_details") or counts.get("input_tokens_details")
        if isinstance(details, dict):
            cached = _first(details, "cached_tokens", "")
    if kind is _MESSAGES and prompt is not None:
        prompt += (cached or 0) + (_first(counts, "cache_creation_input_tokens", "") or 0)
    return Usage(prompt, _first(counts, "completion_tokens", "output_tokens"), cached)


def _merged(last: Usage, earlier: Usage) -> Usage:
    """`last`, completed by `earlier`. A prompt of no tokens means that the count is not known yet."""
    return Usage(
        last.prompt_tokens or earlier.prompt_tokens,
        earlier.completion_tokens if last.completion_tokens is None else last.completion_tokens,
        earlier.cached_tokens if last.cached_tokens is None else last.cached_tokens,
    )


def _first(counts: Mapping[str, object], name: str, other: str) -> int | None:
    """The count under `name`, or else that under `other`."""
    value = counts.get(name)
    if type(value) is int and value >= 0:
        return value
    count = None if value is None else _count(value)
    if count is None:
        value = counts.get(other)
        count = None if value is None else _count(value)
    return count


def _count(value: object) -> int | None:
    """A whole number that is not negative, also as a float or in a string; None for anything else."""
    if isinstance(value, str):
        value = int(value) if value.isascii() and value.isdigit() and len(value) < 19 else None
    if isinstance(value, float) and math.isfinite(value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return value
