"""One gRPC call, from bytes to bytes: the codec, the exchange and the dispatcher put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol

import msgspec

from epp.drops import Drop, Reason
from epp.extproc.codec import Undecodable, decode, decode_usual, encode
from epp.extproc.events import (
    Arrival,
    Closed,
    Dispatcher,
    EndOfStream,
    Finished,
    FirstBody,
    Handle,
    Immediate,
    Modes,
    MoreTime,
    Notice,
    Reply,
    ResponseHeadersReply,
    Routed,
    Started,
    Steer,
    StreamedResponseBody,
    Waiting,
)
from epp.extproc.exchange import BODY_LIMIT_BYTES, Exchange
from epp.extproc.room import Room
from epp.extproc.transport import OpenSession, Session, Stream

INVALID_ARGUMENT = 3
"""gRPC status of a call that sent something other than `ProcessingRequest`."""


_WAIT = encode(MoreTime(3600))
"""Longer than any request waits for its turn: the queue ends a wait, and Envoy's keep-alive a picker that hangs."""


class Incidents(Protocol):
    """Whoever counts, and logs now and then, what a session meets and the dispatcher never hears of."""

    def undecodable(self, error: Undecodable) -> None: ...

    def fault(self, error: Exception) -> None:
        """The dispatcher raised what it should not: its request was refused, or one notice was lost."""
        ...

    def refused(self, drop: Drop) -> None:
        """A request was refused by other than the dispatcher: while its body was arriving, or because of a bug."""
        ...


class Stopwatch(msgspec.Struct, frozen=True):
    """Measures how long a decision takes to become bytes: `took(seconds)` for each, by a fine monotonic `timer`."""

    timer: Callable[[], float]
    took: Callable[[float], None]


UNMEASURED = Stopwatch(lambda: 0.0, lambda seconds: None)


def open_session(
    dispatcher: Dispatcher[Handle],
    clock: Callable[[], float],
    default_modes: Modes,
    incidents: Incidents,
    body_limit_bytes: int = BODY_LIMIT_BYTES,
    reply: Stopwatch = UNMEASURED,
    room: Room | None = None,
) -> OpenSession:
    """What a transport calls for each call. `clock` gives seconds, as the event loop's. All calls share `room`."""
    shared = room or Room()

    def opened(stream: Stream) -> Session:
        return _Call(stream, dispatcher, clock, Exchange(default_modes, body_limit_bytes, shared), incidents, reply)

    return opened


