"""What every transport does for its sessions, seen by gRPC's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc import aio

from epp.extproc.http2 import Limits
from epp.extproc.transport import OpenSession
from tests.contract.transports import TRANSPORTS, Echo, Server, Silent, Spiteful, Talk, make, serving, until
from tests.waiting import PATIENCE_S

ECHO = "/test.Echo/Process"
SILENT = "/test.Echo/Silent"
SPITEFUL = "/test.Echo/Spiteful"

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)


class Setup:
    def __init__(self, server: Server, channel: aio.Channel, closings: list[bool], address: str) -> None:
        self.server = server
        self.channel = channel
        self.closings = closings
        self.address = address

    def call(self, method: str = ECHO, **options: object) -> Talk:
        return Talk(self.channel, method, **options)


@pytest.fixture
async def setup(transport: str) -> AsyncIterator[Setup]:
    closings: list[bool] = []
    routes: dict[str, OpenSession] = {
        ECHO: lambda stream: Echo(stream, closings),
        SILENT: lambda stream: Silent(closings),
    }
    routes[SPITEFUL] = lambda stream: Spiteful(closings)
    server = make(transport, routes, Limits(max_message_bytes=8 << 20))
    async with serving(server) as address:
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        async with aio.insecure_channel(address, options=options) as channel:
            yield Setup(server, channel, closings, address)


async def test_messages_come_back_in_order_and_a_half_close_ends_with_ok(setup: Setup) -> None:
    call = setup.call()
    for number in range(5):
        await call.write(b"%d" % number)
        assert await call.read() == b"%d" % number
    await call.half_close()
    assert await call.read() is None
    assert await call.code() is grpc.StatusCode.OK
    assert setup.closings == [True]


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_536, 1_000_000, 5_000_000])
async def test_messages_of_any_size_arrive_whole(setup: Setup, size: int) -> None:
    message = bytes(range(256)) * (size // 256 + 1)
    call = setup.call()
    await call.write(message[:size])
    await call.write(b"next")
    assert await call.read() == message[:size]
    assert await call.read() == b"next"
    await call.half_close()
    assert await call.code() is grpc.StatusCode.OK


async def test_two_hundred_streams_at_once_keep_apart(setup: Setup) -> None:
    async def talk(number: int) -> None:
        call = setup.call()
        for turn in range(4):
            await call.write(b"%d/%d" % (number, turn))
        await call.half_close()
        assert await call.read_all() == [b"%d/%d" % (number, turn) for turn in range(4)]

    await asyncio.gather(*(talk(number) for number in range(200)))
    assert setup.closings == [True] * 200


async def test_a_message_over_the_limit_is_refused_with_resource_exhausted(setup: Setup) -> None:
    call = setup.call()
    await call.write(bytes(9 << 20))
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await until([False], setup.closings)


async def test_gzip_messages_arrive_plain(setup: Setup) -> None:
    call = setup.call(compression=grpc.Compression.Gzip)
    await call.write(b"again and " * 1000)
    assert await call.read() == b"again and " * 1000
    await call.half_close()
    assert await call.code() is grpc.StatusCode.OK


async def test_an_unknown_method_is_unimplemented(setup: Setup) -> None:
    call = setup.call("/test.Echo/Nothing")
    assert await call.code() is grpc.StatusCode.UNIMPLEMENTED
    assert setup.closings == []


async def test_a_session_may_end_the_call_itself(setup: Setup) -> None:
    call = setup.call()
    await call.write(b"close")
    assert await call.read() == b"bye"
    assert await call.read() is None
    assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await call.details() == "enough: 100 % ü\n"
    await until([False], setup.closings)


async def test_a_session_that_raises_ends_its_own_call_only(setup: Setup) -> None:
    other = setup.call()
    await other.write(b"before")
    assert await other.read() == b"before"
    call = setup.call()
    await call.write(b"raise")
    assert await call.code() is grpc.StatusCode.INTERNAL
    await until([False], setup.closings)
    await other.write(b"after")
    assert await other.read() == b"after"
    await other.half_close()
    assert await other.code() is grpc.StatusCode.OK
    assert setup.closings == [False, True]


async def test_a_session_that_raises_when_told_of_the_end_is_told_once(setup: Setup) -> None:
    call = setup.call(SPITEFUL)
    await call.write(b"hello")
    await call.half_close()
    assert await call.code() is grpc.StatusCode.INTERNAL
    assert setup.closings == [True]


async def test_a_cancelled_call_tells_the_session_once(setup: Setup) -> None:
    call = setup.call()
    await call.write(b"hello")
    assert await call.read() == b"hello"
    call.cancel()
    await until([False], setup.closings)
    await asyncio.sleep(0.05)
    assert setup.closings == [False]


async def test_a_deadline_ends_the_call_and_tells_the_session_once(setup: Setup) -> None:
    call = setup.call(timeout=1.0)
    await call.write(b"hello")
    assert await call.read() == b"hello"
    assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until([False], setup.closings)
    await asyncio.sleep(0.05)
    assert setup.closings == [False]


async def test_a_lost_connection_tells_every_session_once(setup: Setup) -> None:
    async with aio.insecure_channel(setup.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
        calls = [Talk(channel, SILENT) for _ in range(3)]
        for call in calls:
            await call.write(b"hello")
        await channel.close(None)
    await until([False] * 3, setup.closings)


async def test_drain_lets_open_calls_finish(setup: Setup) -> None:
    call = setup.call()
    await call.write(b"one")
    assert await call.read() == b"one"
    setup.server.drain()
    stopped = asyncio.ensure_future(setup.server.stop(PATIENCE_S))
    await asyncio.sleep(0.05)
    await call.write(b"two")
    assert await call.read() == b"two"
    await call.half_close()
    assert await call.code() is grpc.StatusCode.OK
    await stopped
    assert setup.closings == [True]


async def test_stop_ends_calls_that_outlast_the_grace(setup: Setup) -> None:
    call = setup.call()
    await call.write(b"hello")
    assert await call.read() == b"hello"
    await setup.server.stop(0.05)
    assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    assert setup.closings == [False]


async def test_a_drained_server_takes_no_new_calls(setup: Setup) -> None:
    call = setup.call()
    await call.write(b"one")
    assert await call.read() == b"one"
    setup.server.drain()
    await asyncio.sleep(0.05)
    late = setup.call(wait_for_ready=False)
    assert await late.code() is grpc.StatusCode.UNAVAILABLE
    call.cancel()
