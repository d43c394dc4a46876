"""Who typed the values got what they wanted: lines that others print for their charts first, then our own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import yaml

from tests.charts.cases import CASES, DOCUMENTED, GATEWAYS
from tests.charts.render import ROOT, Made, one, picker


@pytest.mark.parametrize("name", [name for name, case in DOCUMENTED.items() if case.chart == "epp"])
def test_a_documented_line_makes_the_pool_and_its_picker(made: Callable[[str], Made], name: str) -> None:
    found = made(name)
    release = CASES[name].release
    pool = one(found, "InferencePool", release)
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert list(pool["spec"]["selector"]["matchLabels"]) == ["app"]
    assert pool["spec"]["targetPorts"][0] == {"number": 8000}
    assert pool["spec"]["endpointPickerRef"]["name"] == f"{release}-epp"
    assert pool["spec"]["endpointPickerRef"]["port"] == {"number": 9002}
    service = one(found, "Service", f"{release}-epp")
    assert 9002 in [port["port"] for port in service["spec"]["ports"]]
    assert f"--pool-name={release}" in picker(found)["args"]


def test_gke_health_checks_timeouts_and_monitoring(made: Callable[[str], Made]) -> None:
    found = made("gke-deploy")
    check = one(found, "HealthCheckPolicy")["spec"]
    assert check["default"]["config"]["httpHealthCheck"]["requestPath"] == "/health"
    assert check["default"]["config"]["httpHealthCheck"]["port"] == 8000
    policy = one(found, "GCPBackendPolicy")["spec"]
    assert policy["default"] == {"timeoutSec": 300, "logging": {"enabled": True}}
    for each in (check, policy):
        assert each["targetRef"] == {
            "group": "inference.networking.k8s.io",
            "kind": "InferencePool",
            "name": "vllm-llama3-8b-instruct",
        }
    monitoring = one(found, "PodMonitoring")["spec"]
    assert monitoring["endpoints"][0]["port"] == "metrics"
    secret = monitoring["endpoints"][0]["authorization"]["credentials"]["secret"]["name"]
    assert one(found, "Secret", secret)["type"] == "kubernetes.io/service-account-token"
    reader = one(found, "RoleBinding", "vllm-llama3-8b-instruct-epp-metrics-secret")
    assert reader["subjects"][0]["namespace"] == "gmp-system"
    autopilot = one(made("gke-deploy-autopilot"), "RoleBinding", "vllm-llama3-8b-instruct-epp-metrics-secret")
    assert autopilot["subjects"][0]["namespace"] == "gke-gmp-system"
    assert not [each for each in made("gke-multi-cluster") if each["kind"] == "PodMonitoring"]


def test_istio_speaks_tls_to_the_picker_whatever_else_is_asked_of_it(made: Callable[[str], Made]) -> None:
    rule = one(made("istio"), "DestinationRule")["spec"]
    assert rule["host"] == "pool-epp.default.svc.cluster.local"
    assert rule["trafficPolicy"]["tls"] == {"mode": "SIMPLE", "insecureSkipVerify": True}
    assert rule["trafficPolicy"]["connectionPool"]["http"]["maxRequestsPerConnection"] == 256000


def test_names_of_the_inferencepool_chart(made: Callable[[str], Made]) -> None:
    found = made("inferencepool-values")
    container = picker(found)
    assert container["image"] == "registry.example.com/inference/epp:v1"
    assert "--v=4" in container["args"]
    assert {"FEATURE_FLAG_ENABLED", "POD_IP", "NAMESPACE"} <= {each["name"] for each in container["env"]}
    assert 5557 in [each["containerPort"] for each in container["ports"]]
    assert 5557 in [each["port"] for each in one(found, "Service")["spec"]["ports"]]
    assert one(found, "InferenceObjective")["spec"]["priority"] == 10
    assert one(found, "Secret")["metadata"]["name"] == "inference-gateway-sa-metrics-reader-secret"
    assert one(found, "HTTPRoute")["spec"]["parentRefs"][0]["name"] == "inference-gateway"
    assert one(found, "Deployment")["spec"]["replicas"] == 2
    triton = one(made("inferencepool-triton"), "ConfigMap")["data"]["default-plugins.yaml"]
    assert {"type": "core-metrics-extractor", "parameters": {"defaultEngine": "triton-tensorrt-llm"}} in yaml.safe_load(
        triton
    )["plugins"]


def test_with_a_leader_all_are_replaced_at_once(made: Callable[[str], Made]) -> None:
    assert one(made("inferencepool-leader-election"), "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert "--ha-enable-leader-election=true" in picker(made("inferencepool-leader-election"))["args"]


def test_several_pickers_are_all_active_and_spread(made: Callable[[str], Made]) -> None:
    found = made("everything")
    assert not [each for each in picker(found)["args"] if "leader" in each]
    deployment = one(found, "Deployment")["spec"]
    assert deployment["strategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": 1}
    assert len(deployment["template"]["spec"]["topologySpreadConstraints"]) == 2
    scaled = made("autoscaling")
    assert "replicas" not in one(scaled, "Deployment")["spec"]
    assert one(scaled, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"] == "pool-epp"


def test_the_old_pool_has_its_own_words(made: Callable[[str], Made]) -> None:
    found = made("old-pool")
    assert one(found, "InferencePool")["spec"] == {
        "selector": {"app": "vllm-qwen3-32b"},
        "targetPortNumber": 8000,
        "extensionRef": {"name": "pool-epp", "portNumber": 9002, "failureMode": "FailClose"},
    }
    group = "inference.networking.x-k8s.io"
    assert f"--pool-group={group}" in picker(found)["args"]
    assert one(found, "InferenceObjective")["spec"] == {
        "priority": -1,
        "poolRef": {"group": group, "kind": "InferencePool", "name": "pool"},
    }


def test_without_a_pool_the_picker_is_told_labels_and_ports(made: Callable[[str], Made]) -> None:
    args = picker(made("without-pool"))["args"]
    assert args[:2] == ["--endpoint-selector=app=vllm-qwen3-32b", "--endpoint-target-ports=8000"]
    assert not [each for each in args if "pool" in each]


def test_network_policies_let_in_who_is_named(made: Callable[[str], Made]) -> None:
    rules = one(made("everything"), "NetworkPolicy")["spec"]["ingress"]
    assert [(rule["ports"][0]["port"], "from" in rule) for rule in rules] == [(9002, True), (9003, False), (9090, True)]
    standalone = made("standalone-everything")
    only_envoy = one(standalone, "NetworkPolicy", "pool-epp")["spec"]["ingress"][0]
    assert only_envoy["ports"][0]["port"] == 9002
    beside = one(made("standalone-guarded"), "NetworkPolicy")["spec"]["ingress"]
    assert [[port["port"] for port in rule["ports"]] for rule in beside] == [[8081], [9003], [9090, 19001]]
    assert only_envoy["from"] == [{"podSelector": {"matchLabels": {"epp-proxy": "pool-epp"}}}]


def test_every_gateway_has_its_values_and_no_others(made: Callable[[str], Made]) -> None:
    directories = {path.parent.name for path in ROOT.glob("deploy/gateways/*/values.yaml")}
    assert {f"gateway-{name}" for name in directories} == set(GATEWAYS)
    table = (ROOT / "deploy" / "gateways" / "README.md").read_text()
    for name in directories:
        assert f"({name})" in table
        assert (ROOT / "deploy" / "gateways" / name / "gateway.yaml").exists()
        # Gateways that take one endpoint only are given one.
        config = one(made(f"gateway-{name}"), "ConfigMap")["data"]
        used = config["ranked.yaml" if name == "envoy-gateway" else "default-plugins.yaml"]
        assert ("maxNumOfEndpoints" in used) == (name == "envoy-gateway")
    ranked = yaml.safe_load((ROOT / "config" / "ranked.yaml").read_text())
    assert yaml.safe_load(one(made("gateway-envoy-gateway"), "ConfigMap")["data"]["ranked.yaml"]) == ranked
