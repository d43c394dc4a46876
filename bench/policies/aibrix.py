"""AIBrix's `prefix-cache` (e3e10f9 of 2026-08-22)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from statistics import fmean, pstdev

from bench.policies import Asked, View
from bench.policies.choosing import least
from bench.policies.counting import Counting

TABLE_BLOCKS = 100_000
"""Its 200,000 are of 128 characters, ours of 256."""


class PrefixCache(Counting):
    """Where the most and the least requests running differ by more than `imbalance`: the least. Else servers by (match descending,
    running ascending), the first of them with running ≤ mean + `deviations` · σ; where none matches or none is left, the least.

    Running are requests in flight by the gateway's own count. One table of all servers' blocks forgets the least recently used.
    """

    def __init__(self, *, imbalance: int = 16, deviations: float = 2.0, table_blocks: int = TABLE_BLOCKS) -> None:
        super().__init__()
        self._imbalance = imbalance
        self._deviations = deviations
        self._table_blocks = table_blocks
        self._table: OrderedDict[int, set[int]] = OrderedDict()

    def pick(self, request: Asked, view: View) -> int:
        running = {server: self.requests[server] for server in view.servers}
        if max(running.values()) - min(running.values()) <= self._imbalance:
            matched = self._matched(request.blocks)
            bound = fmean(running.values()) + self._deviations * pstdev(running.values())
            for server in sorted(
                (one for one in view.servers if one in matched), key=lambda one: (-matched[one], running[one])
            ):
                if running[server] <= bound:
                    return server
        return least(view.servers, running.__getitem__, view.rng)

    def _matched(self, blocks: Sequence[int]) -> dict[int, int]:
        matched: dict[int, int] = {}
        holding: set[int] | None = None
        for block in blocks:
            holders = self._table.get(block, set())
            holding = set(holders) if holding is None else holding & holders
            if not holding:
                break
            for server in holding:
                matched[server] = matched.get(server, 0) + 1
        return matched

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        super().routed(request, server, now_s)
        for block in request.blocks:
            self._table.setdefault(block, set()).add(server)
            self._table.move_to_end(block)
        while len(self._table) > self._table_blocks:
            self._table.popitem(last=False)

    def joined(self, server: int, now_s: float) -> None:
        pass

    def left(self, server: int, now_s: float) -> None:
        for holders in self._table.values():
            holders.discard(server)
