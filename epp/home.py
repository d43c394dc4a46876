"""The process at home in Kubernetes: where its pools and endpoints come from, whether it leads, who may read its metrics."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from epp.assembly import StartError, credentials_of
from epp.endpoint import Endpoint
from epp.kubernetes.access import AccessError
from epp.kubernetes.api import Api
from epp.kubernetes.cluster import Cluster, Selected
from epp.kubernetes.discovery import PodDiscovery
from epp.kubernetes.lease import Leadership
from epp.kubernetes.objects import ObjectSource, base_models, policies, routing
from epp.kubernetes.review import Reviews
from epp.observe.exposition import Gauge
from epp.resources.directory import OnObjects
from epp.resources.objects import InferencePool
from epp.settings import Settings

log = logging.getLogger("epp")


class Home:
    """A `DiscoverySource`: `start` returns at once, `ready` tells when there is anything to choose among, and we may.

    `on_change` is called when `ready` may have changed; the others as `Cluster` has them. Raises StartError where there is no
    way to Kubernetes.
    """

    def __init__(
        self,
        settings: Settings,
        on_objects: OnObjects,
        members: Callable[[str, Sequence[Endpoint]], None],
        *,
        on_change: Callable[[], None],
        faults: Callable[[str, Exception], None],
    ) -> None:
        # Not of --seed: replicas that are started alike must not ask alike.
        rng = random.Random()
        namespace = settings.pool_namespace
        self._credentials = credentials_of(settings)
        api = Api(self._credentials, asyncio.get_running_loop().time)
        self._reach = api.reach
        self._source = _source(settings, api, on_objects, members, on_change, faults, rng)
        self._leadership: Leadership | None = None
        if settings.elects_leader:
            self._leadership = Leadership(
                api, namespace, lease_name(settings), identity(settings), on_change=on_change, faults=faults, rng=rng
            )
        self._reviews = Reviews(api) if settings.metrics_endpoint_auth and settings.metrics_token_file is None else None

    @property
    def ready(self) -> bool:
        return self._source.ready and (self._leadership is None or self._leadership.leading)

    @property
    def tells_of_objects(self) -> bool:
        return isinstance(self._source, Cluster)

    @property
    def judge(self) -> Callable[[str, str], Awaitable[HTTPStatus]] | None:
        """Who may read metrics; None where Kubernetes is not to be asked."""
        return self._reviews.judge if self._reviews is not None else None

    def gauges(self) -> tuple[Gauge, ...]:
        text = "For how long the Kubernetes API server has not answered, in seconds; 0 while it does."
        unanswered = Gauge("epp_kubernetes_unanswered_seconds", text, lambda: self._reach.lost_for_s)
        leadership = self._leadership
        if leadership is None:
            return (unanswered,)
        return unanswered, Gauge(
            "epp_leading", "1 while this replica holds the Lease.", lambda: float(leadership.leading)
        )

    async def start(self) -> None:
        """Raises StartError where nobody can tell where the API server is, or who we are: a mistake that time does not mend."""
        try:
            await self._credentials.read()
        except AccessError as error:
            raise StartError(str(error)) from None
        await self._source.start()
        if self._leadership is not None:
            self._leadership.start()

    def pools(self, described: Mapping[str, InferencePool | None]) -> None:
        """As `Cluster.pools`."""
        self._source.pools(described)

    async def release(self) -> None:
        """Let another replica lead: we are about to end."""
        if self._leadership is not None:
            await self._leadership.release()

    async def close(self) -> None:
        await self._source.close()
        await self.release()
        if self._reviews is not None:
            self._reviews.close()


def base_model_source(
    settings: Settings, on_objects: OnObjects, faults: Callable[[str, Exception], None]
) -> ObjectSource | None:
    """ConfigMaps that tell adapters' base models, from Kubernetes; None where we are in no cluster, or nobody there, and none is named."""
    if settings.kubeconfig is None and settings.service_host is None:
        return None
    try:
        credentials = credentials_of(settings)
    except StartError:
        # Base models are an extra: a pod that is given no token routes by models all the same.
        log.warning(
            "base models are not asked of Kubernetes: this pod has no service account's token, and there is no kubeconfig"
        )
        return None
    api = Api(credentials, asyncio.get_running_loop().time)
    return ObjectSource(api, settings.pool_namespace, base_models(), on_objects, faults=faults, rng=random.Random())


def lease_name(settings: Settings) -> str:
    """As the Go picker calls it, so that one of each never lead together."""
    names = settings.selection.names
    return f"epp-{settings.pool_namespace}-{names[0] if names else settings.picker_service}.llm-d.ai"


def identity(settings: Settings) -> str:
    """Who we are to other replicas: the pod, so that a container that was restarted in it need not wait for itself."""
    return settings.pod_name or f"{socket.gethostname()}_{os.getpid()}"


def _source(
    settings: Settings,
    api: Api,
    on_objects: OnObjects,
    members: Callable[[str, Sequence[Endpoint]], None],
    on_ready: Callable[[], None],
    faults: Callable[[str, Exception], None],
    rng: random.Random,
) -> Cluster | Selected:
    namespace = settings.pool_namespace
    if settings.endpoint_selector is None:
        followed = policies(settings.pool_group or "")
        if settings.only_pool is None:
            followed += routing()
        return Cluster(api, namespace, followed, on_objects, members, on_ready=on_ready, faults=faults, rng=rng)
    named = partial(members, settings.selection.names[0])
    pods = PodDiscovery(api, namespace, named, on_synced=on_ready, faults=faults, rng=rng)
    return Selected(pods, settings.endpoint_selector, settings.endpoint_target_ports)
