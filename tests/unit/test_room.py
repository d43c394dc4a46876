"""Bodies that are not whole yet share one room, and a full one turns away those that take most."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from epp.drops import Reason
from epp.extproc.events import (
    Arrival,
    BodyMode,
    Closed,
    Immediate,
    Modes,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    Steer,
)
from epp.extproc.exchange import Exchange
from epp.extproc.room import Room

FULL_DUPLEX = Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.NONE)


def begun(room: Room) -> Exchange:
    exchange = Exchange(FULL_DUPLEX, 1_000, room)
    exchange.receive(RequestHeaders({":path": "/v1/completions"}, False))
    return exchange


def test_slow_giants_leave_room_for_small_bodies() -> None:
    full: list[str] = []
    room = Room(10_000, lambda: full.append("full"))
    refused = 0
    for _ in range(50):
        giant = begun(room)
        for _ in range(10):
            for reply in giant.receive(RequestBody(bytes(100), False)):
                assert isinstance(reply, Immediate)
                assert reply.drop.reason is Reason.SATURATED
                refused += 1
    assert refused == len(full) > 0
    assert room.held_bytes <= 10_000
    small = begun(room).receive(RequestBody(bytes(10), True))
    assert isinstance(small[0], Arrival)


def test_the_room_is_given_back_when_the_body_is_whole_and_at_any_end() -> None:
    room = Room(1_000)
    for last in (RequestBody(bytes(100), True), RequestTrailers(), Closed(False), Closed(True)):
        exchange = begun(room)
        exchange.receive(RequestBody(bytes(300), False))
        assert room.held_bytes == 300
        exchange.receive(last)
        assert room.held_bytes == 0
        exchange.receive(Steer("10.0.0.1:80"))
        exchange.receive(Closed(False))
        assert room.held_bytes == 0


def test_a_body_over_the_limit_gives_its_room_back() -> None:
    room = Room(10_000)
    exchange = begun(room)
    exchange.receive(RequestBody(bytes(900), False))
    (reply,) = exchange.receive(RequestBody(bytes(101), False))
    assert isinstance(reply, Immediate)
    assert reply.drop.reason is Reason.BODY_TOO_LARGE
    assert room.held_bytes == 0


def test_a_body_in_tiny_pieces_takes_no_more_than_it_counts() -> None:
    room = Room(1_000_000)
    exchange = Exchange(FULL_DUPLEX, 1_000_000, room)
    exchange.receive(RequestHeaders({":path": "/v1/completions"}, False))
    pieces = [b"%02d" % (number % 100) for number in range(50_000)]
    tracemalloc.start()
    try:
        for piece in pieces:
            exchange.receive(RequestBody(piece, False))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * room.held_bytes == 1.5 * 100_000
    (arrival,) = exchange.receive(RequestBody(b"", True))
    assert isinstance(arrival, Arrival) and arrival.body == b"".join(pieces)


@given(st.lists(st.integers(0, 2_000)))
def test_a_body_is_what_its_pieces_are_in_order(sizes: list[int]) -> None:
    exchange = Exchange(FULL_DUPLEX, 1_000_000, Room())
    exchange.receive(RequestHeaders({":path": "/v1/completions"}, False))
    pieces = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    for piece in pieces:
        exchange.receive(RequestBody(piece, False))
    (arrival,) = exchange.receive(RequestTrailers())
    assert isinstance(arrival, Arrival) and arrival.body == b"".join(pieces)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 60))))
def test_nobody_holds_more_than_is_left(takes: list[tuple[int, int]]) -> None:
    room = Room(100)
    held = [0] * 5
    for who, more in takes:
        if room.take(more, held[who]):
            held[who] += more
            assert held[who] <= 100 - room.held_bytes
        assert room.held_bytes == sum(held)
