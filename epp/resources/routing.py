"""Which pool a request is for, by what HTTPRoutes, models and adapters say: compiled at each change."""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate

import msgspec

from epp.resources.objects import BaseModel, HttpRoute, Match, Share

MODEL_HEADER = "x-gateway-model-name"
BASE_MODEL_HEADER = "x-gateway-base-model-name"


POOL_HEADER = "x-gateway-inference-pool"
"""By which a route of our own Envoy configuration finds the pool's cluster."""


MAX_HEADER_CHARS = 4096
"""Longest value that an HTTPRoute can match. Envoy fails a request to which a header is added that goes beyond its limit of 60 KiB."""


def fits_header(text: str) -> bool:
    """Whether a header can hold `text` that a client wrote."""
    return len(text) <= MAX_HEADER_CHARS and text.isprintable()


def model_headers(model: str, base: str) -> tuple[tuple[str, str], ...]:
    """What routes match a request by that asks for `model`; nothing where it asks for none, or no header can say it."""
    if not model or not fits_header(model):
        return ()
    return (MODEL_HEADER, model), (BASE_MODEL_HEADER, base)


class _Way(msgspec.Struct, frozen=True, order=True):
    """One match of one rule. The least fits best: by the precedence that the Gateway API gives to matches."""

    rank: tuple[int, ...]
    match: Match
    host: str
    """"" is any."""
    pools: tuple[str, ...]
    weights: tuple[int, ...]


class Routing:
    """All that says which pool a request is for.

    `bases` are base models by adapter, and by themselves. `owners` are pools by a model that an object of theirs names.
    """

    def __init__(
        self, ways: Iterable[_Way] = (), bases: Mapping[str, str] | None = None, owners: Mapping[str, str] | None = None
    ) -> None:
        self._bases = bases or {}
        self._owners = owners or {}
        # By the model or base model that a way asks for, so that a hundred pools cost a look-up.
        self._keyed: dict[tuple[str, str], list[_Way]] = {}
        self._others: list[_Way] = []
        for way in sorted(ways):
            asked = next((one for one in way.match.headers if one[0] in (MODEL_HEADER, BASE_MODEL_HEADER)), None)
            (self._others if asked is None else self._keyed.setdefault(asked, [])).append(way)

    @property
    def known(self) -> int:
        """How many models and adapters have a base model."""
        return len(self._bases)

    def base(self, model: str) -> str:
        """The base model of an adapter, or of itself; "" where nothing is known of it."""
        return self._bases.get(model, "")

    def pool(self, headers: Mapping[str, str], model: str, rng: random.Random) -> str | None:
        """The pool of a request with `headers` (lower case) that asks for `model`; None where nothing says."""
        way = self._way(headers, model) if self._keyed or self._others else None
        if way is None:
            return self._owners.get(model)
        if len(way.pools) == 1:
            return way.pools[0]
        return way.pools[bisect_right(way.weights, rng.random() * way.weights[-1])]

    def _way(self, headers: Mapping[str, str], model: str) -> _Way | None:
        told = {MODEL_HEADER: model, BASE_MODEL_HEADER: self.base(model)}
        best: _Way | None = None
        for ways in (*(self._keyed.get(one, ()) for one in told.items()), self._others):
            fits = next((way for way in ways if _fits(way, headers, told)), None)
            if fits is not None and (best is None or fits < best):
                best = fits
        return best


NO_ROUTING = Routing()


def ways_of(routes: Iterable[HttpRoute], served: Collection[str]) -> list[_Way]:
    """The ways of `routes`, the oldest first, that lead to pools that are served."""
    ways = []
    for place, route in enumerate(routes):
        for number, rule in enumerate(route.rules):
            shares = [share for share in rule.shares if share.pool in served and share.weight]
            if not shares:
                continue
            pools, weights = _odds(shares)
            ways += [
                _Way((*_rank(match, host), place, number, at), match, host, pools, weights)
                for host in route.hosts or ("",)
                for at, match in enumerate(rule.matches)
            ]
    return ways


def bases_of(objects: Iterable[BaseModel]) -> dict[str, str]:
    """Base models by adapter and by themselves. Of two that claim an adapter the first counts."""
    bases: dict[str, str] = {}
    for one in objects:
        bases[one.model] = one.model
        for adapter in one.adapters:
            bases.setdefault(adapter, one.model)
    return bases


def _odds(shares: Iterable[Share]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    listed = tuple(shares)
    return tuple(share.pool for share in listed), tuple(accumulate(share.weight for share in listed))


def _rank(match: Match, host: str) -> tuple[int, ...]:
    whole = 0 if host.startswith("*.") else len(host)
    return -whole, -len(host), not match.exact, -len(match.path), not match.method, -len(match.headers)


def _fits(way: _Way, headers: Mapping[str, str], told: Mapping[str, str]) -> bool:
    match = way.match
    if match.method and headers.get(":method") != match.method:
        return False
    for name, value in match.headers:
        if (told[name] if name in told else headers.get(name)) != value:
            return False
    return _reaches(match, headers.get(":path", "")) and (not way.host or _at(way.host, headers.get(":authority", "")))


def _reaches(match: Match, path: str) -> bool:
    if match.path == "/" and not match.exact:
        return True
    path = path.partition("?")[0]
    if match.exact:
        return path == match.path
    # A slash at the end of a prefix says nothing.
    prefix = match.path.rstrip("/")
    return path == prefix or path.startswith(prefix + "/")


def _at(host: str, authority: str) -> bool:
    name = authority.rpartition(":")[0] if authority.rpartition(":")[2].isdecimal() else authority
    name = name.lower()
    return name.endswith(host[1:]) if host.startswith("*.") else name == host
