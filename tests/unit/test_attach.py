"""What is made for a pool that asks for a listener, and what is said of one that asks in vain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from epp.attach.objects import ANNOTATION, MADE, OWNED, OWNED_IN, Attached, read, status, wanted

PLACE = "name: llm-gateway\nport: 8081\n"
NOW = "2026-01-01T00:00:00Z"


def a_pool(
    annotation: str | None = PLACE, version: str = "inference.networking.x-k8s.io/v1alpha1", **spec: Any
) -> bytes:
    old = {
        "selector": {"app": "vllm"},
        "targetPortNumber": 8000,
        "extensionRef": {"name": "vllm-epp", "failureMode": "FailOpen"},
    }
    annotations = {ANNOTATION: annotation} if annotation is not None else {}
    metadata = {"name": "vllm", "namespace": "llm", "uid": "u-1", "annotations": annotations}
    return json.dumps(
        {"apiVersion": version, "kind": "InferencePool", "metadata": metadata, "spec": {**old, **spec}}
    ).encode()


def attached(*args: Any, **spec: Any) -> Attached:
    return read(a_pool(*args, **spec), "llm")


def test_a_pool_that_asks_gets_one_object_of_each_kind() -> None:
    made = wanted(attached())
    assert [(one["apiVersion"], f"{one['kind'].lower()}") for one in made] == [
        (
            version,
            {"services": "service", "httproutes": "httproute"}.get(resource, resource.replace("policies", "policy")),
        )
        for version, resource in MADE
    ]
    for one in made:
        assert one["metadata"]["namespace"] == "llm"
        assert one["metadata"]["labels"] == {OWNED: "vllm", OWNED_IN: "inference.networking.x-k8s.io"}
        (owner,) = one["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["apiVersion"]) == ("u-1", "inference.networking.x-k8s.io/v1alpha1")
    service, route, extension, traffic = (one["spec"] for one in made)
    assert service["selector"] == {"app": "vllm"}
    assert route["parentRefs"] == [{"name": "llm-gateway", "port": 8081}]
    assert route["rules"][0]["backendRefs"] == [{"name": "vllm-attached", "port": 8000}]
    assert extension["extProc"][0]["backendRefs"] == [{"name": "vllm-epp", "port": 9002}]
    for policy in (extension, traffic):
        assert policy["targetRefs"][0]["name"] == made[1]["metadata"]["name"]


def test_the_settings_are_those_of_the_manifests() -> None:
    path = Path(__file__).parents[2] / "deploy" / "gateways" / "envoy-gateway" / "gateway.yaml"
    shipped = {one["kind"]: one["spec"] for one in yaml.safe_load_all(path.read_text())}
    made = {one["kind"]: one["spec"] for one in wanted(attached())}
    (theirs,), (ours,) = shipped["EnvoyExtensionPolicy"]["extProc"], made["EnvoyExtensionPolicy"]["extProc"]
    assert {**ours, "backendRefs": 0} == {**theirs, "backendRefs": 0}
    for key in ("loadBalancer", "retry", "circuitBreaker"):
        assert made["BackendTrafficPolicy"][key] == shipped["BackendTrafficPolicy"][key]


def test_a_pool_that_refuses_without_its_picker_is_taken_at_its_word() -> None:
    made = wanted(attached(extensionRef={"name": "vllm-epp"}))
    assert made[2]["spec"]["extProc"][0]["failOpen"] is False


def test_every_version_is_read() -> None:
    new = attached(
        PLACE,
        "inference.networking.k8s.io/v1",
        selector={"matchLabels": {"app": "vllm"}},
        targetPorts=[{"number": 8000}, {"number": 8001}],
        endpointPickerRef={"name": "epp", "port": {"number": 9999}},
    )
    service, route, extension, _ = (one["spec"] for one in wanted(new))
    assert [each["port"] for each in service["ports"]] == [8000, 8001]
    assert [each["port"] for each in route["rules"][0]["backendRefs"]] == [8000, 8001]
    assert extension["extProc"][0]["backendRefs"] == [{"name": "epp", "port": 9999}]
    said = status(new, "", NOW)
    assert said is not None and said["status"]["parents"][0]["parentRef"]["name"] == "llm-gateway"


def test_one_that_asks_for_nothing_gets_nothing() -> None:
    quiet = attached(None)
    assert wanted(quiet) == [] and status(quiet, "", NOW) is None


@pytest.mark.parametrize(
    "asked", ["", "llm-gateway", "name: llm-gateway", "name: g\nport: 0", "name: g\nport: 1\nx: 2", "{"]
)
def test_what_cannot_be_read_is_told_in_the_status(asked: str) -> None:
    broken = attached(asked)
    assert wanted(broken) == []
    said = status(broken, "", NOW)
    assert said is not None
    condition = said["status"]["parent"][0]["conditions"][0]
    assert (condition["type"], condition["status"]) == ("Accepted", "False")
    assert ANNOTATION in condition["message"]


def test_what_could_not_be_made_is_told_too() -> None:
    said = status(attached(), "httproutes may not be made", NOW)
    assert said is not None
    condition = said["status"]["parent"][0]["conditions"][0]
    assert (condition["status"], condition["message"]) == ("False", "httproutes may not be made")
    well = status(attached(), "", NOW)
    assert well is not None and well["status"]["parent"][0]["conditions"][0]["status"] == "True"
