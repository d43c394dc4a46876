"""Envoy's protobuf on one side, the exchange's events and replies on the other.

What a message means is decided by google's generated modules over upb. Three kinds of message are so frequent that their
bytes are read and written here directly, and a test holds these to what upb reads and writes: bodies (0.3 µs where upb
takes 1.2 to decode, 0.2 where it takes 1.9 to encode), headers (a remembered header entry is a dictionary look-up, where
upb makes a Python object), and the reply with the decision (its parts are nearly all the same from one to the next).
Anything out of the ordinary goes to upb.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial

import msgspec
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from envoy.type.v3 import http_status_pb2
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from epp.extproc.events import (
    BodyMode,
    Event,
    Immediate,
    Modes,
    MoreTime,
    Reply,
    RequestBody,
    RequestBodyReply,
    RequestHeaders,
    RequestHeadersReply,
    RequestTrailers,
    RequestTrailersReply,
    ResponseBody,
    ResponseBodyReply,
    ResponseHeaders,
    ResponseHeadersReply,
    ResponseTrailers,
    ResponseTrailersReply,
    Steer,
    StreamedRequestBody,
    StreamedResponseBody,
)

DESTINATION = "x-gateway-destination-endpoint"
SCORES = "x-gateway-destination-endpoint-scores"
SERVED = "x-gateway-destination-endpoint-served"
SUBSET = "x-gateway-destination-endpoint-subset"
ENDPOINT_NAMESPACE = "envoy.lb"
SUBSET_NAMESPACE = "envoy.lb.subset_hint"
ATTRIBUTES = "envoy.filters.http.ext_proc"
UPSTREAM_ADDRESS = "upstream.address"
CLUSTER_NAME = "xds.cluster_name"
POOL = "x-gateway-inference-pool"
"""The key, in whatever namespace of metadata the proxy forwards, of the pool that the request is for."""


class Undecodable(ValueError):
    """The bytes are no `ProcessingRequest`."""


# --- Decoding --------------------------------------------------------------------------------------------------------

_REQUEST_HEADERS = 2 << 3 | 2
_RESPONSE_HEADERS = 3 << 3 | 2
_REQUEST_BODY = 4 << 3 | 2
_RESPONSE_BODY = 5 << 3 | 2
_END = b"\x10\x01"
_END_OF_HEADERS = b"\x18\x01"
_NO_METADATA = b"B\x00"
"""An empty `metadata_context`, which Envoy 1.40 puts behind every part. A body that ends so without one is left to upb."""
_LARGE_BYTES = 16_384
_REQUEST_ID = b"\x0a\x0cx-request-id"
"""Never seen twice: remembering it would only push out what is."""
_REMEMBERED_HEADERS = 4096
_REMEMBERED_BYTES = 256
"""Largest header entry or metadata that is remembered, so that memory stays bounded whatever clients send."""


def decode_usual(message: bytes) -> Event | None:
    """As `decode` where the message is laid out as Envoy lays it out; None for any other, whether or not it means something."""
    tag = message[0] if message else 0
    if tag == _RESPONSE_BODY:
        stop = len(message) - 2 if message.endswith(_NO_METADATA) else len(message)
        going, last, size = _response_body_layouts(stop)
        if message.startswith(going):
            return ResponseBody(message[size:stop], False)
        if message.startswith(last) and message.endswith(_END, 0, stop):
            return ResponseBody(message[len(last) : stop - 2], True)
    elif tag == _REQUEST_BODY:
        stop = len(message) - 2 if message.endswith(_NO_METADATA) else len(message)
        going, last, size = _request_body_layouts(stop)
        if message.startswith(going):
            data = message[size:stop] if stop < _LARGE_BYTES else _cut(message, size, stop)
            return RequestBody(data, False)
        if message.startswith(last) and message.endswith(_END, 0, stop):
            data = message[len(last) : stop - 2] if stop < _LARGE_BYTES else _cut(message, len(last), stop - 2)
            return RequestBody(data, True)
    elif tag in (_REQUEST_HEADERS, _RESPONSE_HEADERS):
        return _decode_headers(message, tag)
    return None


def _cut(message: bytes, start: int, stop: int) -> bytes | memoryview:
    """A part of `message`; without a copy where it is large and will be joined with others anyway."""
    return message[start:stop] if stop - start < _LARGE_BYTES else memoryview(message)[start:stop]


def _body_layouts(tag: int, size: int) -> tuple[bytes, bytes, int]:
    """How a body message of `size` bytes begins: without its end flag and with it; then the length of the first.

    The body's bytes follow. The lengths inside follow from the length outside, so that reading them is a comparison.
    What cannot be is given as the tag 0, with which no message begins.
    """
    going = _body_beginning(tag, size, 0)
    return going, _body_beginning(tag, size, len(_END)), len(going)


def _body_beginning(tag: int, size: int, after: int) -> bytes:
    for digits in range(1, 6):
        inner = size - 1 - digits
        if inner < after or len(_varint(inner)) != digits:
            continue
        outer = bytes((tag,)) + _varint(inner)
        if inner == after:
            return outer
        for more in range(1, 6):
            count = inner - after - 1 - more
            if count > 0 and len(_varint(count)) == more:
                return outer + b"\x0a" + _varint(count)
    return b"\x00"


_response_body_layouts = lru_cache(maxsize=4096)(partial(_body_layouts, _RESPONSE_BODY))
_request_body_layouts = lru_cache(maxsize=4096)(partial(_body_layouts, _REQUEST_BODY))


def _decode_headers(message: bytes, tag: int) -> Event | None:
    try:
        size, at = message[1], 2
        if size > 0x7F:
            size, at = _read_varint(message, 1)
        end = at + size
        block_size = 0
        if message[at] == 0x0A:
            block_size = message[at + 1]
            at += 2
            if block_size > 0x7F:
                block_size, at = _read_varint(message, at - 1)
        block_end = at + block_size
        headers = _header_block(message, at, block_end)
        rest = message[end:]
        aside = _remembered_aside(rest) if len(rest) <= _REMEMBERED_BYTES else _aside(rest)
    except (IndexError, DecodeError):
        return None
    flags = message[block_end:end]
    if headers is None or aside is None or flags not in (b"", _END_OF_HEADERS) or not block_end <= end <= len(message):
        return None
    if tag == _REQUEST_HEADERS:
        return RequestHeaders(headers, bool(flags), aside.subset, aside.modes, aside.pool)
    return ResponseHeaders(headers, bool(flags), aside.served)


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The value and where it ends. Raises IndexError where the message ends first."""
    value = message[at]
    at += 1
    if value > 0x7F:
        value &= 0x7F
        shift = 7
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
    return value, at


