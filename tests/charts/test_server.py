"""A real API server takes every rendering, in a dry run that is strict about fields, and Helm installs from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.charts.cases import CASES
from tests.charts.crds import definitions
from tests.charts.render import Made
from tests.cluster import Cluster, Object, Refusal


@pytest.fixture(scope="module")
def taking(cluster: Cluster) -> Iterator[Cluster]:
    """The API server, with the kinds that charts render, for as long as these tests last."""
    kinds = definitions()
    cluster.apply(*kinds)
    for kind in kinds:
        until(lambda: conditions(cluster, kind).get("Established") == "True")  # noqa: B023  # called at once
    yield cluster
    for kind in kinds:
        cluster.delete(kind)


def conditions(cluster: Cluster, kind: Object) -> dict[str, str]:
    status = cluster.request("GET", cluster.path(kind)).get("status", {})
    return {each["type"]: each["status"] for each in status.get("conditions", [])}


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_taken(taking: Cluster, made: Callable[[str], Made], name: str) -> None:
    taking.apply(*made(name), dry_run=True)


def test_a_field_that_is_not_one_would_be_refused(taking: Cluster, made: Callable[[str], Made]) -> None:
    """The dry run sees what it is there for, in kinds of the server's own and in custom ones."""
    for found in made("gke-deploy"):
        broken = {**found, "spec": {**found.get("spec", {}), "typo": 1}} if "spec" in found else {**found, "typo": 1}
        with pytest.raises(Refusal, match="typo"):
            taking.apply(broken, dry_run=True)
