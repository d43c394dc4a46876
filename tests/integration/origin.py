"""A model server reduced to what a proxy can get wrong: it keeps every byte it was sent and answers as told.

HTTP/1.1 over plain sockets in a thread of its own, so that chunks, trailers and sudden deaths are under the test's
control. The request's own header `x-answer` says how to answer:

- `json` (default): one JSON object; `sse:N`: N events, then `[DONE]`; `trailers`: chunked JSON with trailers
- `die:N`: N events, then the connection is reset; `slow:N`: N events 50 ms apart; `status:C`: an error of status C
- `turn`: nothing until `turn`, which lets one go on, then JSON
- `late`: nothing until `release`, then JSON; `hold:N`: one event, then nothing until `release`, then N events and the end
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import struct
import threading
from types import TracebackType

import msgspec


class Received(msgspec.Struct):
    """One request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    trailers: dict[str, str]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()


METRICS = b"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{model_name="base"} 0.0
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{model_name="base"} 0.0
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{model_name="base"} 0.0
"""


class Origin:
    """Listens on `host`, of the loopback network, from construction to `close`; on a free port unless told which."""

    def __init__(self, name: str, host: str = "127.0.0.1", port: int = 0) -> None:
        self.name = name
        self.host = host
        self.received: list[Received] = []
        self.aborted = threading.Event()
        """Set when a peer went away before its answer was written."""
        self.reports = True
        """False: its metrics page fails."""
        self.scrapes = 0
        self.waits_for_turn = 0
        self._busy: set[asyncio.StreamWriter] = set()
        self._gate = asyncio.Event()
        self._turns = asyncio.Semaphore(0)
        self._loop = asyncio.new_event_loop()
        listener = socket.create_server((host, port))
        self.port: int = listener.getsockname()[1]
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, sock=listener, limit=1 << 20))
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __enter__(self) -> Origin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def last(self) -> Received:
        return self.received[-1]

    def release(self) -> None:
        """Let every answer that is held go on."""
        self._loop.call_soon_threadsafe(self._gate.set)

    def turn(self) -> None:
        """Let one answer go on that waits for its turn, or the next that will."""
        self._loop.call_soon_threadsafe(self._turns.release)

    def hold(self) -> None:
        """Hold answers again, those to come."""
        self._loop.call_soon_threadsafe(self._gate.clear)

    def close(self) -> None:
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5)
            self._loop.close()

    async def _shut(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            while (request := await _read_request(reader)) is not None:
                if request.path == "/metrics":
                    self.scrapes += 1
                    await _send(writer, 200 if self.reports else 500, "text/plain", METRICS)
                elif request.path == "/health":
                    await _send(writer, 200, "text/plain", b"")
                else:
                    self.received.append(request)
                    self._busy.add(writer)
                    await self._answer(request, reader, writer)
                    self._busy.discard(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            self.aborted.set()
        finally:
            self._writers.discard(writer)
            self._busy.discard(writer)
            writer.close()

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        how, _, argument = request.headers.get("x-answer", "json").partition(":")
        if how == "json":
            await _send(writer, 200, "application/json", self._json(request), {"x-server": self.name})
        elif how == "turn":
            self.waits_for_turn += 1
            await self._turns.acquire()
            self.waits_for_turn -= 1
            await _send(writer, 200, "application/json", self._json(request), {"x-server": self.name})
        elif how == "late":
            await self._released(reader)
            await _send(writer, 200, "application/json", self._json(request), {"x-server": self.name})
        elif how == "hold":
            await self._held(reader, writer, _events(request, int(argument) + 1))
        elif how == "status":
            await _send(writer, int(argument), "application/json", b'{"error": {"message": "as told"}}')
        elif how == "trailers":
            await self._chunked(writer, [self._json(request)], "application/json", {"x-checksum": "abc"})
        elif how == "sse":
            await self._chunked(writer, _events(request, int(argument)), "text/event-stream", {})
        elif how == "slow":
            await self._chunked(writer, _events(request, int(argument)), "text/event-stream", {}, pause_s=0.05)
        elif how == "die":
            await self._chunked(writer, _events(request, int(argument)), "text/event-stream", None)
            await asyncio.sleep(0.1)  # An abort throws away what is not sent yet.
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            raise ConnectionResetError("as told")

    async def _released(self, reader: asyncio.StreamReader) -> None:
        """Raises ConnectionError when the peer goes first; it sends nothing meanwhile."""
        released, gone = asyncio.ensure_future(self._gate.wait()), asyncio.ensure_future(reader.read(1))
        await asyncio.wait((released, gone), return_when=asyncio.FIRST_COMPLETED)
        for one in (released, gone):
            one.cancel()
        await asyncio.wait((released, gone))
        if not gone.cancelled():
            raise ConnectionResetError("the peer went away")

    async def _held(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
        head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-server: {self.name}\r\n"
        writer.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        for number, piece in enumerate(pieces):
            if number == 1:
                await self._released(reader)
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    def _json(self, request: Received) -> bytes:
        usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        answer = {"id": "1", "model": _model(request), "server": self.name, "sha256": request.sha256, "usage": usage}
        return json.dumps(answer).encode()

    async def _chunked(
        self,
        writer: asyncio.StreamWriter,
        pieces: list[bytes],
        content_type: str,
        trailers: dict[str, str] | None,
        pause_s: float = 0.0,
    ) -> None:
        """Trailers None: the end is never written."""
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\nx-server: {self.name}\r\n"
        if trailers:
            head += f"trailer: {', '.join(trailers)}\r\n"
        writer.write(head.encode() + b"transfer-encoding: chunked\r\n\r\n")
        for piece in pieces:
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            await asyncio.sleep(pause_s)
        if trailers is not None:
            writer.write(b"0\r\n" + "".join(f"{k}: {v}\r\n" for k, v in trailers.items()).encode() + b"\r\n")
            await writer.drain()


def _model(request: Received) -> str | None:
    try:
        decoded = json.loads(request.body)
    except ValueError:
        return None
    return decoded.get("model") if isinstance(decoded, dict) else None


def _events(request: Received, count: int) -> list[bytes]:
    model = _model(request)
    chunk = {"id": "1", "model": model, "choices": [{"delta": {"content": "token "}}]}
    events = [f"data: {json.dumps(chunk)}\n\n".encode()] * count
    usage = {"prompt_tokens": 11, "completion_tokens": count, "total_tokens": 11 + count}
    last = f"data: {json.dumps({'model': model, 'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"
    return [*events, last.encode()]


async def _send(
    writer: asyncio.StreamWriter, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None
) -> None:
    extra = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    head = f"HTTP/1.1 {status} x\r\ncontent-type: {content_type}\r\n{extra}content-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


async def _read_request(reader: asyncio.StreamReader) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = _fields(lines)
    body: bytes = b""
    trailers: dict[str, str] = {}
    if headers.get("transfer-encoding") == "chunked":
        body, trailers = await _read_chunked(reader)
    elif "content-length" in headers:
        body = await reader.readexactly(int(headers["content-length"]))
    return Received(method, path, headers, body, trailers)


async def _read_chunked(reader: asyncio.StreamReader) -> tuple[bytes, dict[str, str]]:
    pieces: list[bytes] = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        pieces.append(await reader.readexactly(size))
        await reader.readexactly(2)
    lines: list[str] = []
    while (line := (await reader.readline()).decode("latin-1").strip()) != "":
        lines.append(line)
    return b"".join(pieces), _fields(lines)


def _fields(lines: list[str]) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in lines)
    return {name.strip().lower(): value.strip() for name, value in pairs}
