"""The followed directory, by files in a temporary one; a look is a call."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from epp.resources.directory import Directory, FollowedDirectory, ResourcesError, Snapshot
from epp.resources.objects import InferenceObjective, Resource
from tests.waiting import PATIENCE_S


def objective(name: str, priority: int = 1) -> str:
    return f"""---
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {{name: {name}}}
spec: {{priority: {priority}, poolRef: {{name: pool}}}}
"""


def priorities(objects: Sequence[Resource]) -> dict[str, int]:
    return {one.key.name: one.priority for one in objects if isinstance(one, InferenceObjective)}


def settled(followed: FollowedDirectory) -> Snapshot | None:
    """What two looks see: one alone only notices that something is going on."""
    first = followed.look()
    return followed.look() or first


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "a.yaml").write_text(objective("gold", 10) + objective("silver", 5))
    (tmp_path / "b.yml").write_text(objective("bronze"))
    return tmp_path


def following(place: Path) -> FollowedDirectory:
    followed = FollowedDirectory(place, "default")
    assert priorities(followed.load().objects) == {"gold": 10, "silver": 5, "bronze": 1}
    return followed


class TestReading:
    def test_only_manifests_of_this_very_directory(self, place: Path) -> None:
        (place / "note.txt").write_text("not YAML: [")
        (place / ".hidden.yaml").write_text("[")
        (place / "below").mkdir()
        (place / "below" / "c.yaml").write_text("[")
        (place / "nowhere.yaml").symlink_to(place / "gone")
        (place / "c.json").write_text(
            '{"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective", "metadata": {"name": "j"},'
            ' "spec": {"poolRef": {"name": "pool"}}}'
        )
        snapshot = FollowedDirectory(place, "default").load()
        assert priorities(snapshot.objects) == {"gold": 10, "silver": 5, "bronze": 1, "j": 0}
        assert snapshot.refusals == ()

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ResourcesError, match=r"--resources .*gone cannot be read: No such file or directory"):
            FollowedDirectory(tmp_path / "gone", "default").load()

    def test_a_directory_called_like_a_file(self, place: Path) -> None:
        (place / "dir.yaml").mkdir()
        (line,) = FollowedDirectory(place, "default").load().refusals
        assert line == f"{place / 'dir.yaml'}: cannot be read: Is a directory"

    def test_the_first_file_has_an_object(self, place: Path) -> None:
        (place / "c.yaml").write_text(objective("gold", 99))
        followed = FollowedDirectory(place, "default")
        snapshot = followed.load()
        assert priorities(snapshot.objects)["gold"] == 10
        path = place / "c.yaml"
        assert snapshot.refusals == (f"{path}:2: InferenceObjective default/gold is already at {place / 'a.yaml'}:2",)
        (place / "a.yaml").unlink()
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 99, "bronze": 1}
        assert changed.refusals == ()


class TestFollowing:
    def test_nothing_changed(self, place: Path) -> None:
        followed = following(place)
        assert [followed.look() for _ in range(3)] == [None] * 3

    def test_a_change_counts_when_it_has_settled(self, place: Path) -> None:
        followed = following(place)
        (place / "a.yaml").write_text(objective("gold", 11))
        assert followed.look() is None
        (place / "b.yml").write_text(objective("bronze", 2))
        assert followed.look() is None
        changed = followed.look()
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 11, "bronze": 2}
        assert followed.look() is None

    def test_files_come_and_go(self, place: Path) -> None:
        followed = following(place)
        (place / "b.yml").unlink()
        (place / "c.yaml").write_text(objective("new", 3))
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 10, "silver": 5, "new": 3}

    def test_a_mounted_config_map_is_swapped_whole(self, tmp_path: Path) -> None:
        for version, priority in (("..v1", 1), ("..v2", 2)):
            (tmp_path / version).mkdir()
            for name in ("one", "two"):
                (tmp_path / version / f"{name}.yaml").write_text(objective(name, priority))
        data = tmp_path / "..data"
        data.symlink_to("..v1")
        for name in ("one", "two"):
            (tmp_path / f"{name}.yaml").symlink_to(f"..data/{name}.yaml")
        followed = FollowedDirectory(tmp_path, "default")
        assert priorities(followed.load().objects) == {"one": 1, "two": 1}
        (tmp_path / "..next").symlink_to("..v2")
        os.replace(tmp_path / "..next", data)
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"one": 2, "two": 2}


class TestBrokenFiles:
    @pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe", b"%" * (1 << 20) + b"%%", b"{{ .Values.objectives }}"])
    def test_keep_what_they_said(self, place: Path, content: bytes) -> None:
        followed = following(place)
        (place / "a.yaml").write_bytes(content)
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 10, "silver": 5, "bronze": 1}
        assert len(changed.refusals) == 1
        assert changed.refusals[0].startswith(str(place / "a.yaml"))

    def test_an_empty_file_says_that_there_is_nothing(self, place: Path) -> None:
        followed = following(place)
        (place / "a.yaml").write_text("# all gone\n")
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"bronze": 1}

    def test_a_refused_object_stays_what_it_was_and_the_rest_changes(self, place: Path) -> None:
        followed = following(place)
        (place / "a.yaml").write_text(objective("gold", 10).replace("10", "ten") + objective("copper", 3))
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 10, "copper": 3, "bronze": 1}
        assert changed.refusals == (f"{place / 'a.yaml'}:5: spec.priority: expected int, got str",)

    def test_an_unreadable_document_keeps_what_it_may_have_been(self, place: Path) -> None:
        followed = following(place)
        (place / "a.yaml").write_text(objective("gold", 11) + "---\nkind: [")
        changed = settled(followed)
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 11, "silver": 5, "bronze": 1}

    def test_and_are_whole_again_later(self, place: Path) -> None:
        followed = following(place)
        for content, expected in (("[", 10), ("]", 10), (objective("gold", 3), 3)):
            (place / "a.yaml").write_text(content)
            changed = settled(followed)
            assert changed is not None
            assert priorities(changed.objects)["gold"] == expected
        assert changed is not None
        assert priorities(changed.objects) == {"gold": 3, "bronze": 1}
        assert changed.refusals == ()

    def test_a_directory_that_is_gone_is_told_once(self, place: Path) -> None:
        followed = following(place)
        moved = place.with_name("moved")
        shutil.move(place, moved)
        lost = followed.look()
        assert lost is not None
        assert priorities(lost.objects) == {"gold": 10, "silver": 5, "bronze": 1}
        assert lost.refusals == (f"{place} cannot be read: No such file or directory; what it said before stays",)
        assert followed.look() is None
        shutil.move(moved, place)
        back = settled(followed)
        assert back is not None
        assert back.refusals == ()
        assert back.objects == lost.objects


class Heard(logging.Handler):
    """Log records as they come."""

    def __init__(self) -> None:
        super().__init__()
        self.records: asyncio.Queue[logging.LogRecord] = asyncio.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self.records.put_nowait(record)


@pytest.fixture
def heard() -> Iterator[Heard]:
    logger, handler = logging.getLogger("epp.resources"), Heard()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def rewrite(path: Path, text: str) -> None:
    """In one step: looks a millisecond apart could take a file that is just being written for one that has settled."""
    whole = path.with_name(".whole")
    whole.write_text(text)
    whole.replace(path)


class TestDirectory:
    """The asyncio shell, with waits for what must come."""

    async def test_hands_over_at_the_start_and_at_changes(self, place: Path, heard: Heard) -> None:
        (place / "policy.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}")
        handed: asyncio.Queue[Sequence[Resource]] = asyncio.Queue()
        directory = Directory(place, "default", handed.put_nowait, poll_s=0.001)
        directory.start()
        assert priorities(handed.get_nowait())["gold"] == 10
        passed = heard.records.get_nowait()
        assert passed.levelno == logging.DEBUG
        assert passed.getMessage() == (
            f"{place / 'policy.yaml'}:1: ConfigMap x (v1): not for an endpoint picker, passed over"
        )
        rewrite(place / "a.yaml", objective("gold", 11))
        assert priorities(await asyncio.wait_for(handed.get(), PATIENCE_S)) == {"gold": 11, "bronze": 1}
        rewrite(place / "a.yaml", "a: [")
        refused = await asyncio.wait_for(heard.records.get(), PATIENCE_S)
        assert refused.levelno == logging.ERROR
        assert "neither YAML nor JSON" in refused.getMessage()
        await directory.close()
        assert handed.empty()
        assert heard.records.empty()

    async def test_is_closed_while_it_looks(self, place: Path) -> None:
        handed: list[Sequence[Resource]] = []
        directory = Directory(place, "default", handed.append, poll_s=0.0)
        directory.start()
        (place / "a.yaml").unlink()
        for _ in range(3):
            await asyncio.sleep(0)
        await directory.close()
        said = len(handed)
        await asyncio.sleep(0.01)
        assert len(handed) == said

    async def test_does_not_start_without_a_directory(self, tmp_path: Path) -> None:
        with pytest.raises(ResourcesError):
            Directory(tmp_path / "gone", "default", lambda objects: None).start()
