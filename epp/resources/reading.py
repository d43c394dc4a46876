"""From one object as Kubernetes writes it, already taken apart into mappings and lists, to a frozen value.

This is all that is known of the objects' schemas; where the mapping came from is the caller's.
"""

from __future__ import annotations

import datetime
import difflib
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, inspect

from epp.resources import gateway
from epp.resources.objects import (
    CONFIG_MAP,
    CORE,
    EXPERIMENTAL,
    GATEWAY,
    LLM_D,
    MODEL,
    NETWORKING,
    OBJECTIVE,
    POOL,
    REWRITE,
    ROUTE,
    UNTOLD_S,
    BaseModel,
    HttpRoute,
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    Key,
    Picker,
    PoolRef,
    Resource,
    Rule,
    Target,
)

VERSIONS: Mapping[str, tuple[str, ...]] = {
    POOL: (f"{NETWORKING}/v1", f"{EXPERIMENTAL}/v1alpha2", f"{EXPERIMENTAL}/v1alpha1"),
    OBJECTIVE: (f"{EXPERIMENTAL}/v1alpha2", f"{LLM_D}/v1alpha2"),
    MODEL: (f"{EXPERIMENTAL}/v1alpha2", f"{EXPERIMENTAL}/v1alpha1"),
    REWRITE: (f"{EXPERIMENTAL}/v1alpha2", f"{LLM_D}/v1alpha2"),
}
"""The apiVersions that each kind of ours is known in."""

ROUTING_VERSIONS: Mapping[str, tuple[str, ...]] = {
    ROUTE: (f"{GATEWAY}/v1", f"{GATEWAY}/v1beta1"),
    CONFIG_MAP: ("v1",),
}
"""The same of kinds that are others', of which we read what says which pool a request is for."""

GROUPS = (LLM_D, NETWORKING, EXPERIMENTAL, GATEWAY, CORE)
"""The later an object's group stands here, the less it counts against one of the same kind and name in another group."""

PRIORITY_OF_CRITICALITY: Mapping[str, int] = {"Critical": 1, "Standard": 0, "Sheddable": -1}
"""The old API's three levels on today's scale: above, at and below the priority of a request that says nothing."""

SAID_IN_VAIN = f"{NETWORKING}/v1alpha2"
"""An apiVersion that some documents give to objects of the experimental group. Nothing is served under it."""


