"""What `/debug` shows: the state that picks are made from, as JSON."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import msgspec

from epp.pool import Pool
from epp.pools import Pools
from epp.quota.quota import Quota
from epp.resources.store import Store

Page = tuple[int, str, bytes]
"""Status, content type, body."""

QUOTAS_SHOWN = 1000
"""Rows of /debug/quotas."""


def pages(pools: Pools, resources: Store, quota: Quota | None) -> dict[str, Callable[[], Page]]:
    """By path."""
    return {
        "/debug/endpoints": lambda: _json([row for pool in pools for row in _rows(pool)]),
        # Every object, where it was read, and why it has no effect where it has none.
        "/debug/resources": lambda: _json(resources.standings),
        "/debug/quotas": lambda: _json(_quotas(quota)),
    }


def _json(value: object) -> Page:
    return 200, "application/json", msgspec.json.encode(value)


def _rows(pool: Pool) -> list[dict[str, object]]:
    """What is known of every endpoint: the columns a pick reads."""
    e, now_s = pool.endpoints, asyncio.get_running_loop().time()
    pool.ledger.advance(now_s)
    churn = pool.index.churn()
    return [
        {
            "pool": pool.name,
            "endpoint": endpoint.key,
            "destination": endpoint.destination,
            "reachable": not e.unreachable.item(slot),
            "report_age_s": _number(now_s - e.updated_s.item(slot)),
            "waiting": _number(e.waiting.item(slot)),
            "running": _number(e.running.item(slot)),
            "kv_usage": _number(e.kv_usage.item(slot)),
            "in_flight": e.in_flight.item(slot),
            "in_flight_tokens": e.in_flight_tokens.item(slot),
            "prefill_tokens_per_s": round(pool.ledger.prefill_rate(slot)),
            "prefix_blocks": pool.index.blocks(slot),
            "churn": _number(churn.item(slot)) if slot < len(churn) else 0.0,
            "shared": e.shared,
            "adapters": sorted(e.adapters[slot].running | e.adapters[slot].waiting),
        }
        for slot, endpoint in zip(e.slots.tolist(), e.members, strict=True)
    ]


def _quotas(quota: Quota | None) -> list[object]:
    """What is left of each limit to the tenants seen last, by the hashes that stand for them in this process."""
    if quota is None:
        return []
    return list(quota.remaining(QUOTAS_SHOWN, asyncio.get_running_loop().time()))


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return round(value, 3) if math.isfinite(value) else None
