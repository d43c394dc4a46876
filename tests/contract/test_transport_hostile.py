"""Peers that mean harm, over sockets: what each can hold ends, is counted by name, and disturbs no other connection."""

from __future__ import annotations

import asyncio
import datetime
import errno
import gc
import os
import socket
import ssl
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import hpack
import pytest
from grpc import aio

from epp.extproc import door as door_module
from epp.extproc import server as server_module
from epp.extproc import tls
from epp.extproc.frames import PREFACE
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession, Stream
from tests.certificates import Authority
from tests.contract.transports import Echo, Silent, Talk, serving, until
from tests.waiting import PATIENCE_S, eventually

ECHO, SILENT = "/test.Echo/Process", "/test.Silent/Process"
HELLO = PREFACE + b"\0\0\0\4\0\0\0\0\0" + b"\0\0\0\4\1\0\0\0\0"

HALF_A_CLIENT_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)
GOAWAY = b"\0\0\x08\7\0\0\0\0\0"
"""One without an error's text."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">LBL", len(payload) << 8 | kind, flags, stream_id) + payload


def call(stream_id: int, path: str = ECHO) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "epp")]
    block = encoder.encode([*fields, ("content-type", "application/grpc")])
    return frame(1, 4, stream_id, block)


class Neighbour:
    """An honest client on a connection of its own: `talk` has a message echoed."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        writer.write(HELLO + call(1))

    async def talk(self) -> None:
        self.writer.write(frame(0, 0, 1, b"\0\0\0\0\5hello"))
        async with asyncio.timeout(PATIENCE_S):
            await self._reader.readuntil(b"hello")


@asynccontextmanager
async def scene(limits: Limits | None = None) -> AsyncIterator[tuple[Http2Server, str, Neighbour, list[bool]]]:
    """A server, its address, a neighbour who can talk before and after, and how the silent calls were closed."""
    closings: list[bool] = []
    routes: dict[str, OpenSession] = {ECHO: lambda stream: Echo(stream, []), SILENT: lambda stream: Silent(closings)}
    server = Http2Server(routes, limits)
    async with serving(server) as address:
        neighbour = Neighbour(*await asyncio.open_connection(*address.split(":")))
        await neighbour.talk()
        yield server, address, neighbour, closings
        await neighbour.talk()
        assert server.statistics().streams == 1
        neighbour.writer.close()


@pytest.mark.parametrize(
    "flood",
    [
        frame(6, 0, 0, bytes(8)),
        frame(4, 0, 0),
        frame(2, 0, 9, bytes(5)),
        frame(8, 0, 0, b"\0\0\0\1"),
        frame(9, 0, 3),
    ],
    ids=["ping", "settings", "priority", "window update", "continuation"],
)
async def test_a_flood_ends_its_connection_and_no_other(flood: bytes) -> None:
    async with scene(Limits(chatter_burst=500)) as (server, address, _, closings):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        begin = frame(1, 0, 3, b"\x82") if flood[3] == 9 else b""
        writer.write(HELLO + call(1, SILENT) + begin + flood * 2_000)
        async with asyncio.timeout(PATIENCE_S):
            assert b"\0\0\0\x0b" in await reader.read()
        await until([False], closings)
        await eventually(lambda: server.statistics().connections == 1)
        limit = "max_continuations" if begin else "chatter_burst"
        assert server.statistics().limits == {limit: 1}
        writer.close()


async def test_a_rapid_reset_opens_no_more_sessions_than_its_allowance() -> None:
    async with scene(Limits(chatter_burst=300)) as (server, address, _, closings):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(HELLO)
        for number in range(5_000):
            writer.write(call(2 * number + 1, SILENT) + frame(3, 0, 2 * number + 1, b"\0\0\0\x08"))
        async with asyncio.timeout(PATIENCE_S):
            assert b"\0\0\0\x0b" in await reader.read()
        await eventually(lambda: server.statistics().connections == 1)
        assert server.statistics().calls <= 302
        assert closings == [False] * (server.statistics().calls - 1)
        assert server.statistics().limits == {"chatter_burst": 1}
        writer.close()


