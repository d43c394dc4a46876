"""Two pickers behind one Envoy, 500 requests in flight, one picker leaves: by its own will, or by SIGKILL."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from bench.processes import Process
from tests.faults.client import Client, Outcome
from tests.integration.conftest import FULL_DUPLEX, LEAN, Scene
from tests.integration.test_faults import RANKED
from tests.waiting import wait_for

IN_FLIGHT = 500
NOTICE_S = 2.0


class Pair:
    """Two pickers of one pool. `leaving` is the one that the test sends away; requests go through `port`."""

    def __init__(self, leaving: Scene, staying: Scene, source: Path) -> None:
        self.lean = source is LEAN
        staying.origins = leaving.origins
        args = [f"--config-file={RANKED}"] * self.lean
        self.origins = leaving.origins
        self.leaving = leaving.start_picker(*args, f"--drain-timeout={NOTICE_S + 120.0}s")
        staying.start_picker(*args)
        self.port = leaving.port
        self._staying = staying

        def second(config: dict[str, Any]) -> None:
            picker = next(c for c in config["static_resources"]["clusters"] if c["name"] == "picker")
            endpoints = picker["load_assignment"]["endpoints"][0]["lb_endpoints"]
            other = deepcopy(endpoints[0])
            other["endpoint"]["address"]["socket_address"]["port_value"] = staying.grpc
            endpoints.append(other)

        leaving.start_envoy(source, second)

    def picked_by_staying(self) -> float:
        return self._staying.metric("llm_d_epp_request_total")


async def in_flight_while(pair: Pair, leave: Callable[[], Awaitable[None]]) -> tuple[list[Outcome], list[Outcome]]:
    """Outcomes of 500 requests that were half sent, or without answer, or half answered when one picker left, and of those
    that were sent since, one after the other, until all were over."""
    for origin in pair.origins:
        origin.hold()
    half_sent = [Client(pair.port, pauses=True, prompt=f"{n} {'x' * 3000}") for n in range(IN_FLIGHT // 4)]
    unanswered = [Client(pair.port, how="late", prompt=f"late {n}") for n in range(IN_FLIGHT // 4)]
    half_answered = [Client(pair.port, how="hold:3", stream=True, prompt=f"hold {n}") for n in range(IN_FLIGHT // 2)]
    clients = [*half_sent, *unanswered, *half_answered]
    running = [asyncio.ensure_future(client.run(60.0)) for client in clients]
    held = len(unanswered) + len(half_answered)
    await asyncio.to_thread(wait_for, lambda: sum(len(origin.received) for origin in pair.origins) >= held)
    await asyncio.gather(*(client.begun.wait() for client in half_answered))

    over = asyncio.Event()

    async def later() -> list[Outcome]:
        seen = []
        while not over.is_set():
            seen.append(await Client(pair.port, prompt="later").run())
            await asyncio.sleep(0.01)
        return seen

    since = asyncio.ensure_future(later())
    await leave()
    for client in half_sent:
        client.go_on()
    for origin in pair.origins:
        origin.release()
    outcomes = await asyncio.gather(*running)
    over.set()
    return outcomes, await since


def spoiled(outcomes: list[Outcome]) -> list[Outcome]:
    return [outcome for outcome in outcomes if not outcome.ok]


@pytest.fixture(params=[LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def pair(request: pytest.FixtureRequest, make_scene: Callable[..., Scene]) -> Pair:
    return Pair(make_scene(3), make_scene(0), request.param)


async def test_a_picker_that_drains_loses_nothing(pair: Pair) -> None:
    async def drain() -> None:
        pair.leaving.signal(signal.SIGTERM)
        # Beyond the notice: connections have been told to go elsewhere, calls are still open.
        await asyncio.sleep(NOTICE_S + 0.5)
        assert pair.leaving.running

    outcomes, since = await in_flight_while(pair, drain)
    assert spoiled(outcomes) == []
    assert spoiled(since) == []
    assert await ended(pair.leaving) == 0


async def test_a_killed_picker_takes_at_most_what_was_inside_it(pair: Pair) -> None:
    async def kill() -> None:
        pair.leaving.kill()
        await asyncio.sleep(0.5)

    outcomes, since = await in_flight_while(pair, kill)
    assert spoiled(since) == []
    if pair.lean:
        assert spoiled(outcomes) == []
    else:
        inside = IN_FLIGHT - (pair.picked_by_staying() - len(since))
        assert 0 < len(spoiled(outcomes)) <= inside < 0.6 * IN_FLIGHT


async def ended(process: Process) -> int:
    await asyncio.to_thread(wait_for, lambda: not process.running)
    return process.child.returncode
