"""One HTTP exchange as Envoy shows it: events in, replies and notices out. No I/O, no protobuf, no clock.

The request side, and when the dispatcher is asked:

    WAITING ──headers──► COLLECTING ──enough of the body──► DECIDING ──Steer──► STEERED
                │                                              ▲    └──Drop──► VOID
                └──no body, or none before the headers go on───┘

What is enough, and which reply carries the decision, depends on the body mode in force:

    mode                        asked at                               the decision is in
    FULL_DUPLEX_STREAMED        the end of the body, or the trailers   the answer to the headers; the body is echoed after it
    BUFFERED, BUFFERED_PARTIAL  the only body message                  the answer to that message
    STREAMED, NONE              the headers                            the answer to the headers
    any, without a body         the headers                            the answer to the headers

In STREAMED, Envoy holds the headers only until they are answered and sends no body before; a later change of the
headers is ignored. So the body cannot be part of the decision there.

An answer that overtakes its request (a local reply of another filter, a server that answers early in a mode that hides
the body) makes the request VOID if it was not yet steered: the answer passes as it is and nobody is told of it.

The response side goes WAITING ──headers──► OPEN ──end──► ENDED. It is ENDED at once after an immediate response, which may come
at any time: Envoy 1.40 answers with it as long as no other answer has begun, and resets the client's stream after that.
Whatever comes in an order that has no meaning is ignored: an answer to it would be a part out of order.
"""

from __future__ import annotations

import enum

import msgspec

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
from epp.extproc.room import Room
from epp.openai.turnback import TurnBack

PIECE_BYTES = 62_000
"""Largest piece of a body in one full-duplex reply: Envoy takes at most 64 KiB in a message, framing included."""

BODY_LIMIT_BYTES = 64 * 1024 * 1024
"""Default for how much of one request's body is collected in full duplex, where Envoy itself sets no limit."""


_SMALL_BYTES = 1024
"""Pieces below this are put together as they come: as an object each takes 41 bytes besides, and a client may send two at a time."""


class Asking(enum.Enum):
    """How far the request has come."""

    WAITING = "waiting"
    COLLECTING = "collecting"
    DECIDING = "deciding"
    STEERED = "steered"
    VOID = "void"


class Answering(enum.Enum):
    """How far the response has come."""

    WAITING = "waiting"
    OPEN = "open"
    ENDED = "ended"


class Carrier(enum.Enum):
    """Which reply the decision goes out with."""

    HEADERS = "headers"
    BODY = "body"
    TRAILERS = "trailers"


# Reading a member off its enum costs 0.17 µs each time in Python 3.11, a module's name 0.02.
_NONE, _STREAMED, _, _PARTIAL, _DUPLEX = BodyMode
_WAITING, _COLLECTING, _DECIDING, _STEERED, _VOID = Asking
_UNANSWERED, _OPEN, _ENDED = Answering
_IN_HEADERS, _IN_BODY, _IN_TRAILERS = Carrier

_PASS_REQUEST_HEADERS = RequestHeadersReply()
_PASS_REQUEST_BODY = RequestBodyReply()
_PASS_REQUEST_TRAILERS = RequestTrailersReply()
_PASS_RESPONSE_BODY = ResponseBodyReply()
_PASS_RESPONSE_TRAILERS = ResponseTrailersReply()
_FIRST_BODY = FirstBody()
_END_OF_STREAM = EndOfStream()


