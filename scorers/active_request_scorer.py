from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, NotNegative, Request, Seconds, Share


class ActiveRequestScorer:
    """Prefers endpoints with few of our own requests in flight.

    1 up to `idle_threshold` requests, else (max − c) / max · `max_busy_score` with max over the candidates.
    `request_timeout` is accepted for old files and changes nothing.
    """

    def __init__(
        self,
        *,
        idle_threshold: NotNegative = 0,
        max_busy_score: Share = 1.0,
        request_timeout: Seconds | None = None,
    ) -> None:
        self._idle = idle_threshold
        self._busy_score = max_busy_score

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        count = candidates.in_flight
        most = count.item(count.argmax())
        if most <= self._idle:
            return np.ones(len(count))
        return np.where(count <= self._idle, 1.0, (most - count) * (self._busy_score / most))
