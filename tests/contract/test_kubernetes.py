"""Pods and objects followed over real HTTP, through everything that goes wrong between a client and an API server."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from epp.endpoint import Endpoint
from epp.kubernetes.access import Kubeconfig
from epp.kubernetes.api import Api
from epp.kubernetes.discovery import PodDiscovery
from epp.kubernetes.objects import ObjectSource, policies, routing
from epp.resources.objects import EXPERIMENTAL, LLM_D, NETWORKING, InferencePool, Resource
from tests.apiserver import FakeApi, Object, a_pod
from tests.waiting import PATIENCE_S

PODS = "/api/v1/namespaces/default/pods"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/default/inferencepools"
OLD_POOLS = "/apis/inference.networking.x-k8s.io/v1alpha1/namespaces/default/inferencepools"

POOL = {
    "apiVersion": "inference.networking.k8s.io/v1",
    "kind": "InferencePool",
    "metadata": {"name": "llama", "namespace": "default"},
    "spec": {"selector": {"matchLabels": {"app": "vllm"}}, "targetPorts": [{"number": 8000}]},
}
OLD_POOL = {
    "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
    "kind": "InferencePool",
    "metadata": {"name": "old", "namespace": "default"},
    "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 9000},
}


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.005)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("FIRST_DELAY_S", 0.05), ("MOST_DELAY_S", 0.2), ("ABSENT_S", 0.1)):
        monkeypatch.setattr(f"epp.kubernetes.reflector.{name}", seconds)


@pytest.fixture
async def server() -> AsyncIterator[FakeApi]:
    fake = FakeApi()
    await fake.start()
    fake.install(PODS)
    yield fake
    await fake.stop()


class Followed:
    """A discovery and all that it said."""

    def __init__(self, server: FakeApi, kubeconfig: Path) -> None:
        self.faults: list[Exception] = []
        self.said: list[Sequence[Endpoint]] = []
        self.api = Api(Kubeconfig(kubeconfig), asyncio.get_running_loop().time)
        self.pods = PodDiscovery(
            self.api,
            "default",
            self.said.append,
            faults=lambda _, error: self.faults.append(error),
            rng=random.Random(1),
        )

    @property
    def now(self) -> list[str]:
        return sorted(one.destination for one in self.said[-1]) if self.said else []


@pytest.fixture
async def followed(server: FakeApi, tmp_path: Path) -> AsyncIterator[Followed]:
    one = Followed(server, server.kubeconfig(tmp_path / "kubeconfig"))
    yield one
    await one.pods.close()
    assert one.faults == []


async def test_pods_come_go_and_terminate(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now == ["10.0.0.1:8000"])
    assert followed.pods.synced
    server.put(PODS, a_pod("b", "10.0.0.2", ready=False))
    server.put(PODS, a_pod("b", "10.0.0.2"))
    await until(lambda: followed.now == ["10.0.0.1:8000", "10.0.0.2:8000"])
    server.put(PODS, a_pod("a", "10.0.0.1", deletionTimestamp="2026-01-01T00:00:00Z"))
    await until(lambda: followed.now == ["10.0.0.2:8000"])
    server.put(PODS, a_pod("b", "10.0.0.9"))
    await until(lambda: followed.now == ["10.0.0.9:8000"])
    server.delete(PODS, "b")
    await until(lambda: followed.now == [])
    assert {parameters["labelSelector"] for _, _, parameters in server.asked} == {"app=vllm"}


async def test_a_list_of_many_pages_is_one_membership(server: FakeApi, followed: Followed) -> None:
    for number in range(250):
        server.put(PODS, a_pod(f"p{number:03}", f"10.0.1.{number}"))
    followed.pods.aim("app=vllm", (8000, 8001))
    await until(lambda: followed.said)
    assert [len(said) for said in followed.said] == [500]


async def test_other_ports_count_at_once_and_another_selector_when_its_pods_are_known(
    server: FakeApi, followed: Followed
) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now)
    followed.pods.aim("app=vllm", (9000, 9001))
    assert followed.now == ["10.0.0.1:9000", "10.0.0.1:9001"]
    server.refuse = 500
    followed.pods.aim("app=sglang", (9000,))
    await until(lambda: server.asked[-1][2]["labelSelector"] == "app=sglang")
    assert followed.now == ["10.0.0.1:9000", "10.0.0.1:9001"]
    server.refuse = 0
    await until(lambda: followed.now == ["10.0.0.1:9000"])


async def test_nobody_is_ever_picked_from_two_selectors_at_once(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1", labels={"app": "vllm"}))
    server.put(PODS, a_pod("b", "10.0.0.2", labels={"app": "sglang"}))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now == ["10.0.0.1:8000"])
    followed.pods.aim("app=sglang", (8000,))
    followed.pods.aim("app=sglang", (9000,))
    await until(lambda: followed.now == ["10.0.0.2:9000"])
    assert [len(said) for said in followed.said] == [1, 1]


async def test_without_a_pool_there_is_nobody_and_a_new_one_begins_anew(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now)
    followed.pods.clear()
    assert followed.now == []
    assert not followed.pods.synced
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now)
    assert followed.pods.synced


async def test_a_lost_server_is_said_once_keeps_everybody_and_is_caught_up_with(
    server: FakeApi, followed: Followed, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "epp.kubernetes")
    server.put(PODS, a_pod("a", "10.0.0.1"))
    server.put(PODS, a_pod("b", "10.0.0.2"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: len(followed.now) == 2)
    await server.stop()
    await until(lambda: "does not answer" in caplog.text)
    await asyncio.sleep(1.2)
    assert len(followed.now) == 2
    server.delete(PODS, "a")
    server.compact()
    await server.start()
    await until(lambda: followed.now == ["10.0.0.2:8000"])
    assert caplog.text.count("does not answer") == 1
    assert caplog.text.count("answers again") == 1


async def test_a_watch_cut_again_and_again_goes_on_where_it_was(server: FakeApi, followed: Followed) -> None:
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    for ip in ("10.0.0.1", "10.0.0.2", "10.0.0.3"):
        server.put(PODS, a_pod(ip, ip))
        await until(partial(lambda ip: f"{ip}:8000" in followed.now, ip))
        await server.cut()
    await until(lambda: server.watches == 1)
    assert [parameters for _, _, parameters in server.asked if "watch" not in parameters] == [
        {"limit": "100", "labelSelector": "app=vllm"}
    ]


async def test_an_event_that_is_cut_in_the_middle_comes_again_whole(server: FakeApi, followed: Followed) -> None:
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    server.half = True
    server.put(PODS, a_pod("a", "10.0.0.1"))
    await until(lambda: followed.now == ["10.0.0.1:8000"])
    assert sum("watch" not in parameters for _, _, parameters in server.asked) == 1


async def test_pages_and_watch_share_one_connection(server: FakeApi, followed: Followed) -> None:
    for number in range(250):
        server.put(PODS, a_pod(f"p{number:03}", f"10.0.1.{number}"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    assert (len(server.asked), server.connections) == (4, 1)


async def test_a_change_that_changes_no_endpoint_is_handed_to_nobody(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    for number in range(50):
        server.put(PODS, a_pod("a", "10.0.0.1", annotations={"beat": str(number)}))
    server.put(PODS, a_pod("b", "10.0.0.2"))
    await until(lambda: len(followed.now) == 2)
    assert len(followed.said) == 2


async def test_what_a_listener_failed_over_is_offered_again(server: FakeApi, tmp_path: Path) -> None:
    faults: list[Exception] = []
    taken: list[int] = []

    def take(endpoints: Sequence[Endpoint]) -> None:
        if not faults:
            raise RuntimeError("a bug")
        taken.append(len(endpoints))

    api = Api(Kubeconfig(server.kubeconfig(tmp_path / "kubeconfig")), asyncio.get_running_loop().time)
    pods = PodDiscovery(api, "default", take, faults=lambda _, error: faults.append(error), rng=random.Random(1))
    server.put(PODS, a_pod("a", "10.0.0.1"))
    pods.aim("app=vllm", (8000,))
    await until(lambda: taken == [1])
    await pods.close()
    assert [str(fault) for fault in faults] == ["a bug"]


async def test_a_connection_that_is_old_is_not_asked_again(
    server: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    api = Api(Kubeconfig(server.kubeconfig(tmp_path / "kubeconfig", tokenFile=str(token))), lambda: 0.0)
    connection = api.connection()
    for text, age_s in (("first", 300.0), ("second", 300.0), ("third", -1.0)):
        monkeypatch.setattr("epp.kubernetes.api.MAX_AGE_S", age_s)
        token.write_text(text)
        await connection.ask(PODS)
    connection.close()
    assert server.tokens_seen == ["first", "first", "third"]


class Scripted:
    """A connection whose watch brings `reads`, one after the other; `before` notes how many endpoints there were at each read."""

    def __init__(self, said: list[Sequence[Endpoint]], *reads: list[Object]) -> None:
        self.said = said
        self.reads = [[json.dumps(event).encode() for event in read] for read in reads]
        self.before: list[int] = []
        self.lists = 0

    async def ask(self, path: str, parameters: object) -> bytes:
        self.lists += 1
        pod = a_pod("a", "10.0.0.1", resourceVersion="1")
        return json.dumps({"metadata": {"resourceVersion": "1"}, "items": [pod]}).encode()

    async def watch(self, path: str, parameters: object) -> None: ...

    async def lines(self, timeout_s: float) -> list[bytes]:
        self.before.append(len(self.said[-1]))
        if not self.reads:
            await asyncio.Event().wait()
        return self.reads.pop(0)

    def close(self) -> None: ...


async def scripted(monkeypatch: pytest.MonkeyPatch, *reads: list[Object]) -> Scripted:
    """What came of `reads`."""
    connection = Scripted([], *reads)
    monkeypatch.setattr(Api, "connection", lambda api: connection)
    api = Api(Kubeconfig(Path("none")), asyncio.get_running_loop().time)
    pods = PodDiscovery(api, "default", connection.said.append, faults=lambda _, error: None, rng=random.Random(1))
    pods.aim("app=vllm", (8000,))
    await until(lambda: len(connection.before) > len(reads))
    await pods.close()
    return connection


async def test_what_an_event_says_counts_before_anything_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that is told to end is no endpoint any more by the time the watch is read again: no request comes in between."""
    ending = a_pod("a", "10.0.0.1", resourceVersion="2", deletionTimestamp="2026-01-01T00:00:00Z")
    connection = await scripted(monkeypatch, [{"type": "MODIFIED", "object": ending}])
    assert connection.before == [1, 0]


