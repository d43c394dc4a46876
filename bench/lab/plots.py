"""Three pictures of the lab's results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.lab.cells import PLAIN, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.outcome import Standing
from bench.lab.verdict import BLEND

Table = Mapping[Cell, Mapping[str, Standing]]

_SHOWN = {
    DEFAULT: ("#c0392b", 2.6),
    BLEND: ("#2a6fb0", 1.6),
    "Go picker, sticky": ("#63a4d8", 1.6),
    "least request": ("#444444", 1.6),
    "round robin": ("#999999", 1.6),
    "Dynamo, shortest first": ("#2a7f62", 1.6),
    "LMETRIC": ("#b8860b", 1.6),
}
_OTHERS = ("#d5d5d5", 0.8)
_WORST = 8.0
"""Ratio to the best at which a cell's colour is darkest."""


def by_load(table: Table, path: Path) -> bool:
    """p90 TTFT against load, one panel a trace, on the size that has most loads. Whether there is anything to draw."""
    traces = list(dict.fromkeys(cell.trace for cell in table if cell.variation == PLAIN))
    if not traces:
        return False
    plt = _pyplot()
    columns = min(4, len(traces))
    rows = -(-len(traces) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows + 0.6), squeeze=False)
    for axes, trace in zip(grid.flat, traces, strict=False):
        _panel(axes, table, trace)
    for axes in list(grid.flat)[len(traces) :]:
        axes.axis("off")
    handles = {
        line.get_label(): line
        for axes in grid.flat
        for line in axes.get_lines()
        if not str(line.get_label()).startswith("_")
    }
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle("p90 time to first token (s) against load, in parts of the measured knee", fontsize=10)
    figure.tight_layout(rect=(0, 0.09 if rows == 1 else 0.06, 1, 1))
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _panel(axes: Any, table: Table, trace: str) -> None:
    servers = _usual_size(cell for cell in table if cell.trace == trace and cell.variation == PLAIN)
    cells = sorted(
        cell for cell in table if cell.trace == trace and cell.variation == PLAIN and cell.servers == servers
    )
    names = list(dict.fromkeys(name for cell in cells for name in table[cell]))
    for name in sorted(names, key=lambda one: one in _SHOWN):
        colour, width = _SHOWN.get(name, _OTHERS)
        present = [cell for cell in cells if name in table[cell] and "ttft_p90" in table[cell][name].numbers]
        estimates = [table[cell][name].numbers["ttft_p90"] for cell in present]
        axes.errorbar(
            [cell.load for cell in present],
            [one.mean for one in estimates],
            yerr=[min(one.half_width, 0.9 * one.mean) for one in estimates] if name == DEFAULT else None,
            color=colour,
            linewidth=width,
            marker="o" if name in _SHOWN else None,
            markersize=3,
            capsize=2,
            zorder=3 if name == DEFAULT else 2,
        )
        axes.plot([], [], color=colour, linewidth=width, label=name if name in _SHOWN else "others")
    axes.set_yscale("log")
    axes.set_title(f"{trace} × {servers}", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(color="#eeeeee", zorder=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _usual_size(cells: Iterable[Cell]) -> int:
    sizes = [cell.servers for cell in cells]
    return max(set(sizes), key=lambda size: (sizes.count(size), size == 8))


def heat_map(table: Table, path: Path) -> bool:
    """Every contender in every cell: p90 TTFT ÷ the best in that cell."""
    cells = sorted(table)
    names = list(dict.fromkeys(name for cell in cells for name in table[cell]))
    if not cells or len(names) < 2:
        return False
    ratios = np.array([_ratios(table[cell], names) for cell in cells])
    order = np.argsort(np.nanmean(np.log(ratios), axis=0))
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(2.6 + 0.52 * len(names), 1.9 + 0.22 * len(cells)))
    axes.imshow(
        np.log(np.minimum(ratios[:, order], _WORST)), cmap="YlOrRd", aspect="auto", vmin=0.0, vmax=np.log(_WORST)
    )
    axes.set_xticks(range(len(names)), [names[i] for i in order], rotation=45, ha="left", fontsize=7)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(cells)), [str(cell) for cell in cells], fontsize=6)
    for row in range(len(cells)):
        for column, index in enumerate(order):
            ratio = ratios[row, index]
            if not np.isnan(ratio):
                told = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
                axes.text(
                    column, row, told, ha="center", va="center", fontsize=5, color="white" if ratio > 4 else "black"
                )
    axes.set_xlabel(
        "p90 time to first token ÷ the best in the cell; contenders from best to worst in the geometric mean",
        fontsize=7,
    )
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return True


def _ratios(contenders: Mapping[str, Standing], names: Iterable[str]) -> list[float]:
    values = {name: one.mean("ttft_p90") for name, one in contenders.items() if "ttft_p90" in one.numbers}
    best = min(values.values(), default=float("nan"))
    return [values[name] / best if name in values else float("nan") for name in names]


def by_variation(table: Table, path: Path) -> bool:
    """What each variation does to the default and to the Go picker's blend: p90 TTFT ÷ that of the same contender in the plain cell."""
    varied = [cell for cell in sorted(table) if cell.variation != PLAIN and _plain(cell) in table]
    if not varied:
        return False
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8.5, 0.34 * len(varied) + 1.3))
    for place, (name, (colour, _)) in enumerate((name, _SHOWN[name]) for name in (DEFAULT, BLEND)):
        ratios = [
            table[cell][name].mean("ttft_p90") / table[_plain(cell)][name].mean("ttft_p90")
            if name in table[cell] and name in table[_plain(cell)]
            else np.nan
            for cell in varied
        ]
        axes.barh(np.arange(len(varied)) + 0.2 - 0.4 * place, ratios, height=0.36, color=colour, label=name, zorder=2)
    axes.axvline(1.0, color="black", linewidth=1, zorder=3)
    axes.set_xscale("log")
    axes.set_yticks(range(len(varied)), [str(cell) for cell in varied], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("p90 time to first token ÷ the same without the variation (logarithmic)", fontsize=8)
    axes.legend(frameon=False, fontsize=8)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return True


def _plain(cell: Cell) -> Cell:
    return Cell(trace=cell.trace, servers=cell.servers, load=cell.load)


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt
