"""gRPC over our own HTTP/2 on asyncio or uvloop: the thin shell that owns sockets, timers and sessions."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import cast

import msgspec

from epp.extproc.door import Door
from epp.extproc.http2 import Connection, Ended, Event, Limits, Opened, Received, Status
from epp.extproc.places import Places
from epp.extproc.tls import names_of
from epp.extproc.transport import Abandonable, Admits, OpenSession, Session

GREETING_TIMEOUT_S = 10.0
"""How long a new connection may take to show that it speaks HTTP/2; the TLS handshake has as long again."""
LINGER_S = 1.0
"""How long a finished connection may take to read what is left. Closing at once with bytes unread would make the kernel
reset it, and the peer would never see the GOAWAY."""

_log = logging.getLogger(__name__)


class Statistics(msgspec.Struct, frozen=True):
    """One server now: open connections and streams, calls since the start, bytes of replies that clients have not taken.

    `limits` counts by name what clients ran into: a field of `Limits`, or `greeting_timeout_s`, `handshake_timeout_s` and
    `open_files`.
    """

    connections: int
    streams: int
    calls: int
    waiting_bytes: int
    limits: Mapping[str, int]


class Http2Server:
    """Serves the routes (`/package.Service/Method` to session) on one port.

    `start` once; `drain` asks clients to go elsewhere while open calls go on; `stop` ends everything. All methods belong to
    the loop that ran `start`. With `admits` a connection whose certificate it refuses is cut after the handshake.
    `on_limit` is told the name of each limit that a client runs into.
    """

    def __init__(
        self,
        routes: Mapping[str, OpenSession],
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        admits: Admits | None = None,
        on_limit: Callable[[str], None] | None = None,
    ) -> None:
        self.routes = routes
        self.admits = admits
        self.limits = limits or Limits()
        self.links: set[_Link] = set()
        self.places: Places[_Link] = Places(self.limits.max_connections, self.limits.idle_connection_s)
        self.calls = 0
        self._tls = tls
        self._on_limit = on_limit
        self._limits_hit: Counter[str] = Counter()
        self._door: Door | None = None
        self._all_gone = asyncio.Event()

    async def start(self, host: str | None, port: int) -> int:
        """Listen on `host` (None: every interface). Returns the bound port (`port` 0: any free one). Raises OSError when it cannot be had."""
        loop = asyncio.get_running_loop()
        self._door = Door(
            lambda: _Link(self, loop),
            self._tls,
            room=lambda: self.places.room(loop.time()),
            handshake_timeout_s=GREETING_TIMEOUT_S,
            hit=self.hit,
        )
        return self._door.open(host, port)

    def drain(self) -> None:
        """Accept no more connections or calls; open calls, and those already on their way, are served."""
        if self._door is not None:
            self._door.close()
        for link in tuple(self.links):
            link.drain()

    async def stop(self, grace_s: float) -> None:
        """Drain, wait up to `grace_s` for open calls, then end those left: their sessions see `closed(False)`."""
        self.drain()
        try:
            await self._gone(grace_s)
        finally:
            for link in tuple(self.links):
                link.abort()
        if not await self._gone(2 * LINGER_S):
            for link in tuple(self.links):
                link.cut()
            await self._gone(LINGER_S)
        if self._door is not None:
            await self._door.closed()

    def statistics(self) -> Statistics:
        return Statistics(
            connections=len(self.links),
            streams=sum(link.open_streams for link in self.links),
            calls=self.calls,
            waiting_bytes=sum(link.waiting_bytes for link in self.links),
            limits=dict(self._limits_hit),
        )

    def hit(self, limit: str) -> None:
        self._limits_hit[limit] += 1
        if self._on_limit is not None:
            self._on_limit(limit)

    def seat(self, link: _Link, now_s: float) -> bool:
        """Give a connection its place, which may be one that has had no call for long: that is asked to go. False where there is none.

        Only now, after the handshake, so that who is not admitted moves nobody. One that was asked to go lingers without a place.
        """
        if self.places.full():
            longest = self.places.gives_way(now_s)
            self.hit("max_connections" if longest is None else "idle_connection_s")
            if longest is None:
                return False
            longest.abort()
        self.places.take(link, now_s)
        return True

    def left(self, link: _Link) -> None:
        self.places.leave(link)
        self.links.discard(link)
        if not self.links:
            self._all_gone.set()

    async def _gone(self, timeout_s: float) -> bool:
        if not self.links:
            return True
        self._all_gone.clear()
        try:
            await asyncio.wait_for(self._all_gone.wait(), timeout_s)
        except TimeoutError:
            return False
        return True


class _Call:
    """One call: the `Stream` its session holds.

    `over`: nothing more can be sent. `closed`: because the session said so. `told`: its `closed` was called.
    """

    __slots__ = ("_link", "_stream_id", "closed", "over", "session", "timer", "told")

    def __init__(self, link: _Link, stream_id: int) -> None:
        self._link = link
        self._stream_id = stream_id
        self.session: Session | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.over = False
        self.closed = False
        self.told = False

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        return self._link.metadata(self._stream_id)

    def send(self, message: bytes) -> None:
        if self.over:
            return
        link = self._link
        if not link.http2.send(self._stream_id, message):
            self.over = True
            link.owed.append((self._stream_id, self))
        if not link.busy:
            link.flush_soon()

    def close(self, status: int = 0, message: str = "") -> None:
        if not self.over:
            self._link.close(self, self._stream_id, status, message)


class _Link(asyncio.Protocol):
    """One connection: its socket, its HTTP/2 state, and the calls on it."""

    def __init__(self, server: Http2Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._loop = loop
        self.http2 = Connection(server.limits, server.hit)
        self._calls: dict[int, _Call] = {}
        self.owed: list[tuple[int, _Call]] = []
        self.busy = False
        self._flushing = False
        self._closing = False
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do what asyncio.Transport asks without deriving from it.
        self._transport = cast(asyncio.Transport, transport)
        self._server.links.add(self)
        admits = self._server.admits
        admitted = admits is None or admits(names_of(transport.get_extra_info("peercert")))
        if not (admitted and self._server.seat(self, self._loop.time())):
            self._closing = True
            self._transport.abort()
            return
        self._timer = self._loop.call_later(GREETING_TIMEOUT_S, self._expect_greeting)
        self._flush()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        self.busy = True
        calls = self._calls
        for event in self.http2.receive(data, self._loop.time()):
            if type(event) is Received:
                call = calls.get(event.stream_id)
                if call is None or call.over or call.session is None:
                    continue
                try:
                    call.session.received(event.message)
                except Exception:
                    self._broken(event.stream_id, call)
            elif type(event) is Opened:
                self._open(event)
            else:
                self._over(event)
        self.busy = False
        self._flush()

    def pause_writing(self) -> None:
        # What a peer does not read, it may not ask more of.
        self.http2.hold()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.http2.release()
        self._transport.resume_reading()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        for event in self.http2.lost():
            self._over(event)
        self._pay()
        self._server.left(self)

    @property
    def open_streams(self) -> int:
        return self.http2.open_streams

    @property
    def waiting_bytes(self) -> int:
        return self.http2.queued_bytes + self._transport.get_write_buffer_size()

    def drain(self) -> None:
        self.http2.drain()
        self._flush()

    def abort(self) -> None:
        """End every call, and the connection once the peer has read that."""
        for event in self.http2.abort():
            self._over(event)
        self._flush()

    def cut(self) -> None:
        self._transport.abort()

    def _open(self, event: Opened) -> None:
        stream_id = event.stream_id
        open_session = self._server.routes.get(event.path)
        if open_session is None:
            self.http2.close(stream_id, Status.UNIMPLEMENTED, f"unknown method {event.path}")
            return
        self._server.calls += 1
        if not self._calls:
            self._server.places.work(self)
        call = self._calls[stream_id] = _Call(self, stream_id)
        try:
            call.session = open_session(call)
        except Exception:
            self._broken(stream_id, call)
            return
        if event.timeout_s is not None:
            call.timer = self._loop.call_later(event.timeout_s, self._expire, stream_id, call)

    def _over(self, event: Event) -> None:
        """The peer is done with a call: after `Ended` the session may still answer, after `Lost` it is forgotten."""
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        if type(event) is Ended and not call.over:
            self._tell(event.stream_id, call, True)
            return
        if type(event) is Ended:
            self._release(event.stream_id, call)
            self._tell(event.stream_id, call, True)
            call.session = None
            return
        self._lose(event.stream_id, call)

    def _lose(self, stream_id: int, call: _Call) -> None:
        call.over = True
        self._release(stream_id, call)
        if not call.told:
            self._tell(stream_id, call, False)
        elif not call.closed and isinstance(call.session, Abandonable):
            try:
                call.session.abandoned()
            except Exception:
                self._broken(stream_id, call)
        # The session holds the call: together they would live until the collector came by, with all the request's bytes.
        call.session = None

    def _tell(self, stream_id: int, call: _Call, clean: bool) -> None:
        if call.told or call.session is None:
            return
        call.told = True
        try:
            call.session.closed(clean)
        except Exception:
            self._broken(stream_id, call)

    def _broken(self, stream_id: int, call: _Call) -> None:
        """Called while handling what a session raised: one call fails, the connection goes on."""
        _log.exception("session failed; its call ends with INTERNAL")
        call.over = True
        self._release(stream_id, call)
        self.http2.close(stream_id, Status.INTERNAL, "internal error")
        self._tell(stream_id, call, False)
        call.session = None

    def _expire(self, stream_id: int, call: _Call) -> None:
        self.http2.close(stream_id, Status.DEADLINE_EXCEEDED, "deadline exceeded")
        self._lose(stream_id, call)
        self._flush()

    def _release(self, stream_id: int, call: _Call) -> None:
        if self._calls.pop(stream_id, None) is not None and not self._calls:
            self._server.places.rest(self, self._loop.time())
        if call.timer is not None:
            call.timer.cancel()

    def metadata(self, stream_id: int) -> Mapping[bytes, bytes]:
        return self.http2.metadata(stream_id)

    def close(self, call: _Call, stream_id: int, status: int, message: str) -> None:
        call.over = call.closed = True
        self.http2.close(stream_id, status, message)
        if call.told:
            self._release(stream_id, call)
            call.session = None
        else:
            # Not now: the session is in the middle of its own method.
            self.owed.append((stream_id, call))
        if not self.busy:
            self.flush_soon()

    def _pay(self) -> None:
        """Tell sessions whose calls ended inside one of their own methods that nothing more will come."""
        while self.owed:
            self._lose(*self.owed.pop())

    def flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flushing = False
        self._flush()

    def _flush(self) -> None:
        if self.owed:
            self._pay()
        if self._closing:
            return
        output = self.http2.take_output()
        if output:
            self._transport.write(output)
        if self.http2.leaving and self.http2.closing:
            self._close()

    def _close(self) -> None:
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(LINGER_S, self._transport.abort)
        if not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:
            # The peer reset the connection and the loop has not told us yet.
            self._transport.abort()

    def _expect_greeting(self) -> None:
        if not self.http2.greeted:
            self._server.hit("greeting_timeout_s")
            self._transport.abort()
