"""The numbers of a configuration file that can be searched, and the file with others in their places.

What the file spells out is searched: the weights of its scorers, and every plain number among the parameters of filters, scorers and
detectors. Comments, order and everything else stay as the operator wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec
import yaml

from epp.configuration import describe

WIDEST = 8.0
"""How many times smaller or larger than it is a number without bounds may become."""

_SEARCHED = frozenset({"filter", "scorer", "saturation detector"})
_SHARE = "number 0 to 1"


class Knob(msgspec.Struct, frozen=True):
    """A number at `start` to `end` of the text, between `low` and `high`, both included; `logarithmic` where only ratios matter."""

    name: str
    start: int
    end: int
    written: str
    value: float
    low: float
    high: float
    whole: bool
    logarithmic: bool

    def text(self, value: float) -> str:
        """As it stands where it is the same, else to three digits and without an exponent: YAML takes 1e-05 for a word."""
        if value == self.value:
            return self.written
        return str(round(value)) if self.whole else f"{Decimal(f'{value:.3g}'):f}"


def knobs(text: str) -> list[Knob]:
    """All of a file that loads, in its order."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    found = [*_parameters(root), *_weights(root)]
    return sorted(found, key=lambda knob: knob.start)


def turned(text: str, values: Mapping[str, float], known: Sequence[Knob]) -> str:
    """The text with `values`, by the names of knobs, in their places."""
    for knob in sorted(known, key=lambda knob: -knob.start):
        if knob.name in values:
            text = text[: knob.start] + knob.text(values[knob.name]) + text[knob.end :]
    return text


def _weights(root: Any) -> Iterator[Knob]:
    profiles = list(_items(_get(root, "schedulingProfiles")))
    entries = [(profile, entry) for profile in profiles for entry in _items(_get(profile, "plugins"))]
    weights = [_number(_get(entry, "weight")) or 0.0 for _, entry in entries]
    for profile, entry in entries:
        node = _get(entry, "weight")
        value = _number(node)
        if value is None:
            continue
        where = f" in {_get(profile, 'name').value}" if len(profiles) > 1 else ""
        name = f"weight of {_get(entry, 'pluginRef').value}{where}"
        # Only their ratios count, so that twice the largest is as good as any bound.
        yield Knob(name, *_place(node), node.value, value, 0.0, 2.0 * max(*weights, 1.0), False, False)


def _parameters(root: Any) -> Iterator[Knob]:
    types = {one.type: one for one in describe()}
    for plugin in _items(_get(root, "plugins")):
        type_name = _get(plugin, "type").value
        known = types.get(type_name)
        # A class of somebody's own is not known by name.
        if known is not None and _SEARCHED.isdisjoint(known.kinds):
            continue
        accepted = {one.name: one.accepts for one in known.parameters} if known is not None else {}
        named = _get(plugin, "name")
        parameters = _get(plugin, "parameters")
        for key, node in parameters.value if isinstance(parameters, yaml.MappingNode) else ():
            name = f"{named.value if named is not None else type_name}.{key.value}"
            yield from _parameter(name, node, accepted.get(key.value, ""))


def _parameter(name: str, node: Any, accepts: str) -> Iterator[Knob]:
    value = _number(node)
    if value is None:
        return
    if accepts.startswith(_SHARE) or (not accepts and 0.0 < value <= 1.0):
        yield Knob(name, *_place(node), node.value, value, 0.0, 1.0, False, False)
    elif value > 0.0:
        whole = accepts.startswith("whole") or (not accepts and node.tag == "tag:yaml.org,2002:int")
        low = max(1.0, value / WIDEST) if whole else value / WIDEST
        yield Knob(name, *_place(node), node.value, value, low, value * WIDEST, whole, True)


def _get(node: Any, key: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == key), None)
    return None


def _items(node: Any) -> Sequence[Any]:
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _number(node: Any) -> float | None:
    if not isinstance(node, yaml.ScalarNode) or node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return None
    try:
        return float(yaml.safe_load(node.value))
    except ValueError:
        return None


def _place(node: Any) -> tuple[int, int]:
    return node.start_mark.index, node.end_mark.index
