"""One run: simulated servers, a picker and an Envoy on loopback, and everybody who asks."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench.load.client import Result, run
from bench.load.workload import Session
from bench.pressure.workload import PRIORITIES, Flow
from bench.processes import ROOT, Stand

SERVERS = 2
PROFILE = "Qwen2.5-32B@H200"
"""Alone, 10,800 prompt tokens a second; 8,192 of them in a step."""

CONFIG = ROOT / "config" / "flow-control.yaml"

OBJECTIVE = """apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {{name: {name}}}
spec: {{priority: {priority}, poolRef: {{name: pool}}}}
---
"""


def measure(
    directory: Path, flows: Mapping[Flow, Sequence[Session]], *, flow_control: bool
) -> Mapping[Flow, Sequence[Result]]:
    """Send all requests at their times; with the sample configuration for flow control, or with its gate closed."""
    directory.mkdir(parents=True)
    with Stand(directory) as stand:
        servers = [stand.replica([f"--profile={PROFILE}"])[1] for _ in range(SERVERS)]
        port, _ = stand.lean(
            [
                *(f"--endpoint=127.0.0.1:{server}" for server in servers),
                *("--seed=1", "--pool-name=pool", f"--resources={_objectives(directory)}"),
                f"--config-file={_config(directory, flow_control)}",
            ]
        )
        return asyncio.run(_everybody(f"http://127.0.0.1:{port}", flows))


def _objectives(directory: Path) -> Path:
    path = directory / "objectives"
    path.mkdir()
    objects = [OBJECTIVE.format(name=name, priority=priority) for name, priority in PRIORITIES.items()]
    (path / "all.yaml").write_text("".join(objects))
    return path


def _config(directory: Path, flow_control: bool) -> Path:
    path = directory / "config.yaml"
    text = CONFIG.read_text()
    path.write_text(text if flow_control else text.replace("[flowControl]", "[flowControl=false]"))
    return path


async def _everybody(url: str, flows: Mapping[Flow, Sequence[Session]]) -> Mapping[Flow, Sequence[Result]]:
    def asked(flow: Flow) -> dict[str, str]:
        objective, tenant = flow
        return {"x-llm-d-inference-objective": objective, "x-llm-d-inference-fairness-id": tenant}

    runs = [run(sessions, url, headers=asked(flow), timeout_s=300.0) for flow, sessions in flows.items()]
    return dict(zip(flows, await asyncio.gather(*runs), strict=True))
