"""Numbers as people read them."""

from __future__ import annotations

from math import isfinite

from bench.replay.comparison import Difference
from bench.replay.measures import Measure, Unit

UNKNOWN = "–"


def value(number: float, unit: Unit) -> str:
    if not isfinite(number):
        return UNKNOWN
    if unit is Unit.SECONDS:
        return seconds(number)
    if unit is Unit.SHARE:
        return f"{100 * number:.1f} %"
    return f"{number:.2f}"


def seconds(number: float) -> str:
    if number < 1:
        return f"{1000 * number:.3g} ms"
    return f"{number:.3g} s" if number < 100 else f"{number:,.0f} s"


def difference(of: Difference, measure: Measure) -> str:
    """`+1.2 % (−0.3 … +2.6)`; of shares in points."""
    if not isfinite(of.value):
        return UNKNOWN
    unit = "points" if measure.unit is Unit.SHARE else "%"
    return f"{_signed(of.value)} {unit} ({_signed(of.low)} … {_signed(of.high)})"


def _signed(part: float) -> str:
    text = f"{100 * part:+.1f}"
    return ("0.0" if float(text) == 0 else text).replace("-", "−")


def is_better(of: Difference, measure: Measure) -> bool | None:
    """None where the interval does not leave out zero."""
    if not of.sure:
        return None
    return (of.value < 0) == measure.less_is_better


def span(seconds: float) -> str:
    for size, name in ((86_400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"
