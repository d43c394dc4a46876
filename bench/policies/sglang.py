"""SGLang's router, the Shepherd Model Gateway (73da68c of 2026-08-07), with the defaults that its command line has."""

from __future__ import annotations

from collections import Counter
from math import inf

from bench.policies import BLOCK_TOKENS, Asked, Scraped, View
from bench.policies.choosing import least
from bench.policies.counting import Counting
from bench.policies.prefixes import Prefixes

TREE_BLOCKS = 67_108_864 // (4 * BLOCK_TOKENS)
"""`max_tree_size` is in characters, a worker's."""


class CacheAware(Counting):
    """`cache_aware`, its default. Source: `cache_aware.rs`.

    Load is requests in flight. Where max − min > `abs_threshold` and max > `rel_threshold` · min: argmin of (load, requests ever sent,
    index). Else the worker that the tree finds for the longest known beginning, if that is more than `cache_threshold` of the
    prompt; otherwise the least loaded. Of several workers that share the deepest node, the one that used it last.
    """

    def __init__(
        self, *, cache_threshold: float = 0.3, abs_threshold: float = 64.0, rel_threshold: float = 1.5
    ) -> None:
        super().__init__()
        self._cache_threshold = cache_threshold
        self._abs_threshold = abs_threshold
        self._rel_threshold = rel_threshold
        self._tree = Prefixes(TREE_BLOCKS)
        self._processed: Counter[int] = Counter()

    def pick(self, request: Asked, view: View) -> int:
        idlest = min(view.servers, key=lambda one: (self.requests[one], self._processed[one], one))
        loads = [self.requests[server] for server in view.servers]
        if max(loads) - min(loads) > self._abs_threshold and max(loads) > self._rel_threshold * min(loads):
            return idlest
        depth = max(self._tree.matched(request.blocks).values(), default=0)
        if depth * BLOCK_TOKENS <= self._cache_threshold * request.prompt_tokens:
            return idlest
        latest = self._tree.latest(request.blocks[depth - 1])
        return latest if latest is not None and latest in view.servers else idlest

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        super().routed(request, server, now_s)
        self._processed[server] += 1
        self._tree.record(server, request.blocks)

    def joined(self, server: int, now_s: float) -> None:
        pass

    def left(self, server: int, now_s: float) -> None:
        self._tree.forget(server)


class LeastLoad:
    """`least_load`: argmin of seconds until drained, (queued tokens + tokens sent since the poll) / rate + 0.15 · k/(1 − k), k the KV use.

    Workers are polled every 10 s. One that tells only how many requests wait is taken to have `mean_prefill_tokens` for each, which is
    what a page of vLLM's comes to.
    """

    def __init__(
        self, *, tokens_per_s: float = 2000.0, mean_prefill_tokens: float = 1024.0, poll_interval_s: float = 10.0
    ) -> None:
        self._tokens_per_s = tokens_per_s
        self._mean_prefill_tokens = mean_prefill_tokens
        self._poll_interval_s = poll_interval_s
        self._polled_s = -inf
        self._polled: dict[int, Scraped] = {}
        self._sent_tokens: Counter[int] = Counter()

    def pick(self, request: Asked, view: View) -> int:
        if view.now_s - self._polled_s >= self._poll_interval_s:
            self._polled_s = view.now_s
            self._polled = {server: view.scraped(server) for server in view.servers}
            self._sent_tokens.clear()
        return least(view.servers, self._drain_s, view.rng)

    def _drain_s(self, server: int) -> float:
        page = self._polled.get(server, _UNKNOWN)
        tokens = page.waiting * self._mean_prefill_tokens + self._sent_tokens[server]
        full = min(page.kv_usage, 0.999)
        return tokens / self._tokens_per_s + 0.15 * full / (1.0 - full)

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self._sent_tokens[server] += request.prompt_tokens


_UNKNOWN = Scraped()
