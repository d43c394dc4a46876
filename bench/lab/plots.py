"""Pictures of the lab's results. In all of them the default is orange, the Go picker's blend blue, and everybody else grey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp, isfinite, log
from typing import Any

import msgspec
import numpy as np

from bench import ink
from bench.lab.cells import PLAIN, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.outcome import Standing, levels, ratio
from bench.lab.verdict import BLEND

Table = Mapping[Cell, Mapping[str, Standing]]

_LINES: Mapping[str, tuple[str, float, object]] = {
    DEFAULT: (ink.OURS, 2.6, "-"),
    BLEND: (ink.RIVAL, 1.6, (0, (5, 1.5))),
    "least request": (ink.SERIES[0], 1.2, (0, (5, 1.5, 1.5, 1.5))),
    "round robin": (ink.SERIES[0], 1.2, (0, (1.5, 1.2))),
}
_OTHERS = (ink.PALE, 0.8, "-")

WORST = 8.0
"""Ratio to the best at which a cell's colour is darkest."""

MANY = 40
"""Cells beyond which a picture of each of them cannot be read; then loads and sizes of a trace are one row."""


class Rank(msgspec.Struct, frozen=True):
    """A contender's p90 TTFT ÷ the best in each of the `cells` in which it has one: geometric mean, least and most."""

    contender: str
    mean: float
    least: float
    most: float
    cells: int


def ratios(contenders: Mapping[str, Standing]) -> dict[str, float]:
    """p90 TTFT ÷ the best of the cell, of those that have one."""
    values = levels(contenders)
    best = min(values.values(), default=1.0)
    return {name: value / best for name, value in values.items()}


def ranking(table: Table) -> list[Rank]:
    """Best first."""
    found: dict[str, list[float]] = {}
    for contenders in table.values():
        for name, times in ratios(contenders).items():
            found.setdefault(name, []).append(times)
    ranks = [
        Rank(name, exp(sum(map(log, values)) / len(values)), min(values), max(values), len(values))
        for name, values in found.items()
    ]
    return sorted(ranks, key=lambda one: one.mean)


def by_rank(table: Table) -> Any | None:
    """Everybody's distance from the best: mean and range over the cells. None where there is nobody to compare."""
    ranks = ranking(table)
    if len(ranks) < 2:
        return None
    figure, axes = ink.figure(7.5, 1.0 + 0.24 * len(ranks))
    for place, one in enumerate(ranks):
        colour = {DEFAULT: ink.OURS, BLEND: ink.RIVAL}.get(one.contender, ink.GREY)
        axes.plot([one.least, one.most], [place, place], color=colour, linewidth=1.6, alpha=0.6, solid_capstyle="butt")
        axes.plot([one.mean], [place], "o", color=colour, markersize=6)
        axes.annotate(
            f"{told_ratio(one.mean)}×", (one.most, place), (6, 0), textcoords="offset points", va="center", fontsize=8
        )
    axes.axvline(1.0, color=ink.SERIES[0], linewidth=1)
    some = len(table)
    axes.set_yticks(
        range(len(ranks)),
        [one.contender + (f" ({one.cells} of {some})" if one.cells < some else "") for one in ranks],
    )
    for label, one in zip(axes.get_yticklabels(), ranks, strict=True):
        label.set_fontweight("bold" if one.contender == DEFAULT else "normal")
    axes.invert_yaxis()
    ink.ratio_axis(axes.xaxis, [one.most for one in ranks] + [1.0])
    axes.set_xlim(right=axes.get_xlim()[1] * (1.6 if axes.get_xscale() == "log" else 1.08))
    axes.set_xlabel("p90 time to first token ÷ the best policy's in the same cell")
    return figure


def by_load(table: Table) -> Any | None:
    """p90 TTFT against load, one panel a trace, on the size that has most loads. None where no trace was run at two loads."""
    plain = [cell for cell in table if cell.variation == PLAIN]
    panels = [cells for trace in dict.fromkeys(cell.trace for cell in plain) if len(cells := _usual(plain, trace)) > 1]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure, grid = ink.figure(3.75 * columns, 2.7 * rows + 0.7, rows, columns)
    every = list(np.atleast_1d(np.asarray(grid, dtype=object)).flat)
    for axes, cells in zip(every, panels, strict=False):
        _panel(axes, table, cells)
    for axes in every[len(panels) :]:
        axes.axis("off")
    handles = {line.get_label(): line for axes in every for line in axes.get_lines() if line.get_label()[0] != "_"}
    # Those with names first, as they are in the table above.
    order = sorted(handles, key=lambda name: list(_LINES).index(name) if name in _LINES else len(_LINES))
    figure.legend(
        [handles[name] for name in order], order, loc="outside upper left", ncols=3, frameon=False, fontsize=9
    )
    figure.supxlabel("load, in parts of the measured knee", fontsize=10)
    figure.supylabel("time to first token, p90", fontsize=10)
    return figure


def _usual(cells: Iterable[Cell], trace: str) -> list[Cell]:
    mine = [cell for cell in cells if cell.trace == trace]
    sizes = [cell.servers for cell in mine]
    usual = max(set(sizes), key=lambda size: (sizes.count(size), size == 8))
    return sorted(cell for cell in mine if cell.servers == usual)


