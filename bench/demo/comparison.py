"""Two runs of the same requests side by side, and in one sentence what the second gained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from bench.load.client import Result
from bench.load.summary import Summary

CLEAR = 0.05
"""Relative difference of mean TTFT below which neither policy is called better."""


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One policy's run. `hit_rate` is None where servers do not say; `server_of` maps request ids to places in the list."""

    name: str
    summary: Summary
    hit_rate: float | None
    requests: Mapping[str, int]
    adapters: Mapping[str, tuple[str, ...]]
    results: Sequence[Result]
    number_of: Callable[[str], str]

    @property
    def spread(self) -> float:
        """Requests of the busiest server ÷ the average; NaN without requests."""
        total = sum(self.requests.values())
        return max(self.requests.values()) * len(self.requests) / total if total else math.nan


def milliseconds(seconds: float) -> str:
    return "–" if math.isnan(seconds) else f"{seconds * 1000:,.0f} ms"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def change(before: float, after: float) -> str:
    """Relative, with a sign; empty where it means nothing."""
    if math.isnan(before) or math.isnan(after) or before == 0:
        return ""
    return f"{(after - before) / before:+.0%}"


def rows(first: Run, second: Run) -> list[tuple[str, str, str, str]]:
    """(what, first, second, change)."""
    made: list[tuple[str, str, str, str]] = []
    for label, seconds in _LATENCIES:
        before, after = seconds(first.summary), seconds(second.summary)
        made.append((label, milliseconds(before), milliseconds(after), change(before, after)))
    made.append(("prompt tokens found in a cache", percent(first.hit_rate), percent(second.hit_rate), ""))
    made.append(("requests per server", per_server(first), per_server(second), ""))
    made.append(("busiest server ÷ average", f"{first.spread:.2f}", f"{second.spread:.2f}", ""))
    if any((*first.adapters.values(), *second.adapters.values())):
        made.append(("LoRA adapters per server", adapters(first), adapters(second), ""))
    made.append(("errors", str(first.summary.failed), str(second.summary.failed), ""))
    return made


_LATENCIES: tuple[tuple[str, Callable[[Summary], float]], ...] = (
    ("time to first token, mean", lambda s: s.ttft.mean_s),
    ("                     p50", lambda s: s.ttft.p50_s),
    ("                     p90", lambda s: s.ttft.p90_s),
    ("                     p99", lambda s: s.ttft.p99_s),
    ("whole answer,        p50", lambda s: s.e2e.p50_s),
    ("                     p90", lambda s: s.e2e.p90_s),
)


def per_server(run: Run) -> str:
    return "/".join(str(count) for count in run.requests.values())


def adapters(run: Run) -> str:
    return "/".join(str(len(names)) for names in run.adapters.values())


def verdict(first: Run, second: Run) -> str:
    """What routing gained, lost, or that it did neither, with the numbers."""
    before, after = first.summary, second.summary
    if before.failed or after.failed:
        return f"{before.failed + after.failed} requests failed, so the two runs are not compared."
    if math.isnan(before.ttft.mean_s) or math.isnan(after.ttft.mean_s):
        return "No stream was answered, so there is no time to first token to compare."
    relative = after.ttft.mean_s / before.ttft.mean_s - 1
    times = (
        f"{milliseconds(before.ttft.mean_s)} to {milliseconds(after.ttft.mean_s)} on average "
        f"(p90 {milliseconds(before.ttft.p90_s)} to {milliseconds(after.ttft.p90_s)})"
    )
    caches = f"{percent(first.hit_rate)} to {percent(second.hit_rate)} of the prompt tokens found in a cache"
    if relative <= -CLEAR:
        return (
            f"Routing by what the servers know brought the first token {-relative:.0%} sooner: {times}, with {caches}."
        )
    if relative >= CLEAR:
        return f"Routing gained nothing here: the first token came {relative:.0%} later, {times}, with {caches}."
    return f"Routing gained nothing to speak of on this load: {times}, with {caches}."


def longest_conversation(first: Run, second: Run) -> tuple[Sequence[Result], Sequence[Result]] | None:
    """The turns of the conversation with the most of them that both runs answered whole; the earliest of equals.

    None where no conversation has two turns.
    """
    theirs = _conversations(second.results)
    best: tuple[Sequence[Result], Sequence[Result]] | None = None
    for id, turns in sorted(_conversations(first.results).items(), key=lambda item: item[1][0].sent_s):
        others = theirs.get(id, [])
        if len(turns) == len(others) > max(1, len(best[0]) if best else 0):
            best = turns, others
    return best


def _conversations(results: Sequence[Result]) -> dict[str, list[Result]]:
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result.sent_s):
        if result.chat and result.ok:
            found.setdefault(result.id.rpartition(".")[0], []).append(result)
    return found


def path(run: Run, turns: Sequence[Result]) -> str:
    """The servers of a conversation's turns in order."""
    return " → ".join(f"server {run.number_of(turn.id)}{_cached(turn)}" for turn in turns)


def _cached(turn: Result) -> str:
    if not turn.prompt_tokens:
        return ""
    return f" ({turn.cached_tokens / turn.prompt_tokens:.0%})"
