"""Which endpoints the pods of a pool amount to. No I/O: pods come as a watch tells of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from epp.endpoint import Endpoint
from epp.kubernetes.reflector import Delta

ACTIVE_PORTS = ("llm-d.ai/active-ports", "inference.networking.k8s.io/active-ports")
"""Annotations that say at which of the pool's ports a pod listens, separated by commas; the first that a pod has counts."""


class Pod(msgspec.Struct, frozen=True):
    """What matters of a pod. `active_ports` None is all of the pool's."""

    name: str
    ip: str
    ready: bool
    """Whether it may be sent requests: it says that it is ready, and is not told to end."""
    labels: Mapping[str, str]
    active_ports: frozenset[int] | None = None


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class _Condition(msgspec.Struct, frozen=True):
    type: str
    status: str


class _Status(msgspec.Struct, frozen=True):
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: tuple[_Condition, ...] | None = None


class _Pod(msgspec.Struct, frozen=True):
    metadata: _Metadata
    status: _Status = _Status()


_DECODER = msgspec.json.Decoder(_Pod)


def read_pod(data: bytes) -> Pod:
    """The pod in `data`, JSON as the API server writes it. Raises ValueError (msgspec's) where it is none. About 10 µs."""
    pod = _DECODER.decode(data)
    ready = any(one.type == "Ready" and one.status == "True" for one in pod.status.conditions or ())
    return Pod(
        pod.metadata.name,
        pod.status.pod_ip or "",
        ready and pod.metadata.deletion_timestamp is None,
        pod.metadata.labels or {},
        _active_ports(pod.metadata.annotations or {}),
    )


def _active_ports(annotations: Mapping[str, str]) -> frozenset[int] | None:
    for annotation in ACTIVE_PORTS:
        text = annotations.get(annotation)
        if text is not None:
            said = (part.strip() for part in text.split(","))
            return frozenset(int(part) for part in said if part.isascii() and part.isdigit() and len(part) <= 5)
    return None


def endpoints_of(pod: Pod, namespace: str, ports: Sequence[int]) -> tuple[Endpoint, ...]:
    """One endpoint for each of `ports` at which the pod listens, named by the port's place among all; none where it may not be used."""
    if not (pod.ready and pod.ip):
        return ()
    return tuple(
        Endpoint(name=f"{pod.name}-rank-{rank}", namespace=namespace, address=pod.ip, port=port, labels=pod.labels)
        for rank, port in enumerate(ports)
        if pod.active_ports is None or port in pod.active_ports
    )


class Members:
    """The endpoints of one pool by pod. Owner of nothing else: pods are the reflector's."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._by_pod: dict[str, tuple[Endpoint, ...]] = {}

    def endpoints(self) -> tuple[Endpoint, ...]:
        return tuple(endpoint for endpoints in self._by_pod.values() for endpoint in endpoints)

    def apply(self, delta: Delta[Pod], ports: Sequence[int]) -> bool:
        """Take in pods that changed. Returns whether the endpoints are others than before."""
        changed = False
        for name, pod in delta.items():
            before = self._by_pod.get(name, ())
            now = endpoints_of(pod, self._namespace, ports) if pod is not None else ()
            if now != before:
                changed = True
                if now:
                    self._by_pod[name] = now
                else:
                    del self._by_pod[name]
        return changed

    def replace(self, pods: Mapping[str, Pod], ports: Sequence[int]) -> bool:
        """Exactly these pods at exactly these ports. Returns whether the endpoints are others than before."""
        gone: dict[str, Pod | None] = dict.fromkeys(self._by_pod.keys() - pods.keys())
        return self.apply({**gone, **pods}, ports)
