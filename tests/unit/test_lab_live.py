"""What live runs and the lab have to agree on. The runs themselves are `make lab-live`."""

from __future__ import annotations

import itertools

from bench.lab.live import CELLS, POLICIES, Cell, Comparison, Measured, disagreements, in_lab
from bench.lab.traces import taken, trace


def compared(policy: str, live_s: float, lab_s: float, cell: Cell = CELLS[0]) -> Comparison:
    live, lab = (Measured(100, 0, value, value, value, 0.5) for value in (live_s, lab_s))
    return Comparison(cell, policy, live, lab)


def test_another_order_is_told_where_the_lab_has_one() -> None:
    ahead, behind = compared("a", 2.0, 1.0), compared("b", 1.0, 2.0)
    assert disagreements([ahead, behind]) == disagreements([behind, ahead])
    assert "a is ahead of b in the lab, and behind it live" in disagreements([ahead, behind])[0]


def test_the_same_order_and_what_is_as_good_in_the_lab_is_agreement() -> None:
    assert disagreements([compared("a", 1.5, 1.0), compared("b", 1.6, 2.0)]) == []
    assert disagreements([compared("a", 2.0, 1.0), compared("b", 1.0, 1.1)]) == []
    assert disagreements([compared("a", 2.0, 1.0), compared("b", 1.0, 2.0, CELLS[1])]) == []


def test_the_lab_has_an_order_in_every_live_cell() -> None:
    for cell in CELLS:
        everything = taken(trace(cell.trace, 1), 1 << 20, cell.speed)
        requests = list(itertools.takewhile(lambda one: one.at_s < 30.0, everything))
        p90 = sorted(in_lab(requests, policy).ttft_p90 for policy in POLICIES.values())
        assert p90[-1] > 1.15 * p90[0]
