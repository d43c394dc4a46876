"""Both transports over TLS, the certificate changed under an open call."""

from __future__ import annotations

import asyncio
import datetime
from pathlib import Path
from typing import Literal

import grpc
import pytest
from grpc import aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest

from epp.extproc import tls
from epp.extproc.grpc_aio import AioServer
from epp.extproc.health import Health
from epp.extproc.http2 import Limits
from epp.extproc.reflection import reflection
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession
from epp.observe.metrics import Metrics
from epp.settings import Settings
from epp.trust import Trust
from tests.certificates import Authority
from tests.contract.transports import TRANSPORTS, Echo, Server, Talk, serving

ECHO = "/test.Echo/Process"
LIST_SERVICES = ServerReflectionRequest(list_services="*").SerializeToString()


def fresh(directory: Path) -> tls.Identity:
    identity = tls.self_signed(datetime.datetime.now(datetime.UTC), ("localhost",))
    (directory / "tls.crt").write_bytes(identity.certificate)
    (directory / "tls.key").write_bytes(identity.key)
    return identity


def channel(address: str, root: tls.Identity, shown: tls.Identity | None = None) -> aio.Channel:
    options = [("grpc.ssl_target_name_override", "localhost"), ("grpc.use_local_subchannel_pool", 1)]
    own = (shown.key, shown.certificate) if shown is not None else (None, None)
    credentials = grpc.ssl_channel_credentials(root.certificate, *own)
    return aio.secure_channel(address, credentials, options=options)


def server(transport: str, follower: tls.Follower, closings: list[bool]) -> Server:
    routes: dict[str, OpenSession] = {ECHO: lambda stream: Echo(stream, closings)}
    if transport == "http2":
        return Http2Server(routes, Limits(), follower.context)
    return AioServer(routes, Limits(), tls.grpc_credentials(lambda: follower.terms))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_new_connections_see_a_new_certificate_and_open_calls_go_on(transport: str, tmp_path: Path) -> None:
    closings: list[bool] = []
    first = fresh(tmp_path)
    follower = tls.Follower(lambda: tls.Terms(tls.read_identity(tmp_path)), tls.server_context)
    async with serving(server(transport, follower, closings)) as address, channel(address, first) as before:
        call = Talk(before, ECHO)
        await call.write(b"one")
        assert await call.read() == b"one"

        second = fresh(tmp_path)
        assert follower.look()
        async with channel(address, second) as after:
            assert await said(after) == b"new"

        await call.write(bytes(1_000_000))
        assert await call.read() == bytes(1_000_000)
        await call.half_close()
        assert await call.code() is grpc.StatusCode.OK
    assert closings == [True, True]


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_new_connections_are_judged_by_new_authorities_and_open_calls_go_on(
    transport: str, tmp_path: Path
) -> None:
    own = fresh(tmp_path)
    authorities = [Authority(tmp_path / name) for name in ("first.crt", "second.crt")]
    clients = [authority.issue(["envoy"]) for authority in authorities]
    ca = tmp_path / "ca.crt"
    ca.write_bytes(authorities[0].path.read_bytes())
    follower = tls.Follower(lambda: tls.Terms(own, tls.read_authorities(ca)), tls.server_context)
    async with serving(server(transport, follower, [])) as address, channel(address, own, clients[0]) as before:
        call = Talk(before, ECHO)
        await call.write(b"one")
        assert await call.read() == b"one"
        async with channel(address, own, clients[1]) as stranger:
            assert await said(stranger) is None

        ca.write_bytes(authorities[1].path.read_bytes())
        assert follower.look()
        for client, welcome in ((clients[1], b"new"), (clients[0], None), (None, None)):
            async with channel(address, own, client) as after:
                assert await said(after) == welcome

        await call.write(b"still here")
        assert await call.read() == b"still here"
        await call.half_close()
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize("names", [(), ("envoy",)], ids=["any name", "one name"])
@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_stranger_is_answered_by_no_method(
    transport: Literal["http2", "grpc.aio"], names: tuple[str, ...], tmp_path: Path
) -> None:
    own = fresh(tmp_path)
    authority = Authority(tmp_path / "ca.crt")
    settings = Settings(
        secure_serving=True,
        cert_path=tmp_path,
        client_ca_file=authority.path,
        client_allowed_names=names,
        transport=transport,
    )
    questions = {
        ECHO: b"new",
        "/grpc.health.v1.Health/Check": b"",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": LIST_SERVICES,
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": LIST_SERVICES,
    }
    health = Health(lambda service: True, [])
    routes: dict[str, OpenSession] = {ECHO: lambda stream: Echo(stream, []), **health.routes()}
    routes |= reflection(routes)
    assert questions.keys() <= routes.keys()
    async with serving(Trust(settings, Metrics()).server(routes, Limits())) as address:
        for client, welcome in (
            (authority.issue(["envoy"]), True),
            (authority.issue(["curious"]), not names),
            (Authority(tmp_path / "other.crt").issue(["envoy"]), False),
            (None, False),
        ):
            async with channel(address, own, client) as through:
                for method, question in questions.items():
                    assert (await said(through, method, question) is not None) is welcome, method


async def said(through: aio.Channel, method: str = ECHO, question: bytes = b"new") -> bytes | None:
    """What a call of its own is answered; None where there is no connection to be had, or no leave to call."""
    call = Talk(through, method)
    try:
        await call.write(question)
        told = await call.read()
        if told is not None:
            await call.half_close()
            assert await call.code() is grpc.StatusCode.OK
            return told
    except (grpc.RpcError, asyncio.InvalidStateError):
        pass
    assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED)
    return None
