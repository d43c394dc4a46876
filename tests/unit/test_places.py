"""Who gives way where there is no place left, at times that are made up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epp.extproc.places import Places

REST_S = 5.0


def full_of(*holders: str) -> Places[str]:
    """All places taken, one holder each second from 0 on."""
    places: Places[str] = Places(len(holders), REST_S)
    for second, holder in enumerate(holders):
        places.take(holder, float(second))
    return places


def test_nobody_gives_way_before_the_time() -> None:
    places = full_of("a", "b")
    assert places.full()
    assert places.gives_way(REST_S - 0.001) is None
    assert places.room(REST_S - 0.001) == 0
    assert places.room(REST_S) == 2
    assert places.gives_way(REST_S) == "a"
    assert places.gives_way(REST_S) is None
    assert not places.full()
    assert places.room(REST_S) == 1


def test_who_has_a_call_never_gives_way_and_who_had_one_is_young_again() -> None:
    places = full_of("a", "b", "c")
    places.work("a")
    places.work("b")
    places.rest("a", 50.0)
    assert places.gives_way(100.0) == "c"
    assert places.gives_way(54.0) is None
    assert places.gives_way(55.0) == "a"
    assert places.gives_way(1e9) is None
    assert places.room(1e9) == 2


def test_resting_again_does_not_renew_a_rest() -> None:
    places = full_of("a", "b")
    places.rest("a", 4.0)
    assert places.gives_way(5.0) == "a"


def test_who_has_left_holds_nothing() -> None:
    places = full_of("a")
    places.leave("a")
    places.rest("a", 0.0)
    assert not places.full()
    assert places.gives_way(100.0) is None


STEPS = st.lists(
    st.tuples(st.sampled_from(["come", "work", "rest", "leave"]), st.integers(0, 5), st.sampled_from([0.0, 1.0, 4.0])),
    max_size=60,
)


@given(STEPS)
def test_places_are_what_a_list_of_all_says(steps: list[tuple[str, int, float]]) -> None:
    places: Places[int] = Places(3, REST_S)
    since_s: dict[int, float | None] = {}
    now_s = 0.0
    for step, holder, later_s in steps:
        now_s += later_s
        if step == "come" and holder not in since_s:
            old = [(since, one) for one, since in since_s.items() if since is not None and now_s - since >= REST_S]
            at_rest = sum(since is not None for since in since_s.values())
            assert places.room(now_s) == 3 - len(since_s) + (at_rest if old else 0)
            assert places.full() == (len(since_s) == 3)
            if places.full():
                gone = places.gives_way(now_s)
                assert (gone is None) == (not old)
                if gone is None:
                    continue
                # Of those that came to rest at one moment, either may go.
                assert since_s.pop(gone) == min(old)[0]
            places.take(holder, now_s)
            since_s[holder] = now_s
        elif step == "work":
            places.work(holder)
            if holder in since_s:
                since_s[holder] = None
        elif step == "rest":
            places.rest(holder, now_s)
            if holder in since_s and since_s[holder] is None:
                since_s[holder] = now_s
        elif step == "leave":
            places.leave(holder)
            since_s.pop(holder, None)