def _panel(axes: Any, table: Table, cells: Sequence[Cell]) -> None:
    names = list(dict.fromkeys(name for cell in cells for name in table[cell]))
    others = sum(name not in _LINES for name in names)
    seen: list[float] = []
    for name in sorted(names, key=lambda one: one in _LINES):
        colour, width, dashes = _LINES.get(name, _OTHERS)
        shown = {cell: p90_s for cell in cells if (p90_s := levels(table[cell]).get(name)) is not None}
        widths_s = [table[cell][name].numbers["ttft_p90"].half_width for cell in shown]
        seen += shown.values()
        axes.errorbar(
            [cell.load for cell in shown],
            list(shown.values()),
            yerr=[min(width_s, 0.9 * p90_s) for width_s, p90_s in zip(widths_s, shown.values(), strict=True)]
            if name == DEFAULT
            else None,
            color=colour,
            linewidth=width,
            linestyle=dashes,
            marker="o" if name == DEFAULT else None,
            markersize=4,
            capsize=2,
            zorder=3 if name == DEFAULT else 2,
        )
        label = name if name in _LINES else f"{others} other policies"
        axes.plot([], [], color=colour, linewidth=width, linestyle=dashes, label=label)
    ink.seconds_axis(axes.yaxis, seen)
    axes.set_xticks(sorted({cell.load for cell in cells}))
    axes.set_title(f"{cells[0].trace}, {cells[0].servers} servers", fontsize=10)


def heat_map(table: Table) -> Any | None:
    """Every contender in every cell: p90 TTFT ÷ the best in that cell. None where there is nobody to compare.

    Beyond `MANY` cells a row is the geometric mean over the loads and sizes of a trace and variation.
    """
    names = [one.contender for one in ranking(table)]
    rows = _rows(table)
    if not rows or len(names) < 2:
        return None
    values = np.array([[row.get(name, np.nan) for name in names] for row in rows.values()])
    figure, axes = ink.figure(3.2 + 0.62 * len(names), 2.2 + 0.3 * len(rows))
    axes.imshow(np.log(np.minimum(values, WORST)), cmap="Greys", aspect="auto", vmin=0.0, vmax=1.9 * log(WORST))
    axes.set_xticks(range(len(names)), names, rotation=45, ha="left", fontsize=10)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), list(rows), fontsize=10)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for (row, column), times in np.ndenumerate(values):
        told = told_ratio(times) if isfinite(times) else "–"
        axes.text(column, row, told, ha="center", va="center", fontsize=8.5)
    if DEFAULT in names:
        at = names.index(DEFAULT)
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((at - 0.5, -0.5), 1, len(rows), fill=False, edgecolor=ink.OURS, linewidth=2.5))
        axes.get_xticklabels()[at].set(fontweight="bold", color=ink.OURS)
    axes.set_xlabel(
        "p90 time to first token ÷ the best in the row; policies from best to worst in the geometric mean", fontsize=10
    )
    return figure


def _rows(table: Table) -> dict[str, dict[str, float]]:
    if len(table) <= MANY:
        return {str(cell): ratios(table[cell]) for cell in sorted(table)}
    groups: dict[str, list[dict[str, float]]] = {}
    for cell in sorted(table):
        groups.setdefault(f"{cell.trace}, {cell.variation}", []).append(ratios(table[cell]))
    return {
        f"{name} ({len(found)})": {
            one: exp(sum(log(cell[one]) for cell in found if one in cell) / sum(one in cell for cell in found))
            for one in dict.fromkeys(one for cell in found for one in cell)
        }
        for name, found in groups.items()
    }


def told_ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:,.0f}"


def by_variation(table: Table) -> Any | None:
    """What each variation does to the default and to the Go picker's blend: p90 TTFT ÷ that of the same contender in the plain cell. None
    where none was run."""
    varied = [cell for cell in sorted(table) if cell.variation != PLAIN and _plain(cell) in table]
    if not varied:
        return None
    figure, axes = ink.figure(7.5, 0.36 * len(varied) + 1.4)
    seen = [1.0]
    for shift, marker, name in ((-0.14, "o", DEFAULT), (0.14, "s", BLEND)):
        colour = _LINES[name][0]
        found = [
            (place + shift, ratio(table[cell][name], table[_plain(cell)][name], "ttft_p90").mean)
            for place, cell in enumerate(varied)
            if name in table[cell] and name in table[_plain(cell)]
        ]
        at, times = [place for place, _ in found], [times for _, times in found]
        axes.hlines(at, 1.0, times, color=colour, linewidth=2)
        axes.plot(times, at, marker, color=colour, markersize=6, label=name)
        seen += times
    axes.axvline(1.0, color=ink.SERIES[0], linewidth=1)
    ink.ratio_axis(axes.xaxis, seen)
    axes.set_yticks(range(len(varied)), [str(cell) for cell in varied])
    axes.set_ylim(len(varied) - 0.5, -0.5)
    axes.set_xlabel("p90 time to first token ÷ the same policy's without the variation")
    ink.legend_above(axes)
    return figure


def _plain(cell: Cell) -> Cell:
    return Cell(trace=cell.trace, servers=cell.servers, load=cell.load)


Drawing = Callable[[Table], Any | None]
