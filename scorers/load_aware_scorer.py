from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, Positive, Request


class LoadAwareScorer:
    """Prefers short queues by an absolute measure: 0.5 with nobody waiting, falling to 0 at the threshold."""

    def __init__(self, *, threshold: Positive = 128) -> None:
        self._threshold = threshold

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        return 0.5 - 0.5 / self._threshold * np.minimum(candidates.waiting, self._threshold)
