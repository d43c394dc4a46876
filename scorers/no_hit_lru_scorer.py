from __future__ import annotations

from collections import OrderedDict

import numpy as np

from epp.scoring import Candidates, Count, Endpoint, FloatArray, Request


class NoHitLruScorer:
    """Spreads prompts that nobody has cached: prefers the endpoint that took such a prompt longest ago.

    Where any candidate has a hit, 0.5 for all. Else 1 for those that never took one, and 1 − (never + r) / (n − 1) for the
    others, r = 0 for the longest ago. At most `lru_size` endpoints are remembered.
    """

    def __init__(
        self, *, lru_size: Count = 1024, prefix_match_info_producer_name: str = "approx-prefix-cache-producer"
    ) -> None:
        self._size = lru_size
        self._used: OrderedDict[str, None] = OrderedDict()
        self._cold = False

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        n = len(candidates)
        self._cold = not candidates.hit_blocks.any()
        if not self._cold:
            return np.full(n, 0.5)
        scores = np.ones(n)
        index_of = {endpoint.key: index for index, endpoint in enumerate(candidates.members)}
        used = [index_of[key] for key in self._used if key in index_of]
        if used and n > 1:
            scores[used] = 1.0 - (np.arange(len(used)) + (n - len(used))) / (n - 1)
        return scores

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        if not self._cold:
            return
        self._used[endpoint.key] = None
        self._used.move_to_end(endpoint.key)
        if len(self._used) > self._size:
            self._used.popitem(last=False)
