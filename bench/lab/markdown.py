"""What the documentation shows of the lab's results.

    python -m bench.lab.markdown [DIRECTORY]

prints tables of the results kept there: each trace on plain servers of the usual number, smaller and larger pools and variations, all cells in one
number for each policy, the requirements and what misses them, and the bounds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

import msgspec

from bench.lab.cells import PLAIN, VARIATIONS, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.oracle import GREEDY, POOLED, RESULTS, Bound
from bench.lab.outcome import Estimate, Standing, by_cell, estimate, ratio
from bench.lab.report import read
from bench.lab.verdict import BLEND, LEAST_REQUEST, Verdict, best_rival, verdicts

Table = Mapping[Cell, Mapping[str, Standing]]

_USUAL = 8
_NOTHING = "–"


def plain_cells(table: Table) -> Iterator[str]:
    """A row for each trace and load on plain servers of the usual number."""
    yield (
        "| trace | load | ours, p90 s | best rival, p90 s | ours ÷ best | ÷ Go 3:2:2 | longest tenth's p99 ÷ least request's | captured | "
        "work, max ÷ mean |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for cell in sorted(table):
        if cell.servers == _USUAL and cell.variation == PLAIN and DEFAULT in table[cell]:
            yield _row(cell, table[cell])


def _row(cell: Cell, contenders: Mapping[str, Standing]) -> str:
    own, best = contenders[DEFAULT], best_rival(contenders)
    columns = [
        cell.trace,
        f"{cell.load:g}",
        _told(own.numbers["ttft_p90"]),
        f"{_told(best.numbers['ttft_p90'])} ({best.contender})" if best else _NOTHING,
        f"**{_told(ratio(own, best, 'ttft_p90'))}**" if best else _NOTHING,
        _against(own, contenders.get(BLEND), "ttft_p90"),
        _against(own, contenders.get(LEAST_REQUEST), "longest_ttft_p99"),
        f"{own.mean('captured'):.2f}",
        _told(own.numbers["work_spread"]),
    ]
    return f"| {' | '.join(columns)} |"


def _against(own: Standing, other: Standing | None, name: str) -> str:
    return f"{ratio(own, other, name).mean:.2f}" if other is not None else _NOTHING


def varied_cells(table: Table) -> Iterator[str]:
    """Ours ÷ the best rival: a row for each size and variation, a column for each trace, the loads of a cell one behind the other."""
    cells = [
        cell for cell in sorted(table) if (cell.servers, cell.variation) != (_USUAL, PLAIN) and DEFAULT in table[cell]
    ]
    traces = list(dict.fromkeys(cell.trace for cell in cells))
    kinds = sorted({_kind(cell) for cell in cells}, key=_place)
    yield f"| what differs | {' | '.join(traces)} |"
    yield "|---" * (1 + len(traces)) + "|"
    for kind in kinds:
        columns = [
            "<br>".join(
                f"{cell.load:g}: {_ratio_to_best(table[cell])}"
                for cell in cells
                if cell.trace == trace and _kind(cell) == kind
            )
            for trace in traces
        ]
        yield f"| {kind} | {' | '.join(one or _NOTHING for one in columns)} |"


def _kind(cell: Cell) -> str:
    return f"{cell.servers} servers" if cell.variation == PLAIN else cell.variation


def _place(kind: str) -> tuple[int, str]:
    names = list(VARIATIONS)
    return (names.index(kind), kind) if kind in names else (-1, kind.zfill(10))


def _ratio_to_best(contenders: Mapping[str, Standing]) -> str:
    best = best_rival(contenders)
    return _told(ratio(contenders[DEFAULT], best, "ttft_p90")) if best else _NOTHING


def overall(table: Table) -> Iterator[str]:
    """Each policy's p90 TTFT ÷ that of the cell's best rival: the geometric mean over the cells in which it ran, the least first."""
    logs: dict[str, list[float]] = {}
    for contenders in table.values():
        best = best_rival(contenders) if DEFAULT in contenders else None
        if best is None:
            continue
        for name, one in contenders.items():
            logs.setdefault(name, []).append(math.log(ratio(one, best, "ttft_p90").mean))
    yield "| policy | cells | p90 ÷ the best rival's |"
    yield "|---|---|---|"
    for factor, name, cells in sorted((math.exp(fmean(found)), name, len(found)) for name, found in logs.items()):
        yield f"| {name} | {cells} | {factor:.2f} |"


def requirements(found: Iterable[Verdict]) -> Iterator[str]:
    """`surely` are misses beyond the interval."""
    yield "| required | cells | held | missed, of these surely | the worst |"
    yield "|---|---|---|---|---|"
    for one in found:
        missed = one.failed
        surely = sum(miss.surely_missed for miss in missed)
        worst = _NOTHING
        if missed:
            first = missed[0]
            worst = (
                f"{_told(Estimate(first.value, first.half_width))} where {first.bound:.3g} is the bound: {first.cell}"
            )
        counts = f"{len(one.checks)} | {len(one.checks) - len(missed)} | {len(missed)}, {surely}"
        yield f"| {one.requirement} | {counts} | {worst} |"


def misses(found: Sequence[Verdict]) -> Iterator[str]:
    """Every miss of every requirement."""
    for one in found:
        for miss in one.failed:
            sure = ", surely" if miss.surely_missed else ""
            yield f"- {one.requirement}: {_told(Estimate(miss.value, miss.half_width))} ({miss.bound:.3g}): {miss.cell}{sure}"


def limits(table: Table, found: Iterable[Bound]) -> Iterator[str]:
    """p90 TTFT of the default, of the best rival, and of the two bounds, over the seeds that the bounds have."""
    bounds: dict[Cell, dict[str, Bound]] = {}
    for one in found:
        bounds.setdefault(one.cell, {})[one.contender] = one
    yield f"| cell | ours, p90 s | best rival | {GREEDY} | {POOLED} | ours ÷ {GREEDY} |"
    yield "|---|---|---|---|---|---|"
    for cell, of_cell in bounds.items():
        contenders = table.get(cell, {})
        if DEFAULT not in contenders:
            continue
        seeds = of_cell[GREEDY].seeds
        own, best = _p90(contenders[DEFAULT], seeds), best_rival(contenders)
        columns = [
            str(cell),
            _told(own),
            f"{_told(_p90(best, seeds))} ({best.contender})" if best else _NOTHING,
            *(_told(of_cell[name].ttft_p90) for name in (GREEDY, POOLED)),
            f"{own.mean / of_cell[GREEDY].ttft_p90.mean:.2f}",
        ]
        yield f"| {' | '.join(columns)} |"


def _p90(one: Standing, seeds: int) -> Estimate:
    """Of the first `seeds` seeds."""
    first = [value for seed, value in one.runs["ttft_p90"].items() if seed <= seeds]
    return estimate(first)


def _told(value: Estimate) -> str:
    width = value.half_width
    shown = f"{value.mean:.3g}"
    return f"{shown} ± {width:{'.0f' if width >= 9.5 else '.1g'}}" if width else shown


def main(arguments: Sequence[str]) -> int:
    directory = Path(arguments[0]) if arguments else RESULTS
    table = by_cell(read(directory / "lab.json").standings)
    found = verdicts(table)
    kept = directory / "lab-oracle.json"
    bounds = msgspec.json.decode(kept.read_bytes(), type=list[Bound]) if kept.exists() else []
    tables = (plain_cells(table), varied_cells(table), overall(table))
    for part in (*tables, requirements(found), misses(found), limits(table, bounds)):
        sys.stdout.write("\n".join(part) + "\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
