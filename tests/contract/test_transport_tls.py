"""Both transports over TLS, the certificate changed under an open call."""

from __future__ import annotations

import datetime
from pathlib import Path

import grpc
import pytest
from grpc import aio

from epp.extproc import tls
from epp.extproc.grpc_aio import AioServer
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession
from tests.contract.transports import TRANSPORTS, Echo, Server, Talk, serving

ECHO = "/test.Echo/Process"


def fresh(directory: Path) -> tls.Identity:
    identity = tls.self_signed(datetime.datetime.now(datetime.UTC), ("localhost",))
    (directory / "tls.crt").write_bytes(identity.certificate)
    (directory / "tls.key").write_bytes(identity.key)
    return identity


def channel(address: str, root: tls.Identity) -> aio.Channel:
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    return aio.secure_channel(address, grpc.ssl_channel_credentials(root.certificate), options=options)


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_new_connections_see_a_new_certificate_and_open_calls_go_on(transport: str, tmp_path: Path) -> None:
    closings: list[bool] = []
    routes: dict[str, OpenSession] = {ECHO: lambda stream: Echo(stream, closings)}
    first = fresh(tmp_path)
    context = tls.server_context(first)
    follower = tls.CertificateFollower(context, tmp_path, first)
    server: Server = (
        Http2Server(routes, Limits(), context)
        if transport == "http2"
        else AioServer(routes, Limits(), tls.grpc_credentials(lambda: follower.served))
    )
    async with serving(server) as address, channel(address, first) as before:
        call = Talk(before, ECHO)
        await call.write(b"one")
        assert await call.read() == b"one"

        second = fresh(tmp_path)
        assert follower.look()
        async with channel(address, second) as after:
            other = Talk(after, ECHO)
            await other.write(b"new")
            assert await other.read() == b"new"
            await other.half_close()
            assert await other.code() is grpc.StatusCode.OK

        await call.write(bytes(1_000_000))
        assert await call.read() == bytes(1_000_000)
        await call.half_close()
        assert await call.code() is grpc.StatusCode.OK
    assert closings == [True, True]
