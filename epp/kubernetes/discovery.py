"""The endpoints of one pool from the pods that its selector chooses, followed by a watch."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from epp.discovery.source import OnChange
from epp.kubernetes.api import Api
from epp.kubernetes.follower import Follower
from epp.kubernetes.pods import Members, Pod, read_pod
from epp.kubernetes.reflector import Delta, Reflector

log = logging.getLogger("epp.kubernetes")


LINGER_S = 5.0
"""How long a pool's endpoints outlive the object that describes it. One that is replaced (`kubectl replace --force`, a chart that is
installed anew) is gone for a moment, and its pods are there all the while."""


def selector_text(labels: Mapping[str, str]) -> str:
    """`labels` as the API server takes a selector."""
    return ",".join(f"{name}={value}" for name, value in sorted(labels.items()))


class PodDiscovery:
    """One pool's. Follows the pods that `aim` names. A membership is handed to `on_change` as soon as an event has made another of it.

    While a new selector's pods are not all known yet, the endpoints of before stay. `on_synced` is called when `synced` turns true or false.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        on_change: OnChange,
        *,
        on_synced: Callable[[], None] = lambda: None,
        faults: Callable[[str, Exception], None],
        rng: random.Random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._on_change = on_change
        self._on_synced = on_synced
        self._faults = faults
        self._rng = rng
        self._members = Members(namespace)
        self._selector: str | None = None
        self._ports: tuple[int, ...] = ()
        self._follower: Follower[Pod] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._offered = True
        self._lingering: asyncio.TimerHandle | None = None
        # Whether the members are those of the present selector.
        self._whole = False
        self.synced = False
        """Whether all pods of a selector are known."""

    @property
    def aimed(self) -> bool:
        """Whether there are pods to follow."""
        return self._selector is not None

    @property
    def ending(self) -> bool:
        """Whether anything is left to end after `clear`."""
        return bool(self._closing)

    def aim(self, selector: str, ports: tuple[int, ...]) -> None:
        """Follow the pods of this label selector, at these ports, from now on. To be called on the loop."""
        self._stay()
        if selector == self._selector and ports == self._ports:
            return
        self._ports = ports
        if selector == self._selector and self._follower is not None:
            if self._whole:
                self._replace(self._follower.reflector.objects)
            return
        log.info("following the pods with %s at port %s", selector, ", ".join(map(str, ports)))
        self._selector = selector
        self._stop_following()
        self._whole = False
        reflector = Reflector(read_pod, self._unreadable, self._rng)
        self._follower = Follower(
            self._api,
            f"pods in {self._namespace}",
            [f"/api/v1/namespaces/{self._namespace}/pods"],
            reflector,
            lambda delta: self._heard(reflector, delta),
            on_listed=lambda: self._listed(reflector),
            faults=self._faults,
            selector=selector,
        )

    def linger(self) -> None:
        """There is no pool any more: `clear` in `LINGER_S`, unless `aim` is called before."""
        if self._selector is not None and self._lingering is None:
            self._lingering = asyncio.get_running_loop().call_later(LINGER_S, self.clear)

    def clear(self) -> None:
        """No endpoints, until `aim` is called again."""
        self._stay()
        if self._selector is None:
            return
        self._selector, self._ports = None, ()
        self._stop_following()
        self._replace({})
        self._set_synced(False)

    async def close(self) -> None:
        self._stay()
        self._stop_following()
        if self._closing:
            await asyncio.wait(self._closing)

    def _stay(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _stop_following(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            task = asyncio.get_running_loop().create_task(follower.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    def _current(self, reflector: Reflector[Pod]) -> bool:
        return self._follower is not None and self._follower.reflector is reflector

    def _heard(self, reflector: Reflector[Pod], delta: Delta[Pod]) -> None:
        # A follower that was told to end may still have an answer at hand.
        if self._whole and self._current(reflector):
            self._publish(self._members.apply(delta, self._ports))

    def _listed(self, reflector: Reflector[Pod]) -> None:
        if self._current(reflector):
            self._whole = True
            self._replace(reflector.objects)
            self._set_synced(True)

    def _replace(self, pods: Mapping[str, Pod]) -> None:
        self._publish(self._members.replace(pods, self._ports))

    def _publish(self, changed: bool) -> None:
        # What a listener failed over is offered again at the next occasion.
        if changed or not self._offered:
            self._offered = False
            self._on_change(self._members.endpoints())
            self._offered = True

    def _set_synced(self, synced: bool) -> None:
        if synced != self.synced:
            self.synced = synced
            self._on_synced()

    def _unreadable(self, name: str, error: ValueError) -> None:
        log.error("pod %s/%s is not understood: %s; it stays what it was", self._namespace, name, error)
