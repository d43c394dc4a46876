"""Endpoints and candidates: membership is replaced at once, slots are reused without a trace, columns fall back soundly."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.endpoint import (
    ADAPTER_RUNNING,
    ADAPTER_WAITING,
    NEVER,
    Adapters,
    CacheConfig,
    Candidates,
    Endpoint,
    Endpoints,
    FloatArray,
    Holdings,
    Report,
    host_port,
)


def endpoint(number: int, port: int = 8000, **labels: str) -> Endpoint:
    return Endpoint(name=f"e{number}", address=f"10.0.0.{number}", port=port, labels=labels)


def pool(*numbers: int, capacity: int = 16) -> Endpoints:
    endpoints = Endpoints(capacity=capacity)
    endpoints.replace([endpoint(number) for number in numbers])
    return endpoints


def full_report(value: float) -> Report:
    return Report(
        waiting=value,
        running=value,
        kv_usage=value,
        adapters=Adapters(frozenset({"a"}), frozenset({"b"}), 4),
        cache=CacheConfig(16, 1000),
        custom={"k": value},
    )


def columns(endpoints: Endpoints) -> list[np.ndarray]:
    return [
        endpoints.waiting,
        endpoints.running,
        endpoints.kv_usage,
        endpoints.updated_s,
        endpoints.in_flight,
        endpoints.in_flight_prompts,
        endpoints.in_flight_tokens,
        endpoints.picked_since_report,
        endpoints.incarnation,
        endpoints.unreachable,
        endpoints.adapter_room,
        *endpoints.custom.values(),
    ]


def test_ipv6_goes_in_brackets() -> None:
    assert host_port("fd00::1", 80) == "[fd00::1]:80"
    assert host_port("10.0.0.1", 80) == "10.0.0.1:80"
    assert Endpoint(name="a", address="fd00::1", port=80).destination == "[fd00::1]:80"


def test_replace_tells_what_it_did() -> None:
    endpoints = pool(1, 2, 3)
    change = endpoints.replace([endpoint(3, zone="b"), endpoint(4), endpoint(2)])
    assert [e.name for _, e in change.removed] == ["e1"]
    assert [e.name for _, e in change.added] == ["e4"]
    assert [(slot, e.labels) for slot, e in change.changed] == [(endpoints.slot_of("default/e3"), {"zone": "b"})]
    assert [e.name for e in endpoints.members] == ["e3", "e4", "e2"]
    assert [endpoints.at(int(slot)) for slot in endpoints.slots] == list(endpoints.members)


def test_the_same_again_changes_nothing() -> None:
    endpoints = pool(1, 2)
    change = endpoints.replace([endpoint(1), endpoint(2)])
    assert change.added == change.removed == change.changed == ()


def test_a_mistake_leaves_the_membership_as_it_was() -> None:
    endpoints = pool(1, 2)
    before = endpoints.generation, endpoints.members
    with pytest.raises(ValueError, match="default/e3"):
        endpoints.replace([endpoint(3), endpoint(4), endpoint(3, port=9000)])
    assert (endpoints.generation, endpoints.members) == before
    assert endpoints.slot_of("default/e3") is None


def test_the_same_name_in_two_namespaces_is_two_endpoints() -> None:
    endpoints = Endpoints()
    endpoints.replace(
        [
            Endpoint(name="a", namespace="x", address="10.0.0.1", port=1),
            Endpoint(name="a", namespace="y", address="10.0.0.2", port=1),
        ]
    )
    assert endpoints.slot_of("x/a") != endpoints.slot_of("y/a")


def test_another_port_is_another_endpoint() -> None:
    endpoints = pool(1)
    endpoints.report(0, full_report(3.0), 1.0)
    change = endpoints.replace([endpoint(1, port=8001)])
    assert len(change.added) == len(change.removed) == 1
    slot = endpoints.slot_of("default/e1")
    assert slot is not None
    assert np.isnan(endpoints.waiting[slot])
    assert endpoints.slot_by_destination("10.0.0.1:8000") is None
    assert endpoints.slot_by_destination("10.0.0.1:8001") == slot


def test_of_two_at_one_destination_the_later_is_found_and_the_other_when_it_is_alone() -> None:
    one, two, other = (
        Endpoint(name=name, address="10.0.0.1", port=port) for name, port in (("a", 80), ("b", 80), ("c", 81))
    )
    endpoints = Endpoints()
    endpoints.replace([one, two, other])
    assert endpoints.slot_by_destination("10.0.0.1:80") == endpoints.slot_of("default/b")
    endpoints.replace([one, other])
    assert endpoints.slot_by_destination("10.0.0.1:80") == endpoints.slot_of("default/a")
    endpoints.replace([two, one, other])
    assert endpoints.slot_by_destination("10.0.0.1:80") == endpoints.slot_of("default/a")
    endpoints.replace([other])
    assert endpoints.slot_by_destination("10.0.0.1:80") is None


def test_a_slot_passes_on_nothing() -> None:
    endpoints = pool(1)
    fresh = [column.copy() for column in columns(endpoints)]
    endpoints.report(0, full_report(3.0), 1.0)
    endpoints.set_unreachable(0, True)
    endpoints.in_flight[0] = endpoints.in_flight_tokens[0] = endpoints.picked_since_report[0] = 5
    endpoints.in_flight_prompts[0] = 5
    endpoints.replace([endpoint(2)])
    assert endpoints.slot_of("default/e2") == 0
    assert endpoints.incarnation[0] == 1
    assert endpoints.cache[0] is None
    assert endpoints.adapters[0].running == frozenset()
    assert endpoints.adapter("a") is None
    assert endpoints.adapter("b") is None
    assert np.isnan(endpoints.custom["k"][0])
    endpoints.incarnation[0] = 0
    for column, new in zip(columns(endpoints), fresh, strict=False):
        np.testing.assert_array_equal(column, new)


def test_growth_keeps_what_is_known() -> None:
    endpoints = pool(1, 2, capacity=2)
    for slot in (0, 1):
        endpoints.report(slot, full_report(slot + 1.0), 5.0)
    endpoints.in_flight[1] = 7
    endpoints.set_unreachable(1, True)
    slots = endpoints.slots.tolist()
    endpoints.replace([endpoint(number) for number in range(1, 12)])
    assert endpoints.capacity == 16
    assert all(len(column) == 16 for column in columns(endpoints))
    assert len(endpoints.adapters) == len(endpoints.cache) == 16
    assert endpoints.slots[:2].tolist() == slots
    assert endpoints.waiting[:2].tolist() == [1.0, 2.0]
    assert np.isnan(endpoints.waiting[2:]).all()
    assert endpoints.custom["k"][:2].tolist() == [1.0, 2.0]
    assert endpoints.updated_s[2] == NEVER
    assert endpoints.in_flight.sum() == 7
    assert endpoints.unreachable.sum() == 1
    column = endpoints.adapter("a")
    assert column is not None
    assert column.tolist() == [ADAPTER_RUNNING, ADAPTER_RUNNING] + [0] * 14


@given(
    st.lists(
        st.dictionaries(st.integers(0, 12), st.sampled_from([8000, 8001]), max_size=12).map(
            lambda members: [endpoint(*member) for member in members.items()]
        ),
        max_size=12,
    )
)
@settings(max_examples=80, deadline=None)
def test_any_succession_of_memberships(successive: list[list[Endpoint]]) -> None:
    endpoints = Endpoints(capacity=2)
    members: dict[int, Endpoint] = {}
    incarnations = endpoints.incarnation.copy()
    for wanted in successive:
        change = endpoints.replace(wanted)
        for slot, gone in change.removed:
            assert members.pop(slot) == gone
        for slot, new in change.added:
            assert slot not in members
            members[slot] = new
        assert len(endpoints) == len(wanted) == len(members)
        assert list(endpoints.members) == wanted
        assert [members[int(slot)] for slot in endpoints.slots] == wanted
        assert all(endpoints.slot_of(e.key) == endpoints.slot_by_destination(e.destination) for e in wanted)
        moved_on = {slot for slot, _ in change.removed}
        for slot, incarnation in enumerate(incarnations.tolist()):
            assert endpoints.incarnation[slot] == incarnation + (slot in moved_on)
        incarnations = endpoints.incarnation.copy()


def test_what_a_report_lacks_stays_as_known() -> None:
    endpoints = pool(1)
    endpoints.report(0, full_report(3.0), 1.0)
    endpoints.report(0, Report(waiting=4.0), 2.0)
    assert (endpoints.waiting[0], endpoints.running[0], endpoints.kv_usage[0]) == (4.0, 3.0, 3.0)
    assert endpoints.cache[0] == CacheConfig(16, 1000)
    assert endpoints.updated_s[0] == 2.0


def test_waiting_adds_what_was_picked_since_the_report() -> None:
    endpoints = pool(1, 2)
    for slot in (0, 1):
        endpoints.report(slot, Report(waiting=2.0, running=1.0), 1.0)
    endpoints.picked_since_report[1] = 3
    assert endpoints.candidates(1.5).waiting.tolist() == [2.0, 5.0]
    assert endpoints.candidates(1.5).running.tolist() == [1.0, 1.0]


def test_the_ledger_stands_in_for_a_report_that_is_stale_or_never_came() -> None:
    endpoints = Endpoints(stale_after_s=2.0)
    endpoints.replace([endpoint(number) for number in range(4)])
    endpoints.report(0, Report(waiting=50.0, running=60.0), 1.0)
    endpoints.report(1, Report(waiting=7.0, running=8.0), 3.0)
    endpoints.report(2, Report(kv_usage=0.5), 3.0)
    endpoints.in_flight[:4] = [1, 2, 3, 4]
    candidates = endpoints.candidates(3.5)
    assert candidates.fresh.tolist() == [False, True, True, False]
    assert candidates.waiting.tolist() == [1, 7, 3, 4]
    assert candidates.running.tolist() == [1, 8, 3, 4]


def test_a_report_exactly_as_old_as_allowed_still_counts() -> None:
    endpoints = Endpoints(stale_after_s=2.0)
    endpoints.replace([endpoint(1)])
    endpoints.report(0, Report(waiting=7.0), 1.0)
    assert endpoints.candidates(3.0).waiting.tolist() == [7.0]
    assert endpoints.candidates(3.001).waiting.tolist() == [0.0]


def test_unknown_kv_usage_is_the_mean_of_the_others() -> None:
    endpoints = pool(1, 2, 3)
    assert endpoints.candidates(0.0).kv_usage.tolist() == [0.0, 0.0, 0.0]
    endpoints.report(0, Report(kv_usage=0.2), 1.0)
    endpoints.report(2, Report(kv_usage=0.6), 1.0)
    assert endpoints.candidates(1.0).kv_usage.tolist() == [0.2, pytest.approx(0.4), 0.6]
    assert np.isnan(endpoints.kv_usage[1])


def test_hits_and_churn_are_by_slot_and_may_end_early() -> None:
    endpoints = pool(*range(20))
    endpoints.replace([endpoint(number) for number in reversed(range(20))])
    hits = np.array([5, 6, 7], dtype=np.float64)
    expected = [hits[slot] if slot < 3 else 0 for slot in endpoints.slots]
    told = endpoints.candidates(0.0, Holdings(hits, hits / 10, 2.0))
    assert told.hit_blocks.tolist() == expected
    assert told.churn.tolist() == [hit / 10 for hit in expected]
    assert told.demand == 2
    silent = endpoints.candidates(0.0)
    assert silent.hit_blocks.tolist() == silent.churn.tolist() == [0] * 20
    assert silent.demand == 0


def test_others_are_seen_by_the_requests_that_are_not_ours_for_a_while() -> None:
    endpoints = pool(1, 2)
    endpoints.in_flight[:2] = [5, 3]

    def seen(running: float, rounds: int) -> list[bool]:
        found = []
        for _ in range(rounds):
            for slot in range(2):
                endpoints.report(slot, Report(waiting=1, running=running), 1.0)
                endpoints.report(slot, Report(running=100.0), 1.0)
            found.append(endpoints.candidates(1.0).shared)
        return found

    assert not endpoints.candidates(0.0).shared
    # A little more than ours: reports are older than our account.
    assert not any(seen(3.9, 100))
    assert not any(seen(3, 200))
    # As many as ours: others, but not for a moment's sake.
    began = seen(7, 100).index(True)
    assert 3 < began < 15
    assert 10 < seen(3, 200).index(False) < 100


def test_who_counts_all_requests_since_its_start_says_nothing_of_others() -> None:
    endpoints = pool(1)
    for total in range(10):
        endpoints.report(0, Report(waiting=1.0, running=100.0 * total, running_is_total=True), 1.0)
    assert not endpoints.shared
    endpoints.report(0, Report(waiting=1.0, running=100.0), 1.0)
    assert endpoints.shared


def test_where_a_server_is_late_to_say_that_it_is_idle_only_those_with_requests_of_ours_are_compared() -> None:
    endpoints = pool(1, 2)
    endpoints.in_flight[0] = 3
    late = Report(waiting=0.0, running=3.0, idles_late=True)
    for slot in (0, 1, 0, 1):
        endpoints.report(slot, late, 1.0)
        assert not endpoints.shared
    endpoints.in_flight[1] = 1
    endpoints.report(1, late, 1.0)
    endpoints.report(1, late, 1.0)
    assert endpoints.shared


def homes(endpoints: Endpoints) -> list[str]:
    """Of 4,000 prefixes."""
    rng, candidates = random.Random(1), endpoints.candidates(0.0)
    return [candidates[candidates.home(rng.getrandbits(60))].name for _ in range(4000)]


def test_a_prefix_has_one_home_in_every_picker_and_each_endpoint_as_many() -> None:
    found = homes(pool(*range(8)))
    assert homes(pool(*reversed(range(8)), capacity=8)) == found
    # 500, give or take five standard deviations.
    assert all(400 < count < 600 for count in Counter(found).values())


def test_a_prefix_moves_only_to_an_endpoint_that_comes_or_from_one_that_goes() -> None:
    endpoints = pool(*range(8))
    before = homes(endpoints)
    endpoints.replace([endpoint(number) for number in range(1, 20)])
    for old, new in zip(before, homes(endpoints), strict=True):
        assert old in (new, "e0") or int(new[1:]) >= 8


def test_the_backlog_is_less_what_the_front_of_the_line_has_behind_it_by_now() -> None:
    endpoints = pool(*range(6))
    endpoints.in_flight_tokens[:6] = [900, 900, 900, 900, 400, 0]
    endpoints.line_prompt[:6] = [300, 300, 300, 900, 400, 0]
    endpoints.line_s[:6] = [8.0, 9.9, 9.9, 9.9, 10.0, 5.0]
    endpoints.line_rate[:6] = [1000, 1000, 0, 1000, 1000, 1000]
    # At most three quarters of the mean of 300, then 100 in a tenth of a second, none by no rate, none in no time, none of nothing.
    assert endpoints.candidates(10.0).backlog.tolist() == pytest.approx([675, 800, 900, 800, 400, 0])
    assert endpoints.candidates(10.0).in_flight_tokens.tolist() == [900, 900, 900, 900, 400, 0]


def test_keep_narrows_every_column_and_keeps_the_order() -> None:
    endpoints = pool(1, 2, 3)
    for slot in range(3):
        endpoints.report(slot, full_report(slot + 1.0), 1.0)
    hits, churn = np.array([1, 2, 3], dtype=np.float64), np.array([0.5, 0.0, 1.0])
    kept = endpoints.candidates(1.0, Holdings(hits, churn, 7.0)).keep(np.array([True, False, True]))
    assert len(kept) == 2
    assert [kept[0].name, kept[1].name] == ["e1", "e3"]
    assert [e.name for e in kept.members] == ["e1", "e3"]
    assert kept.waiting.tolist() == [1.0, 3.0]
    assert kept.hit_blocks.tolist() == [1, 3]
    assert kept.churn.tolist() == [0.5, 1.0]
    assert kept.demand == 7
    assert kept.custom("k").tolist() == [1.0, 3.0]
    assert kept.find("default/e3") == 1
    assert kept.find("default/e2") is None
    assert kept.find("default/e9") is None


def test_an_unknown_custom_metric_is_nan() -> None:
    assert all(math.isnan(value) for value in pool(1, 2).candidates(0.0).custom("none"))


def test_unreachable_endpoints_are_left_out_while_another_lives() -> None:
    endpoints = pool(1, 2, 3)
    endpoints.set_unreachable(1, True)
    assert [e.name for e in endpoints.candidates(0.0).members] == ["e1", "e3"]
    assert endpoints.candidates(0.0, slots=np.array([1, 2])).slots.tolist() == [2]
    assert endpoints.candidates(0.0, slots=np.array([1])).slots.tolist() == [1]
    for slot in (0, 2):
        endpoints.set_unreachable(slot, True)
    assert len(endpoints.candidates(0.0)) == 3
    endpoints.report(2, Report(), 1.0)
    assert [e.name for e in endpoints.candidates(1.0).members] == ["e3"]


def test_adapters_by_endpoint() -> None:
    endpoints = pool(1, 2, 3)
    endpoints.report(0, Report(adapters=Adapters(frozenset({"a"}), frozenset({"a", "b"}), 2)), 1.0)
    endpoints.report(1, Report(adapters=Adapters(frozenset({"b"}), frozenset(), 2)), 1.0)
    candidates = endpoints.candidates(1.0)
    column = candidates.adapter("b")
    assert column is not None
    assert column.tolist() == [ADAPTER_WAITING, ADAPTER_RUNNING, 0]
    column = candidates.adapter("a")
    assert column is not None
    assert column.tolist() == [ADAPTER_RUNNING, 0, 0]
    assert candidates.adapter("c") is None
    assert candidates.adapters(1).max_lora == 2
    endpoints.report(0, Report(adapters=Adapters(frozenset(), frozenset(), 2)), 2.0)
    assert endpoints.adapter("a") is None


def test_what_follows_from_the_description_is_computed_once_a_membership() -> None:
    calls = []

    def port(one: Endpoint) -> float:
        calls.append(one.name)
        return one.port

    endpoints = pool(1, 2)
    assert endpoints.candidates(0.0).derive(port).tolist() == [8000, 8000]
    assert endpoints.candidates(0.0).derive(port).tolist() == [8000, 8000]
    assert calls == ["e1", "e2"]
    endpoints.replace([endpoint(1, port=9)])
    assert endpoints.candidates(0.0).derive(port).tolist() == [9]


def test_what_only_reports_change_is_asked_once_a_report() -> None:
    endpoints = pool(0, 1)
    first, second = (endpoints.slots.item(number) for number in range(2))
    asked: list[int] = []

    def of(candidates: Candidates) -> FloatArray:
        asked.append(len(candidates))
        return candidates.kv_usage + 0.0

    for value in (0.25, 0.5):
        endpoints.report(first, Report(kv_usage=value), 1.0)
        for _ in range(3):
            assert endpoints.candidates(1.0).by_reports(of).tolist() == [value, value]
    assert asked == [2, 2]
    endpoints.set_unreachable(second, True)
    assert endpoints.candidates(1.0).by_reports(of).tolist() == [0.5]
    endpoints.replace([endpoint(0)])
    assert endpoints.candidates(1.0).by_reports(of).tolist() == [0.5]
    assert asked == [2, 2, 1, 1]


def test_what_reports_say_of_some_is_not_what_they_say_of_all() -> None:
    endpoints = pool(0, 1)
    first, second = (endpoints.slots.item(number) for number in range(2))
    endpoints.report(first, Report(kv_usage=0.2), 1.0)
    endpoints.report(second, Report(kv_usage=0.4), 1.0)

    def of(candidates: Candidates) -> FloatArray:
        return candidates.kv_usage + 0.0

    everyone = endpoints.candidates(1.0)
    assert everyone.by_reports(of).tolist() == [0.2, 0.4]
    assert everyone.keep(np.array([False, True])).by_reports(of).tolist() == [0.4]
    with pytest.raises(ValueError, match="read-only"):
        everyone.by_reports(of)[0] = 1.0
