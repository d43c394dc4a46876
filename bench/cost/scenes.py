"""Envoy with one worker, origins that answer at once, and whatever answers ext_proc: as child processes, under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from bench.cost.origin import address
from bench.cost.rows import Row
from bench.processes import ENVOY_CONFIGS, ROOT, Process, Stand, StartError, answers, envoy_config, free_port
from epp.discovery.eds import eds_document
from epp.endpoint import Endpoint

PAGES = ROOT / "tests" / "data" / "metrics"
SMALL_PAGE = (
    b"".join(
        b'# HELP %s x\n# TYPE %s gauge\n%s{engine="0",model_name="base"} 0.0\n' % (name, name, name)
        for name in (b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"vllm:kv_cache_usage_perc")
    )
    + b'vllm:cache_config_info{block_size="16",num_gpu_blocks="20000"} 1.0\n'
    + b'vllm:lora_requests_info{max_lora="0",running_lora_adapters="",waiting_lora_adapters=""} 1.0\n'
)


class Load(msgspec.Struct, frozen=True):
    """CPU microseconds per answered request of what answers ext_proc and of Envoy, and answers per second."""

    us: float
    envoy_us: float
    per_second: float


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """While inside, a spinner of idle priority keeps each core from sleeping: it yields to whoever wants the core.

    A virtual core that halts takes the hypervisor tens of microseconds to wake, at every message from one process to another.
    """
    # A session of its own each: where the kernel groups processes by session, a group has the weight of any other, whatever the
    # priority of who is in it, and a spinner would take a third of its core from those who are measured.
    spinners = [
        subprocess.Popen([sys.executable, "-c", _SPIN.format(core=core)], start_new_session=True)
        for core in sorted(os.sched_getaffinity(0))
    ]
    try:
        yield
    finally:
        for spinner in spinners:
            spinner.kill()
            spinner.wait()


_SPIN = """
import contextlib, os
with contextlib.suppress(OSError):
    open("/proc/self/autogroup", "w").write("19")
os.sched_setaffinity(0, {{{core}}})
os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
while True:
    pass
