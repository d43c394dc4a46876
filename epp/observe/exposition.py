"""The record under every name that dashboards, alerts and autoscalers know it by, made when somebody asks.

`inference_model_*` is what the project's alerts and the oldest dashboards read, `inference_objective_*`,
`inference_pool_*` and `inference_extension_*` what later ones read, `llm_d_epp_*` the newest, with the tenant and the
priority; `epp_*` is what none of them has a word for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version

import msgspec
import numpy as np

from epp.drops import OUTCOMES
from epp.endpoint import Endpoint, Endpoints, FloatArray
from epp.observe import metrics as record
from epp.observe.metrics import Bounds, Metrics, Row, Series
from epp.observe.page import MetricsPage
from epp.observe.text import Family, Histogram, Labels, Values, added, merged, summed

MODEL = ("model_name", "target_model_name")
FLOW = (*MODEL, "fairness_id", "priority")

SCHEDULER_BOUNDS: Bounds = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]

PREFIX_PLUGIN = ("approx-prefix-cache-producer", "approx-prefix-cache-producer")
INFLIGHT_PLUGIN = "inflight-load-producer"
METRICS_SOURCE = "metrics-data-source"


class Gauge(msgspec.Struct, frozen=True):
    """A number that somebody else owns, read when asked. `name` is the whole metric name."""

    name: str
    help: str
    read: Callable[[], float]


class Build(msgspec.Struct, frozen=True):
    """What `info` says of this program."""

    commit: str = "unknown"
    build_ref: str = msgspec.field(default_factory=lambda: version("epp"))


class Names(msgspec.Struct, frozen=True):
    """One histogram of `Series` in each vocabulary, "" where a vocabulary has none.

    `bounds` are those recorded; `llm_d_bounds` are those of them that this vocabulary shows (None: all).
    """

    field: str
    bounds: Bounds
    help: str
    llm_d: str
    objective: str
    model: str = ""
    llm_d_bounds: Bounds | None = None


HISTOGRAMS = (
    Names(
        "duration",
        record.DURATION_BOUNDS,
        "Time from a request's arrival to its answer's end, in seconds.",
        "request_duration_seconds",
        "request_duration_seconds",
        "request_duration_seconds",
    ),
    Names(
        "request_bytes",
        record.REQUEST_BYTES_BOUNDS,
        "Size of request bodies, in bytes.",
        "request_size_bytes",
        "request_sizes",
        "request_sizes",
    ),
    Names(
        "response_bytes",
        record.RESPONSE_BYTES_BOUNDS,
        "Size of answer bodies, in bytes, where they are seen.",
        "response_size_bytes",
        "response_sizes",
        "response_sizes",
    ),
    Names(
        "input_tokens",
        record.INPUT_TOKENS_BOUNDS,
        "Prompt tokens as the model server counted them, where its answer is seen.",
        "request_input_tokens",
        "input_tokens",
        "input_tokens",
    ),
    Names(
        "output_tokens",
        record.OUTPUT_TOKENS_BOUNDS,
        "Generated tokens as the model server counted them, where its answer is seen.",
        "request_output_tokens",
        "output_tokens",
        "output_tokens",
    ),
    Names(
        "cached_tokens",
        record.INPUT_TOKENS_BOUNDS,
        "Prompt tokens that the model server found in its prefix cache, where its answer is seen.",
        "request_cached_tokens",
        "prompt_cached_tokens",
    ),
    Names(
        "ntpot",
        record.NTPOT_BOUNDS,
        "Duration divided by generated tokens, in seconds.",
        "request_ntpot_seconds",
        "normalized_time_per_output_token_seconds",
        "normalized_time_per_output_token_seconds",
    ),
    Names(
        "tpot",
        record.TPOT_BOUNDS,
        "(Duration - time to first token) / (generated tokens - 1) of streamed answers, in seconds.",
        "request_streaming_tpot_seconds",
        "request_tpot_seconds",
        llm_d_bounds=[*record.TPOT_BOUNDS[: record.TPOT_BOUNDS.index(1.0) + 1], 2.0],
    ),
)

TTFT_HELP = "Time from a request's arrival to the first byte of its answer's body, in seconds, where it is seen."
TTFT_LLM_D_BOUNDS: Bounds = record.DURATION_BOUNDS[: record.DURATION_BOUNDS.index(120.0) + 1]


class Exposition:
    """Reads the record and the pools when asked. `pools` gives each pool's endpoints by its name; `clock` is the loop's, in seconds.

    Pool averages are over the endpoints that reported within `stale_after_s`, and absent where none did: an autoscaler
    takes a missing value for unknown and 0 for idle. `more` are asked for further families with every page.
    """

    def __init__(
        self,
        metrics: Metrics,
        pools: Callable[[], Mapping[str, Endpoints]],
        clock: Callable[[], float],
        *,
        stale_after_s: float = 2.0,
        prefix_index_size: Callable[[], float] | None = None,
        gauges: Sequence[Gauge] = (),
        more: Sequence[Callable[[], Iterable[Family]]] = (),
        build: Build | None = None,
    ) -> None:
        self._more = more
        self._metrics = metrics
        self._pools = pools
        self._clock = clock
        self._stale_after_s = stale_after_s
        self._prefix_index_size = prefix_index_size
        self._gauges = gauges
        self._build = build if build is not None else Build()
        self._page = MetricsPage(self.families)

    def pieces(self, accept: str) -> tuple[str, Iterator[bytes]]:
        """As `MetricsPage.pieces`."""
        return self._page.pieces(accept)

    def render(self, accept: str = "") -> tuple[str, bytes]:
        """The whole page at once: content type and text."""
        content_type, pieces = self.pieces(accept)
        return content_type, b"".join(pieces)

    def families(self) -> Iterator[Family]:
        """Everything but the process's own metrics."""
        yield from self._requests()
        yield from self._histograms()
        yield from self._ttft()
        yield from self._scheduler()
        yield from self._prefix()
        yield from self._pool_gauges()
        yield from self._in_flight()
        yield from self._own()
        yield from merged(family for families in self._more for family in families())
        build = [((self._build.commit, self._build.build_ref), 1)]
        for name in ("llm_d_epp_info", "inference_extension_info"):
            yield Values("gauge", name, "This build.", ("commit", "build_ref"), build)

    # --- requests --------------------------------------------------------------------------------------------------

    def _requests(self) -> Iterator[Family]:
        series = self._metrics.series
        text = "Requests, answered by a model server or refused."
        by_flow: list[tuple[Labels, float]] = [(_flow(k), s.requests) for k, s in series.items()]
        yield Values("counter", "llm_d_epp_request_total", text, FLOW, by_flow)
        by_priority = summed(((m, t, str(p)), s.requests) for (m, t, p, _), s in series.items())
        yield Values("counter", "inference_objective_request_total", text, (*MODEL, "priority"), by_priority)
        by_model = summed((k[:2], s.requests) for k, s in series.items())
        yield Values("counter", "inference_model_request_total", text, MODEL, by_model)

        text = "Requests that were refused, or that the model server answered with a status of 400 or above."
        errors = [(k, code, n) for k, s in series.items() for code, n in s.errors.items()]
        by_flow = [((*_flow(k), code), n) for k, code, n in errors]
        yield Values("counter", "llm_d_epp_request_error_total", text, (*FLOW, "error_code"), by_flow)
        by_model = summed(((*k[:2], code), n) for k, code, n in errors)
        for name in ("inference_objective_request_error_total", "inference_model_request_error_total"):
            yield Values("counter", name, text, (*MODEL, "error_code"), by_model)

        text = "Requests that were given an endpoint and have not ended."
        by_flow = [(_flow(k), s.running) for k, s in series.items()]
        yield Values("gauge", "llm_d_epp_request_running", text, FLOW, by_flow)
        by_model = summed((k[:1], s.running) for k, s in series.items())
        for name in ("inference_objective_running_requests", "inference_model_running_requests"):
            yield Values("gauge", name, text, MODEL[:1], by_model)

    def _histograms(self) -> Iterator[Family]:
        for names in HISTOGRAMS:
            rows = [(key, _row(series, names.field)) for key, series in self._metrics.series.items()]
            shown = names.llm_d_bounds if names.llm_d_bounds is not None else names.bounds
            by_flow = [(_flow(key), row) for key, row in rows]
            yield Histogram(f"llm_d_epp_{names.llm_d}", names.help, FLOW, by_flow, names.bounds, shown)
            by_model = added((key[:2], row) for key, row in rows)
            for prefix, name in (("inference_objective_", names.objective), ("inference_model_", names.model)):
                if name:
                    yield Histogram(prefix + name, names.help, MODEL, by_model, names.bounds, names.bounds)

    def _ttft(self) -> Iterator[Family]:
        rows = [
            (key, streaming, row)
            for key, s in self._metrics.series.items()
            for streaming, row in (("true", s.ttft_streamed), ("false", s.ttft_whole))
        ]
        bounds, name = record.DURATION_BOUNDS, "request_ttft_seconds"
        by_flow = [((*_flow(key), streaming), row) for key, streaming, row in rows]
        yield Histogram(f"llm_d_epp_{name}", TTFT_HELP, (*FLOW, "streaming"), by_flow, bounds, TTFT_LLM_D_BOUNDS)
        by_model = added((key[:2], row) for key, _, row in rows)
        yield Histogram(f"inference_objective_{name}", TTFT_HELP, MODEL, by_model, bounds, bounds)

    # --- scheduling ------------------------------------------------------------------------------------------------

    def _scheduler(self) -> Iterator[Family]:
        decide: list[tuple[Labels, Row]] = [((), self._metrics.stages["decide"])]
        text = "Time to choose an endpoint, in seconds."
        for prefix in ("llm_d_epp_", "inference_extension_"):
            name = f"{prefix}scheduler_e2e_duration_seconds"
            yield Histogram(name, text, (), decide, record.STAGE_BOUNDS, SCHEDULER_BOUNDS)
        picks = [(("success", *key[:3], str(key[3])), count[0]) for key, count in self._metrics.picks.items()]
        for prefix, endpoint in (("llm_d_epp_", "endpoint_name"), ("inference_extension_", "pod_name")):
            labels = ("status", "target_model_name", endpoint, "namespace", "port")
            yield Values("counter", f"{prefix}scheduler_attempts_total", "Picks, by endpoint.", labels, picks)

        rewrites = list(self._metrics.rewrites.items())
        for prefix in ("llm_d_epp_", "inference_extension_"):
            name, text = f"{prefix}model_rewrite_decisions_total", "Models chosen by an InferenceModelRewrite."
            yield Values("counter", name, text, ("model_rewrite_name", "model_name", "target_model"), rewrites)

    def _prefix(self) -> Iterator[Family]:
        ratio, length = self._metrics.prefix_hit_ratio, self._metrics.prefix_hit_bytes
        plugin: tuple[Labels, Labels] = ("plugin_name", "plugin_type"), PREFIX_PLUGIN
        nothing: tuple[Labels, Labels] = (), ()
        for prefix, (labels, values) in (("llm_d_epp_", plugin), ("inference_extension_", nothing)):
            if self._prefix_index_size is not None:
                size = [(values, self._prefix_index_size())]
                yield Values("gauge", f"{prefix}prefix_indexer_size", "Prefix blocks known.", labels, size)
            for what, row, bounds, text in (
                ("hit_ratio", ratio, record.HIT_RATIO_BOUNDS, "Share of a prompt"),
                ("hit_bytes", length, record.HIT_BYTES_BOUNDS, "Bytes of a prompt"),
            ):
                text = f"{text} that the picked endpoint is believed to have cached."
                yield Histogram(f"{prefix}prefix_indexer_{what}", text, labels, [(values, row)], bounds, bounds)

    # --- pools -----------------------------------------------------------------------------------------------------

    def _pool_gauges(self) -> Iterator[Family]:
        fresh_since_s = self._clock() - self._stale_after_s
        pools = {name: _Pool(endpoints, fresh_since_s) for name, endpoints in self._pools().items()}
        for what, column, text in (
            ("kv_cache_utilization", "kv_usage", "KV memory in use, [0, 1]"),
            ("queue_size", "waiting", "requests waiting for the engine"),
            ("running_requests", "running", "requests in the engine's batch"),
        ):
            columns = {name: pool.fresh(column) for name, pool in pools.items()}
            means = [((name,), float(values.mean())) for name, values in columns.items() if len(values)]
            mean_text = f"Average over the pool's endpoints: {text}."
            for prefix in ("inference_pool_", "llm_d_epp_"):
                yield Values("gauge", f"{prefix}average_{what}", mean_text, ("name",), means)
            deviations = [((name,), _sample_deviation(values)) for name, values in columns.items() if len(values)]
            deviation_text = f"Sample standard deviation over the pool's endpoints: {text}."
            yield Values("gauge", f"llm_d_epp_std_dev_{what}", deviation_text, ("name",), deviations)

        ready = [((name,), pool.ready) for name, pool in pools.items()]
        for name in ("inference_pool_ready_pods", "llm_d_epp_ready_endpoints"):
            yield Values("gauge", name, "Endpoints that reported lately.", ("name",), ready)
        members = [((name,), len(endpoints)) for name, endpoints in self._pools().items()]
        yield Values("gauge", "epp_pool_endpoints", "Endpoints in the pool.", ("name",), members)
        unreachable = [((name,), pool.unreachable) for name, pool in pools.items()]
        text = "Endpoints that take no connections."
        yield Values("gauge", "epp_pool_unreachable_endpoints", text, ("name",), unreachable)

        queues = [((name, endpoint.name), size) for name, pool in pools.items() for endpoint, size in pool.queues()]
        text = "Requests waiting for the engine, as last reported."
        for name, label in (
            ("inference_pool_per_pod_queue_size", "model_server_pod"),
            ("llm_d_epp_per_endpoint_queue_size", "model_server_endpoint"),
        ):
            yield Values("gauge", name, text, ("name", label), queues)

    def _in_flight(self) -> Iterator[Family]:
        # One value an endpoint: the ledger does not split by tenant, and an empty label is an absent one.
        labels = ("endpoint_name", "namespace", "producer_name", "fairness_id", "priority")
        for what, column, text in (
            ("requests", "in_flight", "Requests sent to the endpoint that have not ended."),
            ("tokens", "in_flight_tokens", "Uncached prompt tokens sent to the endpoint that wait for prefill."),
        ):
            # An endpoint may be a member of two pools, and a series must come once.
            values = summed(
                ((endpoint.name, endpoint.namespace, INFLIGHT_PLUGIN, "", ""), value)
                for endpoints in self._pools().values()
                for endpoint, value in zip(endpoints.members, _column(endpoints, column).tolist(), strict=True)
            )
            yield Values("gauge", f"llm_d_epp_inflight_{what}", text, labels, values)

    # --- ourselves -------------------------------------------------------------------------------------------------

    def _own(self) -> Iterator[Family]:
        metrics = self._metrics
        stages = [((stage,), row) for stage, row in metrics.stages.items()]
        text = "Own time by stage: waiting for the body, parsing, deciding, replying; in seconds."
        bounds = record.STAGE_BOUNDS
        yield Histogram("epp_stage_duration_seconds", text, ("stage",), stages, bounds, bounds)

        codes = [((str(code),), n) for code, n in enumerate(metrics.statuses) if n]
        text = "Answers by the model servers' status; 0 is none."
        yield Values("counter", "epp_responses_total", text, ("code",), codes)
        aborted = summed((k[:2], s.aborted) for k, s in metrics.series.items())
        text = "Exchanges cut off before the answer's end."
        yield Values("counter", "epp_requests_aborted_total", text, MODEL, aborted)
        estimated = summed((k[:2], s.estimated_tokens) for k, s in metrics.series.items())
        text = "Prompt tokens as estimated at the pick, to compare with the sum of input tokens."
        yield Values("counter", "epp_estimated_input_tokens_total", text, MODEL, estimated)
        yield from self._faults()
        for gauge in self._gauges:
            yield Values("gauge", gauge.name, gauge.help, (), [((), gauge.read())])

    def _faults(self) -> Iterator[Family]:
        metrics = self._metrics
        failures = list(metrics.plugin_failures.items())
        text = "Picks that went on without a plugin, by what it did wrong."
        yield Values("counter", "epp_plugin_failures_total", text, ("plugin_name", "kind"), failures)
        text = "Scrapes of model servers that failed."
        scrapes = [((kind,), n) for kind, n in metrics.scrape_failures.items()]
        yield Values("counter", "epp_scrape_failures_total", text, ("kind",), scrapes)
        polls = [((METRICS_SOURCE,), metrics.scrape_failures.total())]
        for prefix in ("llm_d_epp_", "llm_d_inference_scheduler_"):
            yield Values("counter", f"{prefix}datalayer_poll_errors_total", text, ("source_type",), polls)
        refusals = [((reason.value, str(OUTCOMES[reason].status)), n) for reason, n in metrics.refusals.items()]
        text = "Requests answered by the picker itself, by why; 499 is a client that left and was sent nothing."
        yield Values("counter", "epp_refusals_total", text, ("reason", "status"), refusals)
        text = "Requests refused by a quota, by what ran out and whose use that limit counts."
        quotas = list(metrics.quota_refusals.items())
        yield Values("counter", "epp_quota_refusals_total", text, ("measure", "scope"), quotas)
        degradations = [((kind,), n) for kind, n in metrics.degradations.items()]
        text = "Answers by less than the configured policy, by what stood in."
        yield Values("counter", "epp_degraded_total", text, ("kind",), degradations)
        lines = [((fate,), n) for fate, n in metrics.decision_lines.items()]
        text = "Lines of the decision log: written, or lost because writing failed or could not keep up."
        yield Values("counter", "epp_decision_log_lines_total", text, ("fate",), lines)
        found = list(metrics.pools_found.items())
        text = "Requests that might have been for any pool, by the pool and by what told that it is meant."
        yield Values("counter", "epp_pool_requests_total", text, ("name", "by"), found)
        limits = [((limit,), n) for limit, n in metrics.transport_limits.items()]
        text = "Times that a peer on a gRPC port ran into a limit, by the limit's name."
        yield Values("counter", "epp_transport_limits_total", text, ("limit",), limits)


