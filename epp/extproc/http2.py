"""The server's side of one HTTP/2 connection (RFC 9113) that carries gRPC calls: bytes in, events and bytes out.

No I/O and no clock. The owner feeds `receive`, acts on its events through `send` and `close`, and writes what
`take_output` returns, once per read. Responses need no HPACK encoder: their header blocks are constants made of static
table entries and literals. Requests need almost no decoder: clients say the same of every call, so that a block by reference
follows another just like it, and is looked up (`Limits.remembered_blocks`).
"""

from __future__ import annotations

import enum
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Mapping

import msgspec

from epp.extproc.calls import Call, CallReader, Malformed, read_trailers
from epp.extproc.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DATA_AND_PREFIX,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    DRAIN_PING,
    EMPTY_TABLE,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    FRAME,
    GOAWAY,
    HAS_PRIORITY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW,
    NOT_GRPC_BLOCK,
    NOT_GRPC_BODY,
    OK_BLOCK,
    PADDED,
    PING,
    PREFACE,
    PREFIX,
    PRIORITY,
    PUSH_PROMISE,
    RESPONSE_BLOCK,
    RST_STREAM,
    SETTING,
    SETTINGS,
    U32,
    WINDOW_UPDATE,
    Code,
    ConnectionFault,
    StreamFault,
    goaway,
    greeting,
    status_block,
    strip,
)
from epp.extproc.hpack import Field, HpackError, TooLarge

MIB = 1 << 20
LARGE_READ_BYTES = 16_384

TEXT_UNFOLDS = 32
"""Times its size. What gzip makes of JSON and prompts unfolds to three to ten times, and what unfolds to more is counted."""
DEFLATE_UNFOLDS = 1_032
"""Times its size, at most: the format can say no more."""
UNFOLDED_BYTES_PER_CHATTER = 16_384
"""They take 50 µs."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one connection may ask of us, and how many there may be. Sizes are bytes; each default says why."""

    max_connections: int = 4096
    """At once. Envoy opens one for each worker thread: room for a hundred proxies with 32 cores. An idle one costs about
    20 KiB, over TLS 100; its client's header table 20 at most."""
    idle_connection_s: float = 5.0
    """Where there is no place for a new connection, the one that has had no call for the longest time gives way, and at least
    for so long: Envoy calls as soon as it has a connection, so that two of them do not push each other out."""

    max_message_bytes: int = 64 * MIB
    """One gRPC message, after decompression. Envoy sends a buffered body whole, up to its own buffer limit; prompts with
    inline images reach tens of MiB."""
    max_assembling_bytes: int = 256 * MIB
    """Unfinished messages of all streams together: a few of the largest at once, not one per stream."""
    max_queued_bytes: int = 128 * MIB
    """Replies on one stream that wait for the peer to read: an echoed body of the largest size, twice over."""
    max_connection_queued_bytes: int = 256 * MIB
    """The same over all streams of the connection."""
    max_concurrent_streams: int = 10_000
    """Announced. In lean mode a stream stays open for as long as the answer streams; a stream costs about 1 KiB."""
    stream_window_bytes: int = MIB
    """Announced. A message is handled as soon as it is whole, so this only has to cover bandwidth x round trip."""
    connection_window_bytes: int = 16 * MIB
    """Credit for all streams together, at least HTTP/2's 65,535; Envoy multiplexes all requests of a worker over one connection."""
    max_frame_bytes: int = DEFAULT_FRAME
    """Announced; HTTP/2 allows 16 KiB to 16 MiB. A frame is held until it is whole, and Envoy sends none above 16 KiB."""
    max_header_list_bytes: int = 64 * 1024
    """Announced, and the limit on an encoded block too. Envoy forwards at most 60 KiB of request headers by default."""
    max_open_header_bytes: int = 32 * MIB
    """Header fields of all open streams together, counted as in a list: 3 KiB for each of the most there may be. Envoy's calls have
    half a KiB. A stream beyond is refused: without an end, a list of 2,000 fields each would hold 1.4 GB."""
    max_continuations: int = 16
    """CONTINUATION frames of one block: a block of the largest size in frames of 4 KiB."""
    remembered_blocks: int = 16
    """Decoded blocks kept per connection, until the client's table changes. Envoy says the same of every call, but for trace ids."""
    remembered_block_bytes: int = 1024
    """Larger blocks are not kept: with their parsed form they would let a peer pin memory."""
    chatter_burst: int = 10_000
    """Frames that ask for work and bring no message (PING, SETTINGS, PRIORITY, empty DATA and empty messages, a reset
    before any message, WINDOW_UPDATE beyond what our answers call for, unknown types, errors) tolerated at once; beyond
    that the connection ends with ENHANCE_YOUR_CALM. What costs more counts for more: header fields for nothing one more
    for each KiB of their list, SETTINGS one more for each 16 of them, a changed initial window one more for each 100
    open streams, a gzip message one for each 16 KiB that it unfolds to beyond 32 times its size."""
    chatter_per_s: float = 1_000.0
    """Rate at which that allowance comes back: about 0.2 % of a core, far above keep-alive and bandwidth probes."""
    answer_bytes_per_update: int = 64
    """Bytes of our answers that call for one WINDOW_UPDATE. Envoy sends one for half a window; simple clients send two for
    each message that they read."""


