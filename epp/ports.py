"""What a process listens on, and its life from the first port to the last open call."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec

from epp.assembly import StartError, limits_of
from epp.extproc.health import Health
from epp.extproc.reflection import reflection
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession
from epp.incidents import Incidents
from epp.observe.http import Judge, ObservationServer, Page, Route
from epp.settings import Settings
from epp.trust import LOOK_INTERVAL_S, Trust

log = logging.getLogger("epp")

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
READINESS = frozenset({"", "readiness", "inference-extension", "envoy.service.ext_proc.v3.ExternalProcessor"})
LIVENESS = "liveness"

NOTICE_S = 5.0
"""After SIGTERM health says NOT_SERVING and calls are still taken for this long: Envoy's two missed checks, 2 s apart."""


class Bound(msgspec.Struct, frozen=True):
    """The ports that were had."""

    grpc: int
    health: int
    metrics: int


class Ports:
    """ext_proc, health checks, and metrics with whatever else may be looked at; and whom each of them believes.

    `process` answers ext_proc calls, `page` and `routes` are what the metrics port shows. `ready()` says whether requests can be
    answered, apart from whether the ports are open; whoever changes that calls `changed`. `judge` says who may read metrics. `all_names`: health answers for
    any name as for the process.
    """

    def __init__(
        self,
        settings: Settings,
        trust: Trust,
        incidents: Incidents,
        process: OpenSession,
        page: Page,
        routes: Mapping[str, Route] | None = None,
        *,
        ready: Callable[[], bool] = lambda: True,
        judge: Judge | None = None,
        all_names: bool = False,
    ) -> None:
        self._settings = settings
        self._trust = trust
        self._trust_timer: asyncio.TimerHandle | None = None
        self._is_ready = ready
        self._all_names = all_names
        self._opened = False
        self._draining = False
        self._health = Health(self.serving, sorted(READINESS | {LIVENESS}))
        self.routes = {PROCESS: process, **self._health.routes()}
        self.routes |= reflection(self.routes)
        limits = limits_of(settings)
        self._server = trust.server(self.routes, limits, incidents.limited)
        self._health_server = Http2Server(self._health.routes(), limits, on_limit=incidents.limited)
        self._observation = ObservationServer(
            page,
            lambda: self.serving("") is True,
            routes,
            judge=judge,
        )

    def serving(self, service: str) -> bool | None:
        """The health service's answer; None for a name nobody knows."""
        if service == LIVENESS:
            return True
        if service in READINESS or self._all_names:
            return self._opened and not self._draining and self._is_ready()
        return None

    def changed(self) -> None:
        """Whether requests can be answered may be another answer now."""
        self._health.changed()

    async def open(self) -> Bound:
        """Returns when calls are answered. Raises StartError, TlsError."""
        settings = self._settings
        host, health, metrics, grpc = (
            settings.host,
            settings.grpc_health_port,
            settings.metrics_port,
            settings.grpc_port,
        )
        health = await _bound("--grpc-health-port", host, health, self._health_server.start(host, health))
        context = self._trust.metrics_context()
        metrics = await _bound("--metrics-port", host, metrics, self._observation.start(host, metrics, context))
        grpc = await _bound("--grpc-port", host, grpc, self._server.start(host, grpc))
        if self._trust.follows:
            self._follow_trust()
        self._opened = True
        self._health.changed()
        return Bound(grpc, health, metrics)

    def drain(self) -> None:
        """Say that we stop; calls are still taken."""
        self._draining = True
        self._health.changed()

    async def stop(self, grace_s: float) -> None:
        """Take no more calls, and let open ones go on for `grace_s`."""
        await self._server.stop(grace_s)

    async def close(self) -> None:
        """Close what tells of us. Safe to call twice; after `stop`."""
        if self._trust_timer is not None:
            self._trust_timer.cancel()
        await self._observation.close()
        await self._health_server.stop(0.0)

    def _follow_trust(self) -> None:
        self._trust.look()
        self._trust_timer = asyncio.get_running_loop().call_later(LOOK_INTERVAL_S, self._follow_trust)


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


class Service(Protocol):
    """What runs between two signals."""

    async def start(self) -> None: ...
    async def stop(self, notice_s: float, grace_s: float) -> None:
        """Say at once that we stop, take calls for `notice_s` more, let open ones go on for `grace_s`, then `close`."""
        ...

    async def close(self) -> None:
        """End everything now. Safe to call twice, and after a `start` that failed."""
        ...


async def serve(make: Callable[[], Service], drain_timeout_s: float) -> None:
    """Run what `make` makes until SIGTERM or SIGINT, and drain it. Raises what `make` and `start` raise."""
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        # Before anything else: the first process of a container has no default action for either.
        loop.add_signal_handler(number, told.put_nowait, number)
    service = make()
    try:
        await service.start()
        await _until_told(service, drain_timeout_s, told)
    finally:
        await service.close()


async def _until_told(service: Service, drain_timeout_s: float, told: asyncio.Queue[signal.Signals]) -> None:
    # What lives now lives for good: the collector need not walk it again and again. A request makes about a hundred objects
    # that reference counts take away; the default threshold of 700 would look for cycles after every seventh.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    first = await told.get()
    # Ctrl-C is a person who waits; SIGTERM an orchestrator whose proxies have yet to notice.
    notice_s = 0.0 if first is signal.SIGINT else min(NOTICE_S, drain_timeout_s / 2)
    stopping = asyncio.ensure_future(service.stop(notice_s, drain_timeout_s - notice_s))
    again = asyncio.ensure_future(told.get())
    await asyncio.wait((stopping, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not stopping.done():
        log.warning("told to end twice: ending at once")
        stopping.cancel()
        await asyncio.wait((stopping,))
        return
    await stopping
