"""Prompt bytes: the part of a request body that decides which tokens a server computes, in the order it does.

The bytes are those of the body's own JSON strings, escapes and quotes included, without ever making a `str` of them:
0.9 µs per KB, of which 0.6 are the JSON scan itself, where decoding and encoding take 2 to 3. A JSON string has one shortest spelling; `\\uXXXX` for a character that
needs none is the one difference in use between clients (Python's `json` escapes, others do not), and strings that
have it are spelled anew. So the same text gives the same bytes whoever sent it.

The order is tools, then documents, then the messages; what comes later in a conversation is appended, so that the
bytes of one turn begin the bytes of the next. String content and a list of one text part are the same, as they are for
the server, because clients that mark a message for caching turn one into the other from turn to turn.
"""

from __future__ import annotations

import re
from array import array

import msgspec
import numpy as np
from msgspec import Raw, Struct

from epp.openai import media

NOTHING = Raw()
"""The default of every field: absent. `null` counts as absent too."""

_NULL = b"null"
_QUOTE = ord('"')
_SEPARATOR = b"\n"
_ESCAPE_16 = np.array(0x755C, dtype="<u2")  # "\u" as one little-endian number
_find_escape = re.compile(rb"\\u").search
_VECTOR_BYTES = 8_192  # from here on numpy finds it faster
_CHUNK_PAIRS = 32_768


class Part(Struct, gc=False):
    """One part of a message's content, in any API."""

    text: Raw = NOTHING
    image_url: Raw = NOTHING
    input_audio: Raw = NOTHING
    audio_url: Raw = NOTHING
    video_url: Raw = NOTHING
    source: Raw = NOTHING  # Anthropic: image or document
    content: Raw = NOTHING  # Anthropic: tool_result
    name: Raw = NOTHING  # Anthropic: tool_use
    input: Raw = NOTHING  # Anthropic: tool_use
    thinking: Raw = NOTHING
    refusal: Raw = NOTHING
    file: Raw = NOTHING
    file_data: Raw = NOTHING
    file_url: Raw = NOTHING
    file_id: Raw = NOTHING
    uuid: Raw = NOTHING  # vLLM: media that the server has already


class Message(Struct, gc=False):
    """A message of chat completions or Anthropic messages, or an item of a Responses input."""

    role: Raw = NOTHING
    content: Raw = NOTHING
    tool_calls: Raw = NOTHING
    reasoning_content: Raw = NOTHING
    reasoning: Raw = NOTHING
    name: Raw = NOTHING  # Responses: function_call
    arguments: Raw = NOTHING
    output: Raw = NOTHING  # Responses: function_call_output
    summary: Raw = NOTHING  # Responses: reasoning


class Source(Struct, gc=False):
    """Where the bytes of a medium are, under the names of all APIs."""

    url: Raw = NOTHING
    data: Raw = NOTHING
    file_id: Raw = NOTHING
    media_type: str = ""
    format: str = ""
    type: str = ""


