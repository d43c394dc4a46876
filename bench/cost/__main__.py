"""CPU per request, per chunk, idle, memory and added latency against their budgets.

    python -m bench.cost [--seconds S] [--rows NAME,...] [--repeat N]

Each row starts its own scene: Envoy with one worker, the picker, origins that answer at once, and `wrk` as load. CPU is user +
system time of the picker's process ÷ requests that wrk counted. A bare `grpc.aio` echo behind an Envoy of its own is measured
before and after every row, and CPU is divided by the mean of the two (r), so that the machine's speed and its other work drop out.
A row that is repeated keeps its least value. Results go to bench/results/cost.json and cost.png.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from bench.cost.report import RESULTS, kept, plot, show, write
from bench.cost.rows import ROWS, Result, Row
from bench.cost.scenes import Load, Scene, awake
from bench.processes import ROOT, Stand, StartError


class Bench:
    """Runs rows beside one echo, whose scene stays up."""

    def __init__(self, directory: Path, echo: Scene, seconds: float) -> None:
        self._directory = directory
        self._echo = echo
        self._seconds = seconds
        self._scenes = 0
        echo.load(2)

    def measure(self, row: Row, derived: Sequence[Row]) -> Iterator[Result]:
        """The row's result, then those of `derived`, which are read from it."""
        if row.unit == "cores":
            yield _result(row, self._in_scene(row).idle_cores)
        elif row.unit == "MB":
            yield _result(row, self._in_scene(row).megabytes)
        elif row.unit == "×":
            picker, control = self._added_latency(row)
            for one, quantile in ((row, "p50"), *((other, "p99") for other in derived)):
                added, bare = picker[quantile], control[quantile]
                if bare > 0.0:
                    yield msgspec.structs.replace(_result(one, added / bare), added_ms=added, control_ms=bare)
        else:
            yield from self._cpu(row, derived)

    def _cpu(self, row: Row, derived: Sequence[Row]) -> Iterator[Result]:
        before = self._echo.load(self._seconds / 2).us
        load = self._per_chunk(row) if row.events else self._in_scene(row).load
        assert load is not None
        echo_us = (before + self._echo.load(self._seconds / 2).us) / 2
        result = _result(row, load.us / echo_us)
        yield msgspec.structs.replace(
            result, us=load.us, envoy_us=load.envoy_us, echo_us=echo_us, requests_per_s=load.per_second
        )
        for other in derived:
            yield msgspec.structs.replace(_result(other, load.envoy_us / echo_us), us=load.envoy_us, echo_us=echo_us)

    def _per_chunk(self, row: Row) -> Load:
        """A streamed request less one whose answer takes as long and has one chunk, over the chunks between: as many requests a
        second, so that what else a second costs is the same. The median of three pairs, as near to each other as can be."""
        with self._stand() as stand:
            scene = Scene(stand, row)
            bare = msgspec.structs.replace(row, events=1, turns=row.events)
            scene.load(2)
            pairs = [(scene.load(self._seconds), scene.load(self._seconds, bare)) for _ in range(3)]
        chunks = row.events - 1
        return Load(
            statistics.median((many.us - one.us) / chunks for many, one in pairs),
            statistics.median((many.envoy_us - one.envoy_us) / chunks for many, one in pairs),
            statistics.median(many.per_second for many, _ in pairs),
        )

    def _added_latency(self, row: Row) -> tuple[dict[str, float], dict[str, float]]:
        """p50 and p99 of the picker and of the control, each less those of an Envoy that forwards by itself.

        At half of what the picker can carry, in turns, with the cores kept from sleeping.
        """
        turns: dict[str, list[dict[str, float]]] = {"nobody": [], "picker": [], "constant": []}
        with self._stand() as stand, awake():
            scenes = {who: Scene(stand, row, who) for who in turns}
            rate = scenes["picker"].load(3).per_second / 2
            scenes["constant"].load(1)
            for _ in range(5):
                for who, scene in scenes.items():
                    turns[who].append(scene.latency(rate, self._seconds / 2))
        # The median of the turns: what else the machine did for a second does not count.
        median = {
            who: {q: statistics.median(t[q] for t in taken) for q in ("p50", "p99")} for who, taken in turns.items()
        }
        added = [
            {q: max(0.0, median[who][q] - median["nobody"][q]) for q in ("p50", "p99")}
            for who in ("picker", "constant")
        ]
        return added[0], added[1]

    def _in_scene(self, row: Row) -> _Measured:
        with self._stand() as stand:
            scene = Scene(stand, row)
            if row.unit == "cores":
                return _Measured(idle_cores=scene.idle_cores(max(self._seconds, 10)))
            if row.name == "memory-rest":
                time.sleep(2)
                return _Measured(megabytes=scene.picker.resident_bytes() / 1e6)
            scene.load(2)
            load = scene.load(self._seconds)
            return _Measured(load=load, megabytes=scene.picker.resident_bytes() / 1e6)

    def _stand(self) -> Stand:
        self._scenes += 1
        directory = self._directory / str(self._scenes)
        directory.mkdir()
        return Stand(directory)


