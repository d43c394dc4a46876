"""More than the servers can take, through a real Envoy: what is served in which order, what is refused, and that nothing is lost.

The servers answer when the test says so, one at a time, so that twice the capacity is two arrivals for each answer on any machine.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import combinations
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.integration.conftest import LEAN, Scene

PRIORITIES = {"gold": 100, "silver": 10, "bronze": 0, "batch": -1}
TENANTS = 5
WEIGHTS = {"tenant-0": 3.0, "tenant-1": 2.0}
"""By tenant, in every band; 1 for whoever is not named."""
AT_ONCE = 2
"""Requests that all servers together take at a time."""

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: active-request-scorer}
- {type: concurrency-detector, parameters: {maxConcurrency: %d}}
- {type: weighted-token-fairness-policy, parameters: {weights: {tenant-0: 3, tenant-1: 2}}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: active-request-scorer}]}
flowControl:
  saturationDetector: {pluginRef: concurrency-detector}
  defaultRequestTTL: 0s
  maxRequests: %d
  defaultPriorityBand: {fairnessPolicyRef: weighted-token-fairness-policy}
"""

OBJECTIVE = """
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {name: %s}
spec: {priority: %d, poolRef: {name: pool}}
---
"""

WAITS = "llm_d_epp_flow_control_queue_size"
ENDED = "llm_d_epp_flow_control_requests_total"


class Sent(msgspec.Struct, eq=False):
    """A request, and what its client was told: `status` 0 until then."""

    number: int
    objective: str
    tenant: str
    text: str
    status: int = 0
    reason: str = ""
    retry_after: str = ""

    @property
    def priority(self) -> int:
        return PRIORITIES[self.objective]

    @property
    def flow(self) -> tuple[int, str]:
        return self.priority, self.tenant

    @property
    def share(self) -> float:
        """Bytes of its prompt by its tenant's weight."""
        return len(self.text) / WEIGHTS.get(self.tenant, 1.0)


class Crowd:
    """Everybody who asks, on connections of their own."""

    def __init__(self, scene: Scene, client: aiohttp.ClientSession, how: str) -> None:
        self.scene = scene
        self.sent: list[Sent] = []
        self._client = client
        self._how = how
        self._tasks: list[asyncio.Task[None]] = []

    def ask(self, objective: str, tenant: str, text: str = "hello") -> Sent:
        one = Sent(len(self.sent), objective, tenant, f"{len(self.sent)} {text}")
        self.sent.append(one)
        self._tasks.append(asyncio.ensure_future(self._ask(one)))
        return one

    async def _ask(self, one: Sent) -> None:
        headers = {
            "x-answer": self._how,
            "x-number": str(one.number),
            "x-llm-d-inference-objective": one.objective,
            "x-llm-d-inference-fairness-id": one.tenant,
        }
        body = {"model": "base", "prompt": one.text}
        url = f"http://127.0.0.1:{self.scene.port}/v1/completions"
        async with self._client.post(url, json=body, headers=headers) as answer:
            await answer.read()
            one.reason = answer.headers.get("x-llm-d-request-dropped-reason", "")
            one.retry_after = answer.headers.get("retry-after", "")
            one.status = answer.status

    async def settled(self) -> Counter[int]:
        """Once all have their answers, how many have which status."""
        await asyncio.gather(*self._tasks)
        return Counter(one.status for one in self.sent)

    def served(self) -> list[Sent]:
        """Those that reached a server, in that order for each server."""
        return [self.sent[int(got.headers["x-number"])] for origin in self.scene.origins for got in origin.received]

    def accounted(self) -> bool:
        """Whether the picker knows of all of them: they wait, or their wait has ended."""
        return self.scene.metric(WAITS) + self.scene.metric(ENDED) == len(self.sent)

    def nothing_is_left(self) -> bool:
        left = (WAITS, "llm_d_epp_request_running", "llm_d_epp_inflight_requests")
        return all(self.scene.metric(name) == 0 for name in left)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        # What is waited for happens in other processes.
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
        yield session


def started(
    scene: Scene, directory: Path, *, each: int, waiting: int, edit: Callable[[str], str] = lambda text: text
) -> Scene:
    """Its picker and its Envoy. A server takes `each` requests at a time, the queue `waiting`."""
    config = directory / "flow.yaml"
    config.write_text(edit(CONFIG % (each, waiting)))
    objectives = directory / "objectives"
    objectives.mkdir()
    (objectives / "all.yaml").write_text("".join(OBJECTIVE % item for item in PRIORITIES.items()))
    scene.start_picker(
        f"--config-file={config}", f"--resources={objectives}", "--pool-name=pool", "--look-share=0", "--seed=1"
    )
    scene.start_envoy(LEAN)
    return scene


