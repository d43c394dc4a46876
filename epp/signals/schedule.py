"""When one server is asked for its metrics: a pure timetable, times in and times out."""

from __future__ import annotations

import math
import random

_GOLDEN = (math.sqrt(5) - 1) / 2
_EARLY_S = 0.002
"""A timer of a loop that counts in milliseconds may fire this much before its time."""


def phase_s(slot: int, interval_s: float) -> float:
    """A place within the interval for each slot: any first n slots lie evenly, so n servers never answer in one burst.

    Multiples of the golden ratio, modulo 1, are a low-discrepancy sequence (Weyl).
    """
    return (slot * _GOLDEN % 1.0) * interval_s


class Schedule:
    """Asks on a grid of `interval_s`; after failures waits longer each time, up to `max_backoff_s`, with jitter.

    `phase_s` in [0, interval_s) places the grid. Times are seconds of one monotonic clock.
    """

    __slots__ = (
        "_asked",
        "_deadline_s",
        "_interval_s",
        "_max_backoff_s",
        "_next_s",
        "_origin_s",
        "_rng",
        "_timeout_s",
        "failures",
    )

    def __init__(
        self,
        now_s: float,
        *,
        phase_s: float,
        interval_s: float,
        timeout_s: float,
        max_backoff_s: float,
        rng: random.Random,
    ) -> None:
        self._interval_s = interval_s
        self._timeout_s = timeout_s
        self._max_backoff_s = max_backoff_s
        self._rng = rng
        self._origin_s = self._next_s = now_s + phase_s
        self._deadline_s = math.inf
        self._asked = False
        self.failures = 0

    @property
    def wake_s(self) -> float:
        """When there is something to do, if nothing happens before."""
        return self._deadline_s if self._asked else self._next_s

    @property
    def waiting(self) -> bool:
        """Whether a question is out."""
        return self._asked

    def due(self, now_s: float) -> bool:
        """Whether to ask now."""
        return not self._asked and now_s >= self._next_s - _EARLY_S

    def overdue(self, now_s: float) -> bool:
        """Whether the answer has taken too long."""
        return self._asked and now_s >= self._deadline_s - _EARLY_S

    def asked(self, now_s: float) -> None:
        self._asked = True
        self._deadline_s = now_s + self._timeout_s

    def answered(self, now_s: float) -> None:
        """The next question comes at the grid's next point: a slow answer skips points, it never causes a burst."""
        self.failures = 0
        self._asked = False
        self._next_s = self._grid_after(max(now_s, self._next_s))

    def failed(self, now_s: float) -> None:
        self.failures += 1
        self._asked = False
        longest = min(self._max_backoff_s, self._interval_s * 2.0 ** min(self.failures, 30))
        self._next_s = now_s + max(self._interval_s, longest) * self._rng.uniform(0.5, 1.0)

    def _grid_after(self, now_s: float) -> float:
        # The millionth part keeps a point from being its own successor when the division rounds down.
        points = math.floor((now_s - self._origin_s) / self._interval_s + 1e-6) + 1
        return self._origin_s + points * self._interval_s
