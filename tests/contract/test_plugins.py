"""What every plugin of the table owes the pipeline, whatever the pool looks like."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from epp.configuration import ConfigurationError, load
from epp.configuration.annotations import generator_argument, record_of_plugin
from epp.configuration.catalogue import BUILT_IN
from epp.configuration.shapes import REQUIRED
from epp.endpoint import Candidates
from epp.request import Request
from epp.scoring import Filter, Picker, ProfileHandler, SaturationDetector, Scorer, WantsPicks, WantsResponses
from scorers import PLUGINS
from scorers.endpoint_attribute_filter import Threshold, ThresholdTest
from scorers.endpoint_attribute_scorer import LinearScore
from scorers.utilization_filter import Limit
from tests.pools import Pool, a_request, random_pool

GIVEN: dict[str, list[dict[str, Any]]] = {
    "active-request-scorer": [{}, {"idle_threshold": 5, "max_busy_score": 0.5}],
    "by-label": [{"label": "zone", "valid_values": ("a",)}, {"label": "zone", "allows_no_label": True}],
    "concurrency-detector": [{}, {"concurrency_mode": "tokens"}, {"concurrency_mode": "hybrid", "headroom": 0.5}],
    "context-length-aware": [{}, {"enable_filtering": True}],
    "endpoint-attribute-filter": [
        {"attribute": "metric", "algorithm": ThresholdTest("threshold", Threshold("LessThan", 0.5))},
        {
            "attribute": "metric",
            "algorithm": ThresholdTest("threshold", Threshold("GreaterThan", 2.0)),
            "on_missing": "Fail",
            "fallback_on_empty": True,
        },
    ],
    "endpoint-attribute-scorer": [
        {"attribute_key": "metric", "algorithm": LinearScore(direction)}
        for direction in ("linear_lower_is_better", "linear_higher_is_better")
    ],
    "header-label-affinity-scorer": [{"header_name": "X-Zone", "label_key": "zone"}],
    "label-selector-filter": [{}, {"match_labels": {"zone": "a"}}],
    "prefix-cache-scorer": [{}, {"match_length_weight": 0.5, "match_length_scale_tokens": 320}],
    "session-affinity-filter": [{}, {"strategy": "session_id"}],
    "session-affinity-scorer": [{}, {"strategy": "session_id"}],
    "utilization-filter": [{"conditions": (Limit("running-requests", 20), Limit("kv-cache-utilization", 0.9))}],
    **{name: [{}, {"max_num_of_endpoints": 3}] for name in PLUGINS if name.endswith("-picker")},
}


def cases(*excluded: str) -> list[Any]:
    return [
        pytest.param(name, arguments, id=f"{name}-{number}")
        for name in PLUGINS
        if not name.endswith(excluded)
        for number, arguments in enumerate(GIVEN.get(name, [{}]))
    ]


SIZES = (1, 8, 1000)
REQUESTS = (
    a_request(headers={"x-zone": "a", "x-session-id": "s", "test-epp-endpoint-selection": "10.0.0.1,10.0.0.2:8000"}),
    a_request(blocks=0, model=""),
    a_request(blocks=200, headers={"x-session-token": "bm8vc3VjaA==", "epp-profile": "prefill"}),
)


def make(name: str, arguments: dict[str, Any], seed: int = 1) -> Any:
    generator = generator_argument(PLUGINS[name])
    chance = {generator: random.Random(seed)} if generator else {}
    return PLUGINS[name](**arguments, **chance)


def outcome(plugin: Any, request: Request, candidates: Candidates) -> np.ndarray[Any, Any]:
    if isinstance(plugin, Scorer):
        return plugin.score(request, candidates)
    if isinstance(plugin, Filter):
        return plugin.filter(request, candidates)
    assert isinstance(plugin, Picker)
    return plugin.pick(request, candidates, np.linspace(0, 3, len(candidates)))


def check_sound(plugin: Any, request: Request, candidates: Candidates) -> None:
    n = len(candidates)
    if isinstance(plugin, Filter):
        kept = plugin.filter(request, candidates)
        assert kept.dtype == np.bool_ and kept.shape == (n,)
    if isinstance(plugin, Scorer):
        scores = plugin.score(request, candidates)
        assert scores.dtype == np.float64 and scores.shape == (n,)
        assert ((scores >= 0) & (scores <= 1)).all(), scores
    if isinstance(plugin, Picker):
        for weighted in (np.linspace(0, 3, n), np.zeros(n), np.full(n, 2.0)):
            chosen = plugin.pick(request, candidates, weighted).tolist()
            assert 1 <= len(chosen) <= n and len(set(chosen)) == len(chosen)
            assert all(0 <= index < n for index in chosen)
    if isinstance(plugin, ProfileHandler):
        assert plugin.choose(request, ["only"]) == "only"
    if isinstance(plugin, SaturationDetector):
        assert plugin.saturation(candidates) >= 0
    if isinstance(plugin, WantsPicks):
        plugin.picked(request, candidates[n - 1])
    if isinstance(plugin, WantsResponses):
        added = plugin.responded(request, candidates[n - 1], {":status": "200"})
        assert all(key == key.lower() for key in added)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("silent", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("name", "arguments"), cases())
def test_answers_are_sound(name: str, arguments: dict[str, Any], silent: float, size: int) -> None:
    plugin = make(name, arguments)
    pool = random_pool(size, 7, silent=silent)
    for request in REQUESTS:
        for _ in range(2):
            check_sound(plugin, request, pool.candidates())


def snapshot(pool: Pool) -> list[Any]:
    e = pool.endpoints
    columns: list[np.ndarray[Any, Any]] = [
        e.waiting,
        e.running,
        e.kv_usage,
        e.updated_s,
        e.in_flight,
        e.in_flight_prompts,
        e.in_flight_tokens,
    ]
    return [column.copy() for column in (*columns, pool.hits, pool.churn, e.slots, *e.custom.values(), e.adapter_room)]


@pytest.mark.parametrize(("name", "arguments"), cases())
def test_nothing_is_changed(name: str, arguments: dict[str, Any]) -> None:
    """Neither the pool's columns nor those gathered for one pick, which other plugins read after this one."""
    plugin, pool, request = make(name, arguments), random_pool(20, 3), REQUESTS[0]
    before, candidates, twin = snapshot(pool), pool.candidates(), pool.candidates()
    gathered = (
        *("waiting", "running", "kv_usage", "hit_blocks", "churn"),
        *("in_flight", "in_flight_prompts", "in_flight_tokens"),
    )
    expected = {column: getattr(twin, column).copy() for column in gathered}
    for column in gathered:
        getattr(candidates, column)
    check_sound(plugin, request, candidates)
    for old, new in zip(before, snapshot(pool), strict=True):
        np.testing.assert_array_equal(old, new)
    for column, values in expected.items():
        np.testing.assert_array_equal(getattr(candidates, column), values)