class _Measured(msgspec.Struct, frozen=True):
    load: Load | None = None
    megabytes: float = 0.0
    idle_cores: float = 0.0


def _result(row: Row, value: float) -> Result:
    return Result(row=row.name, title=row.title, unit=row.unit, value=value, budget=row.budget, go_picker=row.go)


def run(rows: Sequence[Row], seconds: float, repeat: int, console: Console) -> list[Result]:
    """Every row `repeat` times, all of them before any again: the machine's other work hits none of them alone."""
    asked = {row.name for row in rows}
    primary = [row for row in rows if not row.of or row.of not in asked]
    best: dict[str, Result] = {}
    with (
        tempfile.TemporaryDirectory(prefix="epp-cost-") as temporary,
        Stand(Path(temporary)) as stand,
        Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress,
    ):
        task = progress.add_task("bare grpc.aio echo", total=None)
        bench = Bench(Path(temporary), Scene(stand, ROWS[0], "echo"), seconds)
        for row in primary * repeat:
            progress.update(task, description=row.title)
            source = next((one for one in ROWS if one.name == row.of), row)
            derived = [other for other in rows if other.of == source.name]
            for result in _measured(bench, source, derived, console):
                earlier = best.get(result.row)
                if result.row in asked and (earlier is None or result.value < earlier.value):
                    best[result.row] = result
    return [best[row.name] for row in rows if row.name in best]


def _measured(bench: Bench, row: Row, derived: Sequence[Row], console: Console) -> Sequence[Result]:
    """The row's results; none where its scene failed, which is said and does not end the run."""
    try:
        return list(bench.measure(row, derived))
    except (StartError, subprocess.CalledProcessError) as error:
        console.print(f"[red]row {row.name}: {error}[/]")
        return []


def _load_generator() -> bool:
    """Whether wrk is there, after installing it where we may."""
    if shutil.which("wrk") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(["apt-get", "install", "-y", "-qq", "wrk"], check=False, stdout=subprocess.DEVNULL)
    return shutil.which("wrk") is not None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.cost", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="load per row, in seconds (default 6)")
    parser.add_argument("--repeat", type=int, default=1, help="how often each row is measured; the least counts")
    parser.add_argument("--rows", default="", help=f"comma list (default all): {', '.join(r.name for r in ROWS)}")
    args = parser.parse_args()
    console = Console(width=max(118, Console().width))
    if not _load_generator():
        console.print("wrk is not installed: `apt-get install wrk` (it is the load generator of this benchmark)")
        return 2
    wanted = {name for name in args.rows.split(",") if name}
    unknown = wanted - {row.name for row in ROWS}
    if unknown:
        console.print(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in ROWS)}")
        return 2
    rows = [row for row in ROWS if not wanted or row.name in wanted]
    try:
        results = run(rows, args.seconds, args.repeat, console)
    except StartError as error:
        console.print(f"[red]{error}[/]")
        return 1
    show(results, console)
    RESULTS.mkdir(exist_ok=True)
    # Rows that were not asked for keep what an earlier run found, each with its own date.
    everything = kept(results)
    write(everything)
    plot(everything)
    console.print(f"\nwritten to {RESULTS.relative_to(ROOT)}/cost.json and cost.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
