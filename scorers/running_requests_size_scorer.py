from __future__ import annotations

from epp.scoring import Candidates, FloatArray, Request
from scorers.spread import lower_is_better


class RunningRequestsSizeScorer:
    """Prefers small running batches: 1 for the smallest among the candidates, 0 for the largest."""

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        return lower_is_better(candidates.running)