async def test_what_came_before_an_error_in_one_read_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    another = a_pod("b", "10.0.0.2", resourceVersion="2")
    error = {"type": "ERROR", "object": {"code": 410, "message": "gone"}}
    connection = await scripted(monkeypatch, [{"type": "ADDED", "object": another}, error])
    assert connection.lists == 2
    # The second list lacks it again: it was there in between.
    assert [len(said) for said in connection.said] == [1, 2, 1]


async def test_history_that_is_gone_is_made_up_for_by_a_list(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    await server.cut()
    server.delete(PODS, "a")
    server.put(PODS, a_pod("b", "10.0.0.2"))
    server.compact()
    await until(lambda: followed.now == ["10.0.0.2:8000"])


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 503])
async def test_no_refusal_empties_anything(server: FakeApi, followed: Followed, status: int) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    server.refuse = status
    seen = len(server.asked)
    await server.cut()
    await until(lambda: len(server.asked) > seen)
    await asyncio.sleep(0.05)
    assert followed.now == ["10.0.0.1:8000"]


@pytest.mark.parametrize(
    "garbage", [b"<html>", b"{}", b'{"items": 7, "metadata": {}}', b'{"metadata": {}, "items": []}']
)
async def test_an_answer_that_is_none_empties_nothing(server: FakeApi, followed: Followed, garbage: bytes) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.watches == 1)
    server.compact()
    server.garbage = garbage
    seen = len(server.asked)
    await server.cut()
    await until(lambda: len(server.asked) >= seen + 3)
    assert "watch" not in server.asked[-1][2]
    assert followed.now == ["10.0.0.1:8000"]
    server.garbage = b""
    server.put(PODS, a_pod("b", "10.0.0.2"))
    await until(lambda: len(followed.now) == 2)


