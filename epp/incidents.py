"""What must never fail a request but somebody should hear of: counted always, logged now and then."""

from __future__ import annotations

import logging
import time

from epp.account import NOBODY
from epp.drops import OUTCOMES, Drop
from epp.extproc.codec import Undecodable
from epp.observe.logs import Every, RefusalLog
from epp.observe.metrics import Metrics

log = logging.getLogger("epp")


class Incidents:
    """Counts what must never fail a request but somebody should hear of; each kind is logged once a minute."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._every = Every(60.0)
        self._refusals = RefusalLog()

    def degraded(self, kind: str, error: Exception) -> None:
        """A bug of ours made a pick worse than it should have been."""
        self._metrics.degraded(kind)
        if times := self._every(kind, time.monotonic()):
            log.error("%s failed and was done without (%d times since the last such line)", kind, times, exc_info=error)

    def fault(self, error: Exception) -> None:
        self.degraded("dispatcher", error)

    def undecodable(self, error: Undecodable) -> None:
        self._metrics.degraded("undecodable")
        if times := self._every("undecodable", time.monotonic()):
            log.warning("a peer sent what is no ProcessingRequest: %s (%d times)", error, times)

    def refused(self, drop: Drop) -> None:
        self._metrics.refused(*NOBODY, OUTCOMES[drop.reason])
        self._refusals.note(drop, None, time.monotonic())

    def limited(self, limit: str) -> None:
        """A peer ran into a limit of the transport, or all arriving bodies together into theirs."""
        self._metrics.limited(limit)
        if times := self._every(f"limit {limit}", time.monotonic()):
            log.warning("a peer ran into the limit %s (%d times since the last such line)", limit, times)