def _header_block(message: bytes, at: int, end: int) -> dict[str, str] | None:
    """The `HeaderMap` in these bytes; None where it holds anything but entries."""
    headers: dict[str, str] = {}
    while at < end:
        if message[at] != 0x0A:
            return None
        size = message[at + 1]
        at += 2
        if size > 0x7F:
            size, at = _read_varint(message, at - 1)
        entry = message[at : at + size]
        at += size
        known = _known_headers.get(entry)
        name, value = known if known is not None else _new_header(entry)
        if name in headers:
            value = f"{headers[name]},{value}"
        headers[name] = value
    return headers if at == end else None


_known_headers: dict[bytes, tuple[str, str]] = {}
"""Entries seen before. When it is full, all of them are forgotten: what comes often is back at once."""


def _new_header(entry: bytes) -> tuple[str, str]:
    """Raises DecodeError."""
    header = _header(entry)
    if len(entry) <= _REMEMBERED_BYTES and not entry.startswith(_REQUEST_ID):
        if len(_known_headers) >= _REMEMBERED_HEADERS:
            _known_headers.clear()
        _known_headers[entry] = header
    return header


def _header(entry: bytes) -> tuple[str, str]:
    try:
        size = entry[1]
        at = size + 4
        # Name and raw value, both short, and nothing else: as Envoy writes them.
        if entry[0] == 0x0A and size < 0x80 and entry[size + 2] == 0x1A and len(entry) - at == entry[size + 3] < 0x80:
            return entry[2 : size + 2].decode().lower(), entry[at:].decode("utf-8", "replace")
    except (IndexError, UnicodeDecodeError):
        pass
    return _name_and_value(base_pb2.HeaderValue.FromString(entry))


