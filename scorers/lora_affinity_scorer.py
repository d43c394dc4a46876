from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, Request

# By room for one more adapter where nobody says anything of this one; else by what an endpoint says of it (nothing, waiting,
# running), without and with room.
_NOBODY = np.array([0.0, 0.8])
_FULL = np.array([0.0, 0.6, 1.0])
_ROOM = np.array([0.8, 0.8, 1.0])


class LoraAffinityScorer:
    """Prefers endpoints that have the request's LoRA adapter: 1 loaded, 0.8 room to load it, 0.6 waiting for it, else 0."""

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        state = candidates.adapter(request.target_model)
        if state is None:
            return candidates.by_reports(_by_room)
        return np.where(candidates.adapter_room, _ROOM.take(state), _FULL.take(state))


def _by_room(candidates: Candidates) -> FloatArray:
    return _NOBODY.take(candidates.adapter_room)
