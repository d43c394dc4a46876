"""The picker's request path without sockets and without Envoy: the same bytes every time, and a fake transport.

    python -m bench.cost.inside [--endpoints N] [--prompt-bytes N] [--lean] [--traced] [--events N] [--profile] [--parts]

Prints microseconds per request, the least of several rounds; with `--profile` also where they go, by cProfile, and with `--parts` by a
clock around the doors of each part, which sees calls into C as well. The tests count work with it: calls, bytes, writes.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import pstats
import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, cast

import hpack

from bench.cost import wire
from epp import dispatcher
from epp.account import Account
from epp.configuration import build, load_default
from epp.dispatcher import Dispatcher, Policy
from epp.drops import Drop
from epp.endpoint import NO_ADAPTERS, Endpoint, Endpoints, Report
from epp.extproc import session
from epp.extproc.codec import Undecodable
from epp.extproc.events import BodyMode, Modes
from epp.extproc.exchange import Exchange
from epp.extproc.http2 import Connection
from epp.extproc.server import Http2Server, _Link
from epp.extproc.session import open_session
from epp.flow.control import FlowControl
from epp.flow.evictions import Evictions
from epp.flow.settings import FlowSettings
from epp.ledger import Ledger
from epp.observe.flow import FlowRecord
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pipeline import Pipeline, PluginFaults
from epp.prefix.index import PrefixIndex
from epp.resources.objects import EXPERIMENTAL, MODEL, InferenceModel, Key, PoolRef
from epp.resources.rules import Selection
from epp.resources.store import InForce, Source, Store
from epp.waiting import Queue

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
ANSWER = b'{"id":"1","model":"base","choices":[{"message":{"content":"ok"}}],"usage":{"prompt_tokens":600,"completion_tokens":1}}'
EVENT = b'data: {"id":"1","model":"base","choices":[{"delta":{"content":"token "}}]}\n\n'


class Wire:
    """A transport that keeps what is written to it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        raise AssertionError("nothing here is slow to read")

    resume_reading = can_write_eof = close = abort = pause_reading


class Refusing:
    """Nothing that counts as an incident may happen while cost is measured."""

    def undecodable(self, error: Undecodable) -> None:
        raise error

    def fault(self, error: Exception) -> None:
        raise error

    def refused(self, drop: Drop) -> None:
        raise drop


def _fail(kind: str, error: Exception) -> None:
    raise error


def endpoints(count: int, now_s: float) -> Endpoints:
    """`count` endpoints that have all reported just now, none alike."""
    pool = Endpoints(stale_after_s=1e9)
    pool.replace([Endpoint(name=f"server-{n}", address=f"10.0.{n >> 8}.{n & 255}", port=8000) for n in range(count)])
    rng = random.Random(7)
    for slot in pool.slots.tolist():
        report = Report(
            waiting=float(rng.randrange(4)),
            running=float(rng.randrange(8)),
            kv_usage=rng.random(),
            adapters=NO_ADAPTERS,
        )
        pool.report(slot, report, now_s)
    # What they tell of is nobody's, and the picker alone.
    pool.shared = False
    return pool


def _sheddable() -> InForce:
    """An object by which what asks for `wire.chat`'s model has priority -1."""
    store = Store(Selection(("pool",)), "default")
    model = InferenceModel(
        key=Key(MODEL, "default", "base", EXPERIMENTAL), pool_ref=PoolRef("pool"), model_name="base", priority=-1
    )
    store.replace(Source.DIRECTORY, [model])
    return store.of("pool")


class Inside:
    """One connection into a picker with the default policy. Must be made in a running loop. `traced` calls have each an id.

    With `sheddable` an object gives every request priority -1; with `evicts_running` as well, flow control may end it.
    """

    def __init__(
        self,
        *,
        endpoint_count: int = 8,
        lean: bool = False,
        traced: bool = False,
        flow_control: bool = False,
        sheddable: bool = False,
        evicts_running: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rng = random.Random(1)
        self.metrics = Metrics()
        self.endpoints = endpoints(endpoint_count, clock())
        self.index = PrefixIndex()
        picks = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(load_default(), rng, PluginFaults(lambda line: None, lambda name, kind: None)),
            ledger=Ledger(self.endpoints),
            index=self.index,
            metrics=self.metrics,
            estimator=TokenEstimator(),
            policy=Policy(look_share=0.0),
            rng=rng,
            timer=time.perf_counter,
            faults=_fail,
            picks=PickLog(),
            queue=self._queue(Evictions(0.0) if evicts_running else None) if flow_control else None,
            resources=_sheddable() if sheddable else None,
        )
        modes = Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
        self.server = Http2Server({PROCESS: open_session(picks, clock, modes, Refusing())})
        self.wire = Wire()
        self.lean = lean
        self.traced = traced
        self._encoder = hpack.Encoder()
        self._link = _Link(self.server, asyncio.get_running_loop())
        self._link.connection_made(cast(asyncio.Transport, self.wire))
        self._link.data_received(wire.greeting())
        self.wire.writes.clear()
        self._next = 1

    def _queue(self, evictions: Evictions[Account] | None) -> Queue:
        record = FlowRecord(self.metrics, "pool", "utilization-detector")
        return Queue(FlowControl(FlowSettings(), 0.0), record, lambda: None, evictions)

    def close(self) -> None:
        self._link.connection_lost(None)

    def reads(self, body: bytes, events: int = 0) -> list[bytes]:
        """What the next request's reads from the socket will be, in order. Stream numbers are used up."""
        stream_id, self._next = self._next, self._next + 2
        request_id = f"bd96b535-3ce7-49c4-8106-{stream_id:012x}"
        call = wire.call(self._encoder, f"00-{stream_id:032x}-{stream_id:016x}-01" if self.traced else "")
        start = wire.request_start(call, stream_id, request_id, len(body), wire.LEAN if self.lean else wire.FULL_DUPLEX)
        answer = wire.response_start(stream_id, "text/event-stream" if events else "application/json")
        if self.lean:
            return [start + wire.whole_request_body(stream_id, body), answer, wire.done(stream_id)]
        pieces = list(wire.request_body(stream_id, body))
        reads = [start + pieces[0], *pieces[1:-2], b"".join(pieces[1:][-2:])]
        if events:
            reads.append(answer)
            reads += [wire.response_body(stream_id, EVENT, number == events - 1) for number in range(events)]
        else:
            reads.append(answer + wire.response_body(stream_id, ANSWER, True))
        return [*reads, wire.done(stream_id)]

    def returned(self) -> None:
        """Envoy has read everything: the credit is back."""
        self._link.data_received(wire.more_room(sum(map(len, self.wire.writes)) or 1))
        self.wire.writes.clear()

    def feed(self, reads: list[bytes]) -> None:
        for data in reads:
            self._link.data_received(data)


