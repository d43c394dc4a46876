"""The composition root: the only place that knows all parts, puts them together, and takes them down again."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import msgspec
import uvloop

from epp.configuration import (
    Configuration,
    ConfigurationError,
    ExtractorSettings,
    MetricsSettings,
    build,
    load,
    load_default,
)
from epp.decisions.file import DEFAULT_MAX_BYTES, DecisionFile
from epp.decisions.recording import Recording
from epp.discovery.eds import EdsFile
from epp.discovery.file import FileDiscovery
from epp.discovery.source import DiscoveryError, DiscoverySource
from epp.discovery.static import StaticDiscovery
from epp.dispatcher import NOBODY, Account, Dispatcher, Place, Policy, Queue
from epp.drops import OUTCOMES, Drop
from epp.endpoint import CacheConfig, Endpoint, Endpoints, Report
from epp.extproc.codec import Undecodable
from epp.extproc.exchange import BODY_LIMIT_BYTES
from epp.extproc.health import Health
from epp.extproc.http2 import Limits
from epp.extproc.reflection import reflection
from epp.extproc.room import DEFAULT_BYTES, Room
from epp.extproc.server import Http2Server
from epp.extproc.session import Stopwatch, open_session
from epp.extproc.tls import TlsError
from epp.flow.control import FlowControl
from epp.flow.evictions import Evictions
from epp.ledger import Ledger, Mark
from epp.observe import logs
from epp.observe.auth import TokenError
from epp.observe.exposition import Exposition, Gauge
from epp.observe.flow import FlowRecord
from epp.observe.http import ObservationServer
from epp.observe.logs import DecisionLog, Every, RefusalLog
from epp.observe.metrics import Metrics
from epp.observe.text import Family
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import BLOCK_TOKENS, PrefixIndex, blocks_in
from epp.pressure import Pressure
from epp.quota.quota import Quota
from epp.quota.store import MemoryStore
from epp.quota.tenants import Tenants
from epp.resources.directory import Directory, ResourcesError
from epp.resources.objects import Resource
from epp.resources.store import Source, Store
from epp.settings import Settings
from epp.signals.answers import Failure
from epp.signals.engines import EngineChoice, EngineConfig
from epp.signals.scraper import Scraper
from epp.signals.source import MetricsSource
from epp.ticker import Ticker
from epp.trust import LOOK_INTERVAL_S, Trust
from epp.watch import LoopWatch

log = logging.getLogger("epp")

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
READINESS = frozenset({"", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"})
LIVENESS = "liveness"

NOTICE_S = 5.0
"""After SIGTERM health says NOT_SERVING and calls are still taken for this long: Envoy's two missed checks, 2 s apart."""

ENVOY_FOLLOWS_S = 0.25
"""How long those who wait for a first endpoint wait on, where Envoy learns of it from our file: it would know no such server yet."""

STALLED_SCRAPES = 2
"""Scrapes in a row without an answer in time (2 s each) after which a server that shares its port with its metrics page is passed
over, while others can be reached: it takes connections and answers nothing. Its next page brings it back."""

OWN_ACCOUNT = frozenset({"concurrency-detector", "prefill-wait-detector"})
"""Saturation detectors that go by our own account, which shows the end of a request at once; others may go by scrapes."""

GO_DETECTOR_STALE_S = 0.2
"""By how much a report may be older than the interval of scrapes and still count."""

QUOTAS_SHOWN = 1000
"""Rows of /debug/quotas."""

FLAG_ENGINE = EngineConfig(
    name="vllm",
    queued_requests_spec="vllm:num_requests_waiting",
    running_requests_spec="vllm:num_requests_running",
    kv_usage_spec="vllm:kv_cache_usage_perc",
    lora_spec="vllm:lora_requests_info",
    cache_info_spec="vllm:cache_config_info",
)
"""What the Go picker's metric flags default to: giving one of them leaves the others at these."""


class StartError(Exception):
    """The process cannot start. The message says why, and what to do."""


