"""The demo as a stranger runs it: a process that starts everything, shows it, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.processes import ROOT, Stand, free_port

MARK = "EPP_DEMO_TEST"
SHORT = ("--seconds=0.5", "--rate=8")
NUMBERS = r"[\d,]+ ms"


class Demo:
    """One run of the demo. Everything that it starts inherits a mark in its environment, by which it is found again."""

    def __init__(self, output: Path, *args: str) -> None:
        self.mark = f"{MARK}={secrets.token_hex(8)}"
        self.temporary = output.parent / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._output = output
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, name: value, "TMPDIR": str(self.temporary)}
        with output.open("wb") as stream:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "bench.demo", *args],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, cwd=ROOT, env=environment,
            )  # fmt: skip

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait(self) -> int:
        return self.child.wait(60)

    def wait_for(self, text: str) -> None:
        """Until the output has `text`."""
        deadline = time.monotonic() + 60
        while text not in self.output:
            assert self.child.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.02)

    def processes(self) -> dict[int, str]:
        """Pid to command line of all that live with this run's mark."""
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if self.mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
        return found

    def require_clean(self) -> None:
        """Neither a process nor a directory is left."""
        assert self.processes() == {}
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def run_demo(tmp_path: Path) -> Iterator[list[Demo]]:
    """Runs started by a test, ended with it whatever happens."""
    started: list[Demo] = []
    yield started
    for demo in started:
        for pid in demo.processes():
            os.kill(pid, signal.SIGKILL)
        demo.child.wait()


def begin(runs: list[Demo], directory: Path, *args: str) -> Demo:
    home = directory / str(len(runs))
    home.mkdir()
    runs.append(Demo(home / "output", *args))
    return runs[-1]


def test_it_shows_both_runs_compares_them_and_leaves_nothing(run_demo: list[Demo], tmp_path: Path) -> None:
    demo = begin(run_demo, tmp_path, "--port=0", "--seed=3", *SHORT)
    assert demo.wait() == 0, demo.output
    output = demo.output
    for part in ("server 1", "server 2", "server 3", "server 4", "picker", "Envoy"):
        assert len(re.findall(rf"ready  {part} +127\.0\.0\.1:\d+", output)) == 2, part
    assert output.index("round robin: ") < output.index("epp default: ") < output.index("same order")
    assert re.search(rf"time to first token, mean +{NUMBERS} +{NUMBERS} +[-+]\d+%", output)
    assert re.search(r"errors +0 +0\s", output)
    total = int(re.search(r"round robin: (\d+) requests", output)[1])  # type: ignore[index]
    assert f"epp default: {total} requests" in output
    per_server = re.search(r"requests per server +([\d/]+) +([\d/]+)", output)
    assert per_server is not None
    by_turns, by_default = ([int(count) for count in counts.split("/")] for counts in per_server.groups())
    assert sum(by_turns) == sum(by_default) == total
    assert max(by_turns) - min(by_turns) <= 1
    assert len(re.findall(r"server \d \(\d+%\) → server \d", output)) == 2
    assert re.search(r"Routing (by what|gained nothing)", output)
    demo.require_clean()


def test_real_servers_are_asked_for_their_models(run_demo: list[Demo], tmp_path: Path) -> None:
    with Stand(tmp_path) as stand:
        args = ["--models", "tiny,tiny-sql", "--time-scale", "4"]
        ports = [stand.replica(args)[1] for _ in range(2)]
        servers = ",".join(f"localhost:{port}" for port in ports)
        demo = begin(run_demo, tmp_path, "--port=0", f"--servers={servers}", *SHORT)
        assert demo.wait() == 0, demo.output
        assert "model tiny, adapters: tiny-sql" in demo.output
        assert "ready  server" not in demo.output
        # The servers go by the names that the user gave, although their answers call them 127.0.0.1.
        assert re.search(rf"1  localhost:{ports[0]} +[1-9]", demo.output)
        assert re.search(r"prompt tokens found in a cache +\d+% +\d+%", demo.output)
        assert all(process.running for process in stand.processes)
        demo.require_clean()


def test_a_server_that_does_not_answer_is_named(run_demo: list[Demo], tmp_path: Path) -> None:
    port = free_port()
    demo = begin(run_demo, tmp_path, "--port=0", f"--servers=127.0.0.1:{port}")
    assert demo.wait() == 1
    assert f"server 127.0.0.1:{port} does not answer" in demo.output
    demo.require_clean()


def test_requests_that_fail_fail_the_demo_and_keep_its_logs(run_demo: list[Demo], tmp_path: Path) -> None:
    with Stand(tmp_path) as stand:
        _, port = stand.replica(["--error-status", "500"])
        demo = begin(run_demo, tmp_path, "--port=0", f"--servers=127.0.0.1:{port}", *SHORT)
        assert demo.wait() == 1
        assert "injected fault" in demo.output
        assert "so the two runs are not compared" in demo.output
        kept = re.search(r"Logs of all parts.*: (\S+)", demo.output)
        assert kept is not None
        assert list(Path(kept[1]).rglob("picker-*.log"))
        assert demo.processes() == {}


def test_a_port_in_use_is_named_with_what_to_do(run_demo: list[Demo], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        demo = begin(run_demo, tmp_path, f"--port={port}")
        assert demo.wait() == 1
    assert f"port {port}, wanted for clients (Envoy), is in use" in demo.output
    assert "--port 0" in demo.output
    demo.require_clean()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("", signal.SIGINT),
        ("twice through Envoy", signal.SIGINT),
        ("ready  server 1", signal.SIGINT),
        ("ready  picker", signal.SIGTERM),
        ("answered, 0 errors", signal.SIGINT),
    ],
    ids=["while it loads", "at the first start", "between two parts", "before Envoy", "under load"],
)
def test_an_interruption_ends_it_with_one_line_and_nothing_left(
    run_demo: list[Demo], tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    demo = begin(run_demo, tmp_path, "--port=0")
    if moment:
        demo.wait_for(moment)
    else:
        wait_until_in_charge(demo.child.pid)
    before = demo.output
    demo.child.send_signal(number)
    assert demo.wait() == 130
    said = demo.output.removeprefix(before).splitlines()
    assert said[-1] == "interrupted: nothing is left running"
    assert "Traceback" not in demo.output
    demo.require_clean()


def wait_until_in_charge(pid: int) -> None:
    """Until the interpreter has come as far as our first line: before that a signal is Python's affair."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
        assert caught is not None
        # Python itself catches SIGINT; SIGHUP, the last that we take, is ours alone.
        if int(caught[1], 16) >> (signal.SIGHUP - 1) & 1:
            return
        time.sleep(0.005)
    raise AssertionError("signals are never taken")
