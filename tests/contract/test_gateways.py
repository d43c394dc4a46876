"""Each gateway's way of asking, as its documents and sources have it, and what it makes of the answer."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import json_format
from grpc import aio

from bench.processes import free_port
from epp.extproc.codec import DESTINATION
from epp.extproc.health import CHECK
from epp.ports import PROCESS
from tests.contract.test_process import (
    CHAT,
    DUPLEX,
    ENDPOINTS,
    NONE,
    PSEUDO,
    QUIET,
    RANKED,
    Call,
    Gateway,
    Start,
    answer_body,
    answer_headers,
    body_of,
    decide,
    decision,
    headers_of,
    start,
    with_modes,
    with_subset,
)
from tests.contract.transports import Talk
from tests.waiting import eventually

__all__ = ["start"]  # the fixture

V4, OTHER_V4, V6 = ENDPOINTS
TWO = {"pool_names": ("english", "spanish"), "endpoints": (f"english={V4}", f"spanish={V6}")}


def socket_address(text: str) -> tuple[str, int]:
    """One address as a proxy parses it: an IP, in brackets where it is version 6, and a port. Raises ValueError for a list."""
    host, _, port = text.rpartition(":")
    address = ipaddress.ip_address(host.strip("[]"))
    if (address.version == 6) != host.startswith("["):
        raise ValueError(f"{text} is not how an address of version {address.version} is written")
    return str(address), int(port)


def calling(gateway: Gateway, metadata: Mapping[str, str]) -> Call:
    return Call(Talk(gateway.channel, PROCESS, metadata=tuple(metadata.items())))


def metadata_of(message: pb.ProcessingRequest, namespace: str, told: Mapping[str, object]) -> pb.ProcessingRequest:
    json_format.ParseDict(dict(told), message.metadata_context.filter_metadata[namespace])
    return message


def chat(size: int) -> bytes:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * size}]}).encode()


async def nginx_asks(gateway: Gateway, body: bytes, **headers: str) -> list[pb.ProcessingResponse]:
    """NGINX Gateway Fabric: lower-case headers in `value`, no pseudo headers, no modes, the body in one message, a half-close,
    then reading to the end. It has no use for a stream that stays open.
    """
    call = gateway.call()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    await call.say(headers_of({"content-type": "application/json", "host": "x", **named}, raw=False))
    await call.say(body_of(body))
    return await call.end()


def nginx_reads(heard: list[pb.ProcessingResponse]) -> str | None:
    """Of all answers it looks only at the raw values of headers to set, in answers to request headers."""
    for one in heard:
        if one.WhichOneof("response") == "request_headers":
            for option in one.request_headers.response.header_mutation.set_headers:
                if option.header.key == DESTINATION:
                    return str(option.header.raw_value, "ascii")
    return None


class TestNginx:
    async def test_finds_one_address_and_the_end_of_the_stream(self, start: Start) -> None:
        gateway = await start()
        found = nginx_reads(await nginx_asks(gateway, CHAT))
        assert found is not None
        socket_address(found)
        await gateway.settled()

    async def test_sends_large_prompts_in_one_message(self, start: Start) -> None:
        gateway = await start(max_message_bytes=32 << 20)
        heard = await nginx_asks(gateway, chat(8 << 20))
        assert nginx_reads(heard) in ENDPOINTS

    async def test_finds_nothing_in_a_refusal_and_the_end_too(self, start: Start) -> None:
        gateway = await start()
        heard = await nginx_asks(gateway, b'{"model": "m", "messages": []}')
        assert nginx_reads(heard) is None
        assert [one.WhichOneof("response") for one in heard] == ["immediate_response"]
        assert gateway.in_flight == 0

    async def test_many_at_once_leave_nothing_open(self, start: Start) -> None:
        gateway = await start()
        found = await asyncio.gather(*(nginx_asks(gateway, CHAT) for _ in range(50)))
        assert all(nginx_reads(heard) in ENDPOINTS for heard in found)
        await gateway.settled()


class TestKgateway:
    """Envoy with everything in full duplex. Its cluster is split into subsets by the header's value, so a list would match none; it
    always says which endpoints the pool has.
    """

    async def test_gets_exactly_one_of_those_it_lists(self, start: Start) -> None:
        gateway = await start()
        for _ in range(8):
            call = gateway.call()
            first = with_subset(with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), [V6, OTHER_V4])
            found, _ = await decide(call, first, DUPLEX)
            assert found.header in (V6, OTHER_V4)
            assert found.metadata == found.header
            await call.end()

    async def test_sees_its_whole_answer_again(self, start: Start) -> None:
        gateway = await start()
        call = gateway.call()
        await decide(call, with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
        body = b"".join([(await call.hear()).request_body.response.body_mutation.streamed_response.body])
        assert body == CHAT
        await call.say(answer_headers())
        assert (await call.hear()).WhichOneof("response") == "response_headers"
        for number in range(3):
            await call.say(answer_body(b"data: %d\n\n" % number, end=number == 2))
            streamed = (await call.hear()).response_body.response.body_mutation.streamed_response
            assert (streamed.body, streamed.end_of_stream) == (b"data: %d\n\n" % number, number == 2)
        assert await call.end() == []


class TestAgentgateway:
    """Takes the header for one socket address and says afterwards who served."""

    async def test_can_parse_what_it_gets(self, start: Start) -> None:
        gateway = await start(endpoints=(V6,))
        found, _ = await decide(gateway.call(), with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
        assert socket_address(found.header) == ("::1", 3)

    async def test_says_who_served(self, start: Start) -> None:
        gateway = await start()
        call = gateway.call()
        found, _ = await decide(call, with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
        served = next(one for one in ENDPOINTS if one != found.header)
        told = {"x-gateway-destination-endpoint-served": served}
        await call.say(metadata_of(answer_headers(), "envoy.lb", told))
        slot = gateway.endpoints.slot_by_destination(served)
        assert slot is not None
        await eventually(lambda: gateway.endpoints.in_flight[slot])
        await call.end()


class TestIstio:
    """Reads the dynamic metadata, not the header, and walks a list where there is one."""

    async def test_finds_the_list_in_the_metadata_with_brackets_where_they_belong(self, start: Start) -> None:
        gateway = await start(RANKED)
        found, _ = await decide(gateway.call(), with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
        listed = found.metadata.split(",")
        assert sorted(map(socket_address, listed)) == [("127.0.0.1", 1), ("127.0.0.1", 2), ("::1", 3)]
        assert found.header == found.metadata

    async def test_one_is_no_list(self, start: Start) -> None:
        gateway = await start()
        found, _ = await decide(gateway.call(), with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
        socket_address(found.metadata)


class TestGke:
    """Checks health on a port of its own, in the clear, and adds metadata of its own to every message."""

    @pytest.mark.parametrize("secure", [False, True])
    async def test_asks_for_health_on_its_own_port(self, start: Start, secure: bool) -> None:
        port = free_port()
        await start(grpc_health_port=port, secure_serving=secure)
        async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            untyped: Any = channel
            for service in ("", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"):
                answer = await untyped.unary_unary(CHECK)(b"\x0a" + bytes([len(service)]) + service.encode())
                assert answer == b"\x08\x01"
            with pytest.raises(grpc.RpcError) as caught:
                await untyped.unary_unary(PROCESS)(b"")
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    async def test_its_metadata_is_no_hint(self, start: Start) -> None:
        gateway = await start()
        own = {"fr": "projects/p/regions/r/forwardingRules/f", "nested": {"x": [1, "a", None]}}
        first = metadata_of(
            with_modes(headers_of(PSEUDO), DUPLEX, NONE), "com.google.lb_traffic_extension.chain.ext", own
        )
        found, _ = await decide(gateway.call(), first, DUPLEX)
        assert found.header in ENDPOINTS

    async def test_its_metadata_can_name_a_pool(self, start: Start) -> None:
        gateway = await start(**TWO)
        own = {"x-gateway-inference-pool": "spanish"}
        first = metadata_of(
            with_modes(headers_of(PSEUDO), DUPLEX, NONE), "com.google.lb_route_extension.chain.ext", own
        )
        found, _ = await decide(Call(Talk(gateway.channel, PROCESS)), first, DUPLEX)
        assert found.header == V6


class TestOneOfSeveralPools:
    async def test_is_named_by_the_metadata_of_the_call(self, start: Start) -> None:
        gateway = await start(**TWO)
        for pool, endpoint in (("spanish", V6), ("english", V4), ("default/spanish", V6), ("none", V4)):
            call = calling(gateway, {"x-gateway-inference-pool": pool})
            found, _ = await decide(call, with_modes(headers_of(PSEUDO), DUPLEX, NONE), DUPLEX)
            assert found.header == endpoint
            await call.end()

    async def test_is_asked_by_nginx_too(self, start: Start) -> None:
        gateway = await start(QUIET, **TWO)
        assert nginx_reads(await nginx_asks(gateway, CHAT)) == V4
        assert decision((await nginx_asks(gateway, CHAT))[0]) is not None