class Incidents:
    """Counts what must never fail a request but somebody should hear of; each kind is logged once a minute."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._every = Every(60.0)
        self._refusals = RefusalLog()

    def degraded(self, kind: str, error: Exception) -> None:
        """A bug of ours made a pick worse than it should have been."""
        self._metrics.degraded(kind)
        if times := self._every(kind, time.monotonic()):
            log.error("%s failed and was done without (%d times since the last such line)", kind, times, exc_info=error)

    def fault(self, error: Exception) -> None:
        self.degraded("dispatcher", error)

    def undecodable(self, error: Undecodable) -> None:
        self._metrics.degraded("undecodable")
        if times := self._every("undecodable", time.monotonic()):
            log.warning("a peer sent what is no ProcessingRequest: %s (%d times)", error, times)

    def refused(self, drop: Drop) -> None:
        self._metrics.refused(*NOBODY, OUTCOMES[drop.reason])
        self._refusals.note(drop, None, time.monotonic())

    def limited(self, limit: str) -> None:
        """A peer ran into a limit of the transport, or all arriving bodies together into theirs."""
        self._metrics.limited(limit)
        if times := self._every(f"limit {limit}", time.monotonic()):
            log.warning("a peer ran into the limit %s (%d times since the last such line)", limit, times)


class Reports:
    """Where scrapes go: the columns, the ledger, the prefix index. A `Sink`."""

    def __init__(
        self,
        endpoints: Endpoints,
        ledger: Ledger,
        index: PrefixIndex,
        metrics: Metrics,
        *,
        auto_tune: bool,
        clock: Callable[[], float],
        load_fell: Callable[[], None] = lambda: None,
    ) -> None:
        self._load_fell = load_fell
        self._endpoints = endpoints
        self._ledger = ledger
        self._index = index
        self._metrics = metrics
        self._auto_tune = auto_tune
        self._caches: dict[int, CacheConfig] = {}
        self._late: Counter[int] = Counter()
        self.clock = clock

    def sent(self, slot: int) -> Mark:
        return self._ledger.report_sent(slot, self.clock())

    def reported(self, slot: int, mark: Mark, report: Report, now_s: float) -> None:
        self._endpoints.report(slot, report, now_s)
        self._late.pop(slot, None)
        if self._ledger.reported(slot, mark, report, now_s):
            self._index.empty(slot)
        self._load_fell()
        if self._auto_tune and report.cache is not None and report.cache != self._caches.get(slot):
            self._caches[slot] = report.cache
            self._index.resize(slot, max(1, blocks_in(report.cache)))

    def failed(self, slot: int, kind: Failure) -> None:
        self._metrics.scrape_failed(kind.value)
        endpoint = self._endpoints.at(slot)
        # Only where metrics and requests share a port does a scrape say what becomes of requests.
        if endpoint is None or endpoint.metrics_port not in (None, endpoint.port):
            return
        if kind is Failure.TIMEOUT:
            self._late[slot] += 1
        if kind is Failure.CONNECT or self._late[slot] >= STALLED_SCRAPES:
            self._endpoints.set_unreachable(slot, True)

    def forget(self, slot: int) -> None:
        self._late.pop(slot, None)
        self._caches.pop(slot, None)
        self._index.forget(slot)


class Picker:
    """Everything that runs, from `start` to `stop`. Raises StartError, DiscoveryError, TlsError, TokenError."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self._draining = False
        self._ready = False
        rng = random.Random(settings.seed)
        prefix = configuration.prefix
        self.metrics = Metrics()
        self.endpoints = Endpoints(
            stale_after_s=max(settings.metrics_staleness_threshold_s, 2.5 * settings.refresh_metrics_interval_s)
        )
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex(default_blocks=prefix.lru_capacity_per_server)
        self.incidents = Incidents(self.metrics)
        self.pressure = Pressure(settings.max_loop_lag_s)
        self.resources = Store(settings.pool_name, settings.pool_namespace)
        self._directory: Directory | None = None
        if settings.resources is not None:
            self._directory = Directory(settings.resources, settings.pool_namespace, self._resources_changed)
        self._watch = LoopWatch(self.pressure, time.monotonic, settings.hang_timeout_s)
        self._queues = configuration.flow is not None
        self.quota = _quota(configuration, rng, self.metrics)
        faults = PluginFaults(logging.getLogger("epp.plugins").warning, self.metrics.plugin_failed)
        recording = Recording(partial(self.metrics.decision_log, "lost")) if settings.decision_log is not None else None
        self._decision_file = self._decisions_into(settings.decision_log, recording)
        self._ticker = Ticker(self._pump)
        self._flow_record = FlowRecord(self.metrics, settings.pool_name, configuration.detector)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(configuration, rng, faults),
            ledger=self.ledger,
            index=self.index,
            metrics=self.metrics,
            estimator=TokenEstimator(),
            policy=dispatch_policy(settings, configuration),
            rng=rng,
            timer=time.perf_counter,
            faults=self.incidents.degraded,
            decisions=DecisionLog(),
            pressure=self.pressure,
            resources=self.resources if self._directory is not None else None,
            quota=self.quota,
            queue=self._queue(configuration),
            recording=recording,
        )
        self._reports = Reports(
            self.endpoints,
            self.ledger,
            self.index,
            self.metrics,
            auto_tune=prefix.auto_tune,
            clock=loop.time,
            load_fell=self.dispatcher.load_fell,
        )
        self._scraper: Scraper[Mark] | None = None
        if configuration.metrics is not None:
            source, engines = _what_to_scrape(settings, configuration.metrics, configuration.extractor)
            self._scraper = Scraper(
                self._reports,
                loop.time,
                rng=rng,
                source=source,
                engines=engines,
                interval_s=settings.refresh_metrics_interval_s,
            )
        self._eds = EdsFile(settings.envoy_eds_file) if settings.envoy_eds_file else None
        self._discovery = self._discover(configuration)
        self._health = Health(self.serving, sorted(READINESS | {LIVENESS}))
        body_bytes = settings.max_body_bytes or BODY_LIMIT_BYTES
        arriving_bytes = settings.max_arriving_bytes or max(DEFAULT_BYTES, 2 * body_bytes)
        session = open_session(
            self.dispatcher,
            loop.time,
            settings.default_modes,
            self.incidents,
            body_bytes,
            Stopwatch(time.perf_counter, partial(self.metrics.stage, "reply")),
            Room(arriving_bytes, partial(self.incidents.limited, "max_arriving_bytes")),
        )
        self._routes = {PROCESS: session, **self._health.routes()}
        self._routes |= reflection(self._routes)
        self._trust = Trust(settings, self.metrics)
        self._trust_timer: asyncio.TimerHandle | None = None
        limits = _limits(settings)
        self._server = self._trust.server(self._routes, limits, self.incidents.limited)
        self._health_server = Http2Server(self._health.routes(), limits, on_limit=self.incidents.limited)
        self._observation = ObservationServer(
            self._exposition().pieces,
            lambda: self.serving("") is True,
            {
                "/debug/endpoints": self._endpoints_page,
                "/debug/resources": self._resources_page,
                "/debug/quotas": self._quotas_page,
            },
            admits=self._trust.tokens.admits if self._trust.tokens is not None else None,
        )

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when requests are answered. Raises StartError, ResourcesError, DiscoveryError, TlsError."""
        settings = self._settings
        host, health, metrics, grpc = (
            settings.host,
            settings.grpc_health_port,
            settings.metrics_port,
            settings.grpc_port,
        )
        if self._decision_file is not None:
            try:
                self._decision_file.start()
            except OSError as error:
                raise StartError(
                    f"--decision-log {settings.decision_log} cannot be written: {error.strerror}"
                ) from error
        if self._directory is not None:
            self._directory.start()
        await self._discovery.start()
        health = await _bound("--grpc-health-port", host, health, self._health_server.start(host, health))
        context = self._trust.metrics_context()
        metrics = await _bound("--metrics-port", host, metrics, self._observation.start(host, metrics, context))
        grpc = await _bound("--grpc-port", host, grpc, self._server.start(host, grpc))
        if self._trust.follows:
            self._follow_trust()
        self._watch.start()
        self._ready = True
        self._health.changed()
        log.info(
            "ready: %d endpoints; ext_proc on %d%s, health on %d, metrics on %d",
            len(self.endpoints),
            grpc,
            " (TLS)" if settings.secure_serving else "",
            health,
            metrics,
        )

    async def stop(self, notice_s: float, grace_s: float) -> None:
        """Say at once that we stop, take calls for `notice_s` more, let open ones go on for `grace_s`, then `close`."""
        self._draining = True
        self._health.changed()
        # At once: when Envoy sees that we stop, it calls off what is undecided, and who waits would go on to any server unasked.
        self.dispatcher.drain(asyncio.get_running_loop().time())
        log.info("draining: open exchanges have up to %.0f s", notice_s + grace_s)
        await asyncio.sleep(notice_s)
        await self._server.stop(grace_s)
        await self.close()
        log.info("stopped")

    async def close(self) -> None:
        """End everything now. Safe to call twice, and after a `start` that failed."""
        await self._server.stop(0.0)
        self._ticker.close()
        self._watch.stop()
        if self._trust_timer is not None:
            self._trust_timer.cancel()
        if self._scraper is not None:
            await self._scraper.close()
        await self._discovery.close()
        if self._directory is not None:
            await self._directory.close()
        if self._eds is not None:
            self._eds.close()
        await self._observation.close()
        await self._health_server.stop(0.0)
        if self._decision_file is not None:
            await self._decision_file.close()

    def serving(self, service: str) -> bool | None:
        """The health service's answer; None for a name nobody knows."""
        if service == LIVENESS:
            return True
        return self._ready and not self._draining if service in READINESS else None

    # --- parts -----------------------------------------------------------------------------------------------------

    def _discover(self, configuration: Configuration) -> DiscoverySource:
        if self._settings.endpoints:
            return StaticDiscovery(self._settings.endpoints, self._membership)
        if configuration.discovery is not None:
            discovery = configuration.discovery
            return FileDiscovery(discovery.path, self._membership, watch_file=discovery.watch_file)
        raise DiscoveryError(
            "no endpoints: name them with --endpoint host:port (repeated), or configure file-discovery "
            "(dataLayer.discovery in --config-file)"
        )

    def _decisions_into(self, path: Path | None, recording: Recording | None) -> DecisionFile | None:
        if path is None or recording is None:
            return None
        return DecisionFile(
            path,
            recording,
            pool=self._settings.pool_name,
            max_bytes=self._settings.decision_log_max_bytes or DEFAULT_MAX_BYTES,
            failed=partial(self.incidents.degraded, "decision-log"),
            count=self.metrics.decision_log,
        )

    def _queue(self, configuration: Configuration) -> Queue | None:
        if configuration.flow is None:
            return None
        control: FlowControl[Place] = FlowControl(
            configuration.flow, asyncio.get_running_loop().time(), pool_empty=not len(self.endpoints)
        )
        evictions: Evictions[Account] | None = None
        if configuration.flow.evicts_running:
            evictions = Evictions(_grace_s(self._settings, configuration))
        return Queue(control, self._flow_record, self._ticker.wake, evictions)

    def _pool_changed(self) -> None:
        self.dispatcher.pool_changed(asyncio.get_running_loop().time())

    def _pump(self, now_s: float) -> bool:
        return self.dispatcher.pump(now_s)

    def _flow_families(self) -> Iterable[Family]:
        return self._flow_record.families(lambda: self.dispatcher.look(asyncio.get_running_loop().time()))

    def _membership(self, wanted: Sequence[Endpoint]) -> None:
        was_empty = not len(self.endpoints)
        change = self.endpoints.replace(wanted)
        for slot, _ in change.removed:
            self._reports.forget(slot)
        self.metrics.forget(endpoint for _, endpoint in change.removed)
        if self._scraper is not None:
            self._scraper.follow(change)
        if self._eds is not None:
            self._eds.publish(self.endpoints.members)
        if was_empty and self._eds is not None:
            asyncio.get_running_loop().call_later(ENVOY_FOLLOWS_S, self._pool_changed)
        else:
            self._pool_changed()
        log.info("endpoints: %d (%d added, %d removed)", len(self.endpoints), len(change.added), len(change.removed))

    def _resources_changed(self, objects: Sequence[Resource]) -> None:
        change = self.resources.replace(Source.DIRECTORY, objects)
        for notice in change.notices:
            log.warning("%s", notice)
        log.info("%s", self.resources.summary())

    def _resources_page(self) -> tuple[int, str, bytes]:
        """Every object, where it was read, and why it has no effect where it has none, as JSON."""
        return 200, "application/json", msgspec.json.encode(self.resources.standings)

    def _follow_trust(self) -> None:
        self._trust.look()
        self._trust_timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._follow_trust)

    def _exposition(self) -> Exposition:
        return Exposition(
            self.metrics,
            {self._settings.pool_name: self.endpoints},
            asyncio.get_running_loop().time,
            stale_after_s=self.endpoints.stale_after_s,
            prefix_index_size=lambda: float(len(self.index)),
            more=(self._flow_families,) if self._queues else (),
            gauges=(
                *self._trust.gauges(),
                Gauge("epp_loop_lag_seconds", "How late the event loop is, smoothed.", lambda: self.pressure.lag_s),
                Gauge(
                    "epp_pressure_step",
                    "What picks leave out because the loop is late: 0 nothing, 1 prefixes, 2 all but a random choice.",
                    lambda: float(self.pressure.step),
                ),
            ),
        )

    def _endpoints_page(self) -> tuple[int, str, bytes]:
        """What is known of every endpoint, as JSON: the columns a pick reads."""
        e, now_s = self.endpoints, asyncio.get_running_loop().time()
        self.ledger.advance(now_s)
        rows = [
            {
                "endpoint": endpoint.key,
                "destination": endpoint.destination,
                "reachable": not e.unreachable.item(slot),
                "report_age_s": _number(now_s - e.updated_s.item(slot)),
                "waiting": _number(e.waiting.item(slot)),
                "running": _number(e.running.item(slot)),
                "kv_usage": _number(e.kv_usage.item(slot)),
                "in_flight": e.in_flight.item(slot),
                "in_flight_tokens": e.in_flight_tokens.item(slot),
                "prefill_tokens_per_s": round(self.ledger.prefill_rate(slot)),
                "prefix_blocks": self.index.blocks(slot),
                "adapters": sorted(e.adapters[slot].running | e.adapters[slot].waiting),
            }
            for slot, endpoint in zip(e.slots.tolist(), e.members, strict=True)
        ]
        return 200, "application/json", msgspec.json.encode(rows)

    def _quotas_page(self) -> tuple[int, str, bytes]:
        """What is left of each limit to the tenants seen last, by the hashes that stand for them in this process."""
        rows = self.quota.remaining(QUOTAS_SHOWN, asyncio.get_running_loop().time()) if self.quota is not None else []
        return 200, "application/json", msgspec.json.encode(rows)