async def test_a_rotated_token_is_read_from_its_file(server: FakeApi, tmp_path: Path, followed: Followed) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    server.kubeconfig(tmp_path / "kubeconfig", tokenFile=str(token))
    server.tokens = {"first"}
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now)
    server.tokens = {"second"}
    token.write_text("second\n")
    await server.cut()
    server.put(PODS, a_pod("b", "10.0.0.2"))
    await until(lambda: len(followed.now) == 2)
    assert set(server.tokens_seen) == {"first", "second"}


async def test_a_token_refused_while_the_connection_lives_is_read_anew(
    server: FakeApi, tmp_path: Path, followed: Followed
) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    server.kubeconfig(tmp_path / "kubeconfig", tokenFile=str(token))
    server.tokens = {"other"}
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: server.asked)
    token.write_text("other")
    await until(lambda: followed.pods.synced)


async def test_a_pod_that_is_not_understood_stays_what_it_was(server: FakeApi, followed: Followed) -> None:
    server.put(PODS, a_pod("a", "10.0.0.1"))
    followed.pods.aim("app=vllm", (8000,))
    await until(lambda: followed.now)
    server.put(PODS, {"metadata": {"name": "a"}, "status": {"podIP": 7}})
    server.put(PODS, a_pod("b", "10.0.0.2"))
    await until(lambda: followed.now == ["10.0.0.1:8000", "10.0.0.2:8000"])


class Objects:
    def __init__(self, server: FakeApi, kubeconfig: Path) -> None:
        self.faults: list[Exception] = []
        self.now: Sequence[Resource] = ()
        self.source = ObjectSource(
            Api(Kubeconfig(kubeconfig), asyncio.get_running_loop().time),
            "default",
            (*policies(), *routing()),
            self.take,
            faults=lambda _, error: self.faults.append(error),
            rng=random.Random(1),
        )

    def take(self, objects: Sequence[Resource]) -> None:
        self.now = objects

    @property
    def names(self) -> list[str]:
        # As a store has them, by key: the server takes no notice of selectors.
        return sorted({one.key.name for one in self.now})