class Exchange:
    """Owns the state of one exchange. `default_modes` hold where the first message does not tell the modes.

    What it collects of a body counts against `room`, which exchanges share, until the body is whole: it is the dispatcher then
    who answers for what it lets wait.

    `receive` takes what Envoy said, or the dispatcher's answer to an `Arrival`; that answer may come any time later.
    It returns what to do, in order. A `Started` is followed directly by its `ResponseHeadersReply`.

    Every `Steer` gets exactly one `Finished`: at the answer's end, at the stream's end, or at once where the steer comes
    when the request is gone. A `Drop` after the `Steer` cuts the exchange short: its `Finished` comes when Envoy has closed the
    stream. After a clean `Closed` an `EndOfStream` comes once nothing more is to be sent, and no reply
    after it.
    """

    __slots__ = (
        "_answering",
        "_asking",
        "_body",
        "_body_bytes",
        "_carrier",
        "_collected_bytes",
        "_evicted",
        "_half_closed",
        "_has_body",
        "_headers",
        "_limit",
        "_look",
        "_modes",
        "_owed",
        "_pieces",
        "_pool",
        "_request_ended",
        "_response_mode",
        "_room",
        "_subset",
        "_tail",
        "_tail_bytes",
        "_trailers",
        "_truncated",
        "_turn",
        "_turn_back",
        "_watched",
    )

    def __init__(
        self, default_modes: Modes, body_limit_bytes: int = BODY_LIMIT_BYTES, room: Room | None = None
    ) -> None:
        self._modes = default_modes
        self._room = room or Room()
        self._limit = body_limit_bytes
        self._asking = _WAITING
        self._answering = _UNANSWERED
        self._headers: dict[str, str] = {}
        self._subset: tuple[str, ...] | None = None
        self._pool = ""
        self._pieces: list[bytes | bytearray | memoryview] = []
        self._collected_bytes = 0
        self._body = b""
        self._has_body = False
        self._truncated = False
        self._carrier = _IN_HEADERS
        self._request_ended = False
        self._trailers = False
        self._owed: list[Reply] = []
        self._half_closed = False
        self._evicted = False
        self._watched = False
        self._look = False
        self._response_mode = default_modes.response
        self._turn_back: tuple[str, str] | None = None
        self._turn: TurnBack | None = None
        self._body_bytes = 0
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def __repr__(self) -> str:
        return f"<Exchange {self._asking.value} {self._answering.value}>"

    @property
    def is_timed(self) -> bool:
        """Whether Envoy waits for an answer no longer than its `message_timeout`: in full duplex it waits for ever."""
        return self._modes.request is not _DUPLEX

    def receive(self, event: Event | Steer | Drop) -> list[Reply | Notice]:
        # isinstance costs 0.2 µs for each class that does not fit: the classes' metaclass is an ABCMeta.
        if type(event) is ResponseBody:
            return self._response_body(event)
        if type(event) is RequestHeaders:
            return self._request_headers(event)
        if type(event) is RequestBody:
            return self._request_body(event)
        if type(event) is Steer:
            return self._steer(event)
        if type(event) is ResponseHeaders:
            return self._response_headers(event)
        if type(event) is Closed:
            return self._closed(event.clean)
        if type(event) is RequestTrailers:
            return self._request_trailers()
        if type(event) is ResponseTrailers:
            return self._response_trailers()
        assert isinstance(event, Drop)
        return self._drop(event)

    # The request

    def _request_headers(self, event: RequestHeaders) -> list[Reply | Notice]:
        if self._asking is not _WAITING:
            return []
        if event.modes is not None:
            self._modes = event.modes
            self._response_mode = event.modes.response
        self._headers = event.headers
        self._subset = event.subset
        self._pool = event.pool
        self._request_ended = event.end
        if event.end or self._modes.request in (_NONE, _STREAMED):
            return self._arrive(_IN_HEADERS)
        self._asking = _COLLECTING
        return [] if self._modes.request is _DUPLEX else [_PASS_REQUEST_HEADERS]

    def _request_body(self, event: RequestBody) -> list[Reply | Notice]:
        full_duplex = self._modes.request is _DUPLEX
        if self._asking is _COLLECTING:
            if self._subset is None:
                self._subset = event.subset
            return self._collect(event) if full_duplex else self._take_only(event)
        if full_duplex or self._request_ended:
            return []
        self._request_ended = event.end
        return self._let_through(_PASS_REQUEST_BODY)

    def _request_trailers(self) -> list[Reply | Notice]:
        if self._request_ended:
            return []
        if self._asking is not _COLLECTING:
            self._request_ended = self._asking in (_DECIDING, _STEERED)
            return self._let_through(_PASS_REQUEST_TRAILERS)
        self._request_ended = self._trailers = True
        if self._modes.request is _DUPLEX:
            return self._arrive(_IN_HEADERS)
        return self._arrive(_IN_TRAILERS)

    def _collect(self, event: RequestBody) -> list[Reply | Notice]:
        self._has_body = True
        size = len(event.data)
        if size:
            if self._collected_bytes + size > self._limit:
                return self._refuse(
                    Drop(Reason.BODY_TOO_LARGE, f"The request body exceeds {self._limit} bytes. Send less.")
                )
            if not self._room.take(size, self._collected_bytes):
                return self._refuse(
                    Drop(Reason.SATURATED, "Too many large requests are arriving at once. Try again later.")
                )
            self._collected_bytes += size
            self._keep(event.data)
        if not event.end:
            return []
        self._request_ended = True
        return self._arrive(_IN_HEADERS)

    def _keep(self, data: bytes | memoryview) -> None:
        pieces = self._pieces
        if len(data) >= _SMALL_BYTES or not pieces:
            pieces.append(data)
            return
        last = pieces[-1]
        if type(last) is bytearray:
            last += data
        else:
            pieces.append(bytearray(data))

    def _take_only(self, event: RequestBody) -> list[Reply | Notice]:
        self._has_body = True
        self._pieces.append(event.data)
        self._request_ended = event.end
        self._truncated = self._modes.request is _PARTIAL and not event.end
        return self._arrive(_IN_BODY)

    def _let_through(self, reply: Reply) -> list[Reply | Notice]:
        """A reply that follows the one with the decision, or waits for it."""
        if self._asking is _STEERED:
            return [reply]
        if self._asking is _DECIDING:
            self._owed.append(reply)
        return []

    def _arrive(self, carrier: Carrier) -> list[Reply | Notice]:
        self._asking = _DECIDING
        self._carrier = carrier
        pieces = self._pieces
        self._body = pieces[0] if len(pieces) == 1 and type(pieces[0]) is bytes else b"".join(pieces)
        self._pieces.clear()
        if self._collected_bytes:
            self._give_back()
        hidden = self._modes.response is _NONE
        return [
            Arrival(
                headers=self._headers,
                body=self._body,
                has_body=self._has_body,
                truncated=self._truncated,
                can_rewrite=self._has_body,
                sees_answer=not hidden,
                # Envoy ignores a mode override where one of the modes is full duplex.
                can_look=hidden and self._modes.request is not _DUPLEX,
                subset=self._subset,
                pool=self._pool,
            )
        ]

    # The decision

    def _steer(self, steer: Steer) -> list[Reply | Notice]:
        if self._asking is not _DECIDING:
            return [Finished(Cause.ABORTED)]
        self._asking = _STEERED
        self._watched = True
        self._turn_back = steer.turn_back
        # A name can be turned back only where the answer is seen.
        self._look = (
            (steer.look or steer.turn_back is not None)
            and self._modes.response is _NONE
            and self._modes.request is not _DUPLEX
        )
        replies: list[Reply | Notice] = [*self._carry(steer), *self._owed]
        self._owed.clear()
        self._body = b""
        return replies + self._hang_up() if self._half_closed else replies

    def _carry(self, steer: Steer) -> list[Reply]:
        """The replies that take the decision to Envoy, and in full duplex the body and the trailers after it."""
        if steer.body is not None and self._has_body:
            steer = self._fit_length(steer, len(steer.body))
        if self._carrier is _IN_BODY:
            return [RequestBodyReply(steer, steer.body)]
        if self._carrier is _IN_TRAILERS:
            return [_PASS_REQUEST_TRAILERS]
        if self._modes.request is _DUPLEX:
            return [RequestHeadersReply(steer), *self._echo_request(steer.body)]
        return [RequestHeadersReply(steer)]

    def _echo_request(self, rewritten: bytes | None) -> list[Reply]:
        last = not self._trailers
        replies: list[Reply] = []
        if self._has_body:
            body = self._body if rewritten is None else rewritten
            if len(body) <= PIECE_BYTES:
                replies.append(StreamedRequestBody(body, last))
            else:
                replies += [StreamedRequestBody(piece, last and end) for piece, end in _pieces(body)]
        if self._trailers:
            replies.append(_PASS_REQUEST_TRAILERS)
        return replies

    def _fit_length(self, steer: Steer, body_bytes: int) -> Steer:
        """`steer` with a content-length that fits the rewritten body: Envoy answers 500 if it does not."""
        if "content-length" not in self._headers or body_bytes == len(self._body):
            return steer
        if self._truncated:
            return msgspec.structs.replace(steer, remove_headers=(*steer.remove_headers, "content-length"))
        length = ("content-length", str(body_bytes))
        return msgspec.structs.replace(steer, set_headers=(*steer.set_headers, length))

    def _drop(self, drop: Drop) -> list[Reply | Notice]:
        if self._asking is _DECIDING:
            return self._refuse(drop)
        return self._evict(drop) if self._watched and not self._evicted else []

    def _evict(self, drop: Drop) -> list[Reply | Notice]:
        """Whatever comes now until Envoy closes the stream is of no use to anybody."""
        self._evicted = True
        self._void()
        self._answering = _ENDED
        return [Immediate(drop)]

    def _refuse(self, drop: Drop) -> list[Reply | Notice]:
        self._void()
        self._answering = _ENDED
        replies: list[Reply | Notice] = [Immediate(drop)]
        return [*replies, _END_OF_STREAM] if self._half_closed else replies

    def _void(self) -> None:
        self._asking = _VOID
        self._pieces.clear()
        self._owed.clear()
        self._body = b""
        if self._collected_bytes:
            self._give_back()

    def _give_back(self) -> None:
        self._room.give(self._collected_bytes)
        self._collected_bytes = 0

    # The response

    def _open(self) -> None:
        self._answering = _OPEN
        if self._asking is not _STEERED:
            self._void()

    def _response_headers(self, event: ResponseHeaders) -> list[Reply | Notice]:
        if self._answering is not _UNANSWERED:
            return []
        self._open()
        headers = event.headers
        remove: tuple[str, ...] = ()
        if self._turn_back is not None and not event.end and headers.get("content-encoding", "identity") == "identity":
            self._turn = TurnBack(*self._turn_back)
            remove = ("content-length",) if "content-length" in headers else ()
        look = self._look and not event.end
        if look:
            self._response_mode = _STREAMED
        reply = ResponseHeadersReply((), remove, self._modes.request if look else None)
        out: list[Reply | Notice] = [reply]
        if self._watched:
            out.insert(0, Started(_status(headers), headers, event.served))
        return self._end_response(out) if event.end else out

    def _response_body(self, event: ResponseBody) -> list[Reply | Notice]:
        if self._answering is not _OPEN:
            if self._answering is _ENDED:
                return []
            self._open()
        data = event.data
        out: list[Reply | Notice] = []
        if data:
            if not self._body_bytes and self._watched:
                out.append(_FIRST_BODY)
            size = len(data)
            self._body_bytes += size
            self._tail.append(data)
            self._tail_bytes += size
            if self._tail_bytes > 2 * TAIL_BYTES:
                self._trim()
        if self._response_mode is _DUPLEX:
            self._echo_response(out, data, event.end)
        else:
            out.append(self._answer_body(data, event.end))
        return self._end_response(out) if event.end else out

    def _response_trailers(self) -> list[Reply | Notice]:
        if self._answering is _ENDED:
            return []
        if self._answering is _UNANSWERED:
            self._open()
        out: list[Reply | Notice] = []
        if self._turn is not None and self._response_mode is _DUPLEX:
            held = self._turn.flush()
            if held:
                out.append(StreamedResponseBody(held, False))
        out.append(_PASS_RESPONSE_TRAILERS)
        return self._end_response(out)

    def _echo_response(self, out: list[Reply | Notice], data: bytes, end: bool) -> None:
        if self._turn is not None:
            data = self._turned(self._turn, data, end)
            if not data and not end:
                return
        if len(data) <= PIECE_BYTES:
            out.append(StreamedResponseBody(data, end))
        else:
            out += [StreamedResponseBody(piece, end and last) for piece, last in _pieces(data)]

    def _answer_body(self, data: bytes, end: bool) -> ResponseBodyReply:
        if self._turn is None:
            return _PASS_RESPONSE_BODY
        # Only STREAMED shows what follows; what is held back there when trailers end the body is a JSON text cut off
        # inside the name of its model, and has no reply left to go out with.
        turned = self._turned(self._turn, data, end or self._response_mode is not _STREAMED)
        return _PASS_RESPONSE_BODY if turned == data else ResponseBodyReply(turned)

    @staticmethod
    def _turned(turn: TurnBack, data: bytes, last: bool) -> bytes:
        return turn.feed(data) + turn.flush() if last else turn.feed(data)

    def _trim(self) -> None:
        kept = b"".join(self._tail)[-TAIL_BYTES:]
        self._tail = [kept]
        self._tail_bytes = len(kept)

    # The end

    def _end_response(self, out: list[Reply | Notice]) -> list[Reply | Notice]:
        self._answering = _ENDED
        if self._watched:
            out.append(self._finish(Cause.COMPLETE))
        return out

    def _finish(self, cause: Cause) -> Finished:
        self._watched = False
        tail = b"".join(self._tail)[-TAIL_BYTES:]
        self._tail.clear()
        return Finished(cause, tail, self._body_bytes)

    def _closed(self, clean: bool) -> list[Reply | Notice]:
        if clean and self._half_closed:
            return []
        if clean and self._asking is _DECIDING:
            # Some proxies half-close after the request and then read the decision.
            self._half_closed = True
            self._answering = _ENDED
            return []
        out: list[Reply | Notice] = []
        if self._watched:
            out.append(self._finish(self._cause()))
        self._half_closed = True
        self._void()
        self._answering = _ENDED
        if clean:
            out.append(_END_OF_STREAM)
        return out

    def _cause(self) -> Cause:
        if self._evicted:
            return Cause.EVICTED
        return Cause.COMPLETE if self._ended_unseen() else Cause.ABORTED

    def _ended_unseen(self) -> bool:
        """Whether the close is the answer's end: its headers came, and its body is one that Envoy does not show.

        A client that went away looks the same. Envoy 1.40 half-closes and then resets in both cases, and where it held
        the whole answer before its headers were answered, it only resets; so how it closed says nothing.
        """
        return self._answering is _OPEN and self._modes.response is _NONE and self._body_bytes == 0

    def _hang_up(self) -> list[Reply | Notice]:
        self._void()
        return [self._finish(Cause.ABORTED), _END_OF_STREAM]


def _pieces(body: bytes) -> list[tuple[bytes | memoryview, bool]]:
    """`body`, which is not empty, cut without copying, each piece with whether it is the last."""
    view = memoryview(body)
    starts = range(0, len(body), PIECE_BYTES)
    return [(view[start : start + PIECE_BYTES], start == starts[-1]) for start in starts]


def _status(headers: dict[str, str]) -> int:
    status = headers.get(":status", "")
    return int(status) if len(status) == 3 and status.isdecimal() else 0