def _name_and_value(header: base_pb2.HeaderValue) -> tuple[str, str]:
    raw: bytes = header.raw_value
    return header.key.lower(), raw.decode("utf-8", "replace") if raw else header.value


class _Aside(msgspec.Struct, frozen=True):
    """What a message says beside its part of the request or response."""

    subset: tuple[str, ...] | None
    served: str | None
    modes: Modes | None
    pool: str


def _aside(rest: bytes) -> _Aside | None:
    """None where the bytes also hold a part of the request or response. Raises DecodeError."""
    message = pb.ProcessingRequest.FromString(rest)
    if message.WhichOneof("request") is not None:
        return None
    return _Aside(_subset(message), _served(message), _modes(message), _pool(message))


_remembered_aside = lru_cache(maxsize=1024)(_aside)


def decode(message: bytes) -> Event | None:
    """What Envoy says, however it is laid out; None for a message that says nothing. Raises Undecodable."""
    try:
        request = pb.ProcessingRequest.FromString(message)
    except DecodeError as error:
        raise Undecodable(str(error)) from error
    match request.WhichOneof("request"):
        case "request_headers":
            part = request.request_headers
            return RequestHeaders(_headers(part), part.end_of_stream, _subset(request), _modes(request), _pool(request))
        case "request_body":
            return RequestBody(request.request_body.body, request.request_body.end_of_stream, _subset(request))
        case "request_trailers":
            return RequestTrailers()
        case "response_headers":
            part = request.response_headers
            return ResponseHeaders(_headers(part), part.end_of_stream, _served(request))
        case "response_body":
            return ResponseBody(request.response_body.body, request.response_body.end_of_stream)
        case "response_trailers":
            return ResponseTrailers()
        case _:
            return None


def _headers(part: pb.HttpHeaders) -> dict[str, str]:
    headers: dict[str, str] = {}
    for header in part.headers.headers:
        name, value = _name_and_value(header)
        headers[name] = f"{headers[name]},{value}" if name in headers else value
    return headers


def _modes(message: pb.ProcessingRequest) -> Modes | None:
    if not message.HasField("protocol_config"):
        return None
    config = message.protocol_config
    try:
        return Modes(BodyMode(config.request_body_mode), BodyMode(config.response_body_mode))
    except ValueError:
        # A mode of a later Envoy: the configured default is the better guess.
        return None


def _metadata(message: pb.ProcessingRequest, namespace: str, key: str) -> struct_pb2.Value | None:
    # Looking a missing key up in a protobuf map would add it.
    metadata = message.metadata_context.filter_metadata
    if namespace not in metadata or key not in metadata[namespace].fields:
        return None
    value: struct_pb2.Value = metadata[namespace].fields[key]
    return value


def _subset(message: pb.ProcessingRequest) -> tuple[str, ...] | None:
    """The endpoints that the proxy allows: `ip:port`, or `ip` for all its ports. None where it says nothing usable."""
    value = _metadata(message, SUBSET_NAMESPACE, SUBSET)
    if value is None:
        return None
    match value.WhichOneof("kind"):
        case "string_value":
            return _split((value.string_value,))
        case "list_value":
            return _split(item.string_value for item in value.list_value.values)
        case _:
            return None


def _pool(message: pb.ProcessingRequest) -> str:
    for told in message.metadata_context.filter_metadata.values():
        if POOL in told.fields:
            return str(told.fields[POOL].string_value)
    # Sent only where the proxy's configuration asks for it, which is to say that clusters are called like pools.
    return _attribute(message, CLUSTER_NAME)


def _split(items: Iterable[str]) -> tuple[str, ...]:
    parts = (part.strip() for item in items for part in item.split(","))
    return tuple(part for part in parts if part)


