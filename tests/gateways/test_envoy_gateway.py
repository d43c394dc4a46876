"""Our manifests through a real Envoy Gateway, in a network of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import ROOT


def in_its_own_network() -> list[str]:
    """What precedes a command; skips where that is not allowed."""
    for options in (["--net"], ["--net", "--user", "--map-root-user"]):
        command = ["unshare", *options]
        if (
            shutil.which("unshare")
            and subprocess.run([*command, "true"], check=False, capture_output=True).returncode == 0
        ):
            return command
    pytest.skip("left out: this machine lets nobody make a network namespace")


@pytest.mark.gateway
def test_it_picks_streams_fails_open_and_lets_no_client_choose(envoy_gateway: Path, tmp_path: Path) -> None:
    scene = [sys.executable, "-m", "tests.gateways.envoy_gateway", str(envoy_gateway), str(tmp_path)]
    done = subprocess.run(
        [*in_its_own_network(), *scene], check=False, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
