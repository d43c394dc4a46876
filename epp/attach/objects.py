"""What makes an Envoy Gateway lead a listener to a pool that asks for it in an annotation: one object of each kind, all of them the pool's.

No I/O: pools in, objects out. `deploy/gateways/envoy-gateway` does the same by hand, and says why each setting is as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import yaml

from epp.resources.objects import InferencePool, Picker
from epp.resources.reading import Refused, read_object

ANNOTATION = "inference.networking.x-k8s.io/attach-to"
"""Its value is YAML: the `name` of a Gateway in the pool's namespace, and the `port` of one of its listeners."""

OWNED = "epp.attached-to"
"""A label of every object made here: the pool's name."""

OWNED_IN = "epp.attached-in"
"""Another: the pool's API group."""

ROUTE_TIMEOUT = "24h"
"""For a whole answer: what the gateway that the annotation comes from gives it."""

PICKER_PORT = 9002
_GATEWAY = "gateway.networking.k8s.io"
_ENVOY = "gateway.envoyproxy.io/v1alpha1"
_CALLS = {"maxConnections": 40_000, "maxPendingRequests": 40_000, "maxParallelRequests": 40_000}

MADE = (
    ("v1", "services"),
    (f"{_GATEWAY}/v1", "httproutes"),
    (_ENVOY, "envoyextensionpolicies"),
    (_ENVOY, "backendtrafficpolicies"),
)
"""apiVersion and resource of what `wanted` makes, in its order."""

Object = dict[str, Any]


class Unattachable(ValueError):
    """A pool asks for what cannot be. The message says where, and what is wrong."""


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the annotation says."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)]


class Attached(msgspec.Struct, frozen=True):
    """A pool of any version, as its object says it now. `place` is None where it asks for no listener."""

    api_version: str
    uid: str
    pool: InferencePool
    place: Place | None
    complaint: str = ""
    """Why it cannot be attached although it asks."""


class _Metadata(msgspec.Struct, frozen=True):
    uid: str = ""
    annotations: Mapping[str, str] | None = None


class _Head(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str
    metadata: _Metadata


def read(data: bytes, namespace: str) -> Attached:
    """The pool in an answer of the API server. Raises ValueError where it is none."""
    head = msgspec.json.decode(data, type=_Head)
    try:
        pool = read_object(msgspec.json.decode(data), namespace=namespace, origin="Kubernetes")
    except Refused as refused:
        raise ValueError(str(refused)) from None
    if not isinstance(pool, InferencePool):
        raise ValueError("no InferencePool")
    attached = Attached(head.api_version, head.metadata.uid, pool, None)
    asked = (head.metadata.annotations or {}).get(ANNOTATION)
    if asked is None:
        return attached
    try:
        return msgspec.structs.replace(attached, place=_place(asked, pool))
    except Unattachable as error:
        return msgspec.structs.replace(attached, complaint=str(error))


def _place(asked: str, pool: InferencePool) -> Place:
    if pool.picker is None:
        raise Unattachable("the pool names no endpoint picker")
    try:
        return msgspec.convert(yaml.safe_load(asked), Place)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise Unattachable(
            f"the annotation {ANNOTATION} must be `name: GATEWAY` and `port: NUMBER`: {reason}"
        ) from None


def wanted(attached: Attached) -> list[Object]:
    """The objects for a pool that asks for a listener, in the order of `MADE`; none for another."""
    if attached.place is None:
        return []
    picker = attached.pool.picker
    assert picker is not None
    target = {"targetRefs": [{"group": _GATEWAY, "kind": "HTTPRoute", "name": _name(attached)}]}
    return [
        _object(attached, "v1", "Service", _service(attached.pool)),
        _object(attached, f"{_GATEWAY}/v1", "HTTPRoute", _route(attached, attached.place)),
        _object(attached, _ENVOY, "EnvoyExtensionPolicy", {**target, "extProc": [_external(picker)]}),
        _object(attached, _ENVOY, "BackendTrafficPolicy", {**target, **_traffic()}),
    ]


def status(attached: Attached, problem: str, now: str) -> Object | None:
    """What to apply to the pool's status: whether the gateway was told, or `problem`. None for a pool that asks for nothing.

    `now` is the time as Kubernetes writes it.
    """
    complaint = attached.complaint or problem
    if attached.place is None and not complaint:
        return None
    condition = {
        "type": "Accepted",
        "status": "False" if complaint else "True",
        "reason": "NotAttached" if complaint else "Accepted",
        "message": complaint or "objects of the gateway lead to this pool",
        "lastTransitionTime": now,
    }
    gateway = attached.place.name if attached.place else "unknown"
    parent = {"parentRef": {"group": _GATEWAY, "kind": "Gateway", "name": gateway}, "conditions": [condition]}
    field = "parents" if attached.api_version.endswith("/v1") else "parent"
    return {
        "apiVersion": attached.api_version,
        "kind": "InferencePool",
        "metadata": {"name": attached.pool.key.name, "namespace": attached.pool.key.namespace},
        "status": {field: [parent]},
    }


def _name(attached: Attached) -> str:
    """Of everything made for a pool: unlike what the charts and their users call theirs."""
    return f"{attached.pool.key.name}-attached"


def _object(attached: Attached, version: str, kind: str, spec: Object) -> Object:
    key = attached.pool.key
    owner = {"apiVersion": attached.api_version, "kind": "InferencePool", "name": key.name, "uid": attached.uid}
    return {
        "apiVersion": version,
        "kind": kind,
        "metadata": {
            "name": _name(attached),
            "namespace": key.namespace,
            "labels": {OWNED: key.name, OWNED_IN: key.group},
            # The pool's end is theirs, also while nobody runs this.
            "ownerReferences": [owner],
        },
        "spec": spec,
    }


def _service(pool: InferencePool) -> Object:
    ports = [{"name": f"http-{port}", "port": port, "protocol": "TCP"} for port in pool.target_ports]
    return {"selector": dict(pool.selector), "ports": ports}


def _route(attached: Attached, place: Place) -> Object:
    backends = [{"name": _name(attached), "port": port} for port in attached.pool.target_ports]
    return {
        "parentRefs": [{"name": place.name, "port": place.port}],
        "rules": [{"backendRefs": backends, "timeouts": {"request": ROUTE_TIMEOUT}}],
    }


def _external(picker: Picker) -> Object:
    return {
        "backendRefs": [{"name": picker.name, "port": picker.port or PICKER_PORT}],
        "failOpen": picker.fails_open,
        "messageTimeout": "2s",
        "processingMode": {"allowModeOverride": True, "request": {"body": "BufferedPartial"}, "response": {}},
        "backendSettings": {"circuitBreaker": dict(_CALLS)},
    }


def _traffic() -> Object:
    return {
        "loadBalancer": {
            "type": "LeastRequest",
            "endpointOverride": {"extractFrom": [{"header": "x-gateway-destination-endpoint"}]},
        },
        "retry": {
            "numRetries": 2,
            "retryOn": {"triggers": ["connect-failure", "refused-stream", "reset-before-request"]},
        },
        "circuitBreaker": dict(_CALLS),
    }