def _served(message: pb.ProcessingRequest) -> str | None:
    value = _metadata(message, ENDPOINT_NAMESPACE, SERVED)
    if value is not None and value.string_value:
        return str(value.string_value)
    return _attribute(message, UPSTREAM_ADDRESS) or None


def _attribute(message: pb.ProcessingRequest, name: str) -> str:
    """An attribute that is a text; "" where there is none of that name."""
    if ATTRIBUTES not in message.attributes or name not in message.attributes[ATTRIBUTES].fields:
        return ""
    return str(message.attributes[ATTRIBUTES].fields[name].string_value)


# --- Encoding --------------------------------------------------------------------------------------------------------


def encode(reply: Reply) -> bytes:
    """The `ProcessingResponse`. `EndOfStream` has none: it is the stream's end."""
    # Not isinstance: it costs 0.2 µs for each class that does not fit, because the classes' metaclass is an ABCMeta.
    if type(reply) is StreamedResponseBody:
        return _streamed(0x22, reply.data, reply.end)
    if type(reply) is StreamedRequestBody:
        return _streamed(0x1A, reply.data, reply.end)
    if type(reply) is ResponseBodyReply:
        return _PASS_RESPONSE_BODY if reply.body is None else _part(0x22, _new_body(reply.body))
    if type(reply) is RequestHeadersReply:
        return _PASS_REQUEST_HEADERS if reply.steer is None else _steered(0x0A, reply.steer, b"")
    if type(reply) is RequestBodyReply:
        new_body = b"" if reply.body is None else _new_body(reply.body)
        return _PASS_REQUEST_BODY if reply.steer is None else _steered(0x1A, reply.steer, new_body)
    if type(reply) is ResponseHeadersReply:
        return _response_headers(reply)
    if type(reply) is RequestTrailersReply:
        return _REQUEST_TRAILERS
    if type(reply) is ResponseTrailersReply:
        return _RESPONSE_TRAILERS
    if type(reply) is Immediate:
        return _immediate(reply)
    if type(reply) is MoreTime:
        return _more_time(reply.seconds)
    raise TypeError("the end of the stream is no message")


def _more_time(seconds: int) -> bytes:
    duration = b"\x08" + _varint(seconds)
    return b"\x52" + _varint(len(duration)) + duration


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def _field(tag: int, value: bytes) -> bytes:
    """A length-delimited field. Every field number here is below 16, so that a tag is one byte."""
    size = len(value)
    return bytes((tag, size)) + value if size < 0x80 else bytes((tag,)) + _varint(size) + value


def _part(tag: int, common: bytes) -> bytes:
    """A `ProcessingResponse` with one `HeadersResponse` or `BodyResponse` around a `CommonResponse`."""
    return _field(tag, _field(0x0A, common))


def _streamed(tag: int, data: bytes | memoryview, end: bool) -> bytes:
    return b"".join((_streamed_beginning(tag, len(data), end), data, _END if end else b""))


@lru_cache(maxsize=4096)
def _streamed_beginning(tag: int, size: int, end: bool) -> bytes:
    """All of a full-duplex body reply that comes before the body's bytes: five lengths around one another."""
    beginning = b"\x0a" + _varint(size) if size else b""
    follows = size + (len(_END) if end else 0)
    for around in (0x1A, 0x1A, 0x0A, tag):
        beginning = bytes((around,)) + _varint(len(beginning) + follows) + beginning
    return beginning


def _new_body(body: bytes) -> bytes:
    """`CommonResponse.body_mutation`. An empty body is asked for by its own flag."""
    return _field(0x1A, _field(0x0A, body) if body else b"\x10\x01")


_CLEAR_ROUTE_CACHE = b"\x28\x01"
_OVERWRITE = b"\x18\x02"


