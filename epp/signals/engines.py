"""What each inference engine calls the things we want to know, and reading them off its metrics page.

Names: the model server protocol of Gateway API Inference Extension and, for the counters, each engine's own page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from epp.endpoint import Adapters, CacheConfig, Endpoint, Report
from epp.signals.page import Family, Labels, Selector, Series, by_rank, latest, selector

ENGINE_LABEL = "llm-d.ai/engine-type"
LEGACY_ENGINE_LABEL = "inference.networking.k8s.io/engine-type"

MAX_PAGE_BYTES = 8 << 20
NOTHING = Report()
"""What a page without any known family reads as."""

_MAX_BLOCKS = 1 << 40
_COUNTERS = frozenset({"nv_inference_exec_count"})
"""Of what stands for requests running, what counts all since the server's start: Triton has nothing better."""
_FROZEN = frozenset({"sglang:num_running_reqs"})
"""And what stays as it was for up to 30 s once nothing runs: idle, SGLang sets its gauges no oftener than that."""


class CustomMetric(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """One entry of `customMetrics`: the scalar that `metric_spec` selects becomes the attribute `attribute_key`."""

    attribute_key: str
    metric_spec: str


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """One entry of `engineConfigs`. An empty spec turns that signal off.

    Cache configuration comes either from labels (`cache_info_spec` with the two label names) or from two gauges.
    """

    name: str
    queued_requests_spec: str = ""
    running_requests_spec: str = ""
    kv_usage_spec: str = ""
    lora_spec: str = ""
    cache_info_spec: str = ""
    cache_block_size_label_name: str = "block_size"
    cache_num_blocks_label_name: str = "num_gpu_blocks"
    cache_block_size_spec: str = ""
    cache_num_blocks_spec: str = ""
    custom_metrics: Sequence[CustomMetric] = ()


class Engine(msgspec.Struct, frozen=True, kw_only=True):
    """The families of one engine. Where several are named, the first that the page has counts.

    `counts_late`: `prompt_tokens` has a prompt when its answer ends, not when its first token is there.
    """

    name: str
    counts_late: bool = False
    waiting: tuple[Selector, ...] = ()
    running: tuple[Selector, ...] = ()
    kv_usage: tuple[Selector, ...] = ()
    lora: tuple[Selector, ...] = ()
    cache_info: tuple[Selector, ...] = ()
    block_size_label: str = "block_size"
    num_blocks_label: str = "num_gpu_blocks"
    block_size: tuple[Selector, ...] = ()
    num_blocks: tuple[Selector, ...] = ()
    prompt_tokens: tuple[Selector, ...] = ()
    cached_tokens: tuple[Selector, ...] = ()
    custom: tuple[tuple[str, Selector], ...] = ()


def _specs(*specs: str) -> tuple[Selector, ...]:
    return tuple(selector(spec) for spec in specs if spec)


BUILT_IN: Mapping[str, Engine] = {
    "vllm": Engine(
        name="vllm",
        waiting=_specs("vllm:num_requests_waiting"),
        running=_specs("vllm:num_requests_running"),
        # The second is the name before vLLM 0.10.2.
        kv_usage=_specs("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        lora=_specs("vllm:lora_requests_info"),
        cache_info=_specs("vllm:cache_config_info"),
        prompt_tokens=_specs("vllm:prompt_tokens_total"),
        cached_tokens=_specs("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    ),
    "sglang": Engine(
        name="sglang",
        counts_late=True,
        waiting=_specs("sglang:num_queue_reqs"),
        running=_specs("sglang:num_running_reqs"),
        kv_usage=_specs("sglang:token_usage"),
        cache_info=_specs("sglang:cache_config_info"),
        block_size_label="page_size",
        num_blocks_label="num_pages",
        prompt_tokens=_specs("sglang:prompt_tokens_total"),
        cached_tokens=_specs("sglang:cached_tokens_total"),
    ),
    "trtllm-serve": Engine(
        name="trtllm-serve",
        waiting=_specs("trtllm_num_requests_waiting"),
        running=_specs("trtllm_num_requests_running"),
        kv_usage=_specs("trtllm_kv_cache_utilization"),
        block_size=_specs("trtllm_kv_cache_tokens_per_block"),
        num_blocks=_specs("trtllm_kv_cache_max_blocks"),
    ),
    "triton-tensorrt-llm": Engine(
        name="triton-tensorrt-llm",
        waiting=_specs("nv_trt_llm_request_metrics{request_type=waiting}"),
        running=_specs("nv_trt_llm_request_metrics{request_type=scheduled}"),
        kv_usage=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}"),
        block_size=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=tokens_per}"),
        num_blocks=_specs("nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=max}"),
    ),
    "triton": Engine(
        name="triton",
        waiting=_specs("nv_inference_pending_request_count"),
        running=_specs("nv_inference_exec_count"),
    ),
}


def engine(config: EngineConfig) -> Engine:
    """The engine that a configuration entry describes: it replaces a built-in one of the same name whole.

    Only the token counters, which an entry cannot name, stay those of the built-in. Raises ValueError for a malformed spec.
    """
    built_in = BUILT_IN.get(config.name)
    return Engine(
        name=config.name,
        waiting=_specs(config.queued_requests_spec),
        running=_specs(config.running_requests_spec),
        kv_usage=_specs(config.kv_usage_spec),
        lora=_specs(config.lora_spec),
        cache_info=_specs(config.cache_info_spec),
        block_size_label=config.cache_block_size_label_name,
        num_blocks_label=config.cache_num_blocks_label_name,
        block_size=_specs(config.cache_block_size_spec),
        num_blocks=_specs(config.cache_num_blocks_spec),
        counts_late=built_in.counts_late if built_in else False,
        prompt_tokens=built_in.prompt_tokens if built_in else (),
        cached_tokens=built_in.cached_tokens if built_in else (),
        custom=_custom(config.custom_metrics),
    )


def _custom(metrics: Sequence[CustomMetric]) -> tuple[tuple[str, Selector], ...]:
    return tuple((metric.attribute_key, selector(metric.metric_spec)) for metric in metrics)


class PageReader:
    """Reads the pages of one server; it remembers from page to page what seldom changes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        labels = Labels()
        self._adapter_labels: Mapping[str, str] | None = None
        self._last_adapters: Adapters | None = None
        self._cache_labels: Mapping[str, str] | None = None
        self._last_cache: CacheConfig | None = None

        def families(selectors: tuple[Selector, ...]) -> tuple[Family, ...]:
            return tuple(Family(one, labels) for one in selectors)

        self._waiting = families(engine.waiting)
        self._running = families(engine.running)
        self._running_is_total = any(one.name in _COUNTERS for one in engine.running)
        self._idles_late = any(one.name in _FROZEN for one in engine.running)
        self._kv_usage = families(engine.kv_usage)
        self._lora = families(engine.lora)
        self._cache_info = families(engine.cache_info)
        self._block_size = families(engine.block_size)
        self._num_blocks = families(engine.num_blocks)
        self._prompt_tokens = families(engine.prompt_tokens)
        self._cached_tokens = families(engine.cached_tokens)
        self._custom = tuple((key, Family(one, labels)) for key, one in engine.custom)

    def read(self, page: bytes) -> Report:
        """What the page says; None for what it lacks or says in a way that makes no sense. Never raises.

        Queues and counters of data-parallel ranks are summed, KV usage is their mean. Of several series of one rank
        the latest by timestamp counts, else the first. A page beyond `MAX_PAGE_BYTES` reads as `NOTHING`.
        """
        if len(page) > MAX_PAGE_BYTES:
            return NOTHING
        prompt_tokens = _total(_series(self._prompt_tokens, page))
        running = _total(_series(self._running, page))
        return Report(
            waiting=_total(_series(self._waiting, page)),
            running=running,
            running_is_total=self._running_is_total and running is not None,
            idles_late=self._idles_late and running is not None,
            kv_usage=_mean_share(_series(self._kv_usage, page)),
            adapters=self._adapters(page),
            cache=self._cache(page),
            prompt_tokens_total=prompt_tokens,
            cached_tokens_total=_total(_series(self._cached_tokens, page)),
            counts_late=self.engine.counts_late and prompt_tokens is not None,
            custom=self._customs(page) if self._custom else {},
        )

    def _adapters(self, page: bytes) -> Adapters | None:
        series = _series(self._lora, page)
        if not series:
            return None
        if len(series) > 1:
            return _adapters(series)
        labels = series[0].labels
        if labels is not self._adapter_labels:
            self._adapter_labels, self._last_adapters = labels, _adapters(series)
        return self._last_adapters

    def _cache(self, page: bytes) -> CacheConfig | None:
        info = _series(self._cache_info, page)
        if not info:
            return self._cache_of_gauges(page) if self._block_size else None
        if len(info) > 1:
            return self._cache_of_labels(info)
        labels = info[0].labels
        if labels is not self._cache_labels:
            self._cache_labels, self._last_cache = labels, self._cache_of_labels(info)
        return self._last_cache

    def _cache_of_labels(self, series: list[Series]) -> CacheConfig | None:
        ranks = [latest(rank).labels for rank in by_rank(series)]
        block_size = _whole(ranks[0].get(self.engine.block_size_label, ""))
        blocks = [_whole(labels.get(self.engine.num_blocks_label, "")) for labels in ranks]
        if block_size is None or None in blocks:
            return None
        return _cache_config(block_size, sum(count for count in blocks if count is not None))

    def _cache_of_gauges(self, page: bytes) -> CacheConfig | None:
        block_size = _series(self._block_size, page)
        num_blocks = _total(_series(self._num_blocks, page))
        if not block_size or num_blocks is None:
            return None
        return _cache_config(int(latest(block_size).value), int(num_blocks))

    def _customs(self, page: bytes) -> dict[str, float]:
        found = ((key, family.series(page)) for key, family in self._custom)
        return {key: latest(series).value for key, series in found if series}


def _series(families: tuple[Family, ...], page: bytes) -> list[Series]:
    for family in families:
        series = family.series(page)
        if series:
            return series
    return []


def _values(series: list[Series]) -> list[float]:
    if len(series) == 1:
        return [series[0].value]
    return [latest(rank).value for rank in by_rank(series)]


def _total(series: list[Series]) -> float | None:
    if not series:
        return None
    total = series[0].value if len(series) == 1 else sum(_values(series))
    return total if 0 <= total < float("inf") else None


def _mean_share(series: list[Series]) -> float | None:
    if not series:
        return None
    values = _values(series)
    mean = sum(values) / len(values)
    return min(mean, 1.0) if mean >= 0 else None


def _adapters(series: list[Series]) -> Adapters:
    """A series is never withdrawn when the set of adapters changes; its value is the time it was last true.

    Source: vLLM's `lora_requests_info`. So in each rank the largest value counts, and ranks add up.
    """
    now = [max(rank, key=lambda one: one.value).labels for rank in by_rank(series)]
    return Adapters(
        running=frozenset(name for labels in now for name in _names(labels.get("running_lora_adapters", ""))),
        waiting=frozenset(name for labels in now for name in _names(labels.get("waiting_lora_adapters", ""))),
        max_lora=max(_whole(labels.get("max_lora", "")) or 0 for labels in now),
    )


def _names(listed: str) -> list[str]:
    return [name for name in map(str.strip, listed.split(",")) if name]


def _cache_config(block_size: int, num_blocks: int) -> CacheConfig | None:
    possible = 0 < block_size <= _MAX_BLOCKS and 0 < num_blocks <= _MAX_BLOCKS
    return CacheConfig(block_size, num_blocks) if possible else None


def _whole(text: str) -> int | None:
    # Label values such as "None" occur while vLLM still starts; the length limit is that of int() on hostile digits.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


class EngineChoice:
    """The `core-metrics-extractor`: which engine an endpoint runs, by its label.

    Parameters are those of the plugin. `custom_metrics` are looked for on every engine's page. Raises ValueError for a
    malformed spec, an engine named twice, and a `default_engine` that is neither built in nor configured.
    """

    def __init__(
        self,
        *,
        default_engine: str = "vllm",
        engine_label_key: str = ENGINE_LABEL,
        engine_configs: Sequence[EngineConfig] = (),
        custom_metrics: Sequence[CustomMetric] = (),
    ) -> None:
        engines = dict(BUILT_IN)
        engines.update(_configured(engine_configs))
        if default_engine not in engines:
            raise ValueError(f"defaultEngine {default_engine!r} is none of {', '.join(sorted(engines))}")
        everywhere = _custom(custom_metrics)
        self._engines = {
            name: msgspec.structs.replace(one, custom=one.custom + everywhere) for name, one in engines.items()
        }
        self._default = self._engines[default_engine]
        self._label = engine_label_key

    def engine(self, endpoint: Endpoint) -> Engine:
        """By the endpoint's label; the default engine where it has none or one that is not known."""
        labels = endpoint.labels
        name = labels.get(self._label) or labels.get(LEGACY_ENGINE_LABEL) or ""
        return self._engines.get(name, self._default)


def _configured(configs: Sequence[EngineConfig]) -> dict[str, Engine]:
    engines: dict[str, Engine] = {}
    for number, config in enumerate(configs):
        if not config.name or config.name in engines:
            raise ValueError(f"engineConfigs[{number}].name {config.name!r} is {'taken' if config.name else 'empty'}")
        try:
            engines[config.name] = engine(config)
        except ValueError as error:
            raise ValueError(f"engineConfigs[{number}]: {error}") from None
    return engines
