"""What may stand in the file, one description that reads it, checks it, and prints its schema."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec
import yaml

from epp.configuration.notation import DURATION_PATTERN, QUANTITY_PATTERN, parse_duration, parse_quantity
from epp.configuration.problems import Problems, suggestion
from epp.configuration.text import entries, is_null, line_of, scalar, spoken
from epp.scoring import Notation

Schema = dict[str, object]


class Invalid:
    """What reading gives where a problem was added."""


INVALID = Invalid()


class Placed(msgspec.Struct, frozen=True):
    """A text that names something, with its place for a later complaint."""

    text: str
    line: int
    path: str


class PlacedWhole(msgspec.Struct, frozen=True):
    """A whole number that names something, with its place for a later complaint."""

    number: int
    line: int
    path: str


class Unread(msgspec.Struct, frozen=True):
    """A part whose shape depends on what stands beside it. `node` is None where the part is missing."""

    node: yaml.Node | None = None
    path: str = ""


class Shape(Protocol):
    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        """The value, or INVALID with at least one problem added."""
        ...

    def schema(self) -> Schema:
        """JSON schema, draft 2020-12."""
        ...

    def spoken(self) -> str:
        """For a person, as in `number ≥ 0`."""
        ...


def _scalar(node: yaml.Node, path: str, problems: Problems) -> str | int | float | bool | Invalid | None:
    if isinstance(node, yaml.ScalarNode):
        try:
            return scalar(node)
        except ValueError as error:
            problems.add(line_of(node), path, str(error))
            return INVALID
    return None


class Text(msgspec.Struct, frozen=True):
    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = _scalar(node, path, problems)
        if isinstance(value, (str, Invalid)):
            return value
        hint = "; put it in quotes" if isinstance(value, (bool, int, float)) else ""
        problems.add(line_of(node), path, f"expected text, got {spoken(node)}{hint}")
        return INVALID

    def schema(self) -> Schema:
        return {"type": "string"}

    def spoken(self) -> str:
        return "text"


class PlacedText(msgspec.Struct, frozen=True):
    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = Text().read(node, path, problems)
        if value == "":
            problems.add(line_of(node), path, "must not be empty")
            return INVALID
        return Placed(value, line_of(node), path) if isinstance(value, str) else value

    def schema(self) -> Schema:
        return {"type": "string", "minLength": 1}

    def spoken(self) -> str:
        return "text"


class Truth(msgspec.Struct, frozen=True):
    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = _scalar(node, path, problems)
        if isinstance(value, (bool, Invalid)):
            return value
        problems.add(line_of(node), path, f"expected true or false, got {spoken(node)}")
        return INVALID

    def schema(self) -> Schema:
        return {"type": "boolean"}

    def spoken(self) -> str:
        return "true or false"


class Bounds(msgspec.Struct, frozen=True):
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None

    def spoken(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"{self.ge:g} to {self.le:g}"
        signs = {"≥": self.ge, ">": self.gt, "≤": self.le, "<": self.lt}
        return " and ".join(f"{sign} {bound:g}" for sign, bound in signs.items() if bound is not None)

    def hold(self, value: float) -> bool:
        return (
            (self.ge is None or value >= self.ge)
            and (self.gt is None or value > self.gt)
            and (self.le is None or value <= self.le)
            and (self.lt is None or value < self.lt)
        )

    def schema(self) -> Schema:
        names = {"minimum": self.ge, "exclusiveMinimum": self.gt, "maximum": self.le, "exclusiveMaximum": self.lt}
        return {name: bound for name, bound in names.items() if bound is not None}


class Number(msgspec.Struct, frozen=True):
    whole: bool
    bounds: Bounds = Bounds()

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = _scalar(node, path, problems)
        if isinstance(value, Invalid):
            return value
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            problems.add(line_of(node), path, f"expected a {self._noun()}, got {spoken(node)}")
            return INVALID
        if self.whole and value != int(value):
            problems.add(line_of(node), path, f"expected a whole number, got {spoken(node)}")
            return INVALID
        if not self.bounds.hold(value):
            problems.add(line_of(node), path, f"must be {self.bounds.spoken()}, got {spoken(node)}")
            return INVALID
        return int(value) if self.whole else float(value)

    def _noun(self) -> str:
        return "whole number" if self.whole else "number"

    def schema(self) -> Schema:
        return {"type": "integer" if self.whole else "number", **self.bounds.schema()}

    def spoken(self) -> str:
        return f"{self._noun()} {self.bounds.spoken()}".rstrip()


class PlacedNumber(msgspec.Struct, frozen=True):
    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = Number(True).read(node, path, problems)
        return PlacedWhole(value, line_of(node), path) if isinstance(value, int) else value

    def schema(self) -> Schema:
        return Number(True).schema()

    def spoken(self) -> str:
        return Number(True).spoken()


class Written(msgspec.Struct, frozen=True):
    """A number in a notation: a duration in seconds, or a quantity."""

    notation: Notation
    bounds: Bounds = Bounds()

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = _scalar(node, path, problems)
        if isinstance(value, Invalid):
            return value
        text = node.value if isinstance(node, yaml.ScalarNode) and not isinstance(value, bool) else spoken(node)
        try:
            number = parse_duration(text) if self.notation is Notation.DURATION else parse_quantity(text)
        except ValueError as error:
            problems.add(line_of(node), path, str(error))
            return INVALID
        if not self.bounds.hold(number):
            problems.add(line_of(node), path, f"must be {self.bounds.spoken()}, got {spoken(node)}")
            return INVALID
        return number

    def schema(self) -> Schema:
        if self.notation is Notation.DURATION:
            return {"type": ["string", "integer"], "pattern": DURATION_PATTERN, "maximum": 0}
        return {"type": ["string", "integer", "number"], "pattern": QUANTITY_PATTERN, "minimum": 0}

    def spoken(self) -> str:
        return f"{self.notation.value} {self.bounds.spoken()}".rstrip()


class Choice(msgspec.Struct, frozen=True):
    values: tuple[str, ...]

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        value = Text().read(node, path, problems)
        if isinstance(value, str) and value not in self.values:
            problems.add(line_of(node), path, f"unknown value {value!r}; {suggestion(value, self.values)}")
            return INVALID
        return value

    def schema(self) -> Schema:
        return {"enum": list(self.values)}

    def spoken(self) -> str:
        return " | ".join(self.values)


class Many(msgspec.Struct, frozen=True):
    item: Shape

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        if not isinstance(node, yaml.SequenceNode):
            problems.add(line_of(node), path, f"expected a list, got {spoken(node)}")
            return INVALID
        values = tuple(self.item.read(item, f"{path}[{index}]", problems) for index, item in enumerate(node.value))
        return INVALID if INVALID in values else values

    def schema(self) -> Schema:
        return {"type": "array", "items": self.item.schema()}

    def spoken(self) -> str:
        return f"list of {self.item.spoken()}"


class Table(msgspec.Struct, frozen=True):
    value: Shape

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        if not isinstance(node, yaml.MappingNode):
            problems.add(line_of(node), path, f"expected a mapping, got {spoken(node)}")
            return INVALID
        values = {
            key: self.value.read(item, f"{path}.{key}", problems) for key, _, item in entries(node, path, problems)
        }
        return INVALID if INVALID in values.values() else values

    def schema(self) -> Schema:
        return {"type": "object", "additionalProperties": self.value.schema()}

    def spoken(self) -> str:
        return f"mapping to {self.value.spoken()}"


class Anything(msgspec.Struct, frozen=True):
    """Read later, when it is known what it must be."""

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        return Unread(node, path)

    def schema(self) -> Schema:
        return {"type": ["object", "null"]}

    def spoken(self) -> str:
        return "mapping"


REQUIRED = msgspec.UNSET


class Field(msgspec.Struct, frozen=True):
    """`name` in the file, `argument` in Python. `default` is REQUIRED where there is none."""

    name: str
    argument: str
    shape: Shape
    default: object = REQUIRED


class Record(msgspec.Struct, frozen=True):
    """Named fields, handed to `make` as keyword arguments."""

    fields: tuple[Field, ...]
    make: Callable[..., object]

    def read(self, node: yaml.Node, path: str, problems: Problems) -> object:
        values = self.arguments(node, path, problems)
        return values if isinstance(values, Invalid) else self.make(**values)

    def arguments(self, node: yaml.Node, path: str, problems: Problems) -> dict[str, Any] | Invalid:
        """The values that are given, by argument; a field that is null counts as not given."""
        if not isinstance(node, yaml.MappingNode):
            problems.add(line_of(node), path, f"expected a mapping, got {spoken(node)}")
            return INVALID
        by_name = {field.name: field for field in self.fields}
        values: dict[str, Any] = {}
        sound = True
        for key, key_node, value in entries(node, path, problems):
            where = f"{path}.{key}" if path else key
            field = by_name.get(key)
            if field is None:
                problems.add(line_of(key_node), where, f"unknown field; {suggestion(key, by_name)}")
                sound = False
            elif not is_null(value):
                values[field.argument] = field.shape.read(value, where, problems)
        for name in self.missing(values):
            problems.add(line_of(node), path, f"{name} is missing")
            sound = False
        return values if sound and INVALID not in values.values() else INVALID

    def missing(self, values: Mapping[str, object]) -> list[str]:
        return [field.name for field in self.fields if field.default is REQUIRED and field.argument not in values]

    def schema(self) -> Schema:
        required = [field.name for field in self.fields if field.default is REQUIRED]
        properties = {field.name: _with_default(field) for field in self.fields}
        schema: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        return {**schema, "required": required} if required else schema

    def spoken(self) -> str:
        inner = ", ".join(f"{field.name}: {field.shape.spoken()}" for field in self.fields)
        return f"{{{inner}}}"


def _with_default(field: Field) -> Schema:
    default = plain(field.default)
    shown = default is not None and not isinstance(field.shape, (Record, Written, Anything))
    return {**field.shape.schema(), "default": default} if shown else field.shape.schema()


def plain(value: object) -> object:
    """A default as it would stand in the file; None where there is none to show."""
    if value is REQUIRED or value is None:
        return None
    return msgspec.to_builtins(dict(value) if isinstance(value, Mapping) else value)
