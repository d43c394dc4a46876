"""The composition root without its sockets: where reports go, what health says, what settings come to."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as pb

from epp.app import Picker, run
from epp.assembly import StartError, read_configuration
from epp.configuration import ConfigurationError, load
from epp.discovery.source import DiscoveryError
from epp.drops import Drop, Reason
from epp.endpoint import CacheConfig, Endpoint, Endpoints, Report
from epp.extproc.codec import Undecodable
from epp.incidents import Incidents
from epp.ledger import Ledger
from epp.observe.metrics import Metrics
from epp.pool import Pool
from epp.ports import PROCESS, READINESS, _until_told
from epp.prefix.index import PrefixIndex
from epp.reports import STALLED_SCRAPES, Reports
from epp.request import BLOCK_BYTES
from epp.settings import Settings
from epp.signals.answers import Failure

HEADER = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"
BLOCKS = np.arange(1, 101, dtype=np.uint64)
LOCAL = Settings(endpoints=("127.0.0.1:1", "127.0.0.1:2"), secure_serving=False)


class Scraped:
    """`Reports` and what it writes to, for two endpoints: one with metrics of its own port, one with another's."""

    def __init__(self, *, auto_tune: bool = True) -> None:
        self.endpoints = Endpoints()
        self.endpoints.replace(
            [
                Endpoint(name="same", address="10.0.0.1", port=8000),
                Endpoint(name="other", address="10.0.0.2", port=8000, metrics_port=9000),
                Endpoint(name="told", address="10.0.0.3", port=8000, metrics_port=8000),
            ]
        )
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex()
        self.metrics = Metrics()
        self.reports = Reports(
            self.endpoints, self.ledger, self.index, self.metrics, auto_tune=auto_tune, clock=lambda: 10.0
        )
        self.slot, self.other, self.told = self.endpoints.slots.tolist()

    def report(self, now_s: float, **fields: object) -> None:
        mark = self.reports.sent(self.slot)
        self.reports.reported(self.slot, mark, Report(waiting=0, running=0, **fields), now_s)  # type: ignore[arg-type]


