"""Every trace that the lab knows by name, and any file."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from bench.lab.formats import read_file
from bench.lab.generated import GENERATED, copies
from bench.lab.offered import Offered, TraceError

DIRECTORY = Path(__file__).parent.parent / "traces"

TICK_S = 3.0
"""Between the arrival times of these traces, which come ten and twenty at a time."""

_TICKING = ("conversation", "toolagent")

FILES = {
    "conversation": "conversation.jsonl.xz",
    "toolagent": "toolagent.jsonl.xz",
    "azure-code": "azure-code.csv.xz",
}


def names() -> tuple[str, ...]:
    return (*FILES, "agents", *GENERATED)


def trace(name: str, seed: int = 0) -> Iterator[Offered]:
    """The requests of a trace known by `name`, or of the file of that name, from 0 s on.

    A recorded trace begins at a place that the seed chooses (0: at its beginning) and goes round. Raises TraceError.
    """
    if name in GENERATED:
        return GENERATED[name](seed)
    if name == "agents":
        return copies(read_file(DIRECTORY / "miniswe.jsonl.xz"), seed)
    if name in _TICKING:
        return _jittered(_turned(read_file(DIRECTORY / FILES[name]), seed), random.Random(seed))
    if name in FILES:
        return _turned(read_file(DIRECTORY / FILES[name]), seed)
    path = Path(name)
    if not path.exists():
        raise TraceError(f"there is no trace {name!r}: give a file, or one of {', '.join(names())}")
    return read_file(path)


def taken(requests: Iterable[Offered], count: int, speed: float) -> Iterator[Offered]:
    """The first `count`, coming `speed` times as fast."""
    return (msgspec.structs.replace(one, at_s=one.at_s / speed) for one in itertools.islice(requests, count))


def _turned(requests: Iterable[Offered], seed: int) -> Iterator[Offered]:
    everything = list(requests)
    first = random.Random(seed).randrange(len(everything)) if seed else 0
    length_s = everything[-1].at_s + 1.0
    begin_s = everything[first].at_s
    for one in everything[first:]:
        yield msgspec.structs.replace(one, at_s=one.at_s - begin_s)
    # From here on nothing new comes: what is asked again was asked long ago.
    for one in everything[:first]:
        yield msgspec.structs.replace(one, at_s=one.at_s + length_s - begin_s)


def _jittered(requests: Iterable[Offered], rng: random.Random) -> Iterator[Offered]:
    """Each up to `TICK_S` later, in order of time again."""
    waiting: list[tuple[float, int, Offered]] = []
    for number, one in enumerate(requests):
        while waiting and waiting[0][0] <= one.at_s:
            yield heapq.heappop(waiting)[2]
        at_s = one.at_s + rng.uniform(0.0, TICK_S)
        heapq.heappush(waiting, (at_s, number, msgspec.structs.replace(one, at_s=at_s)))
    while waiting:
        yield heapq.heappop(waiting)[2]
