"""The parts of the demo: servers, picker, Envoy, on loopback, each announced when it is ready."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import aiohttp
import msgspec

from bench.processes import ENVOY_CONFIGS, ROOT, Process, Stand, StartError, envoy_config, free_port, require_free

ADAPTERS = ("lora-a", "lora-b", "lora-c")
BASE = "base"
REPLICAS = 4
_LISTENING = re.compile(r"^listening on (\S+)$", re.MULTILINE)
READY_S = 40.0
"""How long a part may take to become ready; all of them need a second or two on an idle laptop."""

Announce = Callable[[str, str], None]
"""Told (part, where it listens) when a part is ready."""


class Policy(msgspec.Struct, frozen=True):
    """A configuration of the picker under the name that the demo gives it."""

    name: str
    config: Path


ROUND_ROBIN = Policy("round robin", ROOT / "config" / "round-robin.yaml")
DEFAULT = Policy("epp default", ROOT / "config" / "ranked.yaml")


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Where Envoy and the picker listen, all on 127.0.0.1."""

    client: int
    admin: int
    grpc: int
    health: int
    metrics: int


def choose_ports(client: int) -> Ports:
    """The well-known ports with `client` for clients; free ones for all if `client` is 0.

    Raises StartError that names a port in use and what to do.
    """
    admin = free_port()
    if client == 0:
        return Ports(client=free_port(), admin=admin, grpc=free_port(), health=free_port(), metrics=free_port())
    ports = Ports(client=client, admin=admin, grpc=9002, health=9003, metrics=9090)
    for port, what in (
        (ports.client, "clients (Envoy)"),
        (ports.grpc, "the picker's ext_proc"),
        (ports.health, "the picker's health checks"),
        (ports.metrics, "the picker's metrics"),
    ):
        try:
            require_free(port, what)
        except StartError as error:
            raise StartError(
                f"{error}: --port N is where clients go, --port 0 takes free ports for all parts"
            ) from None
    return ports


class Scene(msgspec.Struct, frozen=True):
    """What runs. `servers` are `host:port`, as the picker's decisions name them."""

    servers: tuple[str, ...]
    ports: Ports
    parts: tuple[Process, ...]
    picker_log: Path

    @property
    def url(self) -> str:
        """Where clients send requests."""
        return f"http://127.0.0.1:{self.ports.client}"

    @property
    def metrics_url(self) -> str:
        """The picker's observation port."""
        return f"http://127.0.0.1:{self.ports.metrics}"

    def require_alive(self) -> None:
        """Raises StartError naming a part that has ended."""
        for part in self.parts:
            if not part.running:
                raise StartError(f"{part.name} ended with status {part.child.returncode}:\n{part.output()}")


async def start(
    stand: Stand,
    policy: Policy,
    port: int,
    servers: Sequence[str],
    seed: int,
    client: aiohttp.ClientSession,
    announce: Announce,
) -> Scene:
    """Start everything in `stand`, which ends it; simulated servers if there are no `servers`. Returns when all is ready.

    `port` is as for `choose_ports`. Raises StartError. Processes are started between awaits only, so cancelling leaves none
    outside `stand`.
    """
    names = tuple(servers) or await _replicas(stand, announce)
    # Late, since a free port stays free only as long as nobody else looks for one.
    ports = choose_ports(port)
    eds = stand.directory / "eds" / "servers.yaml"
    eds.parent.mkdir()
    picker = stand.start("picker", [sys.executable, "-m", "epp", "run", *_picker_args(policy, ports, names, seed, eds)])
    # Envoy after the picker: it reads the list of servers that the picker writes.
    await _ready(picker, f"http://127.0.0.1:{ports.metrics}/readyz", client)
    announce("picker", f"127.0.0.1:{ports.grpc} (health {ports.health}, metrics {ports.metrics})")
    config = envoy_config(
        ENVOY_CONFIGS / "lean.yaml", listen=ports.client, admin=ports.admin, picker=ports.grpc, eds=eds
    )
    envoy = stand.start_envoy(config)
    await _ready(envoy, f"http://127.0.0.1:{ports.admin}/ready", client)
    announce(
        "Envoy", f"127.0.0.1:{ports.client} (send it requests of your own: curl -i localhost:{ports.client}/v1/models)"
    )
    return Scene(names, ports, tuple(stand.processes), picker.log)


async def _replicas(stand: Stand, announce: Announce) -> tuple[str, ...]:
    models = ",".join((BASE, *ADAPTERS))
    argv = [sys.executable, "-m", "bench.replica", "--port", "0", "--models", models]
    processes = [stand.start("server", argv, cwd=ROOT) for _ in range(REPLICAS)]
    names: list[str] = []
    for number, process in enumerate(processes, 1):
        names.append(await _listening(process))
        announce(f"server {number}", names[-1])
    return tuple(names)


async def _listening(process: Process) -> str:
    """The `host:port` that a replica took, once it says so. Raises StartError."""
    deadline_s = time.monotonic() + READY_S
    while (said := _LISTENING.search(process.log.read_text())) is None:
        process.require_coming(deadline_s)
        await asyncio.sleep(0.05)
    return said[1]


def _picker_args(policy: Policy, ports: Ports, servers: Sequence[str], seed: int, eds: Path) -> list[str]:
    return [
        "--host=127.0.0.1",
        f"--grpc-port={ports.grpc}",
        f"--grpc-health-port={ports.health}",
        f"--metrics-port={ports.metrics}",
        "--secure-serving=false",
        f"--envoy-eds-file={eds}",
        f"--config-file={policy.config}",
        f"--seed={seed}",
        # A line of JSON per decision: how the demo knows where each request went.
        "--v=4",
        "--log-format=json",
        *(f"--endpoint={server}" for server in servers),
    ]


async def _ready(process: Process, url: str, client: aiohttp.ClientSession) -> None:
    """Returns when a GET of `url` gives 200. Raises StartError when the process ends or takes too long."""
    deadline_s = time.monotonic() + READY_S
    while not await _answers(url, client):
        process.require_coming(deadline_s)
        await asyncio.sleep(0.05)


async def _answers(url: str, client: aiohttp.ClientSession) -> bool:
    try:
        async with client.get(url, timeout=aiohttp.ClientTimeout(total=1.0)) as response:
            return response.status == 200
    except (aiohttp.ClientError, OSError, TimeoutError):
        return False
