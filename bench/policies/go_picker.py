"""The Go endpoint picker's two policies: Gateway API Inference Extension and llm-d Router, v0.10 of 2026-08 and its main branch.

Source: `pkg/epp/framework/plugins/scheduling` and `.../requestcontrol/dataproducer/approximateprefix`. Its load is what it scraped, or, in
the second, what it counted; its prefix index is its own with its quirks.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence

from bench.policies import BLOCK_TOKENS, Asked, View
from bench.policies.choosing import least
from bench.policies.counting import Counting

LRU_BLOCKS = 31_250
"""Of a server that does not say how large its cache is."""

ENGINE_BLOCK_TOKENS = 16
"""Its index takes the number of an engine's blocks of 16 tokens for the number of its own of 64, and so believes in four times the cache."""

PEAK_PREFILL_TOKENS_PER_S = 15_928
THRESHOLD_TOKENS = 4_194_304


class Index:
    """`approx-prefix-cache-producer`: an LRU of blocks a server, filled head first, so that heads leave first.

    A look-up does not count as use, and an early block that a server lacks does not end its count.
    """

    def __init__(self) -> None:
        self._holders: dict[int, set[int]] = {}
        self._shelves: dict[int, OrderedDict[int, None]] = {}
        self._max_blocks: dict[int, int] = {}

    def counted(self, blocks: Sequence[int]) -> Counter[int]:
        """Blocks by server up to the first that nobody holds."""
        counts: Counter[int] = Counter()
        for block in blocks:
            holders = self._holders.get(block)
            if not holders:
                break
            counts.update(holders)
        return counts

    def record(self, server: int, blocks: Sequence[int], kv_tokens: int) -> None:
        """The size of a server's LRU is settled by its first request."""
        shelf = self._shelves.setdefault(server, OrderedDict())
        most = self._max_blocks.setdefault(server, kv_tokens // ENGINE_BLOCK_TOKENS or LRU_BLOCKS)
        for block in blocks:
            shelf[block] = None
            shelf.move_to_end(block)
            self._holders.setdefault(block, set()).add(server)
            if len(shelf) > most:
                oldest = shelf.popitem(last=False)[0]
                self._holders[oldest].discard(server)

    def forget(self, server: int) -> None:
        self._max_blocks.pop(server, None)
        for block in self._shelves.pop(server, ()):
            self._holders[block].discard(server)


class Blend:
    """The default until 2026: argmax of 3 · match/total + 2 · (max − waiting)/(max − min) + 2 · (1 − KV use), all by last scrape.

    Equal queues score 1. Ties by chance (`max-score-picker` shuffles first).
    """

    def __init__(self, *, prefix: float = 3.0, queue: float = 2.0, kv: float = 2.0) -> None:
        self._weights = prefix, queue, kv
        self._index = Index()
        self._kv_tokens = 0

    def pick(self, request: Asked, view: View) -> int:
        prefix, queue, kv = self._weights
        pages = {server: view.scraped(server) for server in view.servers}
        matched = self._index.counted(request.blocks)
        total = max(1, len(request.blocks))
        shortest = min(page.waiting for page in pages.values())
        longest = max(page.waiting for page in pages.values())
        span = longest - shortest

        def cost(server: int) -> float:
            page = pages[server]
            idle = (longest - page.waiting) / span if span else 1.0
            return -(prefix * matched[server] / total + queue * idle + kv * (1.0 - page.kv_usage))

        server = least(view.servers, cost, view.rng)
        self._kv_tokens = pages[server].kv_tokens
        return server

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self._index.record(server, request.blocks, self._kv_tokens)

    def joined(self, server: int, now_s: float) -> None:
        pass

    def left(self, server: int, now_s: float) -> None:
        self._index.forget(server)


class Sticky(Counting):
    """ "Sticky until saturated", the default of 2026-08: `prefix-cache-affinity-filter` before `token-load-scorer`.

    Warm are servers with match/total ≥ `affinity`, all where there is none. Warmth is passed over where the least uncached tokens
    in flight among the warm, divided by the peak prefill rate, exceed those among the others by more than `max_penalty_s`. Of
    those left, argmax of 1 − min(uncached in flight + uncached of the request, T)/T.
    """

    def __init__(
        self,
        *,
        affinity: float = 0.8,
        max_penalty_s: float = 18.0,
        peak_tokens_per_s: float = PEAK_PREFILL_TOKENS_PER_S,
        threshold_tokens: int = THRESHOLD_TOKENS,
    ) -> None:
        super().__init__()
        self._affinity = affinity
        self._max_penalty_s = max_penalty_s
        self._peak_tokens_per_s = peak_tokens_per_s
        self._threshold_tokens = threshold_tokens
        self._index = Index()
        self._kv_tokens = 0

    def pick(self, request: Asked, view: View) -> int:
        matched = self._index.counted(request.blocks)
        total = max(1, len(request.blocks))
        uncached = {server: request.prompt_tokens - matched[server] * BLOCK_TOKENS for server in view.servers}
        warm = self._stuck(
            [server for server in view.servers if matched[server] / total >= self._affinity], view.servers
        )
        server = least(warm, lambda one: min(self.tokens[one] + uncached[one], self._threshold_tokens), view.rng)
        self.charge(request, uncached[server])
        self._kv_tokens = view.scraped(server).kv_tokens
        return server

    def _stuck(self, warm: Sequence[int], servers: Sequence[int]) -> Sequence[int]:
        cold = [server for server in servers if server not in warm]
        if not warm or not cold:
            return servers
        behind = min(self.tokens[one] for one in warm) - min(self.tokens[one] for one in cold)
        return servers if behind / self._peak_tokens_per_s > self._max_penalty_s else warm

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        super().routed(request, server, now_s)
        self._index.record(server, request.blocks, self._kv_tokens)

    def joined(self, server: int, now_s: float) -> None:
        pass

    def left(self, server: int, now_s: float) -> None:
        self._index.forget(server)
