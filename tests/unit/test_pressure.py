"""When picks become cheaper and when they come back: virtual time throughout."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epp.pressure import BEAT_S, CALM_S, TRIAL_S, Patience, Pressure, Step

BOUND_S = 0.05


class Loop:
    """A loop that is as late as told, beat after beat."""

    def __init__(self, pressure: Pressure) -> None:
        self.pressure = pressure
        self.now_s = 100.0
        self.steps = [pressure.step]

    def turn(self, late_s: float, for_s: float = 0.0) -> Step:
        """Beats `late_s` late for `for_s` seconds, at least one."""
        until_s = self.now_s + for_s
        while True:
            self.now_s += BEAT_S + late_s
            if self.pressure.beat(late_s, self.now_s):
                self.steps.append(self.pressure.step)
            if self.now_s >= until_s:
                return self.pressure.step


def test_a_loop_on_time_changes_nothing() -> None:
    loop = Loop(Pressure(BOUND_S))
    assert loop.turn(0.001, for_s=60) is Step.FULL
    assert loop.steps == [Step.FULL]
    assert 0.0005 < loop.pressure.lag_s < 0.0011


def test_one_pause_however_long_is_no_pressure() -> None:
    loop = Loop(Pressure(BOUND_S))
    assert loop.turn(600.0) is Step.FULL
    assert loop.turn(0.0, for_s=5) is Step.FULL


def test_lag_that_stays_takes_one_step_after_the_other() -> None:
    loop = Loop(Pressure(BOUND_S))
    began_s = loop.now_s
    while loop.pressure.step is Step.FULL:
        loop.turn(0.1)
    first_s = loop.now_s - began_s
    assert first_s < 1.0
    while loop.pressure.step is Step.NO_PREFIX:
        loop.turn(0.1)
    assert TRIAL_S <= loop.now_s - began_s - first_s < TRIAL_S + 0.2
    assert loop.turn(0.1, for_s=30) is Step.RANDOM
    assert loop.steps == [Step.FULL, Step.NO_PREFIX, Step.RANDOM]


def test_a_step_that_helps_is_the_last() -> None:
    loop = Loop(Pressure(BOUND_S))
    while loop.pressure.step is Step.FULL:
        loop.turn(0.1)
    # Less than the bound, more than half of it: neither worse nor better.
    assert loop.turn(0.035, for_s=60) is Step.NO_PREFIX


def test_steps_are_taken_back_one_by_one_after_a_calm() -> None:
    loop = Loop(Pressure(BOUND_S))
    loop.turn(0.2, for_s=5)
    assert loop.pressure.step is Step.RANDOM
    loop.turn(0.0, for_s=CALM_S - 0.1)
    assert len(loop.steps) == 3
    loop.turn(0.0, for_s=1.0)
    assert loop.steps[-1] is Step.NO_PREFIX
    loop.turn(0.0, for_s=CALM_S)
    assert loop.steps == [Step.FULL, Step.NO_PREFIX, Step.RANDOM, Step.NO_PREFIX, Step.FULL]


def test_a_calm_that_is_broken_begins_anew() -> None:
    loop = Loop(Pressure(BOUND_S))
    loop.turn(0.1, for_s=0.5)
    assert loop.pressure.step is Step.NO_PREFIX
    for _ in range(20):
        loop.turn(0.0, for_s=CALM_S - 0.5)
        loop.turn(0.15)
        assert loop.pressure.step is Step.NO_PREFIX


def test_without_a_bound_every_lag_is_all_right() -> None:
    loop = Loop(Pressure())
    assert loop.turn(3.0, for_s=300) is Step.FULL
    assert loop.pressure.lag_s > 2.9


@given(st.lists(st.floats(0, 20), max_size=200))
def test_whatever_came_it_is_over_some_seconds_after(late: list[float]) -> None:
    loop = Loop(Pressure(BOUND_S))
    for late_s in late:
        loop.turn(late_s)
    assert all(abs(a - b) == 1 for a, b in zip(loop.steps, loop.steps[1:], strict=False))
    assert loop.turn(0.0, for_s=2 * CALM_S + 1.5) is Step.FULL


def test_patience_ends_after_so_many_looks_without_a_beat() -> None:
    patience = Patience(3)
    assert [patience.lost(beats) for beats in (7, 7, 7, 8, 8, 8, 8)] == [False] * 6 + [True]


def test_patience_wears_no_thinner_while_beats_come() -> None:
    patience = Patience(2)
    assert not any(patience.lost(beats) for beats in (0, 0, 1, 1, 2, 2, 3))
