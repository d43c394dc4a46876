"""Our HTTP/2 in memory against `h2`, an independent implementation, and against hostile bytes."""

from __future__ import annotations

import gzip
import random
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.extproc.frames import PREFACE, Code
from epp.extproc.http2 import (
    Connection,
    Ended,
    Event,
    Limits,
    Lost,
    Opened,
    Received,
    Status,
)

PATH = "/test.Echo/Process"
HEADERS = (
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "epp:9002"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
)


def framed(message: bytes, flag: int = 0) -> bytes:
    return struct.pack(">BL", flag, len(message)) + message


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload


class Peer:
    """An `h2` client joined to our connection. `events` is what we saw, `answers` what it saw."""

    def __init__(self, limits: Limits | None = None, window: int = 65_535) -> None:
        self.ours = Connection(limits or Limits())
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.events: list[Event] = []
        self.answers: list[h2.events.Event] = []
        self.bodies: dict[int, bytes] = {}
        wanted = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window, h2.settings.SettingCodes.ENABLE_PUSH: 0}
        self.h2.local_settings = h2.settings.Settings(client=True, initial_values=wanted)
        self.h2.initiate_connection()
        self.now_s = 0.0
        self.turn()

    def turn(self) -> list[Event]:
        """Carry bytes both ways until nobody has more to say; returns our new events."""
        fresh: list[Event] = []
        while True:
            data = self.h2.data_to_send()
            if data:
                fresh += self.ours.receive(data, self.now_s)
            answer = self.ours.take_output()
            if not data and not answer:
                break
            self.hear(answer)
        self.events += fresh
        return fresh

    def hear(self, answer: bytes) -> None:
        for event in self.h2.receive_data(answer):
            self.answers.append(event)
            if isinstance(event, h2.events.DataReceived):
                self.bodies[event.stream_id] = self.bodies.get(event.stream_id, b"") + event.data

    def open(self, extra: tuple[tuple[str, str], ...] = (), end: bool = False) -> int:
        stream_id: int = self.h2.get_next_available_stream_id()
        self.h2.send_headers(stream_id, HEADERS + extra, end_stream=end)
        return stream_id

    def raw(self, data: bytes) -> list[Event]:
        fresh = self.ours.receive(data, self.now_s)
        self.events += fresh
        return fresh

    def status(self, stream_id: int) -> dict[str, str]:
        """Header fields of the answer, trailers included."""
        fields: dict[str, str] = {}
        for event in self.answers:
            if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived) and (
                event.stream_id == stream_id
            ):
                fields.update((str(name), str(value)) for name, value in event.headers or ())
        return fields

    def code(self) -> int | None:
        """The error code we ended the connection with."""
        ends = [event for event in self.answers if isinstance(event, h2.events.ConnectionTerminated)]
        return int(ends[-1].error_code or 0) if ends else None

    def resets(self) -> dict[int, int]:
        return {
            event.stream_id: int(event.error_code or 0)
            for event in self.answers
            if isinstance(event, h2.events.StreamReset)
        }


def hello() -> tuple[Connection, hpack.Encoder]:
    """A greeted connection whose SETTINGS are acknowledged, and an encoder that uses no table."""
    ours = Connection(Limits())
    ours.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0), 0.0)
    ours.take_output()
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return ours, encoder


def goaway_code(output: bytes) -> int:
    """Code of the GOAWAY that `output` ends with."""
    position = 0
    last = -1
    while position < len(output):
        head = struct.unpack_from(">L", output, position)[0]
        if head & 0xFF == 7:
            last = struct.unpack_from(">L", output, position + 13)[0]
        position += 9 + (head >> 8)
    return last


def test_a_call_from_headers_to_trailers() -> None:
    peer = Peer()
    stream_id = peer.open((("grpc-timeout", "1500m"),))
    peer.h2.send_data(stream_id, framed(b"one") + framed(b"") + framed(b"three"))
    peer.h2.end_stream(stream_id)
    assert peer.turn() == [
        Opened(stream_id, PATH, 1.5),
        Received(stream_id, b"one"),
        Received(stream_id, b""),
        Received(stream_id, b"three"),
        Ended(stream_id),
    ]
    peer.ours.send(stream_id, b"answer")
    peer.ours.close(stream_id, 0)
    peer.turn()
    assert peer.bodies[stream_id] == framed(b"answer")
    assert peer.status(stream_id) == {":status": "200", "content-type": "application/grpc", "grpc-status": "0"}
    assert peer.ours.open_streams == 0
    assert peer.resets() == {}


