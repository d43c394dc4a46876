"""Turns the model's name in a streamed answer back to the one that the client asked for."""

from __future__ import annotations

import re

import msgspec

MAX_BLANKS = 16
"""Most blanks tolerated on each side of the colon in `"model" : "…"`; a bound on what is held back."""

_KEY = b'"model"'
_BLANKS = rb"[ \t\r\n]{0,%d}" % MAX_BLANKS
_TEXT = rb'[^"\\]*(?:\\.[^"\\]*)*'
_MEMBER = re.compile(rb'(?<!\\)"model"' + _BLANKS + b":" + _BLANKS + b'"(' + _TEXT + b')"', re.DOTALL)
_REST_OF_OPEN_MEMBER = re.compile(_BLANKS + b"(?::" + _BLANKS + b'(?:"' + _TEXT + rb"\\?)?)?", re.DOTALL)


class TurnBack:
    """Replaces, in every JSON member `"model": "<server_name>"`, the value by `client_name`; no other byte changes.

    The text may be cut at any byte: `feed` returns what can go out and holds back at most `max_held_bytes`, the
    beginning of a member that may still turn out to be one; `flush` returns the rest. A name counts as the server's in
    every way JSON can spell it. Members of nested objects count; text inside JSON strings does not, because a quote
    there is escaped.
    """

    __slots__ = ("_after_backslash", "_held", "_new", "_server_name", "_usual", "max_held_bytes")

    def __init__(self, server_name: str, client_name: str) -> None:
        self._server_name = server_name
        self._usual = msgspec.json.encode(server_name)[1:-1]
        self._new = msgspec.json.encode(client_name)[1:-1]
        self._held = b""
        self._after_backslash = False
        # The longest spelling of a name is \uXXXX for each of its UTF-16 units.
        self.max_held_bytes = len(_KEY) + 2 * MAX_BLANKS + len(b':"') + 3 * len(server_name.encode("utf-16-le"))

    def feed(self, data: bytes) -> bytes:
        text = self._held + data if self._held else data
        out: list[bytes] = []
        copied = matched = 0
        # A quote that was held back is no key's if what went out before it escapes it.
        first = 1 if self._after_backslash else 0
        for member in _MEMBER.finditer(text, first) if _KEY in text else ():
            matched = member.end()
            if self._is_server_name(member[1]):
                out += (text[copied : member.start(1)], self._new)
                copied = member.end(1)
        hold = self._hold_from(text, matched)
        self._held = text[hold:]
        if hold:
            self._after_backslash = text[hold - 1] == 0x5C
        if not copied:
            return text[:hold]
        out.append(text[copied:hold])
        return b"".join(out)

    def flush(self) -> bytes:
        held, self._held = self._held, b""
        return held

    def _is_server_name(self, spelled: bytes) -> bool:
        if b"\\" not in spelled:
            return spelled == self._usual
        try:
            return msgspec.json.decode(b'"' + spelled + b'"', type=str) == self._server_name
        except (msgspec.DecodeError, UnicodeDecodeError):
            return False

    def _hold_from(self, text: bytes, start: int) -> int:
        """Where what follows could still become a member, at or after `start`; the text's length if nowhere."""
        key = text.rfind(_KEY, start)
        if (
            key >= 0
            and len(text) - key <= self.max_held_bytes
            and _REST_OF_OPEN_MEMBER.fullmatch(text, key + len(_KEY))
        ):
            return key
        quote = text.rfind(b'"', max(start, len(text) - len(_KEY) + 1))
        return quote if quote >= 0 and _KEY.startswith(text[quote:]) else len(text)
