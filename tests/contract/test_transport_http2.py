"""What our own server does beyond the common contract: peers that do not read, do not greet, or come too often."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

import hpack
import pytest

from epp.extproc import server as server_module
from epp.extproc.http2 import PREFACE, Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession
from tests.contract.transports import Echo, Silent, serving, until

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


def greeting() -> bytes:
    """Preface, the largest windows, and a first call on stream 1."""
    settings = frame(4, 0, 0, struct.pack(">HL", 4, HUGE))
    window = frame(8, 0, 0, struct.pack(">L", HUGE - 65_535))
    return PREFACE + settings + window + frame(4, 1, 0) + frame(1, 4, 1, hpack.Encoder().encode(FIELDS))


def echo_routes(closings: list[bool]) -> dict[str, OpenSession]:
    return {ECHO: lambda stream: Echo(stream, closings)}


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


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
    async with asyncio.timeout(20):
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
        await asyncio.wait_for(reader.read(), 5)
        writer.close()


async def test_a_client_that_errs_reads_why_before_the_connection_ends() -> None:
    closings: list[bool] = []
    server = Http2Server(echo_routes(closings))
    async with serving(server) as address:
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(greeting() + frame(0, 0, 99, b"idle") + bytes(100_000))
        output = await asyncio.wait_for(reader.read(), 5)
        assert b"DATA on an idle stream" in output
        writer.close()
        await eventually(lambda: server.statistics().connections == 0)
    assert closings == [False]


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
        await asyncio.wait_for(reader.read(), 5)
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
        with pytest.raises(OSError, match="address already in use"):
            await Http2Server({}).start("127.0.0.1", int(address.rpartition(":")[2]))
