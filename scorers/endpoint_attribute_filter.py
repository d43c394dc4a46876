from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import msgspec
import numpy as np

from epp.scoring import BoolArray, Candidates, FloatArray, Request

_COMPARE: Mapping[str, Callable[[FloatArray, float], BoolArray]] = {
    "LessThan": np.less,
    "LessThanOrEqual": np.less_equal,
    "GreaterThan": np.greater,
    "GreaterThanOrEqual": np.greater_equal,
    "Equal": np.equal,
    "NotEqual": np.not_equal,
}


class Threshold(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint stays where `value of the attribute` `operator` `value` holds."""

    operator: Literal["LessThan", "LessThanOrEqual", "GreaterThan", "GreaterThanOrEqual", "Equal", "NotEqual"]
    value: float


class ThresholdTest(msgspec.Struct, frozen=True, rename="camel"):
    """How a value decides."""

    type: Literal["threshold"]
    threshold: Threshold


class EndpointAttributeFilter:
    """Keeps endpoints whose custom metric compares with a threshold as asked.

    `on_missing` says what becomes of those without the metric; with `fallback_on_empty` all stay where none would.
    """

    def __init__(
        self,
        *,
        attribute: str,
        algorithm: ThresholdTest,
        producer: str = "core-metrics-extractor",
        on_missing: Literal["Pass", "Fail"] = "Pass",
        fallback_on_empty: bool = False,
    ) -> None:
        self._attribute = attribute
        self._threshold = algorithm.threshold.value
        self._compare = _COMPARE[algorithm.threshold.operator]
        self._keep_missing = on_missing == "Pass"
        self._fallback = fallback_on_empty

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        values = candidates.custom(self._attribute)
        kept = np.where(np.isnan(values), self._keep_missing, self._compare(values, self._threshold))
        return ~kept if self._fallback and not kept.any() else kept
