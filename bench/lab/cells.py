"""Cells: which trace, on how many servers, how hard, and what is different from the plain case."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf

import msgspec

from bench.lab.offered import Offered
from bench.lab.scene import Loss, Scene, server
from bench.replica.profiles import Profile


class Workload(msgspec.Struct, frozen=True):
    """A trace and the servers it is run on: a `model@GPU` whose caches and speed make its routing matter; so many requests of a
    run for each server."""

    trace: str
    profile: str
    adapter_slots: int = 0
    per_server: int = 250

    def server(self) -> Profile:
        return server(self.profile, adapter_slots=self.adapter_slots)


WORKLOADS: Mapping[str, Workload] = {
    one.trace: one
    for one in (
        Workload("conversation", "Qwen3-32B/tp2@H100"),
        Workload("toolagent", "Qwen3-32B/tp2@H100"),
        Workload("azure-code", "Llama-3.1-8B@H100"),
        Workload("agents", "Llama-3.1-8B@A100-80"),
        Workload("groups", "Qwen3-32B/tp2@H100"),
        Workload("root", "Llama-3.1-8B@H100"),
        Workload("documents", "Llama-3.1-8B@A100-80"),
        # So many that the run is several times as long as its longest answers.
        Workload("answers", "Llama-3.1-8B@A100-80", per_server=1000),
        Workload("adapters", "Llama-3.1-8B@H100", adapter_slots=8),
        Workload("sessions", "Llama-3.1-8B@H200", per_server=100),
    )
}

PLAIN = "plain"
VARIATIONS: Mapping[str, str] = {
    PLAIN: "full duplex, metrics scraped every second",
    "lean": "of an answer its end alone is seen; the picker has 1 % of them shown. The Go picker cannot run so",
    "fresh metrics": "metrics scraped every 50 ms",
    "metrics 1 s old": "scraped every second, of a state 1 s before that",
    "metrics 5 s old": "scraped every second, of a state 5 s before that",
    "no metrics": "servers are never scraped",
    "half speed": "one server takes twice as long for everything its GPU does",
    "mixed GPUs": "Llama-3.1-8B on H100, A100-80 and H200 in turn",
    "loss": "the first server is gone from 50 to 70 % of the run and comes back cold",
    "few adapter slots": "2 LoRA slots a server instead of 8",
    "two pickers": "two pickers that share nothing, each with half of the requests",
    "a fast clock": "the picker's clock is 1 % fast",
}


_Vary = Callable[[Scene, Workload, Sequence[Offered]], Scene]


class Cell(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """One thing to find out. `load` is in parts of the measured knee."""

    trace: str
    servers: int
    load: float
    variation: str = PLAIN

    def __str__(self) -> str:
        return f"{self.trace} × {self.servers}, load {self.load:g}, {self.variation}"


def scene(cell: Cell, seed: int, requests: Sequence[Offered]) -> Scene:
    """What surrounds the requests of a run of that cell. Raises KeyError for a variation or trace that is none."""
    workload = WORKLOADS[cell.trace]
    plain = Scene(servers=(workload.server(),) * cell.servers, seed=seed)
    return _VARY[cell.variation](plain, workload, requests)


def _slow_one(plain: Scene, workload: Workload, requests: Sequence[Offered]) -> Scene:
    slow = server(workload.profile, adapter_slots=workload.adapter_slots, slowdown=2.0)
    return msgspec.structs.replace(plain, servers=(slow, *plain.servers[1:]))


def _mixed(plain: Scene, workload: Workload, requests: Sequence[Offered]) -> Scene:
    kinds = [server(f"Llama-3.1-8B@{gpu}", adapter_slots=workload.adapter_slots) for gpu in ("H100", "A100-80", "H200")]
    return msgspec.structs.replace(plain, servers=tuple(kinds[i % 3] for i in range(len(plain.servers))))


def _loses(plain: Scene, workload: Workload, requests: Sequence[Offered]) -> Scene:
    gone_s, back_s = (requests[int(len(requests) * share)].at_s for share in (0.5, 0.7))
    return msgspec.structs.replace(plain, losses=(Loss(0, gone_s, back_s),))


def _few_slots(plain: Scene, workload: Workload, requests: Sequence[Offered]) -> Scene:
    few = server(workload.profile, adapter_slots=2)
    return msgspec.structs.replace(plain, servers=(few,) * len(plain.servers))


def _with(**changes: object) -> _Vary:
    return lambda plain, workload, requests: msgspec.structs.replace(plain, **changes)


_VARY: Mapping[str, _Vary] = {
    PLAIN: _with(),
    "lean": _with(lean=True),
    "fresh metrics": _with(scrape_interval_s=0.05),
    "metrics 1 s old": _with(page_age_s=1.0),
    "metrics 5 s old": _with(page_age_s=5.0),
    "no metrics": _with(scrape_interval_s=inf),
    "half speed": _slow_one,
    "mixed GPUs": _mixed,
    "loss": _loses,
    "few adapter slots": _few_slots,
    "two pickers": _with(pickers=2),
    "a fast clock": _with(clock_rate=1.01),
}

LOADS = (0.5, 0.8, 1.0, 1.3)
_SHARING = ("conversation", "toolagent", "groups")


def full() -> list[Cell]:
    """Every trace at every load on every size; every variation near the knee and past it, where prefixes are shared in different ways."""
    plain = [Cell(trace=trace, servers=n, load=load) for trace in WORKLOADS for n in (4, 8, 16) for load in LOADS]
    varied = [
        Cell(trace=trace, servers=8, load=load, variation=variation)
        for trace in _SHARING
        for variation in VARIATIONS
        if variation not in (PLAIN, "few adapter slots", "mixed GPUs")
        for load in (0.8, 1.3)
    ]
    return [*plain, *varied, *_mixed_gpus(), *_slots(), *_root()]


def _mixed_gpus() -> list[Cell]:
    return [
        Cell(trace=trace, servers=9, load=load, variation="mixed GPUs")
        for trace in ("azure-code", "root", "adapters")
        for load in (0.8, 1.3)
    ]


def _slots() -> list[Cell]:
    return [Cell(trace="adapters", servers=8, load=load, variation="few adapter slots") for load in (0.5, 0.8)]


def _root() -> list[Cell]:
    return [
        Cell(trace="root", servers=8, load=1.0, variation=variation)
        for variation in ("lean", "metrics 5 s old", "no metrics")
    ]


def standard() -> list[Cell]:
    """What the default policy is held to: every trace on 8 servers at every load; smaller and larger pools, and every variation that
    a requirement speaks of, below the knee and past it."""
    plain = [Cell(trace=trace, servers=8, load=load) for trace in WORKLOADS for load in LOADS]
    sizes = [
        Cell(trace=trace, servers=n, load=load)
        for trace in (*_SHARING, "root", "agents", "adapters")
        for n in (4, 16)
        for load in (0.8, 1.3)
    ]
    varied = [
        Cell(trace=trace, servers=8, load=load, variation=variation)
        for trace in _SHARING
        for variation in ("lean", "metrics 5 s old", "no metrics", "half speed", "loss", "two pickers")
        for load in (0.8, 1.3)
    ]
    return [*plain, *sizes, *varied, *_mixed_gpus(), *_slots(), *_root()]


def quick() -> list[Cell]:
    """What a first look needs."""
    plain = [Cell(trace=trace, servers=8, load=load) for trace in (*_SHARING, "root") for load in (0.8, 1.3)]
    varied = [
        Cell(trace="toolagent", servers=8, load=1.0, variation=variation)
        for variation in (PLAIN, "lean", "metrics 5 s old", "half speed", "two pickers")
    ]
    return [*plain, *varied]


SETS = {"quick": quick, "standard": standard, "full": full}
