"""One pool of the process: its endpoints, all that is known of them, who waits for them, and the pick."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from epp.account import Account, Place
from epp.assembly import StartError, dispatch_policy, grace_s, stale_after_s
from epp.configuration import Configuration, build
from epp.decisions.file import DEFAULT_MAX_BYTES, DecisionFile
from epp.decisions.recording import Recording
from epp.discovery.eds import EdsFile
from epp.dispatcher import Announce, Dispatcher
from epp.endpoint import Endpoint, Endpoints
from epp.extproc.events import Dispatcher as ExtProcDispatcher
from epp.extproc.transport import OpenSession
from epp.flow.control import FlowControl
from epp.flow.evictions import Evictions
from epp.incidents import Incidents
from epp.ledger import Ledger, Mark
from epp.observe.flow import FlowRecord, Now
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import PrefixIndex
from epp.pressure import Pressure
from epp.quota.quota import Quota
from epp.reports import Reports
from epp.resources.routing import POOL_HEADER, model_headers
from epp.resources.store import InForce, Store
from epp.settings import PLACEHOLDER, Settings
from epp.signals.engines import EngineChoice
from epp.signals.scraper import Scraper
from epp.signals.source import MetricsSource
from epp.ticker import Ticker
from epp.waiting import Queue

log = logging.getLogger("epp")

ENVOY_FOLLOWS_S = 0.25
"""How long those who wait for a first endpoint wait on, where Envoy learns of it from our file: it would know no such server yet."""


class Shared(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """What the pools of a process have in common. `scraping` None: model servers are not scraped.

    `resources` tell base models. `announces` has requests carry the headers that routes go by. `session` makes of a dispatcher
    what answers ext_proc calls.
    """

    settings: Settings
    configuration: Configuration
    metrics: Metrics
    incidents: Incidents
    pressure: Pressure
    faults: PluginFaults
    estimator: TokenEstimator
    picks: PickLog
    quota: Quota | None
    resources: Store
    scraping: tuple[MetricsSource, EngineChoice] | None
    announces: bool
    session: Callable[[ExtProcDispatcher[Account]], OpenSession]


class Pool:
    """Owns everything that belongs to the pool called `name` from its making to `close`. An idle one takes no CPU.

    `in_force` are the objects that say what holds in it, None where there are none to follow.
    """

    def __init__(self, name: str, shared: Shared, in_force: InForce | None) -> None:
        settings, configuration = shared.settings, shared.configuration
        # Of its own: what one pool draws does not depend on the traffic of another.
        rng = random.Random(None if settings.seed is None else f"{settings.seed} {name}")
        self.name = name
        self.endpoints = Endpoints(stale_after_s=stale_after_s(settings))
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex(default_blocks=configuration.prefix.lru_capacity_per_server)
        self.flow = FlowRecord(shared.metrics, name, configuration.detector)
        self._metrics = shared.metrics
        recording = (
            Recording(partial(self._metrics.decision_log, "lost")) if settings.decision_log is not None else None
        )
        self._decisions = _decision_file(shared, name, recording)
        self._ticker = Ticker(self._pump)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(configuration, rng, shared.faults),
            ledger=self.ledger,
            index=self.index,
            metrics=shared.metrics,
            estimator=shared.estimator,
            policy=dispatch_policy(settings, configuration),
            rng=rng,
            timer=time.perf_counter,
            faults=shared.incidents.degraded,
            picks=shared.picks,
            pressure=shared.pressure,
            resources=in_force,
            quota=shared.quota,
            queue=self._queue(shared),
            recording=recording,
            announce=_announce(name, shared.resources) if shared.announces else None,
        )
        self.session = shared.session(self.dispatcher)
        self._reports = Reports(
            self.endpoints,
            self.ledger,
            self.index,
            shared.metrics,
            auto_tune=configuration.prefix.auto_tune,
            clock=asyncio.get_running_loop().time,
            load_fell=self.dispatcher.load_fell,
        )
        self.scraper = self._scraper(shared, rng)
        self._eds = _eds_file(settings, name)
        self._told_later: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Pool {self.name}, {len(self.endpoints)} endpoints>"

    def start(self) -> None:
        """Write what is to be written. Raises StartError."""
        if self._eds is not None:
            self._eds.begin()
        if self._decisions is None:
            return
        try:
            self._decisions.start()
        except OSError as error:
            raise StartError(f"--decision-log {self._decisions.path} cannot be written: {error.strerror}") from error

    async def close(self) -> None:
        """End what runs for it. Safe to call twice. Exchanges that are open may still end."""
        self._ticker.close()
        if self._told_later is not None:
            self._told_later.cancel()
        # Where pools come and go, what is shown of their members would add up for ever.
        self._metrics.forget(self.endpoints.members)
        if self.scraper is not None:
            await self.scraper.close()
        if self._eds is not None:
            self._eds.close()
        if self._decisions is not None:
            await self._decisions.close()

    def replace(self, members: Sequence[Endpoint]) -> None:
        """`members` are the pool now. Raises ValueError where two of them share a name; nothing has changed then."""
        was_empty = not len(self.endpoints)
        change = self.endpoints.replace(members)
        for slot, _ in change.removed:
            self._reports.forget(slot)
        self._metrics.forget(endpoint for _, endpoint in change.removed)
        if self.scraper is not None:
            self.scraper.follow(change)
        if self._eds is not None:
            self._eds.publish(self.endpoints.members)
        if was_empty and self._eds is not None:
            self._tell_later()
        elif self._told_later is None:
            self._changed()
        log.info(
            "pool %s: %d endpoints (%d added, %d removed)",
            self.name,
            len(self.endpoints),
            len(change.added),
            len(change.removed),
        )

    def look(self) -> Now:
        """Flow control as it is now. There is a queue."""
        return self.dispatcher.look(asyncio.get_running_loop().time())

    def _queue(self, shared: Shared) -> Queue | None:
        configuration = shared.configuration
        if configuration.flow is None:
            return None
        control: FlowControl[Place] = FlowControl(
            configuration.flow, asyncio.get_running_loop().time(), pool_empty=not len(self.endpoints)
        )
        evictions: Evictions[Account] | None = None
        if configuration.flow.evicts_running:
            evictions = Evictions(grace_s(shared.settings, configuration))
        return Queue(control, self.flow, self._ticker.wake, evictions)

    def _scraper(self, shared: Shared, rng: random.Random) -> Scraper[Mark] | None:
        if shared.scraping is None:
            return None
        source, engines = shared.scraping
        return Scraper(
            self._reports,
            asyncio.get_running_loop().time,
            rng=rng,
            source=source,
            engines=engines,
            interval_s=shared.settings.refresh_metrics_interval_s,
        )

    def _tell_later(self) -> None:
        """Who waits for a first endpoint hears of it when Envoy knows it, whatever others come in between."""
        if self._told_later is not None:
            self._told_later.cancel()
        self._told_later = asyncio.get_running_loop().call_later(ENVOY_FOLLOWS_S, self._changed)

    def _changed(self) -> None:
        self._told_later = None
        self.dispatcher.pool_changed(asyncio.get_running_loop().time())

    def _pump(self, now_s: float) -> bool:
        return self.dispatcher.pump(now_s)


def _announce(name: str, resources: Store) -> Announce:
    here = ((POOL_HEADER, name),)
    return lambda model: here + model_headers(model, resources.routing.base(model))


def _eds_file(settings: Settings, name: str) -> EdsFile | None:
    path = settings.envoy_eds_file
    if path is None:
        return None
    # Envoy takes one cluster from one file: with several pools each has its own, and its cluster is called like it.
    return EdsFile(_path_of(path, name), cluster=name) if PLACEHOLDER in str(path) else EdsFile(path)


def _decision_file(shared: Shared, name: str, recording: Recording | None) -> DecisionFile | None:
    settings = shared.settings
    if settings.decision_log is None or recording is None:
        return None
    return DecisionFile(
        _path_of(settings.decision_log, name),
        recording,
        pool=name,
        max_bytes=settings.decision_log_max_bytes or DEFAULT_MAX_BYTES,
        failed=partial(shared.incidents.degraded, "decision-log"),
        count=shared.metrics.decision_log,
    )


def _path_of(template: Path, name: str) -> Path:
    return Path(str(template).replace(PLACEHOLDER, name))
