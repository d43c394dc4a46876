from __future__ import annotations

import math

import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, FloatArray, Request

_NOTHING = 1e300
"""Both ends of a range that holds no prompt and lies so far from any that its score is 0."""


def _range(text: str | None) -> tuple[float, float]:
    """`min-max` in tokens. NaN, NaN without a label; `_NOTHING` twice where it cannot be read."""
    if text is None:
        return math.nan, math.nan
    low, _, high = text.partition("-")
    if low.strip().isdecimal() and high.strip().isdecimal() and int(low) <= int(high):
        return float(low), float(high)
    return _NOTHING, _NOTHING


class ContextLengthAware:
    """Prefers endpoints whose label declares a range of prompt lengths (`min-max` tokens) that fits tightly.

    Inside its range: 0.3 + 0.7·(0.7 / (1 + width / 10000) + 0.3·headroom / width). Outside: 0.3 / (1 + distance / 1000).
    Without the label 0.5, with an unreadable one 0. With `enable_filtering` only endpoints in range, or without the
    label, stay.
    """

    def __init__(self, *, label: str = "llm-d.ai/context-length-range", enable_filtering: bool = False) -> None:
        self._label = label
        self._filtering = enable_filtering

    def _low(self, endpoint: Endpoint) -> float:
        return _range(endpoint.labels.get(self._label))[0]

    def _high(self, endpoint: Endpoint) -> float:
        return _range(endpoint.labels.get(self._label))[1]

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        if not self._filtering:
            return np.ones(len(candidates), dtype=np.bool_)
        low = candidates.derive(self._low)
        inside = (low <= request.prompt_tokens) & (candidates.derive(self._high) >= request.prompt_tokens)
        result: BoolArray = inside | np.isnan(low)
        return result

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        low, high = candidates.derive(self._low), candidates.derive(self._high)
        tokens = request.prompt_tokens
        distance = np.maximum(low - tokens, tokens - high)
        width = high - low
        headroom = (high - tokens) / np.maximum(width, 1.0)
        inside = 0.3 + 0.49 / (1.0 + width / 10000) + 0.21 * headroom
        outside = 0.3 / (1.0 + np.maximum(distance, 0.0) / 1000)
        scores = np.where(distance <= 0, inside, outside)
        return np.where(np.isnan(low), 0.5, scores)
