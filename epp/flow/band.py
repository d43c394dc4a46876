"""One priority level: its tickets by flow, and who makes room in it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Generic

import msgspec

from epp.flow.programs import ProgramAware
from epp.flow.settings import BandSettings, Policies
from epp.flow.ticket import Payload, Ticket
from epp.flow.turns import Flow, OneLine, RoundRobin, Turns, WeightedTokens


class FlowState(msgspec.Struct, frozen=True):
    """One tenant's part of a band."""

    fairness_id: str
    requests: int
    bytes: int


class BandState(msgspec.Struct, frozen=True):
    """One priority level as it is now."""

    priority: int
    requests: int
    bytes: int
    max_requests: int
    max_bytes: int
    flows: tuple[FlowState, ...]


class Band(Generic[Payload]):
    """The tickets of one priority stand in the order in which they came. Where its policy tells flows apart, no flow keeps another
    out: see `hoarded`.
    """

    __slots__ = (
        "_by_bytes",
        "_by_requests",
        "_divides",
        "bytes",
        "flows",
        "idle_since_s",
        "priority",
        "settings",
        "tickets",
        "turns",
    )

    def __init__(self, priority: int, settings: BandSettings, now_s: float) -> None:
        self.priority = priority
        self.settings = settings
        self.turns: Turns[Payload] = _turns(settings.policies)
        self.flows: dict[str, Flow[Payload]] = {}
        self.tickets: OrderedDict[Ticket[Payload], None] = OrderedDict()
        self.bytes = 0
        self.idle_since_s = now_s
        self._divides = settings.policies.fairness != "global-strict"
        self._by_requests: _Sizes[Payload] = _Sizes(_requests)
        self._by_bytes: _Sizes[Payload] = _Sizes(_bytes)

    def add(self, ticket: Ticket[Payload]) -> None:
        flow = self.flows.get(ticket.fairness_id)
        if flow is None:
            flow = self.flows[ticket.fairness_id] = self.turns.open(ticket.fairness_id)
        ticket.flow = flow
        flow.tickets[ticket] = None
        flow.bytes += ticket.held_bytes
        self.tickets[ticket] = None
        self.bytes += ticket.held_bytes
        if self._divides:
            count = len(flow.tickets)
            self._by_requests.changed(flow, count - 1, count)
            self._by_bytes.changed(flow, flow.bytes - ticket.held_bytes, flow.bytes)
        flow.line.add(ticket)

    def take(self) -> Ticket[Payload]:
        line = self.turns.next()
        ticket = line.first()
        flow = ticket.flow
        assert flow is not None
        line.take(ticket)
        self.turns.took(flow, ticket.tokens)
        self._forget(ticket, flow)
        return ticket

    def remove(self, ticket: Ticket[Payload]) -> None:
        flow = ticket.flow
        assert flow is not None
        flow.line.remove(ticket)
        self._forget(ticket, flow)

    def newest(self) -> Iterator[Ticket[Payload]]:
        return reversed(self.tickets)

    def hoarded(self, ticket: Ticket[Payload], requests: float, held_bytes: float) -> list[Ticket[Payload]] | None:
        """The newest of one flow that are so many `requests` and `held_bytes` at least, to make room for `ticket`: of a flow that
        holds about the most, and will still hold no less than the ticket's own. None where there is no such flow, or flows are not
        told apart.
        """
        if not self._divides:
            return None
        # Who holds the most bytes may do so in one request, and who holds the most requests in few bytes.
        for bound, sizes in ((held_bytes, self._by_bytes), (requests, self._by_requests)):
            flow = sizes.largest() if bound > 0 else None
            victims = self._spared(flow, ticket, requests, held_bytes) if flow is not None else None
            if victims is not None:
                return victims
        return None

    def _spared(
        self, flow: Flow[Payload], ticket: Ticket[Payload], requests: float, held_bytes: float
    ) -> list[Ticket[Payload]] | None:
        """Of `flow`, as `hoarded` says."""
        own = self.flows.get(ticket.fairness_id)
        if flow is own:
            return None
        spare_requests = len(flow.tickets) - 1 - (len(own.tickets) if own is not None else 0)
        spare_bytes = flow.bytes - ticket.held_bytes - (own.bytes if own is not None else 0)
        victims: list[Ticket[Payload]] = []
        freed = 0
        for victim in reversed(flow.tickets):
            if len(victims) >= requests and freed >= held_bytes:
                break
            victims.append(victim)
            freed += victim.held_bytes
            if (requests > 0 and len(victims) > spare_requests) or (held_bytes > 0 and freed > spare_bytes):
                return None
        return victims if len(victims) >= requests and freed >= held_bytes else None

    def _forget(self, ticket: Ticket[Payload], flow: Flow[Payload]) -> None:
        ticket.flow = None
        del self.tickets[ticket]
        self.bytes -= ticket.held_bytes
        del flow.tickets[ticket]
        flow.bytes -= ticket.held_bytes
        if self._divides:
            count = len(flow.tickets)
            self._by_requests.changed(flow, count + 1, count)
            self._by_bytes.changed(flow, flow.bytes + ticket.held_bytes, flow.bytes)
        if not flow.tickets:
            self.turns.close(flow)
            del self.flows[flow.fairness_id]

    def state(self) -> BandState:
        flows = tuple([FlowState(flow.fairness_id, len(flow.tickets), flow.bytes) for flow in self.flows.values()])
        settings = self.settings
        return BandState(self.priority, len(self.tickets), self.bytes, settings.max_requests, settings.max_bytes, flows)


_COMPARED = 16
"""Of flows alike to a power of two, so many are compared: there may be thousands of them."""


class _Sizes(Generic[Payload]):
    """Flows by how much they hold, to a power of two: following each change costs 0.1 µs where a heap would take 2."""

    __slots__ = ("_by_bits", "_size")

    def __init__(self, size: Callable[[Flow[Payload]], int]) -> None:
        self._size = size
        self._by_bits: dict[int, dict[Flow[Payload], None]] = {}

    def changed(self, flow: Flow[Payload], before: int, after: int) -> None:
        old, new = before.bit_length(), after.bit_length()
        if old == new:
            return
        if old:
            level = self._by_bits[old]
            del level[flow]
            if not level:
                del self._by_bits[old]
        if new:
            self._by_bits.setdefault(new, {})[flow] = None

    def largest(self) -> Flow[Payload] | None:
        """The one that holds most; with many of that size, one that holds more than half of that. None where nobody holds anything."""
        if not self._by_bits:
            return None
        return max(islice(self._by_bits[max(self._by_bits)], _COMPARED), key=self._size)


def _requests(flow: Flow[Payload]) -> int:
    return len(flow.tickets)


def _bytes(flow: Flow[Payload]) -> int:
    return flow.bytes


def _turns(policies: Policies) -> Turns[Payload]:
    match policies.fairness:
        case "global-strict":
            return OneLine(policies)
        case "round-robin":
            return RoundRobin(policies)
        case "weighted-tokens":
            return WeightedTokens(policies)
        case "program-aware":
            return ProgramAware(policies)
