"""The metrics page against the reference parser."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from bench.replica.engine import Engine, Work
from bench.replica.page import REAL_PAGE_BYTES, Histogram, Observed, Page
from bench.replica.profiles import profile


def page(**options: bool) -> Page:
    return Page(profile("laptop"), "base", **{"lora": True, "real_size": False, **options}, started_unix_s=100.0)


def samples(text: bytes) -> dict[str, float]:
    families = text_string_to_metric_families(text.decode())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_the_page_tells_what_the_engine_knows() -> None:
    engine = Engine(profile("laptop"))
    for i in range(3):
        engine.submit(Work(str(i), 1600, 10, tuple(range(100)), "lora-a" if i else None), 0.0)
    engine.advance(0.1)
    busy = samples(page().render(engine.stats(), Observed(), 1000.0))
    assert busy["vllm:num_requests_running"] == 3
    assert busy["vllm:kv_cache_usage_perc"] == engine.stats().kv_usage > 0
    assert busy["vllm:lora_requests_info"] == 1000.0
    engine.advance(60.0)
    idle = samples(page().render(engine.stats(), Observed(), 1001.0))
    assert idle["vllm:num_requests_running"] == 0
    assert idle["vllm:prompt_tokens_total"] == 4800
    assert idle["vllm:generation_tokens_total"] == 30
    assert idle["vllm:prefix_cache_queries_total"] == 4800
    assert idle["vllm:prefix_cache_hits_total"] == 2 * 1584
    assert idle["process_start_time_seconds"] == 100.0


def test_cache_size_is_in_the_labels() -> None:
    text = page().render(Engine(profile("laptop")).stats(), Observed(), 0.0)
    (family,) = (f for f in text_string_to_metric_families(text.decode()) if f.name == "vllm:cache_config_info")
    assert family.samples[0].labels["block_size"] == "16"
    assert family.samples[0].labels["num_gpu_blocks"] == "2048"


def test_adapter_series_pile_up_but_not_without_end() -> None:
    engine = Engine(profile("laptop"))
    writer = page()
    for i in range(30):
        engine.submit(Work(str(i), 10, 1000, (), f"lora-{i}"), engine.now_s)
        engine.advance(engine.now_s + 1.0)
        text = writer.render(engine.stats(), Observed(), 1000.0 + i)
        engine.abort(str(i))
    (family,) = (f for f in text_string_to_metric_families(text.decode()) if f.name == "vllm:lora_requests_info")
    assert len(family.samples) == Page.ADAPTER_SERIES
    newest = max(family.samples, key=lambda sample: sample.value)
    assert newest.labels == {"max_lora": "4", "running_lora_adapters": "lora-29", "waiting_lora_adapters": ""}


def test_a_histogram_is_cumulative_and_a_bound_belongs_to_its_bucket() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]
    assert histogram.total == 12.0


def test_the_padded_page_is_as_large_as_a_real_one_and_still_parses() -> None:
    text = page(real_size=True).render(Engine(profile("laptop")).stats(), Observed(), 0.0)
    assert REAL_PAGE_BYTES <= len(text) < REAL_PAGE_BYTES + 2500
    assert "vllm:num_requests_waiting" in samples(text)
