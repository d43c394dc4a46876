"""gRPC server reflection over any of our transports, so that `grpcurl` and its like need no .proto files.

Both names of the service say the same: v1, and v1alpha, which older clients ask for. The messages are gRPC's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.message import DecodeError

# Only for its description: what health says is written by hand.
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.reflection_pb2 import (
    ErrorResponse,
    ExtensionNumberResponse,
    FileDescriptorResponse,
    ListServiceResponse,
    ServerReflectionRequest,
    ServerReflectionResponse,
    ServiceResponse,
)

from epp.extproc.transport import OpenSession, Stream

SERVICES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_INVALID_ARGUMENT = 3
_NOT_FOUND = 5
_HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_POOL = descriptor_pool.Default()


def reflection(paths: Iterable[str]) -> Mapping[str, OpenSession]:
    """Routes that describe themselves and the services of `paths`, each `/package.Service/Method`."""
    names = sorted({path.split("/")[1] for path in paths} | {*SERVICES})
    return {f"/{service}/ServerReflectionInfo": lambda stream: _Reflection(stream, names) for service in SERVICES}


class _Reflection:
    """Answers each question of one call until its peer asks no more."""

    def __init__(self, stream: Stream, services: Iterable[str]) -> None:
        self._stream = stream
        self._services = services

    def received(self, message: bytes) -> None:
        try:
            question = ServerReflectionRequest.FromString(message)
        except DecodeError:
            self._stream.close(_INVALID_ARGUMENT, "this is no ServerReflectionRequest")
            return
        self._stream.send(self._answer(question).SerializeToString())

    def closed(self, clean: bool) -> None:
        if clean:
            self._stream.close()

    def _answer(self, question: ServerReflectionRequest) -> ServerReflectionResponse:
        answer = ServerReflectionResponse(valid_host=question.host, original_request=question)
        kind = question.WhichOneof("message_request")
        if kind == "list_services":
            answer.list_services_response.CopyFrom(
                ListServiceResponse(service=[ServiceResponse(name=name) for name in self._services])
            )
            return answer
        try:
            if kind == "all_extension_numbers_of_type":
                answer.all_extension_numbers_response.CopyFrom(_extensions(question.all_extension_numbers_of_type))
            else:
                answer.file_descriptor_response.CopyFrom(_described(_FILES[kind](question)))
        except KeyError:
            answer.error_response.CopyFrom(ErrorResponse(error_code=_NOT_FOUND, error_message="there is no such thing"))
        return answer


def _of_extension(question: ServerReflectionRequest) -> FileDescriptor:
    asked = question.file_containing_extension
    message = _POOL.FindMessageTypeByName(asked.containing_type)
    extension: Any = _POOL.FindExtensionByNumber(message, asked.extension_number)
    file: FileDescriptor = extension.file
    return file


_FILES: Mapping[str | None, Callable[[ServerReflectionRequest], FileDescriptor]] = {
    "file_by_filename": lambda question: _POOL.FindFileByName(question.file_by_filename),
    "file_containing_symbol": lambda question: _POOL.FindFileContainingSymbol(question.file_containing_symbol),
    "file_containing_extension": _of_extension,
}


def _extensions(name: str) -> ExtensionNumberResponse:
    """Raises KeyError."""
    found = _POOL.FindAllExtensions(_POOL.FindMessageTypeByName(name))
    return ExtensionNumberResponse(base_type_name=name, extension_number=[extension.number for extension in found])


def _described(file: FileDescriptor) -> FileDescriptorResponse:
    """`file` and all that it builds on, each before what needs it."""
    return FileDescriptorResponse(file_descriptor_proto=[one.serialized_pb for one in _closure(file, set())])


def _closure(file: FileDescriptor, seen: set[str]) -> Iterator[FileDescriptor]:
    if file.name not in seen:
        seen.add(file.name)
        for needed in file.dependencies:
            yield from _closure(needed, seen)
        yield file
