"""A few seconds of what `make fuzz` does for hours: every case ever found, then damaged seeds and any bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS

CASES = sorted((Path(__file__).parent / "cases").glob("*/*"))
EXAMPLES = {"configuration": 25, "endpoints": 100, "page": 100}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}/{case.name[:16]}")
def test_what_once_broke_a_promise_keeps_it(case: Path) -> None:
    TARGETS[case.parent.name](case.read_bytes())


def test_every_target_has_seeds_that_reach_it() -> None:
    assert SEEDS.keys() == TARGETS.keys()


@pytest.mark.parametrize("name", TARGETS)
def test_promises_hold_for_seeds_and_whatever_comes_of_them(name: str) -> None:
    seeds = SEEDS[name]()
    for seed in seeds:
        TARGETS[name](seed)

    @settings(max_examples=EXAMPLES.get(name, 250), deadline=None, suppress_health_check=list(HealthCheck))
    @given(damaged(list(seeds)))
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with bytes changed, left out, doubled, or another seed's end put on; or any bytes at all."""
    data = bytearray(draw(st.sampled_from([b"", *seeds])))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                data[at:at] = draw(st.binary(max_size=20))
            case 2:
                del data[at : at + draw(st.integers(1, 30))]
            case 3:
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case _:
                data[at:] = draw(st.sampled_from(seeds))[at:]
    return bytes(data)
