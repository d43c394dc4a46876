"""Every picker of a Deployment replaced as Kubernetes does it by the chart's settings, under clients who never stop asking."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from bench.processes import ROOT
from tests.faults.client import Client, Outcome
from tests.integration.conftest import FULL_DUPLEX, LEAN, Scene
from tests.integration.test_faults import RANKED
from tests.waiting import wait_for

RENDERED = ROOT / "tests" / "data" / "helm" / "inferencepool-values.yaml"
HELD = 40
SERVING = b"\x08\x01"


def the_deployment() -> dict[str, Any]:
    documents = yaml.safe_load_all(RENDERED.read_text())
    (spec,) = (one["spec"] for one in documents if one and one["kind"] == "Deployment")
    assert isinstance(spec, dict)
    return spec


def probed(port: int, service: str) -> bool:
    """As a kubelet probes: whether the service says that it serves."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", request_serializer=None, response_deserializer=None)
        try:
            return bool(check(b"\n" + bytes([len(service)]) + service.encode(), timeout=1.0) == SERVING)
        except grpc.RpcError:
            return False


def publish(path: Path, ports: Sequence[int]) -> None:
    """The endpoints of the pickers' Service, as a gateway hands them to Envoy."""
    hosts = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": n}}}} for n in ports]
    kind = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
    resource = {"@type": kind, "cluster_name": "picker", "endpoints": [{"lb_endpoints": hosts}]}
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(yaml.safe_dump({"resources": [resource]}))
    os.replace(unfinished, path)


@pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
async def test_a_rollout_fails_no_request(source: Path, make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    deployment = the_deployment()
    pod, limits = deployment["template"]["spec"], deployment["strategy"]["rollingUpdate"]
    (container,) = (one for one in pod["containers"] if one["name"] == "epp")
    (drain,) = (arg for arg in container["args"] if arg.startswith("--drain-timeout="))
    probe = container["readinessProbe"]["grpc"]["service"]
    replicas = deployment["replicas"]

    front = await asyncio.to_thread(make_scene, 3)
    service = tmp_path / "service" / "pickers.yaml"
    service.parent.mkdir()

    def started(scene: Scene) -> Scene:
        scene.origins = front.origins
        scene.start_picker(*[f"--config-file={RANKED}"] * (source is LEAN), drain)
        wait_for(lambda: probed(scene.health, probe))
        return scene

    old = [started(front), *(started(make_scene(0)) for _ in range(replicas - 1))]
    new: list[Scene] = []
    publish(service, [one.grpc for one in old])

    def by_service(config: dict[str, Any]) -> None:
        (picker,) = (one for one in config["static_resources"]["clusters"] if one["name"] == "picker")
        del picker["load_assignment"]
        picker["type"] = "EDS"
        source = {"path": str(service), "watched_directory": {"path": str(service.parent)}}
        picker["eds_cluster_config"] = {"eds_config": {"path_config_source": source}}
        # Envoy wants a node's name before it follows a file.
        config.setdefault("node", {"id": "test", "cluster": "test"})

    front.start_envoy(source, by_service)

    for origin in front.origins:
        origin.hold()
    held = [Client(front.port, how="hold:3", stream=True, prompt=f"hold {n}") for n in range(HELD)]
    running = [asyncio.ensure_future(client.run(60.0)) for client in held]
    await asyncio.gather(*(client.begun.wait() for client in held))
    over = asyncio.Event()
    seen: list[Outcome] = []

    def served(count: int) -> bool:
        return len(seen) > count

    async def ask(number: int) -> None:
        while not over.is_set():
            seen.append(await Client(front.port, prompt=f"client {number}").run())
            await asyncio.sleep(0.01)

    asking = [asyncio.ensure_future(ask(number)) for number in range(4)]
    leaving: list[Scene] = []
    while old or len(new) < replicas:
        while len(new) < replicas and len(old) + len(new) < replicas + limits["maxSurge"]:
            new.append(await asyncio.to_thread(started, make_scene(0)))
        publish(service, [one.grpc for one in old + new])
        while old and len(old) + len(new) > replicas - limits["maxUnavailable"]:
            leaving.append(old.pop(0))
            leaving[-1].picker.signal(signal.SIGTERM)  # type: ignore[union-attr]
            # The word reaches Envoy later than the signal its picker.
            mark = len(seen)
            await asyncio.to_thread(wait_for, partial(served, mark + 50))
            publish(service, [one.grpc for one in old + new])
    for origin in front.origins:
        origin.release()
    outcomes = await asyncio.gather(*running)
    for one in leaving:
        assert one.picker is not None
        assert await asyncio.to_thread(one.picker.child.wait, pod["terminationGracePeriodSeconds"]) == 0
    mark = len(seen)
    await asyncio.to_thread(wait_for, partial(served, mark + 50))
    # Envoy sends a picker nothing before its health check, once in two seconds, has seen it.
    await asyncio.to_thread(wait_for, lambda: all(one.metric("llm_d_epp_request_total") > 0 for one in new))
    over.set()
    await asyncio.gather(*asking)
    assert [outcome for outcome in outcomes + seen if not outcome.ok] == []
