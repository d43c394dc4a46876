"""Renderings, each made once in a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from epp.kubernetes.crds import crds
from tests.charts.cases import CASES
from tests.charts.crds import definitions
from tests.charts.render import Made, objects, render
from tests.cluster import Cluster


@pytest.fixture(scope="session")
def rendered(helm: Path) -> Callable[[str], str]:
    """The text of a case, by name."""
    return cache(lambda name: render(helm, CASES[name]))


@pytest.fixture
def made(rendered: Callable[[str], str]) -> Callable[[str], Made]:
    """The objects of a case, by name."""
    return lambda name: objects(rendered(name))


@pytest.fixture(scope="session")
def taking(cluster: Cluster) -> Cluster:
    """The API server, with the kinds that charts render."""
    cluster.install(*crds(), *definitions())
    return cluster
