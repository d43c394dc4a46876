"""Server reflection over both transports, asked by gRPC's own client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc import aio
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_reflection.v1alpha.reflection_pb2 import ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse

import epp.extproc.codec  # noqa: F401  (brings Envoy's descriptions)
from epp.extproc.reflection import reflection
from tests.contract.transports import TRANSPORTS, make, serving

pytestmark = pytest.mark.parametrize("transport", TRANSPORTS)

PROCESSOR = "envoy.service.ext_proc.v3.ExternalProcessor"
HEALTH = "grpc.health.v1.Health"
T = TypeVar("T")


@pytest.fixture
async def address(transport: str) -> AsyncIterator[str]:
    async with serving(make(transport, reflection([f"/{PROCESSOR}/Process", f"/{HEALTH}/Check"]))) as address:
        yield address


async def by_client(address: str, ask: Callable[[ProtoReflectionDescriptorDatabase], T]) -> T:
    """The client blocks: it has a thread of its own."""

    def asked() -> T:
        with grpc.insecure_channel(address) as channel:
            return ask(ProtoReflectionDescriptorDatabase(channel))

    return await asyncio.to_thread(asked)


async def test_services_are_listed(address: str) -> None:
    assert await by_client(address, lambda client: sorted(client.get_services())) == [
        PROCESSOR,
        HEALTH,
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]


async def test_a_client_learns_the_methods_and_all_messages_they_need(address: str) -> None:
    def learn(client: ProtoReflectionDescriptorDatabase) -> tuple[list[str], str, list[str]]:
        pool = DescriptorPool(client)
        process = pool.FindServiceByName(PROCESSOR).methods_by_name["Process"]
        health = pool.FindServiceByName(HEALTH)
        return list(process.input_type.fields_by_name), process.output_type.full_name, list(health.methods_by_name)

    fields, output, health = await by_client(address, learn)
    assert "request_headers" in fields
    assert output == "envoy.service.ext_proc.v3.ProcessingResponse"
    assert "Check" in health


async def test_extensions_are_found(address: str) -> None:
    options = "google.protobuf.MessageOptions"
    numbers = await by_client(address, lambda client: list(client.FindAllExtensionNumbers(options)))
    assert numbers
    asked = ExtensionRequest(containing_type=options, extension_number=numbers[0])
    question = ServerReflectionRequest(file_containing_extension=asked)
    answer = ServerReflectionResponse.FromString(await ask(address, question.SerializeToString()))
    files = map(FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    assert numbers[0] in [one.number for file in files for one in file.extension]


async def ask(address: str, message: bytes, version: str = "v1") -> bytes:
    async with aio.insecure_channel(address) as channel:
        untyped: Any = channel
        call = untyped.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")(
            iter([message])
        )
        answer: bytes = await call.read()
        return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
@pytest.mark.parametrize(
    "question",
    [
        ServerReflectionRequest(file_containing_symbol="no.such.Thing"),
        ServerReflectionRequest(file_by_filename="no/such.proto"),
        ServerReflectionRequest(all_extension_numbers_of_type="no.such.Thing"),
        ServerReflectionRequest(),
    ],
)
async def test_what_is_not_there_is_not_found(address: str, version: str, question: ServerReflectionRequest) -> None:
    answer = ServerReflectionResponse.FromString(await ask(address, question.SerializeToString(), version))
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert answer.original_request == question


async def test_what_is_no_question_is_an_invalid_argument(address: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        await ask(address, b"\xff\xff")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
