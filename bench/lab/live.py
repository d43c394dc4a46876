"""The lab against reality: two cells in real time through Envoy and HTTP servers, and the same requests under virtual time.

    python -m bench.lab.live [--seconds S] [--out DIRECTORY]

Three policies, all run by the picker in lean mode: the default, round robin and the Go picker's blend. Exits with 1 where the order of
two policies by p90 time to first token is another than the lab's, although the lab has them more than 15 % apart.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from bench.lab.offered import Offered, prompt_text
from bench.lab.picker import BASE_MODEL, picker
from bench.lab.scene import Scene, server
from bench.lab.simulation import Simulation
from bench.lab.traces import taken, trace
from bench.load.client import Result, run
from bench.load.workload import Session, Turn
from bench.processes import ROOT, Stand
from epp.configuration import DEFAULT_TEXT, load

RESULTS = ROOT / "bench" / "results"
PROFILE = "Llama-3.1-8B@A100-80"
SERVERS = 4
APART = 1.15
_WARM_UP = 0.2
_SEED = 1

POLICIES = {
    "epp": DEFAULT_TEXT,
    "round robin": (ROOT / "config" / "round-robin.yaml").read_text(encoding="utf-8"),
    "Go picker 3:2:2": (ROOT / "config" / "go-picker.yaml").read_text(encoding="utf-8"),
}


class Cell(msgspec.Struct, frozen=True):
    trace: str
    speed: float

    def __str__(self) -> str:
        return f"{self.trace} × {SERVERS} at {self.speed:g}"


CELLS = (Cell("agents", 5.0), Cell("documents", 0.8))


class Measured(msgspec.Struct, frozen=True):
    """Of answered requests after the warm-up; TTFT in seconds, `hit` is cached ÷ prompt tokens."""

    requests: int
    failed: int
    ttft_mean: float
    ttft_p50: float
    ttft_p90: float
    hit: float


class Comparison(msgspec.Struct, frozen=True):
    """One policy in one cell, in real time and in the lab."""

    cell: Cell
    policy: str
    live: Measured
    lab: Measured


def disagreements(found: Sequence[Comparison]) -> list[str]:
    """Pairs of policies that stand in another order live than in the lab, where the lab has them apart."""
    told: list[str] = []
    for one, other in itertools.combinations(found, 2):
        if one.cell != other.cell:
            continue
        better, worse = (one, other) if one.lab.ttft_p90 <= other.lab.ttft_p90 else (other, one)
        if worse.lab.ttft_p90 > APART * better.lab.ttft_p90 and worse.live.ttft_p90 < better.live.ttft_p90:
            told.append(f"{one.cell}: {better.policy} is ahead of {worse.policy} in the lab, and behind it live")
    return told


def in_lab(requests: Sequence[Offered], policy: str) -> Measured:
    scene = Scene(servers=(server(PROFILE),) * SERVERS, lean=True, seed=_SEED)
    records = list(Simulation(requests, scene, picker(load(policy, "policy"))).records())
    rows = [(one.at_s, one.ttft_s, one.cached_tokens, one.prompt_tokens) for one in records]
    return _measured(rows, 0)


def live(requests: Sequence[Offered], policy: str, directory: Path) -> Measured:
    """Raises StartError."""
    directory.mkdir(parents=True)
    config = directory / "config.yaml"
    config.write_text(policy, encoding="utf-8")
    with Stand(directory) as stand:
        # A token to a chunk would measure the machine: 8 tokens still show when the first came.
        args = ["--profile", PROFILE, "--models", BASE_MODEL, "--stream-interval", "8"]
        servers = [stand.replica(args)[1] for _ in range(SERVERS)]
        endpoints = [f"--endpoint=127.0.0.1:{port}" for port in servers]
        listen, _ = stand.lean([f"--config-file={config}", f"--seed={_SEED}", *endpoints])
        results = asyncio.run(run([_session(*one) for one in enumerate(requests)], f"http://127.0.0.1:{listen}"))
    return _of_results(results)


def _session(number: int, offered: Offered) -> Session:
    turn = Turn(text="", max_tokens=offered.output_tokens, stream=True, pause_s=0.0)
    text = prompt_text(offered).decode("ascii")
    return Session(f"{number}", "", offered.at_s, False, BASE_MODEL, text, (turn,))


def _of_results(results: Sequence[Result]) -> Measured:
    rows = [(one.sent_s, one.ttft_s, one.cached_tokens, one.prompt_tokens) for one in results if one.ttft_s is not None]
    return _measured(rows, len(results) - len(rows))


def _measured(rows: Sequence[tuple[float, float, int, int]], failed: int) -> Measured:
    rows = sorted(rows)[int(len(rows) * _WARM_UP) :]
    ttft = np.array([row[1] for row in rows])
    p50, p90 = np.quantile(ttft, (0.5, 0.9)).tolist()
    hit = sum(row[2] for row in rows) / sum(row[3] for row in rows)
    return Measured(len(rows), failed, float(ttft.mean()), p50, p90, hit)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.lab.live", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="length of each of the six runs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    console = Console()
    found: list[Comparison] = []
    with tempfile.TemporaryDirectory(prefix="lab-live-") as directory:
        for number, (cell, name) in enumerate(itertools.product(CELLS, POLICIES)):
            everything = taken(trace(cell.trace, _SEED), 1 << 20, cell.speed)
            requests = list(itertools.takewhile(lambda one: one.at_s < given.seconds, everything))
            with console.status(f"{cell}: {name}, {len(requests)} requests"):
                measured = live(requests, POLICIES[name], Path(directory) / str(number))
            found.append(Comparison(cell, name, measured, in_lab(requests, POLICIES[name])))
    console.print(_table(found))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "lab-live.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    differing = disagreements(found)
    for told in differing:
        console.print(told, style="red")
    console.print("the order of the policies is the lab's" if not differing else "the order is not the lab's")
    return 1 if differing else 0


def _table(found: Sequence[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("cell", "policy", "", "requests", "failed", "TTFT mean", "p50", "p90 (s)", "hit"):
        table.add_column(column, justify="left" if column in ("cell", "policy", "") else "right")
    for one in found:
        for name, measured in (("live", one.live), ("lab", one.lab)):
            table.add_row(
                str(one.cell) if name == "live" else "",
                one.policy if name == "live" else "",
                name,
                str(measured.requests),
                str(measured.failed),
                f"{measured.ttft_mean:.3f}",
                f"{measured.ttft_p50:.3f}",
                f"{measured.ttft_p90:.3f}",
                f"{measured.hit:.3f}",
            )
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