class TestReports:
    async def test_a_report_reaches_the_columns_and_the_ledger(self) -> None:
        scraped = Scraped()
        scraped.ledger.take(scraped.slot, 100, 10.0, sees_body=False)
        assert scraped.endpoints.picked_since_report[scraped.slot] == 1
        scraped.report(10.5)
        assert scraped.endpoints.updated_s[scraped.slot] == 10.5
        assert scraped.endpoints.picked_since_report[scraped.slot] == 0

    async def test_a_restarted_server_has_a_cold_cache(self) -> None:
        scraped = Scraped()
        for slot in (scraped.slot, scraped.other):
            scraped.index.record(slot, BLOCKS)
        scraped.report(11.0, prompt_tokens_total=1000.0)
        scraped.report(12.0, prompt_tokens_total=1500.0)
        assert scraped.index.blocks(scraped.slot) == 100
        scraped.report(13.0, prompt_tokens_total=20.0)
        assert scraped.index.blocks(scraped.slot) == 0
        assert scraped.index.blocks(scraped.other) == 100

    async def test_the_index_follows_the_cache_that_a_server_reports(self) -> None:
        scraped = Scraped()
        scraped.index.record(scraped.slot, BLOCKS)
        tokens_per_block = BLOCK_BYTES // 4
        scraped.report(11.0, cache=CacheConfig(block_size=tokens_per_block, num_blocks=40))
        assert scraped.index.blocks(scraped.slot) == 40
        scraped.report(12.0, cache=CacheConfig(block_size=tokens_per_block // 4, num_blocks=40))
        assert scraped.index.blocks(scraped.slot) == 10
        scraped.report(13.0, cache=CacheConfig(block_size=1, num_blocks=1))
        assert scraped.index.blocks(scraped.slot) == 1

    async def test_it_does_not_where_told_not_to(self) -> None:
        scraped = Scraped(auto_tune=False)
        scraped.index.record(scraped.slot, BLOCKS)
        scraped.report(11.0, cache=CacheConfig(block_size=64, num_blocks=40))
        assert scraped.index.blocks(scraped.slot) == 100

    async def test_an_endpoint_that_takes_the_slot_starts_anew(self) -> None:
        scraped = Scraped()
        cache = CacheConfig(block_size=64, num_blocks=40)
        scraped.report(11.0, cache=cache)
        scraped.reports.forget(scraped.slot)
        scraped.index.record(scraped.slot, BLOCKS)
        assert scraped.index.blocks(scraped.slot) == 100
        scraped.report(12.0, cache=cache)
        assert scraped.index.blocks(scraped.slot) == 40

    @pytest.mark.parametrize(("endpoint", "unreachable"), [("slot", True), ("told", True), ("other", False)])
    async def test_a_refused_scrape_speaks_of_requests_only_where_the_port_is_theirs(
        self, endpoint: str, unreachable: bool
    ) -> None:
        scraped = Scraped()
        slot = getattr(scraped, endpoint)
        scraped.reports.failed(slot, Failure.CONNECT)
        assert bool(scraped.endpoints.unreachable[slot]) is unreachable
        assert scraped.metrics.scrape_failures == {"connect": 1}

    @pytest.mark.parametrize("kind", [kind for kind in Failure if kind is not Failure.CONNECT])
    async def test_any_other_failure_leaves_an_endpoint_reachable(self, kind: Failure) -> None:
        scraped = Scraped()
        scraped.reports.failed(scraped.slot, kind)
        assert not scraped.endpoints.unreachable.any()
        assert scraped.metrics.scrape_failures == {kind.value: 1}

    @pytest.mark.parametrize(("endpoint", "unreachable"), [("slot", True), ("told", True), ("other", False)])
    async def test_a_server_that_keeps_silent_is_passed_over(self, endpoint: str, unreachable: bool) -> None:
        scraped = Scraped()
        slot = getattr(scraped, endpoint)
        for _ in range(STALLED_SCRAPES - 1):
            scraped.reports.failed(slot, Failure.TIMEOUT)
        assert not scraped.endpoints.unreachable[slot]
        scraped.reports.failed(slot, Failure.TIMEOUT)
        assert bool(scraped.endpoints.unreachable[slot]) is unreachable

    async def test_silence_counts_only_in_a_row(self) -> None:
        scraped = Scraped()
        for _ in range(2 * STALLED_SCRAPES):
            scraped.reports.failed(scraped.slot, Failure.TIMEOUT)
            scraped.report(11.0)
        assert not scraped.endpoints.unreachable[scraped.slot]
        for _ in range(STALLED_SCRAPES - 1):
            scraped.reports.failed(scraped.slot, Failure.TIMEOUT)
        scraped.reports.forget(scraped.slot)
        scraped.reports.failed(scraped.slot, Failure.TIMEOUT)
        assert not scraped.endpoints.unreachable[scraped.slot]

    async def test_an_answer_makes_it_reachable_again(self) -> None:
        scraped = Scraped()
        scraped.reports.failed(scraped.slot, Failure.CONNECT)
        scraped.report(11.0)
        assert not scraped.endpoints.unreachable.any()


def picker(configuration: str = "", settings: Settings = LOCAL) -> Picker:
    return Picker(settings, read_configuration(settings) if not configuration else load(configuration, "test"))


def only(whole: Picker) -> Pool:
    (pool,) = whole.pools
    return pool


class TestHealth:
    @pytest.mark.parametrize("name", sorted(READINESS))
    async def test_a_picker_that_has_not_started_is_not_ready(self, name: str) -> None:
        assert picker().ports.serving(name) is False

    async def test_liveness_is_told_from_the_beginning(self) -> None:
        assert picker().ports.serving("liveness") is True

    @pytest.mark.parametrize("name", ["nobody", "Readiness", " ", "envoy.service.ext_proc.v3"])
    async def test_other_names_are_unknown(self, name: str) -> None:
        assert picker().ports.serving(name) is None

    def test_the_names_of_readiness_are_those_that_probes_use(self) -> None:
        service = pb.DESCRIPTOR.services_by_name["ExternalProcessor"].full_name
        assert {"", "readiness", "inference-extension", service} == READINESS
        assert f"/{service}/Process" == PROCESS

    async def test_health_is_served_where_ext_proc_is(self) -> None:
        routes: Mapping[str, object] = picker().ports.routes
        assert {PROCESS, "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"} <= set(routes)


PREFIX = HEADER + "plugins:\n- {type: approx-prefix-cache-producer, parameters: {%s}}\n"
IN_FLIGHT = HEADER + "plugins:\n- {type: inflight-load-producer, parameters: {%s}}\n"


class TestMembership:
    async def test_what_is_counted_of_an_endpoint_goes_with_it(self) -> None:
        it = picker()
        stays, goes = (
            Endpoint(name="a", address="10.0.0.1", port=8000),
            Endpoint(name="b", address="10.0.0.2", port=8000),
        )
        only(it).replace([stays, goes])
        for endpoint in (stays, goes):
            it.metrics.picked(endpoint, "base")
        only(it).replace([stays])
        assert [pick[1] for pick in it.metrics.picks] == ["a"]


class TestSettings:
    @pytest.mark.parametrize(
        ("parameters", "ratio", "most"),
        [
            ("", 0.0, None),
            ("outputRatio: 3", 0.0, None),
            ("addEstimatedOutputTokens: true", 1.5, None),
            ("addEstimatedOutputTokens: true, outputRatio: 3, maxEstimatedOutputTokens: 100", 3.0, 100),
        ],
    )
    async def test_answers_to_come_count_where_asked_for(self, parameters: str, ratio: float, most: int | None) -> None:
        policy = only(picker(IN_FLIGHT % parameters)).dispatcher._policy
        assert (policy.output_ratio, policy.max_output_tokens) == (ratio, most)

    @pytest.mark.parametrize(
        ("parameters", "blocks"),
        [
            ("", 8192),
            ("maxPrefixTokensToMatch: 640", 10),
            ("maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 7", 7),
        ],
    )
    async def test_prefixes_are_bounded_by_tokens_or_else_by_blocks(self, parameters: str, blocks: int) -> None:
        assert only(picker(PREFIX % parameters)).dispatcher._policy.max_prefix_blocks == blocks

    async def test_both_bounds_zero_is_no_bound(self) -> None:
        assert (
            only(
                picker(PREFIX % "maxPrefixTokensToMatch: 0, maxPrefixBlocksToMatch: 0")
            ).dispatcher._policy.max_prefix_blocks
            > 1 << 40
        )

    async def test_flags_win_over_the_file_for_the_servers_metrics(self) -> None:
        text = HEADER + "plugins:\n- {type: metrics-data-source, parameters: {path: /m, port: 1}}\n"
        settings = Settings(endpoints=LOCAL.endpoints, secure_serving=False, model_server_metrics_path="/told")
        scraper = only(picker(text, settings)).scraper
        assert scraper is not None
        endpoint = Endpoint(name="e", address="10.0.0.1", port=8000)
        assert scraper.source.url(endpoint) == "http://10.0.0.1:1/told"

    async def test_no_endpoints_is_said(self) -> None:
        with pytest.raises(DiscoveryError, match="--endpoint host:port"):
            picker(settings=Settings(secure_serving=False))

    async def test_a_metric_that_cannot_be_read_is_said(self) -> None:
        settings = Settings(endpoints=LOCAL.endpoints, secure_serving=False, queued_requests_spec="bad{")
        with pytest.raises(StartError, match="lacks its closing brace"):
            picker(settings=settings)


class TestConfigurationFile:
    def test_it_is_read_by_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "epp.yaml"
        path.write_text(HEADER + "plugins: [{type: quue-scorer}]\n")
        with pytest.raises(ConfigurationError, match=rf"{path}:3: plugins\[0\].type: .*queue-scorer"):
            read_configuration(Settings(config_file=path))

    @pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (b"\xff\xfe", "not UTF-8")])
    def test_one_that_cannot_be_read_is_said(self, tmp_path: Path, content: bytes | None, reason: str) -> None:
        path = tmp_path / "epp.yaml"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(StartError, match=f"{path} cannot be read: .*{reason}"):
            read_configuration(Settings(config_file=path))

    def test_every_mistake_is_a_line_of_the_log(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "epp.yaml"
        path.write_text(HEADER + "plugins: [{type: quue-scorer}, {type: random-pickr}]\n")
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            assert run(Settings(config_file=path)) == 1
        finally:
            root.handlers[:] = handlers
            root.setLevel(level)
            logging.captureWarnings(False)
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 2
        assert all("the configuration cannot be used" in line and str(path) in line for line in lines)


class TestIncidents:
    def test_each_kind_is_counted_and_said_once_a_minute(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        metrics = Metrics()
        incidents = Incidents(metrics)
        for _ in range(3):
            incidents.degraded("pick", ValueError("x"))
            incidents.fault(ValueError("x"))
            incidents.undecodable(Undecodable("x"))
            incidents.refused(Drop(Reason.BODY_TOO_LARGE, "no"))
            incidents.limited("chatter_burst")
        assert metrics.transport_limits == {"chatter_burst": 3}
        assert metrics.degradations == {"pick": 3, "dispatcher": 3, "undecodable": 3}
        assert metrics.refusals == {Reason.BODY_TOO_LARGE: 3}
        assert len(caplog.records) == 5


class Wire:
    """A stream that keeps what it is sent."""

    def __init__(self) -> None:
        self.metadata: dict[bytes, bytes] = {}
        self.sent: list[pb.ProcessingResponse] = []
        self.status: int | None = None

    def send(self, message: bytes) -> None:
        self.sent.append(pb.ProcessingResponse.FromString(message))

    def close(self, status: int = 0, message: str = "") -> None:
        self.status = status


class TestOneCall:
    async def test_it_is_answered_by_the_parts_put_together(self) -> None:
        whole = picker(HEADER + "dataLayer: {injectDefaults: false}\n")
        await whole._discovery.start()
        wire = Wire()
        session = whole.ports.routes[PROCESS](wire)
        message = pb.ProcessingRequest()
        message.request_headers.end_of_stream = True
        message.request_headers.headers.headers.add(key=":method", value="GET")
        session.received(message.SerializeToString())
        headers = {
            one.header.key: one.header.raw_value.decode()
            for one in wire.sent[0].request_headers.response.header_mutation.set_headers
        }
        assert headers["x-gateway-destination-endpoint"] in LOCAL.endpoints
        assert only(whole).endpoints.in_flight.sum() == 1
        session.closed(True)
        assert only(whole).endpoints.in_flight.sum() == 0
        for stage in ("body", "parse", "decide", "reply"):
            assert sum(whole.metrics.stages[stage][:-1]) == 1, stage
        assert whole.metrics.stages["reply"][-1] > 0
        await whole._discovery.close()

    async def test_a_body_beyond_the_limit_is_refused(self) -> None:
        whole = picker(settings=Settings(endpoints=LOCAL.endpoints, secure_serving=False, max_body_bytes=1000))
        wire = Wire()
        session = whole.ports.routes[PROCESS](wire)
        message = pb.ProcessingRequest()
        message.request_headers.headers.headers.add(key=":path", value="/v1/chat/completions")
        session.received(message.SerializeToString())
        message = pb.ProcessingRequest()
        message.request_body.body = b"x" * 1001
        session.received(message.SerializeToString())
        immediate = wire.sent[-1].immediate_response
        assert immediate.status.code == 413
        assert b"exceeds 1000 bytes" in immediate.body
        assert whole.metrics.refusals == {Reason.BODY_TOO_LARGE: 1}


class Stopped:
    """A service that hears how it is stopped."""

    def __init__(self) -> None:
        self.heard: list[tuple[float, float]] = []

    async def start(self) -> None: ...

    async def stop(self, notice_s: float, grace_s: float) -> None:
        self.heard.append((notice_s, grace_s))

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("number", "drain_timeout_s", "heard"),
    [
        (signal.SIGTERM, 60.0, (5.0, 55.0)),
        (signal.SIGTERM, 2.0, (1.0, 1.0)),
        # A person waits, and no proxy has to notice anything first.
        (signal.SIGINT, 60.0, (0.0, 60.0)),
    ],
)
async def test_who_is_told_to_end_by_an_orchestrator_gives_notice_first(
    number: signal.Signals, drain_timeout_s: float, heard: tuple[float, float]
) -> None:
    service, told = Stopped(), asyncio.Queue[signal.Signals]()
    told.put_nowait(number)
    thresholds = gc.get_threshold()
    try:
        await _until_told(service, drain_timeout_s, told)
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)
    assert service.heard == [heard]
