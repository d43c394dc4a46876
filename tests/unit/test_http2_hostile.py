"""Peers that mean harm, against one connection in memory: what they can make it do and hold is counted, and has an end.

Floods of the common kinds are in `test_http2.py`; here is what they cost, and the rarer kinds.
"""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count

import hpack
import msgspec
import pytest

from epp.extproc.frames import PREFACE
from epp.extproc.http2 import Connection, Ended, Limits, Lost, Opened, Received
from tests.fuzz.seeds import FIELDS, frame, framed
from tests.fuzz.targets import read_frames

GOAWAY, RST_STREAM, CALM = 7, 3, 11
BURST = Limits().chatter_burst


NARROW = b"\x93" * 1_700
"""An empty `accept` 1,700 times: a list of 63 KiB, which takes 1.3 ms to read."""


class Victim:
    """A greeted connection that counts the limits run into and the frames taken."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.hits: Counter[str] = Counter()
        self.connection = Connection(limits or Limits(), lambda limit: self.hits.update([limit]))
        self.block = untabled(FIELDS)
        self.wide = untabled([*FIELDS, ("x-wide", "w" * 10_000)])
        self.connection.receive(PREFACE + frame(4, 0, 0) + frame(4, 1, 0), 0.0)
        self.connection.take_output()

    def open(self, streams: int) -> None:
        for number in range(streams):
            self.connection.receive(frame(1, 4, 2 * number + 1, self.block), 0.0)

    def taken(self, frames: Iterator[bytes], at_most: int) -> int:
        """How many of `frames` were handled, all at one moment, before the connection ended."""
        for number, one in enumerate(frames):
            if self.connection.closing or number > at_most:
                return number
            self.connection.receive(one, 0.0)
        raise AssertionError("a flood never ends by itself")

    def code(self) -> int:
        last = read_frames(self.connection.take_output())[-1]
        assert last[0] == GOAWAY
        return int.from_bytes(last[3][4:8])


def untabled(fields: Sequence[tuple[str, str]]) -> bytes:
    """A block that means the same on every connection, and adds nothing to its table."""
    block: bytes = hpack.Encoder().encode([(*one, True) for one in fields], huffman=False)
    return block


def windows(*values: int) -> bytes:
    return frame(4, 0, 0, b"".join(struct.pack(">HL", 4, value) for value in values))


def on_new_streams(frames: Callable[[Victim, int], Iterable[bytes]]) -> Callable[[Victim], Iterator[bytes]]:
    """The same frames on one stream after the other."""
    return lambda victim: (part for number in count(20_001, 2) for part in frames(victim, number))


FLOODS: dict[str, tuple[Callable[[Victim], Iterator[bytes]], int]] = {
    "connection windows": (lambda victim: (frame(8, 0, 0, b"\0\0\0\1") for _ in count()), BURST),
    "stream windows": (lambda victim: (frame(8, 0, 1, b"\0\0\0\1") for _ in count()), BURST),
    "windows of closed streams": (lambda victim: (frame(8, 0, 1, b"\0\0\0\1") for _ in count()), BURST),
    # 100 streams cost one frame more, so 5,000 streams end it after a fiftieth of the frames.
    "initial windows under 5,000 streams": (lambda victim: (windows(number % 7) for number in count()), BURST // 50),
    "many windows in a frame": (lambda victim: (windows(*range(2_700)) for _ in count()), 4),
    "many settings in a frame": (lambda victim: (windows(*[65_535] * 2_700) for _ in count()), BURST // 168),
    "empty messages": (lambda victim: (frame(0, 0, 1, framed(b"") * 100) for _ in count()), BURST // 100),
    "rapid resets with wide headers": (
        on_new_streams(lambda victim, number: (frame(1, 4, number, victim.wide), frame(3, 0, number, bytes(4)))),
        2 * (BURST // 10),
    ),
    "rapid resets with headers that take a byte each": (
        on_new_streams(
            lambda victim, number: (frame(1, 4, number, victim.block + NARROW), frame(3, 0, number, bytes(4)))
        ),
        2 * (BURST // 63),
    ),
    "malformed calls with headers that take a byte each": (
        lambda victim: (frame(1, 4, number, victim.block + NARROW + b"\0\1A\0") for number in count(20_001, 2)),
        BURST // 63,
    ),
    "malformed calls with wide headers": (
        lambda victim: (frame(1, 4, number, victim.wide + b"\0\1A\0") for number in count(20_001, 2)),
        BURST // 10,
    ),
    "refused streams with headers that take a byte each": (
        lambda victim: (frame(1, 4, number, victim.block + NARROW) for number in count(20_001, 2)),
        BURST // 63,
    ),
    "trailers that end nothing and take a byte each": (
        on_new_streams(lambda victim, number: (frame(1, 4, number, victim.block), frame(1, 4, number, NARROW))),
        2 * (BURST // 62),
    ),
    "malformed trailers that take a byte each": (
        on_new_streams(
            lambda victim, number: (frame(1, 4, number, victim.block), frame(1, 5, number, NARROW + b"\0\1A\0"))
        ),
        2 * (BURST // 62),
    ),
    "streams that end by an error, with headers that take a byte each": (
        on_new_streams(
            lambda victim, number: (frame(1, 4, number, victim.block + NARROW), frame(8, 0, number, bytes(4)))
        ),
        2 * (BURST // 63),
    ),
    "goodbyes": (lambda victim: (frame(7, 0, 0, bytes(8)) for _ in count()), BURST),
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_ends_after_its_allowance(flood: str) -> None:
    frames, allowed = FLOODS[flood]
    victim = Victim(Limits(max_concurrent_streams=1) if "refused" in flood else None)
    victim.open(5_000 if "5,000" in flood or "many" in flood else 1)
    if "closed" in flood:
        victim.connection.receive(frame(3, 0, 1, bytes(4)), 0.0)
    assert victim.taken(frames(victim), 3 * allowed) <= allowed + 2
    assert victim.hits["chatter_burst"] == 1
    assert victim.hits.keys() <= {"chatter_burst", "max_concurrent_streams"}
    assert victim.code() == CALM
    assert victim.connection.open_streams == 0


BOMB = gzip.compress(bytes(4 << 20), 9)


@pytest.mark.parametrize(
    "packed",
    [BOMB, BOMB[:-8] + bytes(8), BOMB[:-8], gzip.compress(bytes(8 << 20), 9)],
    ids=["whole", "wrong at its end", "cut short", "too large"],
)
def test_gzip_that_unfolds_as_no_text_does_is_counted(packed: bytes) -> None:
    """4 to 8 KB that take 13 ms each."""
    victim = Victim(Limits(max_message_bytes=4 << 20))
    calls = untabled([*FIELDS, ("grpc-encoding", "gzip")])
    frames = (
        frame(1, 4, number, calls) + frame(0, 1, number, struct.pack(">BL", 1, len(packed)) + packed)
        for number in count(1, 2)
    )
    assert victim.taken(frames, 100) <= BURST // 230
    assert victim.hits["chatter_burst"] == 1
    assert victim.code() == CALM


def test_gzip_of_text_is_not_counted() -> None:
    victim = Victim(Limits(chatter_burst=10))
    calls = untabled([*FIELDS, ("grpc-encoding", "gzip")])
    packed = gzip.compress(
        b"".join(b'{"role": "user", "content": "turn %d of many"}, ' % turn for turn in range(9_000))
    )
    assert len(packed) < 30_000
    frames = struct.pack(">BL", 1, len(packed)) + packed
    for number in range(1, 201, 2):
        victim.connection.receive(frame(1, 4, number, calls), 0.0)
        for at in range(0, len(frames), 16_000):
            events = victim.connection.receive(frame(0, 0, number, frames[at : at + 16_000]), 0.0)
        assert isinstance(events[0], Received)
    assert not victim.hits


def test_headers_and_data_on_streams_that_we_closed_are_counted() -> None:
    """They are no error, because they may have been under way: so they must not be free."""
    for flood, allowed in ((frame(1, 4, 1, Victim().wide), BURST // 10), (frame(0, 0, 1), BURST)):
        victim = Victim()
        victim.open(1)
        victim.connection.close(1, 12)
        assert victim.taken((flood for _ in count()), 2 * BURST) <= allowed + 2
        assert victim.hits == {"chatter_burst": 1}


def test_credit_for_what_was_answered_is_no_flood() -> None:
    """The simplest of clients: it grants the stream and the connection what each message took, at once."""
    victim = Victim(Limits(chatter_burst=10))
    victim.open(1)
    victim.connection.take_output()
    for _ in range(1_000):
        victim.connection.send(1, bytes(123))
        victim.connection.take_output()
        grant = struct.pack(">L", 128)
        victim.connection.receive(frame(8, 0, 1, grant) + frame(8, 0, 0, grant), 0.0)
    assert not victim.connection.closing
    assert victim.connection.queued_bytes == 0
    assert not victim.hits


@pytest.mark.parametrize("traced", [False, True])
def test_ten_thousand_open_streams_cost_a_kibibyte_each_and_the_next_is_refused(traced: bool) -> None:
    """Where calls are traced, each adds an id to the table, and no block comes twice."""
    victim = Victim()
    victim.open(1)
    encoder = hpack.Encoder()
    tracemalloc.start()
    try:
        for number in range(1, 10_001):
            block = encoder.encode([*FIELDS, ("traceparent", f"00-{number:032x}-01")]) if traced else victim.block
            victim.connection.receive(frame(1, 4, 2 * number + 1, block), 0.0)
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert victim.connection.open_streams == 10_000
    assert held_bytes < 10_000 * 1_024
    assert victim.hits == {"max_concurrent_streams": 1}
    # Those that are open are undisturbed.
    assert victim.connection.receive(frame(0, 0, 1, framed(b"still here")), 0.0) == [Received(1, b"still here")]
    assert not victim.connection.closing


def test_the_header_fields_of_all_open_streams_have_a_limit_together() -> None:
    """A thousand short names in each call, and one that no other call has: what is held is three times what counts, at most."""
    limit = 2 << 20
    victim = Victim(Limits(max_open_header_bytes=limit))
    names = b"".join(b"\0\3%03d\0" % number for number in range(1_000))
    tracemalloc.start()
    try:
        for number in range(200):
            wide = victim.block + names + b"\0\1x\4%04d" % number
            victim.connection.receive(frame(1, 4, 2 * number + 1, wide), 0.0)
            if victim.hits:
                break
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    opened = victim.connection.open_streams
    assert opened == limit // victim.connection._streams[1].call.list_bytes
    assert victim.hits == {"max_open_header_bytes": 1}
    assert held_bytes < 3 * limit
    # One that ends makes room for another.
    end = 2 * opened + 1
    for number, hits in ((2, 2), (4, 2), (6, 3)):
        if number == 4:
            victim.connection.receive(frame(3, 0, 1, bytes(4)), 0.0)
        victim.connection.receive(frame(1, 4, end + number, wide), 0.0)
        assert victim.hits == {"max_open_header_bytes": hits}
    assert victim.connection.open_streams == opened
    assert not victim.connection.closing


def test_unfinished_messages_cost_what_they_hold_and_no_more() -> None:
    """Slow bodies: a thousand streams with a message begun; what is held is what came."""
    victim = Victim()
    victim.open(1_000)
    begun = struct.pack(">BL", 0, 1 << 20) + bytes(1_000)
    tracemalloc.start()
    try:
        for number in range(1_000):
            victim.connection.receive(frame(0, 0, 2 * number + 1, begun), 0.0)
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert victim.connection.assembling_bytes == 1_005_000
    assert held_bytes < 1_500_000


def test_a_body_byte_by_byte_costs_no_more_than_its_bytes() -> None:
    victim = Victim()
    victim.open(1)
    message = framed(bytes(20_000))
    events = []
    for at in range(len(message)):
        events += victim.connection.receive(frame(0, 0, 1, message[at : at + 1]), 0.0)
        assert victim.connection.assembling_bytes <= at + 1
    assert events == [Received(1, bytes(20_000))]
    assert not victim.connection.closing


LIMITED: dict[str, tuple[Limits, bytes]] = {
    "max_frame_bytes": (Limits(), b"\0\x40\1\0\0\0\0\0\1"),
    "max_header_list_bytes": (
        Limits(max_header_list_bytes=20_000),
        frame(1, 0, 1, Victim().wide) + frame(9, 0, 1, bytes(10_000)),
    ),
    "max_continuations": (Limits(max_continuations=2), frame(1, 0, 1) + frame(9, 0, 1) * 3),
    "max_concurrent_streams": (
        Limits(max_concurrent_streams=1),
        frame(1, 4, 1, Victim().block) + frame(1, 4, 3, Victim().block),
    ),
    "max_open_header_bytes": (
        Limits(max_open_header_bytes=10_000),
        frame(1, 4, 1, Victim().wide),
    ),
    "max_message_bytes": (
        Limits(max_message_bytes=4),
        frame(1, 4, 1, Victim().block) + frame(0, 0, 1, framed(b"12345")),
    ),
    "max_assembling_bytes": (
        Limits(max_assembling_bytes=6),
        frame(1, 4, 1, Victim().block) + frame(0, 0, 1, framed(b"12345")[:8]),
    ),
    "stream_window_bytes": (
        Limits(stream_window_bytes=9),
        frame(1, 4, 1, Victim().block) + frame(0, 0, 1, bytes((0, 0, 0, 1, 0)) + bytes(6)),
    ),
    "connection_window_bytes": (
        Limits(connection_window_bytes=65_535, stream_window_bytes=1 << 20, max_frame_bytes=1 << 20),
        frame(1, 4, 1, Victim().block) + frame(0, 0, 1, framed(bytes(65_536))),
    ),
    "chatter_burst": (Limits(chatter_burst=3), frame(6, 0, 0, bytes(8)) * 4),
}


@pytest.mark.parametrize("limit", LIMITED)
def test_each_limit_is_told_by_the_name_of_its_setting(limit: str) -> None:
    assert limit in {field.name for field in msgspec.structs.fields(Limits)}
    limits, frames = LIMITED[limit]
    victim = Victim(limits)
    victim.connection.receive(frames, 0.0)
    assert victim.hits == {limit: 1}


@pytest.mark.parametrize(
    ("limit", "limits"),
    [
        ("max_queued_bytes", Limits(max_queued_bytes=70_000)),
        ("max_connection_queued_bytes", Limits(max_connection_queued_bytes=70_000)),
    ],
)
def test_a_shut_window_ends_the_stream_that_fills_and_no_other(limit: str, limits: Limits) -> None:
    victim = Victim(limits)
    victim.open(2)
    victim.connection.receive(windows(0), 0.0)
    assert victim.connection.send(3, b"little")
    assert not all(victim.connection.send(1, bytes(10_000)) for _ in range(10))
    assert victim.hits == {limit: 1}
    assert victim.connection.queued_bytes <= 70_000
    victim.connection.take_output()
    victim.connection.receive(frame(8, 0, 3, struct.pack(">L", 100)), 0.0)
    assert read_frames(victim.connection.take_output()) == [(0, 0, 3, framed(b"little"))]


@pytest.mark.parametrize(
    ("frames", "ends"),
    [
        (frame(8, 0, 0, struct.pack(">L", (1 << 31) - 1)), True),
        (frame(8, 0, 1, struct.pack(">L", (1 << 31) - 1)), False),
        (windows(1 << 31), True),
        (frame(8, 0, 1, struct.pack(">L", (1 << 31) - 70_000)) + windows(70_000), True),
    ],
    ids=["connection", "stream", "initial", "initial on a stream that has more"],
)
def test_windows_that_overflow(frames: bytes, ends: bool) -> None:
    victim = Victim()
    victim.open(2)
    victim.connection.take_output()
    events = victim.connection.receive(frames, 0.0)
    assert events == ([Lost(1), Lost(3)] if ends else [Lost(1)])
    assert victim.connection.closing is ends
    kind, _, _, payload = read_frames(victim.connection.take_output())[-1]
    assert kind == (GOAWAY if ends else RST_STREAM)
    assert int.from_bytes(payload[4:8] if ends else payload) == 3


def test_a_header_list_too_large_ends_the_connection_before_it_is_held() -> None:
    victim = Victim()
    tracemalloc.start()
    try:
        frames = (frame(1, 0, 1, bytes(16_000)), *(frame(9, 0, 1, bytes(16_000)) for _ in range(60)))
        taken = victim.taken(iter(frames), 60)
        held_bytes = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert taken == 5
    assert held_bytes < 2_500_000
    assert victim.hits == {"max_header_list_bytes": 1}


def test_data_on_a_stream_that_the_peer_ended_is_not_held() -> None:
    victim = Victim()
    victim.open(1)
    victim.connection.receive(frame(0, 1, 1), 0.0)
    assert victim.connection.receive(frame(0, 0, 1, framed(b"late")[:7]), 0.0) == [Lost(1)]
    assert victim.connection.assembling_bytes == 0
    assert not victim.connection.closing


def test_honest_streams_beside_a_flood_below_its_allowance_are_undisturbed() -> None:
    victim = Victim()
    wanted = []
    events = []
    for number in range(1_000):
        stream_id = 4 * number + 1
        call = frame(1, 4, stream_id, victim.block) + frame(0, 1, stream_id, framed(b"work"))
        rude = (
            frame(1, 4, stream_id + 2, victim.block)
            + frame(3, 0, stream_id + 2, bytes(4))
            + frame(6, 0, 0, bytes(8)) * 5
        )
        events += victim.connection.receive(call + rude, 0.0)
        path = FIELDS[2][1]
        wanted += [Opened(stream_id, path, 5.0), Received(stream_id, b"work"), Ended(stream_id)]
        wanted += [Opened(stream_id + 2, path, 5.0), Lost(stream_id + 2)]
        victim.connection.close(stream_id, 0)
    assert events == wanted
    assert not victim.hits
