"""NVIDIA Dynamo's KV router (1.6): linear cost over real cache contents, and its queue in front.

Source: its documentation (router-design, router-concepts, router-configuration). Blocks are `BLOCK_TOKENS` here; cost is linear in
them, so their size does not change an order.
"""

from __future__ import annotations

from collections import Counter

from bench.policies import BLOCK_TOKENS, Asked, View
from bench.policies.choosing import least
from bench.policies.counting import Counting

MAX_BATCHED_TOKENS = 8192
"""vLLM's default for `max_num_batched_tokens`."""


class LinearCost(Counting):
    """argmin of scale · max(active prefill + incoming − overlap, 0) + decode blocks; ties by chance (temperature 0).

    Active prefill are uncached blocks of requests without a first token, released at that; overlap is what the server really has
    cached, as KV events tell; decode blocks are the different ones of all requests in flight there and of this one. `scale` is
    `prefill_load_scale`: 1 by default, 2 found best below saturation.
    """

    def __init__(self, *, scale: float = 1.0) -> None:
        super().__init__()
        self._scale = scale
        self._active: dict[int, Counter[int]] = {}
        self._tails: Counter[int] = Counter()

    def pick(self, request: Asked, view: View) -> int | None:
        return self.choose(request, view)

    def choose(self, request: Asked, view: View) -> int:
        overlap = {server: view.cached_tokens(server, request) for server in view.servers}

        def cost(server: int) -> float:
            prefill_tokens = max(0, self.tokens[server] + request.prompt_tokens - overlap[server])
            return self._scale * prefill_tokens / BLOCK_TOKENS + self._decode_blocks(request, server)

        server = least(view.servers, cost, view.rng)
        self.charge(request, max(0, request.prompt_tokens - overlap[server]))
        return server

    def _decode_blocks(self, request: Asked, server: int) -> int:
        active = self._active.get(server, _NONE)
        new = sum(block not in active for block in request.blocks) + _tail(request)
        return len(active) + self._tails[server] + new

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        super().routed(request, server, now_s)
        self._active.setdefault(server, Counter()).update(request.blocks)
        self._tails[server] += _tail(request)

    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        super().finished(request, server, output_tokens, now_s)
        self._tails[server] -= _tail(request)
        active = self._active[server]
        for block in request.blocks:
            active[block] -= 1
            if not active[block]:
                del active[block]


class ShortestFirst(LinearCost):
    """The same behind its queue with the policy `wspt`: while every server has more than `threshold` · `max_batched_tokens` of prefill
    active, requests are held; the one with the highest (1 + priority) / prompt tokens goes first, and its server is chosen then.
    """

    def __init__(
        self, *, scale: float = 1.0, threshold: float = 1.0, max_batched_tokens: int = MAX_BATCHED_TOKENS
    ) -> None:
        super().__init__(scale=scale)
        self._most_tokens = threshold * max_batched_tokens
        self._held: dict[str, Asked] = {}

    def pick(self, request: Asked, view: View) -> int | None:
        if not self._held and self._has_room(view):
            return self.choose(request, view)
        self._held[request.id] = request
        return None

    def release(self, view: View) -> tuple[Asked, int] | None:
        if not self._held or not self._has_room(view):
            return None
        request = max(self._held.values(), key=_urgency)
        del self._held[request.id]
        return request, self.choose(request, view)

    def _has_room(self, view: View) -> bool:
        return any(self.tokens[server] <= self._most_tokens for server in view.servers)


def _urgency(request: Asked) -> float:
    return (1 + max(0, request.priority)) / max(1, request.prompt_tokens)


def _tail(request: Asked) -> int:
    """The last block, where it is not full and so nobody else's."""
    return int(request.prompt_tokens > len(request.blocks) * BLOCK_TOKENS)


_NONE: Counter[int] = Counter()
