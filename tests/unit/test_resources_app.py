"""`--resources` in the composition root, without sockets."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import msgspec
import pytest

from epp.app import Picker, run
from epp.configuration import load_default
from epp.pages import pages
from epp.resources.objects import InferenceObjective, PoolRef
from epp.resources.store import Source
from epp.settings import Settings
from tests.unit.test_resources_directory import objective
from tests.unit.test_resources_manifests import LLAMA, MANIFESTS

LOCAL = Settings(endpoints=("127.0.0.1:1",), secure_serving=False)


def picker(**more: object) -> Picker:
    return Picker(msgspec.structs.replace(LOCAL, **more), load_default())


async def test_without_a_directory_there_are_no_rules() -> None:
    assert picker()._directory is None


async def test_the_product_documents_come_to_this(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epp")
    for path in MANIFESTS.glob("*.yaml"):
        # Another document, which gives its objects the same names.
        if path.name != "gke-multi-cluster.yaml":
            shutil.copy(path, tmp_path)
    mine = picker(resources=tmp_path, pool_names=(LLAMA,))
    directory = mine._directory
    assert directory is not None
    directory.start()
    await directory.close()
    assert mine.resources.of(LLAMA).rules.objectives == {"food-review": 10, "cad-fabricator": 20}
    pool = mine.resources.of(LLAMA).pool
    assert pool is not None
    assert pool.target_ports == (8000,)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "gke-objectives.yaml:3: InferenceObjective default/food-review: there is no InferenceObjective in" in warning
    assert "resources: 9 objects, 1 without effect; 2 objectives, 0 models, rewrites of 4 models" in caplog.text


async def test_each_notice_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(objective("gold").replace("name: pool", "name: pol"))
    mine = picker(resources=tmp_path, pool_names=("pool",))
    directory = mine._directory
    assert directory is not None
    directory.start()
    await directory.close()
    (one,) = mine.resources.standings
    assert "did you mean pool?" in one.reason
    before = len(caplog.records)
    mine._resources_changed(
        Source.DIRECTORY, [InferenceObjective(key=one.key, origin=one.origin, pool_ref=PoolRef("pol"))]
    )
    assert [record for record in caplog.records[before:] if record.levelno >= logging.WARNING] == []
    status, content, body = pages(mine.pools, mine.resources, None)["/debug/resources"]()
    assert (status, content) == (200, "application/json")
    assert msgspec.json.decode(body)[0]["key"]["name"] == "gold"


def test_no_such_directory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = msgspec.structs.replace(
        LOCAL, resources=tmp_path / "gone", grpc_port=0, grpc_health_port=0, metrics_port=0
    )
    assert run(settings) == 1
