"""The observation port as its clients meet it, over real sockets."""

from __future__ import annotations

import asyncio
import datetime
import http.client
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from epp.extproc import tls
from epp.observe import http as observation
from epp.observe.http import TEXT, Answer, ObservationServer
from tests.unit.test_metrics_exposition import OPENMETRICS, exposition
from tests.waiting import PATIENCE_S


class Switch:
    """Readiness that a test turns."""

    def __init__(self) -> None:
        self.on = True


@asynccontextmanager
async def serving(*, idle_s: float = 5.0) -> AsyncIterator[tuple[int, Switch]]:
    ready = Switch()

    def broken() -> Answer:
        raise RuntimeError("a bug")

    routes = {"/debug/state": lambda: (200, "application/json", b'{"a": 1}'), "/broken": broken}
    server = ObservationServer(exposition().pieces, lambda: ready.on, routes, idle_s=idle_s)
    port = await server.start("127.0.0.1", 0)
    try:
        yield port, ready
    finally:
        await server.close()


async def exchange(port: int, *requests: bytes, then: bytes = b"") -> bytes:
    """Everything that the server says to these bytes until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests) + then)
    said = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    return said


def get(path: str, *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "host: x", *fields, "", ""]).encode()


async def ask(port: int, path: str, *fields: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    said = await exchange(port, get(path, "connection: close", *fields, method=method))
    head, _, body = said.partition(b"\r\n\r\n")
    status_line, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(status_line.split(" ")[1]), headers, body


async def greeted(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection that the server is known to serve, idle after one answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(get("/healthz"))
    await reader.readuntil(b"ok\n")
    return reader, writer


@pytest.mark.parametrize("accept", ["text/plain", OPENMETRICS])
async def test_the_metrics_page_parses_in_the_format_asked_for(accept: str) -> None:
    async with serving() as (port, _):
        status, headers, body = await ask(port, "/metrics?x=1", f"accept: {accept}")
    assert status == 200
    assert headers["content-type"].startswith(accept)
    assert headers["content-length"] == str(len(body))
    parse = parse_openmetrics if accept == OPENMETRICS else parse_text
    names = {family.name for family in parse(body.decode())}
    assert "inference_pool_average_queue_size" in names


async def test_liveness_and_readiness() -> None:
    async with serving() as (port, ready):
        assert (await ask(port, "/healthz"))[0] == 200
        assert (await ask(port, "/readyz"))[0] == 200
        ready.on = False
        assert (await ask(port, "/readyz"))[0] == 503
        assert (await ask(port, "/healthz"))[0] == 200


async def test_further_routes() -> None:
    async with serving() as (port, _):
        status, headers, body = await ask(port, "/debug/state")
    assert (status, headers["content-type"], body) == (200, "application/json", b'{"a": 1}')


async def test_head_has_the_length_and_no_body() -> None:
    async with serving() as (port, _):
        whole = await ask(port, "/healthz")
        status, headers, body = await ask(port, "/healthz", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["content-length"] == whole[1]["content-length"]


async def test_other_paths_and_methods_say_what_there_is() -> None:
    async with serving() as (port, _):
        status, _, body = await ask(port, "/nowhere")
        assert status == 404
        assert b"/metrics" in body
        status, headers, _ = await ask(port, "/metrics", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


async def test_a_route_that_raises_is_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (port, _):
        status, _, body = await ask(port, "/broken")
    assert status == 500
    assert b"a bug" not in body
    assert "no answer for /broken" in caplog.text


async def test_a_connection_carries_many_requests_also_when_pipelined() -> None:
    async with serving() as (port, _):
        said = await exchange(port, get("/healthz") * 3, then=get("/healthz", "connection: close"))
    assert said.count(b"HTTP/1.1 200 OK") == 4


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/healthz", version="HTTP/1.0"),
        get("/healthz", "Connection: Close"),
        get("/healthz", "content-length: 30"),
        get("/healthz", "transfer-encoding: chunked"),
    ],
)
async def test_some_requests_are_the_last_of_their_connection(request_bytes: bytes) -> None:
    async with serving() as (port, _):
        said = await exchange(port, request_bytes, then=get("/healthz"))
    assert said.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET  HTTP/1.1\r\n\r\n", 400),
        (get("/healthz", version="HTTP/2.0"), 505),
        (get("/healthz", "no colon"), 400),
        (get("/healthz", "space : x"), 400),
        (b"\x16\x03\x01\x00\xff\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"a" * 20_000, 431),
    ],
)
async def test_what_is_no_request_is_refused_and_the_connection_ends(sent: bytes, status: int) -> None:
    async with serving() as (port, _):
        said = await exchange(port, sent)
    assert said.startswith(f"HTTP/1.1 {status} ".encode())


@pytest.mark.parametrize("sent", [b"", b"GET /metr"])
async def test_a_connection_that_says_nothing_is_closed(sent: bytes) -> None:
    async with serving(idle_s=0.05) as (port, _):
        assert await exchange(port, sent) == b""


async def test_one_connection_too_many_is_closed_and_one_that_ends_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observation, "MAX_CONNECTIONS", 1)
    async with serving() as (port, _):
        reader, first = await greeted(port)
        assert await exchange(port, get("/healthz", "connection: close")) == b""
        first.write(get("/healthz", "connection: close"))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
        first.close()
        await first.wait_closed()
        assert (await ask(port, "/healthz"))[0] == 200


async def test_other_work_goes_on_while_the_page_is_written() -> None:
    turns = 0
    seen: list[int] = []

    def pieces(accept: str) -> tuple[str, Iterator[bytes]]:
        def write() -> Iterator[bytes]:
            for _ in range(10):
                seen.append(turns)
                yield b"x\n"

        return TEXT, write()

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    server = ObservationServer(pieces, lambda: True)
    port = await server.start("127.0.0.1", 0)
    worker = asyncio.create_task(work())
    _, _, body = await ask(port, "/metrics")
    worker.cancel()
    await server.close()
    assert body == b"x\n" * 10
    assert len(set(seen)) == 10


async def test_closing_ends_idle_connections_and_frees_the_port() -> None:
    server = ObservationServer(exposition().pieces, lambda: True)
    await server.close()
    port = await server.start("127.0.0.1", 0)
    reader, writer = await greeted(port)
    await asyncio.wait_for(server.close(), PATIENCE_S)
    await server.close()
    assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    writer.close()
    await writer.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_over_tls_it_is_http_1_whatever_the_client_offers() -> None:
    identity = tls.self_signed(datetime.datetime.now(datetime.UTC))
    client = ssl.create_default_context(cadata=identity.certificate.decode())
    client.set_alpn_protocols(["h2", "http/1.1"])
    server = ObservationServer(exposition().pieces, lambda: True)
    port = await server.start("127.0.0.1", 0, tls.server_context(tls.Terms(identity), protocol="http/1.1"))
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
    negotiated = writer.get_extra_info("ssl_object").selected_alpn_protocol()
    writer.write(get("/healthz", "connection: close"))
    said = await asyncio.wait_for(reader.read(), PATIENCE_S)
    writer.close()
    await writer.wait_closed()
    await server.close()
    assert negotiated == "http/1.1"
    assert said.startswith(b"HTTP/1.1 200 OK")


async def test_the_standard_librarys_client_is_served() -> None:
    def fetch(port: int) -> list[tuple[int, int]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        answers = []
        for path in ("/metrics", "/healthz", "/metrics"):
            connection.request("GET", path, headers={"accept-encoding": "gzip"})
            response = connection.getresponse()
            answers.append((response.status, len(response.read())))
        connection.close()
        return answers

    async with serving() as (port, _):
        answers = await asyncio.to_thread(fetch, port)
    assert [status for status, _ in answers] == [200, 200, 200]
    assert answers[0][1] > 10_000
