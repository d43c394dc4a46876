"""The `/metrics` page as vLLM prints it: its families, its label order, its buckets."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping

from bench.replica.engine import Stats
from bench.replica.profiles import Profile

REAL_PAGE_BYTES = 51_594
"""Size of the page of a vLLM 0.32.0 after a dozen requests."""

LATENCY_BUCKETS_S = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
PER_TOKEN_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
_SHORT_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5)
FIRST_TOKEN_BUCKETS_S = (*_SHORT_S, 10, 20, 40, 80, 160, 640, 2560)
TOKEN_BUCKETS = tuple(mantissa * 10**power for power in range(5) for mantissa in (1, 2, 5))


class Histogram:
    """Counts by bucket. `bounds` rise; what exceeds the last falls under `+Inf`."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Iterable[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, int]]:
        """(`le`, count) for each bucket."""
        rows: list[tuple[str, int]] = []
        seen = 0
        for bound, count in zip((*self._bounds, None), self._counts, strict=True):
            seen += count
            rows.append(("+Inf" if bound is None else f"{float(bound)}", seen))
        return rows


class Observed:
    """What only the server sees: latencies as clients have them, and how requests ended."""

    def __init__(self) -> None:
        self.time_to_first_token_s = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.per_output_token_s = Histogram(PER_TOKEN_BUCKETS_S)
        self.end_to_end_s = Histogram(LATENCY_BUCKETS_S)
        self.prompt_tokens = Histogram(TOKEN_BUCKETS)
        self.generated_tokens = Histogram(TOKEN_BUCKETS)
        self.ended: dict[str, int] = dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)

    def first_token(self, after_s: float) -> None:
        self.time_to_first_token_s.observe(after_s)

    def end(self, reason: str, prompt_tokens: int, generated_tokens: int, first_s: float, whole_s: float) -> None:
        self.ended[reason] += 1
        self.prompt_tokens.observe(prompt_tokens)
        self.generated_tokens.observe(generated_tokens)
        self.end_to_end_s.observe(whole_s)
        if generated_tokens > 1:
            self.per_output_token_s.observe((whole_s - first_s) / (generated_tokens - 1))


