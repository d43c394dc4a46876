"""Whole bodies wait in the queue and arriving ones in the room: neither keeps the other's bytes, and rank is kept."""

from __future__ import annotations

import gc
import tracemalloc

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.drops import Drop, Reason
from epp.extproc.room import Room
from epp.extproc.session import open_session
from epp.extproc.transport import Abandonable
from epp.flow.settings import BandSettings, FlowSettings
from epp.resources.store import Source, Store
from tests.unit.test_dispatcher import chat
from tests.unit.test_flow_dispatch import Hall
from tests.unit.test_resources_store import HERE_ONLY, objective
from tests.unit.test_session import FULL, Book, Wire

PRIORITIES = {"gold": 100, "bronze": 0, "batch": -1}
LIMIT_BYTES = 1_000


class Call:
    """One request by a session of its own, in full duplex, whose body comes as the test says."""

    def __init__(self, hall: Hall, room: Room, name: str) -> None:
        self.priority = PRIORITIES[name]
        self.book = Book()
        self.wire = Wire()
        self.arriving_bytes = 0
        self.session = open_session(hall.dispatcher, lambda: hall.now_s, FULL, self.book, LIMIT_BYTES, room=room)(
            self.wire
        )
        message = pb.ProcessingRequest()
        named = {"content-type": "application/json", "x-llm-d-inference-objective": name}
        self.header_bytes = sum(len(key) + len(value) for key, value in named.items())
        for key, value in named.items():
            message.request_headers.headers.headers.add(key=key, value=value)
        self.session.received(message.SerializeToString())

    def body(self, size: int, end: bool = True) -> Call:
        data = (b'{"model":"m","prompt":"' + bytes(size).replace(b"\0", b"x"))[:size]
        message = pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end))
        self.session.received(message.SerializeToString())
        return self

    @property
    def refused(self) -> Drop | None:
        """How the session itself refused it, while its body was arriving."""
        return self.book.refusals[0] if self.book.refusals else None

    @property
    def status(self) -> int:
        """What the client was told, 0 where nothing."""
        told = [sent.immediate_response.status.code for sent in self.wire.sent if sent.HasField("immediate_response")]
        return told[0] if told else 0


def with_objectives(flow: FlowSettings, endpoints: int = 1) -> Hall:
    store = Store(HERE_ONLY, "default")
    store.replace(Source.DIRECTORY, [objective(name, priority) for name, priority in PRIORITIES.items()])
    return Hall(endpoints, flow, resources=store.of("pool"))


def test_those_who_wait_shut_out_nobody_above_them() -> None:
    hall = with_objectives(FlowSettings(max_requests=100))
    hall.serve()
    room = Room(10 * LIMIT_BYTES)
    batch = [Call(hall, room, "batch") for _ in range(100)]
    for call in batch:
        call.body(900)
    assert hall.control.bytes == 100 * (900 + batch[0].header_bytes)
    assert room.held_bytes == 0
    gold = Call(hall, room, "gold").body(900)
    assert gold.refused is None and gold.status == 0
    assert hall.control.waiting(100) == 1
    assert [call.status for call in batch] == [0] * 99 + [429], "the newest of the lowest gives way"


def test_who_waits_holds_its_body_once() -> None:
    hall = with_objectives(FlowSettings())
    hall.serve()
    arrivals = [chat("word " * 20_000) for _ in range(11)]
    hall.wait(arrivals[0])
    gc.collect()
    tracemalloc.start()
    try:
        waiters = [hall.wait(arrival) for arrival in arrivals[1:]]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / len(waiters) < 10_000


def test_headers_of_those_who_wait_count_too() -> None:
    hall = Hall(1, FlowSettings(max_bytes=1_000_000))
    hall.serve()
    for _ in range(19):
        hall.wait(chat(headers={"x-long": 50_000 * "x"}))
    with pytest.raises(Drop) as caught:
        hall.route(chat(headers={"x-long": 50_000 * "x"}))
    assert caught.value.reason is Reason.SATURATED