async def _bound(flag: str, host: str | None, port: int, listening: Awaitable[int]) -> int:
    """The port that `listening` got. Raises StartError."""
    try:
        return await listening
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        advice = {
            errno.EACCES: f"choose a port from 1024 on with {flag}",
            errno.EADDRNOTAVAIL: "--host names no address of this machine",
            socket.EAI_NONAME: "--host names no address that can be found",
        }.get(
            error.errno or 0,
            f"stop what listens there (`ss -ltnp 'sport = :{port}'` names it) or choose another port with {flag}",
        )
        raise StartError(f"cannot listen on {host or 'any address'}, port {port}: {reason}; {advice}") from error


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return round(value, 3) if math.isfinite(value) else None


def _metrics_source(settings: Settings, configured: MetricsSettings) -> MetricsSettings:
    """What flags say of the servers' metrics pages wins over the configuration file."""
    told = {
        "port": settings.model_server_metrics_port,
        "path": settings.model_server_metrics_path,
        "scheme": settings.model_server_metrics_scheme,
        "insecure_skip_verify": settings.model_server_metrics_insecure,
    }
    return msgspec.structs.replace(configured, **{name: value for name, value in told.items() if value is not None})


def _what_to_scrape(
    settings: Settings, metrics: MetricsSettings, extractor: ExtractorSettings
) -> tuple[MetricsSource, EngineChoice]:
    """Raises StartError."""
    try:
        return _metrics_source(settings, metrics).source(), _engines(settings, extractor)
    except ValueError as error:
        raise StartError(f"model servers' metrics cannot be read as configured: {error}") from error


