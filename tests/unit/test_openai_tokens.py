"""Token estimates follow what servers report, within bounds, for as many models as wanted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.openai.tokens import MAX_BYTES_PER_TOKEN, MIN_BYTES_PER_TOKEN, TokenEstimator


def test_four_bytes_a_token_at_first() -> None:
    estimator = TokenEstimator()
    assert estimator.tokens("m", 0) == 0
    assert estimator.tokens("m", 1) == 1
    assert estimator.tokens("m", 400) == 100
    assert estimator.tokens("m", 401) == 101


def test_reports_correct_the_ratio_of_their_model_only() -> None:
    estimator = TokenEstimator()
    for _ in range(500):
        estimator.learn("m", 3_000, 1_000)
    assert estimator.bytes_per_token("m") == pytest.approx(3.0, rel=0.01)
    assert estimator.tokens("m", 30_000) == pytest.approx(10_000, rel=0.01)
    assert estimator.bytes_per_token("other") == 4.0


def test_long_prompts_weigh_more_than_short_ones() -> None:
    estimator = TokenEstimator()
    for _ in range(500):
        estimator.learn("m", 30, 20)
        estimator.learn("m", 50_000, 10_000)
    assert estimator.bytes_per_token("m") == pytest.approx(5.0, rel=0.01)


def test_what_was_long_ago_is_forgotten() -> None:
    estimator = TokenEstimator(memory=10)
    for _ in range(100):
        estimator.learn("m", 2_000, 1_000)
    for _ in range(60):
        estimator.learn("m", 6_000, 1_000)
    assert estimator.bytes_per_token("m") == pytest.approx(6.0, rel=0.01)


def test_one_short_report_does_not_say_much() -> None:
    estimator = TokenEstimator()
    estimator.learn("m", 30, 20)
    assert estimator.bytes_per_token("m") == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(("prompt_bytes", "prompt_tokens"), [(0, 5), (5, 0), (-1, 5), (5, -1)])
def test_a_report_without_a_prompt_teaches_nothing(prompt_bytes: int, prompt_tokens: int) -> None:
    estimator = TokenEstimator()
    estimator.learn("m", prompt_bytes, prompt_tokens)
    assert len(estimator) == 0


def test_the_models_that_reported_last_are_remembered() -> None:
    estimator = TokenEstimator(max_models=2)
    for model in ("a", "b", "a", "c"):
        estimator.learn(model, 10_000, 10_000)
    assert len(estimator) == 2
    assert [estimator.bytes_per_token(model) == 4.0 for model in "abc"] == [False, True, False]


@given(st.lists(st.tuples(st.integers(-1, 10**18), st.integers(-1, 10**18)), max_size=30))
def test_the_ratio_stays_within_bounds(reports: list[tuple[int, int]]) -> None:
    estimator = TokenEstimator()
    for prompt_bytes, prompt_tokens in reports:
        estimator.learn("m", prompt_bytes, prompt_tokens)
        ratio = estimator.bytes_per_token("m")
        assert MIN_BYTES_PER_TOKEN * 0.999 <= ratio <= MAX_BYTES_PER_TOKEN * 1.001
        assert estimator.tokens("m", 1_600) in range(99, 3_202)
