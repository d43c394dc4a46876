"""The pipeline: what it sums, what it does when plugins misbehave, and how a pick is explained."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.endpoint import Candidates, Endpoint
from epp.pipeline import LOG_INTERVAL_S, Pick, Pipeline, PluginFaults, Profile, WrongResult
from epp.request import Request
from scorers.max_score_picker import MaxScorePicker
from scorers.single_profile_handler import SingleProfileHandler
from tests.pools import NOW_S, Pool, a_request, an_endpoint

REQUEST = a_request()


class Says:
    """Answers whatever method is asked with the same thing, or by raising it."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def _say(self, *ignored: object) -> Any:
        if isinstance(self._answer, Exception):
            raise self._answer
        return np.array(self._answer) if isinstance(self._answer, list) else self._answer

    filter = score = pick = choose = saturation = _say


class Hooked(Says):
    def __init__(self, answer: Any) -> None:
        super().__init__(answer)
        self.told: list[str] = []

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        self.told.append(endpoint.name)

    def responded(self, request: Request, endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
        return {"x-served": endpoint.name, "x-saw": headers[":status"]}


class Watcher:
    def __init__(self) -> None:
        self.told: list[str] = []

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        self.told.append(endpoint.name)


class Broken(Says):
    def picked(self, request: Request, endpoint: Endpoint) -> None:
        raise RuntimeError("hook")

    def responded(self, request: Request, endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
        raise RuntimeError("hook")


def faults() -> PluginFaults:
    return PluginFaults(lambda line: None)


def pipeline(
    *,
    filters: Sequence[Any] = (),
    scorers: Sequence[tuple[Any, float]] = (),
    picker: Any = None,
    noted: PluginFaults | None = None,
    **more: Any,
) -> Pipeline:
    profile = Profile(
        "default",
        filters=[(f"filter-{number}", plugin) for number, plugin in enumerate(filters)],
        scorers=[(f"scorer-{number}", plugin, weight) for number, (plugin, weight) in enumerate(scorers)],
        picker=("picker", picker or MaxScorePicker(rng=random.Random(1))),
    )
    return Pipeline([profile], handler=("single", SingleProfileHandler()), faults=noted or faults(), **more)


def pick(pool: Pool, **parts: Any) -> Pick:
    return pipeline(**parts).pick(REQUEST, pool.candidates())


def test_sums_weighted_scores() -> None:
    chosen = pick(Pool(3), scorers=[(Says([1.0, 0.5, 0.0]), 1), (Says([0.0, 0.5, 1.0]), 3)])
    assert chosen.totals.tolist() == [1.0, 2.0, 3.0]
    assert [endpoint.name for endpoint in chosen.endpoints] == ["pod-2"]
    assert chosen.profile == "default"


def test_clamps_scores_and_counts_nan_as_nothing() -> None:
    chosen = pick(Pool(4), scorers=[(Says([7.0, -3.0, np.nan, 0.5]), 2)])
    assert chosen.totals.tolist() == [2.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(("odd", "total"), [(-0.5, 0.0), (1.5, 2.0), (np.nan, 0.0), (-0.0, 0.0), (1.0, 2.0)])
def test_one_odd_score_among_sound_ones_is_clamped(odd: float, total: float) -> None:
    assert pick(Pool(3), scorers=[(Says([0.25, odd, 0.5]), 2)]).totals.tolist() == [0.5, total, 1.0]


def test_whole_numbers_and_truths_are_scores_too() -> None:
    chosen = pick(Pool(2), scorers=[(Says([1, 0]), 1), (Says([True, False]), 1), (Says([0.5, 0.5]), 1)])
    assert chosen.totals.tolist() == [2.5, 0.5]


@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=60)
def test_equal_scores_make_equal_totals(n: int, k: int, seed: int) -> None:
    rng = random.Random(seed)
    scorers = [(Says([rng.random()] * n), rng.random() * 3) for _ in range(k)]
    totals = pick(Pool(n), scorers=scorers).totals
    assert len(set(totals.tolist())) == 1


def test_filters_apply_in_order() -> None:
    seen: list[int] = []

    class Counts:
        def filter(self, request: Request, candidates: Candidates) -> Any:
            seen.append(len(candidates))
            return np.arange(len(candidates)) > 0

    chosen = pick(Pool(4), filters=[Counts(), Counts()])
    assert seen == [4, 3]
    assert {endpoint.name for endpoint in chosen.endpoints} <= {"pod-2", "pod-3"}
    assert chosen.considered.tolist() == Pool(4).endpoints.slots[2:].tolist()


def test_filters_that_leave_nobody_refuse() -> None:
    with pytest.raises(Drop) as refusal:
        pick(Pool(3), filters=[Says([True, False, True]), Says([False, False])])
    assert refusal.value.reason is Reason.SATURATED
    assert "filter-1 left none of 2" in refusal.value.message


WRONG: list[tuple[Any, str]] = [
    (RuntimeError("no"), "raised"),
    ([0.5], "wrong-result"),
    ([[0.5, 0.5, 0.5]], "wrong-result"),
    (np.array(["a", "b", "c"]), "wrong-result"),
    (np.array([1j, 0, 0]), "wrong-result"),
    ((1.0, 2.0, 3.0), "wrong-result"),
    (0.5, "wrong-result"),
    (None, "wrong-result"),
]


@pytest.mark.parametrize(("answer", "kind"), WRONG)
def test_a_bad_scorer_is_left_out(answer: Any, kind: str) -> None:
    noted = faults()
    chosen = pick(Pool(3), scorers=[(Says(answer), 5), (Says([0.0, 1.0, 0.0]), 1)], noted=noted)
    assert chosen.endpoints[0].name == "pod-1"
    assert chosen.totals.tolist() == [0, 1, 0]
    assert noted.counts == {("scorer-0", kind): 1}


@pytest.mark.parametrize(("answer", "kind"), [*WRONG, ([1, 0, 1], "wrong-result"), ([0.0, 1.0, 1.0], "wrong-result")])
def test_a_bad_filter_is_left_out(answer: Any, kind: str) -> None:
    noted = faults()
    chosen = pick(Pool(3), filters=[Says(answer), Says([False, True, False])], noted=noted)
    assert chosen.endpoints[0].name == "pod-1"
    assert noted.counts == {("filter-0", kind): 1}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [*WRONG, ([], "wrong-result"), ([3], "wrong-result"), ([-1], "wrong-result"), ([0, 1, 0], "wrong-result")],
)
def test_a_bad_picker_gives_way_to_the_least_loaded(answer: Any, kind: str) -> None:
    noted = faults()
    chosen = pick(Pool(3).known(in_flight=[4, 1, 2]), picker=Says(answer), noted=noted)
    assert chosen.endpoints[0].name == "pod-1"
    assert noted.counts == {("picker", kind): 1}


def test_a_ranked_pick() -> None:
    chosen = pick(Pool(3), picker=Says([2, 0]))
    assert [endpoint.name for endpoint in chosen.endpoints] == ["pod-2", "pod-0"]
    assert chosen.slots == tuple(Pool(3).endpoints.slots[[2, 0]].tolist())


def test_hooks_run_once_for_the_first_and_only_where_wanted() -> None:
    hooked = Hooked([0.0, 1.0])
    both = pipeline(filters=[Says([True, True])], scorers=[(hooked, 1), (hooked, 2)], plugins={"again": hooked})
    both.pick(REQUEST, Pool(2).candidates())
    assert hooked.told == ["pod-1"]
    added = both.responded(REQUEST, an_endpoint(1), {":status": "200"}, NOW_S)
    assert added == {"x-served": "pod-1", "x-saw": "200"}


def test_hooks_of_plugins_outside_any_profile_run() -> None:
    watcher = Watcher()
    chain = pipeline(plugins={"watcher": watcher})
    chain.pick(REQUEST, Pool(1).candidates())
    assert watcher.told == ["pod-0"]
    assert chain.responded(REQUEST, an_endpoint(0), {":status": "200"}, NOW_S) == {}


def test_a_broken_hook_is_noted() -> None:
    noted, after = faults(), Hooked([0.0])
    chain = pipeline(scorers=[(Broken([0.0]), 1), (after, 1)], noted=noted)
    assert chain.pick(REQUEST, Pool(1).candidates()).endpoints[0].name == "pod-0"
    assert chain.responded(REQUEST, an_endpoint(0), {":status": "200"}, NOW_S)["x-served"] == "pod-0"
    assert after.told == ["pod-0"]
    assert noted.counts == {("scorer-0", "raised"): 2}


def profiles(handler: Any, noted: PluginFaults | None = None) -> Pipeline:
    both = [Profile(name, picker=(f"pick-{name}", Says([index]))) for index, name in enumerate(("a", "b"))]
    return Pipeline(both, handler=("handler", handler), faults=noted or faults())


def test_a_handler_chooses_the_profile() -> None:
    chosen = profiles(Says("b")).pick(REQUEST, Pool(2).candidates())
    assert (chosen.profile, chosen.endpoints[0].name) == ("b", "pod-1")


def test_a_profile_that_is_not_there_is_the_clients_mistake() -> None:
    with pytest.raises(Drop, match="'c'; there are: a, b") as refusal:
        profiles(Says("c")).pick(REQUEST, Pool(2).candidates())
    assert refusal.value.reason is Reason.BAD_REQUEST


def test_a_broken_handler_means_the_first_profile() -> None:
    noted = faults()
    assert profiles(Says(RuntimeError()), noted).pick(REQUEST, Pool(2).candidates()).profile == "a"
    assert noted.counts == {("handler", "raised"): 1}


def test_saturation() -> None:
    noted, candidates = faults(), Pool(1).candidates()
    assert pipeline().saturation(candidates) == 0
    assert pipeline(detector=("d", Says(1.5))).saturation(candidates) == 1.5
    assert pipeline(detector=("d", Says(RuntimeError())), noted=noted).saturation(candidates) == 0
    assert noted.counts == {("d", "raised"): 1}


def test_an_explanation_tells_everybodys_part() -> None:
    pool = Pool(4)
    filters = [Says([True, False, True, True]), Says([True, True, True]), Says([True, True, False])]
    scorers = [(Says([0.25, 2.0]), 2), (Says(RuntimeError()), 1)]
    chosen = pick(pool, filters=filters, scorers=scorers)
    pool.endpoints.replace([])
    told = chosen.explain()
    assert told.profile == "default"
    assert told.picked == ("default/pod-2",)
    assert [(one.endpoint, one.destination, one.total) for one in told.considered] == [
        ("default/pod-2", "10.0.0.3:8000", 2.0),
        ("default/pod-0", "10.0.0.1:8000", 0.5),
    ]
    first, failed = told.considered[0].shares
    assert (first.scorer, first.score, first.weight, first.share) == ("scorer-0", 2.0, 2.0, 2.0)
    assert np.isnan(failed.score) and failed.share == 0
    assert [(one.endpoint, one.filter) for one in told.left_out] == [
        ("default/pod-1", "filter-0"),
        ("default/pod-3", "filter-2"),
    ]
    assert chosen.scores_by_destination() == {"10.0.0.1:8000": 0.5, "10.0.0.3:8000": 2.0}


def test_a_pool_without_scorers_can_be_explained() -> None:
    told = pick(Pool(2)).explain()
    assert [one.shares for one in told.considered] == [(), ()]
    assert told.left_out == ()


def test_a_profile_shows_what_it_does() -> None:
    chain = pipeline(filters=[Says([])], scorers=[(Says([]), 2.5)])
    assert repr(chain.profiles[0]) == "<Profile default: filter-0 | 2.5·scorer-0 | picker>"


class TestFaults:
    def noting(self) -> tuple[PluginFaults, list[str], list[tuple[str, str]]]:
        lines: list[str] = []
        counted: list[tuple[str, str]] = []
        count: Callable[[str, str], None] = lambda name, kind: counted.append((name, kind))  # noqa: E731
        return PluginFaults(lines.append, count), lines, counted

    def test_a_plugin_is_logged_once_a_minute(self) -> None:
        noted, lines, counted = self.noting()
        for now_s in (0.0, 1.0, LOG_INTERVAL_S - 1, LOG_INTERVAL_S, LOG_INTERVAL_S + 1):
            noted.plugin_failed("mine", WrongResult("returned nonsense"), now_s)
        noted.plugin_failed("other", WrongResult("too"), LOG_INTERVAL_S + 2)
        assert lines == [
            "plugin 'mine' was left out of a pick: returned nonsense",
            "plugin 'mine' was left out of a pick: returned nonsense; 2 more since the last such line",
            "plugin 'other' was left out of a pick: too",
        ]
        assert counted == [("mine", "wrong-result")] * 5 + [("other", "wrong-result")]

    def test_the_line_names_the_place(self) -> None:
        noted, lines, _ = self.noting()
        pick(Pool(2), scorers=[(Says(KeyError("x")), 1)], noted=noted)
        assert lines[0].startswith("plugin 'scorer-0' was left out of a pick: KeyError: 'x' at ")
        assert "test_pipeline.py:" in lines[0]
