"""Scenes with a real Envoy and a real picker in front of origins whose every byte is under the test's control."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.processes import ENVOY_CONFIGS, Process, Stand, answers, envoy_config, free_port
from tests.integration.origin import Origin
from tests.waiting import PATIENCE_S

LEAN = ENVOY_CONFIGS / "lean.yaml"
FULL_DUPLEX = ENVOY_CONFIGS / "full-duplex.yaml"

CHAT = {"model": "base", "messages": [{"role": "user", "content": "Say hello."}]}


class Answer(msgspec.Struct):
    """One HTTP answer, whole. `headers` are lower case; `cut` when the connection broke before the body's end."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    def json(self) -> Any:
        return json.loads(self.body)


def ask(
    port: int,
    body: Mapping[str, object] | bytes | None = CHAT,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = PATIENCE_S,
    begun: threading.Event | None = None,
    body_after_s: float | None = None,
) -> Answer:
    """One request through the proxy on `port`, on a connection of its own. `begun` is set when its answer's headers are there,
    `body_after_s` holds the body back for so long.
    """
    payload = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        send = {"content-type": "application/json", **(headers or {})}
        if body_after_s is None or payload is None:
            connection.request(method, path, body=payload, headers=send)
        else:
            connection.request(method, path, headers={**send, "content-length": str(len(payload))})
            time.sleep(body_after_s)
            connection.send(payload)
        response = connection.getresponse()
        if begun is not None:
            begun.set()
        received = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Answer(response.status, received, response.read())
        except http.client.IncompleteRead as cut:
            return Answer(response.status, received, cut.partial, cut=True)
        except ConnectionError:
            return Answer(response.status, received, b"", cut=True)
    finally:
        connection.close()


class Scene:
    """Origins, one picker, one Envoy. `port` is where clients go."""

    def __init__(self, stand: Stand, origins: Sequence[Origin]) -> None:
        self.stand = stand
        self.origins = origins
        self.port = free_port()
        self.admin = free_port()
        self.grpc = free_port()
        self.health = free_port()
        self.metrics = free_port()
        self.eds = stand.directory / "eds" / "servers.yaml"
        self.eds.parent.mkdir(exist_ok=True)
        self.picker: Process | None = None
        self.envoy: Process | None = None

    def picker_args(self, *args: str) -> list[str]:
        """Of `epp run`; later flags go before earlier ones."""
        endpoints = [f"--endpoint={origin.address}" for origin in self.origins]
        own = [
            "--host=127.0.0.1",
            f"--grpc-port={self.grpc}",
            f"--grpc-health-port={self.health}",
            f"--metrics-port={self.metrics}",
            f"--envoy-eds-file={self.eds}",
            "--secure-serving=false",
            "--metrics-endpoint-auth=false",
            # A test machine that is busy with other tests must not turn picks into a lottery.
            "--max-loop-lag=0s",
        ]
        return [*own, *endpoints, *args]

    def start_picker(self, *args: str) -> Process:
        self.picker = self.stand.picker(self.picker_args(*args), metrics=self.metrics)
        return self.picker

    def start_envoy(self, source: Path, edit: Callable[[dict[str, Any]], None] | None = None) -> Process:
        config = envoy_config(
            source, listen=self.port, admin=self.admin, picker=self.grpc, eds=self.eds.resolve(), edit=edit
        )
        self.envoy = self.stand.envoy(config)
        return self.envoy

    def ask(self, *args: Any, **named: Any) -> Answer:
        return ask(self.port, *args, **named)

    def origin_of(self, answer: Answer) -> Origin:
        return next(origin for origin in self.origins if origin.name == answer.headers["x-server"])

    def metric(self, name: str, **labels: str) -> float:
        """Sum over all series of `name` that have `labels`, on the picker's metrics page."""
        connection = http.client.HTTPConnection("127.0.0.1", self.metrics, timeout=PATIENCE_S)
        connection.request("GET", "/metrics")
        page = connection.getresponse().read().decode()
        connection.close()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rsplit(" ", 1)[1])
            for line in page.splitlines()
            if line.startswith((f"{name}{{", f"{name} ")) and all(label in line for label in wanted)
        )

    def picker_answers(self) -> bool:
        return answers(f"http://127.0.0.1:{self.metrics}/healthz", PATIENCE_S)


@pytest.fixture(scope="module")
def make_scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Scene]]:
    """Makes scenes that live as long as the test module. Argument: how many origins."""
    stands: list[Stand] = []
    origins: list[Origin] = []

    def make(count: int = 3) -> Scene:
        stands.append(Stand(tmp_path_factory.mktemp("scene")))
        own = [Origin(f"origin-{number}") for number in range(count)]
        origins.extend(own)
        return Scene(stands[-1], own)

    yield make
    for stand in stands:
        stand.close()
    for origin in origins:
        origin.close()
