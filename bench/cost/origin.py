"""Model servers that cost next to nothing: many loopback addresses, one process, constant answers.

    python -m bench.cost.origin PORT COUNT PAGE

Listens on COUNT loopback addresses (127.0.0.1, 127.0.0.2, …, 127.0.1.1, …) at PORT. `/metrics` is the file PAGE; a path that
ends in `?events=N` is answered by N server-sent events, one write each 2 ms, with `&turns=M` in the time of M; anything else by
one short JSON.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import cast

import uvloop

JSON = b'{"id":"1","model":"base","choices":[{"message":{"content":"ok"}}],"usage":{"prompt_tokens":600,"completion_tokens":1}}'
EVENT = b'data: {"id":"1","model":"base","choices":[{"delta":{"content":"token "}}]}\n\n'


def address(number: int) -> str:
    """The loopback address of server `number`, from 0."""
    return f"127.0.{number // 250}.{number % 250 + 1}"


def _whole(content_type: bytes, body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n%s" % (content_type, len(body), body)


ANSWER = _whole(b"application/json", JSON)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TURN_S = 0.002
CHUNK = b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


class Server(asyncio.Protocol):
    def __init__(self, page: bytes) -> None:
        self._page = _whole(b"text/plain", page)
        self._received = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: uvloop's transports are not asyncio's by inheritance.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        # Envoy sends on one connection one request at a time, so what is here ends with it.
        if b"transfer-encoding: chunked" in head:
            whole = self._received.endswith(b"\r\n0\r\n\r\n")
        else:
            whole = len(self._received) >= end + 4 + _content_length(head)
        if whole:
            self._received.clear()
            self._answer(head.split(b" ", 2)[1])

    def _answer(self, path: bytes) -> None:
        if path == b"/metrics":
            self._transport.write(self._page)
        elif b"?events=" in path:
            self._transport.write(STREAM_HEAD)
            asked = dict(part.split(b"=") for part in path.partition(b"?")[2].split(b"&"))
            events = int(asked[b"events"])
            self._stream(events, int(asked.get(b"turns", events)))
        else:
            self._transport.write(ANSWER)

    def _stream(self, events: int, turns: int) -> None:
        """One event a turn of the loop, so that each arrives as a chunk of its own; then as many turns without."""
        if self._transport.is_closing():
            return
        if not turns:
            self._transport.write(b"0\r\n\r\n")
            return
        if events:
            self._transport.write(CHUNK)
        asyncio.get_running_loop().call_later(TURN_S, self._stream, max(0, events - 1), turns - 1)


def _content_length(head: bytes) -> int:
    at = head.find(b"content-length:")
    return int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0


async def serve(port: int, count: int, page: bytes) -> None:
    loop = asyncio.get_running_loop()
    hosts = [address(number) for number in range(count)]
    server = await loop.create_server(lambda: Server(page), hosts, port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]).read_bytes()))
