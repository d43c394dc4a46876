"""The timetable of scrapes, in virtual time."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.signals.schedule import Schedule, phase_s


def schedule(phase: float = 0.25, **changes: float) -> Schedule:
    settings = {"interval_s": 1.0, "timeout_s": 2.0, "max_backoff_s": 5.0, **changes}
    return Schedule(100.0, phase_s=phase, rng=random.Random(7), **settings)


def test_asks_on_the_grid() -> None:
    timetable = schedule()
    asked = []
    for _ in range(3):
        now_s = timetable.wake_s
        assert timetable.due(now_s)
        timetable.asked(now_s)
        assert not timetable.due(now_s)
        timetable.answered(now_s + 0.01)
        asked.append(now_s)
    assert asked == pytest.approx([100.25, 101.25, 102.25])


def test_a_slow_answer_skips_points_of_the_grid() -> None:
    timetable = schedule(timeout_s=10.0)
    timetable.asked(100.25)
    timetable.answered(102.5)
    assert timetable.wake_s == pytest.approx(103.25)


def test_a_timer_that_fires_early_asks_once() -> None:
    timetable = schedule()
    assert timetable.due(100.249)
    timetable.asked(100.249)
    timetable.answered(100.2495)
    assert timetable.wake_s == pytest.approx(101.25)


def test_waits_for_an_answer_until_the_timeout() -> None:
    timetable = schedule()
    timetable.asked(100.25)
    assert timetable.waiting
    assert timetable.wake_s == pytest.approx(102.25)
    assert not timetable.overdue(102.0)
    assert timetable.overdue(102.25)
    timetable.failed(102.25)
    assert not timetable.waiting
    assert not timetable.overdue(999.0)


def test_backs_off_and_comes_back() -> None:
    timetable = schedule()
    now_s = 100.25
    waits = []
    for _ in range(40):
        timetable.asked(now_s)
        timetable.failed(now_s)
        waits.append(timetable.wake_s - now_s)
        now_s = timetable.wake_s
    assert all(0.5 * longest <= wait <= longest for wait, longest in zip(waits, [2.0, 4.0, 5.0, 5.0], strict=False))
    assert all(2.5 <= wait <= 5.0 for wait in waits[2:])
    assert len({round(wait, 6) for wait in waits}) == 40
    timetable.asked(now_s)
    timetable.answered(now_s)
    assert timetable.failures == 0
    assert 0 < timetable.wake_s - now_s <= 1.0


def test_a_backoff_never_hurries() -> None:
    timetable = schedule(interval_s=30.0)
    timetable.asked(100.0)
    timetable.failed(100.0)
    assert 15.0 <= timetable.wake_s - 100.0 <= 30.0


@given(
    st.floats(0.05, 100.0),
    st.integers(0, 5000),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 300.0)), min_size=1, max_size=20),
)
def test_time_always_goes_on(interval_s: float, slot: int, results: list[tuple[bool, float]]) -> None:
    """Whatever comes of it, the next question lies in the future and no more than a backoff or an interval away."""
    timetable = schedule(phase_s(slot, interval_s), interval_s=interval_s)
    now_s = timetable.wake_s
    assert 100.0 <= now_s < 100.0 + interval_s
    for success, took_s in results:
        assert timetable.due(now_s)
        timetable.asked(now_s)
        now_s += took_s
        (timetable.answered if success else timetable.failed)(now_s)
        assert now_s < timetable.wake_s <= now_s + max(5.0, interval_s) + 0.003
        now_s = timetable.wake_s


@pytest.mark.parametrize("count", [2, 8, 100, 1000])
def test_phases_lie_evenly(count: int) -> None:
    phases = sorted(phase_s(slot, 1.0) for slot in range(count))
    gaps = [b - a for a, b in zip(phases, [*phases[1:], phases[0] + 1.0], strict=True)]
    assert max(gaps) < 2.7 / count
