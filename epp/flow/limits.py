"""How full the pool may be for each priority to still be served: room kept for those above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from epp.flow.settings import Holdback, Limit, Reflective, Static


class Ceilings(Protocol):
    free_below: float
    """Below this saturation nobody waits, whatever it is exactly and whatever the priority."""

    def of(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        """For each of `priorities` (highest first) the saturation from which on it waits, never rising with rank.

        Asked once for each decision.
        """
        ...


class StaticCeilings:
    def __init__(self, limit: Static) -> None:
        self.free_below = limit.threshold

    def of(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        return [self.free_below] * len(priorities)


class HoldbackCeilings:
    """Remembers the ceilings of the latest priorities: they change when a band comes or goes."""

    def __init__(self, limit: Holdback) -> None:
        self.free_below = min(limit.min_ceiling, limit.max_ceiling)
        self._limit = limit
        self._priorities: list[int] = []
        self._ceilings: Sequence[float] = ()

    def of(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        if priorities != self._priorities:
            self._priorities = list(priorities)
            self._ceilings = [self._ceiling(share) for share in self._depths(self._priorities)]
        return self._ceilings

    def _ceiling(self, depth: float) -> float:
        return self._limit.max_ceiling - depth * (self._limit.max_ceiling - self._limit.min_ceiling)

    def _depths(self, priorities: Sequence[int]) -> Sequence[float]:
        """How far down each is, [0, 1]."""
        if len(priorities) < 2:
            return [0.0] * len(priorities)
        highest, lowest = priorities[0], priorities[-1]
        if self._limit.domain == "value":
            return [(highest - priority) / (highest - lowest) for priority in priorities]
        return [rank / (len(priorities) - 1) for rank in range(len(priorities))]


class ReflectiveCeilings:
    """The band of rank i of n (0 the highest) is free below a saturation s of 1 - i·s / (n - 1).

    Above it, the band is let through in one of round(s / (1 - s)) decisions: the same ones for all bands, since a band that
    waits holds up all below it. From s = 1 on only the highest is.
    """

    def __init__(self) -> None:
        self.free_below = 0.5
        self._decisions = 0

    def of(self, saturation: float, priorities: Sequence[int]) -> Sequence[float]:
        n = len(priorities)
        if n < 2 or saturation < 0.5:
            return [1.0] * n
        pressed = 1.0 if self._lets_through(saturation) else 0.0
        free = [1.0 if saturation < 1.0 - rank * saturation / (n - 1) else pressed for rank in range(1, n)]
        return [1.0, *free]

    def _lets_through(self, saturation: float) -> bool:
        if saturation >= 1.0:
            return False
        self._decisions += 1
        return self._decisions % max(1, round(saturation / (1.0 - saturation))) == 0


def new_ceilings(limit: Limit) -> Ceilings:
    match limit:
        case Static():
            return StaticCeilings(limit)
        case Holdback():
            return HoldbackCeilings(limit)
        case Reflective():
            return ReflectiveCeilings()
