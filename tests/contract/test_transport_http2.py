"""What our own server does beyond the common contract: peers that do not read, do not greet, or come too often."""

from __future__ import annotations

import asyncio
import socket
import struct

import hpack
import pytest

from epp.extproc import server as server_module
from epp.extproc.frames import PREFACE
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession, Stream
from tests.contract.transports import Echo, Silent, serving, until
from tests.waiting import PATIENCE_S, eventually

ECHO = "/test.Echo/Process"
FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", ECHO),
    (":authority", "epp"),
    ("content-type", "application/grpc"),
]
HUGE = (1 << 31) - 1


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload


def greeting(fields: list[tuple[str, str]] = FIELDS) -> bytes:
    """Preface, the largest windows, and a first call on stream 1."""
    settings = frame(4, 0, 0, struct.pack(">HL", 4, HUGE))
    window = frame(8, 0, 0, struct.pack(">L", HUGE - 65_535))
    return PREFACE + settings + window + frame(4, 1, 0) + frame(1, 4, 1, hpack.Encoder().encode(fields))


def echo_routes(closings: list[bool]) -> dict[str, OpenSession]:
    return {ECHO: lambda stream: Echo(stream, closings)}


async def test_a_client_that_does_not_read_is_not_read_either() -> None:
    closings: list[bool] = []
    server = Http2Server(echo_routes(closings))
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"), limit=1 << 16)
        writer.write(greeting())
        message = struct.pack(">BL", 0, 16_000) + bytes(16_000)
        for _ in range(2_000):
            writer.write(frame(0, 0, 1, message))
        await eventually(lambda: server.statistics().waiting_bytes > 0)
        await asyncio.sleep(0.2)
        assert 0 < server.statistics().waiting_bytes < 2 << 20
        writer.write(frame(0, 1, 1))
        echoed = await read_data(reader)
        assert echoed == 2_000 * len(message)
        assert server.statistics().waiting_bytes == 0
        writer.close()
    assert closings == [True]


async def read_data(reader: asyncio.StreamReader) -> int:
    """Read frames up to the end of stream 1; returns how many bytes of DATA came."""
    total = 0
    async with asyncio.timeout(PATIENCE_S):
        while True:
            head, flags, stream_id = struct.unpack(">LBL", await reader.readexactly(9))
            await reader.readexactly(head >> 8)
            if head & 0xFF == 0:
                total += head >> 8
            if stream_id == 1 and flags & 1:
                return total


async def test_a_client_that_never_greets_is_shown_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GREETING_TIMEOUT_S", 0.05)
    async with serving(Http2Server({})) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()


async def test_a_client_that_errs_can_read_why_although_it_sends_on() -> None:
    """A socket closed with bytes unread is reset, and a reset throws away what the client has not read."""
    closings: list[bool] = []
    loop = asyncio.get_running_loop()
    server = Http2Server(echo_routes(closings))
    async with serving(server) as address:
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as client:
            client.setblocking(False)
            await loop.sock_sendall(client, greeting() + frame(0, 0, 99, b"idle") + bytes(4 << 20))
            await until([False], closings)
            output = b""
            while data := await asyncio.wait_for(loop.sock_recv(client, 1 << 16), PATIENCE_S):
                output += data
        assert b"DATA on an idle stream" in output
        await eventually(lambda: server.statistics().connections == 0)


async def test_a_reset_after_the_half_close_tells_a_session_that_asks() -> None:
    told: list[str] = []

    class Patient:
        def received(self, message: bytes) -> None:
            pass

        def closed(self, clean: bool) -> None:
            told.append(f"closed {clean}")

        def abandoned(self) -> None:
            told.append("abandoned")

    async with serving(Http2Server({ECHO: lambda stream: Patient()})) as address:
        _reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(greeting() + frame(0, 1, 1) + frame(3, 0, 1, bytes(4)))
        await eventually(lambda: told == ["closed True", "abandoned"])
        writer.close()


class Quick:
    """Closes at the first message, and records what it is told."""

    def __init__(self, stream: Stream, told: list[str]) -> None:
        self._stream = stream
        self._told = told

    def received(self, message: bytes) -> None:
        self._told.append(message.decode())
        self._stream.close()

    def closed(self, clean: bool) -> None:
        self._told.append(f"closed {clean}")

    def abandoned(self) -> None:
        self._told.append("abandoned")


@pytest.mark.parametrize(("flags", "clean"), [(0, False), (1, True)])
async def test_a_session_that_closed_hears_of_the_end_and_nothing_else(flags: int, clean: bool) -> None:
    told: list[str] = []
    async with serving(Http2Server({ECHO: lambda stream: Quick(stream, told)})) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(greeting() + frame(0, flags, 1, b"\0\0\0\0\x05first\0\0\0\0\x06second"))
        await read_data(reader)
        writer.close()
    assert told == ["first", f"closed {clean}"]


async def test_a_deadline_is_kept_by_the_server_alone() -> None:
    closings: list[bool] = []
    server = Http2Server({ECHO: lambda stream: Silent(closings)})
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(greeting([*FIELDS, ("grpc-timeout", "20m")]))
        assert b"grpc-status\x014" in await asyncio.wait_for(reader.readuntil(b"exceeded"), PATIENCE_S)
        assert closings == [False]
        assert server.statistics().streams == 0
        writer.close()


async def test_a_session_that_sends_by_itself_to_a_client_that_does_not_read_is_cut_off() -> None:
    closings: list[bool] = []
    loop = asyncio.get_running_loop()

    class Flood(Silent):
        def __init__(self, stream: Stream) -> None:
            super().__init__(closings)
            self._send(stream, 4_000)

        def _send(self, stream: Stream, left: int) -> None:
            stream.send(bytes(16_000))
            if left:
                loop.call_soon(self._send, stream, left - 1)

    server = Http2Server({ECHO: Flood}, Limits(max_queued_bytes=1 << 20))
    async with serving(server) as address:
        _reader, writer = await asyncio.open_connection(*address.split(":"), limit=1 << 16)
        writer.write(greeting())
        await until([False], closings)
        assert server.statistics().waiting_bytes < 4 << 20
        writer.transport.abort()


async def test_an_idle_connection_leaves_when_drained() -> None:
    server = Http2Server({})
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(PREFACE + frame(4, 0, 0) + frame(4, 1, 0))
        await eventually(lambda: server.statistics().connections == 1)
        await asyncio.sleep(0.02)
        server.drain()
        await asyncio.sleep(0.02)
        writer.write(frame(6, 1, 0, b"epp.bye!"))
        await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()
        await eventually(lambda: server.statistics().connections == 0)


async def test_statistics_count_what_is_open() -> None:
    closings: list[bool] = []
    server = Http2Server({ECHO: lambda stream: Silent(closings)}, Limits())
    async with serving(server) as address:
        _reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(greeting())
        await eventually(lambda: server.statistics().streams == 1)
        assert (server.statistics().connections, server.statistics().calls) == (1, 1)
        writer.write(frame(3, 0, 1, bytes(4)))
        await until([False], closings)
        assert server.statistics().streams == 0
        writer.close()


async def test_a_port_in_use_is_an_os_error() -> None:
    first = Http2Server({})
    async with serving(first) as address:
        with pytest.raises(OSError, match="ddress already in use"):
            await Http2Server({}).start("127.0.0.1", int(address.rpartition(":")[2]))
