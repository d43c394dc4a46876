from __future__ import annotations

import random

import numpy as np

from epp.scoring import Candidates, Count, FloatArray, IntArray, Request


class WeightedRandomPicker:
    """Picks at random, each with a chance in proportion to its score; uniformly where all are 0.

    Algorithm A-Res (Efraimidis and Spirakis, 2006): the largest U^(1/score) win, which are the smallest E / score for E
    exponential. An endpoint that scores 0 comes after all that score more.
    """

    def __init__(self, *, rng: random.Random, max_num_of_endpoints: Count = 1) -> None:
        self._count = max_num_of_endpoints
        self._generator = np.random.default_rng(rng.getrandbits(64))

    def pick(self, request: Request, candidates: Candidates, scores: FloatArray) -> IntArray:
        n = len(scores)
        drawn = self._generator.standard_exponential(n)
        # Zero scores stand behind all others, in random order among themselves.
        keys = np.divide(drawn, scores, out=drawn * 1e300, where=scores > 0)
        if self._count == 1:
            first = int(keys.argmin())
            return np.array([first], dtype=np.intp)
        return np.argsort(keys)[: self._count]