def test_an_answer_before_the_half_close_stops_the_client() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.turn()
    peer.ours.close(stream_id, 5, "50 % of ü")
    peer.turn()
    assert peer.status(stream_id)["grpc-status"] == "5"
    assert peer.status(stream_id)["grpc-message"] == "50 %25 of %C3%BC"
    assert peer.resets() == {stream_id: Code.NO_ERROR}
    assert peer.ours.open_streams == 0


def test_what_was_under_way_when_we_closed_is_no_error() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.turn()
    peer.ours.close(stream_id, 0)
    peer.h2.send_data(stream_id, framed(b"late"))
    peer.h2.end_stream(stream_id)
    assert peer.turn() == []
    assert peer.code() is None


def test_request_trailers_are_a_half_close() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.h2.send_data(stream_id, framed(b"x"))
    peer.h2.send_headers(stream_id, [("x-end", "yes")], end_stream=True)
    assert peer.turn()[1:] == [Received(stream_id, b"x"), Ended(stream_id)]


def test_a_reset_loses_the_call_once_and_later_sends_vanish() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.turn()
    peer.h2.reset_stream(stream_id, 8)
    assert peer.turn() == [Lost(stream_id)]
    assert peer.ours.send(stream_id, b"x")
    peer.ours.close(stream_id, 0)
    assert peer.ours.take_output() == b""


def test_a_lost_socket_loses_every_call() -> None:
    peer = Peer()
    ids = [peer.open() for _ in range(3)]
    peer.turn()
    assert peer.ours.lost() == [Lost(stream_id) for stream_id in ids]
    assert peer.ours.lost() == []


@pytest.mark.parametrize(("method", "has_body"), [("POST", True), ("GET", True), ("HEAD", False)])
def test_what_is_not_grpc_gets_415(method: str, has_body: bool) -> None:
    peer = Peer()
    stream_id: int = peer.h2.get_next_available_stream_id()
    fields = [(":method", method), (":scheme", "http"), (":path", "/"), (":authority", "a")]
    peer.h2.send_headers(stream_id, fields, end_stream=True)
    assert peer.turn() == []
    assert peer.status(stream_id)[":status"] == "415"
    assert (b"gRPC" in peer.bodies.get(stream_id, b"")) is has_body
    assert peer.ours.open_streams == 0


def test_a_body_is_shorter_or_longer_than_announced() -> None:
    for body in (b"", framed(b""), framed(b"four"), framed(b"seven")):
        ours, encoder = hello()
        block = encoder.encode([*HEADERS, ("content-length", "7")])
        ours.receive(frame(1, 4, 1, block), 0.0)
        assert ours.receive(frame(0, 1, 1, body), 0.0) == [Lost(1)]
        assert ours.take_output() == frame(3, 0, 1, struct.pack(">L", Code.PROTOCOL_ERROR))


@pytest.mark.parametrize(
    "fields",
    [
        [(":method", "POST"), (":path", "/"), ("content-type", "application/grpc")],
        [*HEADERS, (":path", "/again")],
        [*HEADERS, ("connection", "close")],
        [*HEADERS, ("Upper", "case")],
        [*HEADERS, ("x", "line\nbreak")],
        [*HEADERS, ("te", "gzip")],
        [*HEADERS, ("grpc-timeout", "5")],
        [*HEADERS, ("content-length", "-1")],
        [("x", "y"), *HEADERS],
        [(":status", "200"), *HEADERS],
    ],
)
def test_malformed_header_fields_reset_their_stream_only(fields: list[tuple[str, str]]) -> None:
    ours, encoder = hello()
    assert ours.receive(frame(1, 4, 1, encoder.encode(fields)), 0.0) == []
    assert ours.take_output() == frame(3, 0, 1, struct.pack(">L", Code.PROTOCOL_ERROR))
    assert ours.receive(frame(1, 4, 3, encoder.encode(HEADERS)), 0.0) == [Opened(3, PATH, None)]