def test_a_full_queue_evicts_by_bytes_and_never_by_the_room() -> None:
    hall = with_objectives(FlowSettings(max_bytes=11 * LIMIT_BYTES))
    hall.serve()
    room = Room(4 * LIMIT_BYTES)
    low = [Call(hall, room, "batch").body(900) for _ in range(11)]
    assert [call.status for call in low] == [0] * 11
    gold = [Call(hall, room, "gold").body(900) for _ in range(11)]
    assert [call.status for call in low] == [429] * 11
    assert [call.status for call in gold] == [0] * 11
    assert [call.refused for call in low + gold] == [None] * 22
    over = Call(hall, room, "gold").body(900)
    assert over.status == 429 and over.refused is None, "no room in the queue, and nobody below"


class Machine(RuleBasedStateMachine):
    """In whatever order bodies come, wait, go and are given up: the room holds those that arrive, the queue those that wait."""

    def __init__(self) -> None:
        super().__init__()
        band = BandSettings(max_bytes=4_000)
        flow = FlowSettings(default=band, negative=band, max_bytes=6_000, ttl_s=10.0, empty_ttl_s=30.0)
        self.hall = with_objectives(flow)
        self.hall.serve()
        self.room = Room(3_000)
        self.arriving: list[Call] = []
        self.whole: list[Call] = []

    def settle(self, call: Call) -> None:
        """`call` does not arrive any more."""
        self.arriving.remove(call)
        call.arriving_bytes = 0

    def one(self, data: st.DataObject) -> Call:
        return data.draw(st.sampled_from(self.arriving + self.whole))

    @rule(name=st.sampled_from(sorted(PRIORITIES)))
    def ask(self, name: str) -> None:
        self.arriving.append(Call(self.hall, self.room, name))

    @precondition(lambda self: self.arriving)
    @rule(data=st.data(), size=st.sampled_from([0, 1, 300, 600, 1_001]), end=st.booleans())
    def body(self, data: st.DataObject, size: int, end: bool) -> None:
        call = data.draw(st.sampled_from(self.arriving))
        call.body(size, end)
        call.arriving_bytes += size
        if end or call.status:
            self.settle(call)
            self.whole.append(call)

    @precondition(lambda self: self.arriving or self.whole)
    @rule(data=st.data(), how=st.sampled_from(["reset", "half-close", "abandon", "nonsense", "answered", "again"]))
    def interrupt(self, data: st.DataObject, how: str) -> None:
        call = self.one(data)
        if how == "reset":
            call.session.closed(False)
        elif how == "half-close":
            call.session.closed(True)
        elif how == "abandon":
            assert isinstance(call.session, Abandonable)
            call.session.abandoned()
        elif how == "nonsense":
            call.session.received(b"\xff\xff")
        elif how == "answered":
            call.session.received(pb.ProcessingRequest(response_headers=pb.HttpHeaders()).SerializeToString())
        elif call in self.whole:
            call.body(300)
        if how != "again" and call in self.arriving:
            self.settle(call)
            self.whole.append(call)

    @rule(seconds=st.sampled_from([0.0, 0.5, 20.0]))
    def pump(self, seconds: float) -> None:
        self.hall.pump(seconds)

    @rule(endpoints=st.integers(0, 4))
    def members(self, endpoints: int) -> None:
        self.hall.have(endpoints)

    @invariant()
    def the_room_holds_what_arrives(self) -> None:
        assert self.room.held_bytes == sum(call.arriving_bytes for call in self.arriving) <= 3_000

    @invariant()
    def the_queue_holds_what_waits(self) -> None:
        waiting = [place.payload.arrival for place in self.hall.control.tickets()]
        headers = [len(name) + len(value) for one in waiting for name, value in one.headers.items()]
        assert self.hall.control.bytes == sum(len(one.body) for one in waiting) + sum(headers) <= 6_000

    @invariant()
    def nothing_is_a_bug(self) -> None:
        assert not self.hall.faults
        assert not [fault for call in self.arriving + self.whole for fault in call.book.faults]

    def teardown(self) -> None:
        for call in self.arriving + self.whole:
            call.session.closed(False)
        assert self.room.held_bytes == self.hall.control.bytes == self.hall.control.requests == 0


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
