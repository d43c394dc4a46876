from __future__ import annotations

import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, Request


class ByLabel:
    """Keeps endpoints whose label has one of the given values; superseded by label-selector-filter."""

    def __init__(self, *, label: str, valid_values: tuple[str, ...] = (), allows_no_label: bool = False) -> None:
        if not valid_values and not allows_no_label:
            raise ValueError("validValues must name a value unless allowsNoLabel is true")
        self._label = label
        self._values = frozenset(valid_values)
        self._absent_passes = allows_no_label

    def _matches(self, endpoint: Endpoint) -> bool:
        value = endpoint.labels.get(self._label)
        return self._absent_passes if value is None else value in self._values

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        return candidates.derive(self._matches).astype(np.bool_)
