"""The lab's command line.

    python -m bench.lab [quick|standard|full] [--seeds N] [--processes N] [--only TEXT] [--contender NAME ...] [--out DIRECTORY]

Measures the knees that are not known yet, runs every contender in every cell, and writes lab.html, lab.json and pictures.
`--only` leaves the cells in whose name the text occurs; with it or --contender, which runs only the named ones, what lab.json has of the
rest is kept: whoever tries a policy runs that alone. `python -m bench.lab report` writes pictures and page anew from lab.json.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.lab import knee, running
from bench.lab.cells import SETS, Cell
from bench.lab.contenders import CONTENDERS
from bench.lab.heats import SEED, close, is_heat, qualified, starters
from bench.lab.outcome import by_cell, standings
from bench.lab.report import Findings, joined, read, write
from bench.lab.running import Job, Result
from bench.lab.validation import lines
from bench.lab.verdict import verdicts
from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results"
_TOLD = 20
"""Lines of progress where the output is no terminal."""

SEEDS = {"quick": 2, "standard": 3, "full": 3}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cells", nargs="?", default="quick", choices=(*SETS, "report"))
    parser.add_argument("--seeds", type=int, help="runs of each cell and policy; 2 for quick, else 3")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", default="", help="only cells whose name has this text")
    parser.add_argument(
        "--contender", action="append", choices=tuple(CONTENDERS), metavar="NAME", help="run only these"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    console = Console()
    failed = 0
    if given.cells == "report":
        findings = read(given.out / "lab.json")
    else:
        cells = [cell for cell in SETS[given.cells]() if given.only in str(cell)]
        if not cells:
            parser.error(f"no cell of {given.cells} has {given.only!r} in its name")
        chosen = given.contender or list(CONTENDERS)
        seeds = given.seeds or SEEDS[given.cells]
        findings, failed = _find_out(given.cells, cells, chosen, seeds, given.processes, console)
        before = given.out / "lab.json"
        if (given.only or given.contender) and before.exists():
            findings = joined(read(before), findings)
    written = write(findings, given.out)
    _tell(findings, console)
    console.print("written: " + ", ".join(os.path.relpath(path) for path in written))
    return 1 if failed else 0


def _find_out(
    name: str, cells: list[Cell], contenders: list[str], seeds: int, processes: int, console: Console
) -> tuple[Findings, int]:
    """What was found, and how many runs failed."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        missing = running.missing_knees(cells)
        if missing:
            measuring = progress.add_task("measuring knees", total=missing)
            for _ in running.measure_knees(cells, processes):
                progress.advance(measuring)
        heats = running.jobs(filter(is_heat, cells), [SEED], lambda cell: contenders)
        results = _run("heats", heats, processes, progress)
        worth = qualified(by_cell(standings(results)))
        first = running.jobs(cells, [SEED], lambda cell: starters(cell, contenders, worth))
        first = sorted(set(first) - set(heats))
        results += _run("first seed", first, processes, progress)
        table = by_cell(standings(results))
        more = range(SEED + 1, SEED + seeds)
        further = running.jobs(
            cells,
            more,
            lambda cell: [name for name in starters(cell, contenders, worth) if name in close(table.get(cell, {}))],
        )
        results += _run("further seeds", further, processes, progress)
    known, keys = knee.known(), {running.knee_key(cell) for cell in cells}
    findings = Findings(
        cells=name,
        seeds=seeds,
        standings=standings(results),
        knees={key: known[key] for key in sorted(keys)},
        validation=lines(),
    )
    return findings, len(heats) + len(first) + len(further) - len(results)


def _run(what: str, todo: Sequence[Job], processes: int, progress: Progress) -> list[Result]:
    """Those that did not fail."""
    task = progress.add_task(what, total=len(todo))
    results: list[Result] = []
    for number, result in enumerate(running.in_parallel(todo, processes), 1):
        if isinstance(result, RuntimeError):
            progress.console.print(f"failed: {result}", style="red", highlight=False)
        else:
            results.append(result)
        progress.advance(task)
        if not progress.console.is_terminal and number * _TOLD // len(todo) > (number - 1) * _TOLD // len(todo):
            progress.console.print(f"{what}: {number} of {len(todo)} runs")
    return results


def _tell(findings: Findings, console: Console) -> None:
    for verdict in verdicts(by_cell(findings.standings)):
        held = len(verdict.checks) - len(verdict.failed)
        console.print(f"{held:4} of {len(verdict.checks):3}  {verdict.requirement}", highlight=False)
        for miss in verdict.failed[:3]:
            told = f"{miss.value:.3g} ± {miss.half_width:.2g}, bound {miss.bound:.3g}: {miss.cell}"
            console.print(f"             {told}", style="red", highlight=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