class Page:
    """Writes the page of one server. `started_unix_s` is when the process started."""

    # vLLM's own page keeps a series for every combination ever seen; 16 are enough for a reader to have to choose.
    ADAPTER_SERIES = 16

    def __init__(self, profile: Profile, model: str, *, lora: bool, real_size: bool, started_unix_s: float) -> None:
        self._labels = f'engine="0",model_name="{model}"'
        self._profile = profile
        self._lora = lora
        self._real_size = real_size
        self._started_unix_s = started_unix_s
        self._adapter_series: dict[str, float] = {}
        self._padding = b""

    def render(self, stats: Stats, observed: Observed, now_unix_s: float) -> bytes:
        lines: list[str] = []
        self._process(lines)
        self._gauge(lines, "num_requests_running", "Number of requests in model execution batches.", stats.running)
        self._gauge(lines, "num_requests_waiting", "Number of requests waiting to be processed.", stats.waiting)
        self._gauge(lines, "kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", stats.kv_usage)
        self._counters(lines, stats)
        self._counter(lines, "request_success", "Count of requests by outcome.", observed.ended, "finished_reason")
        self._histograms(lines, observed)
        self._cache_config(lines)
        if self._lora:
            self._adapters(lines, stats, now_unix_s)
        page = ("\n".join(lines) + "\n").encode()
        if self._real_size and not self._padding:
            self._padding = _padding(REAL_PAGE_BYTES - len(page))
        return page + self._padding

    def _process(self, lines: list[str]) -> None:
        name = "process_start_time_seconds"
        lines += _heading(name, "Start time of the process since unix epoch in seconds.", "gauge")
        lines.append(f"{name} {self._started_unix_s!r}")

    def _counters(self, lines: list[str], stats: Stats) -> None:
        for name, help, value in (
            ("prefix_cache_queries", "Prefix cache queries, in number of queried tokens.", stats.queried_tokens),
            ("prefix_cache_hits", "Prefix cache hits, in number of cached tokens.", stats.hit_tokens),
            ("num_preemptions", "Cumulative number of preemptions.", stats.preemptions),
            ("prompt_tokens", "Number of prefill tokens processed.", stats.prompt_tokens),
            ("prompt_tokens_cached", "Number of cached prompt tokens.", stats.hit_tokens),
            ("generation_tokens", "Number of generation tokens processed.", stats.generated_tokens),
        ):
            self._counter(lines, name, help, {"": value})

    def _histograms(self, lines: list[str], observed: Observed) -> None:
        for name, histogram in (
            ("request_prompt_tokens", observed.prompt_tokens),
            ("request_generation_tokens", observed.generated_tokens),
            ("time_to_first_token_seconds", observed.time_to_first_token_s),
            ("request_time_per_output_token_seconds", observed.per_output_token_s),
            ("e2e_request_latency_seconds", observed.end_to_end_s),
        ):
            _histogram(lines, f"vllm:{name}", self._labels, histogram)

    def _gauge(self, lines: list[str], name: str, help: str, value: float) -> None:
        lines += _heading(f"vllm:{name}", help, "gauge")
        lines.append(f"vllm:{name}{{{self._labels}}} {float(value)}")

    def _counter(self, lines: list[str], name: str, help: str, values: Mapping[str, float], label: str = "") -> None:
        lines += _heading(f"vllm:{name}_total", help, "counter")
        for key, value in values.items():
            # Labels are in alphabetical order, as prometheus_client writes them.
            labels = self._labels.replace(",", f',{label}="{key}",') if label else self._labels
            lines.append(f"vllm:{name}_total{{{labels}}} {float(value)}")

    def _cache_config(self, lines: list[str]) -> None:
        profile = self._profile
        lines += _heading("vllm:cache_config_info", "Information of the LLMEngine CacheConfig", "gauge")
        lines.append(
            f'vllm:cache_config_info{{block_size="{profile.block_size}",cache_dtype="auto",enable_prefix_caching="True",'
            f'engine="0",gpu_memory_utilization="0.92",kv_cache_size_tokens="{profile.kv_tokens}",num_cpu_blocks="None",'
            f'num_gpu_blocks="{profile.num_blocks}",num_gpu_blocks_override="None",sliding_window="None"}} 1.0'
        )

    def _adapters(self, lines: list[str], stats: Stats, now_unix_s: float) -> None:
        labels = (
            f'max_lora="{self._profile.max_loras}",running_lora_adapters="{",".join(stats.running_adapters)}",'
            f'waiting_lora_adapters="{",".join(stats.waiting_adapters)}"'
        )
        self._adapter_series.pop(labels, None)
        self._adapter_series[labels] = now_unix_s
        while len(self._adapter_series) > self.ADAPTER_SERIES:
            del self._adapter_series[next(iter(self._adapter_series))]
        lines += _heading("vllm:lora_requests_info", "Running stats on lora requests.", "gauge")
        lines += [f"vllm:lora_requests_info{{{labels}}} {at_s!r}" for labels, at_s in self._adapter_series.items()]


def _heading(name: str, help: str, type: str) -> tuple[str, str]:
    return f"# HELP {name} {help}", f"# TYPE {name} {type}"


def _histogram(lines: list[str], name: str, labels: str, histogram: Histogram) -> None:
    lines += _heading(name, f"Histogram of {name.removeprefix('vllm:')}.", "histogram")
    first, last = labels.split(",")
    rows = histogram.cumulative()
    lines += [f'{name}_bucket{{{first},le="{bound}",{last}}} {float(count)}' for bound, count in rows]
    lines.append(f"{name}_count{{{labels}}} {float(rows[-1][1])}")
    lines.append(f"{name}_sum{{{labels}}} {histogram.total!r}")


def _padding(size: int) -> bytes:
    """At least `size` bytes of histograms of the HTTP layer, as vLLM's page has them."""
    lines: list[str] = []
    blank = Histogram(LATENCY_BUCKETS_S)
    number = 0
    while sum(map(len, lines)) + len(lines) < size:
        _histogram(lines, f"http_request_duration_{number}_seconds", 'handler="/v1/completions",method="POST"', blank)
        number += 1
    return ("\n".join(lines) + "\n").encode()
