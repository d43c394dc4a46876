from __future__ import annotations

from typing import Literal

import numpy as np

from epp.scoring import BoolArray, Candidates, Count, NotNegative, Request


class ConcurrencyDetector:
    """Tells how full a pool is from our own requests or tokens in flight; as a filter it keeps endpoints below the limit.

    `concurrency_mode` says what is counted: requests against `max_concurrency` an endpoint, tokens against
    `max_token_concurrency`, or hybrid for the fuller of the two. As a filter the limit is multiplied by 1 + `headroom`, and
    none may stay, which refuses the request.
    """

    def __init__(
        self,
        *,
        max_concurrency: Count = 100,
        max_token_concurrency: Count = 1_000_000,
        concurrency_mode: Literal["requests", "tokens", "hybrid"] = "requests",
        headroom: NotNegative = 0.0,
        in_flight_load_producer_name: str = "inflight-load-producer",
    ) -> None:
        self._requests = max_concurrency if concurrency_mode != "tokens" else np.inf
        self._tokens = max_token_concurrency if concurrency_mode != "requests" else np.inf
        self._allowance = 1.0 + headroom

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        kept: BoolArray = candidates.in_flight < self._requests * self._allowance
        return kept & (candidates.in_flight_tokens < self._tokens * self._allowance)

    def saturation(self, candidates: Candidates) -> float:
        # With one limit for all, Σ in flight / Σ limits is the mean of the shares.
        if self._tokens == np.inf:
            return float(np.add.reduce(candidates.in_flight)) / (len(candidates) * self._requests)
        fill = np.maximum(candidates.in_flight / self._requests, candidates.in_flight_tokens / self._tokens)
        return float(fill.mean())