class _Call(Generic[Handle]):
    """A `Session`. Owns the exchange, and the dispatcher's handle from the pick to the end."""

    __slots__ = (
        "_added",
        "_clock",
        "_dispatcher",
        "_dispatchers_drop",
        "_ended",
        "_exchange",
        "_handle",
        "_incidents",
        "_opened_s",
        "_reply",
        "_stream",
        "_waiting",
    )

    def __init__(
        self,
        stream: Stream,
        dispatcher: Dispatcher[Handle],
        clock: Callable[[], float],
        exchange: Exchange,
        incidents: Incidents,
        reply: Stopwatch,
    ) -> None:
        self._stream = stream
        self._dispatcher = dispatcher
        self._dispatchers_drop: Drop | None = None
        self._clock = clock
        self._exchange = exchange
        self._incidents = incidents
        self._reply = reply
        self._opened_s = clock()
        self._handle: tuple[Handle] | None = None
        self._waiting: Waiting[Handle] | None = None
        self._added: tuple[tuple[str, str], ...] = ()
        self._ended = False

    def received(self, message: bytes) -> None:
        if self._ended:
            return
        event = decode_usual(message)
        if event is None:
            try:
                event = decode(message)
            except Undecodable as error:
                self._incidents.undecodable(error)
                self._abort(INVALID_ARGUMENT, "not an envoy.service.ext_proc.v3.ProcessingRequest")
                return
        if event is not None:
            effects = self._exchange.receive(event)
            if effects:
                if self._waiting is not None:
                    # Somebody else answered, a time limit of the proxy for one: nobody waits for a turn any more.
                    self._give_up(self._waiting)
                self._perform(effects)

    def closed(self, clean: bool) -> None:
        if self._waiting is not None and not clean:
            self._give_up(self._waiting)
        if not self._ended:
            self._perform(self._exchange.receive(Closed(clean)))

    def abandoned(self) -> None:
        """Nobody reads the answer any more that was still due after the half-close."""
        self.closed(False)

    def _abort(self, status: int, message: str) -> None:
        if self._waiting is not None:
            self._give_up(self._waiting)
        self._perform(self._exchange.receive(Closed(False)))
        self._ended = True
        self._stream.close(status, message)

    def _perform(self, effects: list[Reply | Notice]) -> None:
        for effect in effects:
            if type(effect) is StreamedResponseBody:
                self._stream.send(encode(effect))
            elif type(effect) is Arrival:
                decision = self._decide(effect)
                if decision is not None:
                    self._decided(decision)
            elif type(effect) is Started or type(effect) is FirstBody or type(effect) is Finished:
                if self._handle is not None:
                    self._tell(self._handle[0], effect)
            elif type(effect) is EndOfStream:
                self._ended = True
                self._stream.close()
            elif type(effect) is ResponseHeadersReply and self._added:
                self._stream.send(encode(msgspec.structs.replace(effect, set_headers=self._added)))
            else:
                self._stream.send(encode(effect))
                if type(effect) is Immediate and effect.drop is not self._dispatchers_drop:
                    self._incidents.refused(effect.drop)

    def _decided(self, decision: Steer | Drop) -> None:
        timer = self._reply.timer
        began = timer()
        self._perform(self._exchange.receive(decision))
        self._reply.took(timer() - began)

    def _decide(self, arrival: Arrival) -> Steer | Drop | None:
        """None where the request waits."""
        try:
            routed = self._dispatcher.route(arrival, self._opened_s, self._clock())
        except Drop as drop:
            # Its traceback holds this frame, hence the call, which holds it: the collector would have to come by.
            self._dispatchers_drop = drop.with_traceback(None)
            return drop
        except Exception as error:
            self._incidents.fault(error)
            return Drop(Reason.INTERNAL, "The endpoint picker failed on this request. It has been reported; try again.")
        if isinstance(routed, tuple):
            return self._steered(*routed)
        self._waiting = routed
        routed.resume = self._resumed
        if self._exchange.is_timed:
            self._stream.send(_WAIT)
        return None

    def _resumed(self, routed: Routed[Handle]) -> None:
        """The wait is over. Where the request is gone by now, the exchange says so at once."""
        self._waiting = None
        if isinstance(routed, Drop):
            self._dispatchers_drop = routed
            self._decided(routed)
            return
        self._decided(self._steered(*routed))

    def _steered(self, steer: Steer, handle: Handle) -> Steer:
        self._handle = (handle,)
        if steer.evictable:
            try:
                self._dispatcher.runs(handle, self._evict)
            except Exception as error:
                self._incidents.fault(error)
        return steer

    def _evict(self, drop: Drop) -> None:
        self._dispatchers_drop = drop
        self._perform(self._exchange.receive(drop))

    def _give_up(self, waiting: Waiting[Handle]) -> None:
        self._waiting = None
        try:
            waiting.cancel(self._clock())
        except Exception as error:
            self._incidents.fault(error)

    def _tell(self, handle: Handle, notice: Started | FirstBody | Finished) -> None:
        """Pass a notice on. What a dispatcher raises here is reported, and the answer goes on without it."""
        try:
            if type(notice) is Started:
                added = self._dispatcher.started(handle, notice, self._clock())
                if added:
                    self._added = tuple(added.items())
            elif type(notice) is FirstBody:
                self._dispatcher.first_body(handle, self._clock())
            elif type(notice) is Finished:
                self._handle = None
                self._dispatcher.finished(handle, notice, self._clock())
        except Exception as error:
            self._incidents.fault(error)
