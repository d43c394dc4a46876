"""JSON cut off in the middle, made whole again."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

Octets = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Positions = NDArray[np.intp]

_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_OPEN, _CLOSE = ord("{"), ord("}")
_CASE = 0x20  # '[' and '{', ']' and '}' differ in this bit alone
_SPACE = b" \t\r\n"
_SCALAR = b"0123456789+-.eEtrufalsn" + _SPACE
_CLOSERS = bytes.maketrans(b"{[", b"}]")
_KEEPS_PARTIAL_VALUE = frozenset({"prompt", "input", "text", "instructions", "system"})

_CHUNK = 65_536
"""Octets looked at together: temporaries that fit the cache, where those of 2 MiB cost as much again in page faults."""


def mend(cut: bytes) -> bytes:
    """The longest well-formed beginning of a JSON text of which `cut` is the beginning.

    The result starts with bytes of `cut` and ends with the quote and brackets that are missing. A number or literal
    at the very end, a key without its value, and half a character or escape are left out. So is a string value of the
    outermost object that has no end, unless it is prompt text: half a model name is no model name.
    What is not JSON comes out as something that is not JSON either. 2.5 ms for 2 MiB of chat.
    """
    octets = np.frombuffer(cut, np.uint8)
    quotes = _quotes(octets)
    unclosed = _unclosed(octets, quotes)
    closers = unclosed[::-1].translate(_CLOSERS)
    if len(quotes) % 2 == 0:
        return _closed(cut, _end_outside_string(cut, quotes, unclosed), closers)
    start = int(quotes[-1])
    if _is_key(cut, start, unclosed):
        return _closed(cut, _before_comma(cut, start), closers)
    if unclosed == b"{" and len(quotes) >= 3 and not _keeps_partial_value(cut, quotes):
        return _closed(cut, _before_comma(cut, int(quotes[-3])), closers)
    return _closed(cut, _end_of_whole_characters(cut, start + 1), b'"' + closers)


def _closed(cut: bytes, end: int, closers: bytes) -> bytes:
    # One copy, not two: of 2 MiB each takes 1.5 ms, most of it for the kernel to find the pages.
    return b"".join((memoryview(cut)[:end], closers))


def _positions(octets: Octets, test: Callable[[Octets], Mask]) -> Positions:
    found = [np.flatnonzero(test(octets[at : at + _CHUNK])) + at for at in range(0, len(octets), _CHUNK)]
    return np.concatenate(found) if found else np.empty(0, np.intp)


def _quotes(octets: Octets) -> Positions:
    """Where strings begin and end: every quote that is not escaped."""
    quotes = _positions(octets, lambda piece: piece == _QUOTE)
    suspects = np.flatnonzero((quotes > 1) & (octets[quotes - 1] == _BACKSLASH))
    escaped = np.ones(len(suspects), dtype=bool)
    nested = octets[quotes[suspects] - 2] == _BACKSLASH
    if nested.any():
        escaped[nested] = _run_lengths(octets, quotes[suspects[nested]]) % 2 == 1
    unescaped = np.ones(len(quotes), dtype=bool)
    unescaped[suspects[escaped]] = False
    return quotes[unescaped]


def _run_lengths(octets: Octets, ends: Positions) -> Positions:
    """How many backslashes stand in a row before each of `ends`, at least one each. An even number escapes nothing."""
    slashes = _positions(octets, lambda piece: piece == _BACKSLASH)
    starts_run = np.ones(len(slashes), dtype=bool)
    starts_run[1:] = np.diff(slashes) != 1
    run_start = np.maximum.accumulate(np.where(starts_run, slashes, 0))
    lengths: Positions = ends - run_start[np.searchsorted(slashes, ends) - 1]
    return lengths


def _unclosed(octets: Octets, quotes: Positions) -> bytes:
    """The brackets outside strings that are still open at the end, outermost first."""
    brackets = _positions(octets, _is_bracket)
    brackets = brackets[np.searchsorted(quotes, brackets) % 2 == 0]
    opening = octets[brackets] | _CASE == _OPEN
    depth = np.cumsum(np.where(opening, 1, -1))
    # A bracket is still open where nothing from it on is shallower than it.
    lowest_from_here = np.minimum.accumulate(depth[::-1])[::-1]
    still_open: Positions = brackets[opening & (depth == lowest_from_here)]
    return octets[still_open].tobytes()


def _is_bracket(piece: Octets) -> Mask:
    folded = piece | _CASE
    brackets: Mask = (folded == _OPEN) | (folded == _CLOSE)
    return brackets


def _end_outside_string(cut: bytes, quotes: Positions, unclosed: bytes) -> int:
    end = _end_stripped(cut, len(cut), _SCALAR)
    last = cut[end - 1 : end]
    if len(quotes) and (last == b":" or (last == b'"' and _is_key(cut, int(quotes[-2]), unclosed))):
        end = int(quotes[-2])
    return _before_comma(cut, end)


def _is_key(cut: bytes, start: int, unclosed: bytes) -> bool:
    """Whether the string that begins at `start`, with `unclosed` around it, is the key of a member."""
    end = _end_stripped(cut, start, _SPACE)
    return unclosed.endswith(b"{") and cut[end - 1 : end] in (b"{", b",")


def _keeps_partial_value(cut: bytes, quotes: Positions) -> bool:
    key = cut[int(quotes[-3]) : int(quotes[-2]) + 1]
    try:
        return msgspec.json.decode(key, type=str) in _KEEPS_PARTIAL_VALUE
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def _before_comma(cut: bytes, end: int) -> int:
    end = _end_stripped(cut, end, _SPACE)
    return end - 1 if cut[end - 1 : end] == b"," else end


def _end_stripped(cut: bytes, end: int, octets: bytes) -> int:
    """Where `cut[:end]` ends without the `octets` at its end."""
    while end > 0:
        start = max(0, end - 256)
        stripped = len(cut[start:end].rstrip(octets))
        if stripped:
            return start + stripped
        end = start
    return 0


def _end_of_whole_characters(cut: bytes, start: int) -> int:
    """Where `cut` ends without the half character or half escape at its end; its last string begins at `start`."""
    end = len(cut)
    slash = cut.rfind(b"\\", max(start, end - 5))
    if slash >= 0 and _opens_escape(cut, slash) and (slash == end - 1 or cut[slash + 1 : slash + 2] == b"u"):
        end = slash
    if end - 6 >= start and _is_high_surrogate(cut[end - 6 : end]) and _opens_escape(cut, end - 6):
        end -= 6
    return _character_end(cut, start, end)


def _opens_escape(cut: bytes, slash: int) -> bool:
    return (slash + 1 - _end_stripped(cut, slash + 1, b"\\")) % 2 == 1


def _is_high_surrogate(escape: bytes) -> bool:
    return escape[:2] == b"\\u" and escape[2:3] in b"dD" and escape[3:4] in b"89abAB"


def _character_end(cut: bytes, start: int, end: int) -> int:
    """`end`, moved to before a UTF-8 character of which bytes are missing."""
    for first in range(end - 1, max(start, end - 4) - 1, -1):
        octet = cut[first]
        if octet < 0x80:
            return end
        if octet >= 0xC0:
            length = 2 if octet < 0xE0 else 3 if octet < 0xF0 else 4
            return first if end - first < length else end
    return end
