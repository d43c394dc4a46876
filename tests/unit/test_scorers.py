"""Each plugin's own rule, by hand-made pools."""

from __future__ import annotations

import base64
import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from epp.endpoint import Adapters, Report
from epp.scoring import Filter, Scorer
from scorers import sessions
from scorers.active_request_scorer import ActiveRequestScorer
from scorers.by_label import ByLabel
from scorers.concurrency_detector import ConcurrencyDetector
from scorers.context_length_aware import ContextLengthAware
from scorers.decode_filter import DecodeFilter
from scorers.encode_filter import EncodeFilter
from scorers.endpoint_attribute_filter import EndpointAttributeFilter, Threshold, ThresholdTest
from scorers.endpoint_attribute_scorer import (
    AdaptiveRange,
    EndpointAttributeScorer,
    FixedRange,
    LinearScore,
    Normalization,
)
from scorers.header_based_testing_filter import HeaderBasedTestingFilter
from scorers.header_label_affinity_scorer import HeaderLabelAffinityScorer
from scorers.header_profile_handler import HeaderProfileHandler
from scorers.kv_cache_utilization_scorer import KvCacheUtilizationScorer
from scorers.label_selector_filter import LabelSelectorFilter, Requirement
from scorers.least_delay_scorer import LeastDelayScorer
from scorers.load_aware_scorer import LoadAwareScorer
from scorers.lora_affinity_scorer import LoraAffinityScorer
from scorers.max_score_picker import MaxScorePicker
from scorers.no_hit_lru_scorer import NoHitLruScorer
from scorers.prefill_filter import PrefillFilter
from scorers.prefix_cache_affinity_filter import PrefixCacheAffinityFilter
from scorers.prefix_cache_scorer import PrefixCacheScorer
from scorers.queue_scorer import QueueScorer
from scorers.random_picker import RandomPicker
from scorers.round_robin_picker import RoundRobinPicker
from scorers.running_requests_size_scorer import RunningRequestsSizeScorer
from scorers.session_affinity_filter import SessionAffinityFilter
from scorers.session_affinity_scorer import SessionAffinityScorer
from scorers.sessions import SessionIds, Source, TokenHeader
from scorers.token_load_scorer import TokenLoadScorer
from scorers.utilization_detector import UtilizationDetector
from scorers.utilization_filter import Limit, UtilizationFilter
from scorers.weighted_random_picker import WeightedRandomPicker
from tests.pools import NOW_S, Pool, a_request, an_endpoint

REQUEST = a_request()


def scores(scorer: Scorer, pool: Pool, request: Any = REQUEST) -> list[float]:
    return [round(score, 6) for score in scorer.score(request, pool.candidates()).tolist()]


def kept(plugin: Filter, pool: Pool, request: Any = REQUEST) -> list[int]:
    result: list[int] = np.flatnonzero(plugin.filter(request, pool.candidates())).tolist()
    return result


def test_queue_is_scaled_between_longest_and_shortest() -> None:
    assert scores(QueueScorer(), Pool(3).reported(waiting=[0, 5, 10])) == [1, 0.5, 0]
    assert scores(QueueScorer(), Pool(2).reported(waiting=[7, 7])) == [1, 1]


def test_queue_counts_what_was_sent_since_the_report() -> None:
    pool = Pool(2).reported(waiting=[2, 2])
    pool.endpoints.picked_since_report[pool.endpoints.slots[0]] = 3
    assert scores(QueueScorer(), pool) == [0, 1]


def test_queue_falls_back_to_the_ledger_where_nothing_is_reported() -> None:
    assert scores(QueueScorer(), Pool(3).known(in_flight=[4, 0, 2])) == [0, 1, 0.5]


def test_one_stale_report_is_replaced_alone() -> None:
    pool = Pool(3).reported(waiting=[4, 4, 4], running=[4, 4, 4]).known(in_flight=[9, 9, 0])
    pool.report(0, Report(waiting=8, running=8), NOW_S + 3)
    pool.report(1, Report(waiting=2, running=2), NOW_S + 3)
    candidates = pool.candidates(now_s=NOW_S + 3)
    assert candidates.waiting.tolist() == candidates.running.tolist() == [8, 2, 0]


def test_running_requests() -> None:
    assert scores(RunningRequestsSizeScorer(), Pool(3).reported(running=[30, 10, 20])) == [0, 1, 0.5]


def test_kv_memory() -> None:
    assert scores(KvCacheUtilizationScorer(), Pool(2).reported(kv=[0.25, 1.0])) == [0.75, 0]


def test_prefix_is_the_share_of_blocks_found() -> None:
    pool = Pool(3).known(hits=[0, 5, 10])
    assert scores(PrefixCacheScorer(), pool) == [0, 0.5, 1]
    assert scores(PrefixCacheScorer(), pool, a_request(blocks=0)) == [0, 0, 0]


