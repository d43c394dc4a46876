"""One call from bytes to bytes, with a dispatcher that does as the test says, or misbehaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import msgspec
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.extproc.codec import Undecodable
from epp.extproc.events import Arrival, BodyMode, Cause, Finished, Modes, Started, Steer
from epp.extproc.session import INVALID_ARGUMENT, open_session
from epp.extproc.transport import Abandonable, Session

FULL = Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
BODY = b'{"model":"m"}'


class Wire:
    """The `Stream` of a call: what was sent, and how it was closed."""

    def __init__(self) -> None:
        self.metadata: dict[bytes, bytes] = {}
        self.sent: list[pb.ProcessingResponse] = []
        self.closed: list[tuple[int, str]] = []

    def send(self, message: bytes) -> None:
        assert not self.closed
        self.sent.append(pb.ProcessingResponse.FromString(message))

    def close(self, status: int = 0, message: str = "") -> None:
        self.closed.append((status, message))

    def parts(self) -> list[str]:
        return [str(response.WhichOneof("response")) for response in self.sent]


class Desk:
    """A dispatcher that sends all requests to one place, writes down what it is told, and fails where it is asked to."""

    def __init__(self, fails_in: str = "", drop: Drop | None = None) -> None:
        self.fails_in = fails_in
        self.drop = drop
        self.told: list[tuple[str, object, float]] = []
        self.open = 0
        self.waited_s = 0.0
        self.evict: Callable[[Drop], None]

    def _note(self, what: str, detail: object, now_s: float) -> None:
        self.told.append((what, detail, now_s))
        if self.fails_in == what:
            raise ZeroDivisionError(what)

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, str]:
        if self.drop is not None:
            raise self.drop
        self.waited_s = now_s - opened_s
        self._note("route", arrival, now_s)
        self.open += 1
        return Steer("10.0.0.1:8000"), "handle"

    def runs(self, handle: str, evict: Callable[[Drop], None]) -> None:
        self.evict = evict
        self._note("runs", handle, 0.0)

    def started(self, handle: str, notice: Started, now_s: float) -> Mapping[str, str]:
        assert handle == "handle"
        self._note("started", notice, now_s)
        return {"x-added": "1"}

    def first_body(self, handle: str, now_s: float) -> None:
        self._note("first_body", handle, now_s)

    def finished(self, handle: str, notice: Finished, now_s: float) -> None:
        self.open -= 1
        self._note("finished", notice, now_s)

    def names(self) -> list[str]:
        return [name for name, _, _ in self.told]


class Book:
    """Counts incidents."""

    def __init__(self) -> None:
        self.undecodables: list[Undecodable] = []
        self.faults: list[Exception] = []
        self.refusals: list[Drop] = []

    def undecodable(self, error: Undecodable) -> None:
        self.undecodables.append(error)

    def fault(self, error: Exception) -> None:
        self.faults.append(error)

    def refused(self, drop: Drop) -> None:
        self.refusals.append(drop)


class Scene:
    """A session with all that is around it. The clock goes on by one second at each look."""

    def __init__(self, desk: Desk, modes: Modes = FULL, limit: int = 1000) -> None:
        self.desk = desk
        self.book = Book()
        self.wire = Wire()
        self.now_s = 0.0
        self.session: Session = open_session(desk, self.tick, modes, self.book, limit)(self.wire)

    def tick(self) -> float:
        self.now_s += 1
        return self.now_s

    def hear(self, *messages: pb.ProcessingRequest) -> Scene:
        for message in messages:
            self.session.received(message.SerializeToString())
        return self


def headers(end: bool = False) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.request_headers.end_of_stream = end
    message.request_headers.headers.headers.add(key="content-type", value="application/json")
    return message


def body(data: bytes = BODY, end: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end))


def answer_headers() -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    return message


def answer_body(data: bytes, end: bool) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end))


WHOLE: list[Callable[[], pb.ProcessingRequest]] = [
    headers,
    body,
    answer_headers,
    lambda: answer_body(b"one", False),
    lambda: answer_body(b"two", True),
]


def test_an_exchange_from_end_to_end() -> None:
    scene = Scene(Desk()).hear(*[message() for message in WHOLE])
    scene.session.closed(True)
    assert scene.wire.parts() == ["request_headers", "request_body"] + ["response_headers"] + ["response_body"] * 2
    assert scene.desk.names() == ["route", "started", "first_body", "finished"]
    assert scene.desk.told[-1][1] == Finished(Cause.COMPLETE, b"onetwo", 6)
    times = [now_s for _, _, now_s in scene.desk.told]
    assert times == sorted(times)
    assert scene.desk.waited_s == 1.0
    assert scene.wire.closed == [(0, "")]
    [added] = scene.wire.sent[2].response_headers.response.header_mutation.set_headers
    assert (added.header.key, added.header.raw_value) == ("x-added", b"1")


class Evicting(Desk):
    """Sends requests to one place and may end them there."""

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, str]:
        steer, handle = super().route(arrival, opened_s, now_s)
        return msgspec.structs.replace(steer, evictable=True), handle


@pytest.mark.parametrize("seen", range(2, len(WHOLE) + 1))
def test_a_request_that_is_told_to_end_is_refused_once_and_ends_when_the_proxy_says_so(seen: int) -> None:
    desk = Evicting()
    scene = Scene(desk).hear(*[message() for message in WHOLE[:seen]])
    over = seen == len(WHOLE)
    desk.evict(Drop(Reason.EVICTED, "room is needed"))
    desk.evict(Drop(Reason.EVICTED, "room is needed"))
    assert scene.wire.parts().count("immediate_response") == (not over)
    assert desk.open == (not over)
    scene.hear(*[message() for message in WHOLE[seen:]])
    scene.session.closed(True)
    assert desk.open == 0
    assert desk.names().count("finished") == 1
    finished = desk.told[-1][1]
    assert isinstance(finished, Finished)
    assert finished.cause is (Cause.COMPLETE if over else Cause.EVICTED)
    assert scene.book.refusals == scene.book.faults == []
    assert scene.wire.closed == [(0, "")]


def test_who_may_not_be_ended_is_not_said_to_run() -> None:
    scene = Scene(Desk()).hear(headers(), body())
    assert scene.desk.names() == ["route"]


def test_a_bug_where_it_is_noted_that_a_request_runs_costs_nothing() -> None:
    scene = Scene(Evicting(fails_in="runs")).hear(*[message() for message in WHOLE])
    assert scene.wire.parts().count("response_body") == 2
    assert [str(fault) for fault in scene.book.faults] == ["runs"]


def test_a_refusal_is_an_answer_and_nothing_is_told_after_it() -> None:
    scene = Scene(Desk(drop=Drop(Reason.SATURATED, "later"))).hear(*[message() for message in WHOLE])
    scene.session.closed(True)
    assert scene.wire.parts() == ["immediate_response"]
    assert scene.wire.sent[0].immediate_response.status.code == 429
    assert scene.desk.told == []
    assert scene.book.faults == []
    assert scene.book.refusals == []
    assert scene.wire.closed == [(0, "")]


def test_a_bug_in_the_decision_is_an_answer() -> None:
    scene = Scene(Desk(fails_in="route")).hear(headers(), body())
    immediate = scene.wire.sent[0].immediate_response
    assert immediate.status.code == 500
    assert json.loads(immediate.body)["error"]["code"] == "internal"
    assert [type(fault) for fault in scene.book.faults] == [ZeroDivisionError]
    assert [drop.reason for drop in scene.book.refusals] == [Reason.INTERNAL]
    scene.hear(answer_headers(), answer_body(b"x", True))
    scene.session.closed(True)
    assert scene.desk.names() == ["route"]
    assert scene.wire.closed == [(0, "")]


@pytest.mark.parametrize("fails_in", ["started", "first_body", "finished"])
def test_a_bug_in_the_account_costs_no_byte_of_the_answer(fails_in: str) -> None:
    scene = Scene(Desk(fails_in=fails_in)).hear(*[message() for message in WHOLE])
    scene.session.closed(True)
    assert scene.wire.parts() == ["request_headers", "request_body"] + ["response_headers"] + ["response_body"] * 2
    assert scene.desk.names() == ["route", "started", "first_body", "finished"]
    assert [str(fault) for fault in scene.book.faults] == [fails_in]
    assert scene.wire.closed == [(0, "")]


@pytest.mark.parametrize("after", range(len(WHOLE) + 1))
def test_what_cannot_be_read_ends_the_call_and_releases(after: int) -> None:
    scene = Scene(Desk()).hear(*[message() for message in WHOLE[:after]])
    scene.session.received(b"\xff\xff")
    scene.session.received(b"\xff\xff")
    scene.hear(headers(), body())
    scene.session.closed(False)
    assert len(scene.book.undecodables) == 1
    assert [status for status, _ in scene.wire.closed] == [INVALID_ARGUMENT]
    assert scene.desk.open == 0


def test_a_message_that_says_nothing_is_passed_over() -> None:
    scene = Scene(Desk()).hear(pb.ProcessingRequest(observability_mode=True), headers(True))
    assert scene.wire.parts() == ["request_headers"]


def test_a_proxy_that_half_closes_after_the_body_sees_the_stream_end() -> None:
    scene = Scene(Desk()).hear(headers(), body())
    scene.session.closed(True)
    assert scene.wire.parts() == ["request_headers", "request_body"]
    assert scene.wire.closed == [(0, "")]
    assert scene.desk.names() == ["route", "finished"]


def test_a_body_too_large_is_refused_and_counted() -> None:
    scene = Scene(Desk(), limit=10).hear(headers(), body(b"x" * 11, False), body(b"x", True))
    assert scene.wire.sent[0].immediate_response.status.code == 413
    assert [drop.reason for drop in scene.book.refusals] == [Reason.BODY_TOO_LARGE]
    assert scene.desk.told == []


@given(st.integers(0, len(WHOLE)), st.sampled_from(BodyMode), st.sampled_from(BodyMode), st.booleans())
def test_a_close_at_any_point_releases(until: int, request: BodyMode, response: BodyMode, clean: bool) -> None:
    scene = Scene(Desk(), Modes(request, response)).hear(*[message() for message in WHOLE[:until]])
    scene.session.closed(clean)
    assert scene.desk.open == 0
    assert scene.desk.names().count("finished") == scene.desk.names().count("route")
    assert scene.wire.closed == ([(0, "")] if clean else [])
    sent = len(scene.wire.sent)
    assert isinstance(scene.session, Abandonable)
    scene.session.abandoned()
    scene.hear(headers(), body())
    assert len(scene.wire.sent) == sent