"""


class Scene:
    """One row's processes. `who` answers ext_proc: the picker, the bare echo, the constant control, or nobody (Envoy forwards
    by itself)."""

    def __init__(self, stand: Stand, row: Row, who: str = "picker") -> None:
        self.stand = stand
        self.row = row
        self.directory = stand.directory / f"{who}-{row.name}"
        self.directory.mkdir()
        self.port, self.admin, self.grpc, self.health, self.metrics = (free_port() for _ in range(5))
        self.origin_port = free_port()
        page = self.directory / "page.txt"
        page.write_bytes((PAGES / "vllm-0.32.0.txt").read_bytes() if row.real_page else SMALL_PAGE)
        count = row.endpoints if who == "picker" else 1
        self.endpoints = [f"{address(number)}:{self.origin_port}" for number in range(count)]
        origin = stand.start(
            "origin",
            [sys.executable, "-m", "bench.cost.origin", str(self.origin_port), str(count), str(page)],
            cwd=ROOT,
        )
        origin.wait_until(lambda: answers(f"http://{self.endpoints[-1]}/metrics"), 20)
        self.eds = self.directory / "eds" / "servers.yaml"
        self.eds.parent.mkdir()
        if who == "constant":
            host, port = self.endpoints[0].split(":")
            self.eds.write_text(eds_document("servers", [Endpoint(name="origin", address=host, port=int(port))]))
        self.picker = self._picker() if who == "picker" else origin if who == "nobody" else self._other(who)
        self.envoy = self._envoy(who)

    def _other(self, who: str) -> Process:
        argv = [sys.executable, "-m", f"bench.cost.{who}", str(self.grpc), self.endpoints[0]]
        process = self.stand.start(who, argv, cwd=ROOT)
        process.wait_until(lambda: _listens(self.grpc), 20)
        return process

    def _picker(self) -> Process:
        pool = self.directory / "endpoints.yaml"
        entries = [
            {"name": f"server-{number}", "address": endpoint.split(":")[0], "port": self.origin_port}
            for number, endpoint in enumerate(self.endpoints)
        ]
        pool.write_text(json.dumps({"endpoints": entries}))
        config = self.directory / "config.yaml"
        config.write_text(_picker_config(pool))
        args = [
            "--host=127.0.0.1",
            f"--grpc-port={self.grpc}",
            f"--grpc-health-port={self.health}",
            f"--metrics-port={self.metrics}",
            f"--envoy-eds-file={self.eds}",
            f"--config-file={config}",
            f"--secure-serving={'true' if self.row.tls else 'false'}",
            "--metrics-endpoint-auth=false",
        ]
        return self.stand.picker(args, metrics=self.metrics)

    def _envoy(self, who: str) -> Process:
        source = ENVOY_CONFIGS / ("lean.yaml" if self.row.lean else "full-duplex.yaml")

        def edit(config: dict[str, Any]) -> None:
            # Health checks of a thousand servers would be counted as Envoy's cost of a request.
            for cluster in config["static_resources"]["clusters"]:
                cluster.pop("health_checks", None)
            if self.row.tls:
                _to_picker_by_tls(config)
            if who == "nobody":
                _by_itself(config, self.endpoints[0])

        return self.stand.envoy(
            envoy_config(source, listen=self.port, admin=self.admin, picker=self.grpc, eds=self.eds, edit=edit)
        )

    def load(self, seconds: float, row: Row | None = None) -> Load:
        """Run wrk with the requests of `row`, this scene's by default. Raises StartError when any request failed."""
        before, envoy_before = self.picker.cpu_seconds(), self.envoy.cpu_seconds()
        requests = self._wrk(seconds, row or self.row)
        us = (self.picker.cpu_seconds() - before) / requests * 1e6
        return Load(us, (self.envoy.cpu_seconds() - envoy_before) / requests * 1e6, requests / seconds)

    def _wrk(self, seconds: float, row: Row) -> int:
        path = "/v1/chat/completions"
        if row.events:
            path += f"?events={row.events}&turns={max(row.events, row.turns)}"
        script = Path(__file__).with_name("bodies.lua")
        argv = ["wrk", "-t1", f"-c{row.connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
        told = [str(row.prompt_bytes), "true" if row.events else "false", "shared" if row.shared else "distinct"]
        url = f"http://127.0.0.1:{self.port}{path}"
        result = subprocess.run([*argv, url, "--", *told], capture_output=True, text=True, check=True)
        if "Non-2xx" in result.stdout:
            raise StartError(f"requests failed in row {row.name}:\n{result.stdout}\n{self.picker.output()}")
        found = re.search(r"(\d+) requests in", result.stdout)
        assert found is not None, result.stdout
        return max(1, int(found[1]))

    def latency(self, rate: float, seconds: float) -> dict[str, float]:
        """Milliseconds at `rate` requests per second, by `bench.cost.prober`."""
        argv = [sys.executable, "-m", "bench.cost.prober", str(self.port), str(rate), str(seconds)]
        result = subprocess.run(
            [*argv, str(self.row.prompt_bytes)], cwd=ROOT, capture_output=True, text=True, check=True
        )
        measured: dict[str, float] = json.loads(result.stdout)
        return measured

    def idle_cores(self, seconds: float) -> float:
        time.sleep(3)
        before, began = self.picker.cpu_seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.picker.cpu_seconds() - before) / (time.monotonic() - began)


def _to_picker_by_tls(config: dict[str, Any]) -> None:
    """As `deploy/envoy/picker-tls.yaml`, but without a check of the self-signed certificate."""
    context = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"alpn_protocols": ["h2"]},
    }
    for cluster in config["static_resources"]["clusters"]:
        if cluster["name"] == "picker":
            cluster["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}


def _by_itself(config: dict[str, Any], endpoint: str) -> None:
    """Without ext_proc: every request goes to `endpoint`."""
    resources = config["static_resources"]
    manager = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    manager["http_filters"] = manager["http_filters"][-1:]
    host, port = endpoint.split(":")
    socket_address = {"socket_address": {"address": host, "port_value": int(port)}}
    kept = [cluster for cluster in resources["clusters"] if cluster["name"] == "picker"]
    servers = {
        "name": "servers",
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": "servers",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket_address}}]}],
        },
    }
    resources["clusters"] = [*kept, servers]


def _picker_config(pool: Path) -> str:
    """The default policy over a file of endpoints."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "config" / "default.yaml").read_text())
    config["plugins"].append({"type": "file-discovery", "parameters": {"path": str(pool)}})
    config["dataLayer"] = {"discovery": {"pluginRef": "file-discovery"}}
    return yaml.safe_dump(config, sort_keys=False)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
