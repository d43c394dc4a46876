"""Runs: every configuration with every seed on the same requests, in parallel processes that tell how far they are."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, BrokenExecutor, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from typing import Protocol

import msgspec

from bench.lab.offered import TraceError
from bench.lab.picker import picker
from bench.lab.record import Record
from bench.lab.scene import Scene
from bench.lab.simulation import Simulation
from bench.lab.summary import WARM_UP, usual_slo
from bench.lab.traces import taken
from bench.replay.source import Source
from bench.replay.tally import Tally, tally
from bench.replica.profiles import Profile
from epp.configuration import load, load_default

_LOOK_S = 0.1


class ReplayError(Exception):
    """A run failed. The message names the configuration and says what happened."""


class Candidate(msgspec.Struct, frozen=True):
    """A configuration as text; `text` None is the built-in default."""

    name: str
    text: str | None


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """What every run has in common. `speed` is how many times as fast as recorded the requests come."""

    source: Source
    servers: tuple[Profile, ...]
    speed: float = 1.0
    lean: bool = False
    scrape_interval_s: float = 1.0


class Job(msgspec.Struct, frozen=True):
    setting: Setting
    candidate: Candidate
    seed: int
    counted_from_s: float


class _Counts(Protocol):
    """A shared array: requests done by each job, and in the last place whether to stop."""

    def __getitem__(self, index: int) -> int: ...
    def __setitem__(self, index: int, value: int) -> None: ...
    def __len__(self) -> int: ...


class _Stopped(Exception):
    pass


def counted_from_s(setting: Setting) -> float:
    """When the caches count as filled: as `WARM_UP` of the requests have come. Raises TraceError."""
    source = setting.source
    first = int(source.count * WARM_UP)
    at_s = next((one.at_s for number, one in enumerate(source.requests()) if number == first), 0.0)
    return at_s / setting.speed


def jobs(setting: Setting, candidates: Sequence[Candidate], seeds: int) -> list[Job]:
    """Candidate by candidate. Raises TraceError."""
    begin_s = counted_from_s(setting)
    return [Job(setting, candidate, seed, begin_s) for candidate in candidates for seed in range(seeds)]


def run(job: Job, tell: Callable[[int], None]) -> Tally:
    """`tell` hears now and then how many requests are done, and may raise. Raises ReplayError, TraceError, and what `tell` raises."""
    setting, candidate = job.setting, job.candidate
    source = setting.source
    scene = Scene(
        servers=setting.servers, lean=setting.lean, scrape_interval_s=setting.scrape_interval_s, seed=job.seed
    )
    configuration = load_default() if candidate.text is None else load(candidate.text, candidate.name)
    requests = taken(source.requests(), source.count, setting.speed)
    try:
        return tally(
            _told(Simulation(requests, scene, picker(configuration, priorities=source.priorities)).records(), tell),
            begin_s=job.counted_from_s,
            end_s=source.span_s / setting.speed,
            servers=len(setting.servers),
            long_prompt=source.long_prompt,
            slo=usual_slo(setting.servers[0]),
        )
    except (_Stopped, TraceError):
        raise
    except Exception as error:
        raise ReplayError(f"{candidate.name} failed in the replay: {type(error).__name__}: {error}") from error


def _told(records: Iterator[Record], tell: Callable[[int], None]) -> Iterator[Record]:
    for done, record in enumerate(records, 1):
        yield record
        if done % 50 == 0:
            tell(done)


def run_all(jobs: Sequence[Job], tell: Callable[[int], None], processes: int | None = None) -> list[Tally]:
    """The tally of each job. `tell` hears now and then how many requests all of them have done together.

    Raises what `run` raises, and stops the others first; so it does where `tell` raises. With one process it is this one.
    """
    most = processes or os.cpu_count() or 1
    if most == 1:
        each = jobs[0].setting.source.count
        return [_alone(job, partial(_tell_after, tell, number * each)) for number, job in enumerate(jobs)]
    # Spawned, not forked: a fork of a process with threads (a progress display has one) may hang.
    context = get_context("spawn")
    counts: _Counts = context.Array("q", len(jobs) + 1, lock=False)
    with ProcessPoolExecutor(min(most, len(jobs)), context, _begin, (counts,)) as pool:
        futures: list[Future[Tally]] = [pool.submit(_run, job, number) for number, job in enumerate(jobs)]
        try:
            waiting = set(futures)
            while waiting:
                done, waiting = wait(waiting, _LOOK_S, FIRST_EXCEPTION)
                for one in done:
                    one.result()
                tell(sum(counts[number] for number in range(len(jobs))))
        except BrokenExecutor as error:
            raise ReplayError("the process of a run died; if memory was short, --processes 1 takes less") from error
        except BaseException:
            counts[len(jobs)] = 1
            pool.shutdown(cancel_futures=True)
            raise
    return [one.result() for one in futures]


def _alone(job: Job, tell: Callable[[int], None]) -> Tally:
    """Half a gigabyte of a long run's caches lies in cycles, and would still be there when the next run's has grown."""
    try:
        return run(job, tell)
    finally:
        gc.collect()


def _tell_after(tell: Callable[[int], None], before: int, done: int) -> None:
    tell(before + done)


# Of a process of the pool: processes take no argument but by a module's names.
_counts: _Counts


def _begin(counts: _Counts) -> None:
    global _counts
    _counts = counts
    # Ctrl-C is for the parent, which tells us to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _run(job: Job, number: int) -> Tally:
    def tell(done: int) -> None:
        _counts[number] = done
        if _counts[len(_counts) - 1]:
            raise _Stopped

    return _alone(job, tell)
