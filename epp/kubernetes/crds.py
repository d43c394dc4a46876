"""The CustomResourceDefinitions of what is understood, written from the very types that read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
from msgspec import inspect

from epp.kubernetes.objects import Collection, plural, policies
from epp.resources.objects import EXPERIMENTAL, MODEL, NETWORKING, OBJECTIVE, POOL, REWRITE
from epp.resources.reading import spec_of

Schema = dict[str, Any]

_SHORT_NAMES = {(POOL, NETWORKING): "infpool", (POOL, EXPERIMENTAL): "xinfpool"}
_COLUMNS = {
    OBJECTIVE: (("Inference Pool", "string", ".spec.poolRef.name"), ("Priority", "integer", ".spec.priority")),
    MODEL: (("Inference Pool", "string", ".spec.poolRef.name"), ("Model Name", "string", ".spec.modelName")),
    REWRITE: (("Inference Pool", "string", ".spec.poolRef.name"),),
}
_ABOUT = {
    POOL: "Pods that serve the same models, and who picks among them.",
    OBJECTIVE: "A priority that requests can name.",
    MODEL: "A model name for clients, with a criticality and the names that servers know.",
    REWRITE: "Which model servers are asked for, by the model that the client asked for.",
}


def crds() -> tuple[Schema, ...]:
    """One for each kind in each group, each with all versions that are understood; the best one is stored."""
    return tuple(_crd(collection) for collection in policies())


def as_yaml() -> str:
    return str(yaml.safe_dump_all(crds(), sort_keys=False))


def _crd(collection: Collection) -> Schema:
    kind, group, versions = collection.kind, collection.group, collection.versions
    short = _SHORT_NAMES.get((kind, group))
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural(kind)}.{group}",
            # Kubernetes keeps groups that end in k8s.io for APIs that it approved, or that say that they are not.
            "annotations": {"api-approved.kubernetes.io": "unapproved, written by epp from what it reads"},
        },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": plural(kind),
                "singular": kind.lower(),
                **({"shortNames": [short]} if short else {}),
            },
            "versions": [_version(kind, version, stored=version == versions[0]) for version in versions],
        },
    }


def _version(kind: str, version: str, *, stored: bool) -> Schema:
    columns = (*_COLUMNS.get(kind, ()), ("Age", "date", ".metadata.creationTimestamp"))
    return {
        "name": version.rpartition("/")[2],
        "served": True,
        "storage": stored,
        "subresources": {"status": {}},
        "additionalPrinterColumns": [{"name": name, "type": of, "jsonPath": path} for name, of, path in columns],
        "schema": {
            "openAPIV3Schema": {
                "type": "object",
                "description": _ABOUT[kind],
                "required": ["spec"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "metadata": {"type": "object"},
                    "spec": _schema(inspect.type_info(spec_of(kind, version))),
                    # Gateways write it, each version of them differently; it is not read here.
                    "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        },
    }


def _schema(of: inspect.Type) -> Schema:
    """A structural schema, as API servers want them: no references, no alternatives."""
    if isinstance(of, inspect.Metadata):
        return {**_schema(of.type), **(of.extra_json_schema or {})}
    if isinstance(of, inspect.UnionType):
        (one,) = (member for member in of.types if not isinstance(member, inspect.NoneType))
        return _schema(one)
    if isinstance(of, inspect.StructType):
        required = [field.encode_name for field in of.fields if field.required]
        properties = {field.encode_name: _schema(field.type) for field in of.fields}
        return {"type": "object", "properties": properties, **({"required": required} if required else {})}
    if isinstance(of, inspect.VarTupleType):
        return {"type": "array", "items": _schema(of.item_type), **dict(_limits(of, "Items"))}
    if isinstance(of, inspect.DictType):
        values = _schema(of.value_type)
        return {"type": "object", "additionalProperties": values, **dict(_limits(of, "Properties"))}
    if isinstance(of, inspect.LiteralType):
        return {"type": "string", "enum": list(of.values)}
    if isinstance(of, inspect.IntType):
        least = of.ge if of.ge is not None else None if of.gt is None else of.gt + 1
        most = of.le if of.le is not None else None if of.lt is None else of.lt - 1
        bounds = {"minimum": least, "maximum": most}
        return {"type": "integer", "format": "int32", **{name: at for name, at in bounds.items() if at is not None}}
    if isinstance(of, inspect.StrType):
        return {"type": "string", **({"pattern": of.pattern} if of.pattern else {}), **dict(_limits(of, "Length"))}
    raise TypeError(f"no schema for {of}")


def _limits(of: inspect.VarTupleType | inspect.DictType | inspect.StrType, what: str) -> Iterator[tuple[str, int]]:
    if of.min_length is not None:
        yield f"min{what}", of.min_length
    if of.max_length is not None:
        yield f"max{what}", of.max_length
