"""What flow control costs: `python -m bench.flow`. Microseconds of CPU, the median of several runs.

Neither the body's parse nor the pick is in any of it.
"""

from __future__ import annotations

import random
import statistics
import time
import tracemalloc
from collections.abc import Callable
from typing import get_args

from epp.account import Place
from epp.configuration import build, load
from epp.dispatcher import Dispatcher, Policy
from epp.endpoint import Endpoint, Endpoints, Report
from epp.flow.control import FlowControl
from epp.flow.settings import BandSettings, Fairness, FlowSettings, Holdback, Ordering, Policies
from epp.flow.ticket import Ticket
from epp.ledger import Ledger
from epp.observe.flow import FlowRecord
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import PrefixIndex
from epp.request import Request
from epp.waiting import Queue, Waits

WAITING = 10_000
TENANTS = 50
PRIORITIES = (100, 10, 0, -1)
RUNS = 7
ROUND = 1000
LIMIT = {"utilization-detector": 0, "concurrency-detector": 100, "prefill-wait-detector": 256}
"""Requests that fill an endpoint, by the detectors' defaults."""


def waiting(fairness: Fairness, ordering: Ordering, rng: random.Random, count: int = WAITING) -> FlowControl[None]:
    """A queue of `count` requests of `TENANTS` tenants in four bands."""
    band = BandSettings(max_requests=2 * WAITING, policies=Policies(fairness=fairness, ordering=ordering))
    flow: FlowControl[None] = FlowControl(FlowSettings(default=band, negative=band), 0.0)
    for number in range(count):
        flow.submit(ticket(rng), number * 1e-4)
    return flow


def ticket(rng: random.Random) -> Ticket[None]:
    return Ticket(
        None,
        priority=rng.choice(PRIORITIES),
        fairness_id=f"tenant-{rng.randrange(TENANTS)}",
        tokens=rng.randrange(1, 8000),
        held_bytes=20_000,
        slo_deadline_s=rng.random() * 60.0,
    )


def spent_us(work: Callable[[], int]) -> float:
    """CPU time of a call; `work` returns how many it made."""
    began = time.process_time()
    calls = work()
    return (time.process_time() - began) / calls * 1e6


def per_call_us(work: Callable[[], int]) -> float:
    return statistics.median([spent_us(work) for _ in range(RUNS)])


def turnover_us(fairness: Fairness, ordering: Ordering) -> tuple[float, float]:
    """Of one that leaves, and of one that comes, with `WAITING` in the queue, give or take 500."""
    rng = random.Random(7)
    flow = waiting(fairness, ordering, rng)
    newcomers = [ticket(rng) for _ in range(2 * RUNS * ROUND)]

    def leave() -> int:
        for _ in range(ROUND):
            flow.expire(1.0)
            flow.next(0.5, 1.0)
        return ROUND

    def come() -> int:
        for _ in range(ROUND):
            flow.submit(newcomers.pop(), 1.0)
        return ROUND

    left, came = zip(*[(spent_us(leave), spent_us(come)) for _ in range(RUNS)], strict=True)
    return statistics.median(left), statistics.median(came)


def passing_us(settings: FlowSettings, waits_below: bool) -> float:
    flow: FlowControl[None] = FlowControl(settings, 0.0)
    for priority in PRIORITIES:
        flow.passes(priority, 0.0, 0.0)
    if waits_below:
        flow.submit(Ticket(None, priority=PRIORITIES[-1]), 0.0)

    def work() -> int:
        for _ in range(20_000):
            flow.passes(100, 0.5, 1.0)
        return 20_000

    return per_call_us(work)


