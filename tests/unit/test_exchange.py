"""One exchange in every body mode, at every cut of its bodies, and in every order of events, sensible or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.extproc.events import (
    TAIL_BYTES,
    Arrival,
    BodyMode,
    Cause,
    Closed,
    EndOfStream,
    Event,
    Finished,
    FirstBody,
    Immediate,
    Modes,
    Notice,
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
    Started,
    Steer,
    StreamedRequestBody,
    StreamedResponseBody,
)
from epp.extproc.exchange import PIECE_BYTES, Exchange

NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = BodyMode
FULL = Modes(DUPLEX, DUPLEX)
LEAN = Modes(PARTIAL, NONE)
EVERY_MODE = [Modes(request, response) for request in BodyMode for response in BodyMode]

POST = {":method": "POST", ":path": "/v1/completions", "content-length": "10"}
OK = {":status": "200", "content-type": "application/json", "content-length": "40"}
STEER = Steer("10.0.0.1:8000")
REFUSED = Drop(Reason.SATURATED, "later")
BODY = b"0123456789"

Effect = Reply | Notice
T = TypeVar("T")


def of(kind: type[T], effects: Sequence[object]) -> list[T]:
    return [effect for effect in effects if isinstance(effect, kind)]


def one(kind: type[T], effects: Sequence[object]) -> T:
    [found] = of(kind, effects)
    return found


def sent(effects: Sequence[object]) -> bytes:
    return b"".join(bytes(effect.data) for effect in effects if isinstance(effect, StreamedRequestBody))


def shown(effects: Sequence[object]) -> bytes:
    return b"".join(bytes(effect.data) for effect in effects if isinstance(effect, StreamedResponseBody))


def run(exchange: Exchange, *events: Event | Steer | Drop) -> list[Effect]:
    return [effect for event in events for effect in exchange.receive(event)]


def opened(modes: Modes, *, headers: dict[str, str] = POST, body: bytes = BODY, steer: Steer = STEER) -> Exchange:
    """An exchange whose request has gone to its server."""
    exchange = Exchange(modes)
    hidden = modes.request in (NONE, STREAMED)
    run(exchange, RequestHeaders(headers, False), *([] if hidden else [RequestBody(body, True)]), steer)
    return exchange


@st.composite
def cut(draw: st.DrawFn, text: bytes, max_cuts: int = 8) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=max_cuts)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


class TestRequest:
    def test_full_duplex_answers_nothing_before_the_body_is_whole(self) -> None:
        exchange = Exchange(FULL)
        assert run(exchange, RequestHeaders(POST, False), RequestBody(b"01234", False)) == []
        [arrival] = run(exchange, RequestBody(b"56789", True))
        assert arrival == Arrival(POST, BODY, True)
        assert run(exchange, STEER) == [RequestHeadersReply(STEER), StreamedRequestBody(BODY, True)]

    def test_trailers_end_a_body_and_are_answered_last(self) -> None:
        exchange = Exchange(FULL)
        [arrival] = run(exchange, RequestHeaders(POST, False), RequestBody(BODY, False), RequestTrailers())
        assert arrival == Arrival(POST, BODY, True)
        assert run(exchange, STEER) == [
            RequestHeadersReply(STEER),
            StreamedRequestBody(BODY, False),
            RequestTrailersReply(),
        ]

    def test_trailers_without_a_body(self) -> None:
        exchange = Exchange(FULL)
        [arrival] = run(exchange, RequestHeaders(POST, False), RequestTrailers())
        assert arrival == Arrival(POST, b"", False, can_rewrite=False)
        assert run(exchange, STEER) == [RequestHeadersReply(STEER), RequestTrailersReply()]

    @pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 1_000_003])
    def test_large_bodies_go_in_pieces(self, size: int) -> None:
        body = bytes(range(256)) * (size // 256 + 1)
        body = body[:size]
        exchange = Exchange(FULL)
        out = run(exchange, RequestHeaders(POST, False), RequestBody(body, True), STEER)
        pieces = of(StreamedRequestBody, out)
        assert sent(pieces) == body
        assert all(len(piece.data) <= PIECE_BYTES for piece in pieces)
        assert [piece.end for piece in pieces] == [False] * (len(pieces) - 1) + [True]

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_a_request_of_headers_alone_is_decided_at_once(self, modes: Modes) -> None:
        exchange = Exchange(FULL)
        arrival = one(Arrival, run(exchange, RequestHeaders(POST, True, ("10.0.0.1:8000",), modes)))
        assert (arrival.has_body, arrival.can_rewrite, arrival.subset) == (False, False, ("10.0.0.1:8000",))
        assert run(exchange, STEER) == [RequestHeadersReply(STEER)]

    @pytest.mark.parametrize("request_mode", [NONE, STREAMED])
    def test_headers_that_must_go_on_are_decided_alone(self, request_mode: BodyMode) -> None:
        exchange = Exchange(FULL)
        [arrival] = run(exchange, RequestHeaders(POST, False, None, Modes(request_mode, STREAMED)))
        assert arrival == Arrival(POST, b"", False, can_rewrite=False)
        early = run(exchange, RequestBody(b"01234", False))
        out = run(exchange, STEER, RequestBody(b"56789", False), RequestTrailers())
        assert early == []
        assert out == [RequestHeadersReply(STEER), RequestBodyReply(), RequestBodyReply(), RequestTrailersReply()]

    @pytest.mark.parametrize("request_mode", [BUFFERED, PARTIAL])
    def test_buffered_decides_with_the_body(self, request_mode: BodyMode) -> None:
        exchange = Exchange(Modes(request_mode, NONE))
        assert run(exchange, RequestHeaders(POST, False)) == [RequestHeadersReply()]
        [arrival] = run(exchange, RequestBody(BODY, True))
        assert arrival == Arrival(POST, BODY, True, sees_answer=False, can_look=True)
        assert run(exchange, STEER) == [RequestBodyReply(STEER)]

    def test_only_buffered_partial_can_be_cut_off(self) -> None:
        for mode, truncated in [(BUFFERED, False), (PARTIAL, True)]:
            exchange = Exchange(Modes(mode, NONE))
            arrival = one(Arrival, run(exchange, RequestHeaders(POST, False), RequestBody(BODY, False)))
            assert arrival.truncated is truncated
            assert run(exchange, STEER, RequestTrailers()) == [RequestBodyReply(STEER), RequestTrailersReply()]

    def test_buffered_trailers_while_the_decision_is_out_wait_for_it(self) -> None:
        exchange = Exchange(LEAN)
        run(exchange, RequestHeaders(POST, False), RequestBody(BODY, False))
        assert run(exchange, RequestTrailers()) == []
        assert run(exchange, STEER) == [RequestBodyReply(STEER), RequestTrailersReply()]

    def test_metadata_of_the_first_message_that_has_it_is_kept(self) -> None:
        for first, second, expected in [(("a",), ("b",), ("a",)), (None, ("b",), ("b",)), ((), ("b",), ())]:
            exchange = Exchange(FULL)
            run(exchange, RequestHeaders(POST, False, first), RequestBody(b"0", False, second))
            assert one(Arrival, run(exchange, RequestBody(b"1", True, ("c",)))).subset == expected

    def test_a_rewritten_body_goes_out_in_place_of_the_old(self) -> None:
        steer = Steer("10.0.0.1:8000", (("x-a", "b"),), body=b"longer than before")
        fitted = (("x-a", "b"), ("content-length", "18"))
        duplex = run(Exchange(FULL), RequestHeaders(POST, False), RequestBody(BODY, True), steer)
        assert sent(duplex) == b"longer than before"
        headers = one(RequestHeadersReply, duplex).steer
        assert headers is not None
        assert headers.set_headers == fitted
        body = one(RequestBodyReply, run(Exchange(LEAN), RequestHeaders(POST, False), RequestBody(BODY, True), steer))
        assert body.body == b"longer than before"
        assert body.steer is not None
        assert body.steer.set_headers == fitted

    def test_a_rewritten_beginning_leaves_the_length_open(self) -> None:
        steer = Steer("10.0.0.1:8000", remove_headers=("x-a",), body=b"longer than before")
        out = run(Exchange(LEAN), RequestHeaders(POST, False), RequestBody(BODY, False), steer)
        reply = one(RequestBodyReply, out)
        assert reply.steer is not None
        assert reply.steer.remove_headers == ("x-a", "content-length")

    def test_a_length_that_fits_or_was_never_told_is_left_alone(self) -> None:
        same = Steer("10.0.0.1:8000", body=b"9876543210")
        assert run(opened_to_decide(POST), same)[0] == RequestHeadersReply(same)
        longer = Steer("10.0.0.1:8000", body=b"9876543210!")
        assert run(opened_to_decide({":method": "POST"}), longer)[0] == RequestHeadersReply(longer)

    def test_a_body_over_the_limit_is_refused_at_once(self) -> None:
        exchange = Exchange(FULL, body_limit_bytes=10)
        assert run(exchange, RequestHeaders(POST, False), RequestBody(BODY, False)) == []
        [reply] = run(exchange, RequestBody(b"!", False))
        assert isinstance(reply, Immediate)
        assert reply.drop.reason is Reason.BODY_TOO_LARGE
        assert run(exchange, RequestBody(b"!", True), RequestTrailers(), ResponseHeaders(OK, False)) == []

    @given(st.data(), st.binary(max_size=40), st.booleans(), st.booleans())
    def test_any_cut_gives_the_same_arrival_and_the_same_bytes(
        self, data: st.DataObject, body: bytes, trailers: bool, late_end: bool
    ) -> None:
        pieces = data.draw(cut(body))
        if late_end:
            pieces.append(b"")
        last = len(pieces) - 1
        bodies = [RequestBody(piece, not trailers and i == last) for i, piece in enumerate(pieces)]
        exchange = Exchange(FULL)
        [arrival] = run(exchange, RequestHeaders(POST, False), *bodies, *[RequestTrailers()] * trailers)
        assert arrival == Arrival(POST, body, True)
        out = run(exchange, STEER)
        assert out[0] == RequestHeadersReply(STEER)
        assert sent(out) == body
        assert [piece.end for piece in of(StreamedRequestBody, out)] == [not trailers]
        assert len(of(RequestTrailersReply, out)) == trailers


def opened_to_decide(headers: dict[str, str]) -> Exchange:
    exchange = Exchange(FULL)
    run(exchange, RequestHeaders(headers, False), RequestBody(BODY, True))
    return exchange


class TestResponse:
    def test_full_duplex_is_echoed_chunk_by_chunk(self) -> None:
        exchange = opened(FULL)
        assert run(exchange, ResponseHeaders(OK, False, "10.0.0.2:8000")) == [
            Started(200, OK, "10.0.0.2:8000"),
            ResponseHeadersReply(),
        ]
        assert run(exchange, ResponseBody(b"", False)) == [StreamedResponseBody(b"", False)]
        assert run(exchange, ResponseBody(b"ab", False)) == [FirstBody(), StreamedResponseBody(b"ab", False)]
        assert run(exchange, ResponseBody(b"cd", False)) == [StreamedResponseBody(b"cd", False)]
        assert run(exchange, ResponseBody(b"", True)) == [
            StreamedResponseBody(b"", True),
            Finished(Cause.COMPLETE, b"abcd", 4),
        ]

    def test_large_chunks_are_echoed_in_pieces(self) -> None:
        chunk = b"x" * (2 * PIECE_BYTES + 5)
        out = run(opened(FULL), ResponseHeaders(OK, False), ResponseBody(chunk, True))
        assert shown(out) == chunk
        assert [piece.end for piece in of(StreamedResponseBody, out)] == [False, False, True]

    @pytest.mark.parametrize("response_mode", [STREAMED, BUFFERED, PARTIAL])
    def test_other_modes_answer_one_for_one(self, response_mode: BodyMode) -> None:
        out = run(
            opened(Modes(PARTIAL, response_mode)),
            ResponseHeaders(OK, False),
            ResponseBody(b"ab", False),
            ResponseTrailers(),
        )
        assert out == [
            Started(200, OK),
            ResponseHeadersReply(),
            FirstBody(),
            ResponseBodyReply(),
            ResponseTrailersReply(),
            Finished(Cause.COMPLETE, b"ab", 2),
        ]

    def test_an_answer_of_headers_alone_is_complete(self) -> None:
        for modes in EVERY_MODE:
            out = run(opened(modes), ResponseHeaders(OK, True))
            assert out == [Started(200, OK), ResponseHeadersReply(), Finished(Cause.COMPLETE)]

    @pytest.mark.parametrize(
        ("value", "status"), [("503", 503), ("", 0), ("abc", 0), ("²00", 0), ("9" * 5000, 0), ("-12", 0)]
    )
    def test_the_status_is_read(self, value: str, status: int) -> None:
        assert one(Started, run(opened(FULL), ResponseHeaders({":status": value}, False))).status == status
        assert one(Started, run(opened(FULL), ResponseHeaders({"status": "200"}, False))).status == 0

    def test_lean_mode_ends_with_trailers_or_any_close(self) -> None:
        ends: list[tuple[Event, list[Effect]]] = [
            (ResponseTrailers(), [ResponseTrailersReply(), Finished(Cause.COMPLETE)]),
            (Closed(True), [Finished(Cause.COMPLETE), EndOfStream()]),
            (Closed(False), [Finished(Cause.COMPLETE)]),
        ]
        for end, last in ends:
            exchange = opened(LEAN)
            assert run(exchange, ResponseHeaders(OK, False), end)[2:] == last
            assert run(exchange, Closed(True), Closed(False), ResponseTrailers())[: len(last)] in (
                [],
                [EndOfStream()],
            )

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_a_close_before_the_end_is_an_abort(self, modes: Modes) -> None:
        for clean in (True, False):
            begun: list[Event] = [ResponseHeaders(OK, False), ResponseBody(b"a", False)]
            for events in ([], begun):
                exchange = opened(modes)
                run(exchange, *events)
                finished = one(Finished, run(exchange, Closed(clean)))
                assert finished == Finished(Cause.ABORTED, b"a" * bool(events), len(events) // 2)

    def test_the_tail_is_kept_and_no_more(self) -> None:
        exchange = opened(FULL)
        run(exchange, ResponseHeaders(OK, False))
        chunks = [b"%07d\n" % i for i in range(20_000)]
        for chunk in chunks:
            exchange.receive(ResponseBody(chunk, False))
        finished = one(Finished, run(exchange, ResponseBody(b"end", True)))
        whole = b"".join(chunks) + b"end"
        assert finished == Finished(Cause.COMPLETE, whole[-TAIL_BYTES:], len(whole))

    @given(st.data(), st.binary(min_size=1, max_size=40))
    def test_any_cut_gives_the_same_bytes_and_the_same_end(self, data: st.DataObject, body: bytes) -> None:
        pieces = data.draw(cut(body))
        bodies = [ResponseBody(piece, i == len(pieces) - 1) for i, piece in enumerate(pieces)]
        out = run(opened(FULL), ResponseHeaders(OK, False), *bodies)
        assert shown(out) == body
        assert len(of(FirstBody, out)) == 1
        assert of(Finished, out) == [Finished(Cause.COMPLETE, body, len(body))]


class TestLook:
    LOOK = Steer("10.0.0.1:8000", look=True)

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_looking_is_asked_for_only_where_it_is_possible_and_needed(self, modes: Modes) -> None:
        exchange = Exchange(modes)
        events: list[Event] = [RequestHeaders(POST, False), RequestBody(BODY, True)]
        [arrival] = of(Arrival, run(exchange, *events))
        possible = modes.response is NONE and modes.request is not DUPLEX
        assert arrival.can_look is possible
        assert arrival.sees_answer is (modes.response is not NONE)
        reply = one(ResponseHeadersReply, run(exchange, self.LOOK, ResponseHeaders(OK, False)))
        assert reply.look_over == (modes.request if possible else None)

    def test_what_is_then_shown_is_answered_one_for_one(self) -> None:
        exchange = opened(LEAN, steer=self.LOOK)
        out = run(exchange, ResponseHeaders(OK, False), ResponseBody(b"ab", False), ResponseBody(b"", True))
        assert out[2:] == [FirstBody(), ResponseBodyReply(), ResponseBodyReply(), Finished(Cause.COMPLETE, b"ab", 2)]

    def test_a_refused_look_ends_as_if_it_had_not_been_asked(self) -> None:
        exchange = opened(LEAN, steer=self.LOOK)
        assert run(exchange, ResponseHeaders(OK, False), Closed(True))[2:] == [Finished(Cause.COMPLETE), EndOfStream()]

    def test_a_looked_at_answer_that_breaks_off_is_an_abort(self) -> None:
        exchange = opened(LEAN, steer=self.LOOK)
        out = run(exchange, ResponseHeaders(OK, False), ResponseBody(b"ab", False), Closed(True))
        assert one(Finished, out) == Finished(Cause.ABORTED, b"ab", 2)

    def test_there_is_nothing_to_look_at_in_headers_alone(self) -> None:
        reply = one(ResponseHeadersReply, run(opened(LEAN, steer=self.LOOK), ResponseHeaders(OK, True)))
        assert reply.look_over is None


class TestTurnBack:
    STEER = Steer("10.0.0.1:8000", turn_back=("llama-3-8b", "chat"))
    ANSWER = b'{"model":"llama-3-8b","x":1}'
    TURNED = b'{"model":"chat","x":1}'

    @given(st.data(), st.booleans())
    def test_any_cut_is_turned_in_full_duplex(self, data: st.DataObject, trailers: bool) -> None:
        pieces = data.draw(cut(self.ANSWER))
        last = len(pieces) - 1
        bodies = [ResponseBody(piece, not trailers and i == last) for i, piece in enumerate(pieces)]
        out = run(opened(FULL, steer=self.STEER), ResponseHeaders(OK, False), *bodies, *[ResponseTrailers()] * trailers)
        assert shown(out) == self.TURNED
        assert sum(piece.end for piece in of(StreamedResponseBody, out)) == (not trailers)
        assert one(ResponseHeadersReply, out).remove_headers == ("content-length",)
        assert one(Finished, out).tail == self.ANSWER

    @given(st.data())
    def test_any_cut_is_turned_in_streamed(self, data: st.DataObject) -> None:
        pieces = data.draw(cut(self.ANSWER))
        exchange = opened(Modes(PARTIAL, STREAMED), steer=self.STEER)
        run(exchange, ResponseHeaders(OK, False))
        got = b""
        for i, piece in enumerate(pieces):
            reply = one(ResponseBodyReply, run(exchange, ResponseBody(piece, i == len(pieces) - 1)))
            got += piece if reply.body is None else reply.body
        assert got == self.TURNED

    @pytest.mark.parametrize("response_mode", [BUFFERED, PARTIAL])
    def test_the_only_body_message_holds_nothing_back(self, response_mode: BodyMode) -> None:
        exchange = opened(Modes(BUFFERED, response_mode), steer=self.STEER)
        out = run(exchange, ResponseHeaders(OK, False), ResponseBody(self.ANSWER + b' "mod', False))
        assert one(ResponseBodyReply, out).body == self.TURNED + b' "mod'

    def test_lean_mode_looks_in_order_to_turn_back(self) -> None:
        out = run(opened(LEAN, steer=self.STEER), ResponseHeaders(OK, False), ResponseBody(self.ANSWER, True))
        assert one(ResponseHeadersReply, out).look_over is PARTIAL
        assert one(ResponseBodyReply, out).body == self.TURNED

    def test_a_compressed_answer_is_left_alone(self) -> None:
        headers = OK | {"content-encoding": "gzip"}
        out = run(opened(FULL, steer=self.STEER), ResponseHeaders(headers, False), ResponseBody(self.ANSWER, True))
        assert one(ResponseHeadersReply, out).remove_headers == ()
        assert shown(out) == self.ANSWER


class TestEnds:
    def test_after_an_immediate_response_nothing_is_said(self) -> None:
        for modes in EVERY_MODE:
            exchange = Exchange(modes)
            out = run(exchange, RequestHeaders(POST, False), RequestBody(BODY, True), REFUSED)
            assert of(Immediate, out) == [Immediate(REFUSED)]
            after = run(
                exchange, RequestBody(b"x", True), ResponseHeaders(OK, False), ResponseBody(b"x", True), REFUSED
            )
            assert after == []
            assert run(exchange, Closed(True)) == [EndOfStream()]

    @pytest.mark.parametrize("modes", EVERY_MODE)
    @pytest.mark.parametrize("clean", [True, False])
    def test_a_drop_after_the_steer_cuts_the_exchange_short_wherever_it_is(self, modes: Modes, clean: bool) -> None:
        answer: list[Event] = [ResponseHeaders(OK, False), ResponseBody(b"ab", False), ResponseBody(b"cd", False)]
        for seen in range(len(answer) + 1):
            exchange = opened(modes)
            run(exchange, *answer[:seen])
            assert run(exchange, REFUSED) == [Immediate(REFUSED)]
            assert run(exchange, REFUSED, *answer[seen:], ResponseBody(b"", True), ResponseTrailers()) == []
            finished, *rest = run(exchange, Closed(clean))
            assert isinstance(finished, Finished) and finished.cause is Cause.EVICTED
            assert rest == [EndOfStream()] * clean

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_a_drop_after_the_end_is_nothing(self, modes: Modes) -> None:
        exchange = opened(modes)
        run(exchange, ResponseHeaders(OK, False), ResponseBody(b"ab", True))
        assert run(exchange, REFUSED, Closed(True), REFUSED) == [EndOfStream()]

    def test_a_half_close_after_the_request_still_gets_its_answer(self) -> None:
        exchange = Exchange(FULL)
        run(exchange, RequestHeaders({"content-type": "application/json"}, False), RequestBody(BODY, True))
        assert run(exchange, Closed(True)) == []
        assert run(exchange, STEER) == [
            RequestHeadersReply(STEER),
            StreamedRequestBody(BODY, True),
            Finished(Cause.ABORTED),
            EndOfStream(),
        ]

    def test_a_half_close_after_the_request_still_gets_its_refusal(self) -> None:
        exchange = Exchange(FULL)
        run(exchange, RequestHeaders(POST, False), RequestBody(BODY, True), Closed(True))
        assert run(exchange, REFUSED) == [Immediate(REFUSED), EndOfStream()]

    def test_a_half_close_after_the_answer_ends_the_stream(self) -> None:
        assert run(opened(FULL), Closed(True)) == [Finished(Cause.ABORTED), EndOfStream()]

    def test_a_steer_for_a_request_that_is_gone_is_released_at_once(self) -> None:
        for gone in ([Closed(False)], [Closed(True), Closed(False)], [ResponseHeaders(OK, False)]):
            exchange = Exchange(FULL)
            run(exchange, RequestHeaders(POST, False), RequestBody(BODY, True), *gone)
            assert run(exchange, STEER) == [Finished(Cause.ABORTED)]

    def test_an_answer_without_its_request_passes_unseen(self) -> None:
        for before in ([], [RequestHeaders(POST, False)], [RequestHeaders(POST, False), RequestBody(BODY, True)]):
            exchange = Exchange(FULL)
            run(exchange, *before)
            out = run(exchange, ResponseHeaders(OK, False), ResponseBody(b"ab", True), Closed(True))
            assert out == [ResponseHeadersReply(), StreamedResponseBody(b"ab", True), EndOfStream()]

    def test_an_early_answer_in_streamed_is_counted(self) -> None:
        exchange = opened(Modes(STREAMED, STREAMED))
        out = run(
            exchange, RequestBody(b"01", False), ResponseHeaders(OK, False), RequestBody(b"23", True), Closed(False)
        )
        assert out == [
            RequestBodyReply(),
            Started(200, OK),
            ResponseHeadersReply(),
            RequestBodyReply(),
            Finished(Cause.ABORTED),
        ]

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_a_second_end_of_stream_changes_nothing(self, modes: Modes) -> None:
        exchange = opened(modes)
        run(exchange, RequestBody(b"", True))
        assert run(exchange, RequestBody(b"", True), RequestTrailers()) == []
        run(exchange, ResponseHeaders(OK, False), ResponseBody(b"ab", True))
        assert run(exchange, ResponseBody(b"", True), ResponseTrailers(), ResponseHeaders(OK, True)) == []

    @pytest.mark.parametrize("modes", EVERY_MODE)
    def test_an_abort_at_every_point_releases(self, modes: Modes) -> None:
        events: list[Event] = [
            RequestHeaders(POST, False, None, modes),
            RequestBody(BODY, False),
            RequestTrailers(),
            ResponseHeaders(OK, False),
            ResponseBody(b"ab", False),
            ResponseTrailers(),
        ]
        for clean in (False, True):
            for until in range(len(events) + 1):
                out, steers = drive(Exchange(FULL), [*events[:until], Closed(clean)], [(0, STEER)])
                assert len(of(Finished, out)) == steers


def drive(
    exchange: Exchange, events: Sequence[Event], decisions: Sequence[tuple[int, Steer | Drop]]
) -> tuple[list[Effect], int]:
    """Every Arrival gets its decision, after as many further events as it says. Returns the effects and the steers given."""
    out: list[Effect] = []
    pending: list[tuple[int, Steer | Drop]] = []
    waiting = list(decisions)
    steers = 0

    def effects(of_this: list[Effect]) -> None:
        out.extend(of_this)
        pending.extend(waiting.pop(0) for effect in of_this if isinstance(effect, Arrival))

    def decide(due: bool) -> None:
        nonlocal steers
        while pending and (due or pending[0][0] <= 0):
            _, decision = pending.pop(0)
            steers += isinstance(decision, Steer)
            effects(exchange.receive(decision))

    for event in events:
        effects(exchange.receive(event))
        decide(False)
        pending = [(after - 1, decision) for after, decision in pending]
    decide(True)
    return out, steers


modes_of = st.builds(Modes, st.sampled_from(BodyMode), st.sampled_from(BodyMode))
small = st.binary(max_size=3)
any_event = st.one_of(
    st.builds(RequestHeaders, st.just(POST), st.booleans(), st.none(), st.none() | modes_of),
    st.builds(RequestBody, small, st.booleans()),
    st.just(RequestTrailers()),
    st.builds(ResponseHeaders, st.just(OK), st.booleans()),
    st.builds(ResponseBody, small, st.booleans()),
    st.just(ResponseTrailers()),
    st.builds(Closed, st.booleans()),
)
decision = st.one_of(
    st.builds(
        Steer,
        st.just("10.0.0.1:8000"),
        body=st.none() | small,
        turn_back=st.none() | st.just(("a", "b")),
        look=st.booleans(),
    ),
    st.just(REFUSED),
)

REQUEST_ORDER: list[tuple[type, ...]] = [
    (RequestHeadersReply,),
    (RequestBodyReply, StreamedRequestBody),
    (RequestTrailersReply,),
]
RESPONSE_ORDER: list[tuple[type, ...]] = [
    (ResponseHeadersReply,),
    (ResponseBodyReply, StreamedResponseBody),
    (ResponseTrailersReply,),
]


def check_order(out: Sequence[Effect], order: Sequence[tuple[type, ...]]) -> None:
    ranks = [rank for effect in out for rank, kinds in enumerate(order) if isinstance(effect, kinds)]
    assert ranks == sorted(ranks)
    assert ranks.count(0) <= 1
    assert ranks.count(2) <= 1


@settings(max_examples=400)
@given(
    modes_of,
    st.lists(any_event, max_size=14),
    st.lists(st.tuples(st.integers(0, 4), decision), min_size=2, max_size=2),
    st.booleans(),
)
def test_no_order_of_events_breaks_an_exchange(
    modes: Modes, events: list[Event], decisions: list[tuple[int, Steer | Drop]], starts_well: bool
) -> None:
    if starts_well:
        events = [RequestHeaders(POST, False, None, modes), RequestBody(BODY, True), *events]
    out, steers = drive(Exchange(modes), [*events, Closed(False)], decisions)

    assert len(of(Arrival, out)) <= 1
    assert len(of(Finished, out)) == steers
    assert len(of(Started, out)) <= steers
    assert len(of(FirstBody, out)) <= steers
    notices = [effect for effect in out if isinstance(effect, Arrival | Started | FirstBody | Finished)]
    assert not any(isinstance(notice, Finished) for notice in notices[:-1])

    check_order(out, REQUEST_ORDER)
    check_order(out, RESPONSE_ORDER)
    request_replies = [effect for effect in out if isinstance(effect, sum(REQUEST_ORDER, ()))]
    assert not request_replies or isinstance(request_replies[0], RequestHeadersReply)
    carried = [reply for reply in request_replies if getattr(reply, "steer", None) is not None]
    assert len(carried) <= steers

    assert not any(piece.end for piece in of(StreamedRequestBody, out)[:-1])
    assert not any(piece.end for piece in of(StreamedResponseBody, out)[:-1])
    for i, effect in enumerate(out):
        if isinstance(effect, Immediate | EndOfStream):
            assert all(isinstance(later, EndOfStream | Finished) for later in out[i + 1 :])
    if isinstance(events[-1] if events else None, Closed):
        assert len(of(EndOfStream, out)) <= 1


@given(modes_of, st.booleans(), st.booleans(), st.lists(small, max_size=3), st.lists(small, max_size=3), st.booleans())
def test_a_sensible_exchange_is_answered_part_by_part_and_completes(
    modes: Modes, get: bool, trailers: bool, request: list[bytes], response: list[bytes], answer_ends_early: bool
) -> None:
    events: list[Event] = [RequestHeaders(POST, get, None, modes)]
    expected = 1
    if not get and modes.request is not NONE:
        chunks = request if modes.request in (STREAMED, DUPLEX) else [b"".join(request)]
        events += [RequestBody(chunk, False) for chunk in chunks]
        events.append(RequestTrailers() if trailers else RequestBody(b"", True))
        if modes.request in (BUFFERED, PARTIAL) and not trailers:
            events[-2:] = [RequestBody(chunks[0], True)]
        expected = len(events)
    out, _ = drive(Exchange(FULL), events, [(0, STEER)])
    replies = [effect for effect in out if not isinstance(effect, Arrival)]
    carried = [reply for reply in replies if getattr(reply, "steer", None) is not None]
    assert len(carried) == 1
    if modes.request is not DUPLEX:
        assert len(replies) == expected
    else:
        assert sent(replies) == (b"" if get else b"".join(request))


def test_work_is_not_repeated_for_each_chunk() -> None:
    """The same frozen values go out again and again where nothing differs."""
    exchange = opened(Modes(PARTIAL, STREAMED))
    run(exchange, ResponseHeaders(OK, False), ResponseBody(b"a", False))
    [first] = run(exchange, ResponseBody(b"b", False))
    [second] = run(exchange, ResponseBody(b"c", False))
    assert first is second
