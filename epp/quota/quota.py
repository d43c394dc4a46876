"""Rate limits: charged with an estimate when a request comes, settled by what it really cost when it ends."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import msgspec

from epp.drops import Drop, Reason
from epp.quota.limits import Limits, Measure, Rule, Rules
from epp.quota.store import EVERYBODY, Store
from epp.quota.tenants import Tenants
from epp.request import Request
from epp.retry import Bounds, spread

RETRY_BOUNDS = Bounds(1, 3600)
"""A quota's wait is known, so it is told as it is, though OpenAI's clients then give up rather than wait: `Bounds`."""

_ROUNDING = 1e-6
"""Of a bucket: who comes back when told must not be refused for the last bit of a float."""


class Grant:
    """What one admitted request was charged. Settled or given back once; after that it does nothing."""

    __slots__ = ("charged_tokens", "open", "rules", "tenant")

    def __init__(self, tenant: bytes, rules: Rules, charged_tokens: int) -> None:
        self.tenant = tenant
        self.rules = rules
        self.charged_tokens = charged_tokens
        self.open = True

    @property
    def counts_tokens(self) -> bool:
        """Whether it matters what the answer says of its usage."""
        return any(rule.of_tokens for rule in self.rules)


class Remaining(msgspec.Struct, frozen=True):
    """One bucket for the debug page. `tenant` is a hash, "" for a limit that all share."""

    tenant: str
    measure: str
    scope: str
    model: str
    per_minute: int
    remaining: float


class Quota:
    """The order of things; levels are the store's.

    A request is admitted when every bucket that applies holds what it is estimated to cost, or is full. So a bucket owes at
    most the excess of one request: beyond its capacity, or beyond its estimate. `answer_tokens` is the estimate of an
    answer's length, less where the client allows less. `refused(measure, scope)` counts.
    """

    def __init__(
        self,
        limits: Limits,
        tenants: Tenants,
        store: Store,
        *,
        answer_tokens: int,
        rng: random.Random,
        refused: Callable[[str, str], None],
    ) -> None:
        self._limits = limits
        self._tenants = tenants
        self._store = store
        self._answer_tokens = answer_tokens
        self._rng = rng
        self._refused = refused

    def admit(self, request: Request, now_s: float) -> Grant | None:
        """Charge a request's estimate; None where no limit holds for it. Raises Drop, and then nothing is charged."""
        if request.headers.get(":method") in ("GET", "HEAD", "OPTIONS"):
            return None
        name = self._tenants.name(request)
        rules = self._limits.applying(name, request.model)
        if not rules:
            return None
        tenant = self._tenants.id(name)
        tokens = request.prompt_tokens + self._expected(request)
        self._require(tenant, rules, tokens, now_s)
        self._charge(tenant, rules, 1, tokens, now_s, owing=tokens)
        return Grant(tenant, rules, tokens)

    def cancel(self, grant: Grant, now_s: float) -> None:
        """The request was not served after all: nothing of it counts."""
        if grant.open:
            grant.open = False
            self._charge(grant.tenant, grant.rules, -1, -grant.charged_tokens, now_s, owing=0)

    def settle(self, grant: Grant, tokens: int | None, now_s: float) -> None:
        """The request is over and took `tokens`, prompt and answer; None where nobody knows: then the estimate stands."""
        if grant.open:
            grant.open = False
            if tokens is not None and tokens != grant.charged_tokens:
                self._charge(grant.tenant, grant.rules, 0, tokens - grant.charged_tokens, now_s, owing=tokens)

    def headers(self, grant: Grant, now_s: float) -> dict[str, str]:
        """`x-ratelimit-*` as OpenAI's API has them, of the bucket that is nearest to empty."""
        return dict(self._rate_headers(grant.tenant, grant.rules, now_s))

    def remaining(self, limit: int, now_s: float) -> list[Remaining]:
        """Up to `limit` buckets, of the tenants seen last."""
        rules = {rule.bucket.number: rule for rule in self._limits.rules}
        rows: list[Remaining] = []
        for tenant, number in self._store.known():
            if len(rows) >= limit:
                break
            rule = rules[number]
            level = self._store.level(tenant, rule.bucket, now_s)
            rows.append(
                Remaining(
                    tenant.hex(), rule.measure.value, rule.scope.value, rule.model, rule.per_minute, round(level, 1)
                )
            )
        return rows

    def _expected(self, request: Request) -> int:
        if not request.prompt_bytes:
            return 0
        return self._answer_tokens if request.max_tokens is None else min(request.max_tokens, self._answer_tokens)

    def _require(self, tenant: bytes, rules: Rules, tokens: int, now_s: float) -> None:
        worst: Rule | None = None
        longest_s = 0.0
        for rule in rules:
            bucket = rule.bucket
            level = self._level(tenant, rule, now_s)
            wanted = min(tokens if rule.of_tokens else 1, bucket.capacity) - _ROUNDING
            if level < wanted and (wait_s := bucket.seconds_until(level, wanted)) > longest_s:
                worst, longest_s = rule, wait_s
        if worst is not None:
            self._refused(worst.measure.value, worst.scope.value)
            raise self._refusal(tenant, rules, worst, longest_s, tokens, now_s)

    def _refusal(self, tenant: bytes, rules: Rules, worst: Rule, wait_s: float, tokens: int, now_s: float) -> Drop:
        # A spread that starts at a whole number never rounds to before it.
        seconds = spread(math.ceil(wait_s), self._rng, RETRY_BOUNDS)
        return Drop(
            Reason.OVER_QUOTA,
            _message(worst, self._level(tenant, worst, now_s), tokens, seconds),
            retry_after_s=seconds,
            more_headers=tuple(self._rate_headers(tenant, rules, now_s)),
        )

    def _charge(self, tenant: bytes, rules: Rules, requests: int, tokens: int, now_s: float, *, owing: float) -> None:
        for rule in rules:
            amount = tokens if rule.of_tokens else requests
            if amount:
                whose = EVERYBODY if rule.shared else tenant
                self._store.take(whose, rule.bucket, amount, now_s, owing=owing)

    def _level(self, tenant: bytes, rule: Rule, now_s: float) -> float:
        return self._store.level(EVERYBODY if rule.shared else tenant, rule.bucket, now_s)

    def _rate_headers(self, tenant: bytes, rules: Rules, now_s: float) -> Sequence[tuple[str, str]]:
        headers: list[tuple[str, str]] = []
        for measure in Measure:
            levels = [(self._level(tenant, rule, now_s), rule.bucket) for rule in rules if rule.measure is measure]
            if levels:
                level, bucket = min(levels, key=lambda one: one[0])
                headers += [
                    (f"x-ratelimit-limit-{measure.value}", str(int(bucket.capacity))),
                    (f"x-ratelimit-remaining-{measure.value}", str(max(0, int(level + _ROUNDING)))),
                    (f"x-ratelimit-reset-{measure.value}", duration(bucket.seconds_until(level, bucket.capacity))),
                ]
        return headers


def _message(rule: Rule, level: float, tokens: int, seconds: int) -> str:
    asked = f", this request needs about {tokens}" if rule.of_tokens else ""
    whose = "all clients together" if rule.shared else "this client"
    model = f" to {rule.model!r}" if rule.model else ""
    less = ", send a shorter prompt, or lower the limit on the answer" if rule.of_tokens else ""
    return (
        f"Rate limit reached: {whose} may use {rule.per_minute} {rule.measure.value} a minute{model}, "
        f"{max(0, int(level))} are left{asked}. Try again in {seconds} s{less}."
    )


def duration(seconds: float) -> str:
    """As OpenAI's API writes one: `120ms`, `6.5s`, `1m30s`, `2h0m5s`."""
    if seconds < 1.0:
        return f"{math.ceil(seconds * 1000.0)}ms"
    if seconds < 60.0:
        return f"{math.ceil(seconds * 1000.0) / 1000.0:g}s"
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{rest}s" if hours else f"{minutes}m{rest}s"
