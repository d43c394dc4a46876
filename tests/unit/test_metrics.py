"""What is counted, and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.drops import OUTCOMES, Reason
from epp.endpoint import Endpoint
from epp.observe import metrics as record
from epp.observe.metrics import MAX_NAME_LENGTH, MAX_NAMES, MAX_PICKS, MAX_SERIES, OTHER, Key, Metrics, Row

KEY: Key = ("llama", "llama-8b", 0, "team-a")
ENDPOINT = Endpoint(name="pod-0", namespace="models", address="10.0.0.1", port=8000)


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


def finish(metrics: Metrics, key: Key = KEY, **changes: Any) -> None:
    values: dict[str, Any] = {
        "status": 200,
        "aborted": False,
        "duration_s": 2.0,
        "response_bytes": None,
        "usage": None,
        "ttft_s": None,
    }
    metrics.finished(*key, **(values | changes))


def count(row: Row) -> float:
    return sum(row[:-1])


def test_a_request_runs_from_its_pick_to_its_end() -> None:
    metrics = Metrics()
    metrics.decided(*KEY, body_bytes=2400, prompt_tokens_estimate=600)
    series = metrics.series[KEY]
    assert (series.requests, series.running, series.estimated_tokens) == (1, 1, 600)
    finish(metrics)
    assert (series.requests, series.running, series.aborted) == (1, 0, 0)
    assert series.errors == {}
    assert count(series.duration) == 1
    assert metrics.statuses[200] == 1


def test_a_refusal_is_a_request_and_an_error_by_its_code() -> None:
    metrics = Metrics()
    for reason in Reason:
        metrics.refused(*KEY, OUTCOMES[reason])
    series = metrics.series[KEY]
    assert series.requests == len(Reason)
    assert series.running == 0
    assert series.errors == Counter(outcome.error_code for outcome in OUTCOMES.values())
    assert metrics.refusals == Counter(Reason)


@pytest.mark.parametrize(("status", "errors"), [(200, 0), (204, 0), (302, 0), (400, 1), (429, 1), (503, 1), (0, 0)])
def test_a_model_servers_status_from_400_is_its_error(status: int, errors: int) -> None:
    metrics = Metrics()
    finish(metrics, status=status)
    assert metrics.series[KEY].errors["ModelServerError"] == errors
    assert metrics.statuses[status] == 1


@pytest.mark.parametrize("status", [-5, 7, 600, 10**9])
def test_a_status_that_is_none_counts_as_none(status: int) -> None:
    metrics = Metrics()
    finish(metrics, status=status)
    assert metrics.statuses[0] == 1


def test_an_abort_is_counted_and_its_duration_kept() -> None:
    metrics = Metrics()
    metrics.decided(*KEY, body_bytes=2400, prompt_tokens_estimate=600)
    finish(metrics, status=0, aborted=True, duration_s=61.0)
    series = metrics.series[KEY]
    assert (series.aborted, series.running) == (1, 0)
    assert series.duration[-1] == 61.0


def test_what_the_mode_hides_is_not_counted() -> None:
    metrics = Metrics()
    finish(metrics)
    series = metrics.series[KEY]
    for row in (series.response_bytes, series.input_tokens, series.output_tokens, series.cached_tokens):
        assert count(row) == 0
    assert count(series.ntpot) == count(series.tpot) == 0


def test_tokens_and_times_per_token() -> None:
    metrics = Metrics()
    finish(metrics, duration_s=2.0, ttft_s=0.5, response_bytes=9000, usage=Usage(900, 11, 512))
    series = metrics.series[KEY]
    assert series.input_tokens[-1] == 900
    assert series.output_tokens[-1] == 11
    assert series.cached_tokens[-1] == 512
    assert series.response_bytes[-1] == 9000
    assert series.ntpot[-1] == pytest.approx(2.0 / 11)
    assert series.tpot[-1] == pytest.approx(1.5 / 10)


@pytest.mark.parametrize(
    ("usage", "ttft_s", "ntpot", "tpot"),
    [
        (Usage(5, 0, 0), 0.1, 0, 0),
        (Usage(5, 1, 0), 0.1, 1, 0),
        (Usage(5, 2, 0), None, 1, 0),
        (Usage(5, 2, 0), 0.1, 1, 1),
        (Usage(5, None, None), 0.1, 0, 0),
    ],
)
def test_times_per_token_need_tokens_and_a_stream(usage: Usage, ttft_s: float | None, ntpot: int, tpot: int) -> None:
    metrics = Metrics()
    finish(metrics, usage=usage, ttft_s=ttft_s)
    series = metrics.series[KEY]
    assert (count(series.ntpot), count(series.tpot)) == (ntpot, tpot)


def test_first_tokens_of_streams_and_whole_answers_are_kept_apart() -> None:
    metrics = Metrics()
    metrics.first_token(*KEY, ttft_s=0.2, streaming=True)
    metrics.first_token(*KEY, ttft_s=3.0, streaming=False)
    series = metrics.series[KEY]
    assert (series.ttft_streamed[-1], series.ttft_whole[-1]) == (0.2, 3.0)


def test_picks_by_endpoint() -> None:
    metrics = Metrics()
    metrics.picked(ENDPOINT, "llama-8b")
    metrics.picked(ENDPOINT, "llama-8b")
    assert metrics.picks == {("llama-8b", "pod-0", "models", 8000): [2]}


def test_stages_matches_and_faults() -> None:
    metrics = Metrics()
    for stage in record.STAGES:
        metrics.stage(stage, 0.00003)
    metrics.prefix_match(0.5, 1024)
    metrics.plugin_failed("my-scorer", "raised")
    metrics.scrape_failed("timeout")
    metrics.degraded("no-scorer")
    assert all(count(row) == 1 for row in metrics.stages.values())
    assert metrics.prefix_hit_ratio[-1] == 0.5
    assert metrics.prefix_hit_bytes[-1] == 1024
    assert metrics.plugin_failures == {("my-scorer", "raised"): 1}
    assert metrics.scrape_failures == {"timeout": 1}
    assert metrics.degradations == {"no-scorer": 1}


@pytest.mark.parametrize(("value", "bucket"), [(0.0, 0), (0.005, 0), (0.0051, 1), (3600.0, 34), (3601.0, 35)])
def test_a_bound_belongs_to_its_bucket(value: float, bucket: int) -> None:
    metrics = Metrics()
    finish(metrics, duration_s=value)
    assert metrics.series[KEY].duration[bucket] == 1


@pytest.mark.parametrize("name", [name for name in vars(record) if name.endswith("_BOUNDS")])
def test_bounds_ascend(name: str) -> None:
    bounds = vars(record)[name]
    assert bounds == sorted(set(bounds))


def invented(position: int) -> Callable[[int], Key]:
    def key(number: int) -> Key:
        values = list(KEY)
        values[position] = f"invented-{number}"
        return values[0], values[1], 0, values[3]  # type: ignore[return-value]

    return key


@pytest.mark.parametrize("position", [0, 1, 3])
def test_invented_names_end_in_one_series(position: int) -> None:
    metrics = Metrics()
    key = invented(position)
    for number in range(MAX_NAMES + 50):
        metrics.decided(*key(number), body_bytes=1, prompt_tokens_estimate=1)
    assert len(metrics.series) == MAX_NAMES + 1
    other = next(s for k, s in metrics.series.items() if k[position] == OTHER)
    assert other.requests == other.running == 50


def test_combinations_are_bounded_as_well() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 100):
        metrics.refused(f"m{number % 900}", f"t{number % 901}", 0, "default", OUTCOMES[Reason.BAD_REQUEST])
    assert len(metrics.series) == MAX_SERIES + 1
    assert metrics.series[OTHER, OTHER, 0, OTHER].requests == 100


def test_rewrites_by_object_and_names_that_clients_invent() -> None:
    metrics = Metrics()
    for number in range(MAX_NAMES + 50):
        metrics.rewritten("fallback", f"invented-{number}", "base")
    metrics.rewritten("canary", "invented-0", "base")
    assert metrics.rewrites["fallback", "invented-0", "base"] == 1
    assert metrics.rewrites["fallback", OTHER, "base"] == 50
    assert metrics.rewrites["canary", "invented-0", "base"] == 1
    assert metrics.rewrites.total() == MAX_NAMES + 51


def test_combinations_of_rewrites_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 100):
        metrics.rewritten("canary", f"m{number % 900}", f"t{number // 900}")
    assert len(metrics.rewrites) == MAX_SERIES + 1
    assert metrics.rewrites["canary", OTHER, OTHER] == 100


def test_invented_target_models_end_in_one_count_of_picks() -> None:
    metrics = Metrics()
    for number in range(MAX_NAMES + 50):
        metrics.picked(ENDPOINT, f"invented-{number}")
    assert metrics.picks[OTHER, "pod-0", "models", 8000] == [50]


def test_combinations_of_models_and_endpoints_are_bounded() -> None:
    metrics = Metrics()
    pool = [Endpoint(name=f"pod-{number}", namespace="models", address="10.0.0.1", port=8000) for number in range(100)]
    for number in range(MAX_PICKS + 700):
        metrics.picked(pool[number % 100], f"m{number // 100}")
    assert len(metrics.picks) == MAX_PICKS + 100
    assert metrics.picks[OTHER, "pod-7", "models", 8000] == [7]
    assert metrics.picks["m0", "pod-7", "models", 8000] == [1]


def test_picks_of_an_endpoint_that_left_are_forgotten() -> None:
    metrics = Metrics()
    other = Endpoint(name="pod-0", namespace="models", address="10.0.0.1", port=8001)
    for endpoint in (ENDPOINT, other):
        metrics.picked(endpoint, "llama-8b")
        metrics.picked(endpoint, "qwen")
    metrics.forget([ENDPOINT])
    assert metrics.picks == {("llama-8b", "pod-0", "models", 8001): [1], ("qwen", "pod-0", "models", 8001): [1]}


@pytest.mark.parametrize("name", ["x" * (MAX_NAME_LENGTH + 1), "line\nbreak", "lone \ud800 surrogate", "nul\0"])
def test_a_name_that_cannot_be_a_label_is_other(name: str) -> None:
    metrics = Metrics()
    metrics.decided(name, name, 0, name, 1, 1)
    assert set(metrics.series) == {(OTHER, OTHER, 0, OTHER)}


NAMES = st.sampled_from(["a", "b", "c", "d"])


@settings(max_examples=50)
@given(st.lists(st.tuples(NAMES, NAMES, NAMES), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_nothing_runs_after_every_end_whatever_the_bounds(keys: list[tuple[str, str, str]], rng: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "MAX_NAMES", 2)
        patch.setattr(record, "MAX_SERIES", 4)
        metrics = Metrics()
        for model, target, fairness_id in keys:
            metrics.decided(model, target, 0, fairness_id, 1, 1)
        ends = keys.copy()
        rng.shuffle(ends)
        for model, target, fairness_id in ends:
            finish(metrics, (model, target, 0, fairness_id))
        assert all(series.running == 0 for series in metrics.series.values())
        assert sum(series.requests for series in metrics.series.values()) == len(keys)
        assert len(metrics.series) <= 5
