"""When refused requests come back: the drain rate, the bounds, the spread."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.drops import OUTCOMES, Drop, Reason, Return
from epp.retry import MAX_LEVELS, RATE_MEMORY_S, Bounds, Drain, Outage, Returns, spread

SECONDS = st.floats(-1e6, 1e9, allow_nan=False)


class Middle(random.Random):
    """No chance: always the same share."""

    def __init__(self, share: float = 0.0) -> None:
        super().__init__(0)
        self._share = share

    def random(self) -> float:
        return self._share


def draining(rate: float, seconds: float = 5 * RATE_MEMORY_S) -> tuple[Drain, float]:
    drain = Drain()
    for number in range(round(rate * seconds)):
        drain.left(number / rate)
    return drain, seconds


@given(SECONDS, st.integers(0, 2**32), st.integers(1, 10), st.integers(10, 300))
def test_the_answer_is_always_whole_seconds_within_bounds(wait_s: float, seed: int, least_s: int, most_s: int) -> None:
    told = spread(wait_s, random.Random(seed), Bounds(least_s, most_s))
    assert isinstance(told, int)
    assert least_s <= told <= most_s


@given(st.floats(0, 47), st.integers(0, 2**32))
def test_nobody_is_told_to_come_too_early_or_a_quarter_too_late(wait_s: float, seed: int) -> None:
    told = spread(wait_s, random.Random(seed))
    held_s = max(wait_s, 1.0)
    assert held_s - 0.5 <= told <= held_s * 1.25 + 1.5


@pytest.mark.parametrize("wait_s", [0.0, 1.0, 8.0, 47.0, 1e6])
def test_those_refused_together_are_spread(wait_s: float) -> None:
    rng = random.Random(4)
    told = Counter(spread(wait_s, rng) for _ in range(2000))
    assert len(told) >= 2
    assert max(told.values()) <= 1300
    if wait_s >= 8.0:
        assert max(told.values()) <= 900


class TestRate:
    @pytest.mark.parametrize("rate", [0.5, 4.0, 200.0])
    def test_a_steady_drain_is_measured(self, rate: float) -> None:
        drain, now_s = draining(rate)
        assert drain.rate(now_s) == pytest.approx(rate, rel=0.15)

    def test_it_is_right_early_on(self) -> None:
        drain, now_s = draining(20.0, seconds=2.0)
        assert drain.rate(now_s) == pytest.approx(20.0, rel=0.15)

    def test_one_departure_is_no_great_rate(self) -> None:
        drain = Drain()
        drain.left(100.0)
        assert drain.rate(100.0) <= 1.0

    def test_it_fades_when_nothing_gets_through(self) -> None:
        drain, now_s = draining(10.0)
        rates = [drain.rate(now_s + later_s) for later_s in (0.0, 10.0, 30.0, 100.0)]
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] < 0.001

    def test_a_clock_that_stands_or_steps_back_does_no_harm(self) -> None:
        drain, now_s = draining(10.0)
        drain.left(now_s - 30.0)
        drain.left(now_s - 30.0)
        assert 9.0 < drain.rate(now_s - 5.0) < 13.0

    def test_before_anything_there_is_none(self) -> None:
        assert Drain().rate(5.0) == 0.0


class TestDrain:
    def test_who_is_refused_waits_for_those_ahead(self) -> None:
        drain, now_s = draining(10.0)
        assert drain.retry_after(200, now_s, Middle()) == pytest.approx(20, abs=3)

    def test_those_refused_together_return_at_the_rate_measured(self) -> None:
        drain, now_s = draining(10.0)
        told = [drain.retry_after(0, now_s, Middle()) for _ in range(300)]
        assert told == sorted(told)
        for second in range(5, 25):
            assert told.count(second) <= 15
        assert told[-1] == pytest.approx(30, abs=4)

    def test_promises_do_not_outlive_their_time(self) -> None:
        drain, now_s = draining(10.0)
        for _ in range(10_000):
            drain.retry_after(0, now_s, Middle())
        assert drain.retry_after(0, now_s, Middle()) >= 45
        later_s = now_s + 61.0
        for number in range(100):
            drain.left(later_s + number / 10.0)
        assert drain.retry_after(0, later_s + 10.0, Middle()) == 1

    def test_nothing_measured_yet_is_the_least(self) -> None:
        assert Drain().retry_after(500, 3.0, Middle()) == 1

    def test_nothing_gets_through_any_more_is_the_most(self) -> None:
        drain, now_s = draining(10.0)
        assert drain.retry_after(0, now_s + 200.0, Middle(0.999)) == 60

    @given(st.lists(st.tuples(st.booleans(), st.floats(-5, 100), st.integers(0, 10**6)), max_size=60), st.integers())
    def test_whatever_happens_the_answer_is_within_bounds(
        self, story: list[tuple[bool, float, int]], seed: int
    ) -> None:
        drain, rng, now_s = Drain(Bounds(2, 30)), random.Random(seed), 0.0
        for leaves, step_s, ahead in story:
            now_s += step_s
            if leaves:
                drain.left(now_s)
            else:
                assert 2 <= drain.retry_after(ahead, now_s, rng) <= 30
            assert drain.rate(now_s) >= 0.0


class TestOutage:
    def test_the_longer_it_lasts_the_later(self) -> None:
        outage, rng = Outage(), Middle()
        told = [outage.retry_after(7, now_s, rng) for now_s in (100.0, 101.0, 110.0, 130.0, 500.0)]
        assert told[:4] == [1, 1, 10, 30]
        assert told[4] >= 45

    def test_another_membership_is_another_outage(self) -> None:
        outage, rng = Outage(), Middle()
        outage.retry_after(7, 100.0, rng)
        assert outage.retry_after(7, 140.0, rng) == 40
        assert outage.retry_after(9, 200.0, rng) == 1

    def test_few_tries_find_the_end_of_an_outage(self) -> None:
        outage, rng, now_s, tries = Outage(Bounds(1, 100_000)), random.Random(3), 0.0, 0
        while now_s < 3600.0:
            now_s += outage.retry_after(1, now_s, rng)
            tries += 1
        assert tries <= 16
        assert now_s <= 2.3 * 3600.0


class TestReturns:
    @pytest.mark.parametrize("reason", Reason)
    def test_each_reason_by_its_rule(self, reason: Reason) -> None:
        drop = Drop(reason, "no")
        Returns(random.Random(1)).advise(drop, 5.0)
        assert (drop.retry_after_s is not None) == (OUTCOMES[reason].retry in (Return.DRAIN, Return.POOL))

    def test_who_knew_better_is_not_overruled(self) -> None:
        drop = Drop(Reason.SATURATED, "no", retry_after_s=7)
        Returns(random.Random(1)).advise(drop, 5.0, ahead=10_000)
        assert drop.retry_after_s == 7

    def test_every_level_by_its_own_drain(self) -> None:
        returns = Returns(Middle())
        for number in range(400):
            returns.left(0, number / 10.0)
            if number % 20 == 0:
                returns.left(-1, number / 10.0)
        told = []
        for priority in (0, -1):
            drop = Drop(Reason.TTL_EXPIRED, "no")
            returns.advise(drop, 40.0, priority=priority, ahead=10)
            told.append(drop.retry_after_s)
        assert told == [1, pytest.approx(22, abs=4)]

    def test_no_more_levels_are_remembered_than_the_bound(self) -> None:
        returns = Returns(Middle())
        for priority in range(MAX_LEVELS + 2):
            returns.left(priority, 0.0)
        assert sorted(returns._drains) == list(range(2, MAX_LEVELS + 2))

    def test_an_outage_is_of_the_pool(self) -> None:
        returns = Returns(Middle())
        told = []
        for now_s, generation in ((0.0, 1), (12.0, 1), (13.0, 2)):
            drop = Drop(Reason.NO_ENDPOINTS, "no")
            returns.advise(drop, now_s, generation=generation)
            told.append(drop.retry_after_s)
        assert told == [1, 12, 1]
