"""Asks every endpoint for its metrics, each on its own timetable over its own connection: the asyncio shell."""

from __future__ import annotations

import asyncio
import logging
import random
import ssl
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar, cast

import msgspec

from epp.endpoint import Change, Endpoint, Report
from epp.signals.answers import Answer, AnswerParser, Failure, ScrapeError
from epp.signals.engines import MAX_PAGE_BYTES, NOTHING, EngineChoice, PageReader
from epp.signals.schedule import Schedule, phase_s
from epp.signals.source import MetricsSource

logger = logging.getLogger("epp.signals")

DEFAULT_INTERVAL_S = 1.0
DEFAULT_TIMEOUT_S = 2.0
MAX_BACKOFF_S = 5.0

Mark = TypeVar("Mark")


class Sink(Protocol[Mark]):
    """Where reports go. Nothing is called for a slot after `Scraper.follow` was told that its endpoint is removed."""

    def sent(self, slot: int) -> Mark:
        """The question goes out now. The mark comes back with the report: what was picked before it is in the answer."""
        ...

    def reported(self, slot: int, mark: Mark, report: Report, now_s: float) -> None: ...

    def failed(self, slot: int, kind: Failure) -> None: ...


class Scrapes(msgspec.Struct, frozen=True):
    """How the scrapes of one endpoint go. `up` is None before the first result."""

    endpoint: str
    url: str
    up: bool | None
    reports: int
    failures: Mapping[str, int]


