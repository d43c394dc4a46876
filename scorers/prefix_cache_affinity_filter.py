from __future__ import annotations

import random
from typing import Literal

import numpy as np

from epp.scoring import BoolArray, Candidates, NotNegative, Positive, Request, Share


class PrefixCacheAffinityFilter:
    """Keeps endpoints that hold most of the prompt, unless waiting for them costs more than prefilling elsewhere.

    Those with hit blocks / blocks ≥ `affinity_threshold` stay alone. All stay where there are none, with probability
    `exploration_probability`, and where the least loaded of them would answer more than `max_ttft_penalty_ms` later than
    the least loaded of the others (0: never). Time to first token is tokens in flight / `peak_prefill_throughput` (tokens per second).
    """

    def __init__(
        self,
        *,
        rng: random.Random,
        affinity_threshold: Share = 0.80,
        exploration_probability: Share = 0.0,
        max_ttft_penalty_ms: NotNegative = 18000.0,
        ttft_source: Literal["prefillThroughput", "latencyPredictor"] = "prefillThroughput",
        peak_prefill_throughput: Positive = 15928.0,
        prefix_match_info_producer_name: str = "approx-prefix-cache-producer",
        in_flight_load_producer_name: str = "inflight-load-producer",
    ) -> None:
        if ttft_source == "latencyPredictor":
            raise ValueError("ttftSource latencyPredictor needs latency prediction, which this version does not have")
        self._rng = rng
        self._threshold = affinity_threshold
        self._exploration = exploration_probability
        self._penalty_tokens = max_ttft_penalty_ms / 1000.0 * peak_prefill_throughput

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        blocks = len(request.fingerprints)
        everyone = np.ones(len(candidates), dtype=np.bool_)
        if not blocks or (self._exploration and self._rng.random() < self._exploration):
            return everyone
        sticky: BoolArray = candidates.hit_blocks >= self._threshold * blocks
        if not sticky.any() or sticky.all() or not self._penalty_tokens:
            return sticky if sticky.any() else everyone
        load = candidates.in_flight_tokens
        return everyone if load[sticky].min() - load[~sticky].min() > self._penalty_tokens else sticky