def measure(inside: Inside, bodies: list[bytes], events: int, rounds: int) -> float:
    """Microseconds per request, the least of `rounds`."""
    best = float("inf")
    for _ in range(rounds):
        batch = [inside.reads(body, events) for body in bodies]
        began = time.process_time()
        for reads in batch:
            inside.feed(reads)
        best = min(best, time.process_time() - began)
        inside.returned()
    return best / len(bodies) * 1e6


def _doors() -> dict[str, tuple[tuple[object, str], ...]]:
    """Where each part of the program is entered; no part enters another."""
    return {
        "HTTP/2 and gRPC framing": ((Connection, "receive"), (Connection, "send"), (_Link, "_flush")),
        "protobuf": ((session, "decode_usual"), (session, "encode")),
        "exchange": ((Exchange, "receive"),),
        "reading the body, fingerprints": ((dispatcher, "parse"), (dispatcher, "fingerprints")),
        "scoring and picking": ((Pipeline, "pick"),),
        "prefix index": ((PrefixIndex, "holdings"), (PrefixIndex, "record")),
        "ledger": ((Ledger, "take"), (Ledger, "release"), (Ledger, "advance"), (Ledger, "first_token")),
        "usage": ((dispatcher, "usage"),),
        "metrics": tuple(
            (Metrics, name) for name in ("decided", "picked", "prefix_match", "staged", "first_token", "finished")
        ),
    }


def parts(inside: Inside, bodies: list[bytes], events: int) -> dict[str, float]:
    """Microseconds per request in each part, and in all. Of each door's calls the slowest twentieth does not count."""
    doors = {"all": ((_Link, "data_received"),), **_doors()}
    taken: dict[str, dict[str, list[float]]] = {part: {} for part in doors}
    originals = [(owner, name, getattr(owner, name)) for of_part in doors.values() for owner, name in of_part]
    for part, of_part in doors.items():
        for owner, name in of_part:
            setattr(owner, name, _timed(getattr(owner, name), taken[part].setdefault(name, [])))
    try:
        for _ in range(5):
            batch = [inside.reads(body, events) for body in bodies]
            for reads in batch:
                inside.feed(reads)
            inside.returned()
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    requests = 5 * len(bodies)
    return {
        part: sum(statistics.mean(sorted(one)[: int(len(one) * 0.95)]) * len(one) for one in of_part.values() if one)
        / requests
        * 1e6
        for part, of_part in taken.items()
    }


def _timed(function: Callable[..., Any], taken: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = function(*args, **named)
        taken.append(time.perf_counter() - began)
        return result

    return timed


async def _main(args: argparse.Namespace) -> None:
    inside = Inside(endpoint_count=args.endpoints, lean=args.lean, traced=args.traced)
    count = 400 if args.prompt_bytes < 50_000 else 40
    bodies = [wire.chat(args.prompt_bytes, number, stream=args.events > 0) for number in range(count)]
    measure(inside, bodies, args.events, 2)
    print(f"{measure(inside, bodies, args.events, args.rounds):.1f} µs per request")
    if args.parts:
        found = parts(inside, bodies, args.events)
        everything = found.pop("all")
        for part, us in sorted(found.items(), key=lambda one: -one[1]):
            print(f"{part:<32} {us:6.1f} µs")
        print(f"{'session, dispatcher, the rest':<32} {everything - sum(found.values()):6.1f} µs")
    if args.profile:
        batch = [inside.reads(body, args.events) for body in bodies]
        profile = cProfile.Profile()
        profile.enable()
        for reads in batch:
            inside.feed(reads)
        profile.disable()
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)
    inside.close()


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.cost.inside", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--endpoints", type=int, default=8)
    parser.add_argument("--prompt-bytes", type=int, default=2400)
    parser.add_argument("--lean", action="store_true")
    parser.add_argument("--traced", action="store_true")
    parser.add_argument("--events", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--parts", action="store_true")
    asyncio.run(_main(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
