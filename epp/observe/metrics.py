"""What happened, counted in plain integers: the one record behind every metric vocabulary.

Recording is on the request path and costs about 0.2 µs an observation, 3 µs for a request in lean mode and 5 µs for one
whose answer is seen; names, labels and text are made by `epp.observe.exposition` when somebody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from epp.drops import Outcome, Reason
from epp.endpoint import Endpoint
from epp.request import TokenCounts

MAX_NAMES = 1000
"""Distinct model names, target model names and fairness ids that get a label of their own."""

MAX_SERIES = 4000
"""Combinations of them. One holds 2 KB, and a client can invent names: without a bound it could fill the memory."""

MAX_PICKS = 10_000
"""Combinations of a target model with an endpoint; past them an endpoint's picks are counted without the model. A row of the page
takes 5 µs to write: a thousand invented names at a thousand endpoints would hold up the loop for 5 s at each scrape."""

MAX_NAME_LENGTH = 256
"""Characters of a name that can still be a label."""

OTHER = "other"
"""The label that stands for everything past those bounds."""

MODEL_SERVER_ERROR = "ModelServerError"

Stage = Literal["body", "parse", "decide", "reply"]
"""Waiting for the request's body; reading it; choosing an endpoint; writing the answer to Envoy."""

STAGES: tuple[Stage, ...] = ("body", "parse", "decide", "reply")

Bounds = list[float]
"""Upper bounds of a histogram's buckets, ascending. Lists, because `bisect` takes 85 ns in one and 150 ns in a tuple."""

# Of the values' own type: comparing a float with an int takes longer than with a float.
DURATION_BOUNDS: Bounds = [
    *(0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0),
    *(30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0),
]
REQUEST_BYTES_BOUNDS: Bounds = [2**n for n in range(6, 31)]
# 32778 where a power of two is meant: the bound that dashboards of the Go picker know.
RESPONSE_BYTES_BOUNDS: Bounds = [1, *(2**n for n in range(3, 15)), 32778, 65536]
INPUT_TOKENS_BOUNDS: Bounds = [*RESPONSE_BYTES_BOUNDS, *(2**n for n in range(17, 21))]
OUTPUT_TOKENS_BOUNDS: Bounds = [1, *(2**n for n in range(3, 14))]
NTPOT_BOUNDS: Bounds = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
TPOT_BOUNDS: Bounds = [
    *(0.0005, 0.00205, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0),
    *(1.5, 2.0, 3.0, 4.5, 6.0, 12.0, 18.0, 24.0, 30.0, 36.0, 48.0, 60.0, 90.0, 120.0, 180.0, 270.0, 360.0),
]
STAGE_BOUNDS: Bounds = [
    *(0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0),
]
HIT_RATIO_BOUNDS: Bounds = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
HIT_BYTES_BOUNDS: Bounds = [0, *(2**n for n in range(4, 17))]

Row = list[float]
"""A histogram: one count for each bound, one for what is above the last, then the sum of all values."""


def new_row(bounds: Bounds) -> Row:
    return [0] * (len(bounds) + 2)


Key = tuple[str, str, int, str]
"""Model as the client named it, model as the server knows it, priority, fairness id."""

Pick = tuple[str, str, str, int]
"""Target model; name, namespace and port of an endpoint."""


class Series:
    """Everything counted for one combination of model, target model, priority and fairness id."""

    __slots__ = (
        "aborted",
        "cached_tokens",
        "duration",
        "errors",
        "estimated_tokens",
        "input_tokens",
        "ntpot",
        "output_tokens",
        "request_bytes",
        "requests",
        "response_bytes",
        "running",
        "tpot",
        "ttft_streamed",
        "ttft_whole",
    )

    def __init__(self) -> None:
        self.requests = 0
        self.running = 0
        self.aborted = 0
        self.estimated_tokens = 0
        self.errors: Counter[str] = Counter()
        self.duration = new_row(DURATION_BOUNDS)
        self.request_bytes = new_row(REQUEST_BYTES_BOUNDS)
        self.response_bytes = new_row(RESPONSE_BYTES_BOUNDS)
        self.input_tokens = new_row(INPUT_TOKENS_BOUNDS)
        self.output_tokens = new_row(OUTPUT_TOKENS_BOUNDS)
        self.cached_tokens = new_row(INPUT_TOKENS_BOUNDS)
        self.ntpot = new_row(NTPOT_BOUNDS)
        self.tpot = new_row(TPOT_BOUNDS)
        self.ttft_streamed = new_row(DURATION_BOUNDS)
        self.ttft_whole = new_row(DURATION_BOUNDS)


