"""The page: every name that somebody reads, under every vocabulary, in both text formats."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pytest
from prometheus_client.core import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from epp.drops import OUTCOMES, Reason
from epp.endpoint import Endpoint, Endpoints, Report
from epp.observe import metrics as record
from epp.observe.exposition import Build, Exposition, Gauge
from epp.observe.metrics import Metrics
from epp.observe.text import Histogram, Values, write
from tests.unit.test_metrics import Usage, finish

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
LLAMA = ("llama", "llama-8b", 0, "team-a")
QWEN = ("qwen", "qwen", -1, "team-b")

ALERTS = {
    "HighInferenceRequestLatencyP99": (
        "histogram_quantile(0.99, rate(inference_model_request_duration_seconds_bucket[5m])) > 10.0"
    ),
    "HighInferenceErrorRate": (
        "sum by (model_name)(rate(inference_model_request_error_total[5m])) / "
        "sum by (model_name)(rate(inference_model_request_total[5m])) > 0.05"
    ),
    "HighInferencePoolAvgQueueSize": "inference_pool_average_queue_size > 50",
    "HighInferencePoolAvgKVCacheUtilization": "inference_pool_average_kv_cache_utilization > 0.9",
}

DASHBOARD = (
    "inference_pool_average_kv_cache_utilization",
    "inference_pool_average_queue_size",
    "inference_pool_per_pod_queue_size",
    *(
        f"inference_{subsystem}_{name}"
        for subsystem in ("model", "objective")
        for name in (
            "request_total",
            "request_error_total",
            "request_duration_seconds_bucket",
            "request_duration_seconds_sum",
            "request_duration_seconds_count",
            "request_sizes_bucket",
            "response_sizes_bucket",
            "input_tokens_bucket",
            "output_tokens_bucket",
            "running_requests",
            "normalized_time_per_output_token_seconds_bucket",
        )
    ),
)

LLM_D = (
    *(f"request_{name}" for name in ("total", "error_total", "running", "ttft_seconds_bucket")),
    *(f"request_{name}_bucket" for name in ("duration_seconds", "size_bytes", "input_tokens", "output_tokens")),
    *(f"request_{name}_bucket" for name in ("cached_tokens", "ntpot_seconds", "streaming_tpot_seconds")),
    "response_size_bytes_bucket",
    *(f"average_{name}" for name in ("kv_cache_utilization", "queue_size", "running_requests")),
    *(f"std_dev_{name}" for name in ("kv_cache_utilization", "queue_size", "running_requests")),
    *("ready_endpoints", "per_endpoint_queue_size", "scheduler_e2e_duration_seconds_bucket"),
    *(
        "scheduler_attempts_total",
        "info",
        "model_rewrite_decisions_total",
        "datalayer_poll_errors_total",
        "inflight_requests",
        "inflight_tokens",
    ),
    *("prefix_indexer_size", "prefix_indexer_hit_ratio_bucket", "prefix_indexer_hit_bytes_bucket"),
)

EXTENSION = (
    *("scheduler_e2e_duration_seconds_bucket", "scheduler_attempts_total", "info", "model_rewrite_decisions_total"),
    *("prefix_indexer_size", "prefix_indexer_hit_ratio_bucket", "prefix_indexer_hit_bytes_bucket"),
)

OBJECTIVE = ("prompt_cached_tokens_bucket", "request_ttft_seconds_bucket", "request_tpot_seconds_bucket")

OWN = (
    *("epp_stage_duration_seconds_bucket", "epp_responses_total", "epp_requests_aborted_total"),
    *("epp_estimated_input_tokens_total", "epp_plugin_failures_total", "epp_scrape_failures_total"),
    *(
        "epp_degraded_total",
        "epp_transport_limits_total",
        "epp_refusals_total",
        "epp_pool_endpoints",
        "epp_pool_unreachable_endpoints",
        "epp_ledger_requests",
    ),
    *("process_cpu_seconds_total", "process_resident_memory_bytes", "python_info"),
)


def a_pool() -> Endpoints:
    """Four endpoints: two fresh, one stale, one that never reported and takes no connections."""
    endpoints = Endpoints()
    endpoints.replace([Endpoint(name=f"pod-{i}", address=f"10.0.0.{i}", port=8000) for i in range(4)])
    slots = [int(slot) for slot in endpoints.slots]
    endpoints.report(slots[0], Report(waiting=10.0, running=4.0, kv_usage=0.2), 99.5)
    endpoints.report(slots[1], Report(waiting=20.0, running=8.0, kv_usage=0.6), 98.5)
    endpoints.report(slots[2], Report(waiting=900.0, running=900.0, kv_usage=1.0), 50.0)
    endpoints.set_unreachable(slots[3], True)
    endpoints.in_flight[slots[0]] = 3.0
    endpoints.in_flight_tokens[slots[0]] = 1500.0
    return endpoints


def some_traffic() -> Metrics:
    metrics = Metrics()
    endpoint = Endpoint(name="pod-0", address="10.0.0.0", port=8000)
    for key in (LLAMA, QWEN):
        metrics.decided(*key, 2400, 600)
        metrics.picked(endpoint, key[1])
        metrics.first_token(*key, 0.2, True)
        finish(metrics, key, response_bytes=5000, usage=Usage(900, 120, 512), ttft_s=0.2)
    metrics.decided("llama", "llama-8b", 5, "team-b", 100, 25)
    finish(metrics, ("llama", "llama-8b", 5, "team-b"), status=503, aborted=True, duration_s=70.0)
    metrics.refused(*LLAMA, OUTCOMES[Reason.SATURATED])
    for stage in record.STAGES:
        metrics.stage(stage, 0.00015)
    metrics.prefix_match(0.5, 1024)
    metrics.rewritten("canary", "llama", "llama-8b")
    metrics.plugin_failed("my-scorer", "raised")
    metrics.scrape_failed("timeout")
    metrics.scrape_failed("refused")
    metrics.degraded("no-signals")
    metrics.quota_refused("tokens", "tenant")
    metrics.limited("chatter_burst")
    return metrics


def exposition(metrics: Metrics | None = None, pools: Mapping[str, Endpoints] | None = None) -> Exposition:
    shown = {"my-pool": a_pool()} if pools is None else pools
    return Exposition(
        some_traffic() if metrics is None else metrics,
        lambda: shown,
        lambda: 100.0,
        prefix_index_size=lambda: 77,
        gauges=[Gauge("epp_ledger_requests", "Requests in flight.", lambda: 3)],
        build=Build("abc123", "v0.1.0"),
    )


def families(page: Exposition, accept: str = "") -> dict[str, Metric]:
    content_type, body = page.render(accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    return {family.name: family for family in parse(body.decode())}


def samples(page: Exposition, accept: str = "") -> dict[str, list[tuple[dict[str, str], float]]]:
    found: dict[str, list[tuple[dict[str, str], float]]] = defaultdict(list)
    for family in families(page, accept).values():
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return dict(found)


def value(page: Exposition, name: str, /, **labels: str) -> float:
    """The only sample of `name` that has all of `labels`."""
    (only,) = [number for have, number in samples(page).get(name, []) if labels.items() <= have.items()]
    return only


def series_in(expression: str) -> set[str]:
    return set(re.findall(r"inference_\w+", expression))


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
@pytest.mark.parametrize("alert", ALERTS)
def test_every_series_of_the_alerts_exists(alert: str, accept: str) -> None:
    assert series_in(ALERTS[alert]) <= samples(exposition(), accept).keys()


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_every_name_of_every_vocabulary_exists(accept: str) -> None:
    wanted = {
        *DASHBOARD,
        *(f"llm_d_epp_{name}" for name in LLM_D),
        *(f"inference_extension_{name}" for name in EXTENSION),
        *(f"inference_objective_{name}" for name in OBJECTIVE),
        *(f"inference_pool_{name}" for name in ("average_running_requests", "ready_pods")),
        "llm_d_inference_scheduler_datalayer_poll_errors_total",
        *OWN,
    }
    assert wanted - samples(exposition(), accept).keys() == set()


def test_the_error_rate_alert_divides_errors_by_all_requests() -> None:
    page = exposition()
    errors = samples(page)["inference_model_request_error_total"]
    assert sum(number for labels, number in errors if labels["model_name"] == "llama") == 2
    assert value(page, "inference_model_request_total", model_name="llama") == 3


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("inference_model_request_total", {"model_name", "target_model_name"}),
        ("inference_objective_request_total", {"model_name", "target_model_name", "priority"}),
        ("llm_d_epp_request_total", {"model_name", "target_model_name", "priority", "fairness_id"}),
        ("inference_model_request_error_total", {"model_name", "target_model_name", "error_code"}),
        ("llm_d_epp_request_error_total", {"model_name", "target_model_name", "priority", "fairness_id", "error_code"}),
        ("inference_objective_running_requests", {"model_name"}),
        (
            "llm_d_epp_request_ttft_seconds_sum",
            {"model_name", "target_model_name", "priority", "fairness_id", "streaming"},
        ),
        ("inference_pool_average_queue_size", {"name"}),
        ("inference_pool_per_pod_queue_size", {"name", "model_server_pod"}),
        ("llm_d_epp_per_endpoint_queue_size", {"name", "model_server_endpoint"}),
        (
            "inference_extension_scheduler_attempts_total",
            {"status", "target_model_name", "pod_name", "namespace", "port"},
        ),
        ("llm_d_epp_scheduler_attempts_total", {"status", "target_model_name", "endpoint_name", "namespace", "port"}),
        ("llm_d_epp_model_rewrite_decisions_total", {"model_rewrite_name", "model_name", "target_model"}),
        ("inference_extension_model_rewrite_decisions_total", {"model_rewrite_name", "model_name", "target_model"}),
        ("inference_extension_info", {"commit", "build_ref"}),
        ("inference_extension_prefix_indexer_size", set()),
        ("llm_d_epp_prefix_indexer_size", {"plugin_name", "plugin_type"}),
    ],
)
def test_labels(name: str, labels: set[str]) -> None:
    assert {frozenset(have) for have, _ in samples(exposition())[name]} == {frozenset(labels)}


def test_a_model_is_one_series_in_the_vocabularies_without_tenants() -> None:
    page = exposition()
    assert value(page, "inference_objective_request_duration_seconds_count", model_name="llama") == 2
    assert value(page, "inference_objective_request_duration_seconds_sum", model_name="llama") == 72.0
    assert value(page, "llm_d_epp_request_duration_seconds_count", model_name="llama", priority="5") == 1
    assert value(page, "inference_objective_request_total", model_name="llama", priority="0") == 2


def test_buckets_are_cumulative_and_end_with_all() -> None:
    buckets = {
        labels["le"]: number
        for labels, number in samples(exposition())["inference_model_request_duration_seconds_bucket"]
        if labels["model_name"] == "llama"
    }
    assert (buckets["1.5"], buckets["2"], buckets["60"], buckets["120"], buckets["+Inf"]) == (0, 1, 1, 2, 2)
    assert len(buckets) == len(record.DURATION_BOUNDS) + 1


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("llm_d_epp_request_streaming_tpot_seconds", 19),
        ("inference_objective_request_tpot_seconds", 35),
        ("llm_d_epp_request_ttft_seconds", 24),
        ("inference_objective_request_ttft_seconds", 35),
        ("inference_extension_scheduler_e2e_duration_seconds", 10),
    ],
)
def test_a_vocabulary_shows_the_buckets_that_it_knows(name: str, bounds: int) -> None:
    found = samples(exposition())[f"{name}_bucket"]
    assert len({labels["le"] for labels, _ in found}) == bounds + 1


def test_a_hidden_bucket_is_counted_in_the_next_one_shown() -> None:
    page = exposition()
    assert value(page, "inference_extension_scheduler_e2e_duration_seconds_bucket", le="0.0001") == 0
    assert value(page, "inference_extension_scheduler_e2e_duration_seconds_bucket", le="0.0002") == 1


def test_bounds_are_spelled_as_go_does() -> None:
    text = exposition().render()[1].decode()
    for bound in ("64", "65536", "1.048576e+06", "1.073741824e+09"):
        assert (
            f'inference_model_request_sizes_bucket{{model_name="qwen",target_model_name="qwen",le="{bound}"}}' in text
        )
    assert 'le="0.00205"' in text
    assert 'le="2e-05"' in text
    openmetrics = exposition().render(OPENMETRICS)[1].decode()
    assert 'inference_model_request_sizes_bucket{model_name="qwen",target_model_name="qwen",le="64.0"}' in openmetrics


def test_a_histogram_that_saw_nothing_is_left_out() -> None:
    metrics = Metrics()
    metrics.decided(*LLAMA, 100, 25)
    finish(metrics, LLAMA)
    names = samples(exposition(metrics)).keys()
    assert "inference_model_request_sizes_bucket" in names
    assert "inference_model_output_tokens_bucket" not in names


def test_pool_averages_are_over_fresh_reports() -> None:
    page = exposition()
    assert value(page, "inference_pool_average_queue_size", name="my-pool") == 15.0
    assert value(page, "inference_pool_average_kv_cache_utilization") == pytest.approx(0.4)
    assert value(page, "llm_d_epp_average_running_requests") == 6.0
    assert value(page, "llm_d_epp_std_dev_queue_size") == pytest.approx(float(np.std([10, 20], ddof=1)))
    assert value(page, "inference_pool_ready_pods") == 2
    assert value(page, "epp_pool_endpoints") == 4
    assert value(page, "epp_pool_unreachable_endpoints") == 1
    pods = {labels["model_server_pod"]: n for labels, n in samples(page)["inference_pool_per_pod_queue_size"]}
    assert pods == {"pod-0": 10.0, "pod-1": 20.0}


def test_no_fresh_report_leaves_the_averages_unknown() -> None:
    page = exposition(pools={"cold": Endpoints()})
    assert "inference_pool_average_queue_size" not in samples(page)
    assert value(page, "inference_pool_ready_pods", name="cold") == 0


def test_one_fresh_endpoint_deviates_by_nothing() -> None:
    endpoints = Endpoints()
    endpoints.replace([Endpoint(name="pod-0", address="10.0.0.1", port=8000)])
    endpoints.report(int(endpoints.slots[0]), Report(waiting=5.0), 99.9)
    page = exposition(pools={"one": endpoints})
    assert value(page, "llm_d_epp_std_dev_queue_size") == 0.0
    assert "inference_pool_average_kv_cache_utilization" not in samples(page)


def test_several_pools_stand_side_by_side() -> None:
    page = exposition(pools={"a": a_pool(), "b": Endpoints()})
    assert value(page, "inference_pool_ready_pods", name="a") == 2
    assert value(page, "inference_pool_ready_pods", name="b") == 0


def test_what_is_in_flight_by_endpoint() -> None:
    page = exposition()
    assert value(page, "llm_d_epp_inflight_requests", endpoint_name="pod-0", namespace="default") == 3
    assert value(page, "llm_d_epp_inflight_tokens", endpoint_name="pod-0") == 1500
    assert value(page, "llm_d_epp_inflight_requests", endpoint_name="pod-3") == 0


def test_faults_and_gauges() -> None:
    page = exposition()
    assert value(page, "epp_plugin_failures_total", plugin_name="my-scorer", kind="raised") == 1
    assert value(page, "epp_quota_refusals_total", measure="tokens", scope="tenant") == 1
    assert value(page, "epp_refusals_total", reason="rejected-saturated", status="429") == 1
    assert value(page, "epp_scrape_failures_total", kind="timeout") == 1
    assert value(page, "llm_d_epp_datalayer_poll_errors_total", source_type="metrics-data-source") == 2
    assert value(page, "epp_ledger_requests") == 3
    assert value(page, "inference_extension_prefix_indexer_size") == 77
    assert value(page, "inference_extension_info", commit="abc123", build_ref="v0.1.0") == 1
    assert value(page, "epp_responses_total", code="503") == 1
    assert value(page, "epp_requests_aborted_total", model_name="llama") == 1
    assert value(page, "epp_estimated_input_tokens_total", model_name="llama") == 625


def test_both_formats_say_the_same() -> None:
    def numbers(accept: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (name, frozenset((k, v.removesuffix(".0") if k == "le" else v) for k, v in labels.items())): number
            for name, found in samples(page, accept).items()
            for labels, number in found
            if not name.startswith(("process_", "python_"))
        }

    page = exposition()
    assert numbers("") == numbers(OPENMETRICS)


def test_the_format_follows_the_accept_header() -> None:
    page = exposition()
    for accept, content_type in (
        ("", "text/plain; version=0.0.4"),
        ("text/html", "text/plain; version=0.0.4"),
        (f"{OPENMETRICS};q=0.5,text/plain;version=0.0.4;q=0.2", OPENMETRICS),
    ):
        got, body = page.render(accept)
        assert got.startswith(content_type)
        assert body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)
        assert body.count(b"# EOF\n") <= 1


def test_pieces_make_the_page() -> None:
    page = exposition(Metrics())
    content_type, pieces = page.pieces("")
    joined = b"".join(pieces)
    assert content_type == page.render()[0]
    assert joined.count(b"# TYPE ") > 60


def test_no_family_appears_twice() -> None:
    text = exposition().render()[1].decode()
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("label", ['quote " backslash \\ end', "line\nbreak", "日本語", 'a",b="c'])
@pytest.mark.parametrize("openmetrics", [False, True])
def test_label_values_survive(label: str, openmetrics: bool) -> None:
    text = write(Values("gauge", "g", "Help.", ("x", "y"), [((label, "plain"), 1.5)]), openmetrics=openmetrics)
    parse = parse_openmetrics if openmetrics else parse_text
    (family,) = parse(text + ("# EOF\n" if openmetrics else ""))
    assert family.samples[0].labels == {"x": label, "y": "plain"}


@pytest.mark.parametrize(
    ("number", "text"), [(3, "3"), (2.5, "2.5"), (float("inf"), "+Inf"), (float("-inf"), "-Inf"), (float("nan"), "NaN")]
)
def test_numbers(number: float, text: str) -> None:
    assert write(Values("gauge", "g", "Help.", (), [((), number)]), openmetrics=False).endswith(f"g {text}\n")


def test_a_histogram_without_labels() -> None:
    text = write(Histogram("h", "Help.", (), [((), [1, 0, 2, 9.5])], [1.0, 2.0], [1.0, 2.0]), openmetrics=False)
    assert text.splitlines()[2:] == [
        'h_bucket{le="1"} 1',
        'h_bucket{le="2"} 1',
        'h_bucket{le="+Inf"} 3',
        "h_sum 9.5",
        "h_count 3",
    ]
