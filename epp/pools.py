"""The pools of the process, which come and go, and which of them a call is for."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from epp.endpoint import Endpoint, Endpoints
from epp.pool import Pool
from epp.resources.objects import InferencePool

log = logging.getLogger("epp")

POOL_METADATA = b"x-gateway-inference-pool"
"""gRPC metadata by which a route says whose pool a call is for: `name`, or `namespace/name`."""

_AUTHORITY = b":authority"
_CALLS_REMEMBERED = 1024


class Pools:
    """Owns the pools: `serve` makes and ends them, `replace` says who their members are. `make` gets a name.

    In order of precedence: where nothing else tells, the first is meant.
    """

    def __init__(self, namespace: str, make: Callable[[str], Pool]) -> None:
        self._namespace = namespace
        self._make = make
        self._pools: dict[str, Pool] = {}
        self._by_picker: dict[str, str] = {}
        self._called: dict[tuple[bytes, bytes], Pool | None] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._pools)

    def __iter__(self) -> Iterator[Pool]:
        return iter(self._pools.values())

    def get(self, name: str) -> Pool | None:
        return self._pools.get(name)

    @property
    def first(self) -> Pool | None:
        return next(iter(self._pools.values()), None)

    def endpoints(self) -> Mapping[str, Endpoints]:
        return {name: pool.endpoints for name, pool in self._pools.items()}

    def serve(self, served: Mapping[str, InferencePool | None]) -> tuple[Pool, ...]:
        """Exactly these are served now, with the objects that describe them. Returns the pools that are new.

        Who waits in one that is served no more is turned away; what it has under way ends as it would.
        """
        before = self._pools
        self._pools = {name: before.get(name) or self._make(name) for name in served}
        for name, pool in before.items():
            if name not in self._pools:
                self._end(pool)
        pickers = Counter(one.picker.name for one in served.values() if one is not None and one.picker is not None)
        self._by_picker = {
            one.picker.name: name
            for name, one in served.items()
            if one is not None and one.picker is not None and pickers[one.picker.name] == 1
        }
        self._called.clear()
        return tuple(pool for name, pool in self._pools.items() if name not in before)

    def replace(self, name: str, members: Sequence[Endpoint]) -> None:
        """`members` are the pool `name` now. Nothing happens where it is not served."""
        pool = self._pools.get(name)
        if pool is not None:
            pool.replace(members)

    def called(self, metadata: Mapping[bytes, bytes]) -> Pool | None:
        """The pool that a call's gRPC metadata names; else that of the Service it was made to, where that serves one pool alone."""
        told = metadata.get(POOL_METADATA, b""), metadata.get(_AUTHORITY, b"")
        try:
            return self._called[told]
        except KeyError:
            pass
        if len(self._called) >= _CALLS_REMEMBERED:
            self._called.clear()
        named, authority = (one.decode("latin-1") for one in told)
        found = self.named(named) if named else None
        if found is None:
            found = self._pools.get(self._by_picker.get(self._service(authority), ""))
        self._called[told] = found
        return found

    def holding(self, adapter: str) -> Pool | None:
        """The first pool whose servers report the LoRA adapter."""
        return next((pool for pool in self if pool.endpoints.adapter(adapter) is not None), None)

    def named(self, name: str) -> Pool | None:
        """The pool called `name` or `namespace/name`."""
        return self._pools.get(name.removeprefix(f"{self._namespace}/"))

    def drain(self, now_s: float) -> None:
        for pool in self:
            pool.dispatcher.drain(now_s)

    async def close(self) -> None:
        """Safe to call twice."""
        await asyncio.gather(*(pool.close() for pool in self), *self._ending)

    def _service(self, authority: str) -> str:
        """The Service behind `name.namespace.svc…:port`, also as Istio's cluster names have it: `outbound|port||host`."""
        host = authority.rpartition("|")[2].partition(":")[0]
        name, _, rest = host.partition(".")
        return name if rest.partition(".")[0] in ("", self._namespace) else ""

    def _end(self, pool: Pool) -> None:
        log.info("pool %s is served no more", pool.name)
        pool.dispatcher.drain(asyncio.get_running_loop().time())
        task = asyncio.ensure_future(pool.close())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