class Metrics:
    """The only owner of all counts. A name beyond the bounds above is counted as `OTHER`, from the first time on."""

    def __init__(self) -> None:
        self.series: dict[Key, Series] = {}
        self.stages: dict[Stage, Row] = {stage: new_row(STAGE_BOUNDS) for stage in STAGES}
        self.picks: dict[Pick, list[int]] = {}
        self.prefix_hit_ratio = new_row(HIT_RATIO_BOUNDS)
        self.prefix_hit_bytes = new_row(HIT_BYTES_BOUNDS)
        self.statuses = [0] * 600
        self.plugin_failures: Counter[tuple[str, str]] = Counter()
        self.scrape_failures: Counter[str] = Counter()
        self.degradations: Counter[str] = Counter()
        self.rewrites: Counter[tuple[str, str, str]] = Counter()
        self.transport_limits: Counter[str] = Counter()
        self.refusals: Counter[Reason] = Counter()
        self.quota_refusals: Counter[tuple[str, str]] = Counter()
        self.decision_lines: Counter[str] = Counter()
        self.pools_found: Counter[tuple[str, str]] = Counter()
        self._models: set[str] = set()
        self._targets: set[str] = set()
        self._fairness_ids: set[str] = set()

    def decided(
        self,
        model: str,
        target: str,
        priority: int,
        fairness_id: str,
        body_bytes: int,
        prompt_tokens_estimate: int,
    ) -> None:
        """A request was given an endpoint. It counts as running until `finished`."""
        key = (model, target, priority, fairness_id)
        series = self.series.get(key) or self._admitted(key)
        series.requests += 1
        series.running += 1
        series.estimated_tokens += prompt_tokens_estimate
        # Here and below without `_observe` where every request comes by: a call costs as much as what it does.
        row = series.request_bytes
        row[bisect_left(REQUEST_BYTES_BOUNDS, body_bytes)] += 1
        row[-1] += body_bytes

    def refused(self, model: str, target: str, priority: int, fairness_id: str, outcome: Outcome) -> None:
        """A request was answered by us. It counts as a request too: an error rate is errors over all requests."""
        key = (model, target, priority, fairness_id)
        series = self.series.get(key) or self._admitted(key)
        series.requests += 1
        series.errors[outcome.error_code] += 1
        self.refusals[outcome.reason] += 1

    def evicted(self, model: str, target: str, priority: int, fairness_id: str, outcome: Outcome) -> None:
        """A request that was `decided` was ended by us before its end."""
        key = (model, target, priority, fairness_id)
        series = self.series.get(key) or self._admitted(key)
        series.errors[outcome.error_code] += 1
        self.refusals[outcome.reason] += 1

    def quota_refused(self, measure: str, scope: str) -> None:
        """A limit on `measure` (requests, tokens) that counts by `scope` was reached."""
        self.quota_refusals[measure, scope] += 1

    def first_token(
        self, model: str, target: str, priority: int, fairness_id: str, ttft_s: float, streaming: bool
    ) -> None:
        """The answer's body began `ttft_s` after the request came."""
        key = (model, target, priority, fairness_id)
        series = self.series.get(key) or self._admitted(key)
        _observe(series.ttft_streamed if streaming else series.ttft_whole, DURATION_BOUNDS, ttft_s)

    def finished(
        self,
        model: str,
        target: str,
        priority: int,
        fairness_id: str,
        *,
        status: int,
        aborted: bool,
        duration_s: float,
        response_bytes: int | None,
        usage: TokenCounts | None,
        ttft_s: float | None,
    ) -> None:
        """An exchange that was `decided` is over.

        `status` is the model server's, 0 where none came; 400 and above counts as an error of the model server.
        `duration_s` runs from the request's arrival, also for an aborted exchange: leaving those out would hide the
        waits that clients gave up on. `response_bytes` and `usage` are None where the answer's body was not seen.
        `ttft_s` is None unless the answer was a stream: the time per output token is (duration - ttft) / (tokens - 1).
        """
        key = (model, target, priority, fairness_id)
        series = self.series.get(key) or self._admitted(key)
        series.running -= 1
        row = series.duration
        row[bisect_left(DURATION_BOUNDS, duration_s)] += 1
        row[-1] += duration_s
        self.statuses[status if 100 <= status <= 599 else 0] += 1
        if status >= 400:
            series.errors[MODEL_SERVER_ERROR] += 1
        if aborted:
            series.aborted += 1
        if response_bytes is not None:
            _observe(series.response_bytes, RESPONSE_BYTES_BOUNDS, response_bytes)
        if usage is not None:
            _count_tokens(series, usage, duration_s, ttft_s)

    def picked(self, endpoint: Endpoint, target: str) -> None:
        """A scheduling attempt chose `endpoint` for a request to the model `target`."""
        count = self.picks.get((target, endpoint.name, endpoint.namespace, endpoint.port))
        if count is None:
            name = _admit(target, self._targets) if len(self.picks) < MAX_PICKS else OTHER
            count = self.picks.setdefault((name, endpoint.name, endpoint.namespace, endpoint.port), [0])
        count[0] += 1

    def forget(self, endpoints: Iterable[Endpoint]) -> None:
        """`endpoints` left the pool: their picks are shown no more. Where pods come and go they would add up for ever."""
        gone = {(one.name, one.namespace, one.port) for one in endpoints}
        if gone:
            self.picks = {pick: count for pick, count in self.picks.items() if pick[1:] not in gone}

    def rewritten(self, rewrite: str, model: str, target: str) -> None:
        """The rewrite object called `rewrite` had a request for `model` served as `target`."""
        key = (rewrite, model, target)
        if key not in self.rewrites:
            key = (rewrite, _admit(model, self._models), _admit(target, self._targets))
            if key not in self.rewrites and len(self.rewrites) >= MAX_SERIES:
                key = (rewrite, OTHER, OTHER)
        self.rewrites[key] += 1

    def pool_found(self, pool: str, by: str) -> None:
        """A request that might have been for any pool is for `pool`; `by` is what told so."""
        self.pools_found[pool, by] += 1

    def stage(self, name: Stage, seconds: float) -> None:
        """One stage of a request took so long."""
        _observe(self.stages[name], STAGE_BOUNDS, seconds)

    def staged(self, body_s: float, parse_s: float, decide_s: float) -> None:
        """A request went through its first three stages, and took so long for each."""
        stages, bounds = self.stages, STAGE_BOUNDS
        for row, seconds in ((stages["body"], body_s), (stages["parse"], parse_s), (stages["decide"], decide_s)):
            row[bisect_left(bounds, seconds)] += 1
            row[-1] += seconds

    def prefix_match(self, hit_ratio: float, hit_bytes: int) -> None:
        """How much of a prompt the picked endpoint is believed to have cached: share [0, 1], and bytes."""
        row = self.prefix_hit_ratio
        row[bisect_left(HIT_RATIO_BOUNDS, hit_ratio)] += 1
        row[-1] += hit_ratio
        row = self.prefix_hit_bytes
        row[bisect_left(HIT_BYTES_BOUNDS, hit_bytes)] += 1
        row[-1] += hit_bytes

    def plugin_failed(self, name: str, kind: str) -> None:
        """The plugin called `name` in the configuration was skipped for one pick; `kind` is what it did wrong."""
        self.plugin_failures[name, kind] += 1

    def scrape_failed(self, kind: str) -> None:
        self.scrape_failures[kind] += 1

    def degraded(self, kind: str) -> None:
        """Something was answered by less than the configured policy; `kind` names the fallback."""
        self.degradations[kind] += 1

    def limited(self, limit: str) -> None:
        """A peer of the transport ran into the limit of that name."""
        self.transport_limits[limit] += 1

    def decision_log(self, fate: str, lines: int = 1) -> None:
        """So many lines of the decision log were "written" or "lost"."""
        self.decision_lines[fate] += lines

    def labels(self, named: Key) -> Key:
        """`named` as it is counted: `OTHER` for what is past the bounds. The same for one request at all times."""
        if named in self.series:
            return named
        model, target, priority, fairness_id = named
        # A set that is full stays full, so one request finds the same series at its pick and at its end.
        key = (
            _admit(model, self._models),
            _admit(target, self._targets),
            priority,
            _admit(fairness_id, self._fairness_ids),
        )
        if key not in self.series and len(self.series) >= MAX_SERIES:
            key = (OTHER, OTHER, priority, OTHER)
        return key

    def _admitted(self, named: Key) -> Series:
        return self.series.setdefault(self.labels(named), Series())