def test_prefix_weighs_the_length_of_the_hit() -> None:
    # 5 blocks are 320 tokens: (320/640)² · 0.5 + 0.5 · 5/10; 10 blocks reach the scale.
    scorer = PrefixCacheScorer(match_length_weight=0.5, match_length_scale_tokens=640)
    assert scores(scorer, Pool(2).known(hits=[5, 10])) == [0.375, 1]
    assert scores(scorer, Pool(1).known(hits=[20]), a_request(blocks=20)) == [1]


@pytest.mark.parametrize(
    ("running", "waiting", "max_lora", "score"),
    [({"llama"}, {"x"}, 2, 1.0), ({"x"}, {"llama"}, 3, 0.8), ({"x"}, {"llama"}, 2, 0.6), ({"x", "y"}, set(), 2, 0.0)],
)
def test_lora(running: set[str], waiting: set[str], max_lora: int, score: float) -> None:
    pool = Pool(2)
    pool.report(0, Report(adapters=Adapters(frozenset(running), frozenset(waiting), max_lora)))
    pool.report(1, Report(adapters=Adapters(frozenset(), frozenset(), 0)))
    assert scores(LoraAffinityScorer(), pool) == [score, 0]


def test_lora_that_nobody_reports_goes_where_there_is_room() -> None:
    pool = Pool(2)
    pool.report(0, Report(adapters=Adapters(frozenset({"x"}), frozenset(), 2)))
    pool.report(1, Report(adapters=Adapters(frozenset({"x", "y"}), frozenset(), 2)))
    assert scores(LoraAffinityScorer(), pool) == [0.8, 0]


def test_a_server_that_never_spoke_of_adapters_is_no_worse_than_one_with_room() -> None:
    pool = Pool(2)
    pool.report(0, Report(adapters=Adapters(frozenset(), frozenset(), 2)))
    pool.report(1, Report(waiting=0.0))
    assert scores(LoraAffinityScorer(), pool) == [0.8, 0.8]


def test_lora_follows_what_is_unloaded() -> None:
    pool = Pool(1)
    for running, score in (({"llama"}, 1.0), ({"x", "y"}, 0.0), ({"llama", "y"}, 1.0), (set(), 0.8)):
        pool.report(0, Report(adapters=Adapters(frozenset(running), frozenset(), 2)))
        assert scores(LoraAffinityScorer(), pool) == [score]


def test_token_load_counts_this_requests_uncached_tokens() -> None:
    pool = Pool(3).known(tokens=[0, 360, 5000], hits=[0, 10, 0])
    assert scores(TokenLoadScorer(queue_threshold_tokens=1000), pool) == [0.36, 0.64, 0]


def costs(pool: Pool, request: Any = REQUEST) -> list[float]:
    """What `LeastDelayScorer` reckons, in units of the least."""
    return [round(1.0 / score, 6) for score in LeastDelayScorer().score(request, pool.candidates()).tolist()]


def test_least_delay_on_idle_endpoints_is_what_is_uncached() -> None:
    # 640 tokens in 10 blocks: 640 + 1, 320 + 1, 0 + 1.
    assert costs(Pool(3).known(hits=[0, 5, 10])) == [641, 321, 1]


def test_least_delay_is_wait_and_own_tokens_and_those_held_up() -> None:
    pool = Pool(2).reported(kv=[0.5, 0.0]).known(in_flight=[8, 3], prompts=[2, 1], tokens=[1000, 800], hits=[5, 0])
    # 1000 + 321·(1 + 2) + 8·(1 + 0.5¹⁶·(321 + 1000/2)) and 800 + 641·(1 + 1) + 3·1.
    assert costs(pool) == [1, round(2085 / (1971 + 8 * 821 / 65_536), 6)]


def test_least_delay_counts_avoidable_tokens_by_the_memory_in_use() -> None:
    pool = Pool(2).reported(kv=[0.5, 0.5]).known(in_flight=[8, 8], hits=[10, 0])
    # 1 + 8·(1 + 0.5¹⁶·1) and 641 + 8·(1 + 0.5²·640 + 0.5¹⁶·641).
    assert costs(pool) == [1, round((649 + 8 * (160 + 641 / 65_536)) / (9 + 8 / 65_536), 6)]


def test_least_delay_spreads_a_hot_prefix_while_memory_allows() -> None:
    """Twelve answers more where the prefix is: a copy elsewhere is cheaper at 0.15 of the memory, and far too dear at 0.8."""
    for kv, copied in ((0.15, True), (0.8, False)):
        pool = Pool(2).reported(kv=[kv, kv]).known(in_flight=[32, 20], prompts=[4, 0], tokens=[1200, 0], hits=[10, 0])
        # 1200 + 1·5 + 32 and 641 + 20·(1 + 0.15²·640), or 20·(1 + 0.8²·640).
        assert (costs(pool)[1] == 1) is copied