def _engines(settings: Settings, configured: ExtractorSettings) -> EngineChoice:
    """The default engine with the families that flags name, the others as configured."""
    told = {
        "queued_requests_spec": settings.queued_requests_spec,
        "running_requests_spec": settings.running_requests_spec,
        "kv_usage_spec": settings.kv_usage_spec,
        "lora_spec": settings.lora_spec,
        "cache_info_spec": settings.cache_info_spec,
    }
    specs = {name: value for name, value in told.items() if value is not None}
    if not specs:
        return configured.choice()
    engine = msgspec.structs.replace(FLAG_ENGINE, name=configured.default_engine, **specs)
    others = [one for one in configured.engine_configs if one.name != engine.name]
    return msgspec.structs.replace(configured, engine_configs=(engine, *others)).choice()


def _limits(settings: Settings) -> Limits:
    told = {"max_message_bytes": settings.max_message_bytes, "max_connections": settings.max_connections}
    return Limits(**{name: value for name, value in told.items() if value is not None})


def _quota(configuration: Configuration, rng: random.Random, metrics: Metrics) -> Quota | None:
    settings = configuration.quota
    if settings is None:
        return None
    return Quota(
        settings.table(),
        Tenants(settings.tenant, secrets.token_bytes(32)),
        MemoryStore(settings.max_tenants),
        answer_tokens=settings.estimated_answer_tokens,
        rng=rng,
        refused=metrics.quota_refused,
    )


def _grace_s(settings: Settings, configuration: Configuration) -> float:
    """How long after the end of a request the saturation may still not show it."""
    if configuration.plugins[configuration.detector].type in OWN_ACCOUNT:
        return 0.01
    return settings.refresh_metrics_interval_s + GO_DETECTOR_STALE_S + 0.25


def dispatch_policy(settings: Settings, configuration: Configuration) -> Policy:
    """What flags and file together say about dispatching."""
    prefix = configuration.prefix
    blocks = prefix.max_prefix_tokens_to_match // BLOCK_TOKENS or prefix.max_prefix_blocks_to_match
    in_flight = configuration.in_flight
    return Policy(
        look_share=settings.look_share,
        ignore_subset=settings.ignore_subset,
        emit_scores=settings.emit_endpoint_scores,
        max_prefix_blocks=blocks or sys.maxsize,
        output_ratio=in_flight.output_ratio if in_flight.add_estimated_output_tokens else 0.0,
        max_output_tokens=in_flight.max_estimated_output_tokens,
    )


def read_configuration(settings: Settings) -> Configuration:
    """Raises ConfigurationError, and StartError where the file cannot be read."""
    if settings.config_text:
        return load(settings.config_text, "--config-text")
    path = settings.config_file
    if path is None:
        return load_default()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartError(f"the configuration {path} cannot be read: {reason}") from error
    return load(text, str(path))


