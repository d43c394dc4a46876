from __future__ import annotations

from typing import Literal

import msgspec
import numpy as np

from epp.scoring import BoolArray, Candidates, NotNegative, Request

_COLUMN = {
    "active-requests": "in_flight",
    "running-requests": "running",
    "waiting-queue": "waiting",
    "kv-cache-utilization": "kv_usage",
}


class Limit(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint stays while the metric is at most `max_value`."""

    metric: Literal["active-requests", "running-requests", "waiting-queue", "kv-cache-utilization"]
    max_value: NotNegative


class UtilizationFilter:
    """Keeps endpoints that are within every one of the given limits on requests, queue and KV memory.

    With `fallback_on_empty` all stay where none would.
    """

    def __init__(
        self,
        *,
        conditions: tuple[Limit, ...],
        fallback_on_empty: bool = False,
        in_flight_load_producer_name: str = "inflight-load-producer",
    ) -> None:
        if not conditions:
            raise ValueError("conditions must name at least one limit")
        self._limits = [(_COLUMN[limit.metric], limit.max_value) for limit in conditions]
        self._fallback = fallback_on_empty

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        kept = np.ones(len(candidates), dtype=np.bool_)
        for column, limit in self._limits:
            kept &= getattr(candidates, column) <= limit
        return ~kept if self._fallback and not kept.any() else kept
