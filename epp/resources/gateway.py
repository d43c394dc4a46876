"""What is read of objects that belong to others: HTTPRoutes of the Gateway API, ConfigMaps that tell adapters' base models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta

from epp.resources.objects import EXPERIMENTAL, NETWORKING, POOL, Match, RouteRule, Share

MANAGED_LABELS = ("inference.networking.k8s.io/bbr-managed", "inference.llm-d.ai/ipp-managed")
"""A ConfigMap with one of these labels at "true" tells adapters' base models."""


class HeaderMatch(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    value: str
    type: str | None = None


class PathMatch(msgspec.Struct, frozen=True, rename="camel"):
    type: str | None = None
    value: str | None = None


class RouteMatch(msgspec.Struct, frozen=True, rename="camel"):
    path: PathMatch | None = None
    headers: tuple[HeaderMatch, ...] | None = None
    query_params: tuple[object, ...] | None = None
    method: str | None = None


class BackendRef(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    group: str | None = None
    kind: str | None = None
    namespace: str | None = None
    weight: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None


class Rule(msgspec.Struct, frozen=True, rename="camel"):
    matches: tuple[RouteMatch, ...] | None = None
    backend_refs: tuple[BackendRef, ...] | None = None


class RouteSpec(msgspec.Struct, frozen=True, rename="camel"):
    hostnames: tuple[str, ...] | None = None
    rules: tuple[Rule, ...] | None = None


class Data(msgspec.Struct, frozen=True, rename="camel"):
    base_model: str
    adapters: str = ""


def rules_of(spec: RouteSpec, namespace: str) -> tuple[tuple[RouteRule, ...], tuple[str, ...]]:
    """The rules that send requests to pools of `namespace`, and slips: what of them only a gateway can tell."""
    rules: list[RouteRule] = []
    slips: list[str] = []
    for number, rule in enumerate(spec.rules or ()):
        shares = tuple(
            Share(ref.name, 1 if ref.weight is None else ref.weight)
            for ref in rule.backend_refs or ()
            if ref.kind == POOL and ref.group in (NETWORKING, EXPERIMENTAL) and ref.namespace in (None, namespace)
        )
        if not shares:
            continue
        matches: list[Match] = []
        # A rule without a match matches everything.
        for place, match in enumerate(rule.matches or (RouteMatch(),)):
            unknown = _unknown(match)
            if unknown:
                slips.append(
                    f"spec.rules[{number}].matches[{place}] is passed over: {unknown} is for the gateway to match"
                )
            else:
                matches.append(_match(match))
        rules.append(RouteRule(tuple(matches), shares))
    return tuple(rules), tuple(slips)


def is_managed(labels: Mapping[str, object]) -> bool:
    return any(labels.get(name) == "true" for name in MANAGED_LABELS)


def adapters_of(data: Data) -> tuple[str, ...]:
    """Raises ValueError where the text is no list of names."""
    try:
        listed = yaml.safe_load(data.adapters)
    except yaml.YAMLError:
        listed = data.adapters
    if listed is None:
        return ()
    if not isinstance(listed, list) or not all(isinstance(one, str) for one in listed):
        raise ValueError("must be a YAML list of names")
    return tuple(one.strip() for one in listed if one.strip())


def _unknown(match: RouteMatch) -> str:
    """The condition of `match` that is not looked at here, "" where there is none."""
    if match.query_params:
        return "a query parameter"
    if match.path is not None and match.path.type not in (None, "PathPrefix", "Exact"):
        return f"a path by {match.path.type}"
    other = next((one.type for one in match.headers or () if one.type not in (None, "Exact")), None)
    return f"a header by {other}" if other else ""


def _match(match: RouteMatch) -> Match:
    path = match.path or PathMatch()
    # Of a header named twice the first counts.
    headers: dict[str, str] = {}
    for one in match.headers or ():
        headers.setdefault(one.name.lower(), one.value)
    return Match(path.value or "/", path.type == "Exact", match.method or "", tuple(headers.items()))
