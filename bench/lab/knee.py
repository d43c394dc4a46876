"""How much a pool takes: the measured knee of a workload on so many servers, in multiples of the trace's own speed.

The knee is the highest speed at which one of two common policies, least request or the Go picker's blend, still serves nine
requests in ten within the SLO (`usual_slo`), found by bisection to 3 % on one seed. What is measured is kept in `knees.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
PRECISION = 1.03
_SEED = 1
_LEAST, _MOST = 1 / 64, 1024.0


def measure(workload: Workload, servers: int, expected: float | None = None) -> float:
    """`expected`, where something is, is where to begin to look.

    Raises ValueError where neither policy serves enough however slowly requests come, or one does however fast.
    """
    found = 0.0
    for name in REFERENCES:
        holds = _holds(workload, servers, name)
        # Of the second only what is beyond the first's knee has to be known.
        if found and not holds(found * PRECISION):
            continue
        begin = found or expected
        found = max(found, bisect(holds, begin, stride=1.2) if begin else bisect(holds))
    if not found:
        raise ValueError(f"{key(workload, servers)} has no knee: the SLO cannot be kept at any speed")
    return found


def expected(workload: Workload, servers: int, knees: Mapping[str, float]) -> float | None:
    """What a knee of the same workload on another number of servers lets expect; None where there is none."""
    return next(
        (
            speed * servers / n
            for n in (8, 4, 16)
            if (speed := knees.get(key(workload, n))) is not None and n != servers
        ),
        None,
    )


def known() -> dict[str, float]:
    """What was measured, by `key`."""
    return msgspec.json.decode(PATH.read_bytes(), type=dict[str, float]) if PATH.exists() else {}


def keep(knees: dict[str, float]) -> None:
    PATH.write_bytes(msgspec.json.format(msgspec.json.encode({**known(), **knees}, order="sorted")) + b"\n")


def key(workload: Workload, servers: int) -> str:
    return f"{workload.trace} on {servers} × {workload.profile}"


def _holds(workload: Workload, servers: int, policy: str) -> Callable[[float], bool]:
    profile = workload.server()
    scene = Scene(servers=(profile,) * servers, seed=_SEED)
    requests = list(taken(trace(workload.trace, _SEED), workload.per_server * servers, 1.0))

    def holds(speed: float) -> bool:
        run = Simulation(taken(requests, len(requests), speed), scene, CONTENDERS[policy]())
        return summarise(run.records(), servers, usual_slo(profile)).attained >= SERVED

    return holds


def bisect(holds: Callable[[float], bool], begin: float = 1.0, *, stride: float = 2.0) -> float:
    """The highest value at which `holds`, which is true up to some value and false from there on, to a factor of `PRECISION`. Looked
    for from `begin` on, by factors of `stride` until it is between two of them.

    0.0 where it does not hold even at 1/64. Raises ValueError where it does at 1,024.
    """
    low = high = begin
    if holds(low):
        while holds(high := stride * low):
            if high > _MOST:
                raise ValueError(f"it holds at {high:g} still: the run is too short to be held up")
            low = high
    else:
        while not holds(low := high / stride):
            high = low
            if high <= _LEAST:
                return 0.0
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
