from __future__ import annotations

import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, Request
from scorers.roles import DECODE, ROLE_LABEL


def _serves(endpoint: Endpoint) -> bool:
    role = endpoint.labels.get(ROLE_LABEL)
    return role is None or role in DECODE


class DecodeFilter:
    """Keeps endpoints whose role label names the decode stage, and those without the label."""

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        return candidates.derive(_serves).astype(np.bool_)
