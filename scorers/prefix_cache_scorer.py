from __future__ import annotations

import numpy as np

from epp.scoring import BLOCK_BYTES, BYTES_PER_TOKEN, Candidates, FloatArray, Positive, Request, Share

_BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN


class PrefixCacheScorer:
    """Prefers endpoints that hold the prompt's beginning in their prefix cache.

    w·min(1, hit tokens / s)² + (1 − w)·(hit blocks / blocks), with w = `match_length_weight` and s = `match_length_scale_tokens`:
    the first part rewards long hits whatever the prompt's length, the second the share of the prompt that is found.
    A prompt shorter than a block, or none, scores 0 everywhere.
    """

    def __init__(
        self,
        *,
        prefix_match_info_producer_name: str = "approx-prefix-cache-producer",
        match_length_weight: Share = 0.0,
        match_length_scale_tokens: Positive = 8192,
    ) -> None:
        self._weight = match_length_weight
        self._scale_blocks = match_length_scale_tokens / _BLOCK_TOKENS

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        blocks = len(request.fingerprints)
        if not blocks:
            return np.zeros(len(candidates))
        hits = candidates.hit_blocks
        if not self._weight:
            return hits / blocks
        length = np.minimum(hits / self._scale_blocks, 1.0)
        return self._weight * length * length + (1.0 - self._weight) / blocks * hits
