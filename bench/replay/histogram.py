"""Histograms of times, fine enough that a quantile read from one is within half a per cent.

A million requests are as much memory as ten.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

LEAST_S = 1e-4
_STEP = 1.01
_LOG_STEP = math.log(_STEP)
BUCKETS = math.ceil(math.log(1e9) / _LOG_STEP)
"""From a tenth of a millisecond to a day; beyond either end counts at that end."""

Counts = NDArray[np.int64]


def bucket(seconds: float) -> int:
    if seconds <= LEAST_S:
        return 0
    return min(BUCKETS - 1, int(math.log(seconds / LEAST_S) / _LOG_STEP))


def quantiles(counts: NDArray[np.float64] | Counts, share: float, first: int = 0) -> NDArray[np.float64]:
    """Of each row of `counts` the value below which that share of it lies; NaN of an empty row. `first` is the bucket of the first column."""
    cumulative = np.cumsum(counts, axis=-1, dtype=np.float64)
    total = cumulative[..., -1]
    wanted = share * total
    at = np.argmax(cumulative >= wanted[..., None], axis=-1)
    inside = np.take_along_axis(np.asarray(counts, dtype=np.float64), at[..., None], axis=-1)[..., 0]
    before = np.take_along_axis(cumulative, at[..., None], axis=-1)[..., 0] - inside
    part = np.divide(wanted - before, inside, out=np.full(total.shape, 0.5), where=inside > 0)
    values: NDArray[np.float64] = LEAST_S * _STEP ** (first + at + np.clip(part, 0.0, 1.0))
    return np.where(total > 0, values, np.nan)