def test_least_delay_waits_for_a_prompt_that_is_well_on_its_way() -> None:
    """What comes with the same beginning at once is computed twice side by side, and a little later behind the first."""
    pool = Pool(2).known(in_flight=[1, 0], prompts=[1, 0], tokens=[640, 0], hits=[9, 0])
    pool.endpoints.line_rate[:] = 4000.0
    # 640 + 65·2 + 1 and 641, then 100 ms later 400 less.
    assert costs(pool) == [round(771 / 641, 6), 1]
    pool.endpoints.line_s[:] = NOW_S - 0.1
    assert costs(pool) == [1, round(641 / 371, 6)]


def test_least_delay_leaves_a_line_that_waits_for_memory() -> None:
    """All memory in use, and the prompts in line are as long as this one: the line is 20 answers' wait longer than its tokens say."""
    pool = Pool(2).reported(kv=[1.0, 0.5])
    pool.known(in_flight=[40, 40], prompts=[20, 0], tokens=[20 * 600, 0], hits=[10, 0])
    # 12,000 + 1·21 + 40·(1 + 1·(1 + 600)) and 641 + 40·(1 + 0.5²·640 + 0.5¹⁶·641).
    assert costs(pool) == [round(36_101 / (7081 + 40 * 641 / 65_536), 6), 1]


def test_least_delay_copies_what_all_ask_for_before_anybody_waits() -> None:
    """10 times as much is cached on 0, where a prompt of a like size is being prefilled: worth a copy if a copy is often used."""
    pool = Pool(2).known(in_flight=[1, 0], prompts=[1, 0], tokens=[300, 0], hits=[9, 0])
    # 300 + 65·2 + 1, and 641.
    assert costs(pool) == [1, round(641 / 431, 6)]
    # Asked for 96 times by two endpoints: of the 576 avoidable tokens a quarter counts, 65 + 144.
    assert costs(pool.known(demand=96)) == [round(431 / 209, 6), 1]


def test_least_delay_shuns_full_memory_with_a_prompt_that_nobody_has() -> None:
    pool = Pool(2).reported(kv=[1.0, 0.5]).known(in_flight=[4, 4], tokens=[0, 1000])
    assert costs(pool)[0] > costs(pool)[1] == 1


def test_least_delay_stays_with_the_prefix_the_longer_the_lines() -> None:
    """The same difference in backlog is worth a miss where nobody waits, and not where many do."""
    short = Pool(2).known(in_flight=[1, 1], prompts=[1, 0], tokens=[1500, 0], hits=[10, 0])
    long = Pool(2).known(in_flight=[9, 8], prompts=[9, 8], tokens=[9500, 8000], hits=[10, 0])
    assert costs(short)[0] > costs(short)[1]
    assert costs(long)[0] < costs(long)[1]


def test_least_delay_takes_a_new_session_where_it_pushes_nobody_out() -> None:
    """All idle; the root that everybody shares is cached where others' sessions are as well."""
    pool = Pool(3).known(hits=[1, 1, 0], churn=[1.0, 0.25, 0.0])
    # 577 tokens that nobody has by 1 + 1 and by 1 + 0.25, and 641.
    assert costs(pool) == [round(577 * 2 / 641, 6), round(577 * 1.25 / 641, 6), 1]
    assert costs(pool.known(hits=[10, 0, 0])) == [1, round(641 * 1.25 / 2, 6), round(641 / 2, 6)]


def test_least_delay_without_a_prompt_goes_where_the_line_is_shortest() -> None:
    pool = Pool(3).known(in_flight=[3, 5, 1], prompts=[2, 0, 1], tokens=[200, 0, 100])
    # 200 + 3 + 3, 0 + 5 + 1 and 100 + 1 + 2.
    assert costs(pool, a_request(blocks=0)) == [round(206 / 6, 6), 1, round(103 / 6, 6)]


def test_least_delay_counts_a_prompt_of_less_than_a_block() -> None:
    pool = Pool(2).known(prompts=[1, 0], tokens=[9, 30])
    # 9 + 31·2 and 30 + 31.
    assert costs(pool, a_request(blocks=0, prompt_tokens=30)) == [round(71 / 61, 6), 1]


def test_least_delay_counts_what_an_adapter_costs() -> None:
    pool = Pool(4)
    for index, (running, waiting, slots) in enumerate(
        (("llama", "", 1), ("", "llama", 2), ("", "", 1), ("other", "", 1))
    ):
        loaded, wanted = frozenset(running.split()), frozenset(waiting.split())
        pool.report(index, Report(adapters=Adapters(loaded, wanted, slots)))
    # Loaded, being loaded, to be loaded, and no slot for it, behind the 640 tokens of the prompt.
    dear = [1, *(round((641 + more) / 641, 6) for more in (4096, 8192, 8192 + 32_768))]
    assert costs(pool, a_request(blocks=0, prompt_tokens=640)) == dear
    assert costs(pool, a_request(blocks=0, prompt_tokens=640, model="nobodys")) == [1, 1, 1, 1]


