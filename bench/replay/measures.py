"""The numbers that runs are compared by, each under the name that `--fail-if` and reports know it by."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.replay.histogram import quantiles
from bench.replay.tally import Tally

Numbers = NDArray[np.float64]


class Unit(enum.Enum):
    SECONDS = "s"
    SHARE = "share"
    RATIO = "ratio"
    RATE = "per second"


class Weighted:
    """A tally with each stretch counted so many times: `weights` has a row for each resampling, a column for each stretch."""

    def __init__(self, tally: Tally, weights: Numbers) -> None:
        self._tally = tally
        self._weights = weights
        # By histogram: its first bucket that is not empty, and the counts from there to the last.
        self._counts: dict[str, tuple[int, Numbers]] = {}

    def sum(self, name: str) -> Numbers:
        total: Numbers = self._weights @ self._tally.sums[name]
        return total

    def quantile(self, name: str, share: float) -> Numbers:
        if name not in self._counts:
            counts = self._tally.histograms[name]
            used = np.flatnonzero(counts.any(axis=0))
            low, high = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
            self._counts[name] = low, self._weights @ counts[:, low:high]
        first, weighted = self._counts[name]
        return quantiles(weighted, share, first)

    def spread(self) -> Numbers:
        loads: Numbers = self._weights @ self._tally.uncached
        mean: Numbers = loads.mean(axis=1)
        most: Numbers = loads.max(axis=1)
        spread: Numbers = np.where(mean > 0, most / np.where(mean > 0, mean, 1.0), 1.0)
        return spread

    def seconds(self) -> Numbers:
        counted: Numbers = self._weights.sum(axis=1)
        stretch_s = self._tally.span_s / self._weights.shape[1]
        seconds: Numbers = counted * stretch_s
        return seconds


class Measure(msgspec.Struct, frozen=True):
    """`of` gives one number for each row of weights."""

    name: str
    text: str
    unit: Unit
    less_is_better: bool
    of: Callable[[Weighted], Numbers]


def _share(part: str, whole: str, empty: float) -> Callable[[Weighted], Numbers]:
    def of(runs: Weighted) -> Numbers:
        total = runs.sum(whole)
        return np.where(total > 0, runs.sum(part) / np.where(total > 0, total, 1.0), empty)

    return of


def _quantile(histogram: str, share: float) -> Callable[[Weighted], Numbers]:
    return lambda runs: runs.quantile(histogram, share)


_ALL = (
    Measure("ttft_mean", "first token, mean", Unit.SECONDS, True, _share("ttft_s", "done", np.nan)),
    Measure("ttft_p50", "first token, p50", Unit.SECONDS, True, _quantile("ttft", 0.5)),
    Measure("ttft_p90", "first token, p90", Unit.SECONDS, True, _quantile("ttft", 0.9)),
    Measure("ttft_p99", "first token, p99", Unit.SECONDS, True, _quantile("ttft", 0.99)),
    Measure("ttft_long_p99", "first token, longest tenth, p99", Unit.SECONDS, True, _quantile("ttft_long", 0.99)),
    Measure("e2e_p50", "whole answer, p50", Unit.SECONDS, True, _quantile("e2e", 0.5)),
    Measure("e2e_p90", "whole answer, p90", Unit.SECONDS, True, _quantile("e2e", 0.9)),
    Measure("e2e_p99", "whole answer, p99", Unit.SECONDS, True, _quantile("e2e", 0.99)),
    Measure("token_p50", "each further token, p50", Unit.SECONDS, True, _quantile("token", 0.5)),
    Measure("token_p90", "each further token, p90", Unit.SECONDS, True, _quantile("token", 0.9)),
    Measure("hit", "prompt tokens cached", Unit.SHARE, False, _share("cached_tokens", "prompt_tokens", 0.0)),
    Measure(
        "captured",
        "of what could be cached",
        Unit.SHARE,
        False,
        _share("cached_tokens", "available_tokens", 1.0),
    ),
    Measure("attained", "requests within SLO", Unit.SHARE, False, _share("well", "requests", np.nan)),
    Measure(
        "goodput", "requests within SLO a second", Unit.RATE, False, lambda runs: runs.sum("well") / runs.seconds()
    ),
    Measure("refused", "requests refused", Unit.SHARE, True, _share("refused", "requests", np.nan)),
    Measure("spread", "busiest server ÷ mean", Unit.RATIO, True, Weighted.spread),
)

MEASURES: Mapping[str, Measure] = {one.name: one for one in _ALL}
