"""What tenants may use: limits as an operator writes them, and which of them hold for a request."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import msgspec

from epp.quota.store import Bucket
from epp.scoring import Count, Positive


class Measure(enum.Enum):
    """What is counted. The value is how headers and metrics name it."""

    REQUESTS = "requests"
    TOKENS = "tokens"


class Scope(enum.Enum):
    """Whose use is counted together. The value is the metric label."""

    TENANT = "tenant"
    TENANT_MODEL = "tenant-model"
    MODEL = "model"
    ALL = "all"


class Limit(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Requests and tokens a minute, prompt and answer together.

    It holds for each of `tenants`, or for each that no other limit of that model names. With a `model` it counts that model's
    requests alone, without one those of all models. `shared` counts all tenants together. Up to
    `burst_seconds` worth of it can be used at once.
    """

    tenants: tuple[str, ...] = ()
    model: str = ""
    shared: bool = False
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    burst_seconds: Positive = 60.0

    @property
    def scope(self) -> Scope:
        if self.shared:
            return Scope.MODEL if self.model else Scope.ALL
        return Scope.TENANT_MODEL if self.model else Scope.TENANT


class Rule(msgspec.Struct, frozen=True):
    """One measure of one limit, and the bucket that it is kept in.

    `of_tokens` and `shared` say of `measure` and `scope` what every request asks: an enum's member costs 0.17 µs to name.
    """

    measure: Measure
    scope: Scope
    per_minute: int
    model: str
    bucket: Bucket
    of_tokens: bool
    shared: bool


Rules = tuple[Rule, ...]


class Limits:
    """All limits, ready to be looked up. Raises ValueError where they contradict one another or say nothing."""

    def __init__(self, limits: Sequence[Limit]) -> None:
        _check(limits)
        rules = list(_rules(limits))
        self.rules: Rules = tuple(rule for _, rule in rules)
        self._models = frozenset(limit.model for limit in limits)
        self._tenants = frozenset(name for limit in limits for name in limit.tenants)
        self._applying = {
            (tenant, model): _select(rules, tenant, model)
            for tenant in ("", *self._tenants)
            for model in ("", *self._models)
        }

    @property
    def tenants(self) -> frozenset[str]:
        """Those that a limit names."""
        return self._tenants

    def applying(self, tenant: str, model: str) -> Rules:
        """The rules for a request. `tenant` need only be told where it is one of `tenants`."""
        return self._applying[tenant if tenant in self._tenants else "", model if model in self._models else ""]


def _check(limits: Sequence[Limit]) -> None:
    if not limits:
        raise ValueError("limits is empty: a quota needs one limit at least")
    seen: set[tuple[bool, str, str]] = set()
    for limit in limits:
        if limit.requests_per_minute is None and limit.tokens_per_minute is None:
            raise ValueError("a limit says neither requestsPerMinute nor tokensPerMinute")
        if limit.shared and limit.tenants:
            raise ValueError("a limit that is shared by all tenants cannot name some")
        for tenant in limit.tenants or ("",):
            key = (limit.shared, limit.model, tenant)
            if key in seen:
                whom = f"tenant {tenant!r}" if tenant else "all tenants" if limit.shared else "each tenant"
                what = f"model {limit.model!r}" if limit.model else "all models"
                raise ValueError(f"a second limit for {whom} and {what}")
            seen.add(key)


def _rules(limits: Sequence[Limit]) -> Iterator[tuple[Limit, Rule]]:
    number = 0
    for limit in limits:
        for measure, per_minute in (
            (Measure.REQUESTS, limit.requests_per_minute),
            (Measure.TOKENS, limit.tokens_per_minute),
        ):
            if per_minute is not None:
                # Less than one could never be taken.
                capacity = max(1.0, per_minute * limit.burst_seconds / 60.0)
                bucket = Bucket(number, capacity, per_minute / 60.0)
                of_tokens = measure is Measure.TOKENS
                yield (
                    limit,
                    Rule(measure, limit.scope, per_minute, limit.model, bucket, of_tokens, limit.shared),
                )
                number += 1


def _select(rules: Sequence[tuple[Limit, Rule]], tenant: str, model: str) -> Rules:
    named = {limit.model for limit, _ in rules if tenant in limit.tenants}
    return tuple(
        rule
        for limit, rule in rules
        if limit.model in ("", model)
        and (limit.shared or (tenant in limit.tenants if limit.model in named else not limit.tenants))
    )
