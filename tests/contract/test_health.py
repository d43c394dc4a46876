"""grpc.health.v1 over both transports, asked by gRPC's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc import aio

from epp.extproc.health import CHECK, LIST, WATCH, Health
from tests.contract.transports import TRANSPORTS, Talk, make, serving
from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

SERVING = b"\x08\x01"
NOT_SERVING = b"\x08\x02"
SERVICE_UNKNOWN = b"\x08\x03"


class Setup:
    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.states: dict[str, bool] = {"": True, "readiness": False}
        self.health = Health(self.states.get, ("", "readiness"))

    async def check(self, request: bytes, method: str = CHECK) -> bytes:
        untyped: Any = self.channel
        answer: bytes = await untyped.unary_unary(method)(request)
        return answer


@pytest.fixture
async def setup(transport: str) -> AsyncIterator[Setup]:
    routes: dict[str, Any] = {}
    async with serving(make(transport, routes)) as address, aio.insecure_channel(address) as channel:
        setup = Setup(channel)
        routes.update(setup.health.routes())
        yield setup


def request(service: str) -> bytes:
    name = service.encode()
    return b"\x0a" + bytes((len(name),)) + name if name else b""


async def test_check_answers_for_the_named_service(setup: Setup) -> None:
    assert await setup.check(request("")) == SERVING
    assert await setup.check(request("readiness")) == NOT_SERVING


async def test_check_of_an_unknown_service_is_not_found(setup: Setup) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await setup.check(request("nobody"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_check_of_a_broken_request_is_an_invalid_argument(setup: Setup) -> None:
    for broken in (b"\x0a", b"\x0a\x05ab", b"\x0a\x01\xff", b"\x0b", b"\xff" * 11):
        with pytest.raises(grpc.RpcError) as caught:
            await setup.check(broken)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_fields_of_later_versions_are_skipped(setup: Setup) -> None:
    later = b"\x10\x96\x01" + b"\x1a\x02hi" + b"\x25\0\0\0\0" + b"\x29\0\0\0\0\0\0\0\0"
    assert await setup.check(later + request("readiness")) == NOT_SERVING


async def test_list_shows_every_service(setup: Setup) -> None:
    listed = await setup.check(b"", LIST)
    assert listed == b"\x0a\x06\x0a\x00\x12\x02\x08\x01" + b"\x0a\x0f\x0a\x09readiness\x12\x02\x08\x02"


async def test_watch_sends_the_first_state_and_every_change(setup: Setup) -> None:
    watch = Talk(setup.channel, WATCH)
    await watch.write(request("readiness"))
    await watch.half_close()
    assert await watch.read() == NOT_SERVING
    setup.health.changed()
    setup.states["readiness"] = True
    setup.health.changed()
    assert await watch.read() == SERVING
    del setup.states["readiness"]
    setup.health.changed()
    assert await watch.read() == SERVICE_UNKNOWN
    watch.cancel()


async def test_a_watcher_that_left_is_forgotten(setup: Setup) -> None:
    for half_closed in (False, True):
        watch = Talk(setup.channel, WATCH)
        await watch.write(request(""))
        if half_closed:
            await watch.half_close()
        assert await watch.read() == SERVING
        assert setup.health.watchers == 1
        watch.cancel()
        async with asyncio.timeout(PATIENCE_S):
            while setup.health.watchers:
                await setup.check(request(""))


async def test_a_call_without_a_request_is_an_invalid_argument(setup: Setup) -> None:
    for method in (CHECK, WATCH, LIST):
        call = Talk(setup.channel, method)
        await call.half_close()
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT
