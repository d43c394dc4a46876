"""The Process service as a whole, over both transports: bytes in from gRPC's own client, what a gateway relies on out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import grpc
import msgspec
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.extensions.filters.http.ext_proc.v3 import processing_mode_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb
from google.protobuf import json_format
from grpc import aio

from bench.processes import free_port
from epp.app import Picker
from epp.configuration import load
from epp.endpoint import Endpoints
from epp.extproc.health import CHECK
from epp.ports import PROCESS
from epp.settings import Settings
from tests.contract.transports import TRANSPORTS, Talk
from tests.waiting import PATIENCE_S, eventually

DESTINATION = "x-gateway-destination-endpoint"
SUBSET = ("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset")
ENDPOINTS = ("127.0.0.1:1", "127.0.0.1:2", "[::1]:3")
QUIET = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\ndataLayer: {injectDefaults: false}\n"
RANKED = QUIET + "plugins:\n- {type: max-score-picker, parameters: {maxNumOfEndpoints: 3}}\n"
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "once upon a time " * 50}]}).encode()
NONE, STREAMED, BUFFERED, PARTIAL, DUPLEX = (
    processing_mode_pb2.ProcessingMode.BodySendMode.Value(name)
    for name in ("NONE", "STREAMED", "BUFFERED", "BUFFERED_PARTIAL", "FULL_DUPLEX_STREAMED")
)
MODES = [
    (DUPLEX, DUPLEX),
    (DUPLEX, NONE),
    (BUFFERED, BUFFERED),
    (BUFFERED, NONE),
    (PARTIAL, NONE),
    (STREAMED, NONE),
    (NONE, NONE),
]
PSEUDO = {":method": "POST", ":path": "/v1/chat/completions", ":authority": "x", "content-type": "application/json"}


class Gateway:
    """What a gateway says to one picker. `picker` is the running one, for looking at its account."""

    def __init__(self, channel: aio.Channel, picker: Picker) -> None:
        self.channel = channel
        self.picker = picker

    def call(self) -> Call:
        return Call(Talk(self.channel, PROCESS))

    async def healthy(self, service: str) -> bytes:
        untyped: Any = self.channel
        answer: bytes = await untyped.unary_unary(CHECK)(b"\x0a" + bytes([len(service)]) + service.encode())
        return answer

    @property
    def endpoints(self) -> Endpoints:
        (pool,) = self.picker.pools
        return pool.endpoints

    @property
    def in_flight(self) -> float:
        return float(self.endpoints.in_flight.sum())

    async def settled(self) -> None:
        await eventually(lambda: not self.in_flight)


class Call:
    def __init__(self, talk: Talk) -> None:
        self.talk = talk

    async def say(self, message: pb.ProcessingRequest) -> None:
        await self.talk.write(message.SerializeToString())

    async def hear(self) -> pb.ProcessingResponse:
        message = await self.talk.read()
        assert message is not None, "the stream ended"
        return pb.ProcessingResponse.FromString(message)

    async def end(self) -> list[pb.ProcessingResponse]:
        """Half-close; what still came, and the status must be OK."""
        await self.talk.half_close()
        rest = []
        async with asyncio.timeout(PATIENCE_S):
            while (message := await self.talk.read()) is not None:
                rest.append(pb.ProcessingResponse.FromString(message))
            assert await self.talk.code() is grpc.StatusCode.OK
        return rest


def headers_of(fields: dict[str, str], *, end: bool = False, raw: bool = True) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    part = message.request_headers
    part.end_of_stream = end
    for key, value in fields.items():
        if raw:
            part.headers.headers.add(key=key, raw_value=value.encode())
        else:
            part.headers.headers.add(key=key, value=value)
    return message


def with_modes(message: pb.ProcessingRequest, request: int, response: int) -> pb.ProcessingRequest:
    message.protocol_config.request_body_mode = request
    message.protocol_config.response_body_mode = response
    return message


def with_subset(message: pb.ProcessingRequest, value: object) -> pb.ProcessingRequest:
    namespace, key = SUBSET
    json_format.ParseDict({key: value}, message.metadata_context.filter_metadata[namespace])
    return message


def body_of(data: bytes, *, end: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(request_body=pb.HttpBody(body=data, end_of_stream=end))


def answer_headers(*, end: bool = False) -> pb.ProcessingRequest:
    message = pb.ProcessingRequest()
    message.response_headers.end_of_stream = end
    message.response_headers.headers.headers.add(key=":status", raw_value=b"200")
    return message


def answer_body(data: bytes, *, end: bool = True) -> pb.ProcessingRequest:
    return pb.ProcessingRequest(response_body=pb.HttpBody(body=data, end_of_stream=end))


class Decision(msgspec.Struct):
    header: str
    metadata: str
    clears_route: bool


def decision(response: pb.ProcessingResponse) -> Decision | None:
    """The destination that a response carries, wherever it carries it."""
    kind = response.WhichOneof("response")
    if kind not in ("request_headers", "request_body"):
        return None
    common = getattr(response, kind).response
    found = [one.header for one in common.header_mutation.set_headers if one.header.key == DESTINATION]
    if not found:
        assert DESTINATION not in response.dynamic_metadata.fields["envoy.lb"].struct_value.fields
        return None
    header: base_pb2.HeaderValue
    (header,) = found
    assert not header.value
    told = response.dynamic_metadata.fields["envoy.lb"].struct_value.fields[DESTINATION].string_value
    return Decision(header.raw_value.decode(), told, common.clear_route_cache)


Start = Callable[..., Awaitable[Gateway]]


@pytest.fixture(params=TRANSPORTS)
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Starts a picker: keyword `config`, and settings."""
    async with AsyncExitStack() as stack:

        async def begin(config: str = QUIET, **fields: Any) -> Gateway:
            settings = Settings(
                **{
                    "host": "127.0.0.1",
                    "grpc_port": free_port(),
                    "grpc_health_port": 0,
                    "metrics_port": 0,
                    "transport": request.param,
                    "secure_serving": False,
                    "endpoints": ENDPOINTS,
                    "seed": 1,
                    **fields,
                }
            )
            picker = Picker(settings, load(config, "test"))
            await picker.start()
            stack.push_async_callback(picker.stop, 0.0, 0.0)
            channel = aio.insecure_channel(f"127.0.0.1:{settings.grpc_port}")
            await stack.enter_async_context(channel)
            return Gateway(channel, picker)

        yield begin


async def decide(
    call: Call, first: pb.ProcessingRequest, request_mode: int
) -> tuple[Decision, list[pb.ProcessingResponse]]:
    """Send one chat the way `request_mode` has it, until its decision has come."""
    await call.say(first)
    heard = []
    if request_mode in (BUFFERED, PARTIAL):
        heard.append(await call.hear())
        assert decision(heard[0]) is None
    if request_mode in (BUFFERED, PARTIAL, DUPLEX):
        await call.say(body_of(CHAT))
    heard.append(await call.hear())
    found = decision(heard[-1])
    assert found is not None
    return found, heard


@pytest.mark.parametrize(("request_mode", "response_mode"), MODES)
async def test_one_endpoint_by_default_and_the_metadata_always_equals_the_header(
    start: Start, request_mode: int, response_mode: int
) -> None:
    gateway = await start()
    for _ in range(3):
        call = gateway.call()
        found, _ = await decide(call, with_modes(headers_of(PSEUDO), request_mode, response_mode), request_mode)
        assert found.header in ENDPOINTS
        assert found.metadata == found.header
        assert found.clears_route
        assert gateway.in_flight == 1
        await call.end()
        await gateway.settled()


async def test_a_ranked_list_is_in_both_places_too(start: Start) -> None:
    gateway = await start(RANKED)
    call = gateway.call()
    found, _ = await decide(call, with_modes(headers_of(PSEUDO), BUFFERED, NONE), BUFFERED)
    assert sorted(found.header.split(",")) == sorted(ENDPOINTS)
    assert found.metadata == found.header
    await call.end()


