"""Min-max over the candidates, shared by the scorers that compare them with one another."""

from __future__ import annotations

import numpy as np

from epp.scoring import FloatArray


def lower_is_better(values: FloatArray) -> FloatArray:
    """(max − v) / (max − min): the lowest gets 1, the highest 0, all get 1 where they are equal. No NaN in `values`."""
    # argmin and argmax take 0.2 µs each at 8 values where min and max take 1.2.
    low = values.item(values.argmin())
    high = values.item(values.argmax())
    if low == high:
        return np.ones(len(values))
    return (high - values) / (high - low)
