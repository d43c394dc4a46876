"""When a process with several pools is ready, and what is left of pools that went."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from epp.kubernetes.access import Kubeconfig
from epp.kubernetes.api import Api
from epp.kubernetes.cluster import Cluster
from epp.kubernetes.objects import policies
from epp.resources.objects import NETWORKING, POOL, InferencePool, Key
from tests.apiserver import FakeApi, a_pod
from tests.contract.test_kubernetes import PODS, short_waits, until

__all__ = ["short_waits"]


def a_pool(name: str) -> InferencePool:
    return InferencePool(key=Key(POOL, "default", name, NETWORKING), selector={"app": name}, target_ports=(8000,))


class Process:
    """What a process does with a cluster."""

    def __init__(self, kubeconfig: Path) -> None:
        self.told: list[bool] = []
        self.known: list[set[str]] = []
        self.members: dict[str, list[str]] = {}
        self.faults: list[Exception] = []
        self.cluster = Cluster(
            Api(Kubeconfig(kubeconfig), asyncio.get_running_loop().time),
            "default",
            policies(NETWORKING),
            lambda objects: None,
            lambda name, endpoints: self.members.update({name: [one.destination for one in endpoints]}),
            on_ready=self._tell,
            faults=lambda _, error: self.faults.append(error),
            rng=random.Random(1),
        )

    def _tell(self) -> None:
        self.told.append(self.cluster.ready)
        self.known.append(set(self.members))

    def pools(self, **pools: InferencePool | None) -> None:
        described: Mapping[str, InferencePool | None] = pools
        self.cluster.pools(described)


@pytest.fixture
async def server() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    await fake.start()
    fake.put(PODS, a_pod("one", "10.0.0.1"))
    yield fake
    await fake.stop()


@pytest.fixture
async def process(server: FakeApi, tmp_path: Path) -> AsyncIterator[Process]:
    one = Process(server.kubeconfig(tmp_path / "kubeconfig"))
    yield one
    await one.cluster.close()
    assert one.faults == []


async def test_a_pool_that_is_gone_for_a_moment_keeps_its_members(process: Process, server: FakeApi) -> None:
    await process.cluster.start()
    process.pools(a=a_pool("a"))
    await until(lambda: process.cluster.ready)
    asked = len(server.asked)
    process.pools(a=None)
    process.pools(a=None)
    assert process.members == {"a": ["10.0.0.1:8000"]}
    process.pools(a=a_pool("a"))
    assert process.cluster._pods["a"]._lingering is None
    assert process.cluster.ready
    assert process.members == {"a": ["10.0.0.1:8000"]}
    assert len(server.asked) == asked


async def test_ready_is_when_objects_and_pods_are_known(
    process: Process, server: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epp.kubernetes.discovery.LINGER_S", 0.01)
    process.pools(a=None)
    await process.cluster.start()
    await until(lambda: process.told)
    assert not process.cluster.ready
    process.pools(a=a_pool("a"))
    assert not process.cluster.ready
    await until(lambda: process.cluster.ready)
    assert process.members == {"a": ["10.0.0.1:8000"]}
    process.pools(a=None)
    await until(lambda: not process.cluster.ready)
    assert process.members == {"a": []}
    assert process.told[-2:] == [True, False]


async def test_at_first_the_pods_of_every_pool_are_waited_for(process: Process, server: FakeApi) -> None:
    process.pools(a=None, b=None)
    await process.cluster.start()
    await until(lambda: process.told)
    process.pools(a=a_pool("a"), b=a_pool("b"))
    await until(lambda: process.cluster.ready)
    assert process.known[process.told.index(True)] == {"a", "b"}


async def test_pods_alone_are_not_enough(process: Process, server: FakeApi) -> None:
    process.pools(a=a_pool("a"))
    await until(lambda: process.members.get("a"))
    assert not process.cluster.ready


async def test_a_pool_that_comes_later_leaves_the_others_ready(process: Process, server: FakeApi) -> None:
    await process.cluster.start()
    process.pools(a=a_pool("a"))
    await until(lambda: process.cluster.ready)
    server.refuse = 500
    process.pools(a=a_pool("a"), b=a_pool("b"))
    await until(lambda: server.asked[-1][2].get("labelSelector") == "app=b")
    assert process.cluster.ready
    server.refuse = 0
    await until(lambda: "b" in process.members)
    process.pools(b=a_pool("b"))
    assert process.members["a"] == []
    assert process.cluster.ready


async def test_nothing_is_left_of_pools_that_went(process: Process, server: FakeApi) -> None:
    await process.cluster.start()
    for number in range(5):
        process.pools(**{f"pool-{number}": a_pool(f"pool-{number}")})
        await until(lambda: process.cluster.ready)
    process.pools()
    await until(lambda: not any(pods.ending for pods in process.cluster._ending))
    process.pools()
    assert process.cluster._ending == []
