"""Reading metrics pages: real ones, hand-made ones, generated ones against an independent parser, and any bytes."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from epp.endpoint import Adapters, CacheConfig, Endpoint, Report
from epp.signals.engines import (
    BUILT_IN,
    MAX_PAGE_BYTES,
    NOTHING,
    CustomMetric,
    EngineChoice,
    EngineConfig,
    PageReader,
)
from epp.signals.page import Family, Labels, Selector, selector

PAGES = Path(__file__).parent.parent / "data" / "metrics"


def page(name: str) -> bytes:
    return (PAGES / f"{name}.txt").read_bytes()


def read(text: str | bytes, engine: str = "vllm") -> Report:
    return PageReader(BUILT_IN[engine]).read(text.encode() if isinstance(text, str) else text)


def endpoint(**labels: str) -> Endpoint:
    return Endpoint(name="a", address="10.0.0.1", port=8000, labels=labels)


def test_a_real_vllm_page() -> None:
    assert read(page("vllm-0.32.0")) == Report(
        waiting=0.0,
        running=0.0,
        kv_usage=0.0,
        cache=CacheConfig(32, 65536),
        prompt_tokens_total=62100.0,
        cached_tokens_total=0.0,
    )


def test_an_old_vllm_page() -> None:
    assert read(page("vllm-0.8")) == Report(
        waiting=3.0,
        running=7.0,
        kv_usage=0.4375,
        adapters=Adapters(frozenset({"sql-lora", "tweet-summary"}), frozenset({"legal"}), 4),
        cache=CacheConfig(16, 27681),
        prompt_tokens_total=1048576.0,
    )


def test_ranks_of_one_server_add_up() -> None:
    assert read(page("vllm-data-parallel")) == Report(
        waiting=3.0,
        running=10.0,
        kv_usage=0.5,
        cache=CacheConfig(16, 2000),
        prompt_tokens_total=1024.0,
        cached_tokens_total=128.0,
    )


@pytest.mark.parametrize(
    ("engine", "report"),
    [
        (
            "sglang",
            Report(
                waiting=5.0,
                running=11.0,
                idles_late=True,
                kv_usage=0.28,
                cache=CacheConfig(1, 120832),
                prompt_tokens_total=8128902.0,
                cached_tokens_total=61024.0,
                counts_late=True,
            ),
        ),
        ("triton-tensorrt-llm", Report(waiting=4.0, running=8.0, kv_usage=0.25, cache=CacheConfig(64, 6400))),
        ("trtllm-serve", Report(waiting=2.0, running=9.0, kv_usage=0.125, cache=CacheConfig(32, 2048))),
        ("triton", Report(waiting=6.0, running=19.0, running_is_total=True)),
    ],
)
def test_other_engines(engine: str, report: Report) -> None:
    assert read(page(engine), engine) == report


def test_a_reader_sees_changes_from_page_to_page() -> None:
    """What it remembers of the last page never stands in for what this one says."""
    reader = PageReader(BUILT_IN["vllm"])
    before = page("vllm-0.8")
    assert reader.read(before) == read(before)
    after = (
        before.replace(b"num_requests_waiting{", b'num_requests_waiting{engine="1",')
        .replace(b"num_requests_running{", b"num_requests_running {")
        .replace(b"} 0.4375\n", b"} 0.5 1700000000000\n")
        .replace(b"4170e+09", b"4100e+09")
        .replace(b'block_size="16"', b'block_size="32"')
    )
    assert reader.read(after) == Report(
        waiting=3.0,
        running=7.0,
        kv_usage=0.5,
        adapters=Adapters(frozenset({"sql-lora"}), frozenset(), 4),
        cache=CacheConfig(32, 27681),
        prompt_tokens_total=1048576.0,
    )
    assert reader.read(before) == read(before)
    assert reader.read(b"") == NOTHING


def test_a_lone_series_joined_by_another() -> None:
    reader = PageReader(BUILT_IN["vllm"])
    one = b'# x\nvllm:num_requests_waiting{engine="0"} 2\n'
    assert reader.read(one).waiting == 2
    assert reader.read(one + b'vllm:num_requests_waiting{engine="1"} 5\n').waiting == 7
    assert reader.read(one.replace(b"2", b"3")).waiting == 3
    assert reader.read(b'# x\nvllm:num_requests_waiting{engine="1"} 5\n' + one[4:]).waiting == 7


def test_adapters_and_cache_follow_their_labels() -> None:
    reader = PageReader(BUILT_IN["vllm"])
    for names, blocks in [("a", 10), ("a,b", 10), ("", 20)]:
        report = reader.read(
            f'vllm:lora_requests_info{{max_lora="4",running_lora_adapters="{names}",waiting_lora_adapters=""}} 1\n'
            f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{blocks}"}} 1\n'.encode()
        )
        assert report.adapters == Adapters(frozenset(filter(None, names.split(","))), frozenset(), 4)
        assert report.cache == CacheConfig(16, blocks)


def test_the_memory_for_labels_is_bounded() -> None:
    labels = Labels()
    for number in range(5000):
        assert labels.read(b'{a="%d"' % number) == {"a": str(number)}
    assert labels.read(b'{a="' + b"x" * 10_000 + b'"') is not None
    assert len(labels) <= 1024


def test_a_value_that_gains_a_timestamp() -> None:
    reader = PageReader(BUILT_IN["vllm"])
    assert reader.read(b"\nvllm:num_requests_waiting 5 \n").waiting == 5
    assert reader.read(b"\nvllm:num_requests_waiting 5 1700000000000\n").waiting == 5
    assert reader.read(b"\nvllm:num_requests_waiting 6\t1700000000000\n").waiting == 6


@pytest.mark.parametrize(
    "text",
    [
        "vllm:num_requests_waiting 4",
        "vllm:num_requests_waiting 4\n",
        "\nvllm:num_requests_waiting\t4\n",
        "vllm:num_requests_waiting{} 4\n",
        'vllm:num_requests_waiting {model="a"} 4\n',
        'vllm:num_requests_waiting{ model = "a" , }   4.0e0  \r\n',
        'vllm:num_requests_waiting{model="} 9 {a="} 4\n',
        'vllm:num_requests_waiting{model="say \\"x=\\\\"} 4\n',
        "vllm:num_requests_waiting_by_reason 9\nvllm:num_requests_waiting 4\n",
        "# vllm:num_requests_waiting 9\nvllm:num_requests_waiting 4\n# vllm:num_requests_waiting 9\n",
        "x_vllm:num_requests_waiting 9\nvllm:num_requests_waiting 4\n",
        'vllm:num_requests_waiting{m="a"} 4\nvllm:num_requests_waiting{m="b"} 9\n',
        'vllm:num_requests_waiting{m="a"} 9 10\nvllm:num_requests_waiting{m="b"} 4 11\n',
        'vllm:num_requests_waiting{m="a"} NaN\nvllm:num_requests_waiting{m="b"} 4\n',
    ],
)
def test_four_waiting(text: str) -> None:
    assert read(text).waiting == 4.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting ",
        "vllm:num_requests_waiting NaN\n",
        "vllm:num_requests_waiting +Inf\n",
        "vllm:num_requests_waiting -1\n",
        "vllm:num_requests_waiting 1e999\n",
        "vllm:num_requests_waiting four\n",
        "vllm:num_requests_waiting 4 5 6\n",
        "vllm:num_requests_waiting 4 then\n",
        'vllm:num_requests_waiting{model="a" 4\n',
        "vllm:num_requests_waiting{model=a} 4\n",
        'vllm:num_requests_waiting model="a"} 4\n',
        'vllm:num_requests_waiting 9{model="a"} 4\n',
        " vllm:num_requests_waiting 4\n",
        "vllm:num_requests_waitings 4\n",
        'vllm:num_requests_waiting{engine="0"} 1e308\nvllm:num_requests_waiting{engine="1"} 1.7e308\n',
    ],
)
def test_not_a_number_of_waiting_requests(text: str) -> None:
    assert read(text).waiting is None


def test_kv_usage_is_a_share() -> None:
    assert read("vllm:kv_cache_usage_perc 1.02\n").kv_usage == 1.0
    assert read("vllm:kv_cache_usage_perc -0.1\n").kv_usage is None
    assert read("vllm:kv_cache_usage_perc 0.3\nvllm:gpu_cache_usage_perc 0.9\n").kv_usage == 0.3


@pytest.mark.parametrize("value", ["None", "", "-5", "0", "1.5", "9" * 30, "٣"])
def test_cache_configuration_that_is_none(value: str) -> None:
    assert read(f'vllm:cache_config_info{{block_size="16",num_gpu_blocks="{value}"}} 1\n').cache is None
    assert read(f'vllm:cache_config_info{{block_size="{value}",num_gpu_blocks="16"}} 1\n').cache is None


def test_a_page_beyond_the_limit_says_nothing() -> None:
    assert read(b"vllm:num_requests_waiting 4\n" + b"#" * MAX_PAGE_BYTES) == NOTHING


def test_a_page_of_something_else_says_nothing() -> None:
    assert all(read(b"go_threads 4\n", name) == NOTHING for name in BUILT_IN)


def test_a_million_series_are_not_all_read() -> None:
    lines = "".join(f'vllm:num_requests_waiting{{engine="{n}"}} 1\n' for n in range(5000))
    assert read(lines).waiting == 1024


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("a:b_c", Selector("a:b_c")),
        (" a { } ", Selector("a")),
        ("a{b=c}", Selector("a", (("b", "c"),))),
        ('a{b="c d", e = f}', Selector("a", (("b", "c d"), ("e", "f")))),
        (r'a{b="\"}\\"}', Selector("a", (("b", '"}\\'),))),
    ],
)
def test_specs(spec: str, expected: Selector) -> None:
    assert selector(spec) == expected


@pytest.mark.parametrize(
    "spec", ["", "{a=b}", "a{b=c", "a b", "1a", "a{b}", "a{b==c}", "a{b=c d=e}", "a{=c}", "a{b=c}}"]
)
def test_malformed_specs(spec: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        selector(spec)


def test_the_engine_is_chosen_by_label() -> None:
    choice = EngineChoice(engine_label_key="kind")
    assert choice.engine(endpoint()).name == "vllm"
    assert choice.engine(endpoint(kind="sglang")).name == "sglang"
    assert choice.engine(endpoint(kind="unheard-of")).name == "vllm"
    legacy = {"inference.networking.k8s.io/engine-type": "triton"}
    assert choice.engine(endpoint(**legacy)).name == "triton"
    assert EngineChoice(default_engine="sglang").engine(endpoint(kind="triton")).name == "sglang"
    assert EngineChoice().engine(endpoint(**{"llm-d.ai/engine-type": "triton", **legacy})).name == "triton"


def test_a_configured_engine_replaces_the_built_in_whole() -> None:
    mine = EngineConfig(
        name="vllm",
        queued_requests_spec="mine_queue{kind=all}",
        custom_metrics=(CustomMetric("depth", "mine_depth"),),
    )
    choice = EngineChoice(engine_configs=(mine,), custom_metrics=(CustomMetric("heat", "gpu_heat{card=1}"),))
    text = (
        'mine_queue{kind="some"} 1\nmine_queue{kind="all"} 2\nvllm:num_requests_running 3\nmine_depth 7\n'
        'gpu_heat{card="0"} 50\ngpu_heat{card="1"} 60\nvllm:prompt_tokens_total 9\n'
    )
    report = PageReader(choice.engine(endpoint())).read(text.encode())
    assert report == Report(waiting=2.0, prompt_tokens_total=9.0, custom={"depth": 7.0, "heat": 60.0})


def test_custom_metrics_may_be_negative_and_may_be_missing() -> None:
    choice = EngineChoice(custom_metrics=(CustomMetric("heat", "heat"), CustomMetric("cold", "cold")))
    assert PageReader(choice.engine(endpoint())).read(b"heat -4\n").custom == {"heat": -4.0}


@pytest.mark.parametrize(
    ("configs", "default", "message"),
    [
        ([EngineConfig(name="a", kv_usage_spec="x{")], "vllm", r"engineConfigs\[0\].*closing brace"),
        ([EngineConfig(name="a"), EngineConfig(name="a")], "vllm", r"engineConfigs\[1\].name 'a' is taken"),
        ([EngineConfig(name="")], "vllm", "empty"),
        ([], "vlm", "'vlm' is none of sglang, triton"),
    ],
)
def test_mistakes_in_the_configuration(configs: list[EngineConfig], default: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineChoice(engine_configs=configs, default_engine=default)


FRAGMENTS = st.sampled_from(
    [
        b"vllm:num_requests_waiting",
        b"vllm:num_requests_waiting_by_reason",
        b"vllm:lora_requests_info",
        b"vllm:cache_config_info",
        b"vllm:kv_cache_usage_perc",
        b'{engine="0"}',
        b'{engine="1"}',
        b'{max_lora="4",running_lora_adapters="a,,b",waiting_lora_adapters="',
        b'block_size="16",num_gpu_blocks="100"',
        b"{",
        b"}",
        b'"',
        b"\\",
        b",",
        b" ",
        b"\t",
        b"\r",
        b"\n",
        b"1.5",
        b"NaN",
        b"-Inf",
        b"\xff",
        b"\x00",
        b"#",
    ]
)


@settings(max_examples=300)
@given(st.lists(st.lists(FRAGMENTS | st.binary(max_size=4), max_size=20).map(b"".join), max_size=4))
def test_any_bytes_read_the_same_with_and_without_a_memory(pages: list[bytes]) -> None:
    reader = PageReader(BUILT_IN["vllm"])
    for one in pages:
        report = reader.read(one)
        assert report == PageReader(BUILT_IN["vllm"]).read(one)
        for number in (report.waiting, report.running, report.kv_usage, report.prompt_tokens_total):
            assert number is None or (math.isfinite(number) and number >= 0)


LABEL_VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.sampled_from('{}", \\\n=#'), max_size=12
)
ROWS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(["a", "b", "le"]), LABEL_VALUES, max_size=3),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    min_size=1,
    max_size=4,
)


def _written(labels: dict[str, str]) -> str:
    escaped = {k: v.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") for k, v in labels.items()}
    return "{" + ",".join(f'{k}="{v}"' for k, v in escaped.items()) + "}" if labels else ""


@settings(max_examples=150)
@given(ROWS, st.integers(0, 2**32))
def test_agrees_with_the_reference_parser(rows: list[tuple[dict[str, str], float]], seed: int) -> None:
    lines = [f"wanted{_written(labels)} {value!r}" for labels, value in rows]
    others = ["# HELP other wanted 3", "# TYPE other gauge", 'other{a="wanted"} 2', "wanted_too 4"]
    before = random.Random(seed).sample(others, 3)
    text = "\n".join([*before, "# TYPE wanted gauge", *lines, "wanted2 5"]) + "\n"
    expected = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "wanted"
    ]
    family = Family(Selector("wanted"), Labels())
    for _ in range(2):
        assert [(dict(one.labels), one.value) for one in family.series(text.encode())] == expected
