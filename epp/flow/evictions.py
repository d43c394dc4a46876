"""Running requests that give way to a higher priority: which, how many at once, and when again. Times are handed in."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import islice
from math import floor, inf
from typing import Generic, TypeVar

AT_ONCE = 2
"""Most that are told to end by one decision: how much room one makes is an estimate."""

CONFIRMED_WITHIN_S = 10.0
"""How long to wait for the end of those who were told, before others are."""

Running = TypeVar("Running", bound=Hashable)


class Evictions(Generic[Running]):
    """Who runs and may be ended, and who was told to end.

    After a decision nobody else is told until all of those have ended, or `CONFIRMED_WITHIN_S` have passed, and then not for
    `grace_s`: as long as the pool's saturation may take to show that they have.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        # By priority, in the order in which they began.
        self._running: dict[int, dict[Running, None]] = {}
        self._told: set[Running] = set()
        self._told_s = -inf
        self._settled_s = -inf

    def __repr__(self) -> str:
        return f"<Evictions {sum(map(len, self._running.values()))} may give way, {len(self._told)} told to>"

    @property
    def told(self) -> int:
        """Those who were told and have not ended yet."""
        return len(self._told)

    def began(self, running: Running, priority: int) -> None:
        """A request that may be ended runs from now on."""
        self._running.setdefault(priority, {})[running] = None

    def ended(self, running: Running, priority: int, now_s: float) -> float | None:
        """It is over, however it ended. Seconds since it was told to end; None where nobody waits for that."""
        if running in self._told:
            self._told.discard(running)
            self._settled_s = now_s
            return now_s - self._told_s
        self._forget(running, priority)
        return None

    def overdue(self, now_s: float) -> int:
        """How many were told and have not ended in time. They are waited for no more."""
        if not self._told or now_s - self._told_s < CONFIRMED_WITHIN_S:
            return 0
        lost = len(self._told)
        self._told.clear()
        return lost

    def due(
        self, priority: int, saturation: float, ceiling: float, in_flight: float, now_s: float
    ) -> list[tuple[Running, int]]:
        """Whom to tell now, with its priority: those below `priority`, the lowest first and of it whoever began last.

        `priority` waits because `saturation` is not below `ceiling`. Each of the `in_flight` requests is taken to add as much to
        the saturation as any other; so many are told as bring it below the ceiling, `AT_ONCE` at most. A ceiling of 0 is a
        pause of that priority and no want of room.
        """
        if self._told or now_s < self._settled_s + self._grace_s or ceiling <= 0.0 or not in_flight:
            return []
        each = saturation / in_flight
        wanted = min(AT_ONCE, floor((saturation - ceiling) / each) + 1) if each > 0.0 else 0
        victims: list[tuple[Running, int]] = []
        for level in sorted(self._running):
            if level >= priority:
                break
            newest = islice(reversed(self._running[level]), wanted - len(victims))
            victims += [(victim, level) for victim in newest]
        for victim, level in victims:
            self._forget(victim, level)
            self._told.add(victim)
            self._told_s = now_s
        return victims

    def _forget(self, running: Running, priority: int) -> None:
        level = self._running.get(priority)
        if level is not None and running in level:
            del level[running]
            if not level:
                del self._running[priority]