def _admit(name: str, admitted: set[str]) -> str:
    if name in admitted:
        return name
    if len(admitted) >= MAX_NAMES or len(name) > MAX_NAME_LENGTH or not name.isprintable():
        return OTHER
    admitted.add(name)
    return name


def _observe(row: Row, bounds: Bounds, value: float) -> None:
    row[bisect_left(bounds, value)] += 1
    row[-1] += value


def _count_tokens(series: Series, usage: TokenCounts, duration_s: float, ttft_s: float | None) -> None:
    if usage.prompt_tokens is not None:
        _observe(series.input_tokens, INPUT_TOKENS_BOUNDS, usage.prompt_tokens)
    if usage.cached_tokens is not None:
        _observe(series.cached_tokens, INPUT_TOKENS_BOUNDS, usage.cached_tokens)
    completion_tokens = usage.completion_tokens
    if completion_tokens is None:
        return
    _observe(series.output_tokens, OUTPUT_TOKENS_BOUNDS, completion_tokens)
    if completion_tokens > 0:
        _observe(series.ntpot, NTPOT_BOUNDS, duration_s / completion_tokens)
    if completion_tokens > 1 and ttft_s is not None:
        _observe(series.tpot, TPOT_BOUNDS, (duration_s - ttft_s) / (completion_tokens - 1))
