"""Programs that tests run as real peers, made once into `.cache/bin` while other tests run: those in Go from their modules, a browser
from its npm package.

A test takes one by the fixture of its name (see `tests/conftest.py`). Pytest starts to build at the start of a session whose tests need
any, and runs those tests last, so that who waits for a compiler waits as little as can be.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from pathlib import Path

import msgspec

BIN = Path(__file__).parent.parent / ".cache" / "bin"
"""Programs are kept under their names and versions: another version is another file."""

_STAGED = re.compile(r"^\s+(\S+) => \./staging/", re.MULTILINE)


class Tool(msgspec.Struct, frozen=True):
    """A main package of a module. `staged` is the version of those modules that it keeps in directories of its own, which only
    the main module of a build may replace. `stamps` are linker variables. `alone` is built by its own go.mod and nothing else: as a
    requirement of another module it would ask for versions that nobody needs and not all of which can be had."""

    name: str
    package: str
    module: str
    version: str
    staged: str = ""
    stamps: tuple[str, ...] = ()
    alone: bool = False

    @property
    def path(self) -> Path:
        return BIN / f"{self.name}-{self.version.partition('+')[0]}"


class Packed(msgspec.Struct, frozen=True):
    """A program in an npm package, `files` of which are packed by Brotli. It is a directory with what they unpack to."""

    name: str
    package: str
    version: str
    files: tuple[str, ...]

    @property
    def path(self) -> Path:
        return BIN / f"{self.name}-{self.version}"


_GO = "1.24"
_K8S = "v1.34.2"
_STAMP = "k8s.io/component-base/version"

TOOLS: dict[str, Tool | Packed] = {
    tool.name: tool
    for tool in (
        # Chromium without its window, built for machines that have nothing but a C library: 8 seconds, 200 MB.
        Packed("chromium", "@sparticuz/chromium", "153.0.0", ("bin/chromium.br", "bin/al2023.tar.br")),
        Tool(
            "h2spec", "github.com/summerwind/h2spec/cmd/h2spec", "github.com/summerwind/h2spec", "v2.2.1+incompatible"
        ),
        Tool("etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3", "v3.6.16"),
        Tool("helm", "helm.sh/helm/v3/cmd/helm", "helm.sh/helm/v3", "v3.19.0"),
        Tool(
            "kube-apiserver",
            "k8s.io/kubernetes/cmd/kube-apiserver",
            "k8s.io/kubernetes",
            _K8S,
            staged="v0.34.2",
            # Charts ask the server for its version.
            stamps=(f"{_STAMP}.gitVersion={_K8S}", f"{_STAMP}.gitMajor=1", f"{_STAMP}.gitMinor=34"),
        ),
        Tool(
            "envoy-gateway",
            "github.com/envoyproxy/gateway/cmd/envoy-gateway",
            "github.com/envoyproxy/gateway",
            "v1.9.1",
            alone=True,
        ),
    )
}
"""In the order in which they are built: what takes seconds goes before what takes minutes."""


class Missing(Exception):
    """A program cannot be had. The message says which and why."""


_UNBROTLI = """
const [from, to] = process.argv.slice(1), {createReadStream, createWriteStream} = require("fs");
require("stream").pipeline(createReadStream(from), require("zlib").createBrotliDecompress(), createWriteStream(to), e => { if (e) throw e });
"""


class Builder:
    """Makes the named tools one after the other, in a thread, at the lowest priority; `close` ends it whatever it does."""

    def __init__(self, names: Collection[str]) -> None:
        self._paths: dict[str, Future[Path]] = {name: Future() for name in TOOLS if name in names}
        self._closed = threading.Event()
        self._compiling: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._build_all, name="tools", daemon=True)
        self._thread.start()

    def wait(self, name: str) -> None:
        """Returns when there is a program, or will be none."""
        self._paths[name].exception()

    def path(self, name: str) -> Path:
        """Where the program is. Waits for it. Raises Missing."""
        return self._paths[name].result()

    def close(self) -> None:
        """Ends what is being built, which leaves nothing behind but Go's own cache."""
        self._closed.set()
        compiling = self._compiling
        if compiling is not None:
            compiling.terminate()
        # It may also wait for another test run, which builds the same and holds the lock: then it dies with the process.
        self._thread.join(5.0)

    def _build_all(self) -> None:
        for name, future in self._paths.items():
            try:
                future.set_result(self._build(TOOLS[name]))
            except Exception as error:
                # Whatever it is, it belongs to the tests that wait for the program.
                future.set_exception(error if isinstance(error, Missing) else Missing(f"{name}: {error!r}"))

    def _build(self, tool: Tool | Packed) -> Path:
        if tool.path.exists():
            return tool.path
        with _locked(tool), tempfile.TemporaryDirectory(dir=BIN, prefix=f".{tool.name}-") as directory:
            if not tool.path.exists():
                at = Path(directory)
                made = self._unpack(tool, at) if isinstance(tool, Packed) else self._compile(tool, at)
                made.replace(tool.path)
        return tool.path

    def _unpack(self, tool: Packed, directory: Path) -> Path:
        npm, node = shutil.which("npm"), shutil.which("node")
        if npm is None or node is None:
            raise Missing(f"{tool.name} comes by npm, which is not installed")
        quiet = ("--silent", "--no-audit", "--no-fund", "--ignore-scripts")
        self._run(npm, "install", *quiet, "--prefix", str(directory), f"{tool.package}@{tool.version}", at=directory)
        made = directory / "made"
        made.mkdir()
        for file in tool.files:
            packed = directory / "node_modules" / tool.package / file
            unpacked = made / packed.stem
            # Node can Brotli, Python cannot.
            self._run(node, "-e", _UNBROTLI, str(packed), str(unpacked), at=directory)
            if unpacked.suffix == ".tar":
                with tarfile.open(unpacked) as archive:
                    archive.extractall(made, filter="data")
                unpacked.unlink()
            else:
                unpacked.chmod(0o755)
        return made

    def _compile(self, tool: Tool, directory: Path) -> Path:
        go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
        if go is None:
            raise Missing(f"{tool.name} is built by Go, which is not installed")
        flags = " ".join(("-s -w", *(f"-X {stamp}" for stamp in tool.stamps)))
        if tool.alone:
            asked = f"{tool.package}@{tool.version}"
            self._run(go, "install", "-trimpath", "-ldflags", flags, asked, at=directory, GOBIN=str(directory))
            return directory / tool.package.rpartition("/")[2]
        replaced = ""
        if tool.staged:
            known = json.loads(self._run(go, "mod", "download", "-json", f"{tool.module}@{tool.version}", at=directory))
            staged = _STAGED.findall(Path(known["GoMod"]).read_text())
            replaced = "".join(f"replace {module} => {module} {tool.staged}\n" for module in staged)
        # From Go 1.17 on only the modules are looked up that the program is built of, and not all that those ever asked for.
        head = f"module tools\n\ngo {_GO}\n\nrequire {tool.module} {tool.version}\n\n"
        (directory / "go.mod").write_text(head + replaced)
        made = directory / "made"
        self._run(go, "build", "-mod=mod", "-trimpath", "-ldflags", flags, "-o", str(made), tool.package, at=directory)
        return made

    def _run(self, program: str, *arguments: str, at: Path, **more: str) -> bytes:
        """What the command says. Raises Missing when it fails or is cut off."""
        environment = {**os.environ, "CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off", **more}
        pipe = subprocess.PIPE
        command = ["nice", "-n", "19", program, *arguments]
        with subprocess.Popen(command, cwd=at, env=environment, stdout=pipe, stderr=pipe) as process:
            self._compiling = process
            if self._closed.is_set():
                process.terminate()
            output, complaint = process.communicate()
            self._compiling = None
        if process.returncode != 0:
            told = f"`{Path(program).name} {arguments[0]}` failed at {arguments[-1]}"
            raise Missing(f"{told}: {complaint.decode(errors='replace')[-800:]}")
        return output


@contextlib.contextmanager
def _locked(tool: Tool | Packed) -> Iterator[None]:
    """Holds off other test runs of this checkout that want to build the same."""
    BIN.mkdir(parents=True, exist_ok=True)
    with (BIN / f".{tool.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
