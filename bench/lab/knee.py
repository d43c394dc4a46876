"""How much a pool takes: the measured knee of a workload on so many servers, in multiples of the trace's own speed.

The knee is the highest speed at which one of two common policies, least request or the Go picker's blend, still serves nine
requests in ten within the SLO (`usual_slo`), found by bisection to 3 % on one seed. What is measured is kept in `knees.json`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from bench.lab.cells import Workload
from bench.lab.contenders import CONTENDERS
from bench.lab.scene import Scene
from bench.lab.simulation import Simulation
from bench.lab.summary import summarise, usual_slo
from bench.lab.traces import taken, trace

PATH = Path(__file__).parent / "knees.json"
REFERENCES = ("least request", "Go picker 3:2:2")
SERVED = 0.9
_SEED = 1


def measure(workload: Workload, servers: int) -> float:
    """Raises ValueError where neither policy serves enough however slowly requests come, or one does however fast."""
    found = max(_knee(workload, servers, name) for name in REFERENCES)
    if not found:
        raise ValueError(f"{key(workload, servers)} has no knee: the SLO cannot be kept at any speed")
    return found


def known() -> dict[str, float]:
    """What was measured, by `key`."""
    return msgspec.json.decode(PATH.read_bytes(), type=dict[str, float]) if PATH.exists() else {}


def keep(knees: dict[str, float]) -> None:
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode({**known(), **knees}, order="sorted")) + b"\n")


def key(workload: Workload, servers: int) -> str:
    return f"{workload.trace} on {servers} × {workload.profile}"


def _knee(workload: Workload, servers: int, policy: str) -> float:
    profile = workload.server()
    scene = Scene(servers=(profile,) * servers, seed=_SEED)
    requests = list(taken(trace(workload.trace, _SEED), workload.per_server * servers, 1.0))

    def holds(speed: float) -> bool:
        run = Simulation(taken(requests, len(requests), speed), scene, CONTENDERS[policy]())
        return summarise(run.records(), servers, usual_slo(profile)).attained >= SERVED

    return bisect(holds)


def bisect(
    holds: Callable[[float], bool], *, precision: float = 1.03, least: float = 1 / 64, most: float = 1024.0
) -> float:
    """The highest value at which `holds`, which is true up to some value and false from there on, to a factor of `precision`.

    0.0 where it does not hold even at `least`. Raises ValueError where it does at `most`.
    """
    low = high = 1.0
    if holds(low):
        while holds(high := 2 * low):
            if high > most:
                raise ValueError(f"it holds at {most:g} still: the run is too short to be held up")
            low = high
    else:
        while not holds(low := high / 2):
            high = low
            if high <= least:
                return 0.0
    while high / low > precision:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