def test_least_delay_counts_an_adapter_for_those_in_line_and_by_the_memory_in_use_for_those_in_flight() -> None:
    pool = Pool(2).reported(kv=[0.5, 0.5]).known(in_flight=[4, 4], prompts=[1, 1], tokens=[100, 100], hits=[10, 10])
    for index, loaded in enumerate(("llama", "")):
        pool.report(index, Report(adapters=Adapters(frozenset(loaded.split()), frozenset(), 2)))
    # 100 + 1·2 + 4·(1 + 0.5¹⁶·(1 + 100)), and 8,192·(2 + 4·0.5) more.
    least = 106 + 4 * 101 / 65_536
    assert costs(pool) == [1, round((least + 8192 * 4) / least, 6)]


def test_least_delay_takes_equals_as_equals() -> None:
    pool = Pool(8).known(in_flight=[7] * 8, prompts=[3] * 8, tokens=[12345] * 8, hits=[3] * 8)
    assert LeastDelayScorer().score(REQUEST, pool.candidates()).tolist() == [1.0] * 8


def test_least_delay_agrees_with_other_pickers_on_where_a_prefix_begins() -> None:
    """Where nobody has more of the prompt than another, the one that hashing names counts as if it had a tenth of the rest."""
    pool = Pool(8).known(tokens=[50] * 8, shared=True)
    first, fifth = (pool.candidates().home(fingerprint) for fingerprint in (1, 5))
    assert first != fifth
    assert costs(pool) == [1 if one == first else round(691 / 627, 6) for one in range(8)]
    # The first four blocks are everywhere, a system prompt say, and asked for all the time: it is the next one that counts.
    pool.known(tokens=[50] * 8, hits=[4] * 8, demand=10_000, shared=True)
    assert costs(pool) == [1 if one == fifth else round(435 / 396.6, 6) for one in range(8)]
    # It is not worth a wait of more than that tenth, nor is it where one has the prompt, and it is nothing where all have all of it.
    waiting = [115 if one == first else 50 for one in range(8)]
    assert costs(pool.known(tokens=waiting, hits=[0] * 8, shared=True))[first] > 1
    other = (first + 1) % 8
    assert costs(pool.known(tokens=[50] * 8, hits=[2 * (one == other) for one in range(8)], shared=True))[other] == 1
    assert costs(pool.known(tokens=[50] * 8, hits=[10] * 8, shared=True)) == [1] * 8
    assert costs(pool.known(tokens=[50] * 8, shared=True), a_request(blocks=0)) == [1] * 8


def test_least_delay_knows_a_whole_prompt_by_its_blocks() -> None:
    """447 / 11 · 11 is less than 447: by the tokens something would be left, and its next block is none."""
    pool = Pool(2).known(hits=[11, 11], tokens=[9, 0], shared=True)
    assert costs(pool, a_request(blocks=11, prompt_tokens=447)) == [10, 1]


def test_active_requests() -> None:
    pool = Pool(3).known(in_flight=[0, 2, 8])
    assert scores(ActiveRequestScorer(), pool) == [1, 0.75, 0]
    assert scores(ActiveRequestScorer(idle_threshold=2, max_busy_score=0.5), pool) == [1, 1, 0]
    assert scores(ActiveRequestScorer(max_busy_score=0.5), pool) == [1, 0.375, 0]
    assert scores(ActiveRequestScorer(), Pool(2)) == [1, 1]


def test_load_aware() -> None:
    pool = Pool(4).reported(waiting=[0, 32, 64, 500])
    assert scores(LoadAwareScorer(threshold=128), pool) == [0.5, 0.375, 0.25, 0]


def test_no_hit_lru_prefers_what_took_a_cold_prompt_longest_ago() -> None:
    scorer, pool = NoHitLruScorer(), Pool(4)
    for index in (2, 0):
        scores(scorer, pool)
        scorer.picked(REQUEST, pool.candidates()[index])
    assert scores(scorer, pool) == [0, 1, 0.333333, 1]
    scorer.picked(REQUEST, pool.candidates()[2])
    assert scores(scorer, pool) == [0.333333, 1, 0, 1]


def test_no_hit_lru_stands_aside_for_a_hit() -> None:
    scorer, pool = NoHitLruScorer(), Pool(2).known(hits=[1, 0])
    assert scores(scorer, pool) == [0.5, 0.5]
    scorer.picked(REQUEST, pool.candidates()[0])
    pool.known(hits=[0, 0])
    assert scores(scorer, pool) == [1, 1]


def test_no_hit_lru_forgets_beyond_its_size() -> None:
    scorer, pool = NoHitLruScorer(lru_size=1), Pool(3)
    for index in (0, 1):
        scores(scorer, pool)
        scorer.picked(REQUEST, pool.candidates()[index])
    assert scores(scorer, pool) == [1, 0, 1]


