"""The order between programs that send many requests each: who was served least, and whose first request waits longest."""

from __future__ import annotations

from typing import Generic

import numpy as np
from numpy.typing import NDArray

from epp.flow.lines import Line, new_line
from epp.flow.settings import Policies
from epp.flow.ticket import Payload, Ticket
from epp.flow.turns import Flow

PROGRAMS_KEPT = 4096
"""Programs without a request whose service is remembered; past that, who was served least is forgotten."""

_REBASED_AT = 500.0
"""Half-lives after which the epoch is moved: a float holds twice that."""


class _Watched(Generic[Payload]):
    """A program's line, which says when its first ticket may be another."""

    __slots__ = ("_line", "_program", "_stale")

    def __init__(self, line: Line[Payload], program: str, stale: set[str]) -> None:
        self._line = line
        self._program = program
        self._stale = stale

    def add(self, ticket: Ticket[Payload]) -> None:
        self._stale.add(self._program)
        self._line.add(ticket)

    def first(self) -> Ticket[Payload]:
        return self._line.first()

    def take(self, ticket: Ticket[Payload]) -> None:
        self._stale.add(self._program)
        self._line.take(ticket)

    def remove(self, ticket: Ticket[Payload]) -> None:
        self._stale.add(self._program)
        self._line.remove(ticket)


class ProgramAware(Generic[Payload]):
    """The highest of service_weight · (1 - norm(attained service)) + head_wait_weight · norm(wait of the first ticket) goes next,
    both normed from the least to the most among programs that wait.

    Attained service halves every `half_life_s`. It is kept as of one epoch: what comes later counts 2^(time / half-life) times
    more, so that nothing has to be decayed, and the norm is the same.
    """

    def __init__(self, policies: Policies) -> None:
        self._policies = policies
        self._settings = policies.programs
        self._attained: dict[str, float] = {}
        self._served_s: dict[str, float] = {}
        self._epoch_s = 0.0
        self._swept_s = 0.0
        # Programs that wait have a place in these columns.
        self._flows: list[Flow[Payload]] = []
        self._place: dict[str, int] = {}
        self._service: NDArray[np.float64] = np.zeros(16)
        self._head_s: NDArray[np.float64] = np.zeros(16)
        self._stale: set[str] = set()

    def open(self, fairness_id: str) -> Flow[Payload]:
        flow: Flow[Payload] = Flow(fairness_id, _Watched(new_line(self._policies), fairness_id, self._stale))
        place = len(self._flows)
        if place == len(self._service):
            self._service = np.concatenate([self._service, np.zeros(place)])
            self._head_s = np.concatenate([self._head_s, np.zeros(place)])
        self._flows.append(flow)
        self._place[fairness_id] = place
        self._service[place] = self._attained.get(fairness_id, 0.0)
        return flow

    def close(self, flow: Flow[Payload]) -> None:
        place = self._place.pop(flow.fairness_id)
        last = self._flows.pop()
        if last is not flow:
            self._flows[place] = last
            self._place[last.fairness_id] = place
            self._service[place] = self._service[len(self._flows)]
            self._head_s[place] = self._head_s[len(self._flows)]

    def next(self) -> Line[Payload]:
        for program in self._stale:
            place = self._place.get(program)
            if place is not None:
                self._head_s[place] = self._flows[place].line.first().enqueued_s
        self._stale.clear()
        n = len(self._flows)
        if n == 1:
            return self._flows[0].line
        service, head_s = self._service[:n], self._head_s[:n]
        # The formula without what is the same for all: the least of this is the most of that.
        behind = service * (self._settings.service_weight * _norm(service))
        behind += head_s * (self._settings.head_wait_weight * _norm(head_s))
        return self._flows[int(behind.argmin())].line

    def took(self, flow: Flow[Payload], tokens: int) -> None:
        pass

    def served(self, fairness_id: str, tokens: float, now_s: float) -> None:
        tokens_then = tokens * 2.0 ** self._age(now_s)
        attained = self._attained.get(fairness_id, 0.0) + tokens_then
        self._attained[fairness_id] = attained
        self._served_s[fairness_id] = now_s
        place = self._place.get(fairness_id)
        if place is not None:
            self._service[place] = attained
        if now_s - self._swept_s >= self._settings.sweep_s or len(self._attained) > 2 * PROGRAMS_KEPT + len(
            self._place
        ):
            self._sweep(now_s)

    def attained(self, now_s: float) -> dict[str, float]:
        """Tokens by program, as much as is left of them at `now_s`."""
        scale = 2.0 ** -self._age(now_s)
        return {program: tokens * scale for program, tokens in self._attained.items()}

    def _age(self, now_s: float) -> float:
        """Half-lives since the epoch."""
        half_life_s = self._settings.half_life_s
        if not half_life_s:
            return 0.0
        age = (now_s - self._epoch_s) / half_life_s
        if age <= _REBASED_AT:
            return age
        scale = 2.0 ** -min(age, 2 * _REBASED_AT)
        self._attained = {program: tokens * scale for program, tokens in self._attained.items()}
        self._service *= scale
        self._epoch_s = now_s
        return 0.0

    def _sweep(self, now_s: float) -> None:
        self._swept_s = now_s
        since_s = now_s - self._settings.remembered_s
        idle = [program for program in self._attained if program not in self._place]
        gone = {program for program in idle if self._served_s[program] <= since_s}
        kept = sorted((program for program in idle if program not in gone), key=self._attained.__getitem__)
        gone.update(kept[: max(0, len(kept) - PROGRAMS_KEPT)])
        for program in gone:
            del self._attained[program], self._served_s[program]


def _norm(values: NDArray[np.float64]) -> float:
    """1 / (most - least of `values`); 0 where all are equal."""
    # `max` takes 1 µs, by its index a quarter of that.
    span = values.item(values.argmax()) - values.item(values.argmin())
    return 1.0 / span if span else 0.0