@pytest.mark.parametrize(
    ("encoding", "flag", "payload", "status"),
    [
        (None, 1, b"x", Status.INTERNAL),
        ("gzip", 1, b"no gzip", Status.INTERNAL),
        ("gzip", 1, gzip.compress(b"cut short")[:-4], Status.INTERNAL),
        ("gzip", 1, gzip.compress(bytes(5_000)), Status.RESOURCE_EXHAUSTED),
        ("br", 1, b"x", Status.UNIMPLEMENTED),
        ("gzip", 2, b"x", Status.INTERNAL),
        (None, 0, bytes(1_001), Status.RESOURCE_EXHAUSTED),
    ],
    ids=["not announced", "not gzip", "cut short", "unfolds", "unknown encoding", "unknown flag", "large"],
)
def test_messages_that_are_refused(encoding: str | None, flag: int, payload: bytes, status: Status) -> None:
    for pieces in (1, 3):
        peer = Peer(Limits(max_message_bytes=1_000))
        stream_id = peer.open((("grpc-encoding", encoding),) if encoding else ())
        data = framed(payload, flag)
        size = -(-len(data) // pieces)
        for start in range(0, len(data), size):
            peer.h2.send_data(stream_id, data[start : start + size])
        peer.h2.send_data(stream_id, framed(b"after"))
        assert peer.turn() == [Opened(stream_id, PATH, None), Lost(stream_id)]
        assert peer.status(stream_id)["grpc-status"] == str(int(status))
        assert peer.ours.assembling_bytes == 0


def test_a_gzip_message_arrives_plain_and_plain_ones_may_stand_beside_it() -> None:
    peer = Peer()
    stream_id = peer.open((("grpc-encoding", "gzip"),))
    peer.h2.send_data(stream_id, framed(gzip.compress(b"packed" * 99), 1) + framed(b"plain"))
    assert peer.turn()[1:] == [Received(stream_id, b"packed" * 99), Received(stream_id, b"plain")]


def test_padding_is_no_part_of_a_message() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.h2.send_data(stream_id, framed(b"padded")[:4], pad_length=200)
    peer.h2.send_data(stream_id, framed(b"padded")[4:], pad_length=0)
    assert peer.turn()[1:] == [Received(stream_id, b"padded")]


def test_messages_after_our_close_are_not_handed_on_while_the_answer_waits() -> None:
    peer = Peer(window=0)
    stream_id = peer.open()
    peer.turn()
    peer.ours.send(stream_id, b"waits")
    peer.ours.close(stream_id, 0)
    peer.h2.send_data(stream_id, framed(b"late"))
    peer.h2.end_stream(stream_id)
    assert peer.turn() == []
    peer.h2.increment_flow_control_window(100, stream_id)
    peer.turn()
    assert peer.bodies[stream_id] == framed(b"waits")
    assert peer.status(stream_id)["grpc-status"] == "0"


def test_a_gzip_bomb_never_unfolds_in_memory() -> None:
    peer = Peer(Limits(max_message_bytes=1 << 20))
    stream_id = peer.open((("grpc-encoding", "gzip"),))
    bomb = framed(gzip.compress(bytes(64 << 20)), 1)
    peer.turn()
    tracemalloc.start()
    try:
        for start in range(0, len(bomb), 10_000):
            peer.raw(frame(0, 0, stream_id, bomb[start : start + 10_000]))
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peer.events[-1] == Lost(stream_id)
    assert peak_bytes < 8 << 20


def test_a_stream_that_ends_inside_a_message_is_refused() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.h2.send_data(stream_id, framed(b"whole") + framed(b"half")[:-1], end_stream=True)
    assert peer.turn()[1:] == [Received(stream_id, b"whole"), Lost(stream_id)]
    assert peer.status(stream_id)["grpc-status"] == str(int(Status.INTERNAL))


def test_unfinished_messages_of_all_streams_are_bounded() -> None:
    peer = Peer(Limits(max_assembling_bytes=30_000))
    ids = [peer.open() for _ in range(4)]
    for stream_id in ids:
        peer.h2.send_data(stream_id, framed(bytes(50_000))[:10_000])
        peer.turn()
        assert peer.ours.assembling_bytes <= 30_000
    assert peer.status(ids[3])["grpc-status"] == str(int(Status.RESOURCE_EXHAUSTED))
    assert peer.ours.open_streams == 3
    peer.h2.reset_stream(ids[0])
    peer.turn()
    assert peer.ours.assembling_bytes == 20_000


def test_a_message_that_memory_does_not_hold_ends_its_own_call(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer()
    large, small = peer.open(), peer.open()
    for stream_id in (large, small):
        peer.h2.send_data(stream_id, framed(bytes(10_000))[:9_000])
    peer.turn()
    extend = Connection._extend

    def starved(ours: Connection, stream: Any, *rest: Any) -> None:
        if stream.id == large:
            raise MemoryError
        extend(ours, stream, *rest)

    monkeypatch.setattr(Connection, "_extend", starved)
    for stream_id in (large, small):
        peer.h2.send_data(stream_id, framed(bytes(10_000))[9_000:])
    assert peer.turn() == [Lost(large), Received(small, bytes(10_000))]
    assert peer.status(large)["grpc-status"] == str(int(Status.RESOURCE_EXHAUSTED))
    assert peer.ours.assembling_bytes == 0


def test_the_client_always_gets_new_credit() -> None:
    peer = Peer(Limits(stream_window_bytes=70_000, connection_window_bytes=90_000))
    stream_id = peer.open()
    total = b""
    for size in (60_000, 60_000, 60_000, 60_000):
        data = framed(bytes(size))
        while data:
            room = min(len(data), peer.h2.local_flow_control_window(stream_id), 16_384)
            assert room > 0
            peer.h2.send_data(stream_id, data[:room])
            data = data[room:]
            total += b"".join(e.message for e in peer.turn() if isinstance(e, Received))
            assert peer.h2.local_flow_control_window(stream_id) == min(
                peer.ours._receivable, peer.ours._streams[stream_id].receivable
            )
    assert len(total) == 240_000


def test_a_frame_beyond_the_credit_is_an_error() -> None:
    data = framed(bytes(100_000))
    for limits, size, code in (
        (Limits(stream_window_bytes=10_000), 10_001, None),
        (Limits(stream_window_bytes=10_000), 10_000, 0),
        (Limits(connection_window_bytes=65_535, max_frame_bytes=1 << 20), 65_536, Code.FLOW_CONTROL_ERROR),
    ):
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        ours = Connection(limits)
        opening = PREFACE + frame(4, 0, 0) + frame(4, 1, 0) + frame(1, 4, 1, encoder.encode(HEADERS))
        ours.receive(opening, 0.0)
        ours.take_output()
        events = ours.receive(frame(0, 0, 1, data[:size]), 0.0)
        output = ours.take_output()
        assert events == ([] if code == 0 else [Lost(1)])
        if code is None:
            assert output == frame(3, 0, 1, struct.pack(">L", Code.FLOW_CONTROL_ERROR))
        elif code:
            assert goaway_code(output) == code
        else:
            assert output == frame(8, 0, 1, struct.pack(">L", size))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 70_000)), min_size=1, max_size=12),
    window=st.sampled_from([0, 1, 100, 20_000, 65_535]),
    seed=st.integers(0, 2**32),
)
def test_answers_arrive_whole_and_in_order_whatever_the_windows(
    sizes: list[tuple[int, int]], window: int, seed: int
) -> None:
    chance = random.Random(seed)
    peer = Peer(window=window)
    ids = [peer.open(end=True) for _ in range(4)]
    peer.turn()
    wanted = dict.fromkeys(ids, b"")
    for index, size in sizes:
        message = chance.randbytes(size)
        wanted[ids[index]] += framed(message)
        assert peer.ours.send(ids[index], message)
        if chance.random() < 0.5:
            peer.hear(peer.ours.take_output())
    for stream_id in ids:
        peer.ours.close(stream_id, 0)
    open_ids = set(ids)
    while open_ids:
        peer.turn()
        for event in peer.answers:
            if isinstance(event, h2.events.StreamEnded):
                open_ids.discard(event.stream_id)
        peer.h2.increment_flow_control_window(chance.randint(1, 50_000))
        for stream_id in sorted(open_ids):
            peer.h2.increment_flow_control_window(chance.randint(1, 50_000), stream_id)
    assert {stream_id: peer.bodies.get(stream_id, b"") for stream_id in ids} == wanted
    assert peer.ours.queued_bytes == 0
    assert peer.ours.open_streams == 0


