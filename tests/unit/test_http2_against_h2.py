"""Whatever frames of a client the `h2` library takes as a server, ours takes too, and makes the same of them.

Frames come from hyperframe, so that they may be as odd as the protocol allows: padded, with priorities, cut into
CONTINUATION, interleaved, empty, unknown, with any setting and any credit. What h2 refuses is refused by ours as well, or is
one of the tolerances named here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import hpack
from hyperframe import frame as hyper
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from epp.extproc.frames import PREFACE
from epp.extproc.http2 import Connection, Ended, Limits, Lost, Opened, Received
from tests.fuzz.seeds import FIELDS, framed
from tests.fuzz.targets import cuts, read_frames

LIMITS = Limits(stream_window_bytes=65_535, connection_window_bytes=65_535)

STRICTER = {b"RST_STREAM on an idle stream"}
"""Why we end a connection that h2 goes on with: RFC 9113, section 6.4."""


@dataclass
class Heard:
    """What one implementation made of the bytes: the calls, what each sent, how each ended, what was answered."""

    paths: dict[int, str] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    half_closed: set[int] = field(default_factory=set)
    reset: set[int] = field(default_factory=set)
    pings: list[bytes] = field(default_factory=list)
    acknowledged: int = 0
    refused: bool = False
    reason: bytes = field(default=b"", compare=False)


def by_h2(frames: list[bytes]) -> Heard:
    server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=None))
    server.local_settings = h2.settings.Settings(
        client=False, initial_values={h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 65_536}
    )
    server.initiate_connection()
    heard = Heard()
    server.data_to_send()
    try:
        for one in frames:
            for told in server.receive_data(one):
                _note(heard, told)
                if isinstance(told, h2.events.DataReceived):
                    server.acknowledge_received_data(told.flow_controlled_length, told.stream_id)
    except h2.exceptions.ProtocolError:
        heard.refused = True
    _answers(heard, server.data_to_send())
    return heard


def _note(heard: Heard, told: h2.events.Event) -> None:
    match told:
        case h2.events.RequestReceived():
            heard.paths[told.stream_id] = dict(told.headers)[b":path"].decode("latin-1")
            heard.bodies[told.stream_id] = b""
        case h2.events.DataReceived():
            heard.bodies[told.stream_id] += told.data
        case h2.events.StreamEnded():
            heard.half_closed.add(told.stream_id)
        case h2.events.StreamReset():
            heard.reset.add(told.stream_id)
        case h2.events.ConnectionTerminated():
            heard.refused = True


def _answers(heard: Heard, output: bytes) -> None:
    for kind, flags, _, payload in read_frames(output):
        if kind == 6 and flags & 1:
            heard.pings.append(payload)
        elif kind == 4 and flags & 1:
            heard.acknowledged += 1
        elif kind == 7:
            heard.reason = payload[8:]


def by_ours(frames: list[bytes]) -> Heard:
    """Bodies are put together from whole messages and from what is still assembling."""
    connection = Connection(LIMITS)
    heard = Heard()
    for one in frames:
        for told in connection.receive(one, 0.0):
            match told:
                case Opened():
                    heard.paths[told.stream_id] = told.path
                    heard.bodies[told.stream_id] = b""
                case Received():
                    heard.bodies[told.stream_id] += framed(told.message)
                case Ended():
                    heard.half_closed.add(told.stream_id)
                case Lost():
                    heard.reset.add(told.stream_id)
    for stream_id, stream in connection._streams.items():
        heard.bodies[stream_id] += bytes(stream.buffer or b"")
    heard.refused = connection.closing
    _answers(heard, connection.take_output())
    return heard


def alike(ours: Heard, wanted: Heard) -> bool:
    """The same, in what is HTTP/2's affair.

    Of a call that was reset, a message that was not whole has left no trace in ours. A call whose bytes are no gRPC
    messages ends in ours when that shows: it is left out.
    """
    for stream_id in ours.reset & wanted.bodies.keys():
        if not are_messages(wanted.bodies[stream_id], stream_id in wanted.half_closed):
            for heard in (ours, wanted):
                heard.bodies.pop(stream_id)
                heard.half_closed.discard(stream_id)
                heard.reset.discard(stream_id)
        elif stream_id in wanted.reset and wanted.bodies[stream_id].startswith(ours.bodies[stream_id]):
            ours.bodies[stream_id] = wanted.bodies[stream_id]
    return ours == wanted


def are_messages(body: bytes, whole: bool) -> bool:
    """Whether `body` is messages of gRPC, plain and below the limit; where not `whole`, the last may be cut."""
    at = 0
    while at + 5 <= len(body):
        flag, size = struct.unpack_from(">BL", body, at)
        if flag or size > LIMITS.max_message_bytes:
            return False
        at += 5 + size
    return at == len(body) or not whole


class Client:
    """Draws the frames of a client that keeps to the protocol, in odd ways."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.frames: list[bytes] = [PREFACE + hyper.SettingsFrame(0).serialize()]
        self.encoder = hpack.Encoder()
        self.next_id = 1
        self.open: dict[int, bytes] = {}
        self.done: list[int] = []
        self.put(hyper.SettingsFrame(0, flags=["ACK"]))

    def put(self, one: hyper.Frame) -> None:
        self.frames.append(one.serialize())

    def resize(self) -> None:
        """Use less of the table, or all of it again."""
        self.encoder.header_table_size = self.draw(st.sampled_from([0, 100, 1_000, 4_096]))

    def any_open(self) -> int | None:
        return self.draw(st.sampled_from(sorted(self.open))) if self.open else None

    def priority(self, stream_id: int, one: hyper.HeadersFrame | hyper.PriorityFrame) -> None:
        one.depends_on = self.draw(st.integers(0, 99).filter(lambda other: other != stream_id))
        one.stream_weight = self.draw(st.integers(0, 255))
        one.exclusive = self.draw(st.booleans())

    def headers(self) -> None:
        self.next_id += self.draw(st.sampled_from([0, 0, 2, 20]))
        stream_id, self.next_id = self.next_id, self.next_id + 2
        self.open[stream_id] = b""
        extra = self.draw(
            st.lists(st.tuples(st.sampled_from(["x-a", "x-b", "traceparent"]), st.text("ab=;/-", max_size=30)))
        )
        # h2 strips no spaces; ours takes none at the ends, so none are drawn.
        self.block(stream_id, [*FIELDS, *extra], end=self.draw(st.integers(0, 5)) == 0)

    def block(self, stream_id: int, fields: list[tuple[str, str]], *, end: bool) -> None:
        block = self.encoder.encode(fields, huffman=self.draw(st.booleans()))
        pieces = list(cuts(block, self.draw(st.integers(1, 250)))) if self.draw(st.booleans()) else [block]
        pieces = [b"".join(pieces[:-8]), *pieces[-8:]] if len(pieces) > 8 else pieces
        first = hyper.HeadersFrame(stream_id, pieces[0])
        if self.draw(st.booleans()):
            first.flags.add("PRIORITY")
            self.priority(stream_id, first)
        if self.draw(st.booleans()):
            first.flags.add("PADDED")
            first.pad_length = self.draw(st.integers(0, 255))
        if end:
            first.flags.add("END_STREAM")
            self.end(stream_id)
        if len(pieces) == 1:
            first.flags.add("END_HEADERS")
        self.put(first)
        for number, piece in enumerate(pieces[1:], 2):
            flags = ["END_HEADERS"] if number == len(pieces) else []
            self.put(hyper.ContinuationFrame(stream_id, piece, flags=flags))

    def end(self, stream_id: int) -> None:
        del self.open[stream_id]
        self.done.append(stream_id)

    def data(self) -> None:
        """The rest of a message begun, or a new one, or a part of it; padded, empty, the last."""
        stream_id = self.any_open()
        if stream_id is None:
            return
        rest = self.open[stream_id] or framed(self.draw(st.binary(max_size=300)))
        size = self.draw(st.integers(0, len(rest)))
        data, self.open[stream_id] = rest[:size], rest[size:]
        one = hyper.DataFrame(stream_id, data)
        if self.draw(st.booleans()):
            one.flags.add("PADDED")
            one.pad_length = self.draw(st.integers(0, 255))
        if not self.open[stream_id] and self.draw(st.integers(0, 3)) == 0:
            one.flags.add("END_STREAM")
            self.end(stream_id)
        self.put(one)

    def trailers(self) -> None:
        stream_id = self.any_open()
        if stream_id is not None and not self.open[stream_id]:
            self.block(stream_id, [("x-checksum", "1")], end=True)

    def reset(self) -> None:
        stream_id = self.any_open()
        if stream_id is not None:
            self.put(hyper.RstStreamFrame(stream_id, self.draw(st.integers(0, 2**32 - 1))))
            self.end(stream_id)

    def credit(self) -> None:
        stream_id = self.draw(st.sampled_from([0, *self.open, *self.done]))
        self.put(hyper.WindowUpdateFrame(stream_id, self.draw(st.integers(1, 1 << 20))))

    def ping(self) -> None:
        self.put(
            hyper.PingFrame(
                0, self.draw(st.binary(min_size=8, max_size=8)), flags=self.draw(st.sampled_from([[], ["ACK"]]))
            )
        )

    def set(self) -> None:
        known = {
            hyper.SettingsFrame.HEADER_TABLE_SIZE: st.integers(0, 1 << 16),
            hyper.SettingsFrame.ENABLE_PUSH: st.integers(0, 1),
            hyper.SettingsFrame.MAX_CONCURRENT_STREAMS: st.integers(0, (1 << 32) - 1),
            hyper.SettingsFrame.INITIAL_WINDOW_SIZE: st.integers(0, 1 << 20),
            hyper.SettingsFrame.MAX_FRAME_SIZE: st.integers(1 << 14, (1 << 24) - 1),
            hyper.SettingsFrame.MAX_HEADER_LIST_SIZE: st.integers(0, 1 << 20),
            0x99: st.integers(0, 99),
        }
        names = self.draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=4))
        self.put(hyper.SettingsFrame(0, {name: self.draw(known[name]) for name in names}))

    def prioritise(self) -> None:
        stream_id = self.draw(st.integers(1, 60))
        one = hyper.PriorityFrame(stream_id)
        self.priority(stream_id, one)
        self.put(one)

    def unknown(self) -> None:
        one = hyper.ExtensionFrame(self.draw(st.integers(0x20, 0xFF)), self.draw(st.integers(0, 9)))
        one.flag_byte, one.body = self.draw(st.integers(0, 255)), self.draw(st.binary(max_size=20))
        one.body_len = len(one.body)
        self.put(one)


