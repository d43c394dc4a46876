"""When whoever was refused should come back: times in, whole seconds for `Retry-After` out."""

from __future__ import annotations

import math
import random

import msgspec

from epp.drops import OUTCOMES, Drop, Return

RATE_MEMORY_S = 10.0
"""Time constant of the measured drain rate: long enough for ten departures at one a second, short enough to follow a burst."""


class Bounds(msgspec.Struct, frozen=True):
    """Whole seconds that a `Retry-After` may say.

    OpenAI's own clients up to version 2 pass over what is longer than 60 and come back within 8; later ones give up past 120.
    """

    least_s: int = 1
    most_s: int = 60


DEFAULT_BOUNDS = Bounds()


def spread(wait_s: float, rng: random.Random, bounds: Bounds = DEFAULT_BOUNDS) -> int:
    """Whole seconds from `wait_s` up to a quarter and a second more, at random, within `bounds`.

    The wait is bounded before it is spread, so that those sent away for the longest do not all come back at once.
    """
    longest_s = max(float(bounds.least_s), (bounds.most_s - 1) / 1.25)
    held_s = min(max(wait_s, float(bounds.least_s)), longest_s)
    return min(round(held_s + rng.random() * (1.0 + held_s / 4.0)), bounds.most_s)


class Drain:
    """How fast the requests of one priority level get through, and when there is room for another.

    The rate is an exponentially decayed count of departures. Refused requests are given return times one behind the other, at
    the rate measured: a hundred refused at ten a second come back over ten seconds. Before anything got through, the answer is
    the least wait; once nothing gets through any more, it grows to the most.
    """

    __slots__ = ("_bounds", "_first_s", "_last_s", "_left", "_promised_s")

    def __init__(self, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._bounds = bounds
        self._left = 0.0
        self._first_s: float | None = None
        self._last_s = 0.0
        self._promised_s = -math.inf

    def left(self, now_s: float) -> None:
        """A request of this level was given an endpoint."""
        if self._first_s is None:
            self._first_s = self._last_s = now_s
        elif now_s > self._last_s:
            self._left *= math.exp((self._last_s - now_s) / RATE_MEMORY_S)
            self._last_s = now_s
        self._left += 1.0

    def rate(self, now_s: float) -> float:
        """Requests a second, of late; 0 before the first."""
        if self._first_s is None:
            return 0.0
        decayed = self._left * math.exp(min(0.0, self._last_s - now_s) / RATE_MEMORY_S)
        # Decay has had less time than its memory at first: what is seen so far stands for a shorter span.
        seen_s = RATE_MEMORY_S * -math.expm1(min(0.0, self._first_s - now_s) / RATE_MEMORY_S)
        return decayed / max(seen_s, 1.0)

    def retry_after(self, ahead: int, now_s: float, rng: random.Random) -> int:
        """Seconds, for a request that is refused now while `ahead` requests of its level wait."""
        rate = self.rate(now_s)
        if rate <= 0.0:
            return spread(0.0, rng, self._bounds)
        longest_s = now_s + self._bounds.most_s
        self._promised_s = min(max(self._promised_s, now_s + ahead / rate) + 1.0 / rate, longest_s)
        return spread(self._promised_s - now_s, rng, self._bounds)


class Outage:
    """How long there has been no endpoint, as far as refusals show.

    Waiting as long again as it has lasted finds the end of any outage in logarithmically many tries, at most twice as late.
    """

    __slots__ = ("_bounds", "_generation", "_since_s")

    def __init__(self, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._bounds = bounds
        self._generation = -1
        self._since_s = 0.0

    def retry_after(self, generation: int, now_s: float, rng: random.Random) -> int:
        """Seconds, for a request that is refused now. `generation` is the pool's membership: another one is another outage."""
        if generation != self._generation:
            self._generation = generation
            self._since_s = now_s
        return spread(now_s - self._since_s, rng, self._bounds)


MAX_LEVELS = 64
"""Priority levels whose drain is remembered; the one that came first gives way. Operators use a handful."""


class Returns:
    """Tells those who are refused when to come back: by the drain of their priority level, or by the pool's outage."""

    def __init__(self, rng: random.Random, bounds: Bounds = DEFAULT_BOUNDS) -> None:
        self._rng = rng
        self._bounds = bounds
        self._drains: dict[int, Drain] = {}
        self._outage = Outage(bounds)

    def left(self, priority: int, now_s: float) -> None:
        """A request of that priority was given an endpoint."""
        drain = self._drains.get(priority)
        if drain is None:
            if len(self._drains) == MAX_LEVELS:
                del self._drains[next(iter(self._drains))]
            drain = self._drains[priority] = Drain(self._bounds)
        drain.left(now_s)

    def advise(self, drop: Drop, now_s: float, *, priority: int = 0, ahead: int = 0, generation: int = 0) -> None:
        """Set `drop.retry_after_s`, unless somebody did or its reason has none.

        `ahead` requests of that priority are waiting; `generation` is the pool's membership.
        """
        rule = OUTCOMES[drop.reason].retry
        if drop.retry_after_s is not None:
            return
        if rule is Return.DRAIN:
            drain = self._drains.get(priority) or Drain(self._bounds)
            drop.retry_after_s = drain.retry_after(ahead, now_s, self._rng)
        elif rule is Return.POOL:
            drop.retry_after_s = self._outage.retry_after(generation, now_s, self._rng)
