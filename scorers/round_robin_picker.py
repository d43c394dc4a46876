from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, Count, FloatArray, IntArray, Request


class RoundRobinPicker:
    """Picks the candidates in turn, whatever their scores: what a plain load balancer does, for comparison."""

    def __init__(self, *, max_num_of_endpoints: Count = 1) -> None:
        self._count = max_num_of_endpoints
        self._next = 0

    def pick(self, request: Request, candidates: Candidates, scores: FloatArray) -> IntArray:
        n = len(scores)
        first = self._next % n
        self._next = first + 1
        return np.arange(first, first + min(self._count, n)) % n
