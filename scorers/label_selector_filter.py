from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import msgspec
import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, Request

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class Requirement(msgspec.Struct, frozen=True, rename="camel"):
    """One expression of a Kubernetes label selector."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As Kubernetes has it: NotIn holds where the label is absent."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value in self.values
            case "NotIn":
                return value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None


class LabelSelectorFilter:
    """Keeps endpoints whose labels match a Kubernetes label selector, all parts of it together."""

    def __init__(
        self, *, match_labels: Mapping[str, str] = _NO_LABELS, match_expressions: tuple[Requirement, ...] = ()
    ) -> None:
        for requirement in match_expressions:
            if bool(requirement.values) != (requirement.operator in ("In", "NotIn")):
                wanted = "at least one value" if not requirement.values else "no values"
                raise ValueError(f"operator {requirement.operator} for {requirement.key} takes {wanted}")
        self._labels = dict(match_labels)
        self._expressions = match_expressions

    def _matches(self, endpoint: Endpoint) -> bool:
        labels = endpoint.labels
        return all(labels.get(key) == value for key, value in self._labels.items()) and all(
            requirement.holds(labels) for requirement in self._expressions
        )

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        return candidates.derive(self._matches).astype(np.bool_)
