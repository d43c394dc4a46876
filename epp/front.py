"""What answers calls that may be for any of several pools: finds the pool of each request, then lets that pool decide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from epp.dispatcher import NOBODY, Account, Dispatcher, Place
from epp.drops import OUTCOMES, Drop, Reason
from epp.endpoint import Endpoints
from epp.extproc.events import Arrival, Finished, Started, Steer
from epp.observe.metrics import Metrics
from epp.openai.body import OPAQUE, Parsed, parse


class Pool(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def endpoints(self) -> Endpoints: ...
    @property
    def dispatcher(self) -> Dispatcher: ...


class Pools(Protocol):
    """The pools, in order of precedence."""

    def named(self, name: str) -> Pool | None: ...
    @property
    def first(self) -> Pool | None: ...
    def holding(self, adapter: str) -> Pool | None: ...


class Front:
    """Implements `epp.extproc.events.Dispatcher` over several pools.

    The pool of a request is the one that the proxy's metadata names; else that of its model: by the objects in force
    (`pool_of`, from a model to a pool's name), or the first whose servers report an adapter of that name; else the first pool.
    """

    def __init__(self, pools: Pools, pool_of: Callable[[str], str | None], metrics: Metrics) -> None:
        self._pools = pools
        self._pool_of = pool_of
        self._metrics = metrics

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, Account] | Place:
        """Raises Drop."""
        parsed: Parsed | None = None
        pool, found_by = self._pools.named(arrival.pool) if arrival.pool else None, "metadata"
        if pool is None:
            parsed = _read(arrival)
            pool, found_by = self._by_model(parsed.model if parsed is not None else "")
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

    def _by_model(self, model: str) -> tuple[Pool | None, str]:
        if model:
            name = self._pool_of(model)
            pool = self._pools.named(name) if name is not None else None
            if pool is not None:
                return pool, "model"
            pool = self._pools.holding(model)
            if pool is not None:
                return pool, "adapter"
        return self._pools.first, "default"


def _read(arrival: Arrival) -> Parsed | None:
    """None where it cannot be read: whoever decides finds out why, and says so."""
    if not arrival.has_body:
        return OPAQUE
    try:
        return parse(arrival.headers, arrival.body, truncated=arrival.truncated)
    except Exception:
        return None
