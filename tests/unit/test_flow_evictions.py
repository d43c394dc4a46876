"""Which running requests give way, how many, and when again. Virtual time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.flow.evictions import AT_ONCE, CONFIRMED_WITHIN_S, Evictions

GRACE_S = 0.5


def running(*priorities: int) -> Evictions[str]:
    """One for each of `priorities`, named by priority and number, begun in that order."""
    evictions: Evictions[str] = Evictions(GRACE_S)
    for number, priority in enumerate(priorities):
        evictions.began(f"{priority}/{number}", priority)
    return evictions


def told(evictions: Evictions[str], priority: int, saturation: float = 1.0, in_flight: float = 10.0) -> list[str]:
    return [name for name, _ in evictions.due(priority, saturation, 1.0, in_flight, 0.0)]


def test_the_lowest_priority_goes_first_and_the_newest_of_it() -> None:
    evictions = running(-1, -2, -2, -1)
    assert told(evictions, 0, saturation=1.2) == ["-2/2", "-2/1"]


def test_the_next_level_gives_way_when_the_lowest_does_not_suffice() -> None:
    assert told(running(-1, -2, -1), 0, saturation=1.2) == ["-2/1", "-1/2"]


def test_only_those_below_who_waits_give_way() -> None:
    assert told(running(-1, -2), -2) == []
    assert told(running(-1, -2), -1, saturation=1.5) == ["-2/1"]


def test_no_more_give_way_than_bring_saturation_below_the_ceiling() -> None:
    assert len(told(running(-1, -1, -1), 0, saturation=1.0)) == 1
    assert len(told(running(-1, -1, -1), 0, saturation=1.11)) == 1
    assert len(told(running(-1, -1, -1), 0, saturation=1.12)) == 2
    assert len(told(running(-1, -1, -1), 0, saturation=9.0)) == AT_ONCE


def test_a_pause_is_no_want_of_room_and_without_requests_of_ours_nobody_is_to_blame() -> None:
    assert running(-1).due(0, 0.7, 0.0, 10.0, 0.0) == []
    assert running(-1).due(0, 1.0, 1.0, 0.0, 0.0) == []
    assert running(-1).due(0, 0.0, 0.0, 5.0, 0.0) == []


def test_nobody_else_is_told_until_the_end_of_those_who_were_shows() -> None:
    evictions = running(-1, -1, -1, -1)
    first, second = told(evictions, 0, saturation=2.0)
    assert evictions.due(0, 2.0, 1.0, 10.0, 1.0) == []
    assert evictions.ended(first, -1, 1.25) == 1.25
    assert evictions.due(0, 2.0, 1.0, 10.0, 2.0) == []
    assert evictions.ended(second, -1, 2.0) == 2.0
    assert evictions.due(0, 2.0, 1.0, 10.0, 2.0 + GRACE_S - 0.01) == []
    assert len(evictions.due(0, 2.0, 1.0, 10.0, 2.0 + GRACE_S)) == 2


def test_who_does_not_end_in_time_is_waited_for_no_more() -> None:
    evictions = running(-1, -1)
    [lost] = told(evictions, 0)
    assert evictions.overdue(CONFIRMED_WITHIN_S - 0.1) == 0
    assert evictions.overdue(CONFIRMED_WITHIN_S) == 1
    assert evictions.overdue(CONFIRMED_WITHIN_S) == 0
    assert [name for name, _ in evictions.due(0, 1.0, 1.0, 10.0, CONFIRMED_WITHIN_S)] == ["-1/0"]
    assert evictions.ended(lost, -1, 11.0) is None


@given(st.floats(1.0, 5.0), st.integers(1, 1000), st.floats(0.1, 1.0))
def test_what_is_told_is_enough_or_the_most(saturation: float, in_flight: int, ceiling: float) -> None:
    gone = running(*[-1] * 5).due(0, saturation, ceiling, in_flight, 0.0)
    each = saturation / in_flight
    assert 1 <= len(gone) <= AT_ONCE
    assert len(gone) == AT_ONCE or saturation - len(gone) * each <= ceiling + 1e-9
    assert len(gone) == 1 or saturation - each >= ceiling - 1e-9


class Machine(RuleBasedStateMachine):
    """Whoever began is there until it ends, is told at most once, and never while others are waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.evictions: Evictions[int] = Evictions(GRACE_S)
        self.now_s = 0.0
        self.count = 0
        self.here: dict[int, int] = {}
        self.told: dict[int, float] = {}
        self.ever: set[int] = set()
        self.quiet_until_s = -1.0

    @rule(priority=st.integers(-3, -1))
    def begin(self, priority: int) -> None:
        self.count += 1
        self.here[self.count] = priority
        self.evictions.began(self.count, priority)

    @rule(priority=st.integers(-3, 3), saturation=st.sampled_from([1.0, 1.3, 4.0]))
    def decide(self, priority: int, saturation: float) -> None:
        self.evictions.overdue(self.now_s)
        if self.told and self.now_s - max(self.told.values()) >= CONFIRMED_WITHIN_S:
            self.told.clear()
        open_to = {one: level for one, level in self.here.items() if one not in self.ever and level < priority}
        gone = self.evictions.due(priority, saturation, 1.0, 4.0, self.now_s)
        assert bool(gone) == (bool(open_to) and not self.told and self.now_s >= self.quiet_until_s)
        for one, level in gone:
            assert self.here[one] == level and one in open_to
            kept = [other for other in open_to if other not in dict(gone)]
            assert not any((open_to[other], -other) < (level, -one) for other in kept)
            self.told[one] = self.now_s
            self.ever.add(one)

    @precondition(lambda self: self.here)
    @rule(data=st.data(), twice=st.booleans())
    def end(self, data: st.DataObject, twice: bool) -> None:
        one = data.draw(st.sampled_from(sorted(self.here)))
        level = self.here.pop(one)
        since_s = self.told.pop(one, None)
        if since_s is not None:
            self.quiet_until_s = self.now_s + GRACE_S
        assert self.evictions.ended(one, level, self.now_s) == (None if since_s is None else self.now_s - since_s)
        if twice:
            assert self.evictions.ended(one, level, self.now_s) is None

    @rule(seconds=st.sampled_from([0.0, 0.4, 0.6, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @invariant()
    def nothing_is_kept_of_those_who_ended(self) -> None:
        assert self.evictions.told <= len(self.here)
        kept = {one for level in self.evictions._running.values() for one in level}
        assert kept == self.here.keys() - self.ever


TestMachine = Machine.TestCase
TestMachine.settings = hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
