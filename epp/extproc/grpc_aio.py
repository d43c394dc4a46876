"""The same sessions behind `grpc.aio`, gRPC's own server: the transport to fall back on and to compare with."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

import grpc
from grpc import aio

from epp.endpoint import host_port
from epp.extproc.http2 import Limits
from epp.extproc.transport import Abandonable, Admits, OpenSession, Session

_log = logging.getLogger(__name__)
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class AioServer:
    """Serves the routes on one port; same surface as `Http2Server`, except that TLS comes as gRPC credentials.

    Of the limits only message size and concurrent streams are known to gRPC's core. A client that `admits` refuses has its
    calls end with PERMISSION_DENIED.
    """

    def __init__(
        self,
        routes: Mapping[str, OpenSession],
        limits: Limits | None = None,
        credentials: grpc.ServerCredentials | None = None,
        admits: Admits | None = None,
    ) -> None:
        self._routes = routes
        self._limits = limits or Limits()
        self._credentials = credentials
        self._admits = admits
        self._server: aio.Server | None = None
        self._draining: asyncio.Task[None] | None = None
        self._running: set[asyncio.Task[object]] = set()

    async def start(self, host: str | None, port: int) -> int:
        """Listen on `host` (None: every interface). Returns the bound port. Raises OSError when it cannot be had."""
        options = (
            ("grpc.max_receive_message_length", self._limits.max_message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_concurrent_streams", self._limits.max_concurrent_streams),
            ("grpc.so_reuseport", 0),
        )
        server = aio.server(handlers=(_Routes(self._routes, self._running, self._admits),), options=options)
        address = host_port(host or "::", port)
        try:
            if self._credentials is None:
                bound = server.add_insecure_port(address)
            else:
                bound = server.add_secure_port(address, self._credentials)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}: {error}") from error
        await server.start()
        self._server = server
        return bound

    def drain(self) -> None:
        """Accept no more calls; open calls are served."""
        if self._server is not None and self._draining is None:
            self._draining = asyncio.ensure_future(self._server.stop(_FOR_EVER_S))

    async def stop(self, grace_s: float) -> None:
        """Drain, wait up to `grace_s` for open calls, then end those left: their sessions see `closed(False)`."""
        if self._server is None:
            return
        if self._draining is not None:
            # Its lock would make the shorter stop wait for the longer.
            self._draining.cancel()
            await asyncio.wait((self._draining,))
        await self._server.stop(grace_s)
        if self._running:
            await asyncio.wait(tuple(self._running))


_FOR_EVER_S = 30 * 24 * 3600.0
_HALF_CLOSE_SETTLES_S = 0.01
"""gRPC's core ends the messages of a cancelled call just as it does after a half-close, and reports the cancellation by
cancelling the task that serves the call a moment later. Only a wait tells the two apart."""


class _Routes(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # the stubs call it generic, the class is not
    def __init__(
        self, routes: Mapping[str, OpenSession], running: set[asyncio.Task[object]], admits: Admits | None
    ) -> None:
        self._routes = routes
        self._running = running
        self._admits = admits

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        open_session = self._routes.get(handler_call_details.method)
        if open_session is None:
            return None

        async def serve(requests: object, context: aio.ServicerContext[bytes, bytes]) -> None:
            task = asyncio.current_task()
            assert task is not None
            if self._admits is not None and not self._admits(_names_of(context)):
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "this client's certificate may not call")
            self._running.add(task)
            try:
                await _Call(context).run(open_session)
            finally:
                self._running.discard(task)

        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.stream_stream_rpc_method_handler(serve)
        return handler


def _names_of(context: aio.ServicerContext[bytes, bytes]) -> frozenset[str]:
    shown = context.auth_context().get("x509_subject_alternative_name", ())
    return frozenset(name.decode() for name in shown)


class _Call:
    """One call: the `Stream` its session holds, with a reader task; what is sent waits in a queue for the writer."""

    def __init__(self, context: aio.ServicerContext[bytes, bytes]) -> None:
        self._context = context
        self._outgoing: deque[bytes] = deque()
        self._wake = asyncio.Event()
        self._over = False
        self._status = (0, "")
        self._told = False

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """Without `:authority`: gRPC's core does not tell it."""
        told = self._context.invocation_metadata() or ()
        return {name.encode(): value if isinstance(value, bytes) else value.encode() for name, value in told}

    def send(self, message: bytes) -> None:
        if not self._over:
            self._outgoing.append(message)
            self._wake.set()

    def close(self, status: int = 0, message: str = "") -> None:
        if not self._over:
            self._over = True
            self._status = (status, message)
            self._wake.set()

    async def run(self, open_session: OpenSession) -> None:
        """Serve until the session closes. Cancelled when the peer or a deadline ends the call: the session is told then."""
        session = open_session(self)
        reader = asyncio.ensure_future(self._read(session))
        closed = False
        try:
            await self._write(reader)
            closed = True
        finally:
            self._over = True
            reader.cancel()
            await asyncio.wait((reader,))
            if not self._told:
                session.closed(False)
            elif not closed and isinstance(session, Abandonable):
                session.abandoned()
        status, message = self._status
        self._context.set_code(_CODES[status])
        self._context.set_details(message)

    async def _read(self, session: Session) -> None:
        while not self._over:
            try:
                message: object = await self._context.read()
            except aio.BaseError:
                # The server stops, or the call is over and nobody has told us yet.
                self.close(grpc.StatusCode.UNAVAILABLE.value[0], "the server is stopping")
                return
            if self._over:
                return
            if not isinstance(message, bytes):
                await asyncio.sleep(_HALF_CLOSE_SETTLES_S)
                self._told = True
                session.closed(True)
                return
            session.received(message)

    async def _write(self, reader: asyncio.Task[None]) -> None:
        reader.add_done_callback(lambda _: self._wake.set())
        while True:
            while self._outgoing:
                await self._context.write(self._outgoing.popleft())
            if self._over:
                return
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                _log.error("session failed; its call ends with INTERNAL", exc_info=reader.exception())
                self.close(grpc.StatusCode.INTERNAL.value[0], "internal error")
                return
            self._wake.clear()
            await self._wake.wait()
