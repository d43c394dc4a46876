"""Clients that never stop asking through a real Envoy, while everything behind it changes: no request fails while a pod is ready."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from bench.processes import Stand, envoy_config, free_port, stand
from tests.cluster import Cluster, Object
from tests.integration.conftest import FULL_DUPLEX, LEAN, Answer, ask
from tests.integration.origin import Origin
from tests.kubernetes.conftest import Watching, a_pool, until
from tests.kubernetes.relay import Relay

QUIET_S = 0.3
GRACE_S = 1.0
"""How long a pod still answers once the picker has dropped it: longer than Envoy takes to read the endpoints' file."""


class Fleet:
    """Model servers at addresses of their own and one port, each a pod of the cluster."""

    def __init__(self, cluster: Cluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.port = free_port()
        self.origins: dict[str, Origin] = {}
        self.pods: dict[str, Object] = {}

    def come(self, number: int, *, ready: bool = True, app: str = "vllm") -> str:
        """A pod that listens already, as one that is ready does."""
        name, ip = f"vllm-{number}", f"127.3.0.{number}"
        self.origins[name] = Origin(name, ip, self.port)
        self.pods[name] = self.cluster.pod(name, namespace=self.namespace, labels={"app": app}, ip=ip, ready=ready)
        return name

    def set_ready(self, name: str, ready: bool) -> None:
        self.cluster.set_status(self.pods[name], ip=self.origins[name].host, ready=ready)

    def terminate(self, name: str) -> None:
        """Begin to: the pod still answers, as within its grace period."""
        self.cluster.delete(self.pods[name])

    def vanish(self, name: str) -> None:
        """The end of the grace period."""
        time.sleep(GRACE_S)
        self.origins.pop(name).close()
        self.cluster.delete(self.pods.pop(name), grace_s=0)

    def close(self) -> None:
        for origin in self.origins.values():
            origin.close()


class Clients:
    """Four who ask one after the other, without a pause to speak of."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: list[Answer] = []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(4)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        while not self._stop.is_set():
            self.answers.append(ask(self.port))
            time.sleep(0.005)

    def served_since(self, mark: int) -> Counter[str]:
        return Counter(answer.headers.get("x-server", "") for answer in self.answers[mark:])

    def some_more(self, count: int = 40) -> Counter[str]:
        """Who served the next so many, whose first was asked after the call."""
        mark = len(self.answers) + len(self._threads)
        until(lambda: len(self.answers) >= mark + count, "for answers")
        return self.served_since(mark)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30.0)


class Served:
    """A picker that watches, Envoy before it, clients, pods."""

    def __init__(
        self, cluster: Cluster, namespace: str, watch: Callable[..., Watching], scene: Stand, source: Path
    ) -> None:
        self.cluster = cluster
        self.fleet = Fleet(cluster, namespace)
        cluster.apply(a_pool(namespace, ports=(self.fleet.port,)))
        eds = scene.directory / "eds" / "servers.yaml"
        eds.parent.mkdir()
        self.picker = watch("--pool-name=llama", f"--envoy-eds-file={eds}")
        for number in (1, 2, 3):
            self.fleet.come(number)
        until(lambda: len(self.picker.endpoints) == 3)
        self.front = free_port()
        scene.envoy(
            envoy_config(source, listen=self.front, admin=free_port(), picker=self.picker.grpc, eds=eds.resolve())
        )
        until(lambda: ask(self.front).status == 200, "for Envoy to know a server")
        self.clients = Clients(self.front)

    def close(self) -> None:
        self.clients.close()
        self.fleet.close()

    def all_went_well(self) -> None:
        until(lambda: len(self.clients.answers) > 100, "for answers enough to conclude from")
        failed = [answer for answer in self.clients.answers if answer.status != 200 or answer.cut]
        assert failed == []


@pytest.fixture
def cutting(with_crds: Cluster) -> Iterator[Relay]:
    """The way to the API server, which cuts every connection on which nothing comes for a while, as every watch soon is."""
    relay = Relay(with_crds.port, QUIET_S)
    yield relay
    relay.close()


@pytest.fixture
def served_past_cuts(
    with_crds: Cluster, namespace: str, watch: Callable[..., Watching], cutting: Relay, tmp_path: Path
) -> Iterator[Served]:
    kubeconfig = with_crds.kubeconfig(tmp_path / "cutting")
    kubeconfig.write_text(kubeconfig.read_text().replace(with_crds.url, f"https://127.0.0.1:{cutting.port}"))
    with stand(tmp_path / "envoy") as scene:
        one = Served(with_crds, namespace, partial(watch, kubeconfig=kubeconfig), scene, LEAN)
        try:
            yield one
        finally:
            one.close()


@pytest.fixture(params=[LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
def served(
    with_crds: Cluster,
    namespace: str,
    watch: Callable[..., Watching],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Iterator[Served]:
    with stand(tmp_path / "envoy") as scene:
        one = Served(with_crds, namespace, watch, scene, request.param)
        try:
            yield one
        finally:
            one.close()


def test_pods_come_terminate_flap_and_move(served: Served) -> None:
    fleet, clients = served.fleet, served.clients
    fleet.come(4)
    until(lambda: clients.some_more()["vllm-4"], "for the new pod to serve")
    fleet.terminate("vllm-1")
    until(lambda: "vllm-1-rank-0" not in served.picker.endpoints)
    assert clients.some_more()["vllm-1"] == 0
    fleet.vanish("vllm-1")
    for _ in range(5):
        fleet.set_ready("vllm-2", False)
        fleet.set_ready("vllm-2", True)
    fleet.set_ready("vllm-3", False)
    until(lambda: "vllm-3-rank-0" not in served.picker.endpoints)
    assert clients.some_more()["vllm-3"] == 0
    # Another address under the same name, as a restarted pod of a StatefulSet has.
    fleet.origins.pop("vllm-3").close()
    moved = Origin("vllm-3", "127.3.0.33", fleet.port)
    fleet.origins["vllm-3"] = moved
    fleet.set_ready("vllm-3", True)
    until(lambda: clients.some_more()["vllm-3"], "for the pod that moved to serve")
    served.all_went_well()


def test_the_api_server_is_killed_and_comes_back(served: Served) -> None:
    fleet, clients, cluster = served.fleet, served.clients, served.cluster
    cluster.kill_server()
    until(lambda: "does not answer" in served.picker.log)
    assert set(clients.some_more()) == {"vllm-1", "vllm-2", "vllm-3"}
    # One dies meanwhile, and nobody can tell the picker.
    fleet.origins.pop("vllm-1").close()
    until(lambda: clients.some_more()["vllm-1"] == 0)
    cluster.start_server()
    cluster.delete(fleet.pods["vllm-1"], grace_s=0)
    fleet.come(5)
    until(lambda: clients.some_more()["vllm-5"], "for what came after the outage")
    until(lambda: "vllm-1-rank-0" not in served.picker.endpoints)
    # A server that dies unannounced takes with it what it was working on, and who was sent there before the first failed; no more.
    failed = [answer for answer in clients.answers if answer.status != 200]
    assert len(failed) <= 8, Counter(answer.status for answer in failed)


def test_the_pool_is_deleted_and_made_again(served: Served) -> None:
    pool = a_pool(served.fleet.namespace, ports=(served.fleet.port,))
    for _ in range(3):
        served.cluster.delete(pool)
        served.clients.some_more(8)
        served.cluster.apply(pool)
        served.clients.some_more()
    assert set(served.clients.some_more()) == {"vllm-1", "vllm-2", "vllm-3"}
    served.all_went_well()


def test_selector_and_port_change(served: Served) -> None:
    fleet, clients, cluster = served.fleet, served.clients, served.cluster
    for number in (6, 7):
        fleet.come(number, app="sglang")
    cluster.apply(a_pool(fleet.namespace, app="sglang", ports=(fleet.port,)))
    until(lambda: set(clients.some_more()) == {"vllm-6", "vllm-7"}, "for the pods of the new selector alone to serve")
    port = free_port()
    for name in ("vllm-6", "vllm-7"):
        fleet.origins[f"{name} moved"] = Origin(f"{name} moved", fleet.origins[name].host, port)
    cluster.apply(a_pool(fleet.namespace, app="sglang", ports=(port,)))
    until(lambda: set(clients.some_more()) == {"vllm-6 moved", "vllm-7 moved"}, "for the new port alone to serve")
    served.all_went_well()


def test_every_watch_is_cut_again_and_again(served_past_cuts: Served, cutting: Relay) -> None:
    fleet, clients, picker = served_past_cuts.fleet, served_past_cuts.clients, served_past_cuts.picker
    for number in range(4, 12):
        cuts = cutting.cuts
        fleet.come(number)
        fleet.terminate(f"vllm-{number - 3}")
        fleet.set_ready(f"vllm-{number - 1}", False)
        # So that some of these changes fall between two watches, and some into one.
        until(lambda cuts=cuts: cutting.cuts > cuts + 1, "for a watch to be cut")  # type: ignore[misc]
        fleet.set_ready(f"vllm-{number - 1}", True)
        wanted = {f"vllm-{ready}-rank-0" for ready in range(number - 2, number + 1)}
        until(lambda wanted=wanted: set(picker.endpoints) == wanted, "for the pods that are ready alone")  # type: ignore[misc]
        fleet.vanish(f"vllm-{number - 3}")
    assert set(clients.some_more()) == {"vllm-9", "vllm-10", "vllm-11"}
    served_past_cuts.all_went_well()
