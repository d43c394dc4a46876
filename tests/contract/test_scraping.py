"""The scraper against servers on the loopback that answer well, late, in pieces, too much, wrongly, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import functools
import inspect
import itertools
import logging
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from epp.endpoint import Change, Endpoint, Report
from epp.signals.answers import Failure
from epp.signals.engines import MAX_PAGE_BYTES
from epp.signals.scraper import Scraper
from epp.signals.source import MetricsSource
from tests.waiting import PATIENCE_S

PAGE = b"vllm:num_requests_waiting 4\nvllm:num_requests_running 2\n"
REPORT = Report(waiting=4.0, running=2.0)
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def on_both_loops(test: Callable[..., Coroutine[None, None, None]]) -> Callable[..., None]:
    """Run the test on asyncio's own loop and on uvloop, whose transports differ in the order of their callbacks."""

    @functools.wraps(test)
    def run(loop_factory: Callable[[], asyncio.AbstractEventLoop], **arguments: object) -> None:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(test(**arguments))

    wanted = inspect.signature(test)
    extra = inspect.Parameter("loop_factory", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    run.__signature__ = wanted.replace(parameters=[extra, *wanted.parameters.values()])  # type: ignore[attr-defined]
    factories = [asyncio.new_event_loop, uvloop.new_event_loop]
    marked: Callable[..., None] = pytest.mark.parametrize("loop_factory", factories, ids=["asyncio", "uvloop"])(run)
    return marked


class Ear:
    """A sink that keeps what it hears and lets a test wait for it."""

    def __init__(self) -> None:
        self.marks = itertools.count()
        self.sent_marks: list[tuple[int, int]] = []
        self.heard: list[tuple[int, Report | Failure]] = []
        self.marked: list[tuple[int, int]] = []
        self._news = asyncio.Event()

    def sent(self, slot: int) -> int:
        self.sent_marks.append((slot, mark := next(self.marks)))
        return mark

    def reported(self, slot: int, mark: int, report: Report, now_s: float) -> None:
        self.marked.append((slot, mark))
        self._hear(slot, report)

    def failed(self, slot: int, kind: Failure) -> None:
        self._hear(slot, kind)

    def _hear(self, slot: int, what: Report | Failure) -> None:
        self.heard.append((slot, what))
        self._news.set()

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not enough():
                self._news.clear()
                await self._news.wait()

    async def of(self, slot: int, count: int = 1) -> list[Report | Failure]:
        """The first `count` things heard of a slot."""
        await self.until(lambda: len(self.said(slot)) >= count)
        return self.said(slot)[:count]

    def said(self, slot: int) -> list[Report | Failure]:
        return [what for who, what in self.heard if who == slot]


class Server:
    """A server whose every connection is served by `serve`; counts connections."""

    def __init__(self, serve: Serve, tls: ssl.SSLContext | None = None) -> None:
        self._serve = serve
        self._tls = tls
        self.connections = 0
        self.port = 0

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self._serve(reader, writer)
        with contextlib.suppress(ConnectionError, asyncio.CancelledError, ssl.SSLError):
            writer.close()
            await writer.wait_closed()

    @contextlib.asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator[Endpoint]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", port, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield endpoint(self.port)
        finally:
            server.close()


def endpoint(port: int, name: str = "a", **more: str | int) -> Endpoint:
    return Endpoint(name=name, address="127.0.0.1", port=port, **more)  # type: ignore[arg-type]


def added(*endpoints: Endpoint) -> Change:
    return Change(tuple(enumerate(endpoints)), ())


@contextlib.asynccontextmanager
async def scraping(
    ear: Ear, *endpoints: Endpoint, timeout_s: float = 2 * PATIENCE_S, **more: object
) -> AsyncIterator[Scraper[int]]:
    loop = asyncio.get_running_loop()
    scraper = Scraper(
        ear,
        loop.time,
        rng=random.Random(1),
        interval_s=0.02,
        timeout_s=timeout_s,
        max_backoff_s=0.05,
        **more,  # type: ignore[arg-type]
    )
    scraper.follow(added(*endpoints))
    try:
        yield scraper
    finally:
        await scraper.close()


def with_length(page: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"content-length: {len(page)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + page


def always(answer: bytes, *, close: bool = False) -> Serve:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            if close:
                return

    return serve


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def in_pieces(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Enc")
        await asyncio.sleep(0.002)
        writer.write(b"oding: chunked\r\n\r")
        await asyncio.sleep(0.002)
        writer.write(b"\n%x\r\n" % len(PAGE) + PAGE[:9])
        await asyncio.sleep(0.002)
        writer.write(PAGE[9:] + b"\r\n0\r\n\r\n")


@on_both_loops
async def test_one_connection_serves_every_scrape() -> None:
    ear, server = Ear(), Server(always(with_length(PAGE)))
    async with server.running() as one, scraping(ear, one) as scraper:
        assert await ear.of(0, 5) == [REPORT] * 5
        assert server.connections == 1
        (state,) = scraper.scrapes()
    assert (state.up, state.failures) == (True, {})
    assert state.reports >= 5
    assert state.url == f"http://127.0.0.1:{server.port}/metrics"
    assert ear.marked[:5] == ear.sent_marks[:5]


@on_both_loops
async def test_the_request() -> None:
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))

    ear, server = Ear(), Server(serve)
    async with (
        server.running(),
        scraping(ear, endpoint(1, metrics_port=2), source=MetricsSource(path="/stats?all=1", port=server.port)),
    ):
        await ear.of(0)
    assert asked[0].startswith(b"GET /stats?all=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\n" % server.port)


@pytest.mark.parametrize(
    "serve",
    [
        in_pieces,
        always(with_length(PAGE, "200 OK", "connection: close"), close=True),
        always(with_length(PAGE), close=True),
        always(b"HTTP/1.0 200 OK\r\n\r\n" + PAGE, close=True),
    ],
    ids=["pieces", "announced close", "unannounced close", "body to the end"],
)
@on_both_loops
async def test_ways_of_answering_well(serve: Serve) -> None:
    ear, server = Ear(), Server(serve)
    async with server.running() as one, scraping(ear, one):
        assert await ear.of(0, 4) == [REPORT] * 4


@pytest.mark.parametrize(
    ("serve", "failure"),
    [
        (silent, Failure.TIMEOUT),
        (always(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nvllm"), Failure.TIMEOUT),
        (always(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\nvllm", close=True), Failure.CLOSED),
        (always(b"", close=True), Failure.CLOSED),
        (always(b"\x15\x03\x01\x00\x02\x02\x16"), Failure.MALFORMED),
        (always(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (MAX_PAGE_BYTES + 1)), Failure.TOO_LARGE),
        (always(b"HTTP/1.1 200 OK\r\n\r\n" + b"#" * (MAX_PAGE_BYTES + 1)), Failure.TOO_LARGE),
        (always(with_length(b"", "307 Temporary Redirect", "location: /metrics/")), Failure.REDIRECT),
        (always(with_length(b"no", "404 Not Found")), Failure.STATUS),
        (always(with_length(b"<html></html>")), Failure.EMPTY),
    ],
)
@on_both_loops
async def test_ways_of_answering_badly(serve: Serve, failure: Failure) -> None:
    """Each is told by its kind, again and again, and a good server beside it is not disturbed."""
    ear, bad, good = Ear(), Server(serve), Server(always(with_length(PAGE)))
    # Where the answer never comes; a good server may be as late as that on a busy machine.
    timeouts = {"timeout_s": 0.1} if failure is Failure.TIMEOUT else {}
    async with bad.running() as one, good.running() as two, scraping(ear, one, two, **timeouts) as scraper:
        assert await ear.of(0, 2) == [failure] * 2
        await ear.until(lambda: ear.said(1).count(REPORT) >= 3)
        assert all(what == REPORT or (timeouts and what is Failure.TIMEOUT) for what in ear.said(1))
        state = scraper.scrapes()[0]
    assert (state.up, state.reports) == (False, 0)
    assert set(state.failures) == {failure.value}


@on_both_loops
async def test_a_dead_and_a_silent_server_delay_no_other() -> None:
    """The good one is asked forty times while the silent one's first question is still out."""
    ear, good, mute = Ear(), Server(always(with_length(PAGE))), Server(silent)
    async with good.running() as one, mute.running() as two, scraping(ear, one, two, timeout_s=300.0):
        assert await ear.of(0, 40) == [REPORT] * 40
        assert ear.said(1) == []
        assert mute.connections == 1


@on_both_loops
async def test_refused_and_then_there(caplog: pytest.LogCaptureFixture) -> None:
    ear, server = Ear(), Server(always(with_length(PAGE)))
    async with server.running() as one:
        pass
    caplog.set_level(logging.INFO, "epp.signals")
    async with scraping(ear, one):
        assert await ear.of(0, 3) == [Failure.CONNECT] * 3
        async with server.running(one.port):
            await ear.until(lambda: ear.said(0)[-2:] == [REPORT] * 2)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert messages[0].startswith(f"no metrics from default/a at http://127.0.0.1:{one.port}/metrics: no connection")
    assert messages[1].startswith("metrics from default/a are back after ")


@on_both_loops
async def test_a_name_that_does_not_exist() -> None:
    ear = Ear()
    async with scraping(ear, Endpoint(name="a", address="nowhere.invalid", port=1)):
        assert await ear.of(0) == [Failure.CONNECT]
    async with scraping(ear, Endpoint(name="b", address="x" * 70 + ".invalid", port=1)):
        assert await ear.of(0, 2) == [Failure.CONNECT] * 2


@on_both_loops
async def test_an_answer_is_never_taken_for_a_later_tenant() -> None:
    """The first tenant's answer arrives after it has left and another has its slot."""
    asked, answer_now = asyncio.Event(), asyncio.Event()

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await answer_now.wait()
        writer.write(with_length(b"vllm:num_requests_waiting 99\n"))

    ear, slow, good = Ear(), Server(late), Server(always(with_length(PAGE)))
    async with slow.running() as old, good.running() as new, scraping(ear, old) as scraper:
        await asked.wait()
        scraper.follow(Change(((0, new),), ((0, old),)))
        answer_now.set()
        assert await ear.of(0, 5) == [REPORT] * 5


@on_both_loops
async def test_removed_at_every_turn_of_the_loop() -> None:
    """Nothing reaches the sink for an endpoint that is gone, however far its connection had come."""
    ear, server = Ear(), Server(always(with_length(PAGE)))
    async with server.running() as one, scraping(ear) as scraper:
        for turns in range(12):
            scraper.follow(added(one))
            for _ in range(turns):
                await asyncio.sleep(0)
            scraper.follow(Change((), ((0, one),)))
            reached = len(ear.sent_marks), len(ear.heard)
            await asyncio.sleep(0.005)
            assert (len(ear.sent_marks), len(ear.heard)) == reached
        assert scraper.scrapes() == ()


@on_both_loops
async def test_an_idle_connection_closed_as_the_question_goes_out_is_no_failure() -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(with_length(PAGE))
        await reader.readuntil(b"\r\n\r\n")

    ear, server = Ear(), Server(once)
    async with server.running() as one, scraping(ear, one):
        assert await ear.of(0, 4) == [REPORT] * 4
    assert server.connections >= 4
    assert len(ear.sent_marks) >= 7


@on_both_loops
async def test_an_endpoint_described_anew_is_asked_anew() -> None:
    ear, server = Ear(), Server(always(with_length(b"sglang:num_queue_reqs 7\n")))
    async with server.running() as one, scraping(ear, one) as scraper:
        assert await ear.of(0) == [Failure.EMPTY]
        labelled = endpoint(one.port, labels={"llm-d.ai/engine-type": "sglang"})  # type: ignore[arg-type]
        scraper.follow(Change((), (), ((0, labelled),)))
        await ear.until(lambda: ear.said(0)[-1] == Report(waiting=7.0))


@on_both_loops
async def test_bytes_that_nobody_asked_for_cost_the_connection_and_nothing_else() -> None:
    async def chatty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        heard = len(ear.heard)
        writer.write(with_length(PAGE))
        await ear.until(lambda: len(ear.heard) > heard)
        writer.write(with_length(b"vllm:num_requests_waiting 99\n")[:20])
        await reader.read()

    ear, server = Ear(), Server(chatty)
    async with server.running() as one, scraping(ear, one):
        assert await ear.of(0, 4) == [REPORT] * 4
    assert server.connections >= 3


@on_both_loops
async def test_a_sink_that_raises_stops_neither_itself_nor_others() -> None:
    class Touchy(Ear):
        def reported(self, slot: int, mark: int, report: Report, now_s: float) -> None:
            super().reported(slot, mark, report, now_s)
            if slot == 0:
                raise RuntimeError("a fault of the sink")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    ear, server = Touchy(), Server(always(with_length(PAGE)))
    async with server.running() as one, scraping(ear, one, endpoint(one.port, "b")):
        await ear.of(0, 3)
        assert await ear.of(1, 3) == [REPORT] * 3


@on_both_loops
async def test_closing_leaves_nothing_behind() -> None:
    ear, server, mute = Ear(), Server(always(with_length(PAGE))), Server(silent)
    before = asyncio.all_tasks()
    async with server.running() as one, mute.running() as two:
        async with scraping(ear, one, two, endpoint(two.port, "c")):
            await ear.of(0, 2)
        heard, sent = len(ear.heard), len(ear.sent_marks)
        await asyncio.sleep(0.06)
        assert (len(ear.heard), len(ear.sent_marks)) == (heard, sent)
    async with asyncio.timeout(PATIENCE_S):
        while asyncio.all_tasks() != before:  # noqa: ASYNC110 - tasks that end tell nobody
            await asyncio.sleep(0)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    start = datetime.datetime(2020, 1, 1)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem, secret = folder / "tls.crt", folder / "tls.key"
    pem.write_bytes(built.public_bytes(serialization.Encoding.PEM))
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    secret.write_bytes(key.private_bytes(*encoding))
    return pem, secret


@on_both_loops
async def test_https(certificate: tuple[Path, Path]) -> None:
    pem, secret = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, secret)
    server = Server(always(with_length(PAGE)), context)
    trusting = MetricsSource(scheme="https")
    checking = MetricsSource(scheme="https", insecure_skip_verify=False, ca_cert_path=str(pem))
    strangers = MetricsSource(scheme="https", insecure_skip_verify=False)
    async with server.running() as one:
        named = Endpoint(name="a", address=one.address, port=one.port, metrics_address="localhost")
        for source, target, expected in [
            (trusting, one, [REPORT] * 3),
            (checking, named, [REPORT] * 3),
            (checking, one, [Failure.TLS] * 3),
            (strangers, named, [Failure.TLS] * 3),
        ]:
            ear = Ear()
            async with scraping(ear, target, source=source):
                assert await ear.of(0, 3) == expected
