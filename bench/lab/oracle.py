"""How much is left to win: what could be done by who knows what nobody can know, and with what nobody can build.

    python -m bench.lab.oracle [--seeds N] [--only TEXT] [--out DIRECTORY]

Two bounds for cells in which the default is behind a rival. `Greedy` knows the servers' insides and the length of every answer, and sends each
request where it and those in line wait least in the sum; it does not know who comes next. `pooled` is one server with the compute and
memory of all: there is nothing to route, no cache is in the wrong place, no server idles while another is behind, and a prompt alone is computed by all.
Neither hangs on the default: what is written stays true when that changes.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.lab import knee
from bench.lab.baseline import baseline
from bench.lab.cells import WORKLOADS, Cell, scene
from bench.lab.offered import Offered
from bench.lab.outcome import Estimate, estimate, numbers
from bench.lab.router import Flight, NewRouter, Page, World
from bench.lab.running import knee_key
from bench.lab.scene import Scene
from bench.lab.simulation import Simulation
from bench.lab.summary import Summary, summarise, usual_slo
from bench.lab.traces import taken, trace
from bench.policies.simple import RoundRobin
from bench.processes import ROOT
from bench.replica.latency import SEQUENCE_MS
from bench.replica.profiles import Profile

CELLS = (
    Cell(trace="groups", servers=8, load=1.3),
    Cell(trace="root", servers=8, load=1.3),
    Cell(trace="documents", servers=8, load=1.3),
    Cell(trace="sessions", servers=8, load=1.3),
    Cell(trace="toolagent", servers=8, load=1.3, variation="lean"),
    Cell(trace="toolagent", servers=8, load=1.3, variation="two pickers"),
)
RESULTS = ROOT / "bench" / "results"
GREEDY, POOLED = "greedy oracle", "one server of all"


class Greedy:
    """Implements `bench.lab.router.Router`. Each request goes where the sum of its own wait for a first token and of what it adds to the waits
    of those without one is least, found by running copies of the engines on; equals by chance."""

    def __init__(self, world: World, scene: Scene, seed: int) -> None:
        self._world = world
        self._rng = random.Random(seed)
        # What was foretold holds until somebody else sends something there.
        self._alone = scene.pickers == 1
        self._foretold: dict[int, Mapping[str, float]] = {}
        self._servers: Sequence[int] = ()

    def arrive(self, flight: Flight, now_s: float) -> None:
        costs: dict[int, float] = {}
        after: dict[int, Mapping[str, float]] = {}
        for server in self._servers:
            before = self._foretold.get(server) if self._alone else None
            if before is None:
                before = self._world.first_tokens(server, None, now_s)
            after[server] = self._world.first_tokens(server, flight, now_s)
            costs[server] = sum(at_s - before.get(id, now_s) for id, at_s in after[server].items())
        least = min(costs.values())
        chosen = self._rng.choice([server for server, cost in costs.items() if cost == least])
        self._foretold[chosen] = after[chosen]
        self._world.send(flight, chosen, now_s)

    def members(self, servers: Sequence[int], now_s: float) -> None:
        self._servers = tuple(servers)
        self._foretold.clear()

    def first_token(self, flight: Flight, now_s: float) -> None:
        pass

    def finished(self, flight: Flight, now_s: float, *, whole: bool) -> None:
        pass

    def asked(self, server: int, now_s: float) -> None:
        pass

    def reported(self, server: int, mark: object, page: Page, now_s: float) -> None:
        pass


def pooled(profile: Profile, servers: int) -> Profile:
    """One server with the compute, the memory and the seats of so many: each step does the work of all in the time of one."""
    kernels = profile.kernels
    # The scheduler's cost of each sequence is on as many machines as well.
    saved_ms = [SEQUENCE_MS * (servers - 1) * batch for batch in kernels.batch_sizes]
    return msgspec.structs.replace(
        profile,
        name=f"{servers} in one, each {profile.name}",
        num_blocks=servers * profile.num_blocks,
        max_num_batched_tokens=servers * profile.max_num_batched_tokens,
        max_num_seqs=servers * profile.max_num_seqs,
        max_loras=servers * profile.max_loras,
        kernels=msgspec.structs.replace(
            kernels,
            prefill_tokens=tuple(servers * tokens for tokens in kernels.prefill_tokens),
            batch_sizes=tuple(servers * batch for batch in kernels.batch_sizes),
            decode_ms=tuple(
                tuple(max(0.0, ms - saved) for ms, saved in zip(row, saved_ms, strict=True))
                for row in kernels.decode_ms
            ),
        ),
    )


class Bound(msgspec.Struct, frozen=True):
    """What one contender, or what stands for one, does in a cell; seconds, and cached ÷ what an endless cache would have held."""

    cell: Cell
    contender: str
    seeds: int
    ttft_mean: Estimate
    ttft_p90: Estimate
    captured: Estimate


def bounds(cell: Cell, seeds: Sequence[int], knees: Mapping[str, float]) -> list[Bound]:
    """Both bounds. Raises KeyError where the cell's knee was not measured."""
    runs: dict[str, list[Summary]] = {}
    workload = WORKLOADS[cell.trace]
    for seed in seeds:
        speed = cell.load * knees[knee_key(cell)]
        requests = list(taken(trace(cell.trace, seed), workload.per_server * cell.servers, speed))
        around = scene(cell, seed, requests)
        alone = Scene(servers=(pooled(workload.server(), cell.servers),), seed=seed)
        for name, where, router in (
            (GREEDY, around, Greedy),
            (POOLED, alone, baseline(RoundRobin)),
        ):
            runs.setdefault(name, []).append(_run(requests, where, router, workload.server()))
    return [_bound(cell, name, found) for name, found in runs.items()]


def _run(requests: Sequence[Offered], around: Scene, router: NewRouter, profile: Profile) -> Summary:
    return summarise(Simulation(requests, around, router).records(), len(around.servers), usual_slo(profile))


def _bound(cell: Cell, name: str, runs: Sequence[Summary]) -> Bound:
    found = [numbers(one) for one in runs]
    mean, p90, captured = (estimate([one[key] for one in found]) for key in ("ttft_mean", "ttft_p90", "captured"))
    return Bound(cell, name, len(runs), mean, p90, captured)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab.oracle", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="only cells whose name has this text")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    console = Console()
    cells = [cell for cell in CELLS if given.only in str(cell)]
    known = knee.known()
    found = [
        bound
        for cell in track(cells, "cells", console=console)
        for bound in bounds(cell, range(1, given.seeds + 1), known)
    ]
    console.print(_table(found))
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "lab-oracle.json").write_bytes(msgspec.json.format(msgspec.json.encode(found)) + b"\n")
    return 0


def _table(found: Sequence[Bound]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("cell", "who", "TTFT mean (s)", "p90 (s)", "captured"):
        table.add_column(column, justify="left" if column in ("cell", "who") else "right")
    for one in found:
        told = (f"{value.mean:.3g} ± {value.half_width:.2g}" for value in (one.ttft_mean, one.ttft_p90, one.captured))
        table.add_row(str(one.cell), one.contender, *told)
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
