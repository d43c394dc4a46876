"""CPU per request, per chunk, idle, and memory: ours, divided by a bare `grpc.aio` echo measured in the same run.

    python -m bench.cost [--seconds S] [--rows NAME,...]

Each row starts its own scene: Envoy with one worker, the picker, origins that answer at once, and `wrk` as load. CPU is
user + system time of the picker's process ÷ requests that wrk counted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import yaml
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench.cost.origin import address
from bench.processes import ENVOY_CONFIGS, ROOT, Process, Stand, StartError, answers, envoy_config, free_port

RESULTS = ROOT / "bench" / "results"
PAGES = ROOT / "tests" / "data" / "metrics"
SMALL_PAGE = (
    b"".join(
        b'# HELP %s x\n# TYPE %s gauge\n%s{engine="0",model_name="base"} 0.0\n' % (name, name, name)
        for name in (b"vllm:num_requests_running", b"vllm:num_requests_waiting", b"vllm:kv_cache_usage_perc")
    )
    + b'vllm:cache_config_info{block_size="16",num_gpu_blocks="20000"} 1.0\n'
    + b'vllm:lora_requests_info{max_lora="0",running_lora_adapters="",waiting_lora_adapters=""} 1.0\n'
)


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `budget` and `go` are ratios to the echo's CPU per small request, or cores, or MB (`unit`)."""

    name: str
    title: str
    budget: float
    go: float | None
    unit: str = "r"
    prompt_bytes: int = 2400
    endpoints: int = 8
    lean: bool = False
    events: int = 0
    real_page: bool = False
    connections: int = 16


ROWS = (
    Row(name="small", title="small chat (2.4 KB)", budget=0.25, go=0.75),
    Row(name="20k", title="20 KB prompt", budget=0.35, go=2.0, prompt_bytes=20_000),
    Row(name="100k", title="100 KB prompt", budget=0.9, go=5.9, prompt_bytes=100_000),
    Row(name="400k", title="400 KB prompt", budget=2.5, go=20.0, prompt_bytes=400_000),
    Row(name="chunk", title="streamed response chunk, full duplex", budget=0.02, go=0.09, events=200),
    Row(name="lean", title="small chat, lean mode", budget=0.2, go=None, lean=True),
    Row(name="lean-chunk", title="streamed response chunk, lean mode", budget=0.0, go=None, lean=True, events=200),
    Row(name="100", title="100 endpoints, 0.6 KB pages", budget=0.3, go=1.8, endpoints=100),
    Row(name="1000", title="1,000 endpoints, 0.6 KB pages", budget=0.8, go=25.0, endpoints=1000),
    Row(
        name="100-real", title="100 endpoints, real pages (51 KB)", budget=0.35, go=None, endpoints=100, real_page=True
    ),
    Row(name="idle-8", title="idle, 8 endpoints, real pages", budget=0.005, go=0.34, unit="cores", real_page=True),
    Row(
        name="idle-100",
        title="idle, 100, real pages",
        budget=0.05,
        go=1.84,
        unit="cores",
        endpoints=100,
        real_page=True,
    ),
    Row(name="idle-1000", title="idle, 1,000, 0.6 KB pages", budget=0.25, go=1.3, unit="cores", endpoints=1000),
    Row(name="memory-rest", title="memory at rest", budget=90, go=77, unit="MB"),
    Row(name="memory-400k", title="memory under 400 KB prompts", budget=140, go=240, unit="MB", prompt_bytes=400_000),
)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """`value` is in the row's unit (microseconds for "r" rows, divided later)."""

    value: float
    envoy_us: float | None = None
    per_second: float | None = None


