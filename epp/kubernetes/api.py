"""Talking to the API server: HTTP/1.1 over one connection for who asks one thing after the other. The asyncio shell of h11."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, TypeVar
from urllib.parse import urlencode

import h11
import msgspec

from epp.kubernetes.access import Access, AccessError
from epp.kubernetes.reflector import Refusal

log = logging.getLogger("epp.kubernetes")

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
MAX_AGE_S = 300.0
"""A connection is not asked anything more after so long: the token that it was made with may end (kubelets change theirs within the
hour), and the server's address may stand for others by then."""
MAX_LINE_BYTES = 8 << 20
"""Of one event. etcd holds 1.5 MB an object."""
MAX_ANSWER_BYTES = 64 << 20
READ_BYTES = 64 << 10

_KEEPALIVE = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""A peer that is gone without a word is noticed within 30 s, where a watch may be silent for minutes."""


_T = TypeVar("_T")


class Credentials(Protocol):
    """Where the API server is and who we are; `str()` tells where that is from."""

    async def read(self) -> Access: ...


class Unanswered(Exception):
    """No whole answer came: no connection, a lost one, none in time, or bytes that are no HTTP."""


class _Status(msgspec.Struct, frozen=True):
    message: str = ""


class Reach:
    """Whether the API server answers, as all who ask it see it; a change is said once. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lost_s: float | None = None

    @property
    def lost(self) -> bool:
        return self._lost_s is not None

    @property
    def lost_for_s(self) -> float:
        """For how long there was no answer; 0 where there was one last."""
        return self._clock() - self._lost_s if self._lost_s is not None else 0.0

    def answered(self) -> None:
        if self._lost_s is not None:
            log.info("the Kubernetes API server answers again, after %.0f s", self._clock() - self._lost_s)
            self._lost_s = None

    def unanswered(self, error: Unanswered) -> None:
        if self._lost_s is None:
            self._lost_s = self._clock()
            log.error(
                "the Kubernetes API server does not answer: %s; what is known of the cluster stays in force", error
            )


class Api:
    """One API server, asked over a connection for each who asks. `clock` is the loop's, in seconds."""

    def __init__(self, credentials: Credentials, clock: Callable[[], float]) -> None:
        self.credentials = credentials
        self.clock = clock
        self.reach = Reach(clock)

    def connection(self) -> Connection:
        """Connects when it is asked something. To be closed by the caller."""
        return Connection(self.credentials, self.reach)


