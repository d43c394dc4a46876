from __future__ import annotations

from epp.scoring import Candidates, FloatArray, Request
from scorers.spread import lower_is_better


class QueueScorer:
    """Prefers short waiting queues: 1 for the shortest among the candidates, 0 for the longest."""

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        return lower_is_better(candidates.waiting)