_decode_parts = msgspec.json.Decoder(list[Part]).decode
_decode_items = msgspec.json.Decoder(list[Raw]).decode
_decode_ids = msgspec.json.Decoder(list[int]).decode
_decode_source = msgspec.json.Decoder(Source).decode
_decode_string = msgspec.json.Decoder(str).decode
_encode = msgspec.json.encode

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding can raise: no JSON or another type than expected, an octet that is no text, deep nesting."""

_BILLING = b'"x-anthropic-billing-header'
"""How a text part begins that Claude Code puts first and changes with every request; vLLM leaves it out as well."""


def given(raw: Raw) -> bytes:
    """The JSON text of a value; empty where it is absent or null."""
    if raw is NOTHING:
        return b""
    text = bytes(raw)
    return b"" if text == _NULL else text


def conversation(ahead: tuple[Raw, ...], system: Raw, messages: list[Message]) -> bytes:
    """`ahead` is what a chat template renders before all text (tools, documents), `system` the text before the messages."""
    pieces = [given(raw) for raw in ahead if raw is not NOTHING]
    put = pieces.append
    if system is not NOTHING:
        _put_content(pieces, given(system))
    for message in messages:
        put(_SEPARATOR)
        if message.role is NOTHING:
            _put_item(pieces, message)
            continue
        put(message.role)
        if message.reasoning_content is not NOTHING:
            put(given(message.reasoning_content))
        elif message.reasoning is not NOTHING:
            put(given(message.reasoning))
        content = message.content
        if content is not NOTHING:
            if memoryview(content)[0] == _QUOTE:
                put(content)
            else:
                _put_content(pieces, bytes(content))
        if message.tool_calls is not NOTHING:
            put(given(message.tool_calls))
    return _joined(pieces)


def texts(raw: bytes) -> tuple[bytes, ...]:
    """The prompts in a `prompt`, `input` or the like: a string, token ids, or a list of either.

    Text comes without its quotes, token ids as 4 little-endian bytes each. What is neither is taken as it is.
    """
    if raw[:1] != b"[":
        return (_text(raw),) if raw else ()
    first = raw[1:64].lstrip()[:1] or raw[1:].lstrip()[:1]
    if first not in (b'"', b"[", b"{", b"]"):
        return (_token_ids(raw),)
    return tuple([_token_ids(item) if item[:1] == b"[" else _text(item) for item in map(bytes, _decode_items(raw))])


def flat(values: tuple[Raw, ...]) -> bytes:
    """The texts of `values` one after the other, as they are: what a reranker reads."""
    pieces = [piece for piece in map(given, values) if piece]
    return _joined(pieces)


def string(raw: Raw) -> str | None:
    """The value of a JSON string; None for anything else."""
    try:
        return _decode_string(raw)
    except UNREADABLE:
        return None


def _put_content(pieces: list[bytes], content: bytes, within_part: bool = False) -> None:
    """A string, a list of parts, or something of no known form: that as it is."""
    if content[:1] != b"[":
        if content != _NULL:
            pieces.append(content)
        return
    try:
        parts = _decode_parts(content)
    except UNREADABLE:
        pieces.append(content)
        return
    for part in parts:
        if part.text is NOTHING:
            _put_other_part(pieces, part, within_part)
        elif not (text := given(part.text)).startswith(_BILLING):
            pieces.append(text)


def _put_other_part(pieces: list[bytes], part: Part, within_part: bool) -> None:
    if part.source is not NOTHING:
        _put_source(pieces, given(part.source))
    elif part.image_url is not NOTHING:
        pieces.append(media.image(_identity(part.image_url, part.uuid)))
    elif part.input_audio is not NOTHING:
        audio = _source(given(part.input_audio))
        pieces.append(media.audio(_unquoted(given(audio.data)), audio.format == "wav"))
    elif part.audio_url is not NOTHING:
        identity = _identity(part.audio_url, part.uuid)
        pieces.append(media.audio(identity, b"wav" in identity[:32]))
    elif part.video_url is not NOTHING:
        pieces.append(media.video(_identity(part.video_url, part.uuid)))
    elif part.content is not NOTHING:
        # A tool's result has parts of its own, but those have none: each level would be decoded once more.
        if within_part:
            pieces.append(given(part.content))
        else:
            _put_content(pieces, given(part.content), within_part=True)
    else:
        pieces += map(given, (part.thinking, part.refusal, part.name, part.input))
        for document in (part.file, part.file_data, part.file_url, part.file_id):
            if document is not NOTHING:
                pieces.append(media.file(given(document)))


def _put_source(pieces: list[bytes], raw: bytes) -> None:
    source = _source(raw)
    content = given(source.data) or given(source.url) or given(source.file_id) or raw
    if source.type == "text":
        pieces.append(content)
    elif source.media_type == "application/pdf":
        pieces.append(media.file(content))
    else:
        pieces.append(media.image(_unquoted(content)))


def _put_item(pieces: list[bytes], item: Message) -> None:
    """An item of a Responses input that is no message: a function call, its output, or reasoning."""
    pieces += map(given, (item.name, item.arguments))
    for content in (item.output, item.summary, item.content):
        _put_content(pieces, given(content))


def _source(raw: bytes) -> Source:
    try:
        return _decode_source(raw)
    except UNREADABLE:
        return Source()


def _identity(raw: Raw, uuid: Raw) -> bytes:
    """What tells one medium from another: its URL (`"…"` or `{"url": "…"}`), or the id under which a server has it."""
    value = given(raw) or given(uuid)
    if value[:1] == b"{":
        value = given(_source(value).url) or value
    return _unquoted(value)


def _unquoted(text: bytes) -> bytes:
    return text[1:-1] if text[:1] == b'"' else text


def _text(raw: bytes) -> bytes:
    """A JSON string in its shortest spelling without its quotes; any other JSON value as it is."""
    return _unquoted(_shortest(raw) if _has_escape(raw) else raw)


def _token_ids(raw: bytes) -> bytes:
    try:
        return array("I", _decode_ids(raw)).tobytes()
    except (*UNREADABLE, OverflowError):
        return raw


def _joined(pieces: list[bytes]) -> bytes:
    whole = b"".join(pieces)
    return b"".join([_shortest(bytes(piece)) for piece in pieces]) if _has_escape(whole) else whole


def _has_escape(text: bytes) -> bool:
    """Whether `\\u` occurs. Where there is a backslash, for 400 KB `in` would take 450 µs, the expression 240, numpy takes 50."""
    if b"\\" not in text:
        return False
    if len(text) < _VECTOR_BYTES:
        return _find_escape(text) is not None
    even = np.frombuffer(text, "<u2", len(text) // 2)
    odd = np.frombuffer(text, "<u2", (len(text) - 1) // 2, 1)
    # In pieces that fit the cache: temporaries as long as the text cost more in page faults than the search does.
    for start in range(0, len(even), _CHUNK_PAIRS):
        piece = slice(start, start + _CHUNK_PAIRS)
        if np.count_nonzero(even[piece] == _ESCAPE_16) or np.count_nonzero(odd[piece] == _ESCAPE_16):
            return True
    return False


def _shortest(piece: bytes) -> bytes:
    """A JSON string in its shortest spelling where it may have another; anything else as it is."""
    if piece[:1] != b'"' or _find_escape(piece) is None:
        return piece
    try:
        return _encode(_decode_string(piece))
    except UNREADABLE:
        return piece
