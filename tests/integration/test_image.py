"""The image without a container engine: its install steps in a clean environment, its entry point on a read-only system."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from bench.processes import ROOT, Process, Stand, answers, free_port
from epp.extproc.health import CHECK
from tests.waiting import PATIENCE_S

DOCKERFILE = (ROOT / "Dockerfile").read_text()
TARGET = "/opt/epp"


def instruction(name: str, *, stage: int) -> list[str]:
    """Everything after `name` in the build stage (0) or the final one (1), line by line."""
    lines = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("FROM ")]
    bounds = [*starts, len(lines)]
    return [line[len(name) + 1 :] for line in lines[bounds[stage] : bounds[stage + 1]] if line.startswith(f"{name} ")]


class Image:
    """What the Dockerfile makes, under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.target = root / "target"
        self.install()

    def install(self) -> None:
        source = self.root / "src"
        source.mkdir()
        for copy in instruction("COPY", stage=0):
            *names, into = copy.split()
            for name in names:
                place = source / into / name if into == "./" else source / into
                place.parent.mkdir(parents=True, exist_ok=True)
                copying = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
                copying(ROOT / name, place)
        (run,) = instruction("RUN", stage=0)
        command = [part.replace(TARGET, str(self.target)) for part in shlex.split(run)]
        done = subprocess.run([*command, sys.executable], cwd=source, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        shutil.rmtree(source)

    def words(self, name: str, *flags: str) -> list[str]:
        """The command of an instruction in exec form, as the image has it, with `flags` after it."""
        (text,) = instruction(name, stage=1)
        command = json.loads(text[text.index("[") :])
        return [part.replace(TARGET, str(self.target)) for part in [*command, *flags]]

    def environment(self) -> dict[str, str]:
        """Nothing of ours: what ENV says, and a home and a temporary directory that are not there."""
        (text,) = instruction("ENV", stage=1)
        given = dict(part.split("=", 1) for part in text.split())
        given["PATH"] = given["PATH"].replace(TARGET, str(self.target)).replace("$PATH", "/usr/bin:/bin")
        return {**given, "HOME": "/nonexistent", "TMPDIR": "/nonexistent"}


READ_ONLY = 'mount -o remount,bind,ro / / && mount -o remount,bind,ro /dev/shm && cd / && exec "$@"'


def can_be_read_only() -> bool:
    probe = ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", "true"]
    return (
        shutil.which("unshare") is not None and subprocess.run(probe, check=False, capture_output=True).returncode == 0
    )


def confined(command: Sequence[str]) -> list[str]:
    """`command` where nothing can be written, and without privileges, as far as this machine lets us."""
    if not can_be_read_only():
        return list(command)
    stripped = (
        ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"] if shutil.which("setpriv") else []
    )
    return ["unshare", "--mount", "sh", "-c", READ_ONLY, "sh", *stripped, *command]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return Image(tmp_path_factory.mktemp("image"))


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with Stand(tmp_path) as made:
        yield made


def start(stand: Stand, image: Image, *flags: str) -> tuple[Process, int, int]:
    """The entry point with flags directly after it. Returns the process, the port of ext_proc, and that of metrics."""
    ports = [free_port() for _ in range(3)]
    own = [
        f"--{name}={port}" for name, port in zip(("grpc-port", "grpc-health-port", "metrics-port"), ports, strict=True)
    ]
    command = image.words(
        "ENTRYPOINT", "--host=127.0.0.1", "--endpoint=127.0.0.1:1", "--drain-timeout=200ms", *own, *flags
    )
    environment = [f"{name}={value}" for name, value in image.environment().items()]
    process = stand.start("image", confined(["env", "-i", *environment, *command]))
    process.wait_until(lambda: answers(f"http://127.0.0.1:{ports[2]}/healthz"), PATIENCE_S)
    return process, ports[0], ports[2]


def files(root: Path) -> set[tuple[str, float]]:
    return {(str(path), path.lstat().st_mtime) for path in root.rglob("*")}


@pytest.mark.parametrize("transport", ["http2", "grpc.aio"])
def test_it_serves_securely_where_nothing_can_be_written(image: Image, stand: Stand, transport: str) -> None:
    before = files(image.target)
    process, port, metrics = start(stand, image, f"--transport={transport}")
    pem = ssl.get_server_certificate(("127.0.0.1", port))
    credentials = grpc.ssl_channel_credentials(pem.encode())
    override = (("grpc.ssl_target_name_override", "localhost"),)
    with grpc.secure_channel(f"127.0.0.1:{port}", credentials, override) as channel:
        check = channel.unary_unary(CHECK)  # type: ignore[call-arg]  # the stubs ask for serializers
        assert check(b"", timeout=PATIENCE_S) == b"\x08\x01"
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics") as response:
        assert b"llm_d_epp_info" in response.read()
    process.stop(PATIENCE_S)
    assert process.child.returncode == 0, process.output(50)
    assert "Traceback" not in process.log.read_text()
    assert files(image.target) == before


def test_the_health_check_tells_a_live_one_from_a_dead_one(image: Image, stand: Stand) -> None:
    *_, metrics = start(stand, image, "--secure-serving=false")
    command = [part.replace(":9090/", f":{metrics}/") for part in image.words("HEALTHCHECK")]
    assert any(str(metrics) in part for part in command)
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    stand.close()
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_it_holds_what_it_needs_to_run_and_no_more(image: Image) -> None:
    python = image.target / "bin" / "python"
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True, env={}
    )
    installed = {one["name"].lower().replace("_", "-") for one in json.loads(listed.stdout)}
    locked = {line.split("==")[0].strip() for line in (ROOT / "requirements" / "run.txt").read_text().splitlines()}
    assert installed <= {"epp", "pip", "setuptools", "wheel"} | {name for name in locked if name and name[0] != "#"}
    missing = subprocess.run([python, "-m", "pip", "check"], check=False, capture_output=True, text=True, env={})
    assert missing.returncode == 0, missing.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["version"], ["plugins"], ["schema"]])
def test_its_commands_work_without_what_only_tests_have(image: Image, arguments: list[str]) -> None:
    done = subprocess.run(
        [image.target / "bin" / "epp", *arguments],
        check=False,
        capture_output=True,
        text=True,
        env=image.environment(),
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout and not done.stderr


def test_the_samples_that_it_carries_are_sound(image: Image) -> None:
    samples = sorted((ROOT / "config").glob("*.yaml"))
    assert any(copy.split() == ["config", "/config"] for copy in instruction("COPY", stage=1))
    done = subprocess.run(
        [image.target / "bin" / "epp", "check", *samples],
        check=False,
        capture_output=True,
        text=True,
        env=image.environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": ok") == len(samples)


def test_it_runs_as_nobody_in_particular() -> None:
    (user,) = instruction("USER", stage=1)
    assert all(part.isdecimal() and int(part) > 0 for part in user.split(":"))
    ports = instruction("EXPOSE", stage=1)[0].split()
    assert ports == ["9002", "9003", "9090"]
