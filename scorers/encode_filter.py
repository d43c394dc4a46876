from __future__ import annotations

import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, Request
from scorers.roles import ENCODE, ROLE_LABEL


def _serves(endpoint: Endpoint) -> bool:
    role = endpoint.labels.get(ROLE_LABEL)
    return role in ENCODE


class EncodeFilter:
    """Keeps endpoints whose role label names the encode stage; one without the label does not stay."""

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        return candidates.derive(_serves).astype(np.bool_)
