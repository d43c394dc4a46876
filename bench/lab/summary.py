"""What a run comes to, in numbers that can be compared."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from bench.lab.record import Outcome, Record
from bench.replica.profiles import Profile

WARM_UP = 0.2
"""Share of the requests, the first ones, that is not looked at: caches fill."""

ANSWER_TOKENS = 12.0
"""How many tokens of a prompt take as long as one of an answer: 11 to 18 in a batch of 40, on every server that the lab has."""

_LONGEST = 0.1
_QUANTILES = (0.5, 0.9, 0.99)


class Slo(msgspec.Struct, frozen=True):
    """A request with n prompt tokens is served well where its first token comes within `first_s` + `per_prompt_token_s` · n +
    `per_square_s` · n² and each further one within `per_token_s` in the mean."""

    first_s: float
    per_prompt_token_s: float
    per_square_s: float
    per_token_s: float

    def holds(self, record: Record) -> bool:
        if record.outcome is not Outcome.DONE:
            return False
        n = record.prompt_tokens
        within_s = self.first_s + (self.per_prompt_token_s + self.per_square_s * n) * n
        return record.ttft_s <= within_s and per_token_s(record) <= self.per_token_s


def usual_slo(profile: Profile) -> Slo:
    """One second and three times what an idle server needs to prefill the whole prompt; per token four times what it needs alone, but
    50 ms always do."""
    latency, n = profile.latency(), 8192
    fresh_s, twice_attended_s = (latency.step_s(n, times * n * n, 1, 0, 0) for times in (1, 2))
    square_s = (twice_attended_s - fresh_s) / n**2
    alone_s = latency.step_s(0, 0, 1, 1, 2048)
    return Slo(
        first_s=1.0,
        per_prompt_token_s=3 * (fresh_s / n - square_s * n),
        per_square_s=3 * square_s,
        per_token_s=max(0.05, 4 * alone_s),
    )


class Quantiles(msgspec.Struct, frozen=True):
    """Seconds; NaN of nothing."""

    mean: float
    p50: float
    p90: float
    p99: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """One run after its warm-up.

    Latencies are of requests that got an answer. `longest_*` are of the tenth with the longest prompts, `tenant_ttft_p90_s` of each tenant.
    `goodput_rps` counts requests within the SLO, by the time that the trace offers them in. `hit` is cached ÷ prompt tokens, `captured` cached tokens ÷
    those that an endless cache of all servers would have held (1 where it would have held none). `request_spread`, `token_spread` and
    `work_spread` are max ÷ mean over the servers of requests, of uncached prompt tokens, and of these and answers (`ANSWER_TOKENS`) together.
    """

    requests: int
    refused: int
    lost: int
    duration_s: float
    ttft: Quantiles
    e2e: Quantiles
    longest_ttft: Quantiles
    longest_e2e: Quantiles
    per_token_s: Quantiles
    tenant_ttft_p90_s: dict[str, float]
    attained: float
    goodput_rps: float
    hit: float
    captured: float
    request_spread: float
    token_spread: float
    work_spread: float


def summarise(records: Iterable[Record], servers: int, slo: Slo, *, warm_up: float = WARM_UP) -> Summary:
    """Raises ValueError where there are no records."""
    everything = sorted(records, key=lambda one: one.at_s)
    if not everything:
        raise ValueError("a run without requests has no summary")
    counted = everything[int(len(everything) * warm_up) :]
    done = [one for one in counted if one.outcome is Outcome.DONE]
    longest = sorted(done, key=lambda one: one.prompt_tokens)[int(len(done) * (1 - _LONGEST)) :]
    duration_s = max(counted[-1].at_s - counted[0].at_s, 1e-9)
    well = sum(slo.holds(one) for one in counted)
    cached = sum(one.cached_tokens for one in done)
    available = sum(one.available_tokens for one in done)
    return Summary(
        requests=len(counted),
        refused=sum(one.outcome in (Outcome.REFUSED, Outcome.TOO_LONG) for one in counted),
        lost=sum(one.outcome is Outcome.LOST for one in counted),
        duration_s=duration_s,
        ttft=_quantiles([one.ttft_s for one in done]),
        e2e=_quantiles([one.e2e_s for one in done]),
        longest_ttft=_quantiles([one.ttft_s for one in longest]),
        longest_e2e=_quantiles([one.e2e_s for one in longest]),
        per_token_s=_quantiles([per_token_s(one) for one in done if one.output_tokens > 1]),
        tenant_ttft_p90_s=_by_tenant(done),
        attained=well / len(counted),
        goodput_rps=well / duration_s,
        hit=cached / max(1, sum(one.prompt_tokens for one in done)),
        captured=cached / available if available else 1.0,
        request_spread=_spread(done, servers, [1.0] * len(done)),
        token_spread=_spread(done, servers, [float(one.prompt_tokens - one.cached_tokens) for one in done]),
        work_spread=_spread(done, servers, [_work(one) for one in done]),
    )


def per_token_s(record: Record) -> float:
    """Mean time between tokens of the answer, 0 where it has but one."""
    return (record.e2e_s - record.ttft_s) / (record.output_tokens - 1) if record.output_tokens > 1 else 0.0


def _quantiles(values: Sequence[float]) -> Quantiles:
    if not values:
        return Quantiles(np.nan, np.nan, np.nan, np.nan)
    return Quantiles(float(np.mean(values)), *(float(one) for one in np.quantile(values, _QUANTILES)))


def _by_tenant(done: Sequence[Record]) -> dict[str, float]:
    by_tenant: dict[str, list[float]] = {}
    for one in done:
        if one.tenant:
            by_tenant.setdefault(one.tenant, []).append(one.ttft_s)
    return {tenant: float(np.quantile(values, 0.9)) for tenant, values in sorted(by_tenant.items())}


def _work(record: Record) -> float:
    return record.prompt_tokens - record.cached_tokens + ANSWER_TOKENS * record.output_tokens


def _spread(done: Sequence[Record], servers: int, weights: Sequence[float]) -> float:
    loads = np.bincount([one.server for one in done], weights, servers)
    return float(loads.max() / loads.mean()) if loads.any() else 1.0
