"""The order between flows: whose first ticket goes next."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, Protocol

from epp.flow.heap import Entry, Heap
from epp.flow.lines import Line, new_line
from epp.flow.settings import Policies
from epp.flow.ticket import Payload, Ticket


class Flow(Generic[Payload]):
    """One tenant's tickets in a band, in the order in which they came, for as long as there are any. `line` is the order in which
    they go; it may be shared with other flows.
    """

    __slots__ = ("bytes", "entry", "fairness_id", "line", "tag", "tickets")

    def __init__(self, fairness_id: str, line: Line[Payload]) -> None:
        self.fairness_id = fairness_id
        self.line = line
        self.tickets: OrderedDict[Ticket[Payload], None] = OrderedDict()
        self.bytes = 0
        self.tag = 0.0
        self.entry: Entry[Flow[Payload]] | None = None


class Turns(Protocol[Payload]):
    """Knows the flows that have tickets. It is never asked for the next one while there is none."""

    def open(self, fairness_id: str) -> Flow[Payload]:
        """A flow that gets its first ticket."""
        ...

    def close(self, flow: Flow[Payload]) -> None:
        """A flow that has lost its last ticket."""
        ...

    def next(self) -> Line[Payload]:
        """The line whose first ticket goes next."""
        ...

    def took(self, flow: Flow[Payload], tokens: int) -> None:
        """A ticket of `flow` has had its turn; called before `close`."""
        ...


class OneLine(Generic[Payload]):
    """All flows of a band in one line: the best by the order within, whoever sent it."""

    def __init__(self, policies: Policies) -> None:
        self._line: Line[Payload] = new_line(policies)

    def open(self, fairness_id: str) -> Flow[Payload]:
        return Flow(fairness_id, self._line)

    def close(self, flow: Flow[Payload]) -> None:
        pass

    def next(self) -> Line[Payload]:
        return self._line

    def took(self, flow: Flow[Payload], tokens: int) -> None:
        pass


class RoundRobin(Generic[Payload]):
    """One request from each flow in turn; a new flow is the last."""

    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._ring: OrderedDict[str, Flow[Payload]] = OrderedDict()

    def open(self, fairness_id: str) -> Flow[Payload]:
        flow = self._ring[fairness_id] = Flow(fairness_id, new_line(self._policies))
        return flow

    def close(self, flow: Flow[Payload]) -> None:
        del self._ring[flow.fairness_id]

    def next(self) -> Line[Payload]:
        return next(iter(self._ring.values())).line

    def took(self, flow: Flow[Payload], tokens: int) -> None:
        self._ring.move_to_end(flow.fairness_id)


_DEBTS_KEPT = 4096


class WeightedTokens(Generic[Payload]):
    """Whoever was given the fewest tokens for its weight goes next: start-time fair queueing (Goyal, Vin, Cheng 1996).

    A flow's tag grows by tokens / weight with each of its turns, and the least tag goes next; the band's tag is that of the latest
    turn, and a flow that comes starts there, so that nobody saves up turns. Two flows that both have tickets all the while have,
    by weight, never got more apart than one longest request of each. (Deficit round robin has the same aim; to give each turn in
    constant time its quantum must be as long as the longest prompt, and flows are then three requests apart.)

    A flow that goes and comes back keeps a tag that is still ahead of the band's: leaving does not forgive. Of those at most
    `_DEBTS_KEPT` are remembered.
    """

    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._flows: Heap[Flow[Payload]] = Heap()
        self._tag = 0.0
        self._debts: dict[str, float] = {}

    def open(self, fairness_id: str) -> Flow[Payload]:
        flow: Flow[Payload] = Flow(fairness_id, new_line(self._policies))
        flow.tag = max(self._tag, self._debts.pop(fairness_id, 0.0))
        flow.entry = self._flows.push(flow.tag, flow)
        return flow

    def close(self, flow: Flow[Payload]) -> None:
        assert flow.entry is not None
        self._flows.discard(flow.entry)
        if flow.tag > self._tag:
            self._remember(flow)

    def next(self) -> Line[Payload]:
        flow = self._flows.top()
        assert flow is not None
        return flow.line

    def took(self, flow: Flow[Payload], tokens: int) -> None:
        assert flow.entry is not None
        self._tag = max(self._tag, flow.tag)
        flow.tag += tokens / self._policies.weights.get(flow.fairness_id, 1.0)
        self._flows.discard(flow.entry)
        flow.entry = self._flows.push(flow.tag, flow)

    def _remember(self, flow: Flow[Payload]) -> None:
        if len(self._debts) >= _DEBTS_KEPT:
            ahead = {name: tag for name, tag in self._debts.items() if tag > self._tag}
            # Nothing was paid off: who owes least is forgiven, half of them at once so that this stays rare.
            if len(ahead) > _DEBTS_KEPT // 2:
                most = sorted(ahead.items(), key=lambda item: -item[1])[: _DEBTS_KEPT // 2]
                ahead = dict(most)
            self._debts = ahead
        self._debts[flow.fairness_id] = flow.tag
