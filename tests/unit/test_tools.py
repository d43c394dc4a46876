"""Programs that tests need are built, found, or missed with a reason."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests import tools
from tests.tools import TOOLS, Builder, Missing

NAME = "h2spec"


@pytest.fixture(autouse=True)
def bin_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tools, "BIN", tmp_path / "bin")
    return tmp_path / "bin"


def a_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`script` is what the compiler does instead; `$out` is what it is told to make."""
    go = tmp_path / "go"
    go.write_text(f'#!/bin/sh\nfor arg; do [ "$before" = -o ] && out=$arg; before=$arg; done\n{script}\n')
    go.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(go))


def built(name: str = NAME) -> Path:
    builder = Builder([name])
    try:
        return builder.path(name)
    finally:
        builder.close()


def test_without_go_it_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(Missing, match="built by Go, which is not installed"):
        built()


def test_without_npm_the_browser_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    with pytest.raises(Missing, match="chromium comes by npm, which is not installed"):
        built("chromium")


def test_what_is_there_needs_no_go(bin_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
    bin_directory.mkdir()
    TOOLS[NAME].path.touch()
    assert built() == TOOLS[NAME].path


def test_it_is_built_once_and_kept_by_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_go(tmp_path, monkeypatch, f"echo x >> {tmp_path}/runs; cat go.mod > $out")
    assert built() == built()
    assert built().name == "h2spec-v2.2.1"
    assert "require github.com/summerwind/h2spec v2.2.1+incompatible" in built().read_text()
    assert (tmp_path / "runs").read_text() == "x\n"
    assert sorted(path.name for path in built().parent.iterdir()) == [".h2spec.lock", "h2spec-v2.2.1"]


def test_why_it_does_not_build_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_go(tmp_path, monkeypatch, "echo no such module >&2; exit 1")
    with pytest.raises(Missing, match=r"`go build` failed.*no such module"):
        built()


def test_a_build_is_cut_off_at_the_end_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_go(tmp_path, monkeypatch, "exec sleep 600")
    builder = Builder([NAME])
    builder.close()
    with pytest.raises(Missing):
        builder.path(NAME)