class Scene:
    """Origins, Envoy and whatever answers ext_proc, for one row."""

    def __init__(self, stand: Stand, row: Row, *, echo: bool = False) -> None:
        self.stand = stand
        self.row = row
        self.port, self.admin, self.grpc, self.health, self.metrics = (free_port() for _ in range(5))
        self.origin_port = free_port()
        page = stand.directory / "page.txt"
        page.write_bytes(_real_page() if row.real_page else SMALL_PAGE)
        count = 1 if echo else row.endpoints
        self.endpoints = [f"{address(number)}:{self.origin_port}" for number in range(count)]
        origin = stand.start(
            "origin",
            [sys.executable, "-m", "bench.cost.origin", str(self.origin_port), str(count), str(page)],
            cwd=ROOT,
        )
        origin.wait_until(lambda: answers(f"http://{self.endpoints[-1]}/metrics"), 20)
        self.eds = stand.directory / "eds" / "servers.yaml"
        self.eds.parent.mkdir()
        self.picker = self._start_echo() if echo else self._start_picker()
        self.envoy = self._start_envoy()

    def _start_echo(self) -> Process:
        process = self.stand.start(
            "echo", [sys.executable, "-m", "bench.cost.echo", str(self.grpc), self.endpoints[0]], cwd=ROOT
        )
        process.wait_until(lambda: _listens(self.grpc), 20)
        return process

    def _start_picker(self) -> Process:
        pool = self.stand.directory / "endpoints.yaml"
        entries = [
            {"name": f"server-{number}", "address": endpoint.split(":")[0], "port": self.origin_port}
            for number, endpoint in enumerate(self.endpoints)
        ]
        pool.write_text(json.dumps({"endpoints": entries}))
        config = self.stand.directory / "config.yaml"
        config.write_text(_picker_config(pool))
        return self.stand.picker(
            [
                "--host=127.0.0.1",
                f"--grpc-port={self.grpc}",
                f"--grpc-health-port={self.health}",
                f"--metrics-port={self.metrics}",
                f"--envoy-eds-file={self.eds}",
                f"--config-file={config}",
                "--secure-serving=false",
                "--metrics-endpoint-auth=false",
            ],
            metrics=self.metrics,
        )

    def _start_envoy(self) -> Process:
        source = ENVOY_CONFIGS / ("lean.yaml" if self.row.lean else "full-duplex.yaml")

        def without_checks(config: dict[str, Any]) -> None:
            # Health checks of a thousand servers would be counted as Envoy's cost of a request.
            for cluster in config["static_resources"]["clusters"]:
                cluster.pop("health_checks", None)

        return self.stand.envoy(
            envoy_config(
                source, listen=self.port, admin=self.admin, picker=self.grpc, eds=self.eds, edit=without_checks
            )
        )

    def load(self, seconds: float) -> int:
        """Run wrk. Returns the requests that were answered. Raises StartError when any failed."""
        path = "/v1/chat/completions" + (f"?events={self.row.events}" if self.row.events else "")
        result = subprocess.run(
            [
                *(
                    "wrk",
                    "-t1",
                    f"-c{self.row.connections}",
                    f"-d{seconds:g}s",
                    "-s",
                    str(Path(__file__).with_name("bodies.lua")),
                ),
                f"http://127.0.0.1:{self.port}{path}",
                *("--", str(self.row.prompt_bytes), "true" if self.row.events else "false"),
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        if "Non-2xx" in result.stdout:
            raise StartError(f"requests failed in row {self.row.name}:\n{result.stdout}\n{self.picker.output()}")
        found = re.search(r"(\d+) requests in", result.stdout)
        assert found is not None, result.stdout
        return int(found[1])


def measure(scene: Scene, seconds: float) -> Measured:
    row = scene.row
    if row.unit == "cores":
        time.sleep(3)
        before, began = scene.picker.cpu_seconds(), time.monotonic()
        time.sleep(max(seconds, 10))
        return Measured(value=(scene.picker.cpu_seconds() - before) / (time.monotonic() - began))
    if row.unit == "MB" and row.name == "memory-rest":
        time.sleep(2)
        return Measured(value=scene.picker.resident_bytes() / 1e6)
    scene.load(2)
    before, envoy_before = scene.picker.cpu_seconds(), scene.envoy.cpu_seconds()
    requests = scene.load(seconds)
    value = (scene.picker.cpu_seconds() - before) / requests * 1e6
    envoy = (scene.envoy.cpu_seconds() - envoy_before) / requests * 1e6
    if row.unit == "MB":
        return Measured(value=scene.picker.resident_bytes() / 1e6)
    return Measured(value=value, envoy_us=envoy, per_second=requests / seconds)


def _picker_config(pool: Path) -> str:
    """The default policy over a file of endpoints."""
    base = (ROOT / "config" / "default.yaml").read_text()
    config: dict[str, Any] = yaml.safe_load(base)
    config["plugins"].append({"type": "file-discovery", "parameters": {"path": str(pool)}})
    config["dataLayer"] = {"discovery": {"pluginRef": "file-discovery"}}
    return yaml.safe_dump(config, sort_keys=False)


def _real_page() -> bytes:
    return next(PAGES.glob("vllm-0.32*.txt")).read_bytes()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _with_scene(row: Row, use: Callable[[Scene], Measured], *, echo: bool = False) -> Measured:
    with tempfile.TemporaryDirectory(prefix="epp-cost-") as directory, Stand(Path(directory)) as stand:
        return use(Scene(stand, row, echo=echo))


def _per_chunk(row: Row, measured: Measured, seconds: float) -> Measured:
    """The cost of a chunk: a streamed request less one without a stream, over its chunks."""
    plain = msgspec.structs.replace(row, events=0)
    bare = _with_scene(plain, lambda scene: measure(scene, seconds))
    assert bare.envoy_us is not None and measured.envoy_us is not None
    return Measured(
        value=max(0.0, measured.value - bare.value) / row.events,
        envoy_us=(measured.envoy_us - bare.envoy_us) / row.events,
        per_second=measured.per_second,
    )


def run(rows: Sequence[Row], seconds: float, console: Console) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console) as progress:
        task = progress.add_task("bare grpc.aio echo", total=None)
        unit = _with_scene(ROWS[0], lambda scene: measure(scene, seconds), echo=True)
        for row in rows:
            progress.update(task, description=row.title)
            measured = _with_scene(row, lambda scene: measure(scene, seconds))
            if row.events:
                measured = _per_chunk(row, measured, seconds)
            value = measured.value / unit.value if row.unit == "r" else measured.value
            results.append(
                {
                    "row": row.name,
                    "title": row.title,
                    "unit": row.unit,
                    "value": value,
                    "us": measured.value if row.unit == "r" else None,
                    "envoy_us": measured.envoy_us,
                    "envoy_r": None if measured.envoy_us is None else measured.envoy_us / unit.value,
                    "requests_per_s": measured.per_second,
                    "budget": row.budget,
                    "go_picker": row.go,
                    "within": value <= row.budget + (0.002 if row.unit == "r" else 0),
                }
            )
    results.insert(
        0, {"row": "echo", "title": "bare grpc.aio echo", "unit": "us", "value": unit.value, "envoy_us": unit.envoy_us}
    )
    return results


def show(results: list[dict[str, Any]], console: Console) -> None:
    echo, *rows = results
    console.print(
        f"\nbare grpc.aio echo: {echo['value']:.0f} µs of CPU a request = 1 r (Envoy beside it {echo['envoy_us']:.0f} µs)\n"
    )
    table = Table(box=None, pad_edge=False)
    for column in (
        "work (8 endpoints, full duplex, unless said)",
        "Go picker",
        "budget",
        "measured",
        "µs",
        "Envoy r",
        "req/s",
        "",
    ):
        table.add_column(column, justify="left" if column.startswith("work") else "right")
    for row in rows:
        unit = "" if row["unit"] == "r" else f" {row['unit']}"
        table.add_row(
            row["title"],
            "–" if row["go_picker"] is None else f"{row['go_picker']:g}{unit}",
            f"{row['budget']:g}{unit}",
            f"{row['value']:.3f}{unit}" if row["unit"] != "MB" else f"{row['value']:.0f}{unit}",
            "" if row["us"] is None else f"{row['us']:.0f}" if row["us"] >= 20 else f"{row['us']:.1f}",
            "" if row["envoy_r"] is None else f"{row['envoy_r']:.2f}",
            "" if row["requests_per_s"] is None else f"{row['requests_per_s']:,.0f}",
            "[green]within[/]" if row["within"] else "[red]over[/]",
        )
    console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench.cost", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="load per row, in seconds (default 6)")
    parser.add_argument(
        "--rows", default="", help=f"comma list of rows (default all): {', '.join(r.name for r in ROWS)}"
    )
    args = parser.parse_args()
    console = Console()
    if shutil.which("wrk") is None:
        console.print("wrk is not installed: `apt-get install wrk` (it is the load generator of this benchmark)")
        return 2
    wanted = {name for name in args.rows.split(",") if name}
    unknown = wanted - {row.name for row in ROWS}
    if unknown:
        console.print(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in ROWS)}")
        return 2
    rows = [row for row in ROWS if not wanted or row.name in wanted]
    try:
        results = run(rows, args.seconds, console)
    except StartError as error:
        console.print(f"[red]{error}[/]")
        return 1
    show(results, console)
    RESULTS.mkdir(exist_ok=True)
    machine = {
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "processor": _processor(),
    }
    path = RESULTS / "cost.json"
    path.write_text(json.dumps({"machine": machine, "rows": results}, indent=1) + "\n")
    console.print(f"\nwritten to {path.relative_to(ROOT)}")
    return 0


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


if __name__ == "__main__":
    sys.exit(main())