class _Pool:
    """One pool's members at one moment, by the age of their reports."""

    def __init__(self, endpoints: Endpoints, fresh_since_s: float) -> None:
        self._endpoints = endpoints
        self._is_fresh = _column(endpoints, "updated_s") >= fresh_since_s

    @property
    def ready(self) -> int:
        return int(self._is_fresh.sum())

    @property
    def unreachable(self) -> int:
        return int(self._endpoints.unreachable[self._endpoints.slots].sum())

    def fresh(self, column: str) -> FloatArray:
        """The known values of `column` at endpoints with a fresh report."""
        values = _column(self._endpoints, column)[self._is_fresh]
        return values[~np.isnan(values)]

    def queues(self) -> Iterator[tuple[Endpoint, float]]:
        waiting = _column(self._endpoints, "waiting")
        known = self._is_fresh & ~np.isnan(waiting)
        for endpoint, size, is_known in zip(self._endpoints.members, waiting.tolist(), known.tolist(), strict=True):
            if is_known:
                yield endpoint, size


def _column(endpoints: Endpoints, name: str) -> FloatArray:
    """One value per member, in the order of `members`."""
    column: FloatArray = getattr(endpoints, name)
    return column[endpoints.slots]


def _row(series: Series, field: str) -> Row:
    row: Row = getattr(series, field)
    return row


def _flow(key: record.Key) -> tuple[str, str, str, str]:
    model, target, priority, fairness_id = key
    return model, target, fairness_id, str(priority)


def _sample_deviation(values: FloatArray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0