def test_a_changed_initial_window_moves_open_streams_also_below_zero() -> None:
    peer = Peer(window=10)
    stream_id = peer.open(end=True)
    peer.turn()
    peer.ours.send(stream_id, bytes(95))
    peer.turn()
    assert len(peer.bodies[stream_id]) == 10
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 3})
    peer.turn()
    peer.raw(frame(8, 0, stream_id, struct.pack(">L", 7)))
    assert peer.ours.take_output() == b""
    peer.raw(frame(8, 0, stream_id, struct.pack(">L", 5)))
    assert len(peer.ours.take_output()) == 9 + 5


def test_a_wider_initial_window_lets_waiting_answers_go() -> None:
    peer = Peer(window=0)
    stream_id = peer.open(end=True)
    peer.turn()
    peer.ours.send(stream_id, b"waits")
    peer.turn()
    assert stream_id not in peer.bodies
    peer.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 100})
    peer.turn()
    assert peer.bodies[stream_id] == framed(b"waits")


def test_a_peer_that_does_not_read_is_bounded_and_its_call_ends() -> None:
    peer = Peer(Limits(max_queued_bytes=100_000), window=0)
    stream_id = peer.open()
    other = peer.open()
    peer.turn()
    assert peer.ours.send(other, bytes(1_000))
    sent = 0
    while peer.ours.send(stream_id, bytes(9_995)):
        sent += 10_000
        assert peer.ours.queued_bytes <= 100_000 + 1_005
    assert sent == 100_000
    peer.turn()
    assert peer.resets() == {stream_id: Code.ENHANCE_YOUR_CALM}
    assert peer.ours.queued_bytes == 1_005