class Refused(Exception):
    """An object that cannot be used. `path` leads to the mistake as in `spec.rules[0].targets`; "" is the whole object."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}" if path else reason)
        self.path = path
        self.reason = reason


Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
PortNumber = Annotated[int, Meta(ge=1, le=65535)]
Weight = Annotated[int, Meta(ge=1, le=1_000_000)]
Labels = Annotated[dict[str, str], Meta(min_length=1, max_length=64)]
Filled = Annotated[str, Meta(min_length=1)]
FailureMode = Annotated[Literal["FailOpen", "FailClose"], Meta(extra_json_schema={"default": "FailClose"})]
RefGroup = Annotated[str, Meta(max_length=253, extra_json_schema={"default": ""})]
RefKind = Annotated[str, Meta(max_length=63, extra_json_schema={"default": "Service"})]
AppProtocol = Annotated[Literal["http", "kubernetes.io/h2c"], Meta(extra_json_schema={"default": "http"})]

_BY_NUMBER = {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["number"]}
_PORT_OF_A_SERVICE = {
    "x-kubernetes-validations": [
        {"rule": "self.kind != 'Service' || has(self.port)", "message": "port is required where kind is Service"}
    ]
}


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: Name
    namespace: Name | None = None
    creation_timestamp: datetime.datetime | None = None


class _Labels(msgspec.Struct, frozen=True):
    labels: dict[str, str] | None = None


class _PoolRef(msgspec.Struct, frozen=True, rename="camel"):
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    group: str | None = None
    kind: str | None = None


class _Selector(msgspec.Struct, frozen=True, rename="camel"):
    match_labels: Labels


class _Port(msgspec.Struct, frozen=True, rename="camel"):
    number: PortNumber


class _PickerRef(msgspec.Struct, frozen=True, rename="camel"):
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    group: RefGroup | None = None
    kind: RefKind | None = None
    port: _Port | None = None
    failure_mode: FailureMode | None = None


class _Pool(msgspec.Struct, frozen=True, rename="camel"):
    selector: _Selector
    target_ports: Annotated[tuple[_Port, ...], Meta(min_length=1, max_length=8, extra_json_schema=_BY_NUMBER)]
    app_protocol: AppProtocol | None = None
    endpoint_picker_ref: Annotated[_PickerRef, Meta(extra_json_schema=_PORT_OF_A_SERVICE)] | None = None


class _ExtensionRef(msgspec.Struct, frozen=True, rename="camel"):
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    group: RefGroup | None = None
    kind: RefKind | None = None
    port_number: PortNumber | None = None
    target_port_number: PortNumber | None = None
    failure_mode: FailureMode | None = None


class _AlphaPool(msgspec.Struct, frozen=True, rename="camel"):
    selector: Labels
    target_port_number: PortNumber
    extension_ref: _ExtensionRef | None = None


class _Objective(msgspec.Struct, frozen=True, rename="camel"):
    pool_ref: _PoolRef
    priority: Annotated[int, Meta(ge=-(2**31), lt=2**31)] | None = None


class _TargetModel(msgspec.Struct, frozen=True, rename="camel"):
    name: Annotated[str, Meta(min_length=1, max_length=253)]
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class _Model(msgspec.Struct, frozen=True, rename="camel"):
    model_name: Annotated[str, Meta(min_length=1, max_length=256)]
    pool_ref: _PoolRef
    criticality: Annotated[str, Meta(extra_json_schema={"enum": list(PRIORITY_OF_CRITICALITY)})] | None = None
    target_models: Annotated[tuple[_TargetModel, ...], Meta(max_length=10)] | None = None


class _ModelMatch(msgspec.Struct, frozen=True, rename="camel"):
    value: Filled
    type: Literal["Exact"] | None = None


class _Match(msgspec.Struct, frozen=True, rename="camel"):
    model: _ModelMatch


class _RewriteTarget(msgspec.Struct, frozen=True, rename="camel"):
    model_rewrite: Filled
    weight: Weight | None = None


class _Rule(msgspec.Struct, frozen=True, rename="camel"):
    targets: Annotated[tuple[_RewriteTarget, ...], Meta(min_length=1)]
    matches: tuple[_Match, ...] | None = None


class _Rewrite(msgspec.Struct, frozen=True, rename="camel"):
    pool_ref: _PoolRef
    rules: tuple[_Rule, ...]


def read_object(value: object, *, namespace: str, origin: str = "", strict: bool = False) -> Resource | None:
    """The object in `value`; None where it is of no kind that matters here. Raises Refused.

    `namespace` is where an object is that does not say. `strict` refuses fields that the schema does not have, as
    `kubectl apply` does; what an API server hands out has passed its own schema, which may be newer than this one.
    """
    if not isinstance(value, dict):
        raise Refused("", "must be a mapping with apiVersion and kind")
    version, kind = _text(value, "apiVersion"), _text(value, "kind")
    if version in ROUTING_VERSIONS.get(kind, ()):
        return _read_routing(value, version, namespace, origin)
    if kind not in VERSIONS or version.rpartition("/")[0] not in GROUPS:
        return None
    slips: tuple[str, ...] = ()
    if kind != POOL and version == SAID_IN_VAIN:
        version = f"{EXPERIMENTAL}/v1alpha2"
        slips = (f"there is no {kind} in {SAID_IN_VAIN}; read as {version}",)
    if version not in VERSIONS[kind]:
        raise Refused("apiVersion", f"{kind} is not known in {version}; known: {', '.join(VERSIONS[kind])}")
    if strict:
        _refuse_unknown(value, "", ("apiVersion", "kind", "metadata", "spec", "status"))
    described = _describe(value, kind, version, namespace, origin, slips)
    if kind == POOL and version == f"{NETWORKING}/v1":
        return _pool(described, _read(value, "spec", _Pool, strict))
    if kind == POOL:
        return _alpha_pool(described, _read(value, "spec", _AlphaPool, strict))
    if kind == OBJECTIVE:
        return _objective(described, _read(value, "spec", _Objective, strict))
    if kind == MODEL:
        return _model(described, _read(value, "spec", _Model, strict), zero_weights=version.endswith("/v1alpha1"))
    return _rewrite(described, _read(value, "spec", _Rewrite, strict))


def spec_of(kind: str, version: str) -> type[msgspec.Struct]:
    """The type that the `spec` of one of `VERSIONS` is read into. What it says of defaults is for the API server to fill in."""
    pool = _Pool if version == f"{NETWORKING}/v1" else _AlphaPool
    specs: dict[str, type[msgspec.Struct]] = {POOL: pool, OBJECTIVE: _Objective, MODEL: _Model, REWRITE: _Rewrite}
    return specs[kind]


def _describe(
    value: Mapping[str, object], kind: str, version: str, namespace: str, origin: str, slips: tuple[str, ...]
) -> _Described:
    metadata = _read(value, "metadata", _Metadata, strict=False)
    return _Described(
        key=Key(kind, metadata.namespace or namespace, metadata.name, version.rpartition("/")[0]),
        created_s=metadata.creation_timestamp.timestamp() if metadata.creation_timestamp else UNTOLD_S,
        origin=origin,
        slips=slips,
    )


def _read_routing(
    value: Mapping[str, object], version: str, namespace: str, origin: str
) -> HttpRoute | BaseModel | None:
    """None for a ConfigMap that is about something else."""
    kind = ROUTE if version != "v1" else CONFIG_MAP
    if kind == CONFIG_MAP and not gateway.is_managed(_read(value, "metadata", _Labels, strict=False).labels or {}):
        return None
    d = _describe(value, kind, version, namespace, origin, ())
    if kind == ROUTE:
        spec = _read(value, "spec", gateway.RouteSpec, strict=False)
        rules, slips = gateway.rules_of(spec, d.key.namespace)
        hosts = tuple(host.lower() for host in spec.hostnames or ())
        return HttpRoute(key=d.key, created_s=d.created_s, origin=origin, slips=slips, hosts=hosts, rules=rules)
    data = _read(value, "data", gateway.Data, strict=False)
    if not data.base_model.strip():
        raise Refused("data.baseModel", "must not be empty")
    try:
        adapters = gateway.adapters_of(data)
    except ValueError as error:
        raise Refused("data.adapters", str(error)) from None
    return BaseModel(key=d.key, created_s=d.created_s, origin=origin, model=data.base_model.strip(), adapters=adapters)


def identity(value: object, namespace: str) -> Key | None:
    """The key of an object that may be refused; None where it does not even tell that."""
    if not isinstance(value, dict) or not isinstance(value.get("metadata"), dict):
        return None
    version, kind = value.get("apiVersion"), value.get("kind")
    name, where = value["metadata"].get("name"), value["metadata"].get("namespace") or namespace
    if not (isinstance(version, str) and isinstance(kind, str) and isinstance(name, str) and isinstance(where, str)):
        return None
    group = version.rpartition("/")[0]
    return Key(kind, where, name, EXPERIMENTAL if kind != POOL and version == SAID_IN_VAIN else group)


class _Described(msgspec.Struct, frozen=True):
    key: Key
    created_s: float
    origin: str
    slips: tuple[str, ...]


def _pool(d: _Described, spec: _Pool) -> InferencePool:
    ports = tuple(port.number for port in spec.target_ports)
    if len(set(ports)) < len(ports):
        raise Refused("spec.targetPorts", f"port {max(ports, key=ports.count)} is given twice")
    ref = spec.endpoint_picker_ref
    if ref is not None and ref.port is None and (ref.kind or "Service") == "Service":
        raise Refused("spec.endpointPickerRef", "port is required where kind is Service")
    return InferencePool(
        key=d.key,
        created_s=d.created_s,
        origin=d.origin,
        slips=d.slips,
        selector=spec.selector.match_labels,
        target_ports=ports,
        app_protocol=spec.app_protocol or "http",
        picker=Picker(ref.name, ref.port.number if ref.port else None, ref.failure_mode == "FailOpen") if ref else None,
    )


def _alpha_pool(d: _Described, spec: _AlphaPool) -> InferencePool:
    ref = spec.extension_ref
    picker = None
    if ref is not None:
        picker = Picker(ref.name, ref.port_number or ref.target_port_number or 9002, ref.failure_mode == "FailOpen")
    return InferencePool(
        key=d.key,
        created_s=d.created_s,
        origin=d.origin,
        slips=d.slips,
        selector=spec.selector,
        target_ports=(spec.target_port_number,),
        picker=picker,
    )


def _objective(d: _Described, spec: _Objective) -> InferenceObjective:
    return InferenceObjective(
        key=d.key,
        created_s=d.created_s,
        origin=d.origin,
        slips=d.slips,
        pool_ref=_pool_ref(spec.pool_ref, NETWORKING),
        priority=spec.priority or 0,
    )


def _model(d: _Described, spec: _Model, *, zero_weights: bool) -> InferenceModel:
    criticality = spec.criticality or "Standard"
    if criticality not in PRIORITY_OF_CRITICALITY:
        raise Refused(
            "spec.criticality", f"unknown value {criticality!r}; {nearest(criticality, PRIORITY_OF_CRITICALITY)}"
        )
    targets = tuple(Target(one.name, one.weight) for one in spec.target_models or ())
    weighted = [target.weight for target in targets if target.weight is not None]
    if weighted and len(weighted) < len(targets):
        raise Refused("spec.targetModels", "weights must be set for all targets or for none")
    if 0 in weighted and not zero_weights:
        raise Refused(f"spec.targetModels[{weighted.index(0)}].weight", "must be at least 1")
    return InferenceModel(
        key=d.key,
        created_s=d.created_s,
        origin=d.origin,
        slips=d.slips,
        pool_ref=_pool_ref(spec.pool_ref, EXPERIMENTAL),
        model_name=spec.model_name,
        priority=PRIORITY_OF_CRITICALITY[criticality],
        targets=targets,
    )


def _rewrite(d: _Described, spec: _Rewrite) -> InferenceModelRewrite:
    rules = tuple(
        Rule(
            tuple(match.model.value for match in rule.matches or ()),
            tuple(Target(target.model_rewrite, target.weight) for target in rule.targets),
        )
        for rule in spec.rules
    )
    return InferenceModelRewrite(
        key=d.key,
        created_s=d.created_s,
        origin=d.origin,
        slips=d.slips,
        pool_ref=_pool_ref(spec.pool_ref, NETWORKING),
        rules=rules,
    )


def _pool_ref(ref: _PoolRef, group: str) -> PoolRef:
    return PoolRef(ref.name, ref.group or group, ref.kind or POOL)


def _text(value: Mapping[str, object], field: str) -> str:
    text = value.get(field)
    if not isinstance(text, str) or not text:
        raise Refused(field, "must be a text") if field in value else Refused("", f"{field} is missing")
    return text


_T = TypeVar("_T", bound=msgspec.Struct)


def _read(value: Mapping[str, object], field: str, into: type[_T], strict: bool) -> _T:
    if field not in value:
        raise Refused("", f"{field} is missing")
    if strict:
        _refuse_unknown_in(value[field], _shape(into), field)
    try:
        return msgspec.convert(value[field], into)
    except msgspec.ValidationError as error:
        reason, _, at = str(error).partition(" - at `$")
        raise Refused(field + at.rstrip("`"), _reworded(reason)) from None


def _reworded(reason: str) -> str:
    missing = "Object missing required field "
    if reason.startswith(missing):
        return f"{reason[len(missing) :].strip('`')} is missing"
    plain = reason.replace("`", "").replace(" | null", "").replace("object", "mapping").replace("array", "list")
    return plain[0].lower() + plain[1:]


@cache
def _shape(of: type[msgspec.Struct]) -> inspect.Type:
    return inspect.type_info(of)


def _refuse_unknown_in(value: object, shape: inspect.Type, path: str) -> None:
    if isinstance(shape, inspect.Metadata):
        _refuse_unknown_in(value, shape.type, path)
    elif isinstance(shape, inspect.UnionType):
        for one in shape.types:
            _refuse_unknown_in(value, one, path)
    elif isinstance(shape, inspect.StructType) and isinstance(value, dict):
        types = {field.encode_name: field.type for field in shape.fields}
        _refuse_unknown(value, path, types)
        for name, inner in value.items():
            _refuse_unknown_in(inner, types[name], f"{path}.{name}")
    elif isinstance(shape, inspect.VarTupleType) and isinstance(value, list):
        for number, inner in enumerate(value):
            _refuse_unknown_in(inner, shape.item_type, f"{path}[{number}]")


def _refuse_unknown(value: Mapping[str, object], path: str, known: Collection[str]) -> None:
    for name in value:
        if name not in known:
            raise Refused(f"{path}.{name}".lstrip("."), f"unknown field; {nearest(name, known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """`did you mean X?` for the nearest of `known`, or a list of them where none is near."""
    by_folded = {candidate.casefold(): candidate for candidate in sorted(known)}
    near = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    return f"did you mean {by_folded[near[0]]}?" if near else f"known: {', '.join(by_folded.values())}"
