"""The process of `epp bbr`, put together from its parts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

import uvloop

from epp.assembly import StartError
from epp.bbr.record import Record
from epp.bbr.router import Router
from epp.bbr.steps import steps_of
from epp.extproc.exchange import BODY_LIMIT_BYTES
from epp.extproc.session import open_session
from epp.extproc.tls import TlsError
from epp.home import base_model_source
from epp.incidents import Incidents
from epp.observe import logs
from epp.observe.auth import TokenError
from epp.observe.metrics import Metrics
from epp.observe.page import MetricsPage
from epp.ports import Ports, serve
from epp.pressure import Pressure
from epp.resources.directory import Directory, ResourcesError
from epp.resources.objects import BaseModel, Resource
from epp.resources.rules import Selection
from epp.resources.store import Source, Store
from epp.settings import Settings
from epp.trust import Trust
from epp.watch import LoopWatch

log = logging.getLogger("epp")


class BodyRouter:
    """A `Service`. `plugins` are as the command line has them. Raises StartError, TlsError, TokenError."""

    def __init__(self, settings: Settings, plugins: Sequence[str]) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self.metrics = Metrics()
        self.record = Record(self.metrics)
        self.resources = Store(Selection(), settings.pool_namespace)
        try:
            steps = steps_of(plugins, self.resources)
        except ValueError as error:
            raise StartError(str(error)) from None
        incidents = Incidents(self.metrics)
        self._watch = LoopWatch(Pressure(), time.monotonic, settings.hang_timeout_s)
        self._directory: Directory | None = None
        if settings.resources is not None:
            on_objects = partial(self._resources_changed, Source.DIRECTORY)
            self._directory = Directory(settings.resources, settings.pool_namespace, on_objects)
        self._source = base_model_source(
            settings, partial(self._resources_changed, Source.KUBERNETES), incidents.degraded
        )
        router = Router(steps, self.record, incidents.refused, time.perf_counter)
        session = open_session(
            router, loop.time, settings.default_modes, incidents, settings.max_body_bytes or BODY_LIMIT_BYTES
        )
        page = MetricsPage(self.record.families).pieces
        trust = Trust(settings, self.metrics)
        self.ports = Ports(settings, trust, incidents, session, page, judge=trust.judge, all_names=True)

    async def start(self) -> None:
        if self._directory is not None:
            self._directory.start()
        if self._source is not None:
            self._source.start()
        bound = await self.ports.open()
        self._watch.start()
        tls = " (TLS)" if self._settings.secure_serving else ""
        log.info("ready: ext_proc on %d%s, health on %d, metrics on %d", bound.grpc, tls, bound.health, bound.metrics)

    async def stop(self, notice_s: float, grace_s: float) -> None:
        self.ports.drain()
        log.info("draining: open exchanges have up to %.0f s", notice_s + grace_s)
        await asyncio.sleep(notice_s)
        await self.ports.stop(grace_s)
        await self.close()
        log.info("stopped")

    async def close(self) -> None:
        await self.ports.stop(0.0)
        self._watch.stop()
        if self._directory is not None:
            await self._directory.close()
        if self._source is not None:
            await self._source.close()
        await self.ports.close()

    def _resources_changed(self, source: Source, objects: Sequence[Resource]) -> None:
        told = [one for one in objects if isinstance(one, BaseModel)]
        for notice in self.resources.replace(source, told).notices:
            log.warning("%s", notice)
        log.info("base models of %d models are known", self.resources.routing.known)


def run(settings: Settings, plugins: Sequence[str]) -> int:
    """Serve until told to end. Returns the exit status: 0 after a drain, 1 where it could not start."""
    logs.configure(level=settings.log_level, encoder=settings.log_encoder, time_encoding=settings.log_time_encoding)
    for notice in settings.notices:
        log.warning("%s", notice)
    try:
        uvloop.run(serve(lambda: BodyRouter(settings, plugins), settings.drain_timeout_s))
    except (StartError, ResourcesError, TlsError, TokenError, OSError) as error:
        log.error("cannot start: %s", error)
        return 1
    return 0
