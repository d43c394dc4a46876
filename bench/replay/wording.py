"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite

from bench.replay.comparison import Cell, Difference, Row
from bench.replay.measures import Measure, Unit

UNKNOWN = "–"


def value(number: float, unit: Unit) -> str:
    if not isfinite(number):
        return UNKNOWN
    if unit is Unit.SECONDS:
        return seconds(number)
    if unit is Unit.SHARE:
        return f"{100 * number:.1f} %"
    return f"{number:.2f}/s" if unit is Unit.RATE else f"{number:.2f}"


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


def answers(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """What the comparison comes to, a sentence or two for each configuration but the first; of one alone what it does."""
    named = {row.measure.name: row for row in rows}
    first = named["ttft_p90"].cells[0]
    if len(names) == 1:
        shown = [f"{row.measure.text} {value(row.cells[0].value, row.measure.unit)}" for row in _told(named)]
        return [f"{names[0]}: {', '.join(shown)}."]
    return [
        f"{name} against {names[0]}: the first token's p90 is {_compared(first, named['ttft_p90'], index)}. {_counted(rows, index)}"
        for index, name in enumerate(names[1:], 1)
    ]


def _told(named: Mapping[str, Row]) -> list[Row]:
    return [named[name] for name in ("ttft_p90", "e2e_p90", "hit", "attained")]


def _compared(first: Cell, row: Row, index: int) -> str:
    cell, measure = row.cells[index], row.measure
    values = f"{value(cell.value, measure.unit)} where it was {value(first.value, measure.unit)}"
    found = cell.difference
    if found is None or not isfinite(found.value):
        return values
    word = {True: "better", False: "worse", None: "which may be chance"}[is_better(found, measure)]
    return f"{values}, {difference(found, measure)}: {word}"


def _counted(rows: Sequence[Row], index: int) -> str:
    judged: dict[bool, list[str]] = {True: [], False: []}
    for row in rows:
        found = row.cells[index].difference
        better = is_better(found, row.measure) if found is not None and isfinite(found.value) else None
        if better is not None:
            judged[better].append(row.measure.name)
    if not (judged[True] or judged[False]):
        return "In no measure do the two surely differ on this traffic."
    listed = [
        f"{word} in {', '.join(judged[key])}" for word, key in (("better", True), ("worse", False)) if judged[key]
    ]
    return f"Surely {' and surely '.join(listed)}."
