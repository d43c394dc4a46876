"""Depth is counted in whatever notation, and counting it never needs the depth of the stack."""

from __future__ import annotations

import pytest

from epp.nesting import is_deeper


@pytest.mark.parametrize("text", ["[[[1]]]", "- - - 1\n", "a:\n  b:\n    c: 1\n", '{"a": [{}]}', "- a: [1]\n"])
def test_levels_are_lists_and_mappings_around_one_another(text: str) -> None:
    assert is_deeper(text, 2)
    assert not is_deeper(text, 3)


def test_siblings_add_no_level() -> None:
    assert not is_deeper("[[1], [2], {a: 1}]", 2)


@pytest.mark.parametrize("text", ["[" * 1_000_000, '{"a":' * 200_000, "- " * 200_000, "? " * 100_000])
def test_no_depth_is_too_much_to_count(text: str) -> None:
    assert is_deeper(text, 100)


@pytest.mark.parametrize("text", ["", "]", "[[1", "a: \0", "\udcff", "[[}"])
def test_what_is_no_yaml_is_as_deep_as_it_comes(text: str) -> None:
    assert not is_deeper(text, 2)
