"""Who runs where: everybody in the heats, in a trace's further cells whoever came near the best in a heat of it, and in a cell's
further seeds whoever came near in that cell.

A policy that is far behind on plain servers, below the knee as well as past it, would only burn hours in thirty variations more; and
who takes twice as long with one seed is not the best with three.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf

from bench.lab.cells import PLAIN, Cell
from bench.lab.contenders import CONTENDERS, DEFAULT
from bench.lab.outcome import Standing
from bench.lab.verdict import BLEND, LEAST_REQUEST

NEAR = 1.15
"""p90 time to first token ÷ the best, in the heat in which a policy did better."""

MOST = 6
"""So many of those near go on; where nothing is shared nearly all are."""

CLOSE = 1.3
"""The same in one cell and one seed, which may have been unlucky."""

SEED = 1
_ALWAYS = (DEFAULT, BLEND, LEAST_REQUEST)
_NEED_ANSWERS = frozenset({BLEND, "Go picker, sticky"})
"""The Go picker answers 503 to whatever comes through Envoy in lean mode."""


def is_heat(cell: Cell) -> bool:
    return cell.servers == 8 and cell.load in (0.8, 1.3) and cell.variation == PLAIN


def can_run(contender: str, cell: Cell) -> bool:
    return cell.variation != "lean" or contender not in _NEED_ANSWERS


def qualified(heats: Mapping[Cell, Mapping[str, Standing]]) -> dict[str, set[str]]:
    """By trace who is worth running in its further cells; the traces that had no heat are not there."""
    behind: dict[str, dict[str, float]] = {}
    for cell, contenders in heats.items():
        if is_heat(cell):
            p90_s = {name: one.mean("ttft_p90") for name, one in contenders.items() if "ttft_p90" in one.numbers}
            of_trace = behind.setdefault(cell.trace, {})
            for name, value in p90_s.items():
                of_trace[name] = min(of_trace.get(name, inf), value / min(p90_s.values()))
    return {trace: {*_ALWAYS, *_nearest(of_trace)} for trace, of_trace in behind.items()}


def _nearest(behind: Mapping[str, float]) -> list[str]:
    near = [name for name, ratio in behind.items() if ratio <= NEAR and name not in _ALWAYS]
    return sorted(near, key=behind.__getitem__)[:MOST]


def close(contenders: Mapping[str, Standing]) -> set[str]:
    """Who of those in a cell is worth its further seeds."""
    p90_s = {name: one.mean("ttft_p90") for name, one in contenders.items() if "ttft_p90" in one.numbers}
    best_s = min(p90_s.values(), default=0.0)
    return {DEFAULT, *(name for name, value in p90_s.items() if value <= CLOSE * best_s)}


def starters(cell: Cell, contenders: Iterable[str], qualified: Mapping[str, set[str]]) -> list[str]:
    """Who of `contenders` runs in `cell` beyond the heats."""
    allowed = qualified.get(cell.trace, set(CONTENDERS))
    return [name for name in contenders if name in allowed and can_run(name, cell)]
