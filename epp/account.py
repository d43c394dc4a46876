"""What the dispatcher keeps of a request: a `Place` while it waits, an `Account` while it runs; and how metrics name it."""

from __future__ import annotations

from collections.abc import Callable

from epp.drops import Drop, Reason
from epp.endpoint import Endpoint
from epp.extproc.events import Arrival, Dispatcher, Routed
from epp.flow.ticket import Ticket
from epp.ledger import Entry
from epp.openai.api import Kind
from epp.openai.body import Parsed
from epp.quota.quota import Grant
from epp.request import Request

NOBODY = ("", "", 0, "default-flow")
"""The metric labels of a request that was not understood: model, target model, priority, fairness id."""


def labels(request: Request | None) -> tuple[str, str, int, str]:
    """Metric labels: model, target model, priority, fairness id."""
    if request is None:
        return NOBODY
    return request.model, request.target_model, request.priority, request.fairness_id


class Account:
    """One routed request until its end: what to settle, and with whom. `grant` is None where no quota holds, `evict` where
    nobody may end it, `recorded` 0 where no decision log holds the pick. `dispatcher` is the one that routed it, and the one
    to tell what becomes of it.
    """

    __slots__ = (
        "content_type",
        "dispatcher",
        "endpoint",
        "entry",
        "evict",
        "grant",
        "kind",
        "opened_s",
        "picked",
        "recorded",
        "request",
        "status",
        "ttft_s",
    )

    def __init__(
        self,
        request: Request,
        kind: Kind,
        endpoint: Endpoint,
        entry: Entry,
        opened_s: float,
        grant: Grant | None,
        recorded: int,
        dispatcher: Dispatcher[Account],
    ) -> None:
        self.dispatcher = dispatcher
        self.request = request
        self.kind = kind
        self.endpoint = self.picked = endpoint
        self.entry = entry
        self.grant = grant
        self.recorded = recorded
        self.opened_s = opened_s
        self.status = 0
        self.content_type = ""
        self.ttft_s: float | None = None
        self.evict: Callable[[Drop], None] | None = None

    def eviction(self, now_s: float) -> Drop:
        """What its client is told where it has to give way now."""
        ran_s = now_s - self.opened_s
        told = f"The request gave way to one of higher priority after {ran_s:.1f} s. Try again later."
        return Drop(Reason.EVICTED, told)


class Place:
    """A request that waits for its turn: a `Waiting` of `epp.extproc.events`."""

    __slots__ = ("_leave", "arrival", "grant", "opened_s", "parsed", "request", "resume", "ticket")

    def __init__(
        self,
        arrival: Arrival,
        parsed: Parsed,
        request: Request,
        grant: Grant | None,
        opened_s: float,
        leave: Callable[[Place, float], None],
    ) -> None:
        self.arrival = arrival
        self.parsed = parsed
        self.request = request
        self.grant = grant
        self.opened_s = opened_s
        self.resume: Callable[[Routed[Account]], None]
        self.ticket: Ticket[Place] | None = None
        self._leave = leave

    def cancel(self, now_s: float) -> None:
        # Its wait may have ended in the very step that is being told to somebody else now.
        self.resume = _unheard
        self._leave(self, now_s)

    def answer(self, routed: Routed[Account]) -> None:
        """The wait is over; from now on it holds neither its ticket nor who waited."""
        resume, self.resume = self.resume, _unheard
        # Together they would live until the collector came by, and the body with them.
        self.ticket = None
        resume(routed)


def _unheard(routed: Routed[Account]) -> None:
    pass
