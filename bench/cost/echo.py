"""The yardstick: a bare `grpc.aio` server that only echoes ext_proc messages to one fixed destination.

    python -m bench.cost.echo PORT DESTINATION

It decides nothing. What it costs per request is what Python's stock gRPC costs, and every figure of the benchmark is
divided by it, so that a machine's speed drops out.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import uvloop
from envoy.service.ext_proc.v3 import external_processor_pb2 as ext_proc
from grpc import aio

METHOD = "Process"
SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"


def _request_headers(destination: str) -> ext_proc.ProcessingResponse:
    reply = ext_proc.ProcessingResponse()
    common = reply.request_headers.response
    common.clear_route_cache = True
    header = common.header_mutation.set_headers.add().header
    header.key = "x-gateway-destination-endpoint"
    header.raw_value = destination.encode()
    return reply


def _streamed(body: Any, part: str) -> ext_proc.ProcessingResponse:
    reply = ext_proc.ProcessingResponse()
    streamed = getattr(reply, part).response.body_mutation.streamed_response
    streamed.body = body.body
    streamed.end_of_stream = body.end_of_stream
    return reply


class Echo:
    def __init__(self, destination: str) -> None:
        self.destination = destination

    async def process(self, messages: AsyncIterator[Any], context: object) -> AsyncIterator[Any]:
        held: list[ext_proc.ProcessingResponse] = []
        async for message in messages:
            part = message.WhichOneof("request")
            if part == "request_headers":
                held = [_request_headers(self.destination)]
                if message.request_headers.end_of_stream:
                    yield held.pop()
            elif part == "request_body":
                held.append(_streamed(message.request_body, part))
                if message.request_body.end_of_stream:
                    for reply in held:
                        yield reply
            elif part == "response_body":
                yield _streamed(message.response_body, part)
            else:
                reply = ext_proc.ProcessingResponse()
                getattr(reply, part).SetInParent()
                yield reply


async def serve(port: int, destination: str) -> None:
    server = aio.server()
    handler = grpc.stream_stream_rpc_method_handler(
        Echo(destination).process,
        request_deserializer=ext_proc.ProcessingRequest.FromString,
        response_serializer=ext_proc.ProcessingResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
