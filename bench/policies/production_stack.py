"""vLLM production-stack's `prefixaware` (a6c01db of 2026-08-05, `routing_logic.py`)."""

from __future__ import annotations

from bench.policies import Asked, View
from bench.policies.prefixes import Prefixes


class PrefixAware:
    """Any of those that share the longest known beginning, by chance; no load, no eviction. The first prompts go anywhere.

    Its chunks are of 128 characters, ours of 256.
    """

    def __init__(self) -> None:
        self._trie = Prefixes()

    def pick(self, request: Asked, view: View) -> int:
        matched = {one: depth for one, depth in self._trie.matched(request.blocks).items() if one in view.servers}
        longest = max(matched.values(), default=0)
        return view.rng.choice([server for server in view.servers if matched.get(server, 0) == longest])

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self._trie.record(server, request.blocks)
