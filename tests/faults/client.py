"""A client that can stop at any point of a request, and tells exactly what became of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping

import msgspec


class Outcome(msgspec.Struct, frozen=True):
    """What a client saw. `status` is 0 where no answer began; `whole` that the answer came to its proper end."""

    status: int
    whole: bool
    seconds: float
    server: str = ""
    body: bytes = b""

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.whole


class Client:
    """One request on a connection of its own, through the proxy on `port`.

    With `pauses` half of the body is sent, and the rest once `go_on` is called. `sent` and `begun` are set when what can be
    sent is sent, and when the answer's first byte of body has come.
    """

    def __init__(
        self,
        port: int,
        *,
        how: str = "json",
        prompt: str = "Say hello.",
        stream: bool = False,
        pauses: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._port = port
        self._body = json.dumps(
            {"model": "base", "stream": stream, "messages": [{"role": "user", "content": prompt}]}
        ).encode()
        fields = {
            "host": "x",
            "content-type": "application/json",
            "content-length": str(len(self._body)),
            "x-answer": how,
            **(headers or {}),
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._head = f"POST /v1/chat/completions HTTP/1.1\r\n{lines}\r\n".encode()
        self._pauses = pauses
        self._going = asyncio.Event()
        self.sent = asyncio.Event()
        self.begun = asyncio.Event()

    def go_on(self) -> None:
        self._going.set()

    async def run(self, patience_s: float = 30.0) -> Outcome:
        """The whole exchange. An answer that is not there within `patience_s` of the last byte sent has status 0."""
        began_s = time.monotonic()
        self._seen = Outcome(0, False, 0.0)
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return Outcome(0, False, time.monotonic() - began_s)
        try:
            sending = asyncio.ensure_future(self._send(writer))
            try:
                await self._receive(reader, patience_s)
            finally:
                sending.cancel()
                await asyncio.wait((sending,))
        except (OSError, EOFError, TimeoutError, ValueError):
            # Cut off, or given up: what came until then is the outcome.
            pass
        finally:
            writer.close()
        return msgspec.structs.replace(self._seen, seconds=time.monotonic() - began_s)

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        if self._pauses:
            half = len(self._body) // 2
            writer.write(self._head + self._body[:half])
            self.sent.set()
            await self._going.wait()
            writer.write(self._body[half:])
        else:
            writer.write(self._head + self._body)
            self.sent.set()
            self._going.set()
        await writer.drain()

    async def _receive(self, reader: asyncio.StreamReader, patience_s: float) -> None:
        answered = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
        going = asyncio.ensure_future(self._going.wait())
        try:
            await asyncio.wait((answered, going), return_when=asyncio.FIRST_COMPLETED)
            async with asyncio.timeout(patience_s):
                head = await answered
                await self._read_answer(head.decode("latin-1"), reader)
        finally:
            going.cancel()
            answered.cancel()

    async def _read_answer(self, head: str, reader: asyncio.StreamReader) -> None:
        first, *lines = head.split("\r\n")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
        status, server = int(first.split(" ")[1]), fields.get("x-server", "")
        body = bytearray()
        self._seen = Outcome(status, False, 0.0, server)
        if "content-length" in fields:
            body += await reader.readexactly(int(fields["content-length"]))
            self.begun.set()
        else:
            while piece := await _chunk(reader):
                body += piece
                self.begun.set()
                self._seen = Outcome(status, False, 0.0, server, bytes(body))
        self._seen = Outcome(status, True, 0.0, server, bytes(body))


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    size = int((await reader.readuntil(b"\r\n")).split(b";")[0], 16)
    piece = await reader.readexactly(size)
    await reader.readexactly(2)
    return piece
