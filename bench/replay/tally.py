"""One run summed up while it goes: everything that is compared, by stretches of the trace's time, in memory that does not grow."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.lab.record import Outcome, Record
from bench.lab.summary import Slo, per_token_s
from bench.replay.histogram import BUCKETS, bucket

STRETCHES = 100
"""Pieces of the trace's time. What differs from one to the next is what the confidence of a comparison rests on."""

HISTOGRAMS = ("ttft", "ttft_long", "e2e", "token")
SUMS = (
    *("requests", "done", "refused", "lost", "well"),
    *("prompt_tokens", "cached_tokens", "available_tokens", "output_tokens", "ttft_s"),
)


class Tally(msgspec.Struct, frozen=True):
    """Sums and histograms by stretch, `uncached` prompt tokens by stretch and server. `span_s` is the time that was looked at and `makespan_s`
    that from the first arrival to the last end, of all `runs` together.
    """

    span_s: float
    sums: dict[str, NDArray[np.float64]]
    histograms: dict[str, NDArray[np.int64]]
    uncached: NDArray[np.float64]
    served_tokens: float
    makespan_s: float
    runs: int = 1

    def __add__(self, other: Tally) -> Tally:
        """Runs of one trace together."""
        return Tally(
            self.span_s + other.span_s,
            {name: self.sums[name] + other.sums[name] for name in SUMS},
            {name: self.histograms[name] + other.histograms[name] for name in HISTOGRAMS},
            self.uncached + other.uncached,
            self.served_tokens + other.served_tokens,
            self.makespan_s + other.makespan_s,
            self.runs + other.runs,
        )


def tally(
    records: Iterable[Record], *, begin_s: float, end_s: float, servers: int, long_prompt: int, slo: Slo
) -> Tally:
    """Of the requests that came from `begin_s` to `end_s`, both included. `served_tokens` and `makespan_s` are of all."""
    sums = {name: np.zeros(STRETCHES) for name in SUMS}
    histograms = {name: np.zeros((STRETCHES, BUCKETS), np.int64) for name in HISTOGRAMS}
    uncached = np.zeros((STRETCHES, servers))
    served_tokens = makespan_s = 0.0
    scale = STRETCHES / max(end_s - begin_s, 1e-9)
    for one in records:
        done = one.outcome is Outcome.DONE
        if done:
            served_tokens += one.prompt_tokens + one.output_tokens
            makespan_s = max(makespan_s, one.at_s + one.e2e_s)
        if not begin_s <= one.at_s <= end_s:
            continue
        at = min(STRETCHES - 1, int((one.at_s - begin_s) * scale))
        sums["requests"][at] += 1
        sums["well"][at] += slo.holds(one)
        if not done:
            sums["lost" if one.outcome is Outcome.LOST else "refused"][at] += 1
            continue
        sums["done"][at] += 1
        sums["prompt_tokens"][at] += one.prompt_tokens
        sums["cached_tokens"][at] += one.cached_tokens
        sums["available_tokens"][at] += one.available_tokens
        sums["output_tokens"][at] += one.output_tokens
        sums["ttft_s"][at] += one.ttft_s
        uncached[at, one.server] += one.prompt_tokens - one.cached_tokens
        first = bucket(one.ttft_s)
        histograms["ttft"][at, first] += 1
        if one.prompt_tokens >= long_prompt:
            histograms["ttft_long"][at, first] += 1
        histograms["e2e"][at, bucket(one.e2e_s)] += 1
        if one.output_tokens > 1:
            histograms["token"][at, bucket(per_token_s(one))] += 1
    return Tally(end_s - begin_s, sums, histograms, uncached, served_tokens, makespan_s)
