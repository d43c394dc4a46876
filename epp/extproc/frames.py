"""HTTP/2 frames (RFC 9113) and the header blocks that a gRPC server answers with: numbers, layouts, constants."""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterable

DEFAULT_FRAME = 16_384
DEFAULT_WINDOW = 65_535
UNIMPLEMENTED = 12
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_WINDOW = (1 << 31) - 1
MAX_STREAM_ID = (1 << 31) - 1
DRAIN_PING = b"epp.bye!"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)

FRAME = struct.Struct(">LBL")  # 24 bits of length with 8 of type, flags, stream
DATA_AND_PREFIX = struct.Struct(">LBLBL")  # a frame header followed by a message's 5 bytes
PREFIX = struct.Struct(">BL")
U32 = struct.Struct(">L")
SETTING = struct.Struct(">HL")
PAIR = struct.Struct(">LL")

# Static table entries and literals without indexing (RFC 7541, sections 6.1 and 6.2.2) mean the same whatever table size
# the peer allows.
RESPONSE_BLOCK = b"\x88" + b"\x0f\x10\x10application/grpc"
OK_BLOCK = b"\x00\x0bgrpc-status\x010"
ACCEPTED_ENCODINGS = b"\x00\x14grpc-accept-encoding\x0didentity,gzip"
EMPTY_TABLE = b"\x20"
NOT_GRPC_BODY = b"This port speaks gRPC (HTTP/2 with content-type application/grpc).\n"
NOT_GRPC_BLOCK = b"\x08\x03415" + b"\x0f\x10\x0atext/plain"


class Code(enum.IntEnum):
    """HTTP/2 error codes (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


class ConnectionFault(Exception):
    """A peer's error that ends the connection with GOAWAY. `limit` names the limit that it ran into, "" for none."""

    def __init__(self, code: Code, reason: str, limit: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason
        self.limit = limit


class StreamFault(Exception):
    """A peer's error that ends one stream with RST_STREAM. `limit` names the limit that it ran into, "" for none."""

    def __init__(self, stream_id: int, code: Code, limit: str = "") -> None:
        super().__init__(stream_id, code)
        self.stream_id = stream_id
        self.code = code
        self.limit = limit


def greeting(settings: Iterable[tuple[int, int]], connection_window: int) -> bytes:
    """SETTINGS, and a WINDOW_UPDATE where the connection's window is to be wider than HTTP/2's 65,535."""
    payload = b"".join(SETTING.pack(name, value) for name, value in settings)
    out = FRAME.pack(len(payload) << 8 | SETTINGS, 0, 0) + payload
    more = connection_window - DEFAULT_WINDOW
    if more > 0:
        out += FRAME.pack(4 << 8 | WINDOW_UPDATE, 0, 0) + U32.pack(more)
    return out


def goaway(last_id: int, code: Code, reason: str = "") -> bytes:
    debug = reason.encode()
    return FRAME.pack((8 + len(debug)) << 8 | GOAWAY, 0, 0) + PAIR.pack(last_id, code) + debug


def strip(flags: int, stream_id: int, payload: bytes) -> bytes:
    """The header block fragment of a HEADERS payload, without padding and priority."""
    start = 0
    stop = len(payload)
    if flags & PADDED:
        if not payload:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "HEADERS without its padding length")
        stop -= payload[0]
        start = 1
    if flags & HAS_PRIORITY:
        if len(payload) < start + 5:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "HEADERS without its priority")
        if U32.unpack_from(payload, start)[0] & MAX_STREAM_ID == stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "a stream cannot depend on itself")
        start += 5
    if stop < start:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "padding longer than its frame")
    return payload[start:stop]


def status_block(status: int, message: str) -> bytes:
    """Trailers for `status`; the message is percent-encoded as gRPC asks, and cut at 1,000 characters."""
    block = _literal(b"grpc-status", b"%d" % status)
    if message:
        block += _literal(b"grpc-message", b"".join(map(_percent, message[:1000].encode())))
    if status == UNIMPLEMENTED:
        block += ACCEPTED_ENCODINGS
    return block


def _percent(octet: int) -> bytes:
    return b"%c" % octet if 0x20 <= octet <= 0x7E and octet != 0x25 else b"%%%02X" % octet


def _literal(name: bytes, value: bytes) -> bytes:
    """A literal field without indexing, new name (RFC 7541, section 6.2.2)."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(value: int) -> bytes:
    """A string length with a 7-bit prefix, no Huffman (RFC 7541, section 5.1)."""
    if value < 127:
        return bytes((value,))
    out = bytearray((127,))
    value -= 127
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