def test_context_length() -> None:
    label = "llm-d.ai/context-length-range"
    texts = ("0-1000", "0-100000", "5000-9000", "many", "9-1", "-5")
    pool = Pool(labels=[*({label: text} for text in texts), {}])
    request = a_request(blocks=1, prompt_tokens=500)
    inside = [0.3 + 0.49 / 1.1 + 0.21 * 0.5, 0.3 + 0.49 / 11 + 0.21 * 0.995]
    expected = [round(score, 6) for score in (*inside, 0.3 / 5.5, 0, 0, 0, 0.5)]
    assert scores(ContextLengthAware(), pool, request) == expected
    assert kept(ContextLengthAware(), pool, request) == list(range(7))
    assert kept(ContextLengthAware(enable_filtering=True), pool, request) == [0, 1, 6]


def test_context_length_of_one_value() -> None:
    pool = Pool(labels=[{"range": "64-64"}])
    assert scores(ContextLengthAware(label="range"), pool, a_request(blocks=1)) == [0.79]


def test_header_label_affinity() -> None:
    scorer = HeaderLabelAffinityScorer(header_name="X-Zone", label_key="zone")
    pool = Pool(labels=[{"zone": "a"}, {"zone": "b"}, {}])
    assert scores(scorer, pool, a_request(headers={"x-zone": "b"})) == [0, 1, 0]
    assert scores(scorer, pool, a_request(headers={"x-zone": "c"})) == [0, 0, 0]
    assert scores(scorer, pool) == [0, 0, 0]
    pool.endpoints.replace([an_endpoint(0, {"zone": "c"}), an_endpoint(1)])
    assert scores(scorer, pool, a_request(headers={"x-zone": "c"})) == [1, 0]


def attribute_scorer(direction: Any, **normalization: Any) -> EndpointAttributeScorer:
    algorithm = LinearScore(direction, Normalization(**normalization))
    return EndpointAttributeScorer(attribute_key="x", algorithm=algorithm)


def test_attribute_score() -> None:
    pool = Pool(3).reported(custom={"x": [10, 20, 40]})
    assert scores(attribute_scorer("linear_higher_is_better"), pool) == [0, 0.333333, 1]
    assert scores(attribute_scorer("linear_lower_is_better"), pool) == [1, 0.666667, 0]
    fixed = FixedRange(15, 25)
    assert scores(attribute_scorer("linear_higher_is_better", fixed_range=fixed), pool) == [0, 0.5, 1]
    pool.endpoints.custom["x"][pool.endpoints.slots[0]] = np.nan
    assert scores(attribute_scorer("linear_lower_is_better"), pool) == [0, 1, 0]
    assert scores(attribute_scorer("linear_lower_is_better"), Pool(2)) == [0, 0]
    assert scores(attribute_scorer("linear_lower_is_better"), Pool(2).reported(custom={"x": [3, 3]})) == [1, 1]


def test_attribute_score_refuses_contradictions() -> None:
    with pytest.raises(ValueError, match="less than"):
        attribute_scorer("linear_lower_is_better", fixed_range=FixedRange(1, 1))
    with pytest.raises(ValueError, match="one of"):
        attribute_scorer("linear_lower_is_better", fixed_range=FixedRange(0, 1), adaptive_range=AdaptiveRange())


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("LessThan", [0, 3]),
        ("LessThanOrEqual", [0, 1, 3]),
        ("GreaterThan", [2, 3]),
        ("GreaterThanOrEqual", [1, 2, 3]),
        ("Equal", [1, 3]),
        ("NotEqual", [0, 2, 3]),
    ],
)
def test_attribute_filter(operator: Any, expected: list[int]) -> None:
    pool = Pool(4).reported(custom={"x": [1, 2, 3, np.nan]})
    algorithm = ThresholdTest("threshold", Threshold(operator, 2))
    assert kept(EndpointAttributeFilter(attribute="x", algorithm=algorithm), pool) == expected
    strict = EndpointAttributeFilter(attribute="x", algorithm=algorithm, on_missing="Fail")
    assert kept(strict, pool) == expected[:-1]


def test_attribute_filter_may_fall_back() -> None:
    algorithm = ThresholdTest("threshold", Threshold("GreaterThan", 9))
    pool = Pool(2).reported(custom={"x": [1, 2]})
    assert kept(EndpointAttributeFilter(attribute="x", algorithm=algorithm), pool) == []
    assert kept(EndpointAttributeFilter(attribute="x", algorithm=algorithm, fallback_on_empty=True), pool) == [0, 1]


def test_utilization_filter_wants_all_limits() -> None:
    pool = Pool(4).reported(waiting=[0, 9, 0, 5], running=[10, 10, 11, 10]).known(in_flight=[1, 1, 1, 2])
    limits = (Limit("waiting-queue", 5), Limit("running-requests", 10), Limit("active-requests", 1))
    assert kept(UtilizationFilter(conditions=limits), pool) == [0]
    nobody = (Limit("kv-cache-utilization", 0), Limit("waiting-queue", 0), Limit("running-requests", 0))
    assert kept(UtilizationFilter(conditions=nobody), pool) == []
    assert kept(UtilizationFilter(conditions=nobody, fallback_on_empty=True), pool) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="at least one"):
        UtilizationFilter(conditions=())


