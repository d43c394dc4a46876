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

    In tokens, backlog + uncached · (1 + prompts in line) + requests in flight · (1 + KV share · avoidable + KV share⁸ · uncached),
    avoidable being the uncached tokens beyond those of the endpoint that has most of the prompt cached: the request
    waits for the uncached tokens ahead of it, a token of each answer being written, and its own. Its own, of which the last is
    never cached, hold up a line as long as the one it joins; as KV memory fills up, they keep those waiting whose answers fill it: the
    avoidable ones always, all of them where memory is nearly full. Backlog, line and requests are the picker's own account;
    where no endpoint tells its KV share, it counts as 0. A LoRA adapter that others report counts where it is not
    loaded, as the tokens that could be prefilled meanwhile.
    """

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        tokens = request.prompt_tokens
        blocks = len(request.fingerprints)
        uncached = np.full(len(candidates), 1.0 + tokens)
        if blocks:
            uncached -= tokens / blocks * candidates.hit_blocks
        adapter = candidates.adapter(request.target_model)
        if adapter is not None:
            uncached += np.where(candidates.adapter_room, _ROOM.take(adapter), _FULL.take(adapter))
        share = candidates.kv_usage
        fourth = share * share
        fourth *= fourth
        delay = fourth * fourth
        delay *= uncached
        delay += share * (uncached - uncached.item(uncached.argmin()))
        delay += 1.0
        delay *= candidates.in_flight
        delay += uncached * (1.0 + candidates.in_flight_prompts)
        delay += candidates.in_flight_tokens
        return delay.item(delay.argmin()) / delay
