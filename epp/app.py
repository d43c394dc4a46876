"""The composition root: puts the process together from its parts, and takes it down again."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain

import uvloop

from epp.account import Account
from epp.assembly import (
    StartError,
    quota_of,
    read_configuration,
    stale_after_s,
    what_to_scrape,
)
from epp.configuration import Configuration, ConfigurationError
from epp.discovery.file import FileDiscovery
from epp.discovery.source import DiscoveryError, DiscoverySource
from epp.discovery.spread import Spread
from epp.discovery.static import StaticDiscovery
from epp.extproc.events import Dispatcher
from epp.extproc.exchange import BODY_LIMIT_BYTES
from epp.extproc.room import DEFAULT_BYTES, Room
from epp.extproc.session import Stopwatch, open_session
from epp.extproc.tls import TlsError
from epp.extproc.transport import OpenSession, Session, Stream
from epp.front import Front
from epp.home import Home
from epp.incidents import Incidents
from epp.observe import logs
from epp.observe.auth import TokenError
from epp.observe.exposition import Exposition, Gauge
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pages import pages
from epp.pipeline import PluginFaults
from epp.pool import Pool, Shared
from epp.pools import Pools
from epp.ports import Ports, serve
from epp.pressure import Pressure
from epp.resources.directory import Directory, ResourcesError
from epp.resources.objects import Resource
from epp.resources.store import Source, Store
from epp.settings import Settings
from epp.trust import Trust
from epp.watch import LoopWatch

log = logging.getLogger("epp")


class Picker:
    """Everything that runs, from `start` to `stop`. Raises StartError, DiscoveryError, TlsError, TokenError."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        self._settings = settings
        self._started = False
        self._served = False
        self.metrics = Metrics()
        self.incidents = Incidents(self.metrics)
        self.pressure = Pressure(settings.max_loop_lag_s)
        self._watch = LoopWatch(self.pressure, time.monotonic, settings.hang_timeout_s)
        self.quota = quota_of(configuration, random.Random(settings.seed), self.metrics)
        self._open = self._opener()
        self.resources = Store(settings.selection, settings.pool_namespace)
        self._shared = Shared(
            settings=settings,
            configuration=configuration,
            metrics=self.metrics,
            incidents=self.incidents,
            pressure=self.pressure,
            faults=PluginFaults(logging.getLogger("epp.plugins").warning, self.metrics.plugin_failed),
            estimator=TokenEstimator(),
            picks=PickLog(),
            quota=self.quota,
            scraping=what_to_scrape(settings, configuration),
            resources=self.resources,
            announces=settings.body_based_routing,
            session=self._open,
        )
        self._directory: Directory | None = None
        if settings.resources is not None:
            on_objects = partial(self._resources_changed, Source.DIRECTORY)
            self._directory = Directory(settings.resources, settings.pool_namespace, on_objects)
        self.pools = Pools(settings.pool_namespace, self._pool)
        self._spread = Spread(self.pools.replace, alone=settings.only_pool is not None)
        self._home = self._find_home(configuration)
        self._discovery: DiscoverySource = self._home or self._discover(configuration)
        self._serve_pools()
        trust = Trust(settings, self.metrics)
        self.exposition = self._exposition(configuration, trust)
        self.ports = Ports(
            settings,
            trust,
            self.incidents,
            self._process(),
            self.exposition.pieces,
            pages(self.pools, self.resources, self.quota),
            ready=self._is_ready,
            judge=trust.judge or (self._home.judge if self._home is not None else None),
        )

    # --- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Returns when requests are answered. Raises StartError, ResourcesError, DiscoveryError, TlsError."""
        if self._directory is not None:
            self._directory.start()
        for pool in self.pools:
            pool.start()
        await self._discovery.start()
        bound = await self.ports.open()
        self._watch.start()
        self._started = True
        self._served = self._is_ready()
        log.info(
            "%s: %d endpoints; ext_proc on %d%s, health on %d, metrics on %d",
            "ready" if self._served else "waiting for Kubernetes to tell of the pool",
            sum(len(pool.endpoints) for pool in self.pools),
            bound.grpc,
            " (TLS)" if self._settings.secure_serving else "",
            bound.health,
            bound.metrics,
        )

    async def stop(self, notice_s: float, grace_s: float) -> None:
        """Say at once that we stop, take calls for `notice_s` more, let open ones go on for `grace_s`, then `close`."""
        self.ports.drain()
        # At once: when Envoy sees that we stop, it calls off what is undecided, and who waits would go on to any server unasked.
        self.pools.drain(asyncio.get_running_loop().time())
        log.info("draining: open exchanges have up to %.0f s", notice_s + grace_s)
        if self._home is not None:
            await self._home.release()
        await asyncio.sleep(notice_s)
        await self.ports.stop(grace_s)
        await self.close()
        log.info("stopped")

    async def close(self) -> None:
        """End everything now. Safe to call twice, and after a `start` that failed."""
        await self.ports.stop(0.0)
        self._watch.stop()
        await self._discovery.close()
        if self._directory is not None:
            await self._directory.close()
        await self.pools.close()
        await self.ports.close()

    # --- parts -----------------------------------------------------------------------------------------------------

    def _opener(self) -> Callable[[Dispatcher[Account]], OpenSession]:
        """What makes of a dispatcher an answerer of calls. All calls share one bound on arriving bodies."""
        settings = self._settings
        body_bytes = settings.max_body_bytes or BODY_LIMIT_BYTES
        arriving_bytes = settings.max_arriving_bytes or max(DEFAULT_BYTES, 2 * body_bytes)
        clock = asyncio.get_running_loop().time
        stopwatch = Stopwatch(time.perf_counter, partial(self.metrics.stage, "reply"))
        room = Room(arriving_bytes, partial(self.incidents.limited, "max_arriving_bytes"))
        return lambda dispatcher: open_session(
            dispatcher, clock, settings.default_modes, self.incidents, body_bytes, stopwatch, room
        )

    def _pool(self, name: str) -> Pool:
        follows = self._directory is not None or (self._home is not None and self._home.tells_of_objects)
        return Pool(name, self._shared, self.resources.of(name) if follows else None)

    def _process(self) -> OpenSession:
        """What answers ext_proc calls: the pool itself where there is never another."""
        if self._settings.only_pool is not None:
            pool = self.pools.first
            assert pool is not None
            return pool.session
        front = self._open(Front(self.pools, self.resources, self.metrics, random.Random(self._settings.seed)))

        def opened(stream: Stream) -> Session:
            pool = self.pools.called(stream.metadata)
            if pool is None:
                return front(stream)
            self.metrics.pool_found(pool.name, "call")
            return pool.session(stream)

        return opened

    def _find_home(self, configuration: Configuration) -> Home | None:
        """Kubernetes, where nothing nearer says who the endpoints are."""
        settings = self._settings
        if settings.endpoints or configuration.discovery is not None or not settings.names_pods:
            return None
        on_objects = partial(self._resources_changed, Source.KUBERNETES)
        faults = self.incidents.degraded
        return Home(settings, on_objects, self.pools.replace, on_change=self._may_serve, faults=faults)

    def _discover(self, configuration: Configuration) -> DiscoverySource:
        if self._settings.endpoints:
            return StaticDiscovery(self._settings.endpoints, self._spread.endpoints)
        if configuration.discovery is not None:
            discovery = configuration.discovery
            return FileDiscovery(discovery.path, self._spread.endpoints, watch_file=discovery.watch_file)
        raise DiscoveryError(
            "no endpoints: name them with --endpoint host:port (repeated), name a pool of Kubernetes with --pool-name, or "
            "configure file-discovery (dataLayer.discovery in --config-file)"
        )

    def _is_ready(self) -> bool:
        return self._home is None or self._home.ready

    def _may_serve(self) -> None:
        """Whether requests can be answered may be different now."""
        if self.ports.serving("") and not self._served:
            self._served = True
            log.info("synced: %d endpoints", sum(len(pool.endpoints) for pool in self.pools))
        self.ports.changed()

    def _serve_pools(self) -> None:
        described = {name: self.resources.of(name).pool for name in self.resources.served}
        for pool in self.pools.serve(described):
            if self._started:
                self._start_late(pool)
        if self._home is not None:
            self._home.pools(described)
            return
        self._spread.pools({name: one.selector if one is not None else {} for name, one in described.items()})

    def _start_late(self, pool: Pool) -> None:
        try:
            pool.start()
        except StartError as error:
            log.error("pool %s: %s", pool.name, error)

    def _resources_changed(self, source: Source, objects: Sequence[Resource]) -> None:
        change = self.resources.replace(source, objects)
        for notice in change.notices:
            log.warning("%s", notice)
        log.info("%s", self.resources.summary())
        if change.changed:
            self._serve_pools()

    def _exposition(self, configuration: Configuration, trust: Trust) -> Exposition:
        queues = configuration.flow is not None
        return Exposition(
            self.metrics,
            self.pools.endpoints,
            asyncio.get_running_loop().time,
            stale_after_s=stale_after_s(self._settings),
            prefix_index_size=lambda: float(sum(len(pool.index) for pool in self.pools)),
            more=(lambda: chain.from_iterable(pool.flow.families(pool.look) for pool in self.pools),) if queues else (),
            gauges=(
                *trust.gauges(),
                *(self._home.gauges() if self._home is not None else ()),
                Gauge("epp_loop_lag_seconds", "How late the event loop is, smoothed.", lambda: self.pressure.lag_s),
                Gauge(
                    "epp_pressure_step",
                    "What picks leave out because the loop is late: 0 nothing, 1 prefixes, 2 all but a random choice.",
                    lambda: float(self.pressure.step),
                ),
            ),
        )


def run(settings: Settings) -> int:
    """Serve until told to end. Returns the exit status: 0 after a drain, 1 where it could not start."""
    logs.configure(level=settings.log_level, encoder=settings.log_encoder, time_encoding=settings.log_time_encoding)
    for notice in settings.notices:
        log.warning("%s", notice)
    try:
        configuration = read_configuration(settings)
        for warning in configuration.warnings:
            log.warning("%s", warning)
        uvloop.run(serve(lambda: Picker(settings, configuration), settings.drain_timeout_s))
    except ConfigurationError as error:
        for problem in error.problems:
            log.error("the configuration cannot be used: %s", problem)
        return 1
    except (StartError, ResourcesError, DiscoveryError, TlsError, TokenError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    return 0
