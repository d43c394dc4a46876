"""Renderings, each made once in a session."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.charts.cases import CASES
from tests.charts.render import Made, objects, render


@pytest.fixture(scope="session")
def rendered(helm: Path) -> Callable[[str], str]:
    """The text of a case, by name."""
    return cache(lambda name: render(helm, CASES[name]))


@pytest.fixture
def made(rendered: Callable[[str], str]) -> Callable[[str], Made]:
    """The objects of a case, by name."""
    return lambda name: objects(rendered(name))
