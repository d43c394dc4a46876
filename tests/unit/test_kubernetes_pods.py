"""Which endpoints a pod amounts to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.endpoint import Endpoint
from epp.kubernetes.pods import Members, Pod, endpoints_of, read_pod

PORTS = (8000, 8001, 8002)


def a_pod(
    *,
    ready: str | None = "True",
    ip: str | None = "10.0.0.1",
    deleted: bool = False,
    annotations: dict[str, str] | None = None,
) -> bytes:
    metadata: dict[str, Any] = {"name": "vllm-0", "namespace": "default", "labels": {"app": "vllm"}}
    if annotations is not None:
        metadata["annotations"] = annotations
    if deleted:
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    conditions = [{"type": "PodScheduled", "status": "True"}]
    if ready is not None:
        conditions.append({"type": "Ready", "status": ready, "reason": "whatever"})
    status: dict[str, Any] = {"phase": "Running", "conditions": conditions}
    if ip is not None:
        status["podIP"] = ip
    return json.dumps({"metadata": metadata, "spec": {"containers": []}, "status": status}).encode()


def destinations(data: bytes, ports: tuple[int, ...] = PORTS) -> list[tuple[str, str]]:
    return [(one.name, one.destination) for one in endpoints_of(read_pod(data), "default", ports)]


def test_a_ready_pod_is_an_endpoint_at_every_port_named_by_its_rank() -> None:
    assert destinations(a_pod()) == [
        ("vllm-0-rank-0", "10.0.0.1:8000"),
        ("vllm-0-rank-1", "10.0.0.1:8001"),
        ("vllm-0-rank-2", "10.0.0.1:8002"),
    ]
    assert endpoints_of(read_pod(a_pod()), "prod", (8000,))[0] == Endpoint(
        name="vllm-0-rank-0", namespace="prod", address="10.0.0.1", port=8000, labels={"app": "vllm"}
    )


@pytest.mark.parametrize(
    "data",
    [
        a_pod(ready="False"),
        a_pod(ready="Unknown"),
        a_pod(ready=None),
        a_pod(ip=None),
        a_pod(ip=""),
        a_pod(deleted=True),
        b'{"metadata": {"name": "new"}}',
        b'{"metadata": {"name": "new", "labels": null, "annotations": null}, "status": {"conditions": null}}',
    ],
)
def test_who_is_not_ready_has_no_address_or_is_told_to_end_is_no_endpoint(data: bytes) -> None:
    assert destinations(data) == []


@pytest.mark.parametrize(
    ("annotations", "ports"),
    [
        ({"inference.networking.k8s.io/active-ports": "8000,8002"}, [8000, 8002]),
        ({"llm-d.ai/active-ports": " 8001 , 9 "}, [8001]),
        ({"llm-d.ai/active-ports": "8001", "inference.networking.k8s.io/active-ports": "8000"}, [8001]),
        ({"llm-d.ai/active-ports": "8000,x,,-8001"}, [8000]),
        ({"llm-d.ai/active-ports": ""}, []),
        ({"llm-d.ai/active-ports": "9"}, []),
        ({"other": "8000"}, [8000, 8001, 8002]),
    ],
)
def test_a_pod_may_say_which_ports_are_active_and_ranks_stay_those_of_the_pool(
    annotations: dict[str, str], ports: list[int]
) -> None:
    found = destinations(a_pod(annotations=annotations))
    assert found == [(f"vllm-0-rank-{PORTS.index(port)}", f"10.0.0.1:{port}") for port in ports]


def test_an_ipv6_pod_is_written_in_brackets() -> None:
    assert destinations(a_pod(ip="fd00::7"), (8000,)) == [("vllm-0-rank-0", "[fd00::7]:8000")]


pods = st.builds(
    Pod,
    name=st.just("x"),
    ip=st.sampled_from(["", "10.0.0.1", "10.0.0.2"]),
    ready=st.booleans(),
    labels=st.just({}),
    active_ports=st.sampled_from([None, frozenset(), frozenset({8001})]),
)
deltas = st.dictionaries(st.sampled_from("abc"), st.none() | pods, max_size=3)


def seen(endpoints: Iterable[Endpoint]) -> set[tuple[str, str]]:
    return {(one.key, one.destination) for one in endpoints}


@given(st.lists(deltas, max_size=12))
def test_members_are_those_of_the_last_word_on_each_pod_and_a_change_is_told(
    changes: list[dict[str, Pod | None]],
) -> None:
    members = Members("default")
    known: dict[str, Pod] = {}
    for delta in changes:
        before = seen(members.endpoints())
        named = {
            name: pod and Pod(name, pod.ip, pod.ready, pod.labels, pod.active_ports) for name, pod in delta.items()
        }
        for name, pod in named.items():
            known.pop(name, None)
            if pod is not None:
                known[name] = pod
        changed = members.apply(named, PORTS)
        expected = seen(one for pod in known.values() for one in endpoints_of(pod, "default", PORTS))
        now = seen(members.endpoints())
        assert now == expected
        assert len(members.endpoints()) == len(now)
        assert changed == (now != before)
    assert members.replace(known, PORTS) is False
    full = bool(members.endpoints())
    assert members.replace({}, PORTS) is full
    assert members.endpoints() == ()
