from __future__ import annotations

from epp.scoring import Candidates, FloatArray, Request


class KvCacheUtilizationScorer:
    """Prefers free KV memory: 1 − share in use."""

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        return candidates.by_reports(_free)


def _free(candidates: Candidates) -> FloatArray:
    return 1.0 - candidates.kv_usage