def waits_of(detector: str, endpoints: int, saturation: float) -> Waits:
    """With a pool that is about so full, and a queue in which nobody waits."""
    text = (
        "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
        f"plugins: [{{type: {detector}}}]\nsaturationDetector: {{pluginRef: {detector}}}\n"
    )
    rng = random.Random(7)
    columns = Endpoints()
    columns.replace(
        [Endpoint(name=f"pod-{n}", address=f"10.0.{n // 250}.{n % 250}", port=80) for n in range(endpoints)]
    )
    ledger = Ledger(columns)
    for slot in columns.slots.tolist():
        columns.report(slot, Report(waiting=5 * saturation, running=1.0, kv_usage=0.1), 0.0)
        for _ in range(round(LIMIT[detector] * saturation)):
            ledger.first_token(ledger.take(slot, 0, 0.0, sees_body=True), 0.0)
    metrics = Metrics()
    control: FlowControl[Place] = FlowControl(FlowSettings(), 0.0)
    queue = Queue(control, FlowRecord(metrics, "pool", detector), lambda: None)
    dispatcher = Dispatcher(
        endpoints=columns,
        pipeline=build(load(text, "bench"), rng, PluginFaults(print)),
        ledger=ledger,
        index=PrefixIndex(),
        metrics=metrics,
        estimator=TokenEstimator(),
        policy=Policy(),
        rng=rng,
        timer=time.perf_counter,
        faults=print,
        picks=PickLog(),
        queue=queue,
    )
    assert dispatcher._waits is not None
    return dispatcher._waits


def added_us(detector: str, endpoints: int, saturation: float) -> float:
    """To a request that need not wait, at the dispatcher: saturation, the question, the count."""
    waits = waits_of(detector, endpoints, saturation)
    request = Request(request_id="1", path="/v1/completions", model="base", target_model="base", headers={})

    def work() -> int:
        for _ in range(5000):
            assert waits._passes(request, 0.0)
        return 5000

    return per_call_us(work)


def look_us(detector: str, endpoints: int) -> float:
    """Of a look at how full the pool is: one before each turn."""
    waits = waits_of(detector, endpoints, 1.0)

    def work() -> int:
        for _ in range(5000):
            waits._saturation(0.0)
        return 5000

    return per_call_us(work)


def cancel_us() -> float:
    rng = random.Random(7)
    flow = waiting("weighted-tokens", "shortest-prompt", rng, 2 * WAITING)
    all_of_them = [each for band in flow._bands.values() for each in band.tickets]
    rng.shuffle(all_of_them)

    def work() -> int:
        for _ in range(1000):
            flow.cancel(all_of_them.pop(), 1.0)
        return 1000

    return per_call_us(work)


def bytes_per_ticket() -> float:
    tracemalloc.start()
    flow = waiting("weighted-tokens", "shortest-prompt", random.Random(7))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held / flow.requests


def main() -> None:
    print(f"a request that need not wait        {passing_us(FlowSettings(), False):6.2f} µs")
    print(f"  while lower priorities wait       {passing_us(FlowSettings(), True):6.2f} µs")
    print(f"  with priority-holdback            {passing_us(FlowSettings(limit=Holdback(0.5)), False):6.2f} µs")
    print("what it adds to such a request, the detector's work included")
    for endpoints in (8, 1000):
        for detector in LIMIT:
            idle, half, nearly = [added_us(detector, endpoints, saturation) for saturation in (0.0, 0.6, 0.95)]
            how_full = f"idle {idle:6.2f} µs, 60 % full {half:6.2f} µs, 95 % full {nearly:6.2f} µs"
            print(f"  {endpoints:5,} endpoints {detector:24} {how_full}")
    for detector in LIMIT:
        few, many = look_us(detector, 8), look_us(detector, 1000)
        print(f"before each turn: {detector:22} {few:6.2f} µs at 8 endpoints, {many:6.2f} µs at 1,000")
    print(f"\n{WAITING:,} waiting, {TENANTS} tenants, {len(PRIORITIES)} bands: one leaves, one comes")
    for fairness in get_args(Fairness):
        for ordering in get_args(Ordering):
            left, came = turnover_us(fairness, ordering)
            print(f"  {fairness:16} {ordering:16} {left:6.2f} {came:6.2f} µs")
    print(f"one of {2 * WAITING:,} cancelled             {cancel_us():6.2f} µs")
    print(f"memory of one that waits, without its body: {bytes_per_ticket():.0f} bytes")


if __name__ == "__main__":
    main()