class Status(enum.IntEnum):
    """The gRPC status codes that a transport answers by itself."""

    OK = 0
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14


class Opened(msgspec.Struct, frozen=True, gc=False):
    """A new call. `timeout_s` is the client's deadline from now, None without one."""

    stream_id: int
    path: str
    timeout_s: float | None


class Received(msgspec.Struct, frozen=True, gc=False):
    """One whole message, decompressed."""

    stream_id: int
    message: bytes


class Ended(msgspec.Struct, frozen=True, gc=False):
    """The client half-closed: no more messages, an answer may still be sent."""

    stream_id: int


class Lost(msgspec.Struct, frozen=True, gc=False):
    """The call is over without the session's doing: reset by the peer, refused for an error of its, or connection gone.

    May follow `Ended`, does not follow `close`. Nothing more can be sent.
    """

    stream_id: int


Event = Opened | Received | Ended | Lost


class _Stream(msgspec.Struct):
    """One open stream. `queue` holds DATA payloads that wait for credit, `finish` the header block that ends the answer
    after them (b"" ends it with an empty DATA frame). A `deaf` stream is one that the owner was never told of, or
    has closed, or knows to be lost: it hears no more of it."""

    id: int
    call: Call
    receivable: int
    sendable: int
    body_left: int | None
    buffer: bytearray | None = None
    queue: deque[memoryview] | None = None
    queued: int = 0
    finish: bytes | None = None
    deaf: bool = False
    head_sent: bool = False
    remote_done: bool = False
    heard: bool = False


def _unnoticed(limit: str) -> None:
    pass


