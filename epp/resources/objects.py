"""The API objects that tell a pool what to do, as frozen values: the same whether a file or a Kubernetes watch brought them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

NETWORKING = "inference.networking.k8s.io"
EXPERIMENTAL = "inference.networking.x-k8s.io"
LLM_D = "llm-d.ai"
GATEWAY = "gateway.networking.k8s.io"
CORE = ""

POOL = "InferencePool"
OBJECTIVE = "InferenceObjective"
MODEL = "InferenceModel"
REWRITE = "InferenceModelRewrite"
ROUTE = "HTTPRoute"
CONFIG_MAP = "ConfigMap"

UNTOLD_S = math.inf
"""`created_s` of an object that does not say when it was made: nothing is younger."""


class Key(msgspec.Struct, frozen=True, order=True):
    """What one object is known by. Versions of a group are views of the same object, groups are not."""

    kind: str
    namespace: str
    name: str
    group: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


class PoolRef(msgspec.Struct, frozen=True):
    """The pool that an object is meant for, in the object's own namespace."""

    name: str
    group: str = NETWORKING
    kind: str = POOL


class Described(msgspec.Struct, frozen=True, kw_only=True):
    """What every object has. `created_s` is in seconds since 1970.

    `origin` says where it was read, `file:line` for a file. `slips` are mistakes in it that do not keep it from being used.
    """

    key: Key
    created_s: float = UNTOLD_S
    origin: str = ""
    slips: tuple[str, ...] = ()


class Picker(msgspec.Struct, frozen=True):
    """The endpoint picker that a pool names. `port` None is left to whoever calls it."""

    name: str
    port: int | None = None
    fails_open: bool = False


class InferencePool(Described, frozen=True, kw_only=True):
    """Pods whose labels contain `selector`, each at every one of `target_ports`."""

    selector: Mapping[str, str]
    target_ports: tuple[int, ...]
    app_protocol: str = "http"
    picker: Picker | None = None


class InferenceObjective(Described, frozen=True, kw_only=True):
    """Requests that name it have `priority`; a higher one goes first, one below 0 may be shed."""

    pool_ref: PoolRef
    priority: int = 0


class Target(msgspec.Struct, frozen=True):
    """A model name that the servers know. `weight` None is no weight."""

    model: str
    weight: int | None = None


class InferenceModel(Described, frozen=True, kw_only=True):
    """A model name that clients use, with the priority of its criticality. Without `targets` the servers know it by that name."""

    pool_ref: PoolRef
    model_name: str
    priority: int = 0
    targets: tuple[Target, ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """Requests for one of `models` (empty: for any) get one of `targets`."""

    models: tuple[str, ...]
    targets: tuple[Target, ...]


class InferenceModelRewrite(Described, frozen=True, kw_only=True):
    """Which model name the servers are asked for, by the one that the client asked for. Of its rules the first that fits counts."""

    pool_ref: PoolRef
    rules: tuple[Rule, ...]


class Match(msgspec.Struct, frozen=True):
    """A condition on a request: its path begins with the segments of `path` or is it, and all of `headers` (lower case) are
    there. `method` "" is any.
    """

    path: str = "/"
    exact: bool = False
    method: str = ""
    headers: tuple[tuple[str, str], ...] = ()


class Share(msgspec.Struct, frozen=True):
    """A pool that gets `weight` of the requests of a rule."""

    pool: str
    weight: int = 1


class RouteRule(msgspec.Struct, frozen=True):
    """Requests that fulfil one of `matches` go to one of `shares`."""

    matches: tuple[Match, ...]
    shares: tuple[Share, ...]


class HttpRoute(Described, frozen=True, kw_only=True):
    """Which pool a request is for. `hosts` (empty: all) may begin with `*.`."""

    hosts: tuple[str, ...] = ()
    rules: tuple[RouteRule, ...] = ()


class BaseModel(Described, frozen=True, kw_only=True):
    """A model that servers load, and adapters that belong to it."""

    model: str
    adapters: tuple[str, ...] = ()


Resource = InferencePool | InferenceObjective | InferenceModel | InferenceModelRewrite | HttpRoute | BaseModel
