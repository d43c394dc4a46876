"""The EDS file: same members, same bytes; written whole or not at all; and never a reason to stop."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest

from epp.discovery.eds import EdsFile, eds_document
from epp.endpoint import Endpoint
from tests.waiting import eventually


def servers(*numbers: int) -> list[Endpoint]:
    return [Endpoint(name=f"s{n}", address=f"10.0.0.{n}", port=8000) for n in numbers]


def addresses(text: str) -> list[str]:
    (assignment,) = json.loads(text)["resources"]
    return [
        host["endpoint"]["address"]["socket_address"]["address"]
        for group in assignment["endpoints"]
        for host in group["lb_endpoints"]
    ]


def test_the_document() -> None:
    two = [*servers(1), Endpoint(name="v6", address="fd00::1", port=9)]
    assert json.loads(eds_document("servers", two)) == {
        "resources": [
            {
                "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
                "cluster_name": "servers",
                "endpoints": [
                    {
                        "lb_endpoints": [
                            {"endpoint": {"address": {"socket_address": {"address": "10.0.0.1", "port_value": 8000}}}},
                            {"endpoint": {"address": {"socket_address": {"address": "fd00::1", "port_value": 9}}}},
                        ]
                    }
                ],
            }
        ]
    }


def test_order_repeats_and_labels_change_nothing() -> None:
    labelled = Endpoint(name="again", address="10.0.0.1", port=8000, labels={"a": "b"})
    assert eds_document("c", servers(2, 1)) == eds_document("c", [labelled, *servers(1, 2)])


def test_an_empty_pool_and_names() -> None:
    assert addresses(eds_document("c", [])) == []
    assert addresses(eds_document("c", [*servers(1), Endpoint(name="n", address="a.local", port=1)])) == ["10.0.0.1"]


async def test_written_when_it_changes_and_only_then(tmp_path: Path) -> None:
    file = EdsFile(tmp_path / "servers.yaml")
    assert file.publish(servers(1, 2))
    assert addresses(file.path.read_text()) == ["10.0.0.1", "10.0.0.2"]
    first = file.path.stat().st_ino
    assert not file.publish(servers(2, 1))
    assert file.path.stat().st_ino == first
    assert file.publish(servers(3))
    assert addresses(file.path.read_text()) == ["10.0.0.3"]
    assert os.listdir(tmp_path) == ["servers.yaml"]


async def test_replaced_by_rename_so_that_no_reader_sees_half(tmp_path: Path) -> None:
    file = EdsFile(tmp_path / "servers.yaml")
    file.publish(servers(1))
    with file.path.open() as before:
        file.publish(servers(2))
        assert addresses(before.read()) == ["10.0.0.1"]


async def test_what_an_earlier_process_left_is_not_written_again(tmp_path: Path) -> None:
    EdsFile(tmp_path / "servers.yaml").publish(servers(1))
    assert not EdsFile(tmp_path / "servers.yaml").publish(servers(1))
    assert EdsFile(tmp_path / "servers.yaml", cluster="other").publish(servers(1))


async def test_it_begins_without_endpoints_where_nobody_left_any(tmp_path: Path) -> None:
    path = tmp_path / "servers.yaml"
    EdsFile(path).begin()
    assert addresses(path.read_text()) == []
    EdsFile(path).publish(servers(1))
    EdsFile(path).begin()
    assert addresses(path.read_text()) == ["10.0.0.1"]


async def test_a_missing_directory_is_said_once_and_awaited(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "epp.discovery")
    file = EdsFile(tmp_path / "eds" / "servers.yaml", retry_s=0.002)
    assert not file.publish(servers(1))
    assert not file.publish(servers(1, 2))
    assert not file.current
    await asyncio.sleep(0.02)
    (record,) = caplog.records
    assert record.getMessage() == (
        f"cannot write {file.path}, so Envoy keeps the endpoints it has: there is no directory {tmp_path / 'eds'}"
    )
    file.path.parent.mkdir()
    await eventually(lambda: file.current)
    assert addresses(file.path.read_text()) == ["10.0.0.1", "10.0.0.2"]
    assert caplog.records[-1].getMessage() == f"{file.path} is written again"


async def test_a_target_that_cannot_be_replaced_leaves_nothing_unfinished(tmp_path: Path) -> None:
    (tmp_path / "servers.yaml").mkdir()
    file = EdsFile(tmp_path / "servers.yaml", retry_s=0.002)
    assert not file.publish(servers(1))
    file.close()
    (tmp_path / "servers.yaml").rmdir()
    await asyncio.sleep(0.02)
    assert os.listdir(tmp_path) == []