STEPS = [
    *(
        Client.headers,
        Client.headers,
        Client.data,
        Client.data,
        Client.data,
        Client.trailers,
        Client.reset,
        Client.credit,
    ),
    *(Client.ping, Client.set, Client.prioritise, Client.unknown, Client.resize),
]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    client = Client(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), max_size=30)):
        step(client)
    return client.frames


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations())
def test_an_odd_but_legal_client_is_heard_as_h2_hears_it(frames: list[bytes]) -> None:
    wanted = by_h2(frames)
    assert not wanted.refused
    data = b"".join(frames)
    for pieces in (frames, [data], list(cuts(data, 11))):
        assert alike(by_ours(pieces), wanted)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(conversations(), st.data())
def test_what_h2_accepts_of_a_damaged_client_we_accept(frames: list[bytes], data: st.DataObject) -> None:
    """One frame after the greeting has a byte changed, is left out, doubled or moved."""
    if len(frames) < 3:
        return
    at = data.draw(st.integers(2, len(frames) - 1))
    match data.draw(st.integers(0, 3)):
        case 0:
            one = bytearray(frames[at])
            # What fields a call may have is gRPC's affair, of which h2 knows nothing: header blocks stay whole.
            last = 8 if one[3] in (1, 9) else len(one) - 1
            one[data.draw(st.integers(3, last))] = data.draw(st.integers(0, 255))
            frames[at] = bytes(one)
        case 1:
            del frames[at]
        case 2:
            frames.insert(at, frames[at])
        case _:
            frames.append(frames.pop(at))
    # h2 judges a header block only when something follows it.
    frames.append(hyper.PingFrame(0, b"the last").serialize())
    wanted = by_h2(frames)
    event("refused" if wanted.refused else "accepted")
    if not wanted.refused:
        ours = by_ours(frames)
        assert ours.reason in STRICTER or alike(ours, wanted)
