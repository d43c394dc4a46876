"""Several pools in one process, and the router by bodies, with all that they go by from a real API server."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from bench.processes import answers, free_port, stand
from tests.cluster import Cluster, Object
from tests.kubernetes.conftest import Watching, a_pool, until
from tests.waiting import PATIENCE_S


def by_pool(picker: Watching) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in json.loads(picker.page("/debug/endpoints")[1]):
        found.setdefault(row["pool"], set()).add(row["destination"])
    return found


def picked_by(pool: Object, service: str) -> Object:
    return {**pool, "spec": {**pool["spec"], "endpointPickerRef": {"name": service, "port": {"number": 9002}}}}


def test_every_pool_that_names_our_service_is_served(
    with_crds: Cluster, namespace: str, watch: Callable[..., Watching]
) -> None:
    cluster = with_crds
    for number, app in enumerate(("a", "b", "c"), start=1):
        cluster.pod(f"pod-{app}", namespace=namespace, labels={"app": app}, ip=f"127.1.0.{number}")
    cluster.apply(a_pool(namespace, "a", app="a"), picked_by(a_pool(namespace, "c", app="c"), "another"))
    picker = watch("--picker-service=epp")
    until(lambda: picker.ready)
    assert by_pool(picker) == {"a": {"127.1.0.1:8000"}}
    cluster.apply(a_pool(namespace, "b", app="b", ports=(8000, 8001)))
    until(lambda: by_pool(picker).get("b") == {"127.1.0.2:8000", "127.1.0.2:8001"})
    cluster.apply(picked_by(a_pool(namespace, "a", app="a"), "another"))
    until(lambda: set(by_pool(picker)) == {"b"})
    assert picker.ready


def test_of_several_named_pools_each_has_its_own_pods(
    with_crds: Cluster, namespace: str, watch: Callable[..., Watching]
) -> None:
    cluster = with_crds
    for number, app in enumerate(("a", "b"), start=1):
        cluster.pod(f"pod-{app}", namespace=namespace, labels={"app": app}, ip=f"127.1.0.{number}")
    cluster.apply(a_pool(namespace, "a", app="a"))
    picker = watch("--pool-name=a", "--pool-name=b")
    # The other is served when it is there.
    until(lambda: picker.ready)
    cluster.apply(a_pool(namespace, "b", app="b"))
    until(lambda: by_pool(picker) == {"a": {"127.1.0.1:8000"}, "b": {"127.1.0.2:8000"}})
    cluster.delete(a_pool(namespace, "a"))
    until(lambda: set(by_pool(picker)) == {"b"})
    assert picker.ready


def test_base_models_come_from_marked_config_maps(with_crds: Cluster, namespace: str, tmp_path: Path) -> None:
    def adapters(name: str, listed: str, **labels: str) -> Object:
        metadata = {"name": name, "namespace": namespace, "labels": labels}
        return {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata,
            "data": {"baseModel": "llama", "adapters": listed},
        }

    marked = {"inference.networking.k8s.io/bbr-managed": "true"}
    with_crds.apply(adapters("marked", "- one\n- two\n", **marked), adapters("unmarked", "- three\n"))
    metrics = free_port()
    ports = [f"--grpc-port={free_port()}", f"--grpc-health-port={free_port()}", f"--metrics-port={metrics}"]
    kubeconfig = with_crds.kubeconfig(tmp_path / "kubeconfig")
    with stand(tmp_path / "bbr") as scene:
        command = ["env", f"NAMESPACE={namespace}", sys.executable, "-m", "epp", "bbr", "--host=127.0.0.1", *ports]
        process = scene.start("bbr", [*command, f"--kubeconfig={kubeconfig}", "--secure-serving=false"])
        process.wait_until(lambda: answers(f"http://127.0.0.1:{metrics}/readyz"), PATIENCE_S)
        until(lambda: "base models of 3 models are known" in process.log.read_text())
        with_crds.delete(adapters("marked", ""))
        until(lambda: "base models of 0 models are known" in process.log.read_text())


def test_a_hundred_pools_with_a_watch_each_stay_small(
    with_crds: Cluster, namespace: str, watch: Callable[..., Watching]
) -> None:
    names = [f"pool-{number}" for number in range(100)]
    with_crds.apply(*(a_pool(namespace, name, app=name) for name in names))
    with_crds.pod("pod", namespace=namespace, labels={"app": names[-1]}, ip="127.1.0.1")
    picker = watch("--picker-service=epp")
    until(lambda: picker.ready)
    assert by_pool(picker) == {names[-1]: {"127.1.0.1:8000"}}
    # A watch for each, over a connection with TLS of its own.
    assert picker.process.resident_bytes() < 200e6
