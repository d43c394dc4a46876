"""A few small cells that tell within seconds whether the default policy has lost something that it had.

`guard.json` keeps what it had. `python -m bench.lab.guard` measures it anew and says what changed: for whoever changes the policy on purpose.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from bench.lab.cells import PLAIN, WORKLOADS, Cell, scene
from bench.lab.outcome import numbers
from bench.lab.picker import picker
from bench.lab.simulation import Simulation
from bench.lab.summary import summarise, usual_slo
from bench.lab.traces import taken, trace
from epp.configuration import load_default

PATH = Path(__file__).parent / "guard.json"

AT_MOST = {"ttft_p90": 1.15, "longest_ttft_p99": 1.25, "e2e_p90": 1.1, "request_spread": 1.08}
AT_LEAST = {"captured": 0.97, "attained": 0.97}
"""Parts of what was kept: what a run may change by for reasons that are none of the policy's."""

_SEED = 5


class Case(msgspec.Struct, frozen=True):
    """A cell at a fixed speed, so that no knee has to be measured."""

    trace: str
    servers: int
    speed: float
    requests: int
    variation: str = PLAIN

    def __str__(self) -> str:
        return f"{self.trace} × {self.servers} at {self.speed:g}, {self.variation}"


CASES = (
    Case("groups", 4, 0.7, 500),
    Case("groups", 4, 0.55, 500, "two pickers"),
    Case("sessions", 4, 0.08, 250),
    Case("root", 4, 1.9, 500, "no metrics"),
    Case("root", 8, 2.0, 500),
    Case("documents", 4, 1.2, 500),
    Case("answers", 4, 6.0, 800),
    Case("adapters", 4, 1.3, 500),
    Case("conversation", 4, 0.6, 400, "metrics 5 s old"),
    Case("agents", 4, 4.0, 500, "lean"),
    Case("azure-code", 4, 0.5, 400),
)


def measure(case: Case) -> dict[str, float]:
    """What the default does in that case; the same every time."""
    requests = list(taken(trace(case.trace, _SEED), case.requests, case.speed))
    around = scene(Cell(trace=case.trace, servers=case.servers, load=1.0, variation=case.variation), _SEED, requests)
    records = Simulation(requests, around, picker(load_default())).records()
    found = numbers(summarise(records, case.servers, usual_slo(WORKLOADS[case.trace].server())))
    return {name: found[name] for name in (*AT_MOST, *AT_LEAST)}


def lost(found: Mapping[str, float], kept: Mapping[str, float]) -> list[str]:
    """What is worse than it was, in words."""
    worse = [name for name, factor in AT_MOST.items() if found[name] > kept[name] * factor]
    worse += [name for name, factor in AT_LEAST.items() if found[name] < kept[name] * factor]
    return [f"{name} is {found[name]:.4g}, it was {kept[name]:.4g}" for name in worse]


def kept() -> dict[str, dict[str, float]]:
    """By the case's name."""
    return msgspec.json.decode(PATH.read_bytes(), type=dict[str, dict[str, float]])


if __name__ == "__main__":
    before = kept() if PATH.exists() else {}
    after = {str(case): measure(case) for case in CASES}
    for name, found in after.items():
        told = (
            f"{key} {before.get(name, {}).get(key, float('nan')):.4g} → {value:.4g}" for key, value in found.items()
        )
        sys.stdout.write(f"{name}: {', '.join(told)}\n")
    rounded = {name: {key: float(f"{value:.5g}") for key, value in found.items()} for name, found in after.items()}
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode(rounded)) + b"\n")
