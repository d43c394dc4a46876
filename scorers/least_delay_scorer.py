from __future__ import annotations

import numpy as np

from epp.scoring import Candidates, FloatArray, Request

_LOAD_TOKENS = 8192.0
_SLOT_TOKENS = 32_768.0
"""What an adapter costs, as prompt tokens that take as long to prefill: 0.2 to 0.4 s to load it, seconds until a slot is free."""
_HOT = 16.0
"""How often a prefix was asked for lately, per endpoint, where a copy is half for those who ask next. Below 1 that is not reckoned."""
_AT_HOME = 0.1
"""The part of a prompt that an endpoint is taken to have of what nobody is known to have, where hashing says that it begins there."""
# By what an endpoint reports of the adapter (nothing, waiting, running), with room for one more and without.
_ROOM = np.array([_LOAD_TOKENS, _LOAD_TOKENS / 2, 0.0])
_FULL = np.array([_LOAD_TOKENS + _SLOT_TOKENS, _LOAD_TOKENS / 2, 0.0])


class LeastDelayScorer:
    """Prefers the endpoint where the request delays itself and all others least: 1 there, 0.5 where it would twice as much.

    In tokens, backlog + uncached · (1 + prompts in line + churn) + requests in flight · (1 + KV share² · avoidable + KV share¹⁶ · (uncached
    + a mean prompt in line)), avoidable being the uncached tokens beyond those of the endpoint that has most of the prompt cached: the
    request waits for the uncached tokens ahead of it, less what the prompt in front has behind it, a token of each answer being written,
    and its own. Its own, of which the last is never cached, hold up a line as long as the one it joins, and push blocks out of the prefix
    cache, which by the churn are missed; as KV memory fills up, they keep those waiting whose answers fill it: the avoidable ones more and
    more, all of them where it is nearly full, and with them the prompt in front of the line. Of the avoidable tokens the request itself,
    the line and the cache bear the part that a prefix in demand leaves them: the others who ask for it find it there. Backlog, line and
    requests are the picker's own account; where no endpoint tells its KV share, it counts as 0. A LoRA adapter that others report counts
    where it is not loaded, as the tokens that could be prefilled meanwhile: for the request, for the line, and by the KV share for those
    in flight. Where others send requests to the same servers and nobody has more of the prompt than another, the one that hashing names
    counts as if it had a tenth of the rest.
    """

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        tokens = request.prompt_tokens
        blocks = len(request.fingerprints)
        n = len(candidates)
        uncached = (1.0 + tokens) - tokens / blocks * candidates.hit_blocks if blocks else np.full(n, 1.0 + tokens)
        least = uncached.item(uncached.argmin())
        begins = (
            candidates.shared and least == uncached.item(uncached.argmax()) and candidates.hit_blocks.item(0) < blocks
        )
        if begins:
            home = candidates.home(request.fingerprints.item(int(candidates.hit_blocks.item(0))))
            least -= _AT_HOME * (least - 1.0)
            uncached[home] = least
        avoidable = uncached - least
        prompts, backlog = candidates.in_flight_prompts, candidates.backlog
        delay: FloatArray = candidates.by_reports(_square) * avoidable
        delay += 1.0
        sixteenth = candidates.by_reports(_sixteenth)
        if len(sixteenth):
            delay += sixteenth * (uncached + candidates.line_prompt)
        adapter = candidates.adapter(request.target_model)
        if adapter is not None:
            load = np.where(candidates.adapter_room, _ROOM.take(adapter), _FULL.take(adapter))
            delay += candidates.kv_usage * load
            uncached += load
        elif candidates.demand > n and not begins:
            uncached -= avoidable * (candidates.demand / (candidates.demand + _HOT * n))
        delay *= candidates.in_flight
        delay += uncached * (1.0 + prompts + candidates.churn)
        delay += backlog
        return delay.item(delay.argmin()) / delay


def _square(candidates: Candidates) -> FloatArray:
    share = candidates.kv_usage
    return share * share


def _sixteenth(candidates: Candidates) -> FloatArray:
    """Empty where every one has more than half of its memory free: the power is less than 2e-5 there."""
    share = candidates.kv_usage
    power: FloatArray = share**16 if share.max() >= 0.5 else np.empty(0)
    return power
