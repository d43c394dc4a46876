"""The API objects of one namespace that tell what to do, followed by watches: pools, objectives, models, rewrites, routes."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import msgspec

from epp.kubernetes.api import Api
from epp.kubernetes.follower import Follower
from epp.kubernetes.reflector import Delta, Reflector
from epp.resources.directory import OnObjects
from epp.resources.gateway import MANAGED_LABELS
from epp.resources.objects import CONFIG_MAP, CORE, POOL, ROUTE, Resource
from epp.resources.reading import ROUTING_VERSIONS, VERSIONS, Refused, read_object

log = logging.getLogger("epp.kubernetes")

ORIGIN = "Kubernetes"


def plural(kind: str) -> str:
    """The resource of `kind` in paths."""
    return f"{kind.lower()}s"


class Collection(msgspec.Struct, frozen=True):
    """All objects of a kind in a group. `versions` are apiVersions, best first: views of the same objects."""

    kind: str
    group: str
    versions: tuple[str, ...]
    selector: str = ""

    def __str__(self) -> str:
        return f"{plural(self.kind)}.{self.group}" if self.group else plural(self.kind)

    def paths(self, namespace: str) -> list[str]:
        """Where it is, in each version."""
        roots = (f"/apis/{version}" if self.group else f"/api/{version}" for version in self.versions)
        return [f"{root}/namespaces/{namespace}/{plural(self.kind)}" for root in roots]


def policies(pool_group: str = "") -> tuple[Collection, ...]:
    """What says what holds in a pool, pools themselves included: those of `pool_group`, or of any where it is ""."""
    return tuple(one for one in _of(VERSIONS) if one.kind != POOL or pool_group in ("", one.group))


def routing() -> tuple[Collection, ...]:
    """What tells which of several pools a request is for."""
    return tuple(one for one in _of(ROUTING_VERSIONS) if one.kind == ROUTE) + base_models()


def base_models() -> tuple[Collection, ...]:
    """ConfigMaps that tell adapters' base models. One of two labels marks them, which no selector can say."""
    return tuple(Collection(CONFIG_MAP, CORE, ("v1",), f"{label}=true") for label in MANAGED_LABELS)


def _of(known: Mapping[str, tuple[str, ...]]) -> Iterator[Collection]:
    for kind, versions in known.items():
        groups = {version: version.rpartition("/")[0] for version in versions}
        for group in dict.fromkeys(groups.values()):
            yield Collection(kind, group, tuple(version for version in versions if groups[version] == group))


class ObjectSource:
    """Hands all objects over whenever they are others than before. `on_settled` is called when it is known first what there is.

    An object that is refused in its new form stays what it was; refusals are logged. `faults` hears of bugs.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        collections: Sequence[Collection],
        on_objects: OnObjects,
        *,
        on_settled: Callable[[], None] = lambda: None,
        faults: Callable[[str, Exception], None],
        rng: random.Random,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._on_objects = on_objects
        self._collections = collections
        self._on_settled = on_settled
        self._faults = faults
        self._rng = rng
        self._followers: list[Follower[Resource]] = []

    @property
    def settled(self) -> bool:
        """Whether of every type it is known what there is, or that it cannot be read."""
        return bool(self._followers) and all(follower.reflector.settled for follower in self._followers)

    def start(self) -> None:
        """Returns at once: objects come when the API server names them."""
        self._followers = [self._follow(collection) for collection in self._collections]

    async def close(self) -> None:
        await asyncio.gather(*(follower.close() for follower in self._followers))

    def _follow(self, collection: Collection) -> Follower[Resource]:
        def unreadable(name: str, error: ValueError) -> None:
            log.error("%s %s/%s: %s; it stays what it was", collection.kind, self._namespace, name, error)

        return Follower(
            self._api,
            f"{collection} in {self._namespace}",
            collection.paths(self._namespace),
            Reflector(partial(self._read, collection), unreadable, self._rng),
            self._tell,
            on_settled=self._one_settled,
            faults=self._faults,
            selector=collection.selector,
        )

    def _read(self, collection: Collection, data: bytes) -> Resource:
        try:
            # Items of a list do not say of which kind they are where Kubernetes itself defines it.
            value = {"kind": collection.kind, "apiVersion": collection.versions[0], **msgspec.json.decode(data)}
            found = read_object(value, namespace=self._namespace, origin=ORIGIN)
        except Refused as refused:
            raise ValueError(str(refused)) from None
        if found is None:
            raise ValueError("not of the kind that was asked for")
        return found

    def _tell(self, _: Delta[Resource]) -> None:
        self._on_objects(tuple(one for follower in self._followers for one in follower.reflector.objects.values()))

    def _one_settled(self) -> None:
        if self.settled:
            self._on_settled()
