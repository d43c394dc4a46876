"""Runs cells in parallel processes, each cell once for every seed and contender."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import lru_cache
from multiprocessing import get_context

import msgspec

from bench.lab import knee
from bench.lab.cells import WORKLOADS, Cell, scene
from bench.lab.contenders import CONTENDERS
from bench.lab.offered import Offered
from bench.lab.simulation import Simulation
from bench.lab.summary import Summary, summarise, usual_slo
from bench.lab.traces import taken, trace


class Job(msgspec.Struct, frozen=True, order=True):
    """One run. `speed` is how many times as fast as the trace itself its requests come."""

    cell: Cell
    seed: int
    contender: str
    speed: float


class Result(msgspec.Struct, frozen=True):
    job: Job
    summary: Summary
    cpu_s: float


def jobs(cells: Iterable[Cell], seeds: Iterable[int], starters: Callable[[Cell], Iterable[str]]) -> list[Job]:
    """A run of each of `starters(cell)` for each seed, those of one trace beside each other. Raises KeyError where the knee of a cell
    was not measured."""
    known, seeds = knee.known(), list(seeds)
    return sorted(
        Job(cell, seed, contender, cell.load * known[knee_key(cell)])
        for cell in cells
        for contender in starters(cell)
        for seed in seeds
    )


def run(job: Job) -> Result:
    """Raises RuntimeError, which says what failed in which run."""
    began_s = time.process_time()
    cell = job.cell
    try:
        count = WORKLOADS[cell.trace].per_server * cell.servers
        requests = list(taken(_requests(cell.trace, job.seed, count), count, job.speed))
        around = scene(cell, job.seed, requests)
        records = Simulation(requests, around, CONTENDERS[job.contender]()).records()
        summary = summarise(records, cell.servers, usual_slo(WORKLOADS[cell.trace].server()))
    except Exception as error:
        raise RuntimeError(f"{job.contender} in {cell}, seed {job.seed}: {type(error).__name__}: {error}") from error
    return Result(job, summary, time.process_time() - began_s)


def in_parallel(jobs: Sequence[Job], processes: int | None = None) -> Iterator[Result | RuntimeError]:
    """Results as they come; of a run that failed, what `run` raised: hours of others are not lost for it."""
    with _pool(processes) as pool:
        futures = [pool.submit(run, job) for job in jobs]
        try:
            for future in as_completed(futures):
                error = future.exception()
                if isinstance(error, RuntimeError):
                    yield error
                else:
                    yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def measure_knees(cells: Iterable[Cell], processes: int | None = None) -> Iterator[tuple[str, float]]:
    """The knees of `cells` that were not measured before, as they are found; they are kept."""
    wanted = {(cell.trace, cell.servers) for cell in cells}
    known = knee.known()
    missing = [
        (WORKLOADS[name], servers, knee.expected(WORKLOADS[name], servers, known))
        for name, servers in sorted(wanted)
        if knee.key(WORKLOADS[name], servers) not in known
    ]
    with _pool(processes) as pool:
        futures = {pool.submit(knee.measure, *one): one for one in missing}
        for future in as_completed(futures):
            workload, servers, _ = futures[future]
            found = {knee.key(workload, servers): future.result()}
            knee.keep(found)
            yield from found.items()


def missing_knees(cells: Iterable[Cell]) -> int:
    known = knee.known()
    return len({key for cell in cells if (key := knee_key(cell)) not in known})


def knee_key(cell: Cell) -> str:
    return knee.key(WORKLOADS[cell.trace], cell.servers)


def _pool(processes: int | None) -> ProcessPoolExecutor:
    # Spawned, not forked: a fork of a process with threads (a progress display has one) may hang.
    return ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn"))


@lru_cache(maxsize=1)
def _requests(name: str, seed: int, count: int) -> tuple[Offered, ...]:
    return tuple(taken(trace(name, seed), count, 1.0))
