"""Latency at a fixed rate, without coordinated omission: requests leave on a timetable, whatever became of those before.

    python -m bench.cost.prober PORT RATE SECONDS PROMPT_BYTES

A request's latency counts from the time at which it should have left, by the system's clock: the loop's own is good to a
millisecond. Prints milliseconds as JSON: p50, p90, p99, max.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import sys
import time
from collections import deque
from typing import cast

import numpy as np
import uvloop

from bench.cost import wire

CONNECTIONS = 64


class Client(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._received = bytearray()
        self._due_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: uvloop's transports are not asyncio's by inheritance.
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, request: bytes, due_s: float) -> None:
        self._due_s = due_s
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"content-length:")
        if at >= 0:
            if len(self._received) < end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0]):
                return
        elif not self._received.endswith(b"\r\n0\r\n\r\n"):
            # A body that ext_proc may still change comes in chunks.
            return
        if b" 200 " not in head[:16]:
            raise SystemExit(f"answered {head[:60]!r}")
        self._received.clear()
        self._probe.answered(self, self._due_s)


class Probe:
    def __init__(self, loop: asyncio.AbstractEventLoop, requests: list[bytes]) -> None:
        self._loop = loop
        self._requests = requests
        self._free: list[Client] = []
        self._late: deque[float] = deque()
        self._sent = 0
        self.latencies_s: list[float] = []

    async def connect(self, port: int) -> None:
        for _ in range(CONNECTIONS):
            _, client = await self._loop.create_connection(lambda: Client(self), "127.0.0.1", port)
            self._free.append(client)

    def due(self, due_s: float) -> None:
        self._late.append(due_s)
        self._send()

    def answered(self, client: Client, due_s: float) -> None:
        self.latencies_s.append(time.monotonic() - due_s)
        self._free.append(client)
        self._send()

    def _send(self) -> None:
        while self._late and self._free:
            self._sent += 1
            self._free.pop().ask(self._requests[self._sent % len(self._requests)], self._late.popleft())


async def _keep_time(due_s: list[float], loop: asyncio.AbstractEventLoop, probing: Probe) -> None:
    """Tell `probing` of each time as it comes.

    By a thread that sleeps: the loop's own timers are good to a millisecond, and turning until then would take a core from
    what is measured.
    """
    reading, writing = os.pipe()
    left = deque(due_s)

    def send() -> None:
        while left and left[0] <= time.monotonic():
            probing.due(left.popleft())

    def ticked() -> None:
        os.read(reading, 4096)
        send()

    def tell() -> None:
        for at_s in due_s:
            wait_s = at_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            os.write(writing, b".")

    loop.add_reader(reading, ticked)
    try:
        await loop.run_in_executor(None, tell)
        send()
    finally:
        loop.remove_reader(reading)
        os.close(reading)
        os.close(writing)


async def probe(port: int, rate: float, seconds: float, prompt_bytes: int) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    bodies = [wire.chat(prompt_bytes, number) for number in range(256)]
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    probing = Probe(loop, [head % len(body) + body for body in bodies])
    await probing.connect(port)
    rng = random.Random(5)
    due_s = [time.monotonic() + 0.1]
    while due_s[-1] < due_s[0] + seconds:
        due_s.append(due_s[-1] + rng.expovariate(rate))
    gc.freeze()
    await _keep_time(due_s, loop, probing)
    await asyncio.sleep(0.5)
    # The first tenth warms up what lies between.
    kept = np.array(probing.latencies_s[len(probing.latencies_s) // 10 :]) * 1e3
    p50, p90, p99, most = np.percentile(kept, [50, 90, 99, 100]).tolist()
    return {"requests": len(kept), "p50": p50, "p90": p90, "p99": p99, "max": most}


if __name__ == "__main__":
    port, rate, seconds, prompt_bytes = sys.argv[1:]
    print(json.dumps(uvloop.run(probe(int(port), float(rate), float(seconds), int(prompt_bytes)))))
