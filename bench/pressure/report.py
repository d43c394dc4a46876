"""What a client of each flow saw, as numbers and as a plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench import ink
from bench.load.client import Result
from bench.pressure.workload import PRIORITIES, TENANTS, Flow, Offer

SECONDS = (1, 2, 5, 10, 20, 50, 100)

WITHOUT, WITH = "without flow control", "with flow control"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One flow in one run. Times to first token are in seconds, of the requests that were answered; None where none was."""

    objective: str
    tenant: str
    requests: int
    answered: int
    refused: int
    failed: int
    prompt_tokens_served: int
    ttft_p50_s: float | None
    ttft_p90_s: float | None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`offered_tokens_per_s` of prompts arrived; `served_tokens_per_s` is what came of it from the first request to the last answer."""

    offer: Offer
    seed: int
    measured_at: str
    machine: dict[str, str | int | float]
    offered_tokens_per_s: float
    served_tokens_per_s: dict[str, float]
    runs: dict[str, tuple[Seen, ...]]


def seen(flow: Flow, results: Sequence[Result]) -> Seen:
    whole = [result for result in results if result.ok]
    refused = [result for result in results if result.status == 429]
    times = sorted(result.ttft_s for result in whole if result.ttft_s is not None)
    return Seen(
        objective=flow[0],
        tenant=flow[1],
        requests=len(results),
        answered=len(whole),
        refused=len(refused),
        failed=len(results) - len(whole) - len(refused),
        prompt_tokens_served=sum(result.prompt_tokens for result in whole),
        ttft_p50_s=_quantile(times, 0.5),
        ttft_p90_s=_quantile(times, 0.9),
    )


def served_tokens_per_s(run: Mapping[Flow, Sequence[Result]]) -> float:
    whole = [result for results in run.values() for result in results if result.ok]
    return sum(result.prompt_tokens for result in whole) / max(result.sent_s + result.e2e_s for result in whole)


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3) if ordered else None


def write(report: Report, directory: Path) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(report), indent=1)
    (directory / "pressure.json").write_bytes(encoded + b"\n")
    _draw(report, directory / "pressure.png")


def _draw(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=(3, 1.1))
    places = {
        flow: 6 * band + n for band, name in enumerate(PRIORITIES) for n, flow in enumerate((name, t) for t in TENANTS)
    }
    for column, (title, run) in enumerate(report.runs.items()):
        _draw_run(grid[0][column], grid[1][column], title, run, places)
    # Both rows share their axes.
    grid[0][0].set_yscale("log")
    grid[0][0].set_yticks(SECONDS, [str(second) for second in SECONDS])
    grid[0][0].set_yticks([], minor=True)
    grid[0][0].set_ylim(0.5, 100)
    grid[1][0].set_ylim(0, 1.7 * max(one.requests for run in report.runs.values() for one in run))
    grid[0][0].set_ylabel("time to first token, s")
    grid[1][0].set_ylabel("requests")
    grid[0][1].legend(loc="upper left", fontsize=8, frameon=False)
    grid[1][1].legend(loc="upper left", fontsize=8, frameon=False, ncols=3)
    offered, served = report.offered_tokens_per_s, max(report.served_tokens_per_s.values())
    figure.suptitle(
        f"Four priorities of five tenants, {offered:,.0f} prompt tokens/s offered to servers that take {served:,.0f}",
        fontsize=11,
    )
    figure.savefig(path, dpi=110)


def _draw_run(times: Any, counts: Any, title: str, run: Sequence[Seen], places: Mapping[Flow, int]) -> None:
    at = [places[one.objective, one.tenant] for one in run]
    median = [one.ttft_p50_s for one in run]
    tail = [one.ttft_p90_s for one in run]
    colours = [ink.OURS if one.tenant == "long" else ink.RIVAL for one in run]
    times.set_title(title, fontsize=10)
    for axes in (times, counts):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=ink.GRID)
        axes.set_axisbelow(True)
    for place, low, high, colour in zip(at, median, tail, colours, strict=True):
        if low is not None:
            times.plot([place, place], [low, high], color=colour, linewidth=1.5, alpha=0.6)
            times.plot([place], [low], "o", color=colour, markersize=5)
            times.plot([place], [high], "_", color=colour, markersize=9)
    for colour, name in (
        (ink.RIVAL, "a tenant: p50 (dot) to p90 (dash)"),
        (ink.OURS, "one with prompts 4 times as long"),
    ):
        times.plot([], [], "o", color=colour, label=name)
    answered, refused = [one.answered for one in run], [one.refused for one in run]
    failed = [one.failed for one in run]
    counts.bar(at, answered, color=ink.GREY, label="answered")
    counts.bar(
        at,
        refused,
        bottom=answered,
        color="white",
        edgecolor=ink.SERIES[0],
        hatch="////",
        linewidth=0.5,
        label="429 with Retry-After",
    )
    if any(failed):
        below = [a + r for a, r in zip(answered, refused, strict=True)]
        counts.bar(at, failed, bottom=below, color=ink.OURS, label="failed")
    counts.set_xticks([6 * band + 2 for band in range(len(PRIORITIES))])
    counts.set_xticklabels([f"{name}\npriority {priority}" for name, priority in PRIORITIES.items()], fontsize=9)
