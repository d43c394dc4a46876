"""Production's picker as a router: its own objects, put together as `epp.app` does, fed with what Envoy would show it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from math import inf

from bench.lab.offered import Offered, prompt_text
from bench.lab.router import Flight, NewRouter, Page, Router, World
from bench.lab.scene import Scene
from epp.account import Account, Place
from epp.assembly import dispatch_policy
from epp.configuration import Configuration, build
from epp.dispatcher import FAIRNESS_HEADERS, OBJECTIVE_HEADERS, Dispatcher
from epp.drops import Drop
from epp.endpoint import Adapters, CacheConfig, Endpoint, Endpoints, Report
from epp.extproc.events import Arrival, Cause, Finished, Routed, Started, Steer
from epp.flow.control import FlowControl
from epp.ledger import Ledger, Mark
from epp.observe.flow import FlowRecord
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.prefix.index import PrefixIndex
from epp.reports import Reports
from epp.resources.rules import Rules
from epp.resources.store import InForce
from epp.settings import Settings
from epp.waiting import Queue

BASE_MODEL = "base"
_ANSWERED = Started(200, {":status": "200", "content-type": "text/event-stream"})


class Picker:
    """The picker that `configuration` and `settings` describe. Implements `bench.lab.router.Router`.

    A bug of the picker's that production would do without is raised: a run with one is no evidence. With `priorities` requests have
    those of the trace, else 0.
    """

    def __init__(
        self,
        configuration: Configuration,
        settings: Settings,
        world: World,
        scene: Scene,
        seed: int,
        *,
        priorities: bool = False,
    ) -> None:
        rng = random.Random(seed)
        self._world = world
        self._scene = scene
        self._now_s = self._clock(0.0)
        self._servers: dict[str, int] = {}
        self._slots: dict[int, int] = {}
        # Each with whether its answer is seen.
        self._accounts: dict[str, tuple[Account, bool]] = {}
        self._caches = [CacheConfig(one.block_size, one.num_blocks) for one in world.profiles]
        # An objective for each priority that was met.
        self._objectives: dict[str, int] = {}
        resources: InForce | None = None
        if priorities:
            resources = InForce()
            resources.rules = Rules(objectives=self._objectives)
        metrics = Metrics()
        interval_s = settings.refresh_metrics_interval_s
        self.endpoints = Endpoints(stale_after_s=max(settings.metrics_staleness_threshold_s, 2.5 * interval_s))
        self.ledger = Ledger(self.endpoints)
        self.index = PrefixIndex(default_blocks=configuration.prefix.lru_capacity_per_server)
        queue: Queue | None = None
        if configuration.flow is not None:
            control: FlowControl[Place] = FlowControl(configuration.flow, self._now_s)
            queue = Queue(control, FlowRecord(metrics, "lab", configuration.detector), self._wake)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(configuration, rng, self),
            ledger=self.ledger,
            index=self.index,
            metrics=metrics,
            estimator=TokenEstimator(),
            policy=dispatch_policy(settings, configuration),
            rng=rng,
            timer=lambda: 0.0,
            faults=_raise,
            picks=PickLog(),
            queue=queue,
            resources=resources,
        )
        self._reports = Reports(
            self.endpoints,
            self.ledger,
            self.index,
            metrics,
            auto_tune=configuration.prefix.auto_tune,
            clock=lambda: self._now_s,
            load_fell=self.dispatcher.load_fell,
        )

    def plugin_failed(self, name: str, error: Exception, now_s: float) -> None:
        raise error

    def arrive(self, flight: Flight, now_s: float) -> None:
        at_s = self._clock(now_s)
        try:
            routed = self.dispatcher.route(self._arrival(flight.id, flight.offered), at_s, at_s)
        except Drop:
            self._world.refuse(flight)
            return
        if isinstance(routed, Place):
            routed.resume = partial(self._resume, flight)
        else:
            self._send(flight, *routed, now_s)

    def first_token(self, flight: Flight, now_s: float) -> None:
        account, sees = self._accounts[flight.id]
        at_s = self._clock(now_s)
        self.dispatcher.started(account, _ANSWERED, at_s)
        if sees:
            self.dispatcher.first_body(account, at_s)

    def finished(self, flight: Flight, now_s: float, *, whole: bool) -> None:
        account, sees = self._accounts.pop(flight.id)
        notice = Finished(Cause.ABORTED)
        if whole:
            tail = _usage(flight) if sees else b""
            notice = Finished(Cause.COMPLETE, tail, len(tail))
        self.dispatcher.finished(account, notice, self._clock(now_s))

    def asked(self, server: int, now_s: float) -> Mark:
        self._clock(now_s)
        return self._reports.sent(self._slots[server])

    def reported(self, server: int, mark: object, page: Page, now_s: float) -> None:
        assert isinstance(mark, Mark)
        self._reports.reported(self._slots[server], mark, self._report(server, page), self._clock(now_s))

    def members(self, servers: Sequence[int], now_s: float) -> None:
        at_s = self._clock(now_s)
        change = self.endpoints.replace([_endpoint(server) for server in servers])
        for slot, _ in change.removed:
            self._reports.forget(slot)
        self._servers = {_endpoint(server).destination: server for server in servers}
        self._slots = dict(zip(servers, self.endpoints.slots.tolist(), strict=True))
        self.dispatcher.pool_changed(at_s)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _clock(self, now_s: float) -> float:
        """The picker's own time at `now_s`."""
        self._now_s = self._scene.clock_offset_s + now_s * self._scene.clock_rate
        return self._now_s

    def _arrival(self, id: str, offered: Offered) -> Arrival:
        headers = {
            ":method": "POST",
            ":path": "/v1/completions",
            "content-type": "application/json",
            "x-request-id": id,
        }
        if offered.tenant:
            headers[FAIRNESS_HEADERS[0]] = offered.tenant
        if offered.priority:
            objective = headers[OBJECTIVE_HEADERS[0]] = f"priority-{offered.priority}"
            self._objectives[objective] = offered.priority
        model = (offered.model or BASE_MODEL).encode()
        body = b'{"model":"%b","stream":true,"prompt":"%b"}' % (model, prompt_text(offered))
        lean = self._scene.lean
        return Arrival(headers, body, True, sees_answer=not lean, can_look=lean)

    def _send(self, flight: Flight, steer: Steer, account: Account, now_s: float) -> None:
        self._accounts[flight.id] = account, not self._scene.lean or steer.look
        self._world.send(flight, self._servers[steer.destination.partition(",")[0]], now_s)

    def _resume(self, flight: Flight, routed: Routed[Account]) -> None:
        if isinstance(routed, Drop):
            self._world.refuse(flight)
        else:
            self._send(flight, *routed, (self._now_s - self._scene.clock_offset_s) / self._scene.clock_rate)

    def _wake(self) -> None:
        self._world.wake(lambda now_s: self.dispatcher.pump(self._clock(now_s)))

    def _report(self, server: int, page: Page) -> Report:
        stats = page.stats
        adapters = None
        if page.adapter_slots:
            adapters = Adapters(
                frozenset(stats.running_adapters), frozenset(stats.waiting_adapters), page.adapter_slots
            )
        return Report(
            waiting=float(stats.waiting),
            running=float(stats.running),
            kv_usage=stats.kv_usage,
            adapters=adapters,
            cache=self._caches[server],
            prompt_tokens_total=float(stats.prompt_tokens),
            cached_tokens_total=float(stats.hit_tokens),
        )


def picker(configuration: Configuration, settings: Settings | None = None, *, priorities: bool = False) -> NewRouter:
    """A picker for each run. Without `settings` those that hold where no flag is given, at the scene's scrape interval."""

    def new(world: World, scene: Scene, seed: int) -> Router:
        chosen = settings
        if chosen is None:
            interval_s = scene.scrape_interval_s
            chosen = Settings() if interval_s == inf else Settings(refresh_metrics_interval_s=interval_s)
        return Picker(configuration, chosen, world, scene, seed, priorities=priorities)

    return new


def _endpoint(server: int) -> Endpoint:
    return Endpoint(name=f"server-{server}", address=f"10.0.{server // 250}.{server % 250 + 1}", port=8000)


def _usage(flight: Flight) -> bytes:
    """The last event of a stream, which says what the answer cost."""
    offered = flight.offered
    return (
        b'data: {"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":%d,"prompt_tokens_details":'
        b'{"cached_tokens":%d}}}\n\ndata: [DONE]\n\n'
        % (offered.prompt_tokens, offered.output_tokens, flight.cached_tokens)
    )


def _raise(kind: str, error: Exception) -> None:
    raise error
