"""How plots look: the default stands out, rivals are grey, colours differ also in brightness and for the colour-blind, and numbers are
written as people say them."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from math import isfinite
from typing import Any

# Of Okabe and Ito's palette, which all common kinds of colour blindness tell apart.
OURS = "#d55e00"
RIVAL = "#0072b2"
SERIES = ("#333333", OURS, RIVAL, "#009e73", "#cc79a7", "#8c6d00")
DASHES = ("-", "-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)), (0, (8, 2)))
"""Lines of one plot in turn: who sees no colour goes by the dashes."""

GREY = "#8a8a8a"
PALE = "#c9c9c9"
GRID = "#e6e6e6"

_A_FEW_TIMES = 4.0
"""Between the least and the greatest value: where they are nearer, a logarithmic axis has no round number to show."""


def figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure and its axes (an array of them where they are several), in inches, with the axes that are needed and no frame."""
    # Late: it takes a second, and who draws nothing does not need it.
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.subplots(rows, columns, squeeze=rows * columns == 1)
    for one in [axes] if rows * columns == 1 else axes.flat:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(color=GRID, zorder=0)
        one.set_axisbelow(True)
        one.tick_params(labelsize=9)
    return drawn, axes


def seconds_axis(axis: Any, values: Iterable[float]) -> None:
    """Ticks such as 50 ms and 2 s; logarithmic where the values are far apart."""
    _scaled(axis, values, seconds)


def ratio_axis(axis: Any, values: Iterable[float]) -> None:
    """Ticks such as 1.5×."""
    _scaled(axis, values, lambda value: f"{value:,.0f}×" if value >= 10 else f"{value:.3g}×")


def _scaled(axis: Any, values: Iterable[float], told: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    known = [value for value in values if isfinite(value) and value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 1.0)
    if high > _A_FEW_TIMES * low:
        axis.axes.set(**{f"{axis.axis_name}scale": "log"})
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 500 * low else (1.0,), numticks=20))
        axis.set_minor_formatter(NullFormatter())
    else:
        axis.set_major_locator(MaxNLocator(6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: told(value)))


def seconds(value: float) -> str:
    """To three digits, in the unit that needs no exponent."""
    return f"{1000 * value:.3g} ms" if abs(value) < 1 else f"{value:.3g} s" if value < 1000 else f"{value:,.0f} s"


def legend_above(axes: Any, columns: int = 4) -> None:
    """Out of the way of what is drawn."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False, fontsize=9)


def svg(drawn: Any, name: str) -> str:
    """The figure as SVG text. `name`, of letters, keeps its ids apart from those of other figures in one page."""
    from matplotlib import rc_context

    out = io.StringIO()
    # Ids are random without a salt, and equal findings should be equal pages.
    with rc_context({"svg.hashsalt": name}):
        drawn.savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    whole = out.getvalue()
    inner = whole[whole.index("<svg") :]
    inner = re.sub(r'\bid="', f'id="{name}-', inner)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", inner)
