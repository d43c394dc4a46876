"""What a body-based router counts, and its page of metrics."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from epp.drops import OUTCOMES
from epp.observe.exposition import SCHEDULER_BOUNDS, Build
from epp.observe.metrics import Metrics, Row, new_row
from epp.observe.text import Family, Histogram, Labels, Values


class Record:
    """`metrics` counts what every process does that speaks ext_proc: limits, refusals, faults."""

    def __init__(self, metrics: Metrics, build: Build | None = None) -> None:
        self._metrics = metrics
        self._build = build if build is not None else Build()
        self.successes = 0
        self.missing: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.unfit: Counter[str] = Counter()
        self.unread = 0
        """Bodies that could not be read as they stand, compressed ones for one: passed on."""
        self._seconds: dict[tuple[str, str], Row] = {}

    def took(self, step_type: str, name: str, seconds: float) -> None:
        row = self._seconds.setdefault((step_type, name), new_row(SCHEDULER_BOUNDS))
        row[bisect_left(SCHEDULER_BOUNDS, seconds)] += 1
        row[-1] += seconds

    def families(self) -> Iterator[Family]:
        yield _total("bbr_success_total", "Requests that got the headers of their body.", self.successes)
        not_there = self.missing["model"] + self.empty["model"]
        yield _total("bbr_model_not_in_body_total", "Requests whose body names no model.", not_there)
        text = (
            "Requests whose model could not be read: no text, no text for a header, or in a body that cannot be read."
        )
        yield _total("bbr_model_not_parsed_total", text, self.unfit["model"] + self.unread)
        for name, text, counts in (
            ("not_found", "Bodies without a field that was asked for.", self.missing),
            ("empty", "Bodies with nothing in a field that was asked for.", self.empty),
        ):
            values: list[tuple[Labels, float]] = [((field,), n) for field, n in counts.items()]
            yield Values("counter", f"bbr_body_field_{name}_total", text, ("field",), values)
        labels = ("extension_point", "plugin_type", "plugin_name")
        rows: list[tuple[Labels, Row]] = [(("request", *names), row) for names, row in self._seconds.items()]
        text, bounds = "Time of one plugin for one request, in seconds.", SCHEDULER_BOUNDS
        yield Histogram("bbr_plugin_duration_seconds", text, labels, rows, bounds, bounds)
        build: list[tuple[Labels, float]] = [((self._build.commit, self._build.build_ref), 1)]
        yield Values("gauge", "bbr_info", "This build.", ("commit", "build_ref"), build)
        yield from self._own()

    def _own(self) -> Iterator[Family]:
        metrics = self._metrics
        refusals: list[tuple[Labels, float]] = [
            ((reason.value, str(OUTCOMES[reason].status)), n) for reason, n in metrics.refusals.items()
        ]
        text = "Requests answered here and not by a server, by why."
        yield Values("counter", "epp_refusals_total", text, ("reason", "status"), refusals)
        faults: list[tuple[Labels, float]] = [((kind,), n) for kind, n in metrics.degradations.items()]
        text = "What went wrong and was done without, by its kind."
        yield Values("counter", "epp_degraded_total", text, ("kind",), faults)
        limits: list[tuple[Labels, float]] = [((limit,), n) for limit, n in metrics.transport_limits.items()]
        text = "Times that a peer on a gRPC port ran into a limit, by the limit's name."
        yield Values("counter", "epp_transport_limits_total", text, ("limit",), limits)


def _total(name: str, text: str, value: float) -> Values:
    return Values("counter", name, text, (), [((), value)])
