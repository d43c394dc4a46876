"""Where a request's microseconds go in a real run: py-spy samples the picker behind Envoy under load.

    python -m bench.cost.profile [--row NAME] [--seconds S]

Prints a table by part of the program and writes a flame graph to bench/results/flame-NAME.svg. Needs py-spy (`pip install
py-spy`). Sampling slows the picker down; the shares are what counts, and they are applied to the CPU per request measured
without it.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.cost.report import RESULTS
from bench.cost.rows import ROWS, Row
from bench.cost.scenes import Scene
from bench.processes import Stand

PARTS = (
    (
        "kernel and uvloop: waiting, reading, writing",
        ("asyncio/runners.py", "uvloop/", "_flush (epp/extproc/server.py"),
    ),
    ("HTTP/2 and gRPC framing", ("epp/extproc/http2", "epp/extproc/server", "epp/extproc/frames", "epp/extproc/calls")),
    ("protobuf", ("epp/extproc/codec",)),
    ("exchange and session", ("epp/extproc/",)),
    (
        "reading the body, fingerprints",
        ("epp/openai/body", "epp/openai/canonical", "epp/openai/api", "fingerprints.py"),
    ),
    ("prefix index", ("epp/prefix/index",)),
    ("scoring and picking", ("epp/pipeline", "scorers/", "epp/endpoint")),
    ("dispatcher and ledger", ("epp/dispatcher", "epp/ledger", "epp/openai/tokens")),
    ("metrics, usage, decision log", ("epp/observe/", "epp/openai/usage", "json/")),
    ("scraping", ("epp/signals/", "epp/app")),
)


def part_of(stack: str) -> str:
    """The part that the innermost frame of ours belongs to."""
    for frame in reversed(stack.split(";")):
        for name, files in PARTS:
            if any(file in frame for file in files):
                return name
    return "other"


def _sample(row: Row, seconds: int) -> tuple[float, str]:
    """CPU per request without sampling, and py-spy's stacks."""
    with tempfile.TemporaryDirectory() as temporary, Stand(Path(temporary)) as stand:
        scene = Scene(stand, row)
        scene.load(2)
        us = scene.load(seconds).us
        raw = Path(temporary) / "stacks"
        svg = RESULTS / f"flame-{row.name}.svg"
        for output, kind in ((raw, "raw"), (svg, "flamegraph")):
            argv = ["py-spy", "record", "--nonblocking", "-p", str(scene.picker.pid), "-r", "500"]
            with subprocess.Popen(
                [*argv, "-d", str(seconds), "-f", kind, "-o", str(output)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ):
                scene.load(seconds)
        return us, raw.read_text()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.cost.profile", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--row", default="small", choices=[row.name for row in ROWS if row.unit == "r" and not row.of])
    parser.add_argument("--seconds", type=int, default=8)
    args = parser.parse_args()
    console = Console()
    if shutil.which("py-spy") is None:
        console.print("py-spy is not installed: `pip install py-spy` (it samples the running picker)")
        return 2
    RESULTS.mkdir(exist_ok=True)
    us, stacks = _sample(next(row for row in ROWS if row.name == args.row), args.seconds)
    counts: Counter[str] = Counter()
    for line in stacks.splitlines():
        stack, samples = line.rsplit(" ", 1)
        counts[part_of(stack)] += int(samples)
    total = counts.total()
    table = Table(box=None, pad_edge=False)
    for column in ("part", "share", "µs"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, count in counts.most_common():
        table.add_row(name, f"{count / total:.0%}", f"{us * count / total:.0f}")
    table.add_row("all", "", f"{us:.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