def affinity(**parameters: Any) -> PrefixCacheAffinityFilter:
    return PrefixCacheAffinityFilter(rng=random.Random(1), **parameters)


def test_prefix_affinity_keeps_those_that_hold_most() -> None:
    pool = Pool(4).known(hits=[10, 8, 7, 0])
    assert kept(affinity(), pool) == [0, 1]
    assert kept(affinity(affinity_threshold=0.95), pool) == [0]
    assert kept(affinity(), Pool(2)) == [0, 1]
    assert kept(affinity(), pool, a_request(blocks=0)) == [0, 1, 2, 3]


def test_prefix_affinity_gives_way_to_load() -> None:
    pool = Pool(2).known(hits=[10, 0], tokens=[1001, 0])
    assert kept(affinity(peak_prefill_throughput=1000, max_ttft_penalty_ms=1000), pool) == [0, 1]
    assert kept(affinity(peak_prefill_throughput=1000, max_ttft_penalty_ms=1002), pool) == [0]
    assert kept(affinity(peak_prefill_throughput=1000, max_ttft_penalty_ms=0), pool) == [0]
    # The best of either side counts.
    pool = Pool(4).known(hits=[10, 10, 0, 0], tokens=[5000, 900, 0, 5000])
    assert kept(affinity(peak_prefill_throughput=1000, max_ttft_penalty_ms=1000), pool) == [0, 1]


def test_prefix_affinity_explores() -> None:
    plugin, pool = affinity(exploration_probability=0.25), Pool(2).known(hits=[10, 0])
    explored = sum(len(kept(plugin, pool)) == 2 for _ in range(1000))
    assert 200 < explored < 300


def test_prefix_affinity_has_no_predictor() -> None:
    with pytest.raises(ValueError, match="latency prediction"):
        affinity(ttft_source="latencyPredictor")


def test_utilization_detector() -> None:
    pool = Pool(3).reported(waiting=[0, 5, 4], kv=[0.4, 0.1, 0.8])
    detector = UtilizationDetector()
    assert detector.saturation(pool.candidates()) == pytest.approx((0.5 + 1 + 1) / 3)
    assert kept(detector, pool) == [0]
    assert kept(UtilizationDetector(headroom=0.1), pool) == [0, 1, 2]
    assert kept(UtilizationDetector(queue_depth_threshold=0.5, kv_cache_util_threshold=0.05), pool) == [0, 1, 2]
    with pytest.raises(ValueError, match="greater than 0"):
        UtilizationDetector(kv_cache_util_threshold=0)


def test_utilization_detector_wants_evidence() -> None:
    pool = Pool(3).reported(waiting=[50, 50, 50], kv=[0.4, 0.4, 0.4])
    later = pool.candidates(now_s=NOW_S + 3)
    assert UtilizationDetector().saturation(pool.candidates()) == 10
    assert UtilizationDetector().saturation(later) == 0
    # By then the ledger stands in for the queues, and nothing is in flight; KV memory is what was last said.
    assert UtilizationDetector(metrics_staleness_threshold=5).saturation(later) == 0.5
    assert UtilizationDetector().filter(REQUEST, later).all()
    pool.report(1, Report(waiting=0), NOW_S + 3)
    assert UtilizationDetector().filter(REQUEST, pool.candidates(now_s=NOW_S + 3)).tolist() == [False, True, False]


def test_concurrency_detector() -> None:
    pool = Pool(3).known(in_flight=[5, 10, 20], tokens=[100, 50, 0])
    by_requests = ConcurrencyDetector(max_concurrency=10)
    assert kept(by_requests, pool) == [0]
    assert by_requests.saturation(pool.candidates()) == pytest.approx(35 / 30)
    assert kept(ConcurrencyDetector(max_concurrency=10, headroom=0.5), pool) == [0, 1]
    assert kept(ConcurrencyDetector(max_concurrency=1), pool) == []
    by_tokens = ConcurrencyDetector(max_token_concurrency=100, concurrency_mode="tokens")
    assert kept(by_tokens, pool) == [1, 2]
    assert by_tokens.saturation(pool.candidates()) == pytest.approx(0.5)
    hybrid = ConcurrencyDetector(max_concurrency=20, max_token_concurrency=100, concurrency_mode="hybrid")
    assert kept(hybrid, pool) == [1]
    assert hybrid.saturation(pool.candidates()) == pytest.approx((1 + 0.5 + 1) / 3)