class Scraper(Generic[Mark]):
    """Owns the scraping of one pool. To be used on the event loop; `clock` is that loop's monotonic clock in seconds.

    `interval_s` between questions to one endpoint, `timeout_s` for each answer, connecting included.
    """

    def __init__(
        self,
        sink: Sink[Mark],
        clock: Callable[[], float],
        *,
        rng: random.Random,
        source: MetricsSource | None = None,
        engines: EngineChoice | None = None,
        interval_s: float = DEFAULT_INTERVAL_S,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        max_backoff_s: float = MAX_BACKOFF_S,
    ) -> None:
        self.sink = sink
        self.clock = clock
        self.source = source or MetricsSource()
        self.timeout_s = timeout_s
        self.loop = asyncio.get_running_loop()
        self._engines = engines or EngineChoice()
        self._interval_s = self.source.interval_s or interval_s
        self._max_backoff_s = max_backoff_s
        self._rng = rng
        self._targets: dict[int, _Target[Mark]] = {}
        self._lines: set[_Line[Mark]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._all_lost: asyncio.Future[None] | None = None

    def follow(self, change: Change) -> None:
        """Start and stop scraping as the membership changed."""
        for slot, _ in change.removed:
            self._targets.pop(slot).stop()
        for slot, endpoint in change.changed:
            self._targets.pop(slot).stop()
            self._start(slot, endpoint)
        for slot, endpoint in change.added:
            self._start(slot, endpoint)

    def scrapes(self) -> tuple[Scrapes, ...]:
        """A snapshot, one an endpoint."""
        return tuple(target.scrapes() for target in self._targets.values())

    async def close(self) -> None:
        """Stop, and return when no connection and no task is left. Nothing reaches the sink from here on."""
        for target in self._targets.values():
            target.stop()
        self._targets.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._lines:
            self._all_lost = self.loop.create_future()
            await self._all_lost

    def _start(self, slot: int, endpoint: Endpoint) -> None:
        schedule = Schedule(
            self.clock(),
            phase_s=phase_s(slot, self._interval_s),
            interval_s=self._interval_s,
            timeout_s=self.timeout_s,
            max_backoff_s=self._max_backoff_s,
            rng=self._rng,
        )
        self._targets[slot] = _Target(self, slot, endpoint, schedule, PageReader(self._engines.engine(endpoint)))

    def connect(self, target: _Target[Mark], line: _Line[Mark]) -> asyncio.Task[None]:
        """Begin to connect `line`, which reports to `target`."""
        task = self.loop.create_task(target.connect(line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def opened(self, line: _Line[Mark]) -> None:
        self._lines.add(line)

    def lost(self, line: _Line[Mark]) -> None:
        self._lines.discard(line)
        if self._all_lost is not None and not self._lines and not self._all_lost.done():
            self._all_lost.set_result(None)


class _Target(Generic[Mark]):
    """One endpoint: its timetable, its connection, the question that is out."""

    def __init__(
        self, scraper: Scraper[Mark], slot: int, endpoint: Endpoint, schedule: Schedule, reader: PageReader
    ) -> None:
        self._scraper = scraper
        self._slot = slot
        self._endpoint = endpoint
        self._schedule = schedule
        self._reader = reader
        self._request = scraper.source.request(endpoint)
        self._line: _Line[Mark] | None = None
        self._opening: _Line[Mark] | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._stopped = False
        self._mark: Mark
        self._up: bool | None = None
        self._reports = 0
        self._failures: Counter[str] = Counter()
        self._timer = self._arm()

    def scrapes(self) -> Scrapes:
        url = self._scraper.source.url(self._endpoint)
        return Scrapes(self._endpoint.key, url, self._up, self._reports, dict(self._failures))

    def stop(self) -> None:
        self._stopped = True
        self._timer.cancel()
        self._hang_up()

    def _arm(self) -> asyncio.TimerHandle:
        delay_s = self._schedule.wake_s - self._scraper.clock()
        return self._scraper.loop.call_later(max(0.0, delay_s), self._wake)

    def _rearm(self) -> None:
        self._timer.cancel()
        self._timer = self._arm()

    def _wake(self) -> None:
        now_s = self._scraper.clock()
        if self._schedule.overdue(now_s):
            self._fail(ScrapeError(Failure.TIMEOUT, f"no whole answer within {self._scraper.timeout_s:g} s"))
            return
        if self._schedule.due(now_s):
            self._schedule.asked(now_s)
            self._ask()
        self._rearm()

    def _ask(self) -> None:
        if self._line is None:
            self._opening = _Line(self._scraper, self)
            self._connecting = self._scraper.connect(self, self._opening)
        else:
            self._send(self._line)

    def _send(self, line: _Line[Mark]) -> None:
        self._mark = self._scraper.sink.sent(self._slot)
        line.write(self._request)

    async def connect(self, line: _Line[Mark]) -> None:
        """Connect. Success is heard by `opened`, which comes first on the loop."""
        host, port = self._scraper.source.address(self._endpoint)
        try:
            await self._scraper.loop.create_connection(lambda: line, host, port, ssl=self._scraper.source.ssl)
        except asyncio.CancelledError:
            # uvloop closes a connection cancelled at this point without ever calling `connection_lost`.
            line.forsake()
            raise
        except ssl.SSLError as error:
            self._fail(ScrapeError(Failure.TLS, f"no TLS: {error.reason or error}"))
        except (OSError, UnicodeError) as error:
            self._fail(ScrapeError(Failure.CONNECT, f"no connection: {error}"))

    def opened(self, line: _Line[Mark]) -> None:
        if line is not self._opening:
            line.abort()
            return
        self._connecting = self._opening = None
        self._line = line
        self._send(line)

    def expects(self, line: _Line[Mark]) -> bool:
        """Whether bytes on `line` can be an answer. Where not, the line is given up."""
        if line is self._line and self._schedule.waiting:
            return True
        if line is self._line:
            self._hang_up()
        return False

    def heard(self, answer: Answer) -> None:
        """The answer to the question that is out."""
        if not answer.reusable:
            self._hang_up()
        self._take(answer)

    def garbled(self, error: ScrapeError) -> None:
        self._fail(error)

    def lost(self, line: _Line[Mark]) -> None:
        if line is not self._line:
            return
        self._line = None
        if not self._schedule.waiting:
            return
        if line.kept_alive:
            # The server closed an idle connection just as the question went out: that is nobody's fault.
            self._ask()
        else:
            self._fail(ScrapeError(Failure.CLOSED, "the server closed the connection without an answer"))

    def _take(self, answer: Answer) -> None:
        if answer.status != 200:
            redirect = 300 <= answer.status < 400
            failure = Failure.REDIRECT if redirect else Failure.STATUS
            self._fail(ScrapeError(failure, f"the server answered {answer.status}"), hang_up=False)
            return
        report = self._reader.read(answer.body)
        if report == NOTHING:
            engine = self._reader.engine.name
            self._fail(ScrapeError(Failure.EMPTY, f"none of the metrics of {engine} are on the page"), hang_up=False)
            return
        now_s = self._scraper.clock()
        if self._up is not True:
            self._say_up()
        self._reports += 1
        self._schedule.answered(now_s)
        self._rearm()
        self._scraper.sink.reported(self._slot, self._mark, report, now_s)

    def _fail(self, error: ScrapeError, *, hang_up: bool = True) -> None:
        if self._stopped or not self._schedule.waiting:
            return
        if self._up is not False:
            self._say_down(error)
        self._failures[error.failure.value] += 1
        self._schedule.failed(self._scraper.clock())
        if hang_up:
            self._hang_up()
        self._rearm()
        self._scraper.sink.failed(self._slot, error.failure)

    def _hang_up(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.abort()
        self._opening = None
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()

    def _say_down(self, error: ScrapeError) -> None:
        self._up = False
        logger.warning(
            "no metrics from %s at %s: %s; our own account of its load stands in until they come",
            self._endpoint.key,
            self._scraper.source.url(self._endpoint),
            error,
        )

    def _say_up(self) -> None:
        if self._up is False:
            logger.info("metrics from %s are back after %d failures", self._endpoint.key, self._schedule.failures)
        self._up = True


class _Line(asyncio.Protocol, Generic[Mark]):
    """One connection to one endpoint."""

    def __init__(self, scraper: Scraper[Mark], target: _Target[Mark]) -> None:
        self._scraper = scraper
        self._target = target
        self._parser = AnswerParser(MAX_PAGE_BYTES)
        self._transport: asyncio.Transport | None = None
        self._answers = 0
        self._forsaken = False

    @property
    def kept_alive(self) -> bool:
        """Whether it has served before and nothing of a further answer has come."""
        return self._answers > 0 and self._parser.idle

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def forsake(self) -> None:
        """The connection is closed or will be, and may not say so."""
        self._forsaken = True
        self._scraper.lost(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclass of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        if self._forsaken:
            self.abort()
            return
        self._scraper.opened(self)
        self._target.opened(self)

    def data_received(self, data: bytes) -> None:
        self._hear(lambda: self._parser.receive(data))

    def eof_received(self) -> None:
        self._hear(self._parser.end)

    def connection_lost(self, exc: Exception | None) -> None:
        self._scraper.lost(self)
        self._target.lost(self)

    def _hear(self, parse: Callable[[], Answer | None]) -> None:
        if not self._target.expects(self):
            return
        try:
            answer = parse()
        except ScrapeError as error:
            self._target.garbled(error)
            return
        if answer is not None:
            self._answers += 1
            self._target.heard(answer)
