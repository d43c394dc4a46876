"""The API objects of one namespace that tell pools what to do, followed by watches: pools, objectives, models, rewrites."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence

import msgspec

from epp.kubernetes.api import Api
from epp.kubernetes.follower import Follower
from epp.kubernetes.reflector import Delta, Reflector
from epp.resources.directory import OnObjects
from epp.resources.objects import POOL, Key, Resource
from epp.resources.reading import VERSIONS, Refused, read_object

log = logging.getLogger("epp.kubernetes")

ORIGIN = "Kubernetes"


def plural(kind: str) -> str:
    """The resource of `kind` in paths."""
    return f"{kind.lower()}s"


def collections(pool_group: str = "") -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Kind, group and the group's versions, best first, of every resource type that is understood; pools of that group alone."""
    for kind, versions in VERSIONS.items():
        for group in dict.fromkeys(version.rpartition("/")[0] for version in versions):
            if kind == POOL and pool_group not in ("", group):
                continue
            yield kind, group, tuple(version for version in versions if version.startswith(f"{group}/"))


class ObjectSource:
    """Hands all objects over whenever they are others than before. `on_settled` is called when it is known first what there is.

    `pool_group` is the group whose pools count, "" for all. An object that is refused in its new form stays what it was; refusals are logged. `faults` hears of bugs.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        on_objects: OnObjects,
        *,
        pool_group: str = "",
        on_settled: Callable[[], None] = lambda: None,
        faults: Callable[[str, Exception], None],
        rng: random.Random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._on_objects = on_objects
        self._pool_group = pool_group
        self._on_settled = on_settled
        self._faults = faults
        self._rng = rng
        self._objects: dict[Key, Resource] = {}
        self._followers: list[Follower[Resource]] = []

    @property
    def settled(self) -> bool:
        """Whether of every type it is known what there is, or that it cannot be read."""
        return bool(self._followers) and all(follower.reflector.settled for follower in self._followers)

    def start(self) -> None:
        """Returns at once: objects come when the API server names them."""
        self._followers = [self._follow(*collection) for collection in collections(self._pool_group)]

    async def close(self) -> None:
        await asyncio.gather(*(follower.close() for follower in self._followers))

    def _follow(self, kind: str, group: str, versions: Sequence[str]) -> Follower[Resource]:
        def unreadable(name: str, error: ValueError) -> None:
            log.error("%s %s/%s: %s; it stays what it was", kind, self._namespace, name, error)

        return Follower(
            self._api,
            f"{plural(kind)}.{group} in {self._namespace}",
            [f"/apis/{version}/namespaces/{self._namespace}/{plural(kind)}" for version in versions],
            Reflector(self._read, unreadable, self._rng),
            lambda delta: self._heard(kind, group, delta),
            on_settled=self._one_settled,
            faults=self._faults,
        )

    def _read(self, data: bytes) -> Resource:
        try:
            found = read_object(msgspec.json.decode(data), namespace=self._namespace, origin=ORIGIN)
        except Refused as refused:
            raise ValueError(str(refused)) from None
        if found is None:
            raise ValueError("of a kind that was not asked for")
        return found

    def _heard(self, kind: str, group: str, delta: Delta[Resource]) -> None:
        for name, one in delta.items():
            if one is not None:
                self._objects[one.key] = one
            else:
                self._objects.pop(Key(kind, self._namespace, name, group), None)
        self._on_objects(tuple(self._objects.values()))

    def _one_settled(self) -> None:
        if self.settled:
            self._on_settled()
