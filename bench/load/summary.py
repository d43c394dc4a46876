"""What a run's results come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from bench.load.client import Result


class Quantiles(msgspec.Struct, frozen=True):
    """Of seconds; NaN where there was nothing to measure."""

    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`ttft` is over streams that brought a token, `e2e` over whole answers, token counts over all results.

    `hit_rate` is the share of prompt tokens found in a cache, `by_replica` counts requests, `duration_s` runs from the first
    request to the last answer.
    """

    requests: int
    failed: int
    duration_s: float
    ttft: Quantiles
    e2e: Quantiles
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    by_replica: Mapping[str, int]
    by_status: Mapping[int, int]

    @property
    def hit_rate(self) -> float:
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0


def summarize(results: Sequence[Result]) -> Summary:
    return Summary(
        requests=len(results),
        failed=sum(not result.ok for result in results),
        duration_s=_duration_s(results),
        ttft=quantiles(result.ttft_s for result in results if result.ttft_s is not None),
        e2e=quantiles(result.e2e_s for result in results if result.ok),
        prompt_tokens=sum(result.prompt_tokens for result in results),
        cached_tokens=sum(result.cached_tokens for result in results),
        completion_tokens=sum(result.completion_tokens for result in results),
        by_replica=dict(sorted(Counter(result.replica for result in results if result.replica).items())),
        by_status=dict(sorted(Counter(result.status for result in results).items())),
    )


def quantiles(values: Iterable[float]) -> Quantiles:
    ordered = sorted(values)
    if not ordered:
        return Quantiles(*[float("nan")] * 4)
    return Quantiles(sum(ordered) / len(ordered), *(_at(ordered, share) for share in (0.5, 0.9, 0.99)))


def table(summaries: Mapping[str, Summary]) -> str:
    """Summaries side by side, one column each."""
    rows = [("", *summaries)]
    rows += [(label, *(show(summary) for summary in summaries.values())) for label, show in _ROWS]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )


_ROWS: tuple[tuple[str, Callable[[Summary], str]], ...] = (
    ("requests", lambda s: str(s.requests)),
    ("failed", lambda s: str(s.failed)),
    ("duration s", lambda s: f"{s.duration_s:.1f}"),
    ("TTFT mean ms", lambda s: f"{s.ttft.mean_s * 1000:.0f}"),
    ("TTFT p50 ms", lambda s: f"{s.ttft.p50_s * 1000:.0f}"),
    ("TTFT p90 ms", lambda s: f"{s.ttft.p90_s * 1000:.0f}"),
    ("TTFT p99 ms", lambda s: f"{s.ttft.p99_s * 1000:.0f}"),
    ("end to end p50 ms", lambda s: f"{s.e2e.p50_s * 1000:.0f}"),
    ("end to end p90 ms", lambda s: f"{s.e2e.p90_s * 1000:.0f}"),
    ("cache hit rate", lambda s: f"{s.hit_rate:.0%}"),
    ("requests per server", lambda s: "/".join(map(str, s.by_replica.values()))),
)


def _duration_s(results: Sequence[Result]) -> float:
    if not results:
        return 0.0
    return max(r.sent_s + r.e2e_s for r in results) - min(r.sent_s for r in results)


def _at(ordered: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)
