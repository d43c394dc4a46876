"""What answers calls that may be for any of several pools: finds the pool of each request, then lets that pool decide."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Protocol

from epp.account import NOBODY, Account, Place
from epp.dispatcher import Dispatcher
from epp.drops import OUTCOMES, Drop, Reason
from epp.extproc.events import Arrival, Finished, Started, Steer
from epp.observe.metrics import Metrics
from epp.openai.body import OPAQUE, Parsed, parse
from epp.resources.routing import Routing


class Pool(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def dispatcher(self) -> Dispatcher: ...


class Pools(Protocol):
    """The pools that are served. `first` is the one that is meant where nothing else tells."""

    @property
    def first(self) -> Pool | None: ...
    def named(self, name: str) -> Pool | None: ...
    def holding(self, adapter: str) -> Pool | None: ...


class Resources(Protocol):
    @property
    def routing(self) -> Routing: ...


class Front:
    """Implements `epp.extproc.events.Dispatcher` over several pools.

    The pool of a request is the one that the proxy's metadata names; else the one that the objects in force lead its model to;
    else the first whose servers report an adapter of that name; else the first. `rng` draws where a route splits.
    """

    def __init__(self, pools: Pools, resources: Resources, metrics: Metrics, rng: random.Random) -> None:
        self._pools = pools
        self._resources = resources
        self._metrics = metrics
        self._rng = rng

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, Account] | Place:
        """Raises Drop."""
        parsed: Parsed | None = None
        pool, found_by = self._pools.named(arrival.pool) if arrival.pool else None, "metadata"
        if pool is None:
            parsed = _read(arrival)
            pool, found_by = self._look_for(arrival, parsed.model if parsed is not None else "")
        if pool is None:
            drop = Drop(Reason.NO_ENDPOINTS, "There is no pool of model servers.")
            self._metrics.refused(*NOBODY, OUTCOMES[drop.reason])
            raise drop
        self._metrics.pool_found(pool.name, found_by)
        return pool.dispatcher.route(arrival, opened_s, now_s, parsed)

    def runs(self, account: Account, evict: Callable[[Drop], None]) -> None:
        account.dispatcher.runs(account, evict)

    def started(self, account: Account, notice: Started, now_s: float) -> Mapping[str, str]:
        return account.dispatcher.started(account, notice, now_s)

    def first_body(self, account: Account, now_s: float) -> None:
        account.dispatcher.first_body(account, now_s)

    def finished(self, account: Account, notice: Finished, now_s: float) -> None:
        account.dispatcher.finished(account, notice, now_s)

    def _look_for(self, arrival: Arrival, model: str) -> tuple[Pool | None, str]:
        name = self._resources.routing.pool(arrival.headers, model, self._rng)
        pool = self._pools.named(name) if name is not None else None
        if pool is not None:
            return pool, "route"
        pool = self._pools.holding(model) if model else None
        return (pool, "adapter") if pool is not None else (self._pools.first, "default")


def _read(arrival: Arrival) -> Parsed | None:
    """None where it cannot be read: whoever decides finds out why, and says so."""
    if not arrival.has_body:
        return OPAQUE
    try:
        return parse(arrival.headers, arrival.body, truncated=arrival.truncated)
    except Exception:
        return None