def test_all_streams_together_are_bounded_too() -> None:
    peer = Peer(Limits(max_connection_queued_bytes=25_000), window=0)
    ids = [peer.open() for _ in range(3)]
    peer.turn()
    assert [peer.ours.send(stream_id, bytes(10_000)) for stream_id in ids] == [True, True, False]


def test_nothing_leaves_while_the_socket_is_full() -> None:
    peer = Peer()
    stream_id = peer.open()
    peer.turn()
    peer.ours.hold()
    peer.ours.send(stream_id, b"held")
    peer.ours.close(stream_id, 0)
    peer.turn()
    assert stream_id not in peer.bodies
    peer.ours.release()
    peer.turn()
    assert peer.bodies[stream_id] == framed(b"held")
    assert peer.status(stream_id)["grpc-status"] == "0"


def test_streams_that_wait_for_the_connection_take_turns() -> None:
    peer = Peer(window=1_000_000)
    big, small = peer.open(), peer.open()
    peer.turn()
    peer.ours.send(big, bytes(500_000))
    peer.ours.send(small, bytes(10))
    peer.turn()
    peer.h2.increment_flow_control_window(40_000)
    peer.turn()
    assert peer.bodies[small] == framed(bytes(10))


def test_blocks_are_read_only_when_new() -> None:
    peer = Peer()
    for _ in range(2):
        peer.open()
        peer.turn()
    peer.ours._blocks._decoder = None  # type: ignore[assignment]  # whoever decodes now, fails
    stream_id = peer.open()
    assert peer.turn() == [Opened(stream_id, PATH, None)]


def test_a_block_by_reference_is_read_again_when_the_table_has_changed() -> None:
    """Calls by turns to two paths that stand in the same place of the table: their blocks are alike."""
    peer = Peer()
    encoder = peer.h2.encoder
    seen: list[str] = []
    for path in ("/a", "/b", "/a", "/b", "/a"):
        encoder.header_table_size = 0
        encoder.header_table_size = 4096
        for _ in range(3):
            stream_id: int = peer.h2.get_next_available_stream_id()
            peer.h2.send_headers(stream_id, [(name, path if name == ":path" else value) for name, value in HEADERS])
        seen += [event.path for event in peer.turn() if isinstance(event, Opened)]
    assert seen == [path for path in ("/a", "/b", "/a", "/b", "/a") for _ in range(3)]


