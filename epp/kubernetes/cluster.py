"""What a process takes from Kubernetes: the objects that say what holds in its pools, and the pods that are their members."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from epp.discovery.source import OnChange
from epp.endpoint import Endpoint
from epp.kubernetes.api import Api
from epp.kubernetes.discovery import PodDiscovery, selector_text
from epp.kubernetes.objects import Collection, ObjectSource
from epp.resources.directory import OnObjects
from epp.resources.objects import InferencePool


class Cluster:
    """A `DiscoverySource` that returns from `start` at once: `ready` tells, and `on_ready` when it changes, whether there is anything
    to choose among.

    Objects go to `on_objects`; whoever compiles them says by `pools` which pools there are; `members(name, endpoints)` hears of
    the members of each. `collections` are those that are followed.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        collections: Sequence[Collection],
        on_objects: OnObjects,
        members: Callable[[str, Sequence[Endpoint]], None],
        *,
        on_ready: Callable[[], None] = lambda: None,
        faults: Callable[[str, Exception], None],
        rng: random.Random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._members = members
        self._on_ready = on_ready
        self._faults = faults
        self._rng = rng
        self._pods: dict[str, PodDiscovery] = {}
        self._ending: list[PodDiscovery] = []
        # Whether everything was known once: a pool that comes later does not make the others unready while its pods are asked for.
        self._complete = False
        self._objects = ObjectSource(
            api, namespace, collections, on_objects, on_settled=self._changed, faults=faults, rng=rng
        )

    async def start(self) -> None:
        self._objects.start()

    async def close(self) -> None:
        await self._objects.close()
        for pods in (*self._pods.values(), *self._ending):
            await pods.close()

    @property
    def ready(self) -> bool:
        """Whether there is a pool whose pods are known; at first, whether the objects are and the pods of every pool."""
        return self._complete and any(pods.synced for pods in self._pods.values())

    def _changed(self) -> None:
        described = [pods for pods in self._pods.values() if pods.aimed]
        if self._objects.settled and described and all(pods.synced for pods in described):
            self._complete = True
        self._on_ready()

    def pools(self, described: Mapping[str, InferencePool | None]) -> None:
        """Exactly these pools are served; None is one that no object describes: it has no members, soon."""
        self._ending = [pods for pods in self._ending if pods.ending]
        for name in self._pods.keys() - described.keys():
            pods = self._pods.pop(name)
            pods.clear()
            self._ending.append(pods)
        for name, pool in described.items():
            if name not in self._pods:
                self._pods[name] = self._discovery(partial(self._members, name))
            if pool is None:
                self._pods[name].linger()
            else:
                self._pods[name].aim(selector_text(pool.selector), pool.target_ports)

    def _discovery(self, on_change: OnChange) -> PodDiscovery:
        return PodDiscovery(
            self._api, self._namespace, on_change, on_synced=self._changed, faults=self._faults, rng=self._rng
        )


class Selected:
    """The pods of one selector, without any object: a `DiscoverySource` for a pool that is described by flags alone."""

    def __init__(self, pods: PodDiscovery, selector: str, ports: tuple[int, ...]) -> None:
        self._pods = pods
        self._aim = selector, ports

    async def start(self) -> None:
        self._pods.aim(*self._aim)

    async def close(self) -> None:
        await self._pods.close()

    @property
    def ready(self) -> bool:
        return self._pods.synced

    def pools(self, described: Mapping[str, InferencePool | None]) -> None:
        """Objects, wherever they come from, do not change who the members are."""
