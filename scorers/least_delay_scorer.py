from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, Request

_LOAD_TOKENS = 8192.0
_SLOT_TOKENS = 32_768.0
"""What an adapter costs, as prompt tokens that take as long to prefill: 0.2 to 0.4 s to load it, seconds until a slot is free."""
# By what an endpoint reports of the adapter (nothing, waiting, running), with room for one more and without.
_ROOM = np.array([_LOAD_TOKENS, _LOAD_TOKENS / 2, 0.0])
_FULL = np.array([_LOAD_TOKENS + _SLOT_TOKENS, _LOAD_TOKENS / 2, 0.0])


class LeastDelayScorer:
    """Prefers the endpoint where the request delays itself and all others least: 1 there, 0.5 where it would twice as much.

    In tokens, backlog + requests in flight + (1 + uncached) · (1 + prompts in line + requests in flight · KV share in use): the
    request waits for the uncached tokens ahead of it, a token of each answer being written, and its own; its own, of which
    the last is never cached, hold up a line as long as the one it joins and, as KV memory fills up, those whose answers
    fill it. Backlog, line and requests are the picker's own account; where no endpoint tells its KV share, it counts as 0. A
    LoRA adapter that others report counts where it is not loaded, as the tokens that could be prefilled meanwhile.
    """

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        tokens = request.prompt_tokens
        blocks = len(request.fingerprints)
        uncached: FloatArray | float = 1.0 + tokens
        if blocks:
            uncached = uncached - tokens / blocks * candidates.hit_blocks
        adapter = candidates.adapter(request.target_model)
        if adapter is not None:
            uncached = uncached + np.where(candidates.adapter_room, _ROOM.take(adapter), _FULL.take(adapter))
        in_flight = candidates.in_flight
        delay = in_flight * candidates.kv_usage
        delay += candidates.in_flight_prompts
        delay += 1.0
        delay *= uncached
        delay += in_flight
        delay += candidates.in_flight_tokens
        return delay.item(delay.argmin()) / delay
