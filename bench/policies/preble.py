"""Preble's E2, exploit or explore (Srivatsa et al., ICLR 2025)."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from itertools import islice

import msgspec

from bench.policies import BLOCK_TOKENS, Asked, View
from bench.policies.choosing import least
from bench.policies.prefixes import Prefixes

WINDOW_S = 180.0
"""Its history H, 3 minutes."""


class _Sent(msgspec.Struct, frozen=True):
    at_s: float
    server: int
    cost_s: float
    blocks: tuple[int, ...]


def prefill_s(tokens: float) -> float:
    """An offline fit of an 8B model on an H100 (bench/profiles): 46,000 tokens/s, less for long prompts."""
    return 1.9e-5 * tokens + 3.5e-10 * tokens**2


class ExploitExplore:
    """Exploit where the longest cached beginning is longer than what is left of the prompt: the least loaded of those that have it.
    Explore otherwise: argmin of L + M + P.

    L is the computing time of what the server was sent in the last `WINDOW_S`: prefill of misses, and decoding of the mean answer. M
    is the time to compute again what would be evicted, each block by its share of hits in the window. P is the prefill of this
    request's misses. What would go to the most loaded server goes to the least loaded one while their L differ by more than
    `imbalance` times. The caches are a guess by what was sent, as large as the servers say. `prefill_s` and `decode_s` (a token) are profiles made
    beforehand, which is how the paper has them; 0.2 ms a token is decoding in a batch of 40.
    """

    def __init__(
        self,
        *,
        imbalance: float = 1.4,
        prefill_s: Callable[[float], float] = prefill_s,
        decode_s: float = 0.0002,
    ) -> None:
        self._imbalance = imbalance
        self._prefill_s = prefill_s
        self._decode_s = decode_s
        self._prefixes = Prefixes()
        self._window: deque[_Sent] = deque()
        self._load_s: defaultdict[int, float] = defaultdict(float)
        self._hits: Counter[int] = Counter()
        self._answers = 0
        self._answer_tokens = 0
        self._due_s = 0.0
        self._due_blocks = 0

    def pick(self, request: Asked, view: View) -> int:
        self._forget_before(view.now_s - WINDOW_S)
        matched = self._prefixes.matched(request.blocks)
        longest = max((matched.get(server, 0) for server in view.servers), default=0)
        if longest * BLOCK_TOKENS > request.prompt_tokens - longest * BLOCK_TOKENS:
            best = [server for server in view.servers if matched.get(server, 0) == longest]
            server = self._rebalanced(least(best, self._load_s.__getitem__, view.rng), view)
        else:
            costs = {one: self._explore_s(request, one, matched.get(one, 0), view) for one in view.servers}
            server = least(view.servers, costs.__getitem__, view.rng)
        self._due_s = self._work_s(request, matched.get(server, 0))
        self._due_blocks = view.scraped(server).kv_tokens // BLOCK_TOKENS
        return server

    def _rebalanced(self, server: int, view: View) -> int:
        lightest = least(view.servers, self._load_s.__getitem__, view.rng)
        heaviest_s = max(self._load_s[one] for one in view.servers)
        overloaded = heaviest_s > self._imbalance * self._load_s[lightest]
        return lightest if overloaded and self._load_s[server] == heaviest_s else server

    def _explore_s(self, request: Asked, server: int, matched: int, view: View) -> float:
        return self._load_s[server] + self._evicted_s(request, server, matched, view) + self._miss_s(request, matched)

    def _evicted_s(self, request: Asked, server: int, matched: int, view: View) -> float:
        kv_tokens = view.scraped(server).kv_tokens
        held = self._prefixes.held(server)
        excess = len(held) + len(request.blocks) - matched - kv_tokens // BLOCK_TOKENS
        if not kv_tokens or excess <= 0 or not self._window:
            return 0.0
        hits = sum(self._hits[block] for block in islice(held, excess))
        return self._prefill_s(BLOCK_TOKENS) * hits / len(self._window)

    def _miss_s(self, request: Asked, matched: int) -> float:
        return self._prefill_s(request.prompt_tokens - matched * BLOCK_TOKENS)

    def _work_s(self, request: Asked, matched: int) -> float:
        answer_tokens = self._answer_tokens / self._answers if self._answers else 0.0
        return self._miss_s(request, matched) + answer_tokens * self._decode_s

    def _forget_before(self, at_s: float) -> None:
        while self._window and self._window[0].at_s < at_s:
            sent = self._window.popleft()
            self._load_s[sent.server] -= sent.cost_s
            for block in sent.blocks:
                self._hits[block] -= 1
                if not self._hits[block]:
                    del self._hits[block]

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        blocks = tuple(request.blocks)
        self._window.append(_Sent(now_s, server, self._due_s, blocks))
        self._load_s[server] += self._due_s
        self._hits.update(blocks)
        self._prefixes.record(server, blocks)
        if self._due_blocks:
            self._prefixes.resize(server, self._due_blocks)

    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        if output_tokens:
            self._answers += 1
            self._answer_tokens += output_tokens

    def joined(self, server: int, now_s: float) -> None:
        pass

    def left(self, server: int, now_s: float) -> None:
        self._prefixes.forget(server)
