"""Installed by Helm into a real API server, picker and Envoy started with just what is there: requests are answered."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from bench.processes import Stand, answers, free_port
from epp.kubernetes.objects import policies
from tests.charts.arguments import CONFIG, CONFIGS, THEIRS
from tests.charts.installed import PATIENCE_S, Installed
from tests.cluster import Cluster
from tests.integration.origin import Origin
from tests.kubernetes.conftest import a_pool, until

SERVERS = "--set=router.modelServers.matchLabels.app=vllm"


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with Stand(tmp_path) as made:
        yield made


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    with Origin("one") as one, Origin("two") as two:
        yield [one, two]


def ports(origins: list[Origin]) -> list[str]:
    """Two ports of one pod: as many endpoints."""
    return [f"--set=router.modelServers.targetPorts[{n}].number={each.port}" for n, each in enumerate(origins)]


@pytest.mark.parametrize("mode", ["sidecar", "service"])
def test_standalone_answers_and_goes_on_without_its_picker(
    taking: Cluster, stand: Stand, helm: Path, origins: list[Origin], mode: str
) -> None:
    values = [SERVERS, *ports(origins), f"--set=router.proxy.mode={mode}", "--set=router.epp.flags.v=4"]
    release = Installed(taking, stand, helm, "epp-standalone", f"standalone-{mode}", *values)
    picker = release.picker()
    until(lambda: release.ready)
    # Envoy starts with nobody to send to, and learns.
    envoy = release.envoy()
    pod = taking.pod("vllm-0", namespace=release.namespace, labels={"app": "vllm"}, ip="127.0.0.1")
    until(lambda: release.ask()[0] == 200)
    assert {release.ask()[1] for _ in range(20)} == {"one", "two"}
    until(lambda: all(each.scrapes for each in origins))
    # It was the picker who said so: a line for each decision, by the names that it has for the ports of a pod.
    decisions = [line for line in picker.log.read_text().splitlines() if "epp.decision" in line]
    assert decisions and "vllm-0-rank-0" in decisions[-1]
    picker.kill()
    assert [release.ask()[0] for _ in range(10)] == [200] * 10
    assert envoy.running
    taking.delete(pod, grace_s=0)


def test_behind_a_gateway_the_picker_knows_the_pool(
    taking: Cluster, stand: Stand, helm: Path, origins: list[Origin]
) -> None:
    objective = ["--set=router.inferenceObjectives[0].name=gold", "--set=router.inferenceObjectives[0].priority=10"]
    release = Installed(taking, stand, helm, "epp", "behind-a-gateway", SERVERS, *ports(origins), *objective)
    taking.pod("vllm-0", namespace=release.namespace, labels={"app": "vllm"}, ip="127.0.0.1")
    picker = release.picker()
    until(lambda: release.ready)
    until(lambda: all(each.scrapes for each in origins))
    assert "may not be read" not in picker.log.read_text()


def test_one_leads_and_only_the_reader_reads_metrics(
    taking: Cluster, stand: Stand, helm: Path, origins: list[Origin]
) -> None:
    values = [
        "--set=router.epp.flags.ha-enable-leader-election=true",
        "--set=router.monitoring.prometheus.enabled=true",
    ]
    release = Installed(taking, stand, helm, "epp", "led", SERVERS, *ports(origins), *values)
    picker = release.picker()
    until(lambda: release.ready)
    assert taking.request("GET", "/apis/coordination.k8s.io/v1/namespaces/led/leases")["items"]
    reader = taking.account_token("led", "model-epp-metrics-reader")
    own = taking.account_token("led", "model-epp")
    assert [release.metrics_status(token) for token in ("", own, reader)] == [401, 403, 200]
    assert "may not be read" not in picker.log.read_text()


def test_each_right_is_needed(taking: Cluster, stand: Stand, helm: Path, origins: list[Origin]) -> None:
    release = Installed(taking, stand, helm, "epp", "without-rights", SERVERS, *ports(origins))
    role = release.get("rbac.authorization.k8s.io/v1", "roles", "model-epp")
    granted = {
        f"{resource}.{group}" for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
    }
    pools = [rule for rule in role["rules"] if rule["resources"] == ["inferencepools"]]
    taking.request("PATCH", taking.path(role), {"rules": pools}, content_type="application/merge-patch+json")
    picker = release.picker()
    refused = re.compile(r"([a-z]+(?:\.[-a-z0-9.]+)?) in without-rights may not be read")
    wanted = {str(each) for each in policies("inference.networking.k8s.io")}
    assert granted == wanted | {"pods."}
    missing = (wanted - {"inferencepools.inference.networking.k8s.io"}) | {"pods"}
    until(lambda: len(set(refused.findall(picker.log.read_text()))) >= len(missing))
    found = {each.partition(" ")[0] for each in refused.findall(picker.log.read_text())}
    assert {each if "." in each else "pods" for each in found} == missing


@pytest.mark.parametrize("chart", THEIRS)
def test_what_other_charts_start_their_picker_with_starts_ours(
    taking: Cluster, stand: Stand, tmp_path: Path, chart: str
) -> None:
    namespace = taking.namespace("inference")
    group = "inference.networking.x-k8s.io"
    taking.apply(
        a_pool(namespace, "model"),
        {
            "apiVersion": f"{group}/v1alpha2",
            "kind": "InferencePool",
            "metadata": {"name": "model", "namespace": namespace},
            "spec": {"selector": {"app": "vllm"}, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}},
        },
    )
    taking.pod("vllm-0", namespace=namespace, labels={"app": "vllm"}, ip="127.1.0.1")
    taking.pod("gold", namespace=namespace, labels={"app": "my-vllm-service", "tier": "gold"}, ip="127.1.0.2")
    for name, text in CONFIGS.items():
        (tmp_path / name).write_text(text)
    args = [arg.replace(CONFIG, str(tmp_path)) for arg in THEIRS[chart]]
    health, metrics = free_port(), free_port()
    ours = [f"--grpc-port={free_port()}", f"--grpc-health-port={health}", f"--metrics-port={metrics}"]
    ours += ["--host=127.0.0.1", f"--kubeconfig={taking.kubeconfig(tmp_path / 'kubeconfig', namespace=namespace)}"]
    environment = {"NAMESPACE": namespace, "POD_NAME": "model-epp-1", "PATH": os.environ["PATH"]}
    command = [sys.executable, "-m", "epp", "run", *args, *ours]
    picker = stand.start("epp", ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command])
    picker.wait_until(lambda: answers(f"http://127.0.0.1:{metrics}/readyz"), PATIENCE_S)
    with grpc.insecure_channel(f"127.0.0.1:{health}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")  # type: ignore[call-arg]  # the stubs ask for serializers
        for service in (b"", b"inference-extension", b"liveness", b"readiness"):
            asked = b"\n" + bytes([len(service)]) + service if service else b""
            assert check(asked, timeout=10) == b"\x08\x01"
    log = picker.log.read_text()
    assert '"level"' in log.splitlines()[0], "as JSON"
    assert f"synced: {2 if 'standalone' in chart else 1} endpoints" in log