def _steered(tag: int, steer: Steer, new_body: bytes) -> bytes:
    if not (new_body or steer.set_headers or steer.remove_headers or steer.scores):
        return _only_steered(tag, steer.destination)
    destination, metadata = _destination(steer.destination)
    if steer.scores:
        metadata = _metadata_with_scores(steer.destination, steer.scores.items())
    mutation = destination + _mutation(steer.set_headers, steer.remove_headers)
    return _part(tag, _field(0x12, mutation) + new_body + _CLEAR_ROUTE_CACHE) + metadata


@lru_cache(maxsize=4096)
def _only_steered(tag: int, destination: str) -> bytes:
    """Nothing but where to: the same for all requests that an endpoint gets."""
    if not destination:
        return _part(tag, b"")
    header, metadata = _destination(destination)
    return _part(tag, _field(0x12, header) + _CLEAR_ROUTE_CACHE) + metadata


@lru_cache(maxsize=4096)
def _destination(destination: str) -> tuple[bytes, bytes]:
    """The same value twice: as a header to set, and as dynamic metadata. Neither where there is none."""
    if not destination:
        return b"", b""
    return _set_header(DESTINATION, destination), _metadata_with_scores(destination, ())


def _metadata_with_scores(destination: str, scores: Iterable[tuple[str, float]]) -> bytes:
    inner: dict[str, str | dict[str, float]] = {DESTINATION: destination}
    by_endpoint = dict(scores)
    if by_endpoint:
        inner[SCORES] = by_endpoint
    struct = struct_pb2.Struct()
    struct.update({ENDPOINT_NAMESPACE: inner})
    encoded: bytes = pb.ProcessingResponse(dynamic_metadata=struct).SerializeToString()
    return encoded


def _mutation(set_headers: Iterable[tuple[str, str]], remove_headers: tuple[str, ...]) -> bytes:
    """The fields of a `HeaderMutation`."""
    changes = b"".join([_set_header(name, value) for name, value in set_headers])
    return changes + _remove_headers(remove_headers) if remove_headers else changes


def _set_header(name: str, value: str) -> bytes:
    header = _field(0x0A, name.encode()) + _field(0x1A, value.encode("utf-8", "replace"))
    return _field(0x0A, _field(0x0A, header) + _OVERWRITE)


@lru_cache(maxsize=64)
def _remove_headers(names: tuple[str, ...]) -> bytes:
    return b"".join([_field(0x12, name.encode()) for name in names])


def _response_headers(reply: ResponseHeadersReply) -> bytes:
    if not (reply.set_headers or reply.remove_headers):
        part = _PASS_RESPONSE_HEADERS
    else:
        part = _part(0x12, _field(0x12, _mutation(reply.set_headers, reply.remove_headers)))
    return part if reply.look_over is None else part + _look_over(reply.look_over)


@lru_cache(maxsize=len(BodyMode))
def _look_over(request_body_mode: BodyMode) -> bytes:
    """The override replaces the whole mode, the request's too, so it says again what holds there."""
    mode = processing_mode_pb2.ProcessingMode(
        request_body_mode=request_body_mode.value,
        response_body_mode=processing_mode_pb2.ProcessingMode.STREAMED,
        response_trailer_mode=processing_mode_pb2.ProcessingMode.SEND,
    )
    encoded: bytes = pb.ProcessingResponse(mode_override=mode).SerializeToString()
    return encoded


def _immediate(reply: Immediate) -> bytes:
    drop = reply.drop
    response = pb.ProcessingResponse()
    immediate = response.immediate_response
    immediate.status.CopyFrom(http_status_pb2.HttpStatus(code=drop.status))
    immediate.headers.MergeFromString(_mutation(drop.headers(), ()))
    immediate.body = drop.body()
    immediate.details = drop.reason.value.replace("-", "_")
    encoded: bytes = response.SerializeToString()
    return encoded


_PASS_REQUEST_HEADERS = _part(0x0A, b"")
_PASS_REQUEST_BODY = _part(0x1A, b"")
_PASS_RESPONSE_HEADERS = _part(0x12, b"")
_PASS_RESPONSE_BODY = _part(0x22, b"")
_REQUEST_TRAILERS = _field(0x2A, b"")
_RESPONSE_TRAILERS = _field(0x32, b"")
