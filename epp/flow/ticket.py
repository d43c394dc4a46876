"""A request waiting in flow control, and how its wait can end."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from math import inf
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import msgspec

from epp.drops import Reason

if TYPE_CHECKING:
    from epp.flow.heap import Entry
    from epp.flow.turns import Flow

Payload = TypeVar("Payload")


class Ending(enum.Enum):
    """How a wait ended. The value is the metric label `outcome`."""

    DISPATCHED = "Dispatched"
    REJECTED_CAPACITY = "RejectedCapacity"
    REJECTED_NO_ENDPOINTS = "RejectedNoEndpoints"
    REJECTED_SHUTTING_DOWN = "RejectedShuttingDown"
    EVICTED_TTL = "EvictedTTL"
    EVICTED_NO_ENDPOINTS = "EvictedNoEndpoints"
    EVICTED_CANCELLED = "EvictedContextCancelled"
    EVICTED_PRESSURE = "EvictedQueuePressure"
    EVICTED_SHUTTING_DOWN = "EvictedShuttingDown"


REASONS: Final[Mapping[Ending, Reason]] = {
    Ending.REJECTED_CAPACITY: Reason.SATURATED,
    Ending.REJECTED_NO_ENDPOINTS: Reason.NO_ENDPOINTS,
    Ending.REJECTED_SHUTTING_DOWN: Reason.SHUTTING_DOWN,
    Ending.EVICTED_TTL: Reason.TTL_EXPIRED,
    Ending.EVICTED_NO_ENDPOINTS: Reason.TTL_EXPIRED_NO_ENDPOINTS,
    Ending.EVICTED_CANCELLED: Reason.CLIENT_GONE,
    Ending.EVICTED_PRESSURE: Reason.EVICTED_QUEUE_PRESSURE,
    Ending.EVICTED_SHUTTING_DOWN: Reason.SHUTTING_DOWN,
}
"""Every ending but the good one, as the client is told of it."""


class Ticket(Generic[Payload]):
    """One request that asks for its turn.

    `tokens` is what it will cost a server, at least 1: its uncached prompt. `held_bytes` is what it holds in memory. `max_wait_s` is the
    longest wait that the client accepts, `slo_deadline_s` when it wants its first token at the latest; inf where it says nothing.
    `payload` is the caller's. The rest belongs to flow control; `empty_s` is for how long it waited while the pool was empty, up to
    the pool's latest change.
    """

    __slots__ = (
        "due",
        "empty_s",
        "enqueued_s",
        "entered",
        "fairness_id",
        "flow",
        "held_bytes",
        "max_wait_s",
        "payload",
        "place",
        "priority",
        "slo_deadline_s",
        "tokens",
    )

    def __init__(
        self,
        payload: Payload,
        *,
        priority: int = 0,
        fairness_id: str = "default-flow",
        tokens: int = 1,
        held_bytes: int = 0,
        max_wait_s: float = inf,
        slo_deadline_s: float = inf,
    ) -> None:
        self.payload = payload
        self.priority = priority
        self.fairness_id = fairness_id
        self.tokens = max(1, tokens)
        self.held_bytes = held_bytes
        self.max_wait_s = max_wait_s
        self.slo_deadline_s = slo_deadline_s
        self.enqueued_s = 0.0
        self.empty_s = 0.0
        self.entered = 0
        self.flow: Flow[Payload] | None = None
        self.place: Entry[Ticket[Payload]] | None = None
        self.due: Entry[Ticket[Payload]] | None = None

    def __repr__(self) -> str:
        state = "waiting" if self.waiting else "not waiting"
        return f"<Ticket {self.priority} {self.fairness_id!r}, {self.tokens} tokens, {state}>"

    @property
    def waiting(self) -> bool:
        """Whether it stands in a line. A ticket waits once at most."""
        return self.flow is not None


class Settled(msgspec.Struct, Generic[Payload], frozen=True, eq=False):
    """The one ending of a ticket, after `waited_s` in line."""

    ticket: Ticket[Payload]
    ending: Ending
    waited_s: float