@pytest.mark.parametrize(
    ("blocks", "references", "met"),
    [(1, 16_000, {"max_header_list_bytes"}), (1_000, 15, {"max_open_header_bytes", "chatter_burst"})],
    ids=["one that is too large", "many that are not"],
)
async def test_a_bomb_of_header_fields_ends_its_connection_and_no_other(
    blocks: int, references: int, met: set[str]
) -> None:
    async with scene() as (server, address, neighbour, closings):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        encoder = hpack.Encoder()
        fields = [(":method", "POST"), (":scheme", "http"), (":path", SILENT), ("content-type", "application/grpc")]
        # What is said last is first in the table: entry 62, a byte.
        first = encoder.encode([*fields, ("x", "bomb" * 950)])
        again = encoder.encode(fields) + b"\xbe" * references
        writer.write(HELLO + frame(1, 4, 1, first))
        for number in range(1, blocks + 1):
            writer.write(frame(1, 4, 2 * number + 1, again))
            if not number % 100:
                await neighbour.talk()
        await neighbour.talk()
        async with asyncio.timeout(PATIENCE_S):
            assert b"\0\0\0\x0b" in await reader.read()
        await eventually(lambda: server.statistics().connections == 1)
        assert set(server.statistics().limits) == met
        # The first call, and those whose fields there was room for.
        assert 0 < len(closings) <= 1 + Limits().max_open_header_bytes // (references * 3_800)
        assert not any(closings)
        writer.close()


async def test_connections_beyond_the_limit_are_shut_at_once() -> None:
    async with scene(Limits(max_connections=10)) as (server, address, _, _):
        pairs = [await asyncio.open_connection(*address.split(":")) for _ in range(30)]
        await eventually(lambda: server.statistics().limits.get("max_connections", 0) == 21)
        assert server.statistics().connections == 10
        for _, writer in pairs:
            writer.close()
        await eventually(lambda: server.statistics().connections == 1)
        _reader, writer = await asyncio.open_connection(*address.split(":"))
        await eventually(lambda: server.statistics().connections == 2)
        writer.close()


@pytest.mark.parametrize(
    "said",
    [b"", HELLO, HELLO + frame(1, 0, 1, b"\x82"), HELLO + call(1)[:20], HELLO + call(1, "/no/such")],
    ids=["nothing", "greeting", "half a header block", "half a frame", "no such call"],
)
async def test_who_has_no_call_gives_way_to_who_comes(said: bytes) -> None:
    server = Http2Server({ECHO: lambda stream: Echo(stream, [])}, Limits(max_connections=3, idle_connection_s=0.0))
    async with serving(server) as address:
        pairs = [await asyncio.open_connection(*address.split(":")) for _ in range(3)]
        for _, writer in pairs:
            writer.write(said)
        await eventually(lambda: server.statistics().connections == 3)
        async with aio.insecure_channel(address) as channel:
            talk = Talk(channel, ECHO)
            await talk.write(b"one")
            assert await talk.read() == b"one"
            told = await asyncio.wait_for(pairs[0][0].read(), PATIENCE_S)
            assert GOAWAY in told
            await eventually(lambda: server.statistics().connections == 3)
            assert server.statistics().limits == {"idle_connection_s": 1}
            await talk.half_close()
            assert await talk.code() is grpc.StatusCode.OK
        for _, writer in pairs:
            writer.close()


async def test_who_has_a_call_gives_way_only_when_it_has_ended() -> None:
    async with scene(Limits(max_connections=2, idle_connection_s=0.0)) as (server, address, _, closings):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(HELLO + call(1, SILENT))
        await eventually(lambda: server.statistics().streams == 2)
        refused, late = await asyncio.open_connection(*address.split(":"))
        assert await asyncio.wait_for(refused.read(), PATIENCE_S) == b""
        assert server.statistics().limits == {"max_connections": 1}
        late.close()
        writer.write(frame(3, 0, 1, b"\0\0\0\x08"))
        await until([False], closings)
        other = Neighbour(*await asyncio.open_connection(*address.split(":")))
        await other.talk()
        assert GOAWAY in await asyncio.wait_for(reader.read(), PATIENCE_S)
        assert server.statistics().limits == {"max_connections": 1, "idle_connection_s": 1}
        writer.close()
        other.writer.close()
        await eventually(lambda: server.statistics().connections == 1)


