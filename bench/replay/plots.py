"""Plots of a comparison as SVG text. The first configuration is dark grey, the others have colours and dashes."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from bench import ink
from bench.replay.comparison import Row
from bench.replay.histogram import BUCKETS, LEAST_S, quantiles
from bench.replay.measures import Unit
from bench.replay.search import PRESSED, Trial, frontier
from bench.replay.tally import STRETCHES, Tally

_LOG_STEP = np.log(1.01)
_EDGES_S = LEAST_S * np.exp(_LOG_STEP * np.arange(1, BUCKETS + 1))
_WIDTH = 7.5


def distribution(tallies: Sequence[Tally], names: Sequence[str]) -> str:
    """Share of requests whose first token came within so many seconds."""
    figure, axes = ink.figure(_WIDTH, 4.0)
    seen: list[float] = []
    for one, (name, colour, dashes) in zip(tallies, _lines(names), strict=True):
        counts = one.histograms["ttft"].sum(axis=0)
        if counts.sum():
            shares = np.cumsum(counts) / counts.sum()
            shown = (shares > 0.001) & (shares < 0.9995)
            axes.plot(_EDGES_S[shown], 100 * shares[shown], label=name, color=colour, linestyle=dashes)
            seen += _EDGES_S[shown].tolist()
    ink.seconds_axis(axes.xaxis, seen)
    axes.set_xlabel("time to first token")
    axes.set_ylabel("requests that have it by then, %")
    ink.legend_above(axes)
    return ink.svg(figure, "distribution")


def course(tallies: Sequence[Tally], names: Sequence[str], begin_s: float) -> str:
    """The ninetieth percentile of time to first token along the trace."""
    figure, axes = ink.figure(_WIDTH, 3.4)
    pieces = 25
    group = STRETCHES // pieces
    seen: list[float] = []
    end_s = begin_s + tallies[0].span_s / tallies[0].runs
    scale_s, unit = next((one for one in _UNITS if end_s >= 2 * one[0]), (1.0, "seconds"))
    for one, (name, colour, dashes) in zip(tallies, _lines(names), strict=True):
        counts = one.histograms["ttft"].reshape(pieces, group, -1).sum(axis=1)
        at = (begin_s + (np.arange(pieces) + 0.5) * one.span_s / one.runs / pieces) / scale_s
        p90_s = quantiles(counts, 0.9)
        axes.plot(at, p90_s, label=name, color=colour, linestyle=dashes)
        seen += p90_s.tolist()
    ink.seconds_axis(axes.yaxis, seen)
    axes.set_xlabel(f"{unit} since the trace began")
    axes.set_ylabel("time to first token, p90")
    ink.legend_above(axes)
    return ink.svg(figure, "course")


_UNITS = ((86_400.0, "days"), (3600.0, "hours"), (60.0, "minutes"))


def differences(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Every measure's difference from the first configuration with its interval; hollow where it may be chance."""
    shown = [row for row in rows if all(_known(row, index) for index in range(1, len(names)))]
    others = len(names) - 1
    figure, axes = ink.figure(_WIDTH, 1.2 + (0.18 + 0.14 * others) * max(1, len(shown)))
    height = 0.7 / max(1, others)
    for index, (name, colour, _) in enumerate(_lines(names)[1:], 1):
        for place, row in enumerate(shown):
            found = row.cells[index].difference
            assert found is not None
            axes.errorbar(
                [100 * found.value],
                [place + (index - (others + 1) / 2) * height],
                xerr=[
                    [max(0.0, 100 * (found.value - found.low))],
                    [max(0.0, 100 * (found.high - found.value))],
                ],
                fmt="o",
                ms=5,
                color=colour,
                mfc=colour if found.sure else "white",
                capsize=2,
                label=name if place == 0 else None,
            )
    axes.axvline(0, color=ink.SERIES[0], lw=1)
    axes.set_yticks(np.arange(len(shown)), [_named(row) for row in shown])
    axes.invert_yaxis()
    axes.set_xlabel(f"difference from {names[0]}, % (of shares: points)")
    ink.legend_above(axes)
    return ink.svg(figure, "differences")


def _named(row: Row) -> str:
    points = ", points" if row.measure.unit is Unit.SHARE else ""
    return f"{row.measure.name}{points} {'←' if row.measure.less_is_better else '→'}"


def tradeoff(trials: Sequence[Trial], best: Trial) -> str:
    """Every trial by time to first token and throughput, with the frontier."""
    figure, axes = ink.figure(_WIDTH, 4.5)
    edge = frontier(trials)
    for group, marks in (
        (trials, {"marker": "o", "ms": 4, "ls": "", "color": ink.PALE, "label": "tried"}),
        (edge, {"marker": "o", "ms": 5, "ls": "-", "color": ink.RIVAL, "label": "nothing beats these in both"}),
        (trials[:1], {"marker": "s", "ms": 9, "ls": "", "color": ink.SERIES[0], "label": "as it was"}),
        ([best], {"marker": "*", "ms": 15, "ls": "", "color": ink.OURS, "label": "chosen"}),
    ):
        axes.plot([one.tokens_per_s for one in group], [one.ttft_p90_s for one in group], **marks)
    ink.seconds_axis(axes.yaxis, [one.ttft_p90_s for one in trials])
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(f"tokens served a second at {PRESSED:g} times the recorded speed (more is better)")
    axes.set_ylabel("time to first token, p90 (less is better)")
    ink.legend_above(axes)
    return ink.svg(figure, "tradeoff")


def _lines(names: Sequence[str]) -> list[tuple[str, str, object]]:
    """Name, colour and dashes of each configuration."""
    colours, dashes = ink.SERIES, ink.DASHES
    return [
        # From the seventh on colours come again, with other dashes.
        (name, colours[index % len(colours)], dashes[(index + index // len(colours)) % len(dashes)])
        for index, name in enumerate(names)
    ]


def _known(row: Row, index: int) -> bool:
    found = row.cells[index].difference
    return found is not None and isfinite(found.value)
