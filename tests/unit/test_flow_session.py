"""One call whose request has to wait: answered later, once, unless its client is gone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.extproc.events import Arrival, BodyMode, Finished, Modes, Routed, Started, Steer
from epp.extproc.transport import Abandonable
from tests.unit.test_session import Desk, Scene, answer_body, answer_headers, body, headers


class Seat:
    """A `Waiting` that remembers what was done to it."""

    resume: Callable[[Routed[str]], None]

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self, now_s: float) -> None:
        self.cancelled += 1


class Hall(Desk):
    """A dispatcher that lets everybody wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seat = Seat()

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> Seat:  # type: ignore[override]  # it only waits
        self._note("route", arrival, now_s)
        return self.seat

    def call(self) -> None:
        self.open += 1
        self.seat.resume((Steer("10.0.0.1:8000"), "handle"))


def test_an_answer_that_comes_later_is_like_one_at_once() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    assert scene.wire.sent == []
    hall.call()
    assert scene.wire.parts() == ["request_headers", "request_body"]
    scene.hear(answer_headers(), answer_body(b"x", True))
    scene.session.closed(True)
    assert hall.names() == ["route", "started", "first_body", "finished"]
    assert hall.seat.cancelled == 0
    assert scene.wire.closed == [(0, "")]


def test_a_refusal_that_comes_later_is_answered() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    hall.seat.resume(Drop(Reason.TTL_EXPIRED, "too long"))
    assert scene.wire.sent[0].immediate_response.status.code == 429
    assert scene.book.refusals == []
    scene.session.closed(True)
    assert hall.names() == ["route"]
    assert hall.seat.cancelled == 0


def test_a_client_that_leaves_gives_up_its_place() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    scene.session.closed(False)
    assert hall.seat.cancelled == 1
    assert scene.wire.sent == []


def test_a_proxy_that_half_closes_still_waits_until_it_resets() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    scene.session.closed(True)
    assert hall.seat.cancelled == 0
    assert isinstance(scene.session, Abandonable)
    scene.session.abandoned()
    assert hall.seat.cancelled == 1


def test_a_proxy_that_half_closes_is_answered() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    scene.session.closed(True)
    hall.call()
    assert scene.wire.parts() == ["request_headers", "request_body"]
    assert scene.wire.closed == [(0, "")]
    assert hall.open == 0


def test_what_cannot_be_read_gives_up_the_place() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body())
    scene.session.received(b"\xff\xff")
    assert hall.seat.cancelled == 1
    scene.session.closed(False)
    assert hall.seat.cancelled == 1


def test_an_answer_that_overtakes_its_request_leaves_nothing_behind() -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body(), answer_headers())
    assert hall.seat.cancelled == 1
    scene.hear(answer_body(b"x", True))
    scene.session.closed(True)
    assert hall.seat.cancelled == 1
    assert hall.names() == ["route"]


@pytest.mark.parametrize(
    "answer", [answer_body(b"x", False), pb.ProcessingRequest(response_trailers=pb.HttpTrailers())]
)
def test_an_answer_whose_headers_are_hidden_gives_up_the_place_too(answer: pb.ProcessingRequest) -> None:
    hall = Hall()
    scene = Scene(hall).hear(headers(), body(), answer)
    assert hall.seat.cancelled == 1
    assert len(scene.wire.sent) == 1


def test_a_turn_that_came_while_its_request_was_overtaken_is_given_back() -> None:
    hall = Hall()
    Scene(hall).hear(headers(), body(), answer_headers())
    hall.call()
    assert hall.open == 0
    assert hall.names() == ["route", "finished"]


@given(
    st.lists(st.sampled_from(["answer", "body", "clean", "reset", "abandon", "call", "refuse"]), max_size=8),
    st.sampled_from(BodyMode),
    st.sampled_from(BodyMode),
)
def test_whatever_happens_a_place_has_one_end(steps: list[str], request: BodyMode, response: BodyMode) -> None:
    hall = Hall()
    scene = Scene(hall, Modes(request, response)).hear(headers(), body())
    calls = refusals = 0
    closed = False
    for step in [*steps, "reset"]:
        over = calls or refusals or hall.seat.cancelled
        if step == "call" and not over:
            hall.call()
            calls += 1
        elif step == "refuse" and not over:
            hall.seat.resume(Drop(Reason.TTL_EXPIRED, "too long"))
            refusals += 1
        elif step == "answer":
            scene.hear(answer_headers())
        elif step == "body":
            scene.hear(answer_body(b"x", True))
        elif step == "abandon" and closed:
            scene.session.abandoned()  # type: ignore[attr-defined]  # it is Abandonable
        elif step in ("clean", "reset") and not closed:
            scene.session.closed(step == "clean")
            closed = True
    if closed:
        scene.session.abandoned()  # type: ignore[attr-defined]  # it is Abandonable
    assert calls + refusals + hall.seat.cancelled == 1
    assert hall.open == 0
    told = [detail for name, detail, _ in hall.told if name in ("started", "finished")]
    assert sum(isinstance(detail, Finished) for detail in told) == calls
    assert calls or not any(isinstance(detail, Started) for detail in told)