@pytest.mark.parametrize(
    ("plugin", "roles"),
    [
        (DecodeFilter(), {"decode", "prefill-decode", "both", "encode-prefill-decode", None}),
        (PrefillFilter(), {"prefill", "encode-prefill", "prefill-decode", "both", "encode-prefill-decode"}),
        (EncodeFilter(), {"encode", "encode-prefill", "encode-prefill-decode"}),
    ],
)
def test_roles(plugin: Filter, roles: set[str | None]) -> None:
    named = ["encode", "prefill", "decode", "encode-prefill", "prefill-decode", "encode-prefill-decode", "both", "x"]
    labels = [*({"llm-d.ai/role": role} for role in named), {}]
    everyone = [*named, None]
    assert {everyone[index] for index in kept(plugin, Pool(labels=labels))} == roles


def test_label_selector() -> None:
    pool = Pool(labels=[{"gpu": "h100", "zone": "a"}, {"gpu": "h100"}, {"gpu": "l4", "zone": "b"}, {}])
    assert kept(LabelSelectorFilter(match_labels={"gpu": "h100"}), pool) == [0, 1]
    assert kept(LabelSelectorFilter(match_labels={"gpu": "h100", "zone": "a"}), pool) == [0]

    def by(operator: Any, *values: str) -> list[int]:
        return kept(LabelSelectorFilter(match_expressions=(Requirement("zone", operator, values),)), pool)

    assert by("In", "a", "c") == [0]
    assert by("NotIn", "a") == [1, 2, 3]
    assert by("Exists") == [0, 2]
    assert by("DoesNotExist") == [1, 3]
    for operator, values in (("In", ()), ("Exists", ("a",))):
        with pytest.raises(ValueError, match="value"):
            by(operator, *values)


def test_labels_are_read_anew_when_the_membership_changes() -> None:
    plugin, pool = LabelSelectorFilter(match_labels={"gpu": "h100"}), Pool(labels=[{"gpu": "l4"}, {"gpu": "h100"}])
    assert kept(plugin, pool) == [1]
    pool.endpoints.replace([an_endpoint(0, {"gpu": "h100"}), an_endpoint(1, {"gpu": "l4"})])
    assert kept(plugin, pool) == [0]


def test_by_label() -> None:
    pool = Pool(labels=[{"zone": "a"}, {"zone": "b"}, {}])
    assert kept(ByLabel(label="zone", valid_values=("a",)), pool) == [0]
    assert kept(ByLabel(label="zone", valid_values=("b",), allows_no_label=True), pool) == [1, 2]
    with pytest.raises(ValueError, match="validValues"):
        ByLabel(label="zone")


def test_testing_filter() -> None:
    def named(value: str) -> list[int]:
        return kept(HeaderBasedTestingFilter(), Pool(3), a_request(headers={"test-epp-endpoint-selection": value}))

    assert named("10.0.0.2, 10.0.0.3:8000") == [1, 2]
    assert named("10.0.0.2:9000") == []
    assert named("256.256.256.256") == []
    assert kept(HeaderBasedTestingFilter(), Pool(3)) == [0, 1, 2]


def test_a_carried_session_sticks() -> None:
    plugin, pool = SessionAffinityFilter(), Pool(3)
    token = plugin.responded(REQUEST, pool.candidates()[1], {})["x-session-token"]
    assert base64.b64decode(token) == b"default/pod-1"
    asked = a_request(headers={"x-session-token": token})
    assert kept(plugin, pool, asked) == [1]
    assert scores(SessionAffinityScorer(), pool, asked) == [0, 1, 0]
    pool.endpoints.replace([an_endpoint(0), an_endpoint(2)])
    assert kept(plugin, pool, asked) == [0, 1]


@pytest.mark.parametrize("token", ["", "%%%", "bm8=", "////", "é"])
def test_a_broken_token_is_no_session(token: str) -> None:
    assert kept(SessionAffinityFilter(), Pool(2), a_request(headers={"x-session-token": token})) == [0, 1]


def test_the_token_header_can_be_named() -> None:
    plugin = SessionAffinityFilter(encoded_endpoint_header_config=TokenHeader("X-Mine"))
    assert set(plugin.responded(REQUEST, an_endpoint(0), {})) == {"x-mine"}


def remembering(**config: Any) -> SessionAffinityFilter:
    return SessionAffinityFilter(strategy="session_id", session_id_config=SessionIds(**config))


def test_a_remembered_session_sticks() -> None:
    plugin, pool, asked = remembering(), Pool(3), a_request(headers={"x-session-id": "s"})
    assert kept(plugin, pool, asked) == [0, 1, 2]
    plugin.picked(asked, pool.candidates()[2])
    assert kept(plugin, pool, asked) == [2]
    assert kept(plugin, pool, a_request(headers={"x-session-id": "t"})) == [0, 1, 2]
    assert plugin.responded(asked, pool.candidates()[2], {}) == {}