class Connection:
    """State of one connection, owned by one caller, used from one thread.

    `closing` becomes True when nothing more will be read or opened: write what `take_output` returns, then close the
    socket. `leaving` is True from the moment that this is going to come. `hit` is told the name of each limit that the peer runs into, a field of `Limits`.
    """

    def __init__(self, limits: Limits, hit: Callable[[str], None] = _unnoticed) -> None:
        self._limits = limits
        self._hit = hit
        self._rest = b""
        self._greeted = False
        self._streams: dict[int, _Stream] = {}
        self._header_bytes = 0
        self._last_id = 0
        self._refused_from = MAX_STREAM_ID
        self._ended_by_peer: deque[int] = deque(maxlen=256)
        self._abandoned: deque[int] = deque(maxlen=256)
        self.leaving = False
        self._failed = False

        self._blocks = CallReader(
            max_list_bytes=limits.max_header_list_bytes,
            remembered_blocks=limits.remembered_blocks,
            remembered_block_bytes=limits.remembered_block_bytes,
        )
        self._block: bytearray | None = None
        self._block_id = 0
        self._block_flags = 0
        self._block_continuations = 0

        self._receivable = limits.connection_window_bytes
        self._receive_low = limits.connection_window_bytes // 2
        self._stream_low = limits.stream_window_bytes // 2
        self._assembling = 0

        self._sendable = DEFAULT_WINDOW
        self._granted = DEFAULT_WINDOW
        self._peer_window = DEFAULT_WINDOW
        self._peer_frame = DEFAULT_FRAME
        self._block_prefix = b""
        self._encoder_emptied = False
        self._held = False
        self._queued = 0
        self._waiting: dict[int, _Stream] = {}

        self._chatter = float(limits.chatter_burst)
        self._chatter_since_s = 0.0
        self._updates_due = 0
        self._sent_accounted = 0
        self._now_s = 0.0

        self._out: list[bytes | memoryview] = [greeting(_settings(limits), limits.connection_window_bytes)]

    @property
    def closing(self) -> bool:
        return self._failed or (self.leaving and self._refused_from != MAX_STREAM_ID and not self._streams)

    @property
    def greeted(self) -> bool:
        """Whether the peer has shown that it speaks HTTP/2."""
        return self._greeted

    @property
    def open_streams(self) -> int:
        return len(self._streams)

    def metadata(self, stream_id: int) -> Mapping[bytes, bytes]:
        """The header fields that opened an open stream, those of gRPC and HTTP included: lower case, of a repeated one the first."""
        return self._streams[stream_id].call.metadata

    @property
    def queued_bytes(self) -> int:
        """Replies that wait for the peer's credit or for `release`, payload bytes."""
        return self._queued

    @property
    def assembling_bytes(self) -> int:
        """Bytes of messages that are not whole yet."""
        return self._assembling

    def take_output(self) -> bytes:
        """All bytes to write since the last call, b"" for none."""
        out = self._out
        if not out:
            return b""
        output = b"".join(out)
        out.clear()
        return output

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Take bytes as they came; how they are cut makes no difference. Raises nothing: a peer's error closes."""
        events: list[Event] = []
        if self._failed:
            return events
        self._now_s = now_s
        used = 0
        try:
            if self._rest:
                data, used = self._continued(data, events)
            used = self._parse(data, events, used) if self._greeted else self._greet(data, events)
        except ConnectionFault as error:
            self._fail(error, events)
            return events
        self._rest = data[used:] if used < len(data) else b""
        return events

    def _continued(self, data: bytes, events: list[Event]) -> tuple[bytes, int]:
        """`data` after what was left of the last read, and how much of it is used up.

        Of a large read only the frame that was cut in two is put together: copying all of it took 15 µs for 256 KB.
        """
        rest = self._rest
        if len(data) > LARGE_READ_BYTES and len(rest) >= FRAME.size and self._greeted:
            missing = FRAME.size + int.from_bytes(rest[:3], "big") - len(rest)
            if missing <= len(data):
                self._rest = b""
                self._parse(rest + data[:missing], events)
                return data, missing
        return rest + data, 0

    def lost(self) -> list[Event]:
        """The socket is gone: one `Lost` for every stream still open."""
        self._failed = self.leaving = True
        self._out.clear()
        return self._lose_all()

    def _greet(self, data: bytes, events: list[Event]) -> int:
        """Check preface and first frame header, then parse on. Returns how many bytes are used up."""
        expected = PREFACE
        if data[: len(expected)] != expected[: len(data)]:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "not an HTTP/2 connection preface")
        if len(data) < len(expected) + FRAME.size:
            return 0
        head, flags, _ = FRAME.unpack_from(data, len(expected))
        if head & 0xFF != SETTINGS or flags & ACK:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        self._greeted = True
        self._chatter_since_s = self._now_s
        return self._parse(data, events, len(expected))

    def _parse(self, data: bytes, events: list[Event], position: int = 0) -> int:
        size = len(data)
        max_frame = self._limits.max_frame_bytes
        unpack = FRAME.unpack_from
        while position + 9 <= size:
            head, flags, stream_id = unpack(data, position)
            length = head >> 8
            if length > max_frame:
                raise ConnectionFault(
                    Code.FRAME_SIZE_ERROR, "frame larger than SETTINGS_MAX_FRAME_SIZE", "max_frame_bytes"
                )
            start = position + 9
            stop = start + length
            if stop > size:
                break
            kind = head & 0xFF
            if not (kind or flags) and self._take_whole(stream_id, data, start, stop, events):
                position = stop
                continue
            stream_id &= MAX_STREAM_ID
            if self._block is not None and (kind != CONTINUATION or stream_id != self._block_id):
                raise ConnectionFault(Code.PROTOCOL_ERROR, "a header block was interrupted")
            position = stop
            try:
                if kind == DATA:
                    self._on_data(flags, stream_id, data, start, stop, events)
                elif kind == HEADERS:
                    self._on_headers(flags, stream_id, data[start:stop], events)
                else:
                    _ON_FRAME.get(kind, Connection._on_unknown)(self, flags, stream_id, data[start:stop], events)
            except StreamFault as error:
                if error.limit:
                    self._hit(error.limit)
                self._reset(error.stream_id, error.code, events)
        return position

    def _take_whole(self, stream_id: int, data: bytes, start: int, stop: int, events: list[Event]) -> bool:
        """Nearly every DATA frame: one whole message on a stream where one is due. False, and nothing has changed, for any other.

        What this does, `_on_data` and what follows it do as well, in five calls.
        """
        stream = self._streams.get(stream_id)
        length = stop - start
        if (
            length <= 5
            or stream is None
            or stream.buffer is not None
            or stream.deaf
            or stream.remote_done
            or stream.body_left is not None
            or self._block is not None
            or self._receivable - length < self._receive_low
            or stream.receivable - length < self._stream_low
        ):
            return False
        flag, size = PREFIX.unpack_from(data, start)
        if flag or size != length - 5 or size > self._limits.max_message_bytes:
            return False
        self._receivable -= length
        stream.receivable -= length
        stream.heard = True
        events.append(Received(stream_id, data[start + 5 : stop]))
        return True

    def _on_data(self, flags: int, stream_id: int, data: bytes, start: int, stop: int, events: list[Event]) -> None:
        length = stop - start
        self._receivable -= length
        if self._receivable < self._receive_low:
            self._grant_connection()
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_done:
            self._data_out_of_place(stream_id, stream, not length)
            return
        stream.receivable -= length
        if flags & PADDED:
            if not length or data[start] >= length:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "padding longer than its frame")
            stop -= data[start]
            start += 1
        if stream.body_left is not None:
            stream.body_left -= stop - start
            if stream.body_left < 0 or (flags & END_STREAM and stream.body_left):
                raise StreamFault(stream_id, Code.PROTOCOL_ERROR)
        if stream.receivable < self._stream_low:
            self._grant_stream(stream)
        if start < stop:
            if not stream.deaf:
                self._assemble(stream, data, start, stop, events)
        elif not flags & END_STREAM:
            self._spend_chatter()
        if flags & END_STREAM:
            self._end(stream, events)

    def _data_out_of_place(self, stream_id: int, stream: _Stream | None, empty: bool) -> None:
        """DATA where none may come. What was in flight when we closed a stream is no error."""
        if stream_id == 0 or stream_id > self._last_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "DATA on an idle stream")
        if stream is not None or stream_id in self._ended_by_peer:
            raise StreamFault(stream_id, Code.STREAM_CLOSED)
        if empty:
            self._spend_chatter()

    def _grant_connection(self) -> None:
        if self._receivable < 0:
            raise ConnectionFault(
                Code.FLOW_CONTROL_ERROR, "more DATA than the connection's window allows", "connection_window_bytes"
            )
        window = self._limits.connection_window_bytes
        self._out.append(FRAME.pack(4 << 8 | WINDOW_UPDATE, 0, 0) + U32.pack(window - self._receivable))
        self._receivable = window

    def _grant_stream(self, stream: _Stream) -> None:
        if stream.receivable < 0:
            raise StreamFault(stream.id, Code.FLOW_CONTROL_ERROR, "stream_window_bytes")
        window = self._limits.stream_window_bytes
        self._out.append(FRAME.pack(4 << 8 | WINDOW_UPDATE, 0, stream.id) + U32.pack(window - stream.receivable))
        stream.receivable = window

    def _assemble(self, stream: _Stream, data: bytes, start: int, stop: int, events: list[Event]) -> None:
        """Cut gRPC messages out of DATA. A message that lies whole in one frame is copied once."""
        if stream.buffer is not None:
            try:
                self._extend(stream, stream.buffer, data, start, stop, events)
            except MemoryError:
                # A body that does not fit ends its own call, not every other on the connection.
                self._refuse(stream, Status.RESOURCE_EXHAUSTED, "no memory for this message", events)
            return
        max_message = self._limits.max_message_bytes
        while stop - start >= 5:
            flag, length = PREFIX.unpack_from(data, start)
            if length > max_message:
                self._refuse_size(stream, events)
                return
            end = start + 5 + length
            if end > stop:
                break
            if not self._deliver(stream, flag, data[start + 5 : end], events):
                return
            start = end
        if start < stop:
            stream.buffer = bytearray(data[start:stop])
            self._grow(stream, stop - start, events)

    def _extend(
        self, stream: _Stream, buffer: bytearray, data: bytes, start: int, stop: int, events: list[Event]
    ) -> None:
        buffer += memoryview(data)[start:stop]
        if not self._grow(stream, stop - start, events):
            return
        while len(buffer) >= 5:
            flag, length = PREFIX.unpack_from(buffer)
            if length > self._limits.max_message_bytes:
                self._refuse_size(stream, events)
                return
            if len(buffer) < 5 + length:
                return
            with memoryview(buffer) as view:
                message = bytes(view[5 : 5 + length])
            del buffer[: 5 + length]
            self._assembling -= 5 + length
            if not self._deliver(stream, flag, message, events):
                return
        if not buffer:
            stream.buffer = None

    def _grow(self, stream: _Stream, grown: int, events: list[Event]) -> bool:
        self._assembling += grown
        if self._assembling <= self._limits.max_assembling_bytes:
            return True
        self._hit("max_assembling_bytes")
        self._refuse(stream, Status.RESOURCE_EXHAUSTED, "too many unfinished messages on this connection", events)
        return False

    def _deliver(self, stream: _Stream, flag: int, message: bytes, events: list[Event]) -> bool:
        """Hand one message on; False when the stream was refused instead."""
        stream.heard = True
        if not message:
            self._spend_chatter()
        if not flag:
            events.append(Received(stream.id, message))
            return True
        encoding = stream.call.encoding
        if flag != 1:
            self._refuse(stream, Status.INTERNAL, "unknown message flags", events)
        elif encoding == "identity":
            self._refuse(stream, Status.INTERNAL, "compressed message without grpc-encoding", events)
        elif encoding != "gzip":
            self._refuse(stream, Status.UNIMPLEMENTED, f"grpc-encoding {encoding} is not supported", events)
        else:
            return self._inflate(stream, message, events)
        return False

    def _inflate(self, stream: _Stream, message: bytes, events: list[Event]) -> bool:
        limit = self._limits.max_message_bytes
        inflater = zlib.decompressobj(wbits=31)
        try:
            plain = inflater.decompress(message, limit + 1)
        except zlib.error:
            # It may have come to this at its last byte.
            self._spend_unfolded(len(message), min(limit, DEFLATE_UNFOLDS * len(message)))
            self._refuse(stream, Status.INTERNAL, "message is not valid gzip", events)
            return False
        self._spend_unfolded(len(message), len(plain))
        if len(plain) > limit:
            self._refuse_size(stream, events)
            return False
        if not inflater.eof:
            self._refuse(stream, Status.INTERNAL, "gzip message is cut short", events)
            return False
        events.append(Received(stream.id, plain))
        return True

    def _spend_unfolded(self, packed_bytes: int, plain_bytes: int) -> None:
        self._spend_chatter(max(0, plain_bytes - TEXT_UNFOLDS * packed_bytes) // UNFOLDED_BYTES_PER_CHATTER)

    def _refuse_size(self, stream: _Stream, events: list[Event]) -> None:
        limit = self._limits.max_message_bytes
        self._hit("max_message_bytes")
        self._refuse(stream, Status.RESOURCE_EXHAUSTED, f"message larger than {limit} bytes", events)

    def _refuse(self, stream: _Stream, status: Status, message: str, events: list[Event]) -> None:
        self.close(stream.id, status, message)
        events.append(Lost(stream.id))

    def _end(self, stream: _Stream, events: list[Event]) -> None:
        if self._streams.get(stream.id) is not stream:
            return
        stream.remote_done = True
        if stream.call.http_status != 200:
            self._answer_not_grpc(stream)
        elif stream.buffer is not None:
            self._refuse(stream, Status.INTERNAL, "the stream ended inside a message", events)
        elif not stream.deaf:
            events.append(Ended(stream.id))

    def _answer_not_grpc(self, stream: _Stream) -> None:
        stream.head_sent = True
        if stream.call.bodiless:
            self._put_headers(stream.id, NOT_GRPC_BLOCK, END_STREAM)
            self._forget(stream)
            return
        self._put_headers(stream.id, NOT_GRPC_BLOCK, 0)
        self._enqueue(stream, NOT_GRPC_BODY)
        self._finish(stream, b"")

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if not stream_id & 1:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "HEADERS on a stream that no client may open")
        if flags & (PADDED | HAS_PRIORITY):
            payload = strip(flags, stream_id, payload)
        if flags & END_HEADERS:
            self._on_block(flags, stream_id, payload, events)
            return
        self._block = bytearray(payload)
        self._block_id = stream_id
        self._block_flags = flags
        self._block_continuations = 0

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        block += payload
        self._block_continuations += 1
        limits = self._limits
        if len(block) > limits.max_header_list_bytes:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "header block too large", "max_header_list_bytes")
        if self._block_continuations > limits.max_continuations:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "header block in too many pieces", "max_continuations")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(self._block_flags, stream_id, bytes(block), events)

    def _on_block(self, flags: int, stream_id: int, block: bytes, events: list[Event]) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None:
            self._on_trailers(flags, stream, block, events)
            return
        if stream_id <= self._last_id:
            self._block_out_of_place(stream_id, block)
            return
        self._last_id = stream_id
        call = self._blocks.remembered.get(block)
        if call is None:
            call = self._read_call(stream_id, block)
        limits, list_bytes = self._limits, call.list_bytes
        if stream_id > self._refused_from:
            raise self._in_vain(stream_id, Code.REFUSED_STREAM, list_bytes)
        if len(self._streams) >= limits.max_concurrent_streams:
            raise self._in_vain(stream_id, Code.REFUSED_STREAM, list_bytes, "max_concurrent_streams")
        if self._header_bytes + list_bytes > limits.max_open_header_bytes:
            raise self._in_vain(stream_id, Code.REFUSED_STREAM, list_bytes, "max_open_header_bytes")
        self._header_bytes += list_bytes
        stream = _Stream(stream_id, call, limits.stream_window_bytes, self._peer_window, call.body_bytes)
        self._streams[stream_id] = stream
        if call.http_status == 200:
            events.append(Opened(stream_id, call.path, call.timeout_s))
        else:
            stream.deaf = True
        if flags & END_STREAM:
            if call.body_bytes:
                raise StreamFault(stream_id, Code.PROTOCOL_ERROR)
            self._end(stream, events)

    def _on_trailers(self, flags: int, stream: _Stream, block: bytes, events: list[Event]) -> None:
        fields = self._read_fields(block)
        list_bytes = self._blocks.list_bytes
        if stream.remote_done:
            raise self._in_vain(stream.id, Code.STREAM_CLOSED, list_bytes)
        if not flags & END_STREAM or stream.body_left:
            raise self._in_vain(stream.id, Code.PROTOCOL_ERROR, list_bytes)
        try:
            read_trailers(fields)
        except Malformed:
            raise self._in_vain(stream.id, Code.PROTOCOL_ERROR, list_bytes) from None
        self._end(stream, events)

    def _in_vain(self, stream_id: int, code: Code, list_bytes: int, limit: str = "") -> StreamFault:
        """The fault of a stream whose header fields were read for nothing, which is counted."""
        self._spend_chatter(list_bytes // 1024)
        return StreamFault(stream_id, code, limit)

    def _block_out_of_place(self, stream_id: int, block: bytes) -> None:
        """A header block on a stream that is over. One in flight when we closed is no error, but feeds the decoder."""
        self._read_fields(block)
        self._spend_chatter(1 + self._blocks.list_bytes // 1024)
        if stream_id in self._ended_by_peer:
            raise ConnectionFault(Code.STREAM_CLOSED, "HEADERS on a closed stream")
        if stream_id not in self._abandoned:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "HEADERS on a stream number already passed")

    def _read_fields(self, block: bytes) -> Iterable[Field]:
        try:
            return self._blocks.fields(block)
        except TooLarge as error:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, str(error), "max_header_list_bytes") from None
        except HpackError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, str(error)) from None

    def _read_call(self, stream_id: int, block: bytes) -> Call:
        try:
            return self._blocks.call(block)
        except Malformed:
            raise self._in_vain(stream_id, Code.PROTOCOL_ERROR, self._blocks.list_bytes) from None
        except TooLarge as error:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, str(error), "max_header_list_bytes") from None
        except HpackError as error:
            raise ConnectionFault(Code.COMPRESSION_ERROR, str(error)) from None

    def _on_priority(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id == 0:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PRIORITY on the connection")
        if len(payload) != 5:
            raise StreamFault(stream_id, Code.FRAME_SIZE_ERROR)
        if U32.unpack_from(payload)[0] & MAX_STREAM_ID == stream_id:
            raise StreamFault(stream_id, Code.PROTOCOL_ERROR)
        self._spend_chatter()

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id == 0 or stream_id > self._last_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "RST_STREAM is not 4 bytes")
        stream = self._streams.get(stream_id)
        if stream is None or not stream.heard:
            self._spend_chatter(_cost_of_end(stream))
        if stream is not None:
            stream.remote_done = True
            self._lose(stream, events)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._spend_chatter(1 + len(payload) // 96)
        if flags & ACK:
            if payload:
                raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            return
        if len(payload) % 6:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "SETTINGS is not a multiple of 6 bytes")
        for name, value in SETTING.iter_unpack(payload):
            self._apply_setting(name, value)
        self._out.append(FRAME.pack(SETTINGS, ACK, 0))
        self._pump()

    def _apply_setting(self, name: int, value: int) -> None:
        if name == INITIAL_WINDOW_SIZE:
            self._change_peer_window(value)
        elif name == MAX_FRAME_SIZE:
            if not DEFAULT_FRAME <= value < 1 << 24:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS_MAX_FRAME_SIZE out of range")
            self._peer_frame = value
        elif name == ENABLE_PUSH:
            if value > 1:
                raise ConnectionFault(Code.PROTOCOL_ERROR, "SETTINGS_ENABLE_PUSH is neither 0 nor 1")
        elif name == HEADER_TABLE_SIZE and value < 4096 and not self._encoder_emptied:
            # RFC 9113, section 4.3.1: the next block must say that the table has shrunk. Size 0 fits all later settings.
            self._encoder_emptied = True
            self._block_prefix = EMPTY_TABLE

    def _change_peer_window(self, value: int) -> None:
        if value > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
        change = value - self._peer_window
        if not change:
            return
        self._spend_chatter(len(self._streams) // 100)
        self._peer_window = value
        for stream in self._streams.values():
            stream.sendable += change
            if stream.sendable > MAX_WINDOW:
                raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "window above 2^31-1")
            if stream.queue and stream.sendable > 0:
                self._waiting[stream.id] = stream

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        raise ConnectionFault(Code.PROTOCOL_ERROR, "a client cannot push")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "PING is not 8 bytes")
        self._spend_chatter()
        if not flags & ACK:
            self._out.append(FRAME.pack(8 << 8 | PING, ACK, 0) + payload)
        elif self.leaving and payload == DRAIN_PING:
            self._close_door()

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "GOAWAY is shorter than 8 bytes")
        self._spend_chatter()

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if len(payload) != 4:
            raise ConnectionFault(Code.FRAME_SIZE_ERROR, "WINDOW_UPDATE is not 4 bytes")
        increment = U32.unpack(payload)[0] & MAX_STREAM_ID
        if stream_id == 0:
            self._widen_connection(increment)
            return
        if stream_id > self._last_id:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
        self._expect_update()
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        if not increment:
            raise StreamFault(stream_id, Code.PROTOCOL_ERROR)
        stream.sendable += increment
        if stream.sendable > MAX_WINDOW:
            raise StreamFault(stream_id, Code.FLOW_CONTROL_ERROR)
        if stream.queue:
            self._waiting[stream_id] = stream
            self._pump()

    def _on_unknown(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        self._spend_chatter()

    def _widen_connection(self, increment: int) -> None:
        if not increment:
            raise ConnectionFault(Code.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        self._expect_update()
        self._sendable += increment
        self._granted += increment
        if self._sendable > MAX_WINDOW:
            raise ConnectionFault(Code.FLOW_CONTROL_ERROR, "window above 2^31-1")
        if self._waiting:
            self._pump()

    def _expect_update(self) -> None:
        """One WINDOW_UPDATE came. What our answers do not call for is chatter."""
        self._updates_due -= 1
        if self._updates_due >= 0:
            return
        # The connection's window has lost what was sent, so that sending itself need not count.
        per_update = self._limits.answer_bytes_per_update
        due = (self._granted - self._sendable - self._sent_accounted) // per_update
        self._sent_accounted += due * per_update
        self._updates_due = max(0, min(due, self._limits.chatter_burst) - 1)
        if not due:
            self._spend_chatter()

    def _spend_chatter(self, cost: int = 1) -> None:
        self._chatter -= cost
        if self._chatter >= 0.0:
            return
        limits = self._limits
        since_s = self._now_s - self._chatter_since_s
        self._chatter = min(float(limits.chatter_burst), since_s * limits.chatter_per_s) - cost
        self._chatter_since_s = self._now_s
        if self._chatter < 0.0:
            raise ConnectionFault(Code.ENHANCE_YOUR_CALM, "too many frames without a message", "chatter_burst")

    def send(self, stream_id: int, message: bytes) -> bool:
        """Queue one message. False when the stream was reset because too much waits for the peer; True otherwise, also
        when the stream is already over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finish is not None:
            return True
        out = self._out
        if not stream.head_sent:
            stream.head_sent = True
            self._put_headers(stream_id, RESPONSE_BLOCK, 0)
        length = len(message)
        size = length + 5
        # What waits already cannot be overtaken: while anything waits, one of the windows is used up or the socket is full.
        if size <= stream.sendable and size <= self._sendable and size <= self._peer_frame and not self._held:
            stream.sendable -= size
            self._sendable -= size
            out.append(DATA_AND_PREFIX.pack(size << 8, 0, stream_id, 0, length))
            out.append(message)
            return True
        if size <= stream.sendable and size <= self._sendable and not self._held:
            self._put_large(stream, message)
            return True
        self._enqueue(stream, PREFIX.pack(0, length) + message)
        limits = self._limits
        if stream.queued <= limits.max_queued_bytes and self._queued <= limits.max_connection_queued_bytes:
            return True
        self._hit("max_queued_bytes" if stream.queued > limits.max_queued_bytes else "max_connection_queued_bytes")
        self._forget(stream)
        self._put_reset(stream_id, Code.ENHANCE_YOUR_CALM)
        return False

    def _put_large(self, stream: _Stream, message: bytes) -> None:
        """A message of several frames, cut without copying. The windows have room for all of it."""
        length = len(message)
        stream.sendable -= length + 5
        self._sendable -= length + 5
        out, most = self._out, self._peer_frame
        view = memoryview(message)
        out.append(DATA_AND_PREFIX.pack(most << 8, 0, stream.id, 0, length))
        out.append(view[: most - 5])
        for start in range(most - 5, length, most):
            piece = view[start : start + most]
            out.append(FRAME.pack(len(piece) << 8, 0, stream.id))
            out.append(piece)

    def close(self, stream_id: int, status: int, message: str = "") -> None:
        """End the answer with a gRPC status, after what is queued. Nothing happens when the stream is already over."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.finish is not None:
            return
        block = OK_BLOCK if status == 0 and not message else status_block(status, message)
        self._finish(stream, block if stream.head_sent else RESPONSE_BLOCK + block)

    def hold(self) -> None:
        """Keep payloads back until `release`: the socket takes no more for now."""
        self._held = True

    def release(self) -> None:
        self._held = False
        self._pump()

    def drain(self) -> None:
        """Say that no new calls are wanted; those that cross this on the way are still served (RFC 9113, section 6.8)."""
        if self.leaving or self._failed:
            return
        self.leaving = True
        self._out.append(goaway(MAX_STREAM_ID, Code.NO_ERROR))
        self._out.append(FRAME.pack(8 << 8 | PING, 0, 0) + DRAIN_PING)

    def abort(self) -> list[Event]:
        """End every stream now; one `Lost` for each. `closing` is True afterwards."""
        if self._failed:
            return []
        self._failed = self.leaving = True
        self._out.append(goaway(self._last_id, Code.NO_ERROR))
        return self._lose_all()

    def _close_door(self) -> None:
        self._refused_from = self._last_id
        self._out.append(goaway(self._last_id, Code.NO_ERROR))

    def _put_headers(self, stream_id: int, block: bytes, flags: int) -> None:
        if self._block_prefix:
            block = self._block_prefix + block
            self._block_prefix = b""
        self._out.append(FRAME.pack(len(block) << 8 | HEADERS, flags | END_HEADERS, stream_id) + block)

    def _put_reset(self, stream_id: int, code: Code) -> None:
        self._out.append(FRAME.pack(4 << 8 | RST_STREAM, 0, stream_id) + U32.pack(code))

    def _enqueue(self, stream: _Stream, payload: bytes) -> None:
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append(memoryview(payload))
        stream.queued += len(payload)
        self._queued += len(payload)
        self._waiting[stream.id] = stream
        self._pump()

    def _finish(self, stream: _Stream, block: bytes) -> None:
        stream.finish = block
        stream.deaf = True
        self._drop_buffer(stream)
        if not stream.queue:
            self._put_finish(stream, block)

    def _put_finish(self, stream: _Stream, block: bytes) -> None:
        if block:
            self._put_headers(stream.id, block, END_STREAM)
        else:
            self._out.append(FRAME.pack(DATA, END_STREAM, stream.id))
        if not stream.remote_done:
            # The peer may stop sending: its answer is complete (RFC 9113, section 8.1).
            self._put_reset(stream.id, Code.NO_ERROR)
        self._forget(stream)

    def _pump(self) -> None:
        """Send what waits, one frame of each stream in turn, as far as the windows and the socket allow."""
        waiting = self._waiting
        while waiting and self._sendable > 0 and not self._held:
            stream_id, stream = next(iter(waiting.items()))
            del waiting[stream_id]
            if stream.sendable <= 0:
                continue
            self._put_frame(stream)
            if stream.queue:
                waiting[stream_id] = stream
            elif stream.finish is not None:
                self._put_finish(stream, stream.finish)

    def _put_frame(self, stream: _Stream) -> None:
        queue = stream.queue
        assert queue
        payload = queue.popleft()
        room = min(stream.sendable, self._sendable, self._peer_frame)
        if len(payload) > room:
            queue.appendleft(payload[room:])
            payload = payload[:room]
        size = len(payload)
        stream.sendable -= size
        stream.queued -= size
        self._sendable -= size
        self._queued -= size
        self._out.append(FRAME.pack(size << 8 | DATA, 0, stream.id))
        self._out.append(payload)

    def _forget(self, stream: _Stream) -> None:
        stream_id = stream.id
        del self._streams[stream_id]
        self._header_bytes -= stream.call.list_bytes
        self._waiting.pop(stream_id, None)
        (self._ended_by_peer if stream.remote_done else self._abandoned).append(stream_id)
        self._queued -= stream.queued
        self._drop_buffer(stream)

    def _drop_buffer(self, stream: _Stream) -> None:
        if stream.buffer is not None:
            self._assembling -= len(stream.buffer)
            stream.buffer = None

    def _reset(self, stream_id: int, code: Code, events: list[Event]) -> None:
        stream = self._streams.get(stream_id)
        self._spend_chatter(_cost_of_end(stream))
        self._put_reset(stream_id, code)
        if stream is not None:
            self._lose(stream, events)

    def _lose(self, stream: _Stream, events: list[Event]) -> None:
        self._forget(stream)
        if not stream.deaf:
            events.append(Lost(stream.id))

    def _lose_all(self) -> list[Event]:
        events: list[Event] = [Lost(stream.id) for stream in self._streams.values() if not stream.deaf]
        self._streams.clear()
        self._waiting.clear()
        self._rest = b""
        self._header_bytes = self._queued = self._assembling = 0
        return events

    def _fail(self, error: ConnectionFault, events: list[Event]) -> None:
        if error.limit:
            self._hit(error.limit)
        self._failed = self.leaving = True
        self._out.append(goaway(self._last_id, error.code, error.reason))
        events += self._lose_all()


def _cost_of_end(stream: _Stream | None) -> int:
    """What a stream's end before its time counts as chatter: more where no message has made up for its header fields."""
    return 1 if stream is None or stream.heard else 1 + stream.call.list_bytes // 1024


_ON_FRAME: dict[int, Callable[[Connection, int, int, bytes, list[Event]], None]] = {
    PRIORITY: Connection._on_priority,
    RST_STREAM: Connection._on_rst_stream,
    SETTINGS: Connection._on_settings,
    PUSH_PROMISE: Connection._on_push_promise,
    PING: Connection._on_ping,
    GOAWAY: Connection._on_goaway,
    WINDOW_UPDATE: Connection._on_window_update,
    CONTINUATION: Connection._on_continuation,
}


def _settings(limits: Limits) -> tuple[tuple[int, int], ...]:
    return (
        (MAX_CONCURRENT_STREAMS, limits.max_concurrent_streams),
        (INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
        (MAX_FRAME_SIZE, limits.max_frame_bytes),
        (MAX_HEADER_LIST_SIZE, limits.max_header_list_bytes),
    )