def test_whatever_becomes_of_a_block_its_fields_are_in_the_table() -> None:
    ours, encoder = Connection(Limits(max_concurrent_streams=1)), hpack.Encoder()
    ours.receive(PREFACE + frame(4, 0, 0), 0.0)

    def says(stream_id: int, name: str, *call: tuple[str, str], end: bool = False) -> None:
        ours.receive(frame(1, 4 + end, stream_id, encoder.encode([*call, (name, "1")])), 0.0)

    says(1, "x-opened", *HEADERS)
    says(3, "x-refused", *HEADERS)
    says(1, "x-trailer", end=True)
    ours.close(1, 0)
    says(5, "x-closed", *HEADERS)
    ours.close(5, 0)
    says(5, "x-late", end=True)
    says(7, "x-malformed")
    names = [one[0] for one in encoder.header_table.dynamic_entries if one[0].startswith(b"x-")]
    assert len(names) == 6
    block = encoder.encode([*HEADERS, *((name, "1") for name in names)])
    assert block[-6:] == bytes((0xBE, 0xBF, 0xC0, 0xC1, 0xC2)) + block[-1:]
    assert ours.receive(frame(1, 4, 9, block), 0.0) == [Opened(9, PATH, None)]
    assert ours.metadata(9).keys() >= set(names)


def test_remembered_blocks_are_bounded() -> None:
    ours, encoder = hello()
    for number in range(200):
        block = encoder.encode([*((*one, True) for one in HEADERS), ("x-request-id", str(number), True)])
        ours.receive(frame(1, 4, 2 * number + 1, block) + frame(3, 0, 2 * number + 1, bytes(4)), 0.0)
    assert len(ours._blocks.remembered) == Limits().remembered_blocks


def test_a_peer_that_shrinks_its_table_is_told_so_once() -> None:
    peer = Peer()
    peer.h2.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 100})
    peer.turn()
    ids = [peer.open(end=True) for _ in range(2)]
    peer.turn()
    peer.ours.close(ids[0], 0)
    first = peer.ours.take_output()
    assert first[9:10] == b"\x20"
    peer.hear(first)
    peer.ours.close(ids[1], 0)
    second = peer.ours.take_output()
    assert second[9:10] == b"\x88"
    peer.hear(second)
    assert peer.status(ids[1])["grpc-status"] == "0"


def test_a_small_block_that_unfolds_to_a_huge_list_ends_the_connection() -> None:
    peer = Peer()
    ours = Connection(Limits())
    ours.receive(PREFACE + frame(4, 0, 0), 0.0)
    encoder = hpack.Encoder()
    first = encoder.encode([*HEADERS, ("x-big", "v" * 3_000)])
    bomb = encoder.encode([("x-big", "v" * 3_000)]) * 1_000
    assert len(bomb) < 2_000
    ours.receive(frame(1, 4, 1, first), 0.0)
    events = ours.receive(frame(1, 4, 3, bomb), 0.0)
    assert events == [Lost(1)]
    assert goaway_code(ours.take_output()) == Code.ENHANCE_YOUR_CALM
    assert peer.code() is None


FLOODS: dict[str, Callable[[hpack.Encoder, int], bytes]] = {
    "ping": lambda encoder, turn: frame(6, 0, 0, bytes(8)),
    "settings": lambda encoder, turn: frame(4, 0, 0),
    "priority": lambda encoder, turn: frame(2, 0, 7, struct.pack(">LB", 3, 1)),
    "unknown": lambda encoder, turn: frame(99, 0, 0),
    "rapid reset": lambda encoder, turn: (
        frame(1, 4, 2 * turn + 3, encoder.encode(HEADERS)) + frame(3, 0, 2 * turn + 3, bytes(4))
    ),
    "empty data": lambda encoder, turn: frame(0, 0, 1),
    "bad streams": lambda encoder, turn: frame(1, 4, 2 * turn + 3, encoder.encode([("x", "y")])),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_floods_end_the_connection_and_slow_ones_do_not(flood: str) -> None:
    limits = Limits(chatter_burst=50, chatter_per_s=10.0)
    for pace_s in (0.0, 0.2):
        encoder = hpack.Encoder()
        encoder.header_table_size = 0
        ours = Connection(limits)
        ours.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0) + frame(1, 4, 1, encoder.encode(HEADERS)), 0.0)
        turns = 0
        while not ours.closing and turns < 200:
            ours.receive(FLOODS[flood](encoder, turns), turns * pace_s)
            turns += 1
        output = ours.take_output()
        if pace_s:
            assert not ours.closing
        else:
            assert turns <= 50
            assert goaway_code(output) == Code.ENHANCE_YOUR_CALM


