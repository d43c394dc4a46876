"""One source of endpoints for several pools: who belongs where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from epp.endpoint import Endpoint

POOL_LABEL = "inference.networking.k8s.io/pool"
"""The label of an endpoint that is meant for the pool of that name, whatever the pool selects."""

Selector = Mapping[str, str]
"""Labels that an endpoint must have to belong to a pool; an empty one fits none."""


class Spread:
    """Hands each pool its members through `replace(name, members)`, whenever the endpoints or the pools are others.

    With `alone` there is one pool and it has all endpoints, whatever their labels.
    """

    def __init__(self, replace: Callable[[str, Sequence[Endpoint]], None], *, alone: bool) -> None:
        self._replace = replace
        self._alone = alone
        self._endpoints: Sequence[Endpoint] | None = None
        self._selectors: Mapping[str, Selector] = {}

    def endpoints(self, endpoints: Sequence[Endpoint]) -> None:
        """These there are now. An `OnChange`."""
        self._endpoints = endpoints
        for name in self._selectors:
            self._hand_out(name)

    def pools(self, selectors: Mapping[str, Selector]) -> None:
        """These pools there are now, with what they select."""
        before, self._selectors = self._selectors, selectors
        for name, selector in selectors.items():
            if before.get(name) != selector:
                self._hand_out(name)

    def _hand_out(self, name: str) -> None:
        if self._endpoints is not None:
            self._replace(name, [one for one in self._endpoints if self._belongs(one, name)])

    def _belongs(self, one: Endpoint, name: str) -> bool:
        selector = self._selectors[name]
        return (
            self._alone
            or one.labels.get(POOL_LABEL) == name
            or (bool(selector) and selector.items() <= one.labels.items())
        )