@pytest.fixture
async def objects(server: FakeApi, tmp_path: Path) -> AsyncIterator[Objects]:
    one = Objects(server, server.kubeconfig(tmp_path / "kubeconfig"))
    yield one
    await one.source.close()
    assert one.faults == []


async def test_types_that_are_not_installed_are_settled_and_noticed_when_they_are(
    server: FakeApi, objects: Objects
) -> None:
    objects.source.start()
    await until(lambda: objects.source.settled)
    assert objects.names == []
    server.put(POOLS, POOL)
    await until(lambda: objects.names == ["llama"])
    server.put(OLD_POOLS, OLD_POOL)
    await until(lambda: objects.names == ["llama", "old"])
    pool = next(one for one in objects.now if one.key.name == "old")
    assert isinstance(pool, InferencePool)
    assert (pool.selector, pool.target_ports) == ({"app": "vllm"}, (9000,))
    server.delete(POOLS, "llama")
    await until(lambda: objects.names == ["old"])


async def test_an_old_version_alone_is_found_without_a_wait(
    server: FakeApi, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epp.kubernetes.reflector.ABSENT_S", 1000.0)
    server.put(OLD_POOLS, OLD_POOL)
    objects.source.start()
    await until(lambda: objects.source.settled)
    assert objects.names == ["old"]


async def test_the_best_version_that_is_served_is_watched_alone(server: FakeApi, objects: Objects) -> None:
    better = OLD_POOLS.replace("v1alpha1", "v1alpha2")
    server.install(better)
    server.put(OLD_POOLS, OLD_POOL)
    server.put(better, {**OLD_POOL, "apiVersion": "inference.networking.x-k8s.io/v1alpha2"})
    objects.source.start()
    await until(lambda: objects.source.settled and objects.names == ["old"])
    assert not any(path == OLD_POOLS for _, path, _ in server.asked)


async def test_types_that_may_not_be_read_are_settled(server: FakeApi, objects: Objects) -> None:
    server.refuse = 403
    objects.source.start()
    await until(lambda: objects.source.settled)


async def test_an_object_that_is_refused_stays_what_it_was(server: FakeApi, objects: Objects) -> None:
    server.put(POOLS, POOL)
    objects.source.start()
    await until(lambda: objects.names == ["llama"])
    server.put(POOLS, {**POOL, "spec": {"selector": {"matchLabels": {"app": "other"}}, "targetPorts": []}})
    server.put(POOLS, {**POOL, "metadata": {"name": "qwen", "namespace": "default"}})
    await until(lambda: objects.names == ["llama", "qwen"])
    kept = next(one for one in objects.now if one.key.name == "llama")
    assert isinstance(kept, InferencePool)
    assert kept.selector == {"app": "vllm"}


ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/default/httproutes"
CONFIG_MAPS = "/api/v1/namespaces/default/configmaps"


async def test_routes_and_marked_config_maps_are_followed(server: FakeApi, objects: Objects) -> None:
    route = {
        "metadata": {"name": "chat", "namespace": "default"},
        "spec": {"rules": [{"backendRefs": [{"group": NETWORKING, "kind": "InferencePool", "name": "llama"}]}]},
    }
    server.put(ROUTES, route)
    server.put(
        CONFIG_MAPS,
        {
            "metadata": {"name": "adapters", "labels": {"inference.networking.k8s.io/bbr-managed": "true"}},
            "data": {"baseModel": "llama", "adapters": "[one, two]"},
        },
    )
    objects.source.start()
    await until(lambda: objects.names == ["adapters", "chat"])
    asked = {parameters["labelSelector"] for _, path, parameters in server.asked if path == CONFIG_MAPS}
    assert asked == {"inference.networking.k8s.io/bbr-managed=true", "inference.llm-d.ai/ipp-managed=true"}
    server.delete(ROUTES, "chat")
    await until(lambda: objects.names == ["adapters"])


def test_every_type_of_every_group_is_followed() -> None:
    assert [(one.kind, one.group, len(one.versions)) for one in policies()] == [
        ("InferencePool", NETWORKING, 1),
        ("InferencePool", EXPERIMENTAL, 2),
        ("InferenceObjective", EXPERIMENTAL, 1),
        ("InferenceObjective", LLM_D, 1),
        ("InferenceModel", EXPERIMENTAL, 2),
        ("InferenceModelRewrite", EXPERIMENTAL, 1),
        ("InferenceModelRewrite", LLM_D, 1),
    ]
    assert [str(one) for one in policies(EXPERIMENTAL) if one.kind == "InferencePool"] == [
        f"inferencepools.{EXPERIMENTAL}"
    ]
