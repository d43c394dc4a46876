"""What Envoy 1.40 puts on the wire for one chat, modelled on a capture: HTTP/2 frames around ext_proc messages.

For measuring the picker without sockets and without Envoy: the same work every time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import hpack
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">LBL")
_PREFIX = struct.Struct(">BL")
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _WINDOW_UPDATE = 0, 1, 3, 4, 8
_FRAME_BYTES = 16_384
_NO_METADATA = b"B\x00"
"""Every message of Envoy ends in an empty `metadata_context`."""
FULL_DUPLEX, LEAN = b"Z\x04\x08\x04\x10\x04", b"Z\x04\x08\x03\x10\x00"
"""`protocol_config` of the first message: request and response body modes."""

_CALL_HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    # Never put into the table.
    (":path", "/envoy.service.ext_proc.v3.ExternalProcessor/Process", True),
    (":authority", "picker"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("x-envoy-internal", "true"),
    ("x-forwarded-for", "10.0.0.2"),
    ("x-envoy-expected-rq-timeout-ms", "10"),
)


def greeting() -> bytes:
    """What opens the connection: preface, settings with Envoy's windows, and the acknowledgement of our settings."""
    windows = _frame(_SETTINGS, 0, 0, struct.pack(">HL", 4, 1 << 28))
    more = _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">L", 1 << 29))
    return PREFACE + windows + more + _frame(_SETTINGS, 1, 0, b"")


def more_room(count: int) -> bytes:
    """Credit for `count` more bytes over all streams."""
    return _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">L", count))


def call(encoder: hpack.Encoder, traceparent: str = "") -> bytes:
    """The header block of a connection's next call, by the connection's encoder: all but the path is in its table after the first.

    Where Envoy traces, each call has a `traceparent` of its own, which goes into the table as well.
    """
    trace = (("traceparent", traceparent), ("tracestate", "")) if traceparent else ()
    block: bytes = encoder.encode((*_CALL_HEADERS, *trace))
    return block


def request_start(call: bytes, stream_id: int, request_id: str, body_bytes: int, modes: bytes) -> bytes:
    """The call by its header block, and the message with the request's headers."""
    message = pb.ProcessingRequest()
    _put(message.request_headers.headers, _request_headers(request_id, body_bytes))
    return _frame(_HEADERS, 4, stream_id, call) + _message(
        stream_id, message.SerializeToString() + _NO_METADATA + modes
    )


def request_body(stream_id: int, body: bytes, pieces_of: int = 65_536) -> Iterator[bytes]:
    """Full duplex: the body as Envoy reads it, then an empty message that ends it."""
    for start in range(0, len(body), pieces_of):
        yield _message(stream_id, _body("request_body", body[start : start + pieces_of], False))
    yield _message(stream_id, _body("request_body", b"", True))


def whole_request_body(stream_id: int, body: bytes) -> bytes:
    """Lean: the buffered body in one message."""
    return _message(stream_id, _body("request_body", body, True))


def response_start(stream_id: int, content_type: str) -> bytes:
    message = pb.ProcessingRequest()
    headers = ((":status", "200"), ("content-type", content_type), ("x-envoy-upstream-service-time", "10"))
    _put(message.response_headers.headers, headers)
    return _message(stream_id, message.SerializeToString() + _NO_METADATA)


def response_body(stream_id: int, data: bytes, end: bool) -> bytes:
    return _message(stream_id, _body("response_body", data, end))


def done(stream_id: int) -> bytes:
    """Envoy half-closes and resets in one write."""
    return _frame(_DATA, 1, stream_id, b"") + _frame(_RST_STREAM, 0, stream_id, b"\x00\x00\x00\x00")


def chat(prompt_bytes: int, number: int, *, stream: bool = False) -> bytes:
    """A chat of about `prompt_bytes`, distinct by `number` from its first block on."""
    words = "the quick brown fox jumps over the lazy dog and runs on through the quiet wood "
    text = (f"conversation {number}. " + words * (prompt_bytes // len(words) + 1))[: prompt_bytes - 120]
    body = {
        "model": "base",
        "messages": [{"role": "user", "content": text}],
        "stream": stream,
        "max_tokens": 64,
    }
    return json.dumps(body).encode()


def _request_headers(request_id: str, body_bytes: int) -> tuple[tuple[str, str], ...]:
    return (
        (":authority", "127.0.0.1:8081"),
        (":path", "/v1/chat/completions"),
        (":method", "POST"),
        (":scheme", "http"),
        ("content-type", "application/json"),
        ("content-length", str(body_bytes)),
        ("x-forwarded-proto", "http"),
        ("x-request-id", request_id),
    )


def _put(headers: object, pairs: tuple[tuple[str, str], ...]) -> None:
    for name, value in pairs:
        header = headers.headers.add()  # type: ignore[attr-defined]
        header.key = name
        header.raw_value = value.encode()


def _body(part: str, data: bytes, end: bool) -> bytes:
    message = pb.ProcessingRequest()
    body = getattr(message, part)
    body.body = data
    body.end_of_stream = end
    body.SetInParent()
    encoded: bytes = message.SerializeToString()
    return encoded + _NO_METADATA


def _message(stream_id: int, message: bytes) -> bytes:
    data = _PREFIX.pack(0, len(message)) + message
    return b"".join(
        _frame(_DATA, 0, stream_id, data[start : start + _FRAME_BYTES]) for start in range(0, len(data), _FRAME_BYTES)
    )


def _frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return _FRAME.pack(len(payload) << 8 | kind, flags, stream_id) + payload
