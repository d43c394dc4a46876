from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, Request

# By what an endpoint says of the adapter (nothing, waiting, running), without and with room for one more.
_FULL = np.array([0.0, 0.6, 1.0])
_ROOM = np.array([0.8, 0.8, 1.0])


class LoraAffinityScorer:
    """Prefers endpoints that have the request's LoRA adapter: 1 loaded, 0.8 room to load it, 0.6 waiting for it, else 0."""

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        state = candidates.adapter(request.target_model)
        return np.where(candidates.adapter_room, _ROOM.take(state), _FULL.take(state))
