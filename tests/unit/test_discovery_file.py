"""Following a file: rewritten, renamed, linked, broken, gone."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from epp.discovery.file import MAX_UNSTEADY_LOOKS, FileDiscovery, FollowedFile
from epp.discovery.source import DiscoveryError
from epp.endpoint import Endpoint
from tests.waiting import PATIENCE_S


def text(*names: str) -> str:
    rows = [f"{{name: {name}, address: 10.0.0.{number}, port: 8000}}" for number, name in enumerate(names, 1)]
    return "endpoints: [" + ", ".join(rows) + "]\n"


def names(endpoints: Sequence[Endpoint] | None) -> list[str] | None:
    return None if endpoints is None else [one.name for one in endpoints]


def write(path: Path, content: str) -> None:
    path.write_text(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "endpoints.yaml"
    path.write_text(text("a"))
    return path


def settled(file: FollowedFile) -> list[str] | None:
    """What two looks in a row bring."""
    return names(file.look()) or names(file.look())


def test_loads_and_sees_no_change(path: Path) -> None:
    file = FollowedFile(path)
    assert names(file.load()) == ["a"]
    assert file.look() is None
    assert file.look() is None


def test_a_change_is_read_once_it_is_steady(path: Path) -> None:
    file = FollowedFile(path)
    file.load()
    path.write_text(text("a", "b"))
    assert file.look() is None
    path.write_text(text("a", "b", "c"))
    assert file.look() is None
    assert names(file.look()) == ["a", "b", "c"]
    assert file.look() is None


def test_a_file_that_never_rests_is_read_all_the_same(path: Path) -> None:
    file = FollowedFile(path)
    file.load()
    seen = []
    for number in range(3 * MAX_UNSTEADY_LOOKS):
        fresh = path.with_name(f"fresh-{number}")
        write(fresh, text("a", f"b{number}"))
        os.replace(fresh, path)
        seen.append(names(file.look()))
    assert [found for found in seen if found is not None] == [
        ["a", f"b{turn * MAX_UNSTEADY_LOOKS - 1}"] for turn in (1, 2, 3)
    ]


def test_replaced_by_rename(path: Path) -> None:
    file = FollowedFile(path)
    file.load()
    other = path.with_name("new")
    other.write_text(text("b"))
    seen = path.stat()
    os.utime(other, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    other.replace(path)
    assert settled(file) == ["b"]


def test_links_swapped_as_kubernetes_does(tmp_path: Path) -> None:
    for version, content in (("..1", text("a")), ("..2", text("b"))):
        (tmp_path / version).mkdir()
        (tmp_path / version / "endpoints.yaml").write_text(content)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "endpoints.yaml").symlink_to("..data/endpoints.yaml")
    file = FollowedFile(tmp_path / "endpoints.yaml")
    assert names(file.load()) == ["a"]
    (tmp_path / "..tmp").symlink_to("..2")
    (tmp_path / "..tmp").replace(tmp_path / "..data")
    assert settled(file) == ["b"]


@pytest.mark.parametrize("broken", ["", "endpoints:\n- {name: a", "nothing: true", "endpoints:"])
def test_a_broken_file_is_said_once_and_changes_nothing(
    path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "epp.discovery")
    file = FollowedFile(path)
    file.load()
    path.write_text(broken)
    assert [file.look() for _ in range(5)] == [None] * 5
    path.touch()
    assert [file.look() for _ in range(5)] == [None] * 5
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage().endswith("the endpoints known before stay")
    path.write_text(text("c"))
    assert settled(file) == ["c"]
    assert caplog.records[-1].getMessage() == f"{path} is usable again: 1 endpoints"


def test_a_file_that_is_gone_and_comes_back_the_same(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As on a mount that was away: not even the file's times tell."""
    caplog.set_level(logging.INFO, "epp.discovery")
    mount, away = tmp_path / "mount", tmp_path / "away"
    mount.mkdir()
    path = mount / "endpoints.yaml"
    path.write_text(text("a"))
    file = FollowedFile(path)
    file.load()
    for _ in range(2):
        mount.rename(away)
        assert [file.look() for _ in range(4)] == [None] * 4
        away.rename(mount)
        assert settled(file) == ["a"]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} cannot be read: No such file or directory; the endpoints known before stay",
        f"{path} is usable again: 1 endpoints",
    ] * 2


def test_an_intended_empty_pool(path: Path) -> None:
    file = FollowedFile(path)
    file.load()
    path.write_text("endpoints: []")
    assert file.look() is None
    assert file.look() == ()


async def test_start_hands_on_the_first_set_and_then_changes(path: Path) -> None:
    seen: list[list[str]] = []
    changed = asyncio.Event()

    def on_change(endpoints: Sequence[Endpoint]) -> None:
        seen.append([one.name for one in endpoints])
        changed.set()

    source = FileDiscovery(path, on_change, poll_s=0.002)
    await source.start()
    assert seen == [["a"]]
    changed.clear()
    write(path, text("a") + "# the same\n")
    await asyncio.sleep(0.02)
    assert seen == [["a"]]
    write(path, text("a", "b"))
    await asyncio.wait_for(changed.wait(), PATIENCE_S)
    await source.close()
    write(path, text("c"))
    await asyncio.sleep(0.02)
    assert seen == [["a"], ["a", "b"]]


async def test_not_watched(path: Path) -> None:
    seen: list[Sequence[Endpoint]] = []
    source = FileDiscovery(path, seen.append, watch_file=False, poll_s=0.001)
    await source.start()
    write(path, text("b"))
    await asyncio.sleep(0.02)
    await source.close()
    assert len(seen) == 1


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read: No such file"), ("", "is empty")])
async def test_nothing_to_start_with(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "endpoints.yaml"
    if content is not None:
        write(path, content)
    source = FileDiscovery(path, lambda endpoints: None)
    with pytest.raises(DiscoveryError, match=message):
        await source.start()
    await source.close()
