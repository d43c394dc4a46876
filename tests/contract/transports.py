"""Both transports behind one face, with sessions that record what they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import grpc
from grpc import aio

from epp.extproc.grpc_aio import AioServer
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession, Stream
from tests.waiting import eventually


class Server(Protocol):
    async def start(self, host: str, port: int) -> int: ...

    def drain(self) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


TRANSPORTS = ("http2", "grpc.aio")


def make(transport: str, routes: Mapping[str, OpenSession], limits: Limits | None = None) -> Server:
    return Http2Server(routes, limits) if transport == "http2" else AioServer(routes, limits)


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[str]:
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0.0)


class Echo:
    """Sends every message back, ends with OK at the half-close. Commands make it misbehave."""

    def __init__(self, stream: Stream, closings: list[bool]) -> None:
        self._stream = stream
        self._closings = closings

    def received(self, message: bytes) -> None:
        if message == b"raise":
            raise RuntimeError("asked to")
        if message == b"close":
            self._stream.send(b"bye")
            self._stream.close(8, "enough: 100 % ü\n")
            self._stream.send(b"too late")
            return
        self._stream.send(message)

    def closed(self, clean: bool) -> None:
        self._closings.append(clean)
        self._stream.close()


class Silent:
    """Answers nothing, ever."""

    def __init__(self, closings: list[bool]) -> None:
        self._closings = closings

    def received(self, message: bytes) -> None:
        pass

    def closed(self, clean: bool) -> None:
        self._closings.append(clean)


class Spiteful(Silent):
    """Raises when told of the end."""

    def closed(self, clean: bool) -> None:
        super().closed(clean)
        raise RuntimeError("never liked it")


async def until(wanted: list[bool], closings: list[bool]) -> None:
    """Wait for the server to have told its sessions."""
    await eventually(lambda: closings == wanted)


class Talk:
    """One bidirectional call of gRPC's client, in bytes. (The stubs ask for serializers that the library makes optional.)"""

    def __init__(self, channel: aio.Channel, method: str, **options: Any) -> None:
        untyped: Any = channel
        self._call: Any = untyped.stream_stream(method)(**options)

    async def write(self, message: bytes) -> None:
        await self._call.write(message)

    async def read(self) -> bytes | None:
        """The next message, None at the end."""
        try:
            message = await self._call.read()
        except grpc.RpcError:
            return None
        return message if isinstance(message, bytes) else None

    async def read_all(self) -> list[bytes]:
        return [message async for message in self._call]

    async def half_close(self) -> None:
        await self._call.done_writing()

    async def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = await self._call.code()
        return code

    async def details(self) -> str:
        details: str = await self._call.details()
        return details

    def cancel(self) -> None:
        self._call.cancel()
