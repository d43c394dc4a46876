"""The order within a flow: who of those in one line goes first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol

from epp.flow.heap import Heap
from epp.flow.settings import Policies
from epp.flow.ticket import Payload, Ticket


class Line(Protocol[Payload]):
    """Tickets in one order. It is never asked for a first one while it is empty."""

    def add(self, ticket: Ticket[Payload]) -> None: ...

    def first(self) -> Ticket[Payload]:
        """Who goes next, as things are."""
        ...

    def take(self, ticket: Ticket[Payload]) -> None:
        """The first one goes."""
        ...

    def remove(self, ticket: Ticket[Payload]) -> None:
        """Anyone leaves without having had a turn."""
        ...


def _given_up(ticket: Ticket[Payload]) -> float:
    due = ticket.due
    return due.key if due is not None else float("inf")


def _first_token(ticket: Ticket[Payload]) -> float:
    return ticket.slo_deadline_s


class Arrivals(Generic[Payload]):
    """Who came first goes first."""

    __slots__ = ("_tickets",)

    def __init__(self) -> None:
        self._tickets: OrderedDict[Ticket[Payload], None] = OrderedDict()

    def add(self, ticket: Ticket[Payload]) -> None:
        self._tickets[ticket] = None

    def first(self) -> Ticket[Payload]:
        return next(iter(self._tickets))

    def remove(self, ticket: Ticket[Payload]) -> None:
        del self._tickets[ticket]

    def take(self, ticket: Ticket[Payload]) -> None:
        del self._tickets[ticket]


class Sorted(Generic[Payload]):
    """The least `key` first, of equals who came first. A key is read once, when its ticket is added."""

    __slots__ = ("_heap", "_key")

    def __init__(self, key: Callable[[Ticket[Payload]], float]) -> None:
        self._key = key
        self._heap: Heap[Ticket[Payload]] = Heap()

    def add(self, ticket: Ticket[Payload]) -> None:
        ticket.place = self._heap.push(self._key(ticket), ticket)

    def first(self) -> Ticket[Payload]:
        ticket = self._heap.top()
        assert ticket is not None
        return ticket

    def remove(self, ticket: Ticket[Payload]) -> None:
        assert ticket.place is not None
        self._heap.discard(ticket.place)
        ticket.place = None

    def take(self, ticket: Ticket[Payload]) -> None:
        self.remove(ticket)


class ShortestFirst(Generic[Payload]):
    """The fewest tokens first, with ageing: nobody waits for more than `wait_multiple` times what it would have waited for in
    order of arrival.

    All in tokens of this line. A ticket enters with `entered`, the sum of all that ever came, its own included; in order of
    arrival its turn would come once as many had left as came before it. From then on it is late. While the oldest ticket is
    late, it goes as soon as others had `wait_multiple` - 2 times its tokens since one like it went.

    The bound: a ticket of a tokens finds A in line, its own included. Whoever goes before it is older, A - a tokens in all, or no
    longer than a. Of the latter go, until it is late, no more than A; from then on, since the oldest are all late, no more than
    (`wait_multiple` - 2) · A and the last of them. In sum no more than `wait_multiple` · A.
    """

    __slots__ = ("_arrivals", "_entered", "_left", "_others", "_share", "_shortest")

    def __init__(self, wait_multiple: float) -> None:
        self._share = wait_multiple - 2.0
        self._shortest: Heap[Ticket[Payload]] = Heap()
        self._arrivals: OrderedDict[Ticket[Payload], None] = OrderedDict()
        self._entered = 0
        self._left = 0
        self._others = 0.0

    def add(self, ticket: Ticket[Payload]) -> None:
        self._entered += ticket.tokens
        ticket.entered = self._entered
        ticket.place = self._shortest.push(float(ticket.tokens), ticket)
        self._arrivals[ticket] = None

    def first(self) -> Ticket[Payload]:
        oldest = next(iter(self._arrivals))
        if self._late(oldest) and self._others >= self._share * oldest.tokens:
            return oldest
        shortest = self._shortest.top()
        assert shortest is not None
        return shortest

    def take(self, ticket: Ticket[Payload]) -> None:
        oldest = next(iter(self._arrivals))
        if not self._late(oldest):
            self._others = 0.0
        elif ticket is oldest:
            self._others = max(0.0, self._others - self._share * ticket.tokens)
        else:
            self._others += ticket.tokens
        self.remove(ticket)

    def remove(self, ticket: Ticket[Payload]) -> None:
        assert ticket.place is not None
        self._shortest.discard(ticket.place)
        ticket.place = None
        del self._arrivals[ticket]
        self._left += ticket.tokens

    def _late(self, ticket: Ticket[Payload]) -> bool:
        return self._left >= ticket.entered - ticket.tokens


def new_line(policies: Policies) -> Line[Payload]:
    match policies.ordering:
        case "fcfs":
            return Arrivals()
        case "edf":
            return Sorted(_given_up)
        case "slo-deadline":
            return Sorted(_first_token)
        case "shortest-prompt":
            return ShortestFirst(policies.wait_multiple)
