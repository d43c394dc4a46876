"""How hard the loop is pressed, and what picks leave out for it: better a cheaper pick now than a good one too late."""

from __future__ import annotations

import enum

BEAT_S = 0.05
"""How often lateness is to be measured. 20 beats a second cost 0.02 % of a core."""

WEIGHT = 0.2
"""Of the latest beat in the smoothed lag: half of it is what the last three beats said."""

WORST = 4.0
"""A beat counts for at most so many bounds: with `WEIGHT`, one pause alone, however long, never reaches the bound."""

TRIAL_S = 0.5
"""How long a step must have had to show its effect before the next."""

CALM_S = 2.0
"""How long the lag must have stayed below half the bound before a step is taken back."""


class Step(enum.IntEnum):
    """What a pick leaves out, each step with what the one before leaves out."""

    FULL = 0
    NO_PREFIX = 1
    """No fingerprints, no prefix look-up: what a long prompt costs most."""
    RANDOM = 2
    """No filters, no scorers, no picker: a random endpoint that can be reached."""


class Pressure:
    """Turns lateness of beats into a `Step`. `step` and `lag_s` (smoothed) are read freely; only `beat` changes them."""

    def __init__(self, bound_s: float = 0.0) -> None:
        """`bound_s` is the smoothed lag that is still all right; 0: every lag is."""
        self._bound_s = bound_s
        self.lag_s = 0.0
        self.step = Step.FULL
        self._changed_s = float("-inf")
        self._calm_since_s: float | None = None

    def beat(self, late_s: float, now_s: float) -> bool:
        """A beat came `late_s` after it was due. True when `step` is another one now."""
        counted_s = min(late_s, WORST * self._bound_s) if self._bound_s else late_s
        self.lag_s += WEIGHT * (counted_s - self.lag_s)
        if not self._bound_s:
            return False
        if self.lag_s >= self._bound_s / 2:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        step = self._next(now_s)
        if step is self.step:
            return False
        self.step = step
        self._changed_s = now_s
        self._calm_since_s = None
        return True

    def _next(self, now_s: float) -> Step:
        if self.lag_s > self._bound_s and now_s - self._changed_s >= TRIAL_S:
            return Step(min(self.step + 1, Step.RANDOM))
        if self._calm_since_s is not None and now_s - self._calm_since_s >= CALM_S:
            return Step(max(self.step - 1, Step.FULL))
        return self.step


class Patience:
    """Tells a loop that hangs from a process that was stopped: it counts looks, not seconds, and who is stopped looks not."""

    def __init__(self, looks: int) -> None:
        """`looks` in a row without a beat in between are too many."""
        self._looks = looks
        self._beats = -1
        self._missed = 0

    def lost(self, beats: int) -> bool:
        """Call at each look with the number of beats so far. True when the loop has hung too long."""
        self._missed = self._missed + 1 if beats == self._beats else 0
        self._beats = beats
        return self._missed >= self._looks
