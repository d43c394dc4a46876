"""Envoy Gateway with the manifests that we ship, on this machine instead of a cluster: its file provider and its host infrastructure.

It listens on fixed ports of every interface, so all of this runs in a network of its own: `python -m tests.gateways.envoy_gateway
PROGRAM DIRECTORY` is to be started by `unshare --net`, and ends with 0 when everything held.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from bench.processes import ROOT, Process, Stand, envoy_binary, free_port
from epp.attach.objects import ANNOTATION, read, wanted
from tests.integration.origin import Origin

GATEWAY = ROOT / "deploy" / "gateways" / "envoy-gateway"
FRONT = "http://127.0.0.1:8888/v1/chat/completions"
PATIENCE_S = 60.0
ENVOY = "1.40.0"
CHAT = b'{"model": "base", "messages": [{"role": "user", "content": "Hello"}]}'

Object = dict[str, Any]


def loopback_up() -> None:
    """A new network has its loopback interface down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        up_and_running = 0x1 | 0x40
        fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh14x", b"lo", up_and_running))


def until(true: Callable[[], object], process: Process | None = None) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        if process is not None:
            process.require_coming(deadline_s)
        assert time.monotonic() < deadline_s, "waited in vain"
        time.sleep(0.05)


def backend(name: str, ports: list[int], *, h2c: bool = False) -> Object:
    spec: Object = {"endpoints": [{"ip": {"address": "127.0.0.1", "port": port}} for port in ports]}
    if h2c:
        spec["appProtocols"] = ["gateway.envoyproxy.io/h2c"]
    return {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "Backend",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


def shipped() -> list[Object]:
    """Our manifests."""
    return list(yaml.safe_load_all((GATEWAY / "gateway.yaml").read_text()))


def attached() -> list[Object]:
    """The same gateway, and what `epp attach` makes for a pool that asks for its listener."""
    pool = {
        "apiVersion": "inference.networking.x-k8s.io/v1alpha1",
        "kind": "InferencePool",
        "metadata": {
            "name": "pool",
            "namespace": "default",
            "uid": "1",
            "annotations": {ANNOTATION: "name: inference-gateway\nport: 8888\n"},
        },
        "spec": {
            "targetPortNumber": 8000,
            "selector": {"app": "my-model"},
            "extensionRef": {"name": "my-model-epp", "failureMode": "FailOpen"},
        },
    }
    made = wanted(read(json.dumps(pool).encode(), "default"))
    assert len(made) == 4
    return [one for one in shipped() if one["kind"] in ("GatewayClass", "Gateway", "ClientTrafficPolicy")] + made


def on_this_machine(objects: list[Object], servers: list[int], picker: int) -> list[Object]:
    """`objects` with Backends for Services, which only a cluster has, and Envoy as a process."""
    (service,) = (one["metadata"]["name"] for one in objects if one["kind"] == "Service")
    found = [one for one in objects if one["kind"] != "Service"]
    for one in found:
        if one["kind"] == "GatewayClass":
            names = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": "host", "namespace": "default"}
            one["spec"]["parametersRef"] = names
            continue
        one["metadata"].pop("ownerReferences", None)
        one["metadata"]["namespace"] = "default"
        if one["kind"] == "Gateway":
            one["spec"]["listeners"][0]["port"] = 8888
        rules = one["spec"].get("rules") or one["spec"].get("extProc") or []
        for reference in (each for rule in rules for each in rule["backendRefs"]):
            del reference["port"]
            reference.update(group="gateway.envoyproxy.io", kind="Backend")
    proxy = {
        "apiVersion": "gateway.envoyproxy.io/v1alpha1",
        "kind": "EnvoyProxy",
        "metadata": {"name": "host", "namespace": "default"},
        "spec": {"provider": {"type": "Host", "host": {"envoyVersion": ENVOY}}},
    }
    return [*found, proxy, backend(service, servers), backend("my-model-epp", [picker], h2c=True)]


class Answer(msgspec.Struct):
    """Status 0 is none, "" a server that did not say its name."""

    status: int
    server: str = ""
    body: bytes = b""


class Scene:
    """Two servers, a picker and the gateway. Requests go to `FRONT`."""

    def __init__(self, stand: Stand, program: str, origins: list[Origin]) -> None:
        self.stand = stand
        self.program = program
        self.origins = origins
        self.grpc, self.metrics = free_port(), free_port()
        self.picker = self.start_picker()
        self.gateway = self.start_gateway()

    def start_picker(self) -> Process:
        values = yaml.safe_load((GATEWAY / "values.yaml").read_text())["router"]["epp"]
        config = self.stand.directory / "ranked.yaml"
        config.write_text(yaml.safe_dump(values["pluginsConfig"]))
        flags = [f"--{name}={str(value).lower()}" for name, value in values["flags"].items()]
        endpoints = [f"--endpoint={each.address}" for each in self.origins]
        ports = [f"--grpc-port={self.grpc}", f"--grpc-health-port={free_port()}", f"--metrics-port={self.metrics}"]
        args = ["--host=127.0.0.1", f"--config-file={config}", "-v=4", *flags, *endpoints, *ports]
        return self.stand.picker(args, metrics=self.metrics)

    def start_gateway(self) -> Process:
        at = self.stand.directory
        for name in ("resources", "config", "data", "state", "run"):
            (at / name).mkdir()
        binary = at / "data" / "envoy-versions" / ENVOY / "bin" / "envoy"
        binary.parent.mkdir(parents=True)
        binary.symlink_to(envoy_binary())
        host = {f"{name}Home": str(at / name) for name in ("config", "data", "state")} | {"runtimeDir": str(at / "run")}
        config = {
            "apiVersion": "gateway.envoyproxy.io/v1alpha1",
            "kind": "EnvoyGateway",
            "gateway": {"controllerName": "gateway.envoyproxy.io/gatewayclass-controller"},
            "provider": {
                "type": "Custom",
                "custom": {
                    "resource": {"type": "File", "file": {"paths": [str(at / "resources")]}},
                    "infrastructure": {"type": "Host", "host": host},
                },
            },
            "extensionApis": {"enableBackend": True},
        }
        (at / "gateway.yaml").write_text(yaml.safe_dump(config))
        self.offer([each.port for each in self.origins])
        made = [self.program, "certgen", "--local", f"--config-home={at / 'config'}"]
        subprocess.run(made, check=True, capture_output=True)
        return self.stand.start("gateway", [self.program, "server", f"--config-path={at / 'gateway.yaml'}"])

    def offer(self, servers: list[int], objects: list[Object] | None = None) -> None:
        made = on_this_machine(shipped() if objects is None else objects, servers, self.grpc)
        text = yaml.safe_dump_all(made, sort_keys=False)
        unfinished = self.stand.directory / "unfinished.yaml"
        unfinished.write_text(text)
        unfinished.replace(self.stand.directory / "resources" / "all.yaml")

    def ask(self, how: str = "json", body: bytes = CHAT, **headers: str) -> Answer:
        sent = {"content-type": "application/json", "x-answer": how}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            with urllib.request.urlopen(urllib.request.Request(FRONT, body, sent), timeout=PATIENCE_S) as response:
                return Answer(response.status, response.headers.get("x-server", ""), response.read())
        except urllib.error.HTTPError as error:
            error.close()
            return Answer(error.code)
        except OSError:
            return Answer(0)

    async def ask_at_once(self, many: int) -> list[int]:
        """Statuses of requests that servers answer when told."""
        headers = {"content-type": "application/json", "x-answer": "late"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one() -> int:
                async with session.post(FRONT, data=CHAT, headers=headers) as response:
                    await response.read()
                    return response.status

            return await asyncio.gather(*(one() for _ in range(many)))

    def arrived(self) -> int:
        """Requests that servers have seen."""
        return sum(len(each.received) for each in self.origins)

    def picks(self) -> list[str]:
        """The destination of every pick so far."""
        lines = [line for line in self.picker.log.read_text().splitlines() if "epp.decision" in line]
        return [line.partition("picked default/")[2].partition(" ")[0] for line in lines]

    def running(self) -> float:
        """Requests that the picker believes to be under way."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        return sum(
            float(line.rpartition(" ")[2]) for line in lines if line.startswith("inference_model_running_requests{")
        )


def picked_servers_answer(scene: Scene) -> None:
    names = {each.address: each.name for each in scene.origins}
    before = len(scene.picks())
    answered = [scene.ask().server for _ in range(20)]
    assert [names[each] for each in scene.picks()[before:]] == answered
    assert set(answered) == {"one", "two"}


def clients_cannot_choose(scene: Scene) -> None:
    """Not with a picker, nor (see `the_picker_dies`) without."""
    one = scene.origins[0].address
    assert {scene.ask(x_gateway_destination_endpoint=one).server for _ in range(20)} == {"one", "two"}


def streams_are_whole_and_their_end_is_seen(scene: Scene) -> None:
    answer = scene.ask("sse:200")
    assert answer.status == 200 and answer.body.count(b"data: ") == 202
    until(lambda: scene.running() == 0)


def long_prompts_arrive_whole(scene: Scene) -> None:
    for size in (100_000, 3_000_000):
        before = len(scene.picks())
        body = b'{"model": "base", "messages": [{"role": "user", "content": "' + b"x" * size + b'"}]}'
        assert scene.ask(body=body).status == 200
        received = max((each.received[-1] for each in scene.origins if each.received), key=lambda one: len(one.body))
        assert received.body == body
        assert len(scene.picks()) == before + 1


def one_that_refuses_is_followed_by_the_next(scene: Scene) -> None:
    """A server that nobody told the gateway to be gone, and the picker neither yet."""
    scene.offer([each.port for each in scene.origins[:1]])
    until(lambda: {scene.ask().server for _ in range(10)} == {"one"}, scene.gateway)
    # Picks of `two` name no server that the gateway knows: they are passed over.
    assert any(each == scene.origins[1].address for each in scene.picks()[-10:])
    scene.offer([each.port for each in scene.origins])
    until(lambda: {scene.ask().server for _ in range(10)} == {"one", "two"}, scene.gateway)


def more_than_a_thousand_at_once(scene: Scene) -> None:
    """The default circuit breakers would fail the 1,025th, or leave it to chance without asking the picker."""
    before, arrived, many = len(scene.picks()), scene.arrived(), 1_200
    statuses: list[int] = []
    clients = threading.Thread(target=lambda: statuses.extend(asyncio.run(scene.ask_at_once(many))))
    clients.start()
    until(lambda: scene.arrived() == arrived + many or not clients.is_alive())
    for each in scene.origins:
        each.release()
    clients.join()
    assert statuses == [200] * many
    assert len(scene.picks()) == before + many


def attached_pools_are_served_likewise(scene: Scene) -> None:
    """Shown by one server less: the objects before know two."""
    scene.offer([scene.origins[1].port], attached())
    until(lambda: {scene.ask().server for _ in range(10)} == {"two"}, scene.gateway)
    picked_by_the_picker = len(scene.picks())
    assert scene.ask().status == 200
    assert len(scene.picks()) == picked_by_the_picker + 1
    scene.offer([each.port for each in scene.origins], attached())
    until(lambda: {scene.ask().server for _ in range(10)} == {"one", "two"}, scene.gateway)


def the_picker_dies(scene: Scene) -> None:
    """In the middle of an answer, and before the next."""
    found: list[Answer] = []
    stream = threading.Thread(target=lambda: found.append(scene.ask("slow:40")))
    stream.start()
    until(lambda: scene.running() == 1)
    scene.picker.kill()
    stream.join()
    assert found[0].status == 200 and found[0].body.count(b"data: ") == 42
    answers = [scene.ask(x_gateway_destination_endpoint=scene.origins[0].address) for _ in range(20)]
    assert {each.status for each in answers} == {200}
    assert {each.server for each in answers} == {"one", "two"}


def main(program: str, directory: Path) -> None:
    loopback_up()
    with Origin("one") as one, Origin("two") as two, Stand(directory) as stand:
        scene = Scene(stand, program, [one, two])
        try:
            until(lambda: scene.ask().status == 200, scene.gateway)
            picked_servers_answer(scene)
            clients_cannot_choose(scene)
            streams_are_whole_and_their_end_is_seen(scene)
            long_prompts_arrive_whole(scene)
            one_that_refuses_is_followed_by_the_next(scene)
            more_than_a_thousand_at_once(scene)
            attached_pools_are_served_likewise(scene)
            the_picker_dies(scene)
        except BaseException:
            print(scene.gateway.output(30))
            raise


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