class Connection:
    """Asks one thing at a time; after anything went wrong, it connects anew for the next. Cancelling a question closes it."""

    def __init__(self, credentials: Credentials, reach: Reach) -> None:
        self._credentials = credentials
        self._reach = reach
        self._access: Access | None = None
        self._http = h11.Connection(h11.CLIENT)
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._unread = bytearray()
        self._connected_s = 0.0

    def close(self) -> None:
        """Without a farewell, which over TLS would have to be waited for. May be called at any time."""
        if self._writer is not None:
            self._writer.transport.abort()
        self._reader = self._writer = None

    async def ask(
        self,
        path: str,
        parameters: Mapping[str, str] | None = None,
        *,
        method: str = "GET",
        body: object = None,
        content_type: str = "application/json",
    ) -> bytes:
        """The answer's body. Raises Refusal for a status other than 2xx, and Unanswered."""
        await self._begin(method, path, parameters, body, content_type)
        return await self._guarded(self._whole(path), ANSWER_TIMEOUT_S)

    async def watch(self, path: str, parameters: Mapping[str, str]) -> None:
        """Begin an answer that comes line by line, to be taken by `lines`. Raises Refusal and Unanswered."""
        await self._begin("GET", path, parameters)
        self._unread.clear()

    async def lines(self, timeout_s: float) -> list[bytes] | None:
        """The next lines, those together that came together; None at the end. Raises Unanswered, also where none come in time."""
        return await self._guarded(self._next_lines(), timeout_s)

    # --- one exchange --------------------------------------------------------------------------------------------------

    async def _begin(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None,
        body: object = None,
        content_type: str = "application/json",
    ) -> None:
        try:
            question = self._put(method, path, parameters, body, content_type)
            status, retry_after_s = await self._guarded(question, ANSWER_TIMEOUT_S)
        except Unanswered as error:
            self._reach.unanswered(error)
            raise
        self._reach.answered()
        if not 200 <= status < 300:
            complaint = await self._guarded(self._whole(path), ANSWER_TIMEOUT_S)
            raise Refusal(status, _message(complaint) or f"no reason given for {path}", retry_after_s)

    async def _guarded(self, awaited: Awaitable[_T], timeout_s: float) -> _T:
        """What `awaited` gives. Closes the connection where it fails or is cancelled. Raises Unanswered."""
        whole = False
        try:
            async with asyncio.timeout(timeout_s):
                result = await awaited
            whole = True
            return result
        except TimeoutError:
            raise Unanswered(f"nothing came for {timeout_s:g} s") from None
        except (OSError, h11.ProtocolError, AccessError) as error:
            raise Unanswered(str(error) or repr(error)) from None
        finally:
            if not whole:
                self.close()

    async def _put(
        self, method: str, path: str, parameters: Mapping[str, str] | None, body: object, content_type: str
    ) -> tuple[int, float]:
        """Send the question. Returns the answer's status, and for how many seconds it asks not to be asked again."""
        if self._writer is None or self._access is None or self._aged():
            await self._connect()
        assert self._access is not None and self._writer is not None
        payload = b"" if body is None else msgspec.json.encode(body)
        target = self._access.base + path + (f"?{urlencode(parameters)}" if parameters else "")
        headers = [("host", self._access.address), ("accept", "application/json"), ("user-agent", "epp")]
        if self._access.authorization:
            headers.append(("authorization", self._access.authorization))
        if payload:
            headers += [("content-type", content_type), ("content-length", str(len(payload)))]
        sent = [self._http.send(h11.Request(method=method, target=target, headers=headers))]
        if payload:
            sent.append(self._http.send(h11.Data(data=payload)))
        sent.append(self._http.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in sent if part))
        event = await self._event()
        while isinstance(event, h11.InformationalResponse):
            event = await self._event()
        if not isinstance(event, h11.Response):
            raise ConnectionError("the connection was closed without an answer")
        asked = dict(event.headers).get(b"retry-after", b"")
        return event.status_code, float(asked) if asked.isdigit() else 0.0

    def _aged(self) -> bool:
        return asyncio.get_running_loop().time() - self._connected_s > MAX_AGE_S

    async def _connect(self) -> None:
        self.close()
        self._access = access = await self._credentials.read()
        self._http = h11.Connection(h11.CLIENT)
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            self._reader, self._writer = await asyncio.open_connection(
                access.host,
                access.port,
                ssl=access.tls,
                server_hostname=access.server_name if access.tls else None,
            )
        self._connected_s = asyncio.get_running_loop().time()
        connected: socket.socket = self._writer.get_extra_info("socket")
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            connected.setsockopt(socket.IPPROTO_TCP, option, value)

    async def _event(self) -> object:
        assert self._reader is not None
        while (event := self._http.next_event()) is h11.NEED_DATA:
            self._http.receive_data(await self._reader.read(READ_BYTES))
        return event

    async def _data(self) -> bytes | None:
        """The next piece of the answer's body; None at its end, from when on the next question may be put."""
        event = await self._event()
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
                self._http.start_next_cycle()
            else:
                self.close()
            return None
        raise ConnectionError("the connection was closed in the middle of an answer")

    async def _whole(self, path: str) -> bytes:
        parts: list[bytes] = []
        size = 0
        while (data := await self._data()) is not None:
            parts.append(data)
            size += len(data)
            if size > MAX_ANSWER_BYTES:
                raise ConnectionError(f"the answer to {path} is larger than {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    async def _next_lines(self) -> list[bytes] | None:
        while (data := await self._data()) is not None:
            scanned = len(self._unread)
            self._unread += data
            end = self._unread.rfind(b"\n", scanned)
            if end >= 0:
                lines = bytes(self._unread[:end]).split(b"\n")
                del self._unread[: end + 1]
                return lines
            if len(self._unread) > MAX_LINE_BYTES:
                raise ConnectionError(f"an event is larger than {MAX_LINE_BYTES} bytes")
        return None


def _message(complaint: bytes) -> str:
    """The reason in an error's body, be it a Status of Kubernetes or a page of some proxy."""
    try:
        return msgspec.json.decode(complaint, type=_Status).message
    except msgspec.DecodeError:
        return complaint[:200].decode(errors="replace").strip()