def test_a_remembered_session_moves_only_when_its_endpoint_is_gone() -> None:
    scorer = SessionAffinityScorer(strategy="session_id")
    pool, asked = Pool(3), a_request(headers={"x-session-id": "s"})
    scorer.picked(asked, pool.candidates()[2])
    scores(scorer, pool, asked)
    scorer.picked(asked, pool.candidates()[0])
    assert scores(scorer, pool, asked) == [0, 0, 1]
    pool.endpoints.replace([an_endpoint(0), an_endpoint(1)])
    assert scores(scorer, pool, asked) == [0, 0]
    scorer.picked(asked, pool.candidates()[1])
    assert scores(scorer, pool, asked) == [0, 1]


def test_a_session_unused_for_long_is_forgotten() -> None:
    plugin, pool, asked = remembering(eviction_ttl_seconds=60), Pool(2), a_request(headers={"x-session-id": "s"})
    for now_s, expected in ((NOW_S, 2), (NOW_S + 50, 1), (NOW_S + 109, 1), (NOW_S + 170, 2)):
        assert plugin.filter(asked, pool.candidates(now_s=now_s)).sum() == expected
        plugin.picked(asked, pool.candidates()[1])


def test_sessions_are_swept_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "MAX_SESSIONS", 10)
    found, pool = sessions.RememberedSessions(SessionIds(eviction_ttl_seconds=60)), Pool(1)
    for number in range(30):
        asked = a_request(headers={"x-session-id": str(number)})
        assert found.endpoint_key(asked, pool.candidates()) is None
        found.picked(asked, pool.candidates()[0])
    assert len(found) == 10
    found.endpoint_key(REQUEST, pool.candidates(now_s=NOW_S + 61))
    assert len(found) == 0


def test_a_session_id_is_looked_for_in_order() -> None:
    plugin, pool = remembering(sources=(Source("X-A"), Source("x-b"))), Pool(2)
    plugin.picked(a_request(headers={"x-b": "s"}), pool.candidates()[1])
    assert kept(plugin, pool, a_request(headers={"x-a": "s", "x-b": "t"})) == [1]
    with pytest.raises(ValueError, match="sources"):
        remembering(sources=())


def picks(picker: Any, values: list[float], times: int = 1) -> list[list[int]]:
    candidates = Pool(len(values)).candidates()
    return [picker.pick(REQUEST, candidates, np.array(values)).tolist() for _ in range(times)]


def test_max_score_takes_the_best_and_breaks_ties_by_chance() -> None:
    picker = MaxScorePicker(rng=random.Random(1))
    assert picks(picker, [1, 3, 2]) == [[1]]
    counts = Counter(index for (index,) in picks(picker, [3, 1, 3, 3], 3000))
    assert set(counts) == {0, 2, 3} and min(counts.values()) > 900


@pytest.mark.parametrize("n", [4, 100])
def test_max_score_ranks(n: int) -> None:
    picker = MaxScorePicker(rng=random.Random(1), max_num_of_endpoints=3)
    values = [0.0] * n
    values[1], values[3] = 5, 7
    counts: Counter[int] = Counter()
    for first, second, third in picks(picker, values, 2000):
        assert (first, second) == (3, 1)
        counts[third] += 1
    assert len(counts) == n - 2 and min(counts.values()) > 0.4 * 2000 / (n - 2)
    assert len(picks(picker, [1, 2])[0]) == 2


def test_random_picker_is_uniform() -> None:
    picker = RandomPicker(rng=random.Random(1), max_num_of_endpoints=2)
    counts = Counter(index for chosen in picks(picker, [9, 0, 0, 0], 2000) for index in chosen)
    assert set(counts) == {0, 1, 2, 3} and min(counts.values()) > 900


def test_weighted_random_follows_the_scores() -> None:
    picker = WeightedRandomPicker(rng=random.Random(1))
    counts = Counter(index for (index,) in picks(picker, [1, 3, 0], 4000))
    assert counts[2] == 0 and 2850 < counts[1] < 3150
    assert len(Counter(index for (index,) in picks(picker, [0, 0], 100))) == 2


def test_weighted_random_ranks_zero_scores_last() -> None:
    picker = WeightedRandomPicker(rng=random.Random(1), max_num_of_endpoints=3)
    for chosen in picks(picker, [0, 1e-6, 0, 5], 200):
        assert set(chosen[:2]) == {1, 3} and chosen[2] in (0, 2)


def test_round_robin_takes_turns() -> None:
    picker = RoundRobinPicker(max_num_of_endpoints=2)
    assert picks(picker, [0, 9, 0], 4) == [[0, 1], [1, 2], [2, 0], [0, 1]]
    assert picks(picker, [0, 0]) == [[1, 0]]


def test_header_profile() -> None:
    handler = HeaderProfileHandler(default_profile="b")
    assert handler.choose(a_request(headers={"epp-profile": " a "}), ["a", "b"]) == "a"
    assert handler.choose(a_request(headers={"epp-profile": "x"}), ["a", "b"]) == "x"
    assert handler.choose(REQUEST, ["a", "b"]) == "b"
    assert handler.choose(a_request(headers={"epp-profile": "x"}), ["a"]) == "a"
