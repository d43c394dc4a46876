"""Token buckets: how much of each limit is left to each tenant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

EVERYBODY = b""
"""The tenant of a limit that all tenants share. No other tenant's name is empty."""


class Bucket(msgspec.Struct, frozen=True):
    """Holds `capacity` at most and gains `per_s` every second. Buckets with the same `number` are the same limit."""

    number: int
    capacity: float
    per_s: float

    def seconds_until(self, level: float, wanted: float) -> float:
        """How long until a bucket that holds `level` holds `wanted`, 0 if it does."""
        return max(0.0, (wanted - level) / self.per_s)


class Store(Protocol):
    """Whoever keeps levels. A store that others share answers from what it knows, at once, and reconciles by itself."""

    def level(self, tenant: bytes, bucket: Bucket, now_s: float) -> float:
        """What `bucket` holds for `tenant`, full where nothing was ever taken. Below 0 it is owed."""
        ...

    def take(self, tenant: bytes, bucket: Bucket, amount: float, now_s: float, *, owing: float) -> None:
        """Take `amount`, or give it back where it is negative.

        A bucket never holds more than its capacity. It comes to owe `owing` at most by this, or what it owed before.
        """
        ...

    def known(self) -> Iterator[tuple[bytes, int]]:
        """Tenant and bucket number of what is known here, lately used tenants first."""
        ...


class MemoryStore:
    """A `Store` of this process alone. Forgets the tenant that was idle for longest when there are more than `max_tenants`.

    Whoever was idle for as long as a bucket takes to fill has lost nothing by being forgotten.
    """

    def __init__(self, max_tenants: int) -> None:
        self._max_tenants = max_tenants
        self._tenants: OrderedDict[bytes, dict[int, list[float]]] = OrderedDict()
        self._everybody: dict[int, list[float]] = {}

    def __len__(self) -> int:
        """Tenants remembered."""
        return len(self._tenants)

    def level(self, tenant: bytes, bucket: Bucket, now_s: float) -> float:
        known = self._everybody if tenant == EVERYBODY else self._tenants.get(tenant)
        held = known.get(bucket.number) if known else None
        return bucket.capacity if held is None else _refilled(held, bucket, now_s)

    def take(self, tenant: bytes, bucket: Bucket, amount: float, now_s: float, *, owing: float) -> None:
        buckets = self._everybody if tenant == EVERYBODY else self._buckets_of(tenant)
        held = buckets.get(bucket.number)
        if held is None:
            held = buckets[bucket.number] = [bucket.capacity, now_s]
        level = _refilled(held, bucket, now_s)
        held[0] = max(level - amount, min(level, -owing))
        held[1] = max(held[1], now_s)

    def known(self) -> Iterator[tuple[bytes, int]]:
        for number in self._everybody:
            yield EVERYBODY, number
        for tenant, buckets in reversed(self._tenants.items()):
            for number in buckets:
                yield tenant, number

    def _buckets_of(self, tenant: bytes) -> dict[int, list[float]]:
        buckets = self._tenants.get(tenant)
        if buckets is not None:
            self._tenants.move_to_end(tenant)
            return buckets
        buckets = self._tenants[tenant] = {}
        if len(self._tenants) > self._max_tenants:
            self._tenants.popitem(last=False)
        return buckets


def _refilled(held: Sequence[float], bucket: Bucket, now_s: float) -> float:
    level, at_s = held
    # A clock that steps back takes nothing away.
    return min(bucket.capacity, level + max(0.0, now_s - at_s) * bucket.per_s)
