"""From one server's metrics page to everything that goes by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from epp.endpoint import CacheConfig, Endpoints, Report
from epp.ledger import Ledger, Mark
from epp.observe.metrics import Metrics
from epp.prefix.index import PrefixIndex, blocks_in
from epp.signals.answers import Failure

STALLED_SCRAPES = 2
"""Scrapes in a row without an answer in time (2 s each) after which a server that shares its port with its metrics page is passed
over, while others can be reached: it takes connections and answers nothing. Its next page brings it back."""


class Reports:
    """Where scrapes go: the columns, the ledger, the prefix index. A `Sink`."""

    def __init__(
        self,
        endpoints: Endpoints,
        ledger: Ledger,
        index: PrefixIndex,
        metrics: Metrics,
        *,
        auto_tune: bool,
        clock: Callable[[], float],
        load_fell: Callable[[], None] = lambda: None,
    ) -> None:
        self._load_fell = load_fell
        self._endpoints = endpoints
        self._ledger = ledger
        self._index = index
        self._metrics = metrics
        self._auto_tune = auto_tune
        self._caches: dict[int, CacheConfig] = {}
        self._late: Counter[int] = Counter()
        self.clock = clock

    def sent(self, slot: int) -> Mark:
        return self._ledger.report_sent(slot, self.clock())

    def reported(self, slot: int, mark: Mark, report: Report, now_s: float) -> None:
        self._endpoints.report(slot, report, now_s)
        self._late.pop(slot, None)
        if self._ledger.reported(slot, mark, report, now_s):
            self._index.empty(slot)
        self._load_fell()
        if self._auto_tune and report.cache is not None and report.cache != self._caches.get(slot):
            self._caches[slot] = report.cache
            self._index.resize(slot, max(1, blocks_in(report.cache)))

    def failed(self, slot: int, kind: Failure) -> None:
        self._metrics.scrape_failed(kind.value)
        endpoint = self._endpoints.at(slot)
        # Only where metrics and requests share a port does a scrape say what becomes of requests.
        if endpoint is None or endpoint.metrics_port not in (None, endpoint.port):
            return
        if kind is Failure.TIMEOUT:
            self._late[slot] += 1
        if kind is Failure.CONNECT or self._late[slot] >= STALLED_SCRAPES:
            self._endpoints.set_unreachable(slot, True)

    def forget(self, slot: int) -> None:
        self._late.pop(slot, None)
        self._caches.pop(slot, None)
        self._index.forget(slot)