async def test_who_is_not_admitted_moves_nobody(tmp_path: Path) -> None:
    ours, authority = tls.self_signed(datetime.datetime.now(datetime.UTC)), Authority(tmp_path / "ca.crt")
    context = tls.server_context(tls.Terms(ours, authority.path.read_bytes()))
    limits = Limits(max_connections=2, idle_connection_s=0.0)
    server = Http2Server({}, limits, context, lambda names: "envoy" in names)
    friend = authority.issue(["envoy"])
    async with serving(server) as address:
        pairs = []
        for shown, welcome in (
            (friend, True),
            (friend, True),
            (None, False),
            (authority.issue(["curious"]), False),
            (friend, True),
        ):
            assert server.statistics().limits == {}
            pairs.append(await over_tls(address, ours, shown))
            assert await greeted(*pairs[-1]) is welcome
        assert server.statistics().limits == {"idle_connection_s": 1}
        assert GOAWAY in await asyncio.wait_for(pairs[0][0].read(), PATIENCE_S)
        await eventually(lambda: server.statistics().connections == 2)
        for _, writer in pairs:
            writer.transport.abort()


async def over_tls(
    address: str, root: tls.Identity, shown: tls.Identity | None = None
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that the client is content with, which the server may not be yet."""
    client = ssl.create_default_context(cadata=root.certificate.decode())
    client.set_alpn_protocols(["h2"])
    if shown is not None:
        tls.load(client, shown)
    return await asyncio.open_connection(*address.split(":"), ssl=client, server_hostname="localhost")


async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    writer.write(HELLO)
    try:
        return await asyncio.wait_for(reader.read(9), PATIENCE_S) != b""
    except (ssl.SSLError, ConnectionError):
        return False


async def test_a_stalled_tls_handshake_counts_as_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GREETING_TIMEOUT_S", 3600.0)
    context = tls.server_context(tls.Terms(tls.self_signed(datetime.datetime.now(datetime.UTC))))
    server = Http2Server({}, Limits(max_connections=5), context)
    async with serving(server) as address:
        pairs = [await asyncio.open_connection(*address.split(":")) for _ in range(8)]
        await eventually(lambda: server.statistics().limits.get("max_connections", 0) == 3)
        for _, writer in pairs:
            writer.close()
    assert server.statistics().limits == {"max_connections": 3}


async def test_a_stalled_tls_handshake_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "GREETING_TIMEOUT_S", 0.05)
    context = tls.server_context(tls.Terms(tls.self_signed(datetime.datetime.now(datetime.UTC))))
    server = Http2Server({}, Limits(), context)
    async with serving(server) as address:
        pairs = [await asyncio.open_connection(*address.split(":")) for _ in range(5)]
        await eventually(lambda: server.statistics().limits.get("handshake_timeout_s", 0) == 5)
        assert server.statistics().connections == 0
        for reader, writer in pairs:
            await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()


async def test_what_speaks_no_tls_is_shown_out_quietly(caplog: pytest.LogCaptureFixture) -> None:
    context = tls.server_context(tls.Terms(tls.self_signed(datetime.datetime.now(datetime.UTC))))
    server = Http2Server({}, Limits(), context)
    async with serving(server) as address:
        for opening in (b"GET / HTTP/1.1\r\n\r\n", HELLO, b"\x16\x03\x01\0\5hello", b""):
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(opening)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), PATIENCE_S)
            writer.close()
        assert server.statistics().connections == 0
    assert not caplog.records


async def test_a_server_without_file_descriptors_waits_and_takes_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door_module, "RETRY_S", 0.05)
    accept = socket.socket.accept
    failures = [errno.EMFILE, errno.ENFILE]

    def failing(self: socket.socket) -> tuple[socket.socket, object]:
        if failures:
            raise OSError(failures.pop(), "no more")
        return accept(self)

    async with scene() as (server, address, _, _):
        monkeypatch.setattr(socket.socket, "accept", failing)
        _reader, writer = await asyncio.open_connection(*address.split(":"))
        await eventually(lambda: server.statistics().connections == 2)
        assert server.statistics().limits == {"open_files": 2}
        writer.close()


async def test_a_half_closed_connection_ends_its_calls() -> None:
    async with scene() as (server, address, _, closings):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(HELLO + call(1, SILENT) + frame(0, 0, 1, b"\0\0\0\1"))
        await eventually(lambda: server.statistics().streams == 2)
        writer.write_eof()
        await until([False], closings)
        await eventually(lambda: server.statistics().connections == 1)
        await asyncio.wait_for(reader.read(), PATIENCE_S)
        writer.close()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a matter of Linux")
async def test_the_kernel_is_told_to_give_up_on_vanished_peers() -> None:
    async with scene() as (server, _, _, _):
        (link,) = server.links
        sock = link._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == door_module.KEEPALIVE_IDLE_S
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == door_module.KEEPALIVE_PROBES
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == door_module.UNREAD_S * 1000


async def test_ten_thousand_calls_leave_nothing_behind_when_their_connection_goes() -> None:
    sessions: weakref.WeakSet[Silent] = weakref.WeakSet()
    closings: list[bool] = []

    def opened(stream: Stream) -> Silent:
        session = Silent(closings)
        sessions.add(session)
        return session

    server = Http2Server({SILENT: opened})
    async with serving(server) as address:
        _reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(HELLO + b"".join(call(2 * number + 1, SILENT) for number in range(10_000)))
        await eventually(lambda: server.statistics().streams == 10_000)
        writer.transport.abort()
        await eventually(lambda: server.statistics().connections == 0)
    assert closings == [False] * 10_000
    gc.collect()
    assert len(sessions) == 0


async def test_a_storm_of_connections_that_come_and_go_leaves_nothing() -> None:
    async with scene() as (server, address, neighbour, _):
        for _ in range(10):
            pairs = await asyncio.gather(*(asyncio.open_connection(*address.split(":")) for _ in range(50)))
            await neighbour.talk()
            for number, (_, writer) in enumerate(pairs):
                if number % 2:
                    writer.write(HELLO[: number + 1])
                writer.transport.abort()
        await eventually(lambda: server.statistics().connections == 1)
        assert not server.statistics().limits


def open_files() -> int:
    return len(os.listdir("/dev/fd"))


async def test_a_storm_of_handshakes_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Given up before they begin, in the middle, when they are done, and with a call open."""
    ours = tls.self_signed(datetime.datetime.now(datetime.UTC))
    closings: list[bool] = []
    routes: dict[str, OpenSession] = {ECHO: lambda stream: Echo(stream, []), SILENT: lambda stream: Silent(closings)}
    server = Http2Server(routes, Limits(), tls.server_context(tls.Terms(ours)))
    async with serving(server) as address:
        neighbour = Neighbour(*await over_tls(address, ours))
        await neighbour.talk()
        before = open_files()
        for _ in range(10):
            plain = [await asyncio.open_connection(*address.split(":")) for _ in range(20)]
            for _, writer in plain[::2]:
                writer.write(HALF_A_CLIENT_HELLO)
            ended = await asyncio.gather(*(over_tls(address, ours) for _ in range(20)))
            for _, writer in ended[::2]:
                writer.write(HELLO + call(1, SILENT))
            await neighbour.talk()
            for number, (_, writer) in enumerate([*plain, *ended]):
                if number % 3:
                    writer.transport.abort()
                else:
                    writer.close()
            await neighbour.talk()
        await eventually(lambda: server.statistics().connections == 1)
        await eventually(lambda: open_files() <= before)
        assert server.statistics().streams == 1
        assert len(closings) == server.statistics().calls - 1
        assert not any(closings)
        assert not server.statistics().limits
        await neighbour.talk()
        neighbour.writer.close()
    assert not caplog.records
