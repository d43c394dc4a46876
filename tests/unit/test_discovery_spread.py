"""Who belongs to which pool, where one source has the endpoints of all."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from epp.discovery.source import DiscoveryError
from epp.discovery.spread import POOL_LABEL, Spread
from epp.discovery.static import parse_endpoint
from epp.endpoint import Endpoint


def endpoint(name: str, **labels: str) -> Endpoint:
    return Endpoint(name=name, address="10.0.0.1", port=8000, labels=labels)


class Told:
    def __init__(self, *, alone: bool = False) -> None:
        self.calls: list[tuple[str, list[str]]] = []
        self.spread = Spread(self._replace, alone=alone)

    def _replace(self, name: str, members: Sequence[Endpoint]) -> None:
        self.calls.append((name, [one.name for one in members]))

    def since(self) -> list[tuple[str, list[str]]]:
        calls, self.calls = self.calls, []
        return calls


def test_by_labels_as_pools_select_pods() -> None:
    told = Told()
    told.spread.pools({"en": {"app": "en"}, "es": {"app": "es", "tier": "gold"}, "none": {}})
    assert told.since() == []
    told.spread.endpoints(
        [
            endpoint("a", app="en"),
            endpoint("b", app="es", tier="gold", zone="z"),
            endpoint("c", app="es"),
            endpoint("d"),
        ]
    )
    assert told.since() == [("en", ["a"]), ("es", ["b"]), ("none", [])]


def test_by_name_whatever_the_pool_selects() -> None:
    told = Told()
    told.spread.pools({"en": {"app": "en"}, "es": {}})
    told.spread.endpoints([parse_endpoint("es=10.0.0.1:1"), parse_endpoint("10.0.0.2:1")])
    assert told.since() == [("en", []), ("es", ["10.0.0.1:1"])]


def test_a_pool_alone_has_all() -> None:
    told = Told(alone=True)
    told.spread.pools({"en": {"app": "en"}})
    told.spread.endpoints([endpoint("a"), parse_endpoint("es=10.0.0.1:1")])
    assert told.since() == [("en", ["a", "10.0.0.1:1"])]


def test_only_those_pools_hear_whose_selection_is_another() -> None:
    told = Told()
    told.spread.pools({"en": {"app": "en"}, "es": {"app": "es"}})
    told.spread.endpoints([endpoint("a", app="en"), endpoint("b", app="es")])
    told.since()
    told.spread.pools({"es": {"app": "es"}, "fr": {"app": "en"}})
    assert told.since() == [("fr", ["a"])]
    told.spread.pools({"es": {"app": "en"}, "fr": {"app": "en"}})
    assert told.since() == [("es", ["a"])]


@pytest.mark.parametrize("text", ["=10.0.0.1:1", "en=", "en=10.0.0.1", "=", "en=x=y"])
def test_half_a_pool_is_refused(text: str) -> None:
    with pytest.raises(DiscoveryError, match=r"is no host:port"):
        parse_endpoint(text)


def test_the_pool_is_a_label_and_no_part_of_the_name() -> None:
    one = parse_endpoint("en=[fd00::5]:8000")
    assert (one.name, one.labels) == ("[fd00::5]:8000", {POOL_LABEL: "en"})
