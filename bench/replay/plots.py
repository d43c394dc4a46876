"""Plots of a comparison as SVG text."""

from __future__ import annotations

import io
from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from bench.replay.comparison import Row
from bench.replay.histogram import BUCKETS, LEAST_S, quantiles
from bench.replay.measures import Unit
from bench.replay.search import PRESSED, Trial, frontier
from bench.replay.tally import STRETCHES, Tally

_LOG_STEP = np.log(1.01)
_EDGES_S = LEAST_S * np.exp(_LOG_STEP * np.arange(1, BUCKETS + 1))


def distribution(tallies: Sequence[Tally], names: Sequence[str]) -> str:
    """Share of requests whose first token came within so many seconds."""
    figure, axes = _figure(7.5, 4.0)
    for one, name in zip(tallies, names, strict=True):
        counts = one.histograms["ttft"].sum(axis=0)
        if counts.sum():
            shares = np.cumsum(counts) / counts.sum()
            shown = (shares > 0.001) & (shares < 0.9995)
            axes.plot(_EDGES_S[shown], 100 * shares[shown], label=name)
    axes.set_xscale("log")
    axes.set_xlabel("time to first token, seconds")
    axes.set_ylabel("% of requests at most")
    axes.legend(frameon=False)
    return _svg(figure)


def course(tallies: Sequence[Tally], names: Sequence[str], begin_s: float) -> str:
    """The ninetieth percentile of time to first token, and requests, along the trace."""
    figure, axes = _figure(7.5, 3.2)
    pieces = 25
    group = STRETCHES // pieces
    for one, name in zip(tallies, names, strict=True):
        counts = one.histograms["ttft"].reshape(pieces, group, -1).sum(axis=1)
        minutes = (begin_s + (np.arange(pieces) + 0.5) * one.span_s / one.runs / pieces) / 60
        axes.plot(minutes, quantiles(counts, 0.9), label=name)
    axes.set_yscale("log")
    axes.set_xlabel("minutes of the trace")
    axes.set_ylabel("TTFT p90, seconds")
    axes.legend(frameon=False)
    return _svg(figure)


def differences(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Every measure's difference from the first configuration with its interval; left is less."""
    shown = [row for row in rows if all(_known(row, index) for index in range(1, len(names)))]
    figure, axes = _figure(7.5, 0.5 + 0.3 * max(1, len(shown)))
    height = 0.7 / max(1, len(names) - 1)
    for index, name in enumerate(names[1:], 1):
        at = np.arange(len(shown)) + (index - 1) * height
        found = [row.cells[index].difference for row in shown]
        middle = np.array([100 * one.value for one in found if one is not None])
        low = np.array([100 * one.low for one in found if one is not None])
        high = np.array([100 * one.high for one in found if one is not None])
        axes.errorbar(
            middle,
            at,
            xerr=[np.maximum(0, middle - low), np.maximum(0, high - middle)],
            fmt="o",
            ms=4,
            label=name,
            capsize=2,
        )
    axes.axvline(0, color="0.6", lw=1)
    axes.set_yticks(
        np.arange(len(shown)),
        [f"{row.measure.name}{' (points)' if row.measure.unit is Unit.SHARE else ''}" for row in shown],
    )
    axes.invert_yaxis()
    axes.set_xlabel(f"% more than {names[0]}")
    axes.legend(frameon=False)
    return _svg(figure)


def tradeoff(trials: Sequence[Trial], best: Trial) -> str:
    """Every trial by time to first token and throughput, with the frontier."""
    figure, axes = _figure(7.5, 4.5)
    edge = frontier(trials)
    axes.plot(
        [one.tokens_per_s for one in trials], [one.ttft_p90_s for one in trials], "o", ms=4, color="0.7", label="trials"
    )
    axes.plot([one.tokens_per_s for one in edge], [one.ttft_p90_s for one in edge], "o-", ms=5, label="frontier")
    axes.plot(trials[0].tokens_per_s, trials[0].ttft_p90_s, "s", ms=9, label="as it was")
    axes.plot(best.tokens_per_s, best.ttft_p90_s, "*", ms=14, label="chosen")
    axes.set_yscale("log")
    axes.set_xlabel(f"tokens served a second at {PRESSED:g} times the speed")
    axes.set_ylabel("TTFT p90, seconds")
    axes.legend(frameon=False)
    return _svg(figure)


def _known(row: Row, index: int) -> bool:
    found = row.cells[index].difference
    return found is not None and isfinite(found.value)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    # Late: it takes a second, and who asks for no report does not need it.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return figure, axes


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    whole = text.getvalue()
    return whole[whole.index("<svg") :]
