"""`--fail-if`: what a pipeline must not let pass.

    condition = measure  comparison  bound
    measure   = a name of `MEASURES`
    comparison= ">" | ">=" | "<" | "<="
    bound     = [sign] number [unit]        unit: %, ms, s, none

With a sign the bound is a difference from the first configuration: `ttft_p90 > +5%` is more than five per cent slower, `hit < -2%` more
than two points less, `ttft_p50 > +20ms` twenty milliseconds slower. Without one it is the value itself: `ttft_p99 > 2s`,
`attained < 99%`, `refused > 0`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from math import isnan

import msgspec

from bench.replay.comparison import Cell, Row
from bench.replay.measures import MEASURES, Unit
from epp.configuration.problems import suggestion

_COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}
_CONDITION = re.compile(r"\s*([\w-]+?)\s*(>=|<=|>|<)\s*([+-]?)\s*(\d+(?:\.\d+)?|\.\d+)\s*(%|ms|s)?\s*")
_SCALE = {"%": 0.01, "ms": 0.001, "s": 1.0, "": 1.0}
_EXAMPLE = "such as 'ttft_p90 > +5%', 'hit < -2%' or 'refused > 0'"


class Condition(msgspec.Struct, frozen=True):
    """`bound` is in seconds, shares or plain; a difference where `is_difference`, then of the first's value in parts where `in_parts`."""

    text: str
    measure: str
    comparison: str
    bound: float
    is_difference: bool
    in_parts: bool

    def value(self, first: Cell, cell: Cell) -> float:
        """What is compared with the bound. NaN where it is not known."""
        if not self.is_difference:
            return cell.value
        if self.in_parts and cell.difference is not None:
            return cell.difference.value
        return cell.value - first.value

    def holds(self, rows: Sequence[Row], index: int) -> bool:
        """Whether it is true of configuration `index`: then the pipeline fails. What is not known is not true."""
        row = next(row for row in rows if row.measure.name == self.measure)
        value = self.value(row.cells[0], row.cells[index])
        return not isnan(value) and _COMPARISONS[self.comparison](value, self.bound)


def parse(text: str) -> Condition:
    """Raises ValueError, with a message that says what is wrong."""
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text!r} is no condition: expected a measure, one of > >= < <=, and a bound in %, ms or s, {_EXAMPLE}; repeat --fail-if for "
            "another"
        )
    name, comparison, sign, number, unit = match.groups(default="")
    measure = MEASURES.get(name)
    if measure is None:
        near = suggestion(name.replace("-", "_"), MEASURES)
        raise ValueError(f"there is no measure {name!r}; {near}")
    bound = float(number) * _SCALE[unit] * (-1 if sign == "-" else 1)
    is_difference = bool(sign)
    if measure.unit is Unit.SECONDS:
        if unit == "" and bound:
            raise ValueError(f"{text!r}: {name} is a time; give ms or s, or % for a difference")
        if unit == "%" and not is_difference:
            raise ValueError(f"{text!r}: {name} is a time; with % it must be a difference: +{number}% or -{number}%")
    elif measure.unit is Unit.SHARE and unit == "" and float(number) > 1:
        raise ValueError(f"{text!r}: {name} is a share; write {sign}{number}%, or a number up to 1")
    elif unit in ("ms", "s"):
        raise ValueError(f"{text!r}: {name} is no time")
    elif measure.unit is not Unit.SHARE and unit == "%" and not is_difference:
        raise ValueError(f"{text!r}: {name} is no share; with % it must be a difference: +{number}% or -{number}%")
    in_parts = unit == "%" and measure.unit is not Unit.SHARE
    return Condition(text.strip(), name, comparison, bound, is_difference, in_parts)