async def test_nginx_is_served(start: Start) -> None:
    """Headers in `value` without pseudo headers, no modes told, one body message, a half-close, then reading to the end."""
    gateway = await start()
    call = gateway.call()
    rewrite = {"content-type": "application/json", "x-gateway-model-name-rewrite": "tuned"}
    await call.say(headers_of(rewrite, raw=False))
    await call.say(body_of(CHAT))
    heard = await call.end()
    found = [one for one in map(decision, heard) if one is not None]
    assert len(found) == 1 and found[0].header in ENDPOINTS
    assert heard[0].WhichOneof("response") == "request_headers"
    echoed = b"".join(one.request_body.response.body_mutation.streamed_response.body for one in heard[1:])
    assert echoed == CHAT.replace(b'"m"', b'"tuned"'), "the body's shape tells the API where there is no path"
    await gateway.settled()


async def test_nginx_refusals_end_the_stream_too(start: Start) -> None:
    gateway = await start()
    call = gateway.call()
    await call.say(headers_of({"content-type": "application/json"}, raw=False))
    await call.say(with_subset(body_of(CHAT), []))
    heard = await call.end()
    assert [one.WhichOneof("response") for one in heard] == ["immediate_response"]


@pytest.mark.parametrize("modes", [None, (DUPLEX, DUPLEX), (PARTIAL, NONE)])
async def test_a_request_without_body_is_answered_at_once(start: Start, modes: tuple[int, int] | None) -> None:
    gateway = await start()
    call = gateway.call()
    first = headers_of({":method": "GET", ":path": "/v1/models"}, end=True)
    await call.say(with_modes(first, *modes) if modes else first)
    found = decision(await call.hear())
    assert found is not None and found.header == found.metadata
    await call.say(answer_headers(end=True))
    assert (await call.hear()).WhichOneof("response") == "response_headers"
    await gateway.settled()
    assert await call.end() == []


@pytest.mark.parametrize("request_mode", [DUPLEX, BUFFERED, PARTIAL])
async def test_trailers_are_answered_and_end_a_body(start: Start, request_mode: int) -> None:
    gateway = await start()
    call = gateway.call()
    await call.say(with_modes(headers_of(PSEUDO), request_mode, NONE))
    await call.say(body_of(CHAT, end=False))
    trailers = pb.ProcessingRequest(request_trailers=pb.HttpTrailers())
    heard = []
    if request_mode != DUPLEX:
        heard += [await call.hear(), await call.hear()]
        assert decision(heard[1]) is not None
    await call.say(trailers)
    while not heard or heard[-1].WhichOneof("response") != "request_trailers":
        heard.append(await call.hear())
    assert len([one for one in map(decision, heard) if one is not None]) == 1
    await call.end()
    await gateway.settled()


