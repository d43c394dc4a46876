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

    In tokens, backlog + uncached · (1 + prompts in line) + requests in flight · (1 + KV share² · avoidable + KV share¹⁶ · uncached),
    avoidable being the uncached tokens beyond those of the endpoint that has most of the prompt cached: the request
    waits for the uncached tokens ahead of it, a token of each answer being written, and its own. Its own, of which the last is
    never cached, hold up a line as long as the one it joins; as KV memory fills up, they keep those waiting whose answers fill it:
    the avoidable ones more and more, all of them where it is nearly full. Backlog, line and requests are the picker's own
    account; where no endpoint tells its KV share, it counts as 0. A LoRA adapter that others report counts where it is not loaded, as
    the tokens that could be prefilled meanwhile: for the request, for the line, and by the KV share for those in flight.
    """

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        tokens = request.prompt_tokens
        blocks = len(request.fingerprints)
        uncached = np.full(len(candidates), 1.0 + tokens)
        if blocks:
            uncached -= tokens / blocks * candidates.hit_blocks
        share = candidates.kv_usage
        square = share * share
        delay = square * square
        delay *= delay
        delay *= delay
        delay *= uncached
        avoidable = uncached - uncached.item(uncached.argmin())
        square *= avoidable
        delay += square
        delay += 1.0
        adapter = candidates.adapter(request.target_model)
        if adapter is not None:
            load = np.where(candidates.adapter_room, _ROOM.take(adapter), _FULL.take(adapter))
            delay += share * load
            uncached += load
        delay *= candidates.in_flight
        demand = candidates.demand
        if demand:
            uncached -= avoidable * (demand / (demand + len(candidates)))
        delay += uncached * (1.0 + candidates.in_flight_prompts + candidates.churn)
        delay += candidates.in_flight_tokens
        return delay.item(delay.argmin()) / delay
