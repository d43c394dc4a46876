"""A small HTTP/1.1 server for what people and Prometheus look at: GET and HEAD of a few fixed paths."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from ssl import SSLContext

import msgspec

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
"""At once. Prometheus needs one for each of its replicas; more come from nobody with good reasons."""

IDLE_S = 75.0
"""How long a connection may wait for a request, or a client take to read an answer. Above the usual scrape interval."""

TEXT = "text/plain; charset=utf-8"

OPEN = frozenset(("/healthz", "/readyz"))
"""What kubelets and load balancers probe, without credentials."""

Answer = tuple[int, str, bytes]
"""Status, content type, body."""

Judge = Callable[[str, str], Awaitable[HTTPStatus]]

REFUSALS: Mapping[HTTPStatus, bytes] = {
    HTTPStatus.UNAUTHORIZED: b"a bearer token is needed\n",
    HTTPStatus.FORBIDDEN: b"this token may not read this\n",
    HTTPStatus.SERVICE_UNAVAILABLE: b"whether this token may read this cannot be told now\n",
}

Route = Callable[[], Answer]
Page = Callable[[str], tuple[str, Iterator[bytes]]]


class _Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    headers: Mapping[str, str]
    keep_alive: bool


class _Refused(Exception):
    """Bytes that are no request which this server takes; the connection ends with `status`."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status


class ObservationServer:
    """Serves `/metrics`, `/healthz`, `/readyz` and `routes`. `start` binds, `close` ends every connection.

    `metrics` makes the metrics page for an Accept header as content type and pieces (`Exposition.pieces`); between two
    pieces the loop does other work. `ready` is asked by `/readyz`. A route that raises is answered with 500 and logged.
    `judge`, where given, gets the Authorization header ("" for none) and the path of everything but `/healthz` and `/readyz`,
    and of paths that do not exist: a stranger learns nothing from the difference. It answers OK or a status of `REFUSALS`.
    """

    def __init__(
        self,
        metrics: Page,
        ready: Callable[[], bool],
        routes: Mapping[str, Route] | None = None,
        *,
        judge: Judge | None = None,
        idle_s: float = IDLE_S,
    ) -> None:
        self._metrics = metrics
        self._judge = judge
        self._idle_s = idle_s
        self._routes: dict[str, Route] = {
            "/healthz": lambda: (200, TEXT, b"ok\n"),
            "/readyz": lambda: (200, TEXT, b"ready\n") if ready() else (503, TEXT, b"not ready\n"),
            **(routes or {}),
        }
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, host: str | None, port: int, ssl: SSLContext | None = None) -> int:
        """Listen on `host` (None: every interface) and return the port. Raises OSError where that cannot be."""
        self._server = await asyncio.start_server(self._connected, host, port, limit=MAX_HEAD_BYTES, ssl=ssl)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening and end every connection. Safe to call twice, and before `start`."""
        if self._server is None:
            return
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._server.wait_closed()

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, TimeoutError, asyncio.IncompleteReadError):
            # The client went away, or is as good as gone: nobody is left to tell.
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection can carry another."""
        try:
            async with asyncio.timeout(self._idle_s):
                request = await _receive(reader)
        except _Refused as refused:
            writer.write(_head(refused.status, TEXT, 0, keep_alive=False))
            return False
        status, content_type, body = await self._answer(request)
        writer.write(_head(status, content_type, len(body), keep_alive=request.keep_alive))
        if request.method != "HEAD":
            writer.write(body)
        async with asyncio.timeout(self._idle_s):
            await writer.drain()
        return request.keep_alive

    async def _answer(self, request: _Request) -> Answer:
        if self._judge is not None and request.path not in OPEN:
            verdict = await self._judge(request.headers.get("authorization", ""), request.path)
            if verdict is not HTTPStatus.OK:
                return verdict, TEXT, REFUSALS[verdict]
        is_metrics = request.path == "/metrics"
        route = self._routes.get(request.path)
        if route is None and not is_metrics:
            paths = ", ".join(sorted([*self._routes, "/metrics"]))
            return 404, TEXT, f"not here; there is {paths}\n".encode()
        if request.method not in ("GET", "HEAD"):
            return 405, TEXT, b"only GET and HEAD\n"
        try:
            if route is None:
                return await self._metrics_page(request.headers.get("accept", ""))
            return route()
        except Exception:
            log.exception("no answer for %s", request.path)
            return 500, TEXT, b"internal error, see the log\n"

    async def _metrics_page(self, accept: str) -> Answer:
        content_type, pieces = self._metrics(accept)
        written = []
        for piece in pieces:
            written.append(piece)
            await asyncio.sleep(0)
        return 200, content_type, b"".join(written)


async def _receive(reader: asyncio.StreamReader) -> _Request:
    """Raises _Refused, and IncompleteReadError where the client leaves."""
    try:
        return _parse(await reader.readuntil(b"\r\n\r\n"))
    except asyncio.LimitOverrunError:
        raise _Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE) from None


def _parse(head: bytes) -> _Request:
    """Raises _Refused."""
    line, _, rest = head.decode("latin-1").partition("\r\n")
    match line.split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0" as version] if method and target:
            pass
        case [method, target, version] if method and target and version.startswith("HTTP/"):
            raise _Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
        case _:
            raise _Refused(HTTPStatus.BAD_REQUEST)
    headers = {}
    for field in rest.split("\r\n")[:-2]:
        name, colon, value = field.partition(":")
        if not colon or not name or name != name.strip():
            raise _Refused(HTTPStatus.BAD_REQUEST)
        headers[name.lower()] = value.strip()
    # A body is never read: the connection ends after the answer, and its bytes are no next request.
    has_body = "transfer-encoding" in headers or headers.get("content-length", "0") != "0"
    keep_alive = version == "HTTP/1.1" and not has_body and headers.get("connection", "").lower() != "close"
    return _Request(method, target.partition("?")[0], headers, keep_alive)


_EXTRA: Mapping[int, str] = {
    HTTPStatus.METHOD_NOT_ALLOWED: "allow: GET, HEAD\r\n",
    HTTPStatus.UNAUTHORIZED: 'www-authenticate: Bearer realm="epp"\r\n',
}


def _head(status: int, content_type: str, length: int, *, keep_alive: bool) -> bytes:
    extra = _EXTRA.get(status, "")
    close = "" if keep_alive else "connection: close\r\n"
    return (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ndate: {formatdate(usegmt=True)}\r\n"
        f"content-type: {content_type}\r\ncontent-length: {length}\r\n{extra}{close}\r\n"
    ).encode("latin-1")
