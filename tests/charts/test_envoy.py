"""The Envoy that the standalone chart brings."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.processes import envoy_binary
from tests.charts.render import ROOT, Made, envoy, pods


def lean() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "envoy" / "lean.yaml").read_text())
    return parsed


def test_envoy_in_the_pod_differs_from_lean_yaml_in_addresses_only(made: Callable[[str], Made]) -> None:
    wanted = lean()
    listener, (pickers, servers) = wanted["static_resources"]["listeners"][0], wanted["static_resources"]["clusters"]
    listener["address"]["socket_address"]["port_value"] = 8081
    assert pickers["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]["socket_address"] == {
        "address": "127.0.0.1",
        "port_value": 9002,
    }
    servers["eds_cluster_config"]["eds_config"]["path_config_source"] = {
        "path": "/eds/servers.yaml",
        "watched_directory": {"path": "/eds"},
    }
    rendered = envoy(made("router-standalone"))
    rendered["static_resources"]["listeners"].pop()
    rendered["static_resources"]["clusters"].pop()
    assert rendered == wanted


def test_envoy_by_itself_finds_pickers_and_servers_by_name(made: Callable[[str], Made]) -> None:
    rendered = envoy(made("standalone-everything"))["static_resources"]
    pickers, servers, _ = rendered["clusters"]
    assert (pickers["type"], servers["type"]) == ("STRICT_DNS", "STRICT_DNS")
    assert "transport_socket" in pickers and "tls_options" in pickers["health_checks"][0]
    hosts = servers["load_assignment"]["endpoints"][0]["lb_endpoints"]
    assert [each["endpoint"]["address"]["socket_address"] for each in hosts] == [
        {"address": "pool-servers.default.svc.cluster.local", "port_value": port} for port in (8000, 8001)
    ]
    headless = [
        each
        for each in made("standalone-everything")
        if each["kind"] == "Service" and each["spec"].get("clusterIP") == "None"
    ]
    assert {each["metadata"]["name"] for each in headless} == {"pool-epp", "pool-servers"}
    filters = rendered["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    assert [each["typed_config"]["failure_mode_allow"] for each in filters if each["name"].endswith("ext_proc")] == [
        False
    ]
    same = lean()["static_resources"]["clusters"][1]
    for key in ("health_checks", "outlier_detection", "load_balancing_policy", "circuit_breakers", "common_lb_config"):
        assert servers[key] == same[key]


@pytest.mark.parametrize("name", ["router-standalone", "router-standalone-service", "standalone-everything"])
def test_envoy_takes_the_configuration(made: Callable[[str], Made], tmp_path: Path, name: str) -> None:
    (tmp_path / "servers.yaml").write_text("resources: []\n")
    text = yaml.safe_dump(envoy(made(name))).replace("/eds", str(tmp_path))
    (tmp_path / "envoy.yaml").write_text(text)
    command = [envoy_binary(), "--mode", "validate", "-c", str(tmp_path / "envoy.yaml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_pod_stays_in_its_service_without_a_picker(made: Callable[[str], Made]) -> None:
    (pod,) = pods(made("router-standalone"))
    (beside,) = pod["initContainers"]
    assert beside["restartPolicy"] == "Always"
    assert "startupProbe" in beside and "readinessProbe" not in beside
    (front,) = pod["containers"]
    assert front["readinessProbe"]["httpGet"]["path"] == "/ready"
    assert front["lifecycle"]["preStop"]["sleep"]["seconds"] + 20 <= pod["terminationGracePeriodSeconds"]
