from __future__ import annotations

import numpy as np

from epp.scoring import BLOCK_BYTES, BYTES_PER_TOKEN, Candidates, Count, FloatArray, Request

_BLOCK_TOKENS = BLOCK_BYTES // BYTES_PER_TOKEN


class TokenLoadScorer:
    """Prefers endpoints with few prompt tokens still to prefill, this request's uncached ones included.

    1 − min(tokens in flight + uncached tokens of this request, t) / t, with t = `queue_threshold_tokens`.
    """

    def __init__(self, *, queue_threshold_tokens: Count = 4194304) -> None:
        self._threshold = queue_threshold_tokens

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        uncached = np.maximum(request.prompt_tokens - _BLOCK_TOKENS * candidates.hit_blocks, 0.0)
        return 1.0 - np.minimum(candidates.in_flight_tokens + uncached, self._threshold) / self._threshold
