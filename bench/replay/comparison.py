"""What each configuration comes to, and how surely it differs from the first one.

Runs are compared in pairs: the same requests at the same times. The trace's time is cut into stretches, and an interval says within
what bounds a difference stays in 95 of 100 traces made of these stretches drawn with replacement, the same for both (a block
bootstrap; Künsch, 1989). So it tells of chance in traffic; that the simulated servers are not yours it does not know.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from bench.replay.measures import MEASURES, Measure, Numbers, Unit, Weighted
from bench.replay.tally import STRETCHES, Tally

RESAMPLINGS = 1000
CONFIDENCE = 0.95


class Difference(msgspec.Struct, frozen=True):
    """Of a configuration from the first: of the first's value in parts, of shares in points (0.01 is one). NaN: of nothing."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


class Cell(msgspec.Struct, frozen=True):
    """A measure of one configuration; `difference` is None for the first one."""

    value: float
    difference: Difference | None = None


class Row(msgspec.Struct, frozen=True):
    measure: Measure
    cells: tuple[Cell, ...]


def compare(tallies: Sequence[Tally], seed: int = 0) -> tuple[Row, ...]:
    """One row for each measure, one cell for each of `tallies`."""
    rng = np.random.default_rng(seed)
    busy = np.flatnonzero(sum(one.sums["requests"] for one in tallies))
    drawn = np.zeros((RESAMPLINGS, STRETCHES))
    np.add.at(drawn, (np.arange(RESAMPLINGS)[:, None], rng.choice(busy, (RESAMPLINGS, len(busy)))), 1.0)
    weights = np.vstack([np.ones((1, STRETCHES)), drawn])
    weighted = [Weighted(one, weights) for one in tallies]
    return tuple(_row(measure, [measure.of(one) for one in weighted]) for measure in MEASURES.values())


def _row(measure: Measure, values: Sequence[Numbers]) -> Row:
    first, *others = values
    return Row(
        measure, (Cell(float(first[0])), *(Cell(float(one[0]), _difference(measure, first, one)) for one in others))
    )


def _difference(measure: Measure, first: Numbers, other: Numbers) -> Difference:
    differences = other - first
    if measure.unit is not Unit.SHARE:
        differences = np.divide(differences, first, out=np.zeros_like(first), where=first != 0)
    resampled = differences[1:][np.isfinite(differences[1:])]
    if not len(resampled) or not np.isfinite(differences[0]):
        return Difference(np.nan, np.nan, np.nan)
    low, high = np.quantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(float(differences[0]), float(low), float(high))