def test_resets_of_calls_that_worked_are_no_flood() -> None:
    ours = Connection(Limits(chatter_burst=50))
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    ours.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0), 0.0)
    for turn in range(500):
        stream_id = 2 * turn + 1
        ours.receive(frame(1, 4, stream_id, encoder.encode(HEADERS)) + frame(0, 0, stream_id, framed(b"x")), 0.0)
        ours.receive(frame(3, 0, stream_id, bytes(4)), 0.0)
    assert not ours.closing


@pytest.mark.parametrize("fragment", [b"", b"\x00\x01x\x01y" * 800])
def test_a_header_block_without_end_is_bounded(fragment: bytes) -> None:
    ours, encoder = hello()
    ours.receive(frame(1, 0, 1, encoder.encode(HEADERS)), 0.0)
    for _ in range(17):
        ours.receive(frame(9, 0, 1, fragment), 0.0)
    assert ours.closing
    assert goaway_code(ours.take_output()) == Code.ENHANCE_YOUR_CALM


def test_streams_above_the_limit_are_refused() -> None:
    ours = Connection(Limits(max_concurrent_streams=2))
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    ours.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0), 0.0)
    ours.take_output()
    for stream_id in (1, 3, 5):
        ours.receive(frame(1, 4, stream_id, encoder.encode(HEADERS)), 0.0)
    assert ours.take_output() == frame(3, 0, 5, struct.pack(">L", Code.REFUSED_STREAM))
    ours.receive(frame(3, 0, 1, bytes(4)), 0.0)
    assert ours.receive(frame(1, 4, 7, encoder.encode(HEADERS)), 0.0) == [Opened(7, PATH, None)]


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", PREFACE[:-1] + b"x", PREFACE + frame(6, 0, 0, bytes(8))])
def test_what_is_not_http2_ends_at_once(data: bytes) -> None:
    ours = Connection(Limits())
    ours.take_output()
    assert ours.receive(data, 0.0) == []
    assert ours.closing
    assert goaway_code(ours.take_output()) == Code.PROTOCOL_ERROR


def test_drain_serves_what_crosses_it_then_closes_the_door() -> None:
    peer = Peer()
    first = peer.open()
    peer.turn()
    peer.ours.drain()
    crossing = peer.open()
    late = peer.open()
    data = peer.h2.data_to_send()
    assert peer.raw(data) == [Opened(crossing, PATH, None), Opened(late, PATH, None)]
    goodbye = peer.ours.take_output()
    assert goaway_code(goodbye) == Code.NO_ERROR
    peer.raw(frame(6, 1, 0, b"epp.bye!"))
    assert peer.raw(frame(1, 4, late + 2, hpack.Encoder().encode(HEADERS))) == []
    assert not peer.ours.closing
    for stream_id in (first, crossing, late):
        peer.ours.close(stream_id, 0)
    assert peer.ours.closing


def test_abort_loses_every_call_and_says_goaway() -> None:
    peer = Peer()
    ids = [peer.open() for _ in range(2)]
    peer.turn()
    assert peer.ours.abort() == [Lost(stream_id) for stream_id in ids]
    assert peer.ours.closing
    assert goaway_code(peer.ours.take_output()) == Code.NO_ERROR
    assert peer.ours.abort() == []