@pytest.mark.parametrize(("name", "arguments"), cases("-handler"))
def test_a_seed_fixes_everything(name: str, arguments: dict[str, Any]) -> None:
    runs = []
    for _ in range(2):
        plugin, pool = make(name, arguments, seed=5), random_pool(12, 5, silent=0.2)
        runs.append([outcome(plugin, request, pool.candidates()).tolist() for request in REQUESTS * 3])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("size", [2, 8, 100])
@pytest.mark.parametrize(("name", "arguments"), cases("-handler", "-picker"))
def test_the_order_of_candidates_means_nothing(name: str, arguments: dict[str, Any], size: int) -> None:
    pool = random_pool(size, 11, silent=0.2)
    order = random.Random(2).sample(range(size), size)
    for request in REQUESTS:
        straight, shuffled = make(name, arguments), make(name, arguments)
        for warmed in (0, size // 2):
            for plugin in (straight, shuffled):
                if isinstance(plugin, WantsPicks):
                    outcome(plugin, request, pool.candidates())
                    plugin.picked(request, pool.candidates()[warmed])
            first = outcome(straight, request, pool.candidates())
            second = outcome(shuffled, request, pool.candidates(order))
            # A mean over the candidates may differ in its last bit.
            np.testing.assert_allclose(first[order].astype(float), second.astype(float), rtol=1e-12)


@pytest.mark.parametrize("name", PLUGINS)
def test_every_parameter_has_a_type_and_a_default_or_is_required(name: str) -> None:
    record = record_of_plugin(PLUGINS[name])
    for field in record.fields:
        assert field.shape.spoken()
    assert record.missing(GIVEN.get(name, [{}])[0]) == []
    required = [field.argument for field in record.fields if field.default is REQUIRED]
    assert set(required) <= set(GIVEN.get(name, [{}])[0])


@pytest.mark.parametrize("name", sorted(BUILT_IN.keys() - {"single-profile-handler"}))
def test_a_wrong_parameter_is_refused_by_name_and_line(name: str) -> None:
    text = f"""\
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: {name}
  parameters:
    noSuchThing: 1
"""
    with pytest.raises(ConfigurationError) as refusal:
        load(text, "picker.yaml")
    told = [str(problem) for problem in refusal.value.problems]
    assert any(line.startswith("picker.yaml:6: plugins[0].parameters.noSuchThing: unknown field") for line in told), (
        told
    )


@pytest.mark.parametrize("name", BUILT_IN)
def test_says_what_it_is_for_in_one_line(name: str) -> None:
    purpose = BUILT_IN[name].purpose
    assert purpose.endswith(".") and "_" not in purpose.replace("`", ""), purpose