class Model:
    """What the queue may do, by its promises alone."""

    def __init__(self) -> None:
        self.waiting: list[Sent] = []
        # By pair of flows that both wait without a break: how many more bytes of prompts by weight one was given.
        self._apart: dict[tuple[tuple[int, str], tuple[int, str]], float] = {}
        self._longest: dict[tuple[int, str], float] = {}

    def came(self, one: Sent) -> None:
        self.waiting.append(one)
        self._longest[one.flow] = max(self._longest.get(one.flow, 0.0), one.share)
        self._pair()

    def refused(self, one: Sent) -> None:
        self.waiting.remove(one)
        assert one.priority == min([one.priority, *[other.priority for other in self.waiting]]), "a lower one stayed"
        assert one.reason in ("rejected-saturated", "evicted-queue-pressure")
        assert 1 <= int(one.retry_after) <= 60
        self._pair()

    def went(self, one: Sent) -> None:
        """`one` was given to a server."""
        assert one.priority == max(other.priority for other in self.waiting), "a lower priority first"
        line = [other for other in self.waiting if other.flow == one.flow]
        assert one is line[0], "out of turn in its flow"
        self.waiting.remove(one)
        for pair in self._apart:
            if one.flow in pair:
                self._apart[pair] += one.share if one.flow == pair[0] else -one.share
                # The picker counts tokens, four bytes each, rounded.
                longest = self._longest[pair[0]] + self._longest[pair[1]]
                assert abs(self._apart[pair]) <= longest + 4 * len(self.waiting), "not its share"
        self._pair()

    def _pair(self) -> None:
        here = sorted({one.flow for one in self.waiting})
        now = {pair for pair in combinations(here, 2) if pair[0][0] == pair[1][0]}
        self._apart = {pair: self._apart.get(pair, 0) for pair in now}


