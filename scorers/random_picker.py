from __future__ import annotations

import random

import numpy as np

from epp.scoring import Candidates, Count, FloatArray, IntArray, Request


class RandomPicker:
    """Picks at random, whatever the scores."""

    def __init__(self, *, rng: random.Random, max_num_of_endpoints: Count = 1) -> None:
        self._rng = rng
        self._count = max_num_of_endpoints

    def pick(self, request: Request, candidates: Candidates, scores: FloatArray) -> IntArray:
        n = len(scores)
        return np.array(self._rng.sample(range(n), min(self._count, n)), dtype=np.intp)