async def test_a_second_end_of_stream_is_tolerated(start: Start) -> None:
    gateway = await start()
    call = gateway.call()
    await decide(call, with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
    await call.hear()
    await call.say(body_of(b""))
    await call.say(answer_headers())
    assert (await call.hear()).WhichOneof("response") == "response_headers"
    await call.say(answer_body(b"{}"))
    streamed = (await call.hear()).response_body.response.body_mutation.streamed_response
    assert (streamed.body, streamed.end_of_stream) == (b"{}", True)
    await gateway.settled()
    await call.say(answer_body(b""))
    assert await call.end() == []


@pytest.mark.parametrize(
    ("hint", "allowed"),
    [
        (["127.0.0.1:2"], {"127.0.0.1:2"}),
        ("127.0.0.1:2, [::1]:3", {"127.0.0.1:2", "[::1]:3"}),
        (["::1"], {"[::1]:3"}),
        (["127.0.0.1"], {"127.0.0.1:1", "127.0.0.1:2"}),
    ],
)
async def test_a_subset_hint_is_kept_to(start: Start, hint: object, allowed: set[str]) -> None:
    gateway = await start()
    picked, calls = set(), []
    # Each stays in flight, so that the next goes elsewhere.
    for _ in range(4):
        calls.append(gateway.call())
        await calls[-1].say(with_subset(headers_of({":method": "GET", ":path": "/v1/models"}, end=True), hint))
        found = decision(await calls[-1].hear())
        assert found is not None
        picked.add(found.header)
    assert picked == allowed
    for call in calls:
        await call.end()


@pytest.mark.parametrize("hint", [[], "", ["10.9.9.9:1"]])
@pytest.mark.parametrize("late", [False, True], ids=["with the headers", "with the body"])
async def test_a_subset_that_leaves_nobody_is_refused(start: Start, hint: object, late: bool) -> None:
    gateway = await start()
    call = gateway.call()
    first = with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX)
    await call.say(first if late else with_subset(first, hint))
    await call.say(with_subset(body_of(CHAT), hint) if late else body_of(CHAT))
    response = await call.hear()
    immediate = response.immediate_response
    assert immediate.status.code == 503
    told = {one.header.key: one.header.raw_value.decode() for one in immediate.headers.set_headers}
    assert told["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"
    assert json.loads(immediate.body)["error"]["type"] == "service_unavailable_error"
    assert await call.end() == []
    assert gateway.in_flight == 0


async def test_a_subset_can_be_passed_over(start: Start) -> None:
    gateway = await start(ignore_subset=True)
    call = gateway.call()
    found, _ = await decide(call, with_subset(with_modes(headers_of(PSEUDO), BUFFERED, NONE), []), BUFFERED)
    assert found.header in ENDPOINTS


async def test_the_endpoint_that_served_takes_over_the_account(start: Start) -> None:
    gateway = await start()
    call = gateway.call()
    found, _ = await decide(call, with_modes(headers_of(PSEUDO), BUFFERED, NONE), BUFFERED)
    other = next(one for one in ENDPOINTS if one != found.header)
    message = answer_headers()
    json_format.ParseDict(
        {"x-gateway-destination-endpoint-served": other}, message.metadata_context.filter_metadata["envoy.lb"]
    )
    await call.say(message)
    await call.hear()
    endpoints = gateway.endpoints
    slot = endpoints.slot_by_destination(other)
    assert slot is not None
    assert endpoints.in_flight[slot] == 1 and gateway.in_flight == 1
    await call.end()
    await gateway.settled()


async def test_a_body_beyond_the_limit_is_refused_before_it_is_whole(start: Start) -> None:
    gateway = await start(max_body_bytes=100_000)
    call = gateway.call()
    await call.say(with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX))
    for _ in range(2):
        await call.say(body_of(b"x" * 60_000, end=False))
    immediate = (await call.hear()).immediate_response
    assert immediate.status.code == 413
    assert "exceeds 100000 bytes" in json.loads(immediate.body)["error"]["message"]
    await call.say(body_of(b"x" * 60_000))
    assert await call.end() == []


async def test_a_cancelled_call_leaves_nothing_behind(start: Start) -> None:
    gateway = await start()
    call = gateway.call()
    await decide(call, with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX), DUPLEX)
    assert gateway.in_flight == 1
    call.talk.cancel()
    await gateway.settled()
    (series,) = gateway.picker.metrics.series.values()
    assert (series.running, series.aborted) == (0, 1)


async def test_what_is_no_request_ends_its_call_alone(start: Start) -> None:
    gateway = await start()
    broken, sound = gateway.call(), gateway.call()
    await sound.say(with_modes(headers_of(PSEUDO), DUPLEX, DUPLEX))
    await broken.talk.write(b"\xff\xff\xff")
    assert await broken.talk.read() is None
    assert await broken.talk.code() is grpc.StatusCode.INVALID_ARGUMENT
    await sound.say(body_of(CHAT))
    assert decision(await sound.hear()) is not None


@pytest.mark.parametrize("service", ["", "liveness", "readiness", "inference-extension", PROCESS.split("/")[1]])
async def test_health_is_on_the_same_port(start: Start, service: str) -> None:
    gateway = await start()
    assert await gateway.healthy(service) == b"\x08\x01"


async def test_an_unknown_service_is_not_found(start: Start) -> None:
    gateway = await start()
    with pytest.raises(grpc.RpcError) as caught:
        await gateway.healthy("nobody")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
