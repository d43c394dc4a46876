"""The control of the latency rows: an ext_proc server that decides nothing, over the picker's own transport.

    python -m bench.cost.constant PORT DESTINATION

It sends every request to one destination by words made beforehand: no JSON, no prefixes, no endpoints, no accounts. What latency
it adds is that of the way there and back, through Envoy, kernel and a server of this kind; the rest of the picker's is its own.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop

from bench.cost.echo import METHOD, SERVICE
from epp.extproc.codec import decode, decode_usual, encode
from epp.extproc.events import (
    BodyMode,
    RequestBody,
    RequestBodyReply,
    RequestHeaders,
    RequestHeadersReply,
    ResponseBody,
    ResponseHeaders,
    ResponseHeadersReply,
    Steer,
    StreamedRequestBody,
    StreamedResponseBody,
)
from epp.extproc.server import Http2Server
from epp.extproc.transport import Session, Stream

_PASS_REQUEST_HEADERS = encode(RequestHeadersReply())
_PASS_RESPONSE_HEADERS = encode(ResponseHeadersReply())


class Constant:
    def __init__(self, stream: Stream, steer: Steer) -> None:
        self._stream = stream
        self._steer = steer
        self._full_duplex = True
        self._pieces: list[bytes | memoryview] = []

    def received(self, message: bytes) -> None:
        event = decode_usual(message) or decode(message)
        send = self._stream.send
        if type(event) is RequestHeaders:
            self._full_duplex = event.modes is not None and event.modes.request is BodyMode.FULL_DUPLEX_STREAMED
            if not self._full_duplex:
                send(_PASS_REQUEST_HEADERS)
        elif type(event) is RequestBody:
            if not self._full_duplex:
                send(encode(RequestBodyReply(self._steer)))
                return
            self._pieces.append(event.data)
            if event.end:
                send(encode(RequestHeadersReply(self._steer)))
                send(encode(StreamedRequestBody(b"".join(self._pieces), True)))
        elif type(event) is ResponseHeaders:
            send(_PASS_RESPONSE_HEADERS)
        elif type(event) is ResponseBody:
            send(encode(StreamedResponseBody(event.data, event.end)))

    def closed(self, clean: bool) -> None:
        if clean:
            self._stream.close()


async def serve(port: int, destination: str) -> None:
    def opened(stream: Stream) -> Session:
        return Constant(stream, Steer(destination))

    await Http2Server({f"/{SERVICE}/{METHOD}": opened}).start("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), sys.argv[2]))
