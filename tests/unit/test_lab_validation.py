"""The simulated engine against published measurements: the bound on what may be said about policies."""

from __future__ import annotations

import pytest

from bench.lab.validation import WITHIN, Line, lines

LINES = lines()


@pytest.mark.parametrize("line", LINES, ids=[f"{number}-{line.what}" for number, line in enumerate(LINES)])
def test_the_engine_is_as_published(line: Line) -> None:
    assert abs(line.error) <= WITHIN, f"{line.what}: {line.ours:.5g} {line.unit}, published {line.theirs:.5g}"


def test_most_lines_test_what_was_not_fitted() -> None:
    assert sum(line.fitted for line in LINES) == 1
    assert len(LINES) >= 6
