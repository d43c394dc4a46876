"""Flow control as metrics: what waited, how it ended, and what waits now."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from typing import Protocol

import msgspec

from epp.observe.metrics import OTHER, Bounds, Key, Metrics, Row, new_row
from epp.observe.text import Family, Histogram, Labels, Values

WAIT_BOUNDS: Bounds = [
    *(
        0.0001,
        0.0002,
        0.0005,
        0.001,
        0.002,
        0.005,
        0.01,
        0.02,
        0.05,
        0.1,
        0.2,
        0.5,
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        30.0,
        60.0,
    )
]
CYCLE_BOUNDS: Bounds = [0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]

CONFIRMATION_BOUNDS: Bounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]

DISPATCHED = "Dispatched"
"""The label `outcome` of a request whose turn came."""

QUEUED = "NotYetFinalized"
"""The label `outcome` of a request that was taken into the queue, of the time that this took."""

PREFIXES = ("llm_d_epp_", "inference_extension_")


class Level(Protocol):
    """What waits at one priority, and what may."""

    @property
    def priority(self) -> int: ...
    @property
    def requests(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def max_requests(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...


class Now(msgspec.Struct, frozen=True):
    """Flow control at this moment: every request that waits by its labels with its bytes, the levels, and the limits of all.

    `attained`: tokens by fairness id, where an order goes by them.
    """

    waiting: list[tuple[Key, int]]
    levels: tuple[Level, ...]
    requests: int
    bytes: int
    max_requests: float
    max_bytes: float
    saturation: float
    stale_endpoints: int
    reclaim: Reclaim | None = None
    attained: Mapping[str, float] | None = None


class Reclaim(msgspec.Struct, frozen=True):
    """In saturation: what is over the ceiling of those who wait, and what those who were told to end still take up."""

    target: float
    pending: float


class FlowRecord:
    """Counts how waits end, labelled as `metrics` labels requests: names past its bounds are `other`.

    A request that need not wait counts too, with a wait of 0. It costs 0.6 µs.
    """

    def __init__(self, metrics: Metrics, pool: str, detector: str) -> None:
        self._metrics = metrics
        self._pool = pool
        self._detector = detector
        self.waits: dict[tuple[Key, str], Row] = {}
        self.enqueues: dict[tuple[str, int, str], Row] = {}
        self.cycles = new_row(CYCLE_BOUNDS)
        self.told: Counter[int] = Counter()
        self.lost = 0
        self.confirmations = new_row(CONFIRMATION_BOUNDS)

    def ended(self, key: Key, ending: str, waited_s: float) -> None:
        row = self.waits.get((key, ending))
        if row is None:
            row = self.waits.setdefault((self._metrics.labels(key), ending), new_row(WAIT_BOUNDS))
        row[bisect_left(WAIT_BOUNDS, waited_s)] += 1
        row[-1] += waited_s

    @property
    def endings(self) -> Counter[tuple[str, int]]:
        """Requests by how their wait ended and by priority."""
        counts: Counter[tuple[str, int]] = Counter()
        for (key, ending), row in self.waits.items():
            counts[ending, key[2]] += int(sum(row[:-1]))
        return counts

    def enqueued(self, key: Key, outcome: str, seconds: float) -> None:
        """It took so long to put a request into the queue, or to find that it may not wait."""
        _, _, priority, fairness_id = self._metrics.labels(key)
        row = self.enqueues.setdefault((fairness_id, priority, outcome), new_row(CYCLE_BOUNDS))
        row[bisect_left(CYCLE_BOUNDS, seconds)] += 1
        row[-1] += seconds

    def told_to_end(self, priority: int) -> None:
        """A request that ran was told to give way."""
        self.told[priority] += 1

    def confirmed(self, seconds: float) -> None:
        """It has ended, so long after it was told."""
        self.confirmations[bisect_left(CONFIRMATION_BOUNDS, seconds)] += 1
        self.confirmations[-1] += seconds

    def unconfirmed(self, count: int) -> None:
        """So many have not ended in time."""
        self.lost += count

    def cycle(self, seconds: float) -> None:
        """One round of giving up and letting go."""
        self.cycles[bisect_left(CYCLE_BOUNDS, seconds)] += 1
        self.cycles[-1] += seconds

    def families(self, look: Callable[[], Now]) -> Iterator[Family]:
        """Everything, in both vocabularies; `look` is asked once."""
        now = look()
        yield from self._waits()
        yield from self._queues(now)
        pool = self._pool
        for prefix, labels, values in (
            (PREFIXES[0], ("inference_pool", "stage"), (pool, "effective")),
            (PREFIXES[1], ("inference_pool",), (pool,)),
        ):
            text = "How full the pool is; from 1 on it takes no more."
            yield Values("gauge", f"{prefix}flow_control_pool_saturation", text, labels, [(values, now.saturation)])
        text = "Endpoints without a fresh report."
        stale: list[tuple[Labels, float]] = [((self._detector,), now.stale_endpoints)]
        yield Values("gauge", f"{PREFIXES[0]}flow_control_stale_endpoints", text, ("detector",), stale)
        yield from self._capacity(now)
        if now.reclaim is not None:
            yield from self._evictions(now.reclaim)
        if now.attained is not None:
            yield from self._programs(now.attained)

    def _programs(self, attained: Mapping[str, float]) -> Iterator[Family]:
        """A program's label is one that a flow's would be."""
        prefix, known = f"{PREFIXES[0]}program_aware_", {key[3] for key, _ in self.waits}
        tokens: dict[Labels, float] = {}
        for program, value in attained.items():
            label = (program if program in known else OTHER,)
            tokens[label] = tokens.get(label, 0.0) + value
        text = "Tokens served to a program, as much as still counts."
        yield Values("gauge", f"{prefix}attained_service_tokens", text, ("program_id",), list(tokens.items()))
        text = "Mean time that a program's requests waited for their turn, in milliseconds."
        waits: dict[Labels, list[float]] = {}
        for (key, ending), row in self.waits.items():
            if ending == DISPATCHED:
                sums = waits.setdefault((key[3],), [0.0, 0.0])
                sums[0] += row[-1]
                sums[1] += sum(row[:-1])
        means: list[tuple[Labels, float]] = [(program, 1000.0 * s / n) for program, (s, n) in waits.items()]
        yield Values("gauge", f"{prefix}avg_wait_time_milliseconds", text, ("program_id",), means)
        text = "Jain's index of the service of all programs: 1 where all had the same, 1/n where one had all."
        squares = sum(value * value for value in attained.values())
        index = sum(attained.values()) ** 2 / (len(attained) * squares) if squares else 1.0
        yield Values("gauge", f"{prefix}jains_fairness_index", text, (), [((), index)])

    def _evictions(self, reclaim: Reclaim) -> Iterator[Family]:
        prefix, pool = f"{PREFIXES[0]}flow_control_", self._pool
        text = "Requests that ran and were told to give way, by their priority."
        issued: list[tuple[Labels, float]] = [((str(priority), pool), n) for priority, n in self.told.items()]
        yield Values("counter", f"{prefix}revocations_issued_total", text, ("priority", "inference_pool"), issued)
        text = "What became of them: their end was seen, or not in time."
        ends: list[tuple[Labels, float]] = [
            (("confirmed", pool), sum(self.confirmations[:-1])),
            (("timed_out", pool), self.lost),
        ]
        yield Values("counter", f"{prefix}revocations_total", text, ("outcome", "inference_pool"), ends)
        text = "Time until the end of a request that was told to give way, in seconds."
        rows: list[tuple[Labels, Row]] = [((pool,), self.confirmations)]
        name, bounds = f"{prefix}revocation_confirmation_seconds", CONFIRMATION_BOUNDS
        yield Histogram(name, text, ("inference_pool",), rows, bounds, bounds)
        for what, text, value in (
            ("reclaim_target", "Saturation over the ceiling of the priority that waits.", reclaim.target),
            ("pending_reclaim", "Saturation taken up by requests that were told to give way.", reclaim.pending),
        ):
            yield Values("gauge", f"{prefix}{what}", text, ("inference_pool",), [((pool,), value)])

    def _waits(self) -> Iterator[Family]:
        labels = ("fairness_id", "priority", "outcome", "inference_pool", "model_name", "target_model_name")
        rows = [((*_flow(key), ending, self._pool, *key[:2]), row) for (key, ending), row in self.waits.items()]
        cycles: list[tuple[Labels, Row]] = [((), self.cycles)]
        enqueues: list[tuple[Labels, Row]] = [
            ((name, str(n), end), row) for (name, n, end), row in self.enqueues.items()
        ]
        for prefix in PREFIXES:
            name = f"{prefix}flow_control_request_enqueue_duration_seconds"
            text = "Time that it took to put a request into the queue, in seconds."
            of_a_flow = ("fairness_id", "priority", "outcome")
            yield Histogram(name, text, of_a_flow, enqueues, CYCLE_BOUNDS, CYCLE_BOUNDS)
            name = f"{prefix}flow_control_request_queue_duration_seconds"
            yield Histogram(name, "Time that requests waited, in seconds.", labels, rows, WAIT_BOUNDS, WAIT_BOUNDS)
            name = f"{prefix}flow_control_dispatch_cycle_duration_seconds"
            text = "Time of one round of dispatching, in seconds."
            yield Histogram(name, text, (), cycles, CYCLE_BOUNDS, CYCLE_BOUNDS)
        ended = [((ending, str(priority), self._pool), n) for (ending, priority), n in self.endings.items()]
        name, text = f"{PREFIXES[0]}flow_control_requests_total", "Requests by how their wait ended."
        yield Values("counter", name, text, ("outcome", "priority", "inference_pool"), ended)

    def _queues(self, now: Now) -> Iterator[Family]:
        sizes: Counter[Labels] = Counter()
        held: Counter[Labels] = Counter()
        for key, size in now.waiting:
            key = self._metrics.labels(key)
            named = (*_flow(key), self._pool, *key[:2])
            sizes[named] += 1
            held[named] += size
        labels = ("fairness_id", "priority", "inference_pool", "model_name", "target_model_name")
        for prefix in PREFIXES:
            name, text = f"{prefix}flow_control_queue_size", "Requests that wait."
            yield Values("gauge", name, text, labels, list(sizes.items()))
            name, text = f"{prefix}flow_control_queue_bytes", "Bytes of the bodies and headers of requests that wait."
            yield Values("gauge", name, text, labels, list(held.items()))

    def _capacity(self, now: Now) -> Iterator[Family]:
        prefix = f"{PREFIXES[0]}flow_control_"
        for what in ("requests", "bytes"):
            text = f"Share of a priority's capacity in {what} that is taken."
            shares = [
                ((str(level.priority), self._pool), _share(getattr(level, what), getattr(level, f"max_{what}")))
                for level in now.levels
            ]
            name = f"{prefix}capacity_utilization_{what}"
            yield Values("gauge", name, text, ("priority", "inference_pool"), shares)
            limit: float = getattr(now, f"max_{what}")
            if isfinite(limit):
                text = f"Share of the capacity in {what} of all priorities that is taken."
                share: list[tuple[Labels, float]] = [((self._pool,), _share(getattr(now, what), limit))]
                yield Values("gauge", f"{prefix}global_capacity_utilization_{what}", text, ("inference_pool",), share)


def _flow(key: Key) -> tuple[str, str]:
    return key[3], str(key[2])


def _share(taken: float, limit: float) -> float:
    return taken / limit if limit else 0.0