def conversation(chance: random.Random) -> bytes:
    """A client's side of a connection: calls that send, half-close, reset, with pings and settings between."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    client.initiate_connection()
    data = bytearray(client.data_to_send())
    open_ids: list[int] = []
    for _ in range(chance.randint(3, 25)):
        step = chance.random()
        if step < 0.3 or not open_ids:
            stream_id: int = client.get_next_available_stream_id()
            client.send_headers(stream_id, HEADERS)
            open_ids.append(stream_id)
        elif step < 0.7:
            payload = framed(chance.randbytes(chance.choice([0, 1, 50, 3_000])))
            cut = chance.randint(0, len(payload))
            client.send_data(chance.choice(open_ids), payload[:cut], pad_length=chance.choice([None, 0, 9]))
        elif step < 0.8:
            client.end_stream(open_ids.pop())
        elif step < 0.9:
            client.reset_stream(open_ids.pop())
        else:
            client.ping(chance.randbytes(8))
        data += client.data_to_send()
    return bytes(data)


def feed(data: bytes, cuts: list[int]) -> tuple[list[Event], bytes]:
    ours = Connection(Limits())
    events: list[Event] = []
    for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True):
        events += ours.receive(data[start:stop], 0.0)
    return events, ours.take_output()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), damage=st.integers(0, 3))
def test_any_cut_gives_the_same_events_and_the_same_answer(seed: int, damage: int) -> None:
    """Also when bytes are damaged: whatever comes in, nothing is raised."""
    chance = random.Random(seed)
    data = bytearray(conversation(chance))
    for _ in range(damage):
        data[chance.randrange(len(PREFACE), len(data))] = chance.randrange(256)
    whole = feed(bytes(data), [])
    some = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(1, 20)))
    assert feed(bytes(data), some) == whole
    if len(data) < 3_000:
        assert feed(bytes(data), list(range(1, len(data)))) == whole


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=40))))
def test_no_frame_raises_and_every_call_ends_at_most_once(frames: list[tuple[int, int, int, bytes]]) -> None:
    ours, encoder = hello()
    events = ours.receive(frame(1, 4, 1, encoder.encode(HEADERS)), 0.0)
    for kind, flags, stream_id, payload in frames:
        events += ours.receive(frame(kind, flags, stream_id, payload), 0.0)
    events += ours.lost()
    lost = [event.stream_id for event in events if isinstance(event, Lost)]
    assert len(lost) == len(set(lost))
    assert ours.assembling_bytes == ours.queued_bytes == ours.open_streams == 0


_WHOLE = st.sampled_from([b"abc", bytes(60), bytes(400), bytes(700)]).map(framed)
_ODD = (
    _WHOLE.map(lambda one: one[:-1])
    | _WHOLE.map(lambda one: one + one)
    | st.sampled_from([b"", framed(b""), framed(b"x", 1)])
)
_IDS = st.sampled_from([1, 1, 3, 5, 7])


def _opening(stream_id: int, flags: int = 4, **more: str) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    fields = [*HEADERS, *((name.replace("_", "-"), value) for name, value in more.items())]
    return frame(1, flags, stream_id, encoder.encode(fields))


@st.composite
def _frames(draw: st.DrawFn) -> bytes:
    kind = draw(st.sampled_from(["whole"] * 12 + ["odd", "last", "padded", "begun", "reset"]))
    stream_id = draw(_IDS)
    if kind == "begun":
        return _opening(9, flags=0)
    if kind == "reset":
        return frame(3, 0, stream_id, bytes(4))
    payload = draw(_ODD if kind == "odd" else _WHOLE)
    if kind == "padded":
        return frame(0, 8, stream_id, b"\x02" + payload + b"\0\0")
    return frame(0, kind == "last", stream_id, payload)


@given(st.lists(_frames(), min_size=1, max_size=12), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_a_whole_message_is_taken_as_any_other_frame_is(sent: list[bytes], closed_before: int) -> None:
    limits = Limits(stream_window_bytes=1500, connection_window_bytes=65_535, max_message_bytes=600)

    def told(short_way: bool) -> list[object]:
        ours = Connection(limits)
        ours.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0), 0.0)
        if not short_way:
            ours._take_whole = lambda *args: False  # type: ignore[method-assign]
        out: list[object] = [
            ours.receive(_opening(1) + _opening(3, content_length="73") + _opening(5) + _opening(7), 0.0)
        ]
        for number, data in enumerate(sent):
            if number == closed_before:
                ours.send(5, bytes(100_000))
                ours.close(5, 0)
            out += [ours.receive(data, 0.0), ours.take_output(), ours.closing, ours.assembling_bytes]
        return out

    assert told(True) == told(False)
