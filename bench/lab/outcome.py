"""What the runs of a cell come to: means over the seeds with their confidence, small enough to keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from bench.lab.cells import Cell
from bench.lab.running import Result
from bench.lab.summary import Summary

T_95 = (math.inf, 12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t for 95 % confidence, both sides, by degrees of freedom; more have the last."""


COMPARED = ("ttft_p90", "longest_ttft_p99", "goodput_rps", "hit")


class Estimate(msgspec.Struct, frozen=True):
    """The mean over seeds; with 95 % confidence the true one is within `half_width` of it (0 where one seed says nothing of that)."""

    mean: float
    half_width: float = 0.0


class Standing(msgspec.Struct, frozen=True):
    """One contender in one cell. `runs` has what is compared with other contenders (`COMPARED`) by seed."""

    cell: Cell
    contender: str
    seeds: int
    numbers: dict[str, Estimate]
    runs: dict[str, dict[int, float]] = {}

    def mean(self, name: str) -> float:
        return self.numbers[name].mean


def numbers(summary: Summary) -> dict[str, float]:
    """All that is kept of a run, by name; seconds, shares and counts. A NaN (no request was answered) is left out."""
    found: dict[str, float] = {
        "attained": summary.attained,
        "goodput_rps": summary.goodput_rps,
        "hit": summary.hit,
        "captured": summary.captured,
        "request_spread": summary.request_spread,
        "token_spread": summary.token_spread,
        "work_spread": summary.work_spread,
        "refused": summary.refused / summary.requests,
        "lost": summary.lost / summary.requests,
    }
    for prefix, quantiles in (
        ("ttft", summary.ttft),
        ("e2e", summary.e2e),
        ("longest_ttft", summary.longest_ttft),
        ("longest_e2e", summary.longest_e2e),
        ("per_token", summary.per_token_s),
    ):
        found |= {f"{prefix}_{name}": value for name, value in msgspec.structs.asdict(quantiles).items()}
    if summary.tenant_ttft_p90_s:
        found["worst_tenant_ttft_p90"] = max(summary.tenant_ttft_p90_s.values())
    return {name: value for name, value in found.items() if not math.isnan(value)}


def estimate(values: Sequence[float]) -> Estimate:
    """Raises ValueError of nothing."""
    if not values:
        raise ValueError("nothing to estimate from")
    mean = float(np.mean(values))
    if len(values) == 1:
        return Estimate(_short(mean))
    t = T_95[min(len(values) - 1, len(T_95) - 1)]
    return Estimate(_short(mean), _short(t * float(np.std(values, ddof=1)) / math.sqrt(len(values))))


def standings(results: Iterable[Result]) -> list[Standing]:
    """One for each cell and contender, in that order."""
    runs: dict[tuple[Cell, str], dict[int, dict[str, float]]] = {}
    for result in results:
        runs.setdefault((result.job.cell, result.job.contender), {})[result.job.seed] = numbers(result.summary)
    return [
        Standing(cell, contender, len(found), _together([*found.values()]), _by_seed(found))
        for (cell, contender), found in sorted(runs.items())
    ]


def ratio(one: Standing, other: Standing, name: str) -> Estimate:
    """`one` ÷ `other`, seed by seed, because a seed is the same requests to both: that is far surer than the ratio of their means.

    Of the means where no seed has both.
    """
    own, theirs = one.runs.get(name, {}), other.runs.get(name, {})
    pairs = [(own[seed], theirs[seed]) for seed in own if seed in theirs] or [(one.mean(name), other.mean(name))]
    return estimate([mine / their for mine, their in pairs])


def levels(contenders: Mapping[str, Standing], name: str = "ttft_p90") -> dict[str, float]:
    """The mean of each that has one, so that all can stand beside each other: seeds differ by more than policies do, so whoever ran fewer is
    put as far from the best of those who ran most as it was over the seeds of both."""
    values = {key: one.mean(name) for key, one in contenders.items() if name in one.numbers}
    most = max((contenders[key].seeds for key in values), default=0)
    best = min((key for key in values if contenders[key].seeds == most), key=values.__getitem__, default=None)
    return {
        key: value
        if best is None or contenders[key].seeds == most
        else values[best] * _apart(contenders, key, best, name)
        for key, value in values.items()
    }


def _apart(contenders: Mapping[str, Standing], one: str, other: str, name: str) -> float:
    return ratio(contenders[one], contenders[other], name).mean


def _together(runs: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    return {name: estimate([run[name] for run in runs if name in run]) for run in runs for name in run}


def _by_seed(runs: Mapping[int, Mapping[str, float]]) -> dict[str, dict[int, float]]:
    return {
        name: {seed: _short(run[name]) for seed, run in sorted(runs.items()) if name in run}
        for name in COMPARED
        if any(name in run for run in runs.values())
    }


def by_cell(standings: Iterable[Standing]) -> dict[Cell, dict[str, Standing]]:
    table: dict[Cell, dict[str, Standing]] = {}
    for one in standings:
        table.setdefault(one.cell, {})[one.contender] = one
    return table


def _short(value: float) -> float:
    """Four digits: more say nothing."""
    return float(f"{value:.4g}")