async def test_four_bands_of_five_tenants_at_twice_the_capacity(
    make_scene: Callable[..., Scene], client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    steps, room = 90, 50
    scene = started(await asyncio.to_thread(make_scene, AT_ONCE), tmp_path, each=1, waiting=room)
    crowd, model, rng = Crowd(scene, client, "turn"), Model(), random.Random(5)
    flows = [(objective, f"tenant-{number}") for objective in PRIORITIES for number in range(TENANTS)]
    went: set[Sent] = set()
    refused: set[Sent] = set()

    async def arrive(count: int) -> None:
        for objective, tenant in rng.sample(flows, count):
            text = " ".join(str(rng.random()) for _ in range(rng.randrange(20, 200)))
            model.came(crowd.ask(objective, tenant, text))
        await until(crowd.accounted)
        await follow()

    async def follow() -> None:
        """Take in what has happened since."""
        for one in crowd.served():
            if one not in went:
                went.add(one)
                model.went(one)
        gone = len(crowd.sent) - len(went) - int(scene.metric(WAITS)) - len(refused)
        await until(lambda: len([one for one in crowd.sent if one.reason]) == len(refused) + gone)
        for one in sorted(crowd.sent, key=lambda one: one.priority):
            if one.reason and one not in refused:
                refused.add(one)
                model.refused(one)
        assert len(model.waiting) == scene.metric(WAITS) <= room

    async def answer() -> None:
        """One answer, and whoever takes its place."""
        count, waiting = len(went), len(model.waiting)
        busy = [origin for origin in scene.origins if origin.waits_for_turn]
        rng.choice(busy).turn()
        if waiting:
            await until(lambda: len(crowd.served()) == count + 1)
            await follow()

    for _ in range(AT_ONCE):
        one = crowd.ask("gold", "tenant-0")
        model.came(one)
        await until(lambda: len(crowd.served()) == len(crowd.sent))
        await follow()
    for _ in range(steps):
        await arrive(2)
        await answer()
    while model.waiting:
        await answer()
    for origin in scene.origins:
        origin.turn()

    statuses = await crowd.settled()
    assert statuses == {200: len(went), 429: len(refused)}
    assert len(went) + len(refused) == AT_ONCE + 2 * steps
    # Twice what can be served came. What was refused is what found no room in the queue, of which each answer empties a place.
    assert len(refused) == 2 * steps - steps - (room - 1)
    assert len(crowd.served()) == len(set(crowd.served())) == len(went)
    assert not [one for one in refused if one.priority >= 10], "half of the arrivals are all that can be served"
    await until(crowd.nothing_is_left)
    for reason, ending in (
        ("evicted-queue-pressure", "EvictedQueuePressure"),
        ("rejected-saturated", "RejectedCapacity"),
    ):
        assert scene.metric(ENDED, outcome=ending) == len([one for one in refused if one.reason == reason])
    for priority in PRIORITIES.values():
        served = len([one for one in went if one.priority == priority])
        assert scene.metric(ENDED, outcome="Dispatched", priority=str(priority)) == served


async def test_tenants_get_tokens_by_their_weight_however_long_their_prompts(
    make_scene: Callable[..., Scene], client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    scene = started(await asyncio.to_thread(make_scene, 1), tmp_path, each=1, waiting=200)
    crowd = Crowd(scene, client, "turn")
    crowd.ask("gold", "tenant-9")
    await until(lambda: len(crowd.served()) == 1)
    prompts = {"tenant-0": (20, 3000), "tenant-1": (40, 1000), "tenant-2": (40, 500)}
    for tenant, (count, size) in prompts.items():
        for _ in range(count):
            crowd.ask("bronze", tenant, "x" * size)
    await until(lambda: scene.metric(WAITS) == 100)
    order: list[Sent] = []
    while len(order) < 100:
        scene.origins[0].turn()
        await until(lambda: len(crowd.served()) == len(order) + 2)
        order.append(crowd.served()[-1])
    scene.origins[0].turn()
    assert await crowd.settled() == {200: 101}

    got = dict.fromkeys(prompts, 0.0)
    # While all of them wait: whoever is through leaves its part to the others.
    for one in order[:80]:
        got[one.tenant] += one.share
        for first, second in combinations(prompts, 2):
            longest = sum(max(sent.share for sent in order if sent.tenant == tenant) for tenant in (first, second))
            assert abs(got[first] - got[second]) <= longest, "not its share"
    counts = Counter(one.tenant for one in order[:80])
    # 48, 32 and 16 thousand bytes: three, two and one parts.
    assert [abs(counts[tenant] - ideal) <= 1 for tenant, ideal in zip(prompts, (16, 32, 32), strict=True)] == [True] * 3


async def test_a_burst_of_two_thousand(
    make_scene: Callable[..., Scene], client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    each, room, burst = 8, 1500, 2000
    scene = started(await asyncio.to_thread(make_scene, 2), tmp_path, each=each, waiting=room)
    crowd = Crowd(scene, client, "late")
    for number in range(burst):
        crowd.ask("bronze", f"tenant-{number % 20}")
    await until(crowd.accounted)
    refused = burst - room - 2 * each
    assert scene.metric(WAITS) == room
    # Whose tenant has more that wait than another's gives way to it.
    endings = [scene.metric(ENDED, outcome=ending) for ending in ("RejectedCapacity", "EvictedQueuePressure")]
    assert sum(endings) == refused
    assert scene.metric("llm_d_epp_inflight_requests") == 2 * each
    for origin in scene.origins:
        origin.release()
    assert await crowd.settled() == {200: burst - refused, 429: refused}
    assert {one.reason for one in crowd.sent} <= {"", "rejected-saturated", "evicted-queue-pressure"}
    served = crowd.served()
    assert len(served) == len(set(served)) == burst - refused
    await until(crowd.nothing_is_left)
    assert scene.metric(ENDED) == burst


async def test_one_that_fills_the_queue_shuts_out_no_other_tenant(
    make_scene: Callable[..., Scene], client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    scene = started(await asyncio.to_thread(make_scene, 1), tmp_path, each=1, waiting=40)
    crowd = Crowd(scene, client, "late")
    greedy = [crowd.ask("bronze", "greedy")]
    # A pool just begun has nobody for a moment, and refuses whom it has no place for by another name.
    await until(lambda: len(crowd.served()) == 1)
    greedy += [crowd.ask("bronze", "greedy") for _ in range(59)]
    await until(crowd.accounted)
    modest = [crowd.ask("bronze", "modest") for _ in range(15)]
    await until(crowd.accounted)
    assert scene.metric(WAITS, fairness_id="modest") == 15
    assert scene.metric(WAITS, fairness_id="greedy") == 25
    scene.origins[0].release()
    assert await crowd.settled() == {200: 41, 429: 34}
    assert {one.status for one in modest} == {200}
    assert Counter(one.reason for one in greedy) == {"": 26, "rejected-saturated": 19, "evicted-queue-pressure": 15}


async def test_a_pool_emptied_and_filled_while_requests_run_and_wait(
    make_scene: Callable[..., Scene], client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    scene = await asyncio.to_thread(make_scene, 3)
    first, second, third = scene.origins
    listed = tmp_path / "endpoints.yaml"

    def have(*origins: object) -> None:
        rows = [f"- {{name: {o.name}, address: 127.0.0.1, port: '{o.port}'}}\n" for o in scene.origins if o in origins]
        listed.write_text("endpoints:\n" + "".join(rows) if rows else "endpoints: []\n")

    def from_file(text: str) -> str:
        plugin = f"plugins:\n- {{type: file-discovery, parameters: {{path: {listed}}}}}"
        return "dataLayer: {discovery: {pluginRef: file-discovery}}\n" + text.replace("plugins:", plugin, 1)

    have(first, second)
    scene.origins = []
    started(scene, tmp_path, each=2, waiting=100, edit=from_file)
    scene.origins = [first, second, third]
    crowd = Crowd(scene, client, "late")
    for number in range(40):
        crowd.ask("bronze", f"tenant-{number % 5}")
    await until(lambda: len(crowd.served()) == 4 and crowd.accounted())
    have()
    await until(lambda: scene.metric("epp_pool_endpoints") == 0)
    first.release()
    second.release()
    await until(lambda: [one.status for one in crowd.served()] == [200] * 4)
    assert scene.metric(WAITS) == 36
    third.release()
    have(third)
    assert await crowd.settled() == {200: 40}
    assert len(third.received) == 36
    assert len(set(crowd.served())) == 40
    await until(crowd.nothing_is_left)
