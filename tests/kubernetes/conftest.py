"""A namespace with our own CRDs, and pickers that watch it, as processes."""

from __future__ import annotations

import http.client
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.processes import Process, Stand, answers, free_port
from epp.kubernetes.crds import crds
from tests.cluster import Cluster, Object
from tests.waiting import PATIENCE_S


def until(true: Callable[[], object], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline, f"waited in vain {what}"
        time.sleep(0.02)


class Watching:
    """A picker process that watches a namespace."""

    def __init__(self, stand: Stand, kubeconfig: Path, namespace: str, *args: str) -> None:
        self.stand = stand
        self.grpc, self.health, self.metrics = free_port(), free_port(), free_port()
        self.args = [
            "--host=127.0.0.1",
            f"--grpc-port={self.grpc}",
            f"--grpc-health-port={self.health}",
            f"--metrics-port={self.metrics}",
            f"--kubeconfig={kubeconfig}",
            f"--pool-namespace={namespace}",
            "--secure-serving=false",
            "--metrics-endpoint-auth=false",
            "--max-loop-lag=0s",
            *args,
        ]
        self.process = self._start()

    def _start(self) -> Process:
        process = self.stand.start("epp", [sys.executable, "-m", "epp", "run", *self.args])
        process.wait_until(lambda: answers(f"http://127.0.0.1:{self.metrics}/healthz"), PATIENCE_S)
        return process

    @property
    def ready(self) -> bool:
        return answers(f"http://127.0.0.1:{self.metrics}/readyz", PATIENCE_S)

    def page(self, path: str, token: str = "") -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=30)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        answer = response.status, response.read().decode()
        connection.close()
        return answer

    @property
    def endpoints(self) -> dict[str, str]:
        """Destinations by name."""
        rows: list[dict[str, Any]] = json.loads(self.page("/debug/endpoints")[1])
        return {row["endpoint"].partition("/")[2]: row["destination"] for row in rows}

    @property
    def log(self) -> str:
        return self.process.log.read_text()


@pytest.fixture(scope="session")
def with_crds(cluster: Cluster) -> Cluster:
    """The cluster with the CRDs that `epp crds` prints."""
    cluster.install(*crds())
    return cluster


@pytest.fixture
def namespace(with_crds: Cluster, request: pytest.FixtureRequest) -> str:
    name = re.sub("[^a-z0-9]+", "-", request.node.name.lower()).removeprefix("test-")
    name = f"{name[:45]}{name[45:][-15:]}".strip("-")
    return with_crds.namespace(name)


@pytest.fixture
def watch(with_crds: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    """Starts pickers that watch the test's namespace as the admin. Arguments: flags; `kubeconfig` of another user."""
    stand = Stand(tmp_path)
    admin = with_crds.kubeconfig(tmp_path / "kubeconfig")

    def start(*args: str, kubeconfig: Path = admin) -> Watching:
        return Watching(stand, kubeconfig, namespace, *args)

    yield start
    stand.close()


def a_pool(namespace: str, name: str = "llama", *, app: str = "vllm", ports: tuple[int, ...] = (8000,)) -> Object:
    return {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "selector": {"matchLabels": {"app": app}},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }


def an_objective(namespace: str, name: str, priority: int, *, group: str, pool: str = "llama") -> Object:
    return {
        "apiVersion": f"{group}/v1alpha2",
        "kind": "InferenceObjective",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"priority": priority, "poolRef": {"name": pool}},
    }
