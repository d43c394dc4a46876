from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, Endpoint, FloatArray, Request


class HeaderLabelAffinityScorer:
    """Prefers endpoints whose label has the value of a request header: 1, else 0."""

    def __init__(self, *, header_name: str, label_key: str) -> None:
        self._header = header_name.lower()
        self._label = label_key
        self._code_of: dict[str, float] = {}

    def _code(self, endpoint: Endpoint) -> float:
        value = endpoint.labels.get(self._label)
        return -1.0 if value is None else self._code_of.setdefault(value, float(len(self._code_of)))

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        # Values are compared as numbers: the labels' are drawn once for a membership, so a pick costs one look-up.
        codes = candidates.derive(self._code)
        wanted = self._code_of.get(request.headers.get(self._header, ""))
        return np.zeros(len(codes)) if wanted is None else (codes == wanted).astype(np.float64)