async def _serve(settings: Settings, configuration: Configuration) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Before anything else: the first process of a container has no default action for either.
        loop.add_signal_handler(number, told.put_nowait, number)
    picker = Picker(settings, configuration)
    try:
        await picker.start()
        await _until_told(picker, settings, told)
    finally:
        await picker.close()


async def _until_told(picker: Picker, settings: Settings, told: asyncio.Queue[signal.Signals]) -> None:
    # What lives now lives for good: the collector need not walk it again and again. A request makes about a hundred objects
    # that reference counts take away; the default threshold of 700 would look for cycles after every seventh.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    first = await told.get()
    # Ctrl-C is a person who waits; SIGTERM an orchestrator whose proxies have yet to notice.
    notice_s = 0.0 if first is signal.SIGINT else min(NOTICE_S, settings.drain_timeout_s / 2)
    stopping = asyncio.ensure_future(picker.stop(notice_s, settings.drain_timeout_s - notice_s))
    again = asyncio.ensure_future(told.get())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        log.warning("told to end twice: ending at once")
        stopping.cancel()
        await asyncio.wait((stopping,))
        return
    await stopping


def run(settings: Settings) -> int:
    """Serve until told to end. Returns the exit status: 0 after a drain, 1 where it could not start."""
    logs.configure(level=settings.log_level, encoder=settings.log_encoder, time_encoding=settings.log_time_encoding)
    for notice in settings.notices:
        log.warning("%s", notice)
    try:
        configuration = read_configuration(settings)
        for warning in configuration.warnings:
            log.warning("%s", warning)
        uvloop.run(_serve(settings, configuration))
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("the configuration cannot be used: %s", problem)
        return 1
    except (StartError, ResourcesError, DiscoveryError, TlsError, TokenError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    return 0
