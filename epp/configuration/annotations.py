"""From Python annotations to what may stand in the file: struct fields, and the keyword parameters of plugins."""

from __future__ import annotations

import collections.abc
import inspect
import random
import types
import typing
from functools import cache
from typing import Annotated, Any

import msgspec

from epp.configuration.shapes import (
    REQUIRED,
    Anything,
    Bounds,
    Choice,
    Field,
    Many,
    Number,
    Placed,
    PlacedNumber,
    PlacedText,
    PlacedWhole,
    Record,
    Shape,
    Table,
    Text,
    Truth,
    Unread,
    Written,
)
from epp.scoring import Notation


class Unsupported(TypeError):
    """A parameter's annotation that no configuration file can express."""


_ACRONYMS = {"ttft"}


def camel(name: str) -> str:
    """`max_ttft_penalty_ms` → `maxTTFTPenaltyMs`."""
    first, *rest = name.rstrip("_").split("_")
    return first + "".join(word.upper() if word in _ACRONYMS else word[:1].upper() + word[1:] for word in rest)


def shape_of(annotation: Any) -> Shape:
    """Raises Unsupported."""
    metadata: tuple[object, ...] = ()
    if typing.get_origin(annotation) is Annotated:
        annotation, *extra = typing.get_args(annotation)
        metadata = tuple(extra)
    arguments = typing.get_args(annotation)
    match typing.get_origin(annotation) or annotation:
        case typing.Union | types.UnionType:
            present = [argument for argument in arguments if argument is not type(None)]
            if len(present) == 1:
                return shape_of(present[0])
        case typing.Literal:
            return Choice(arguments)
        case builtins if builtins is tuple and len(arguments) == 2 and arguments[1] is ...:
            return Many(shape_of(arguments[0]))
        case collections.abc.Sequence if len(arguments) == 1:
            return Many(shape_of(arguments[0]))
        case mapping if mapping in (dict, collections.abc.Mapping) and arguments[:1] == (str,):
            return Table(shape_of(arguments[1]))
        case scalar_type if scalar_type in (bool, int, float, str):
            return _scalar_shape(scalar_type, metadata)
        case struct if struct is Placed:
            return PlacedText()
        case struct if struct is PlacedWhole:
            return PlacedNumber()
        case struct if struct is Unread:
            return Anything()
        case struct if isinstance(struct, type) and issubclass(struct, msgspec.Struct):
            return record_of_struct(struct)
    raise Unsupported(f"{annotation} cannot be written in a configuration file")


def _scalar_shape(scalar_type: Any, metadata: tuple[object, ...]) -> Shape:
    if scalar_type is bool:
        return Truth()
    if scalar_type is str:
        return Text()
    meta = next((entry for entry in metadata if isinstance(entry, msgspec.Meta)), msgspec.Meta())
    bounds = Bounds(ge=meta.ge, gt=meta.gt, le=meta.le, lt=meta.lt)
    notation = next((entry for entry in metadata if isinstance(entry, Notation)), None)
    return Written(notation, bounds) if notation else Number(scalar_type is int, bounds)


@cache
def record_of_struct(struct: type[msgspec.Struct]) -> Record:
    hints = typing.get_type_hints(struct, include_extras=True)
    return Record(
        tuple(
            Field(field.encode_name, field.name, shape_of(hints[field.name]), _default(field))
            for field in msgspec.structs.fields(struct)
        ),
        struct,
    )


def _default(field: msgspec.structs.FieldInfo) -> object:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return REQUIRED if field.default is msgspec.NODEFAULT else field.default


@cache
def record_of_plugin(make: type) -> Record:
    """The keyword parameters of a plugin's constructor, without the generator. Raises Unsupported."""
    hints = _hints(make)
    fields = []
    for parameter in inspect.signature(make).parameters.values():
        hint = hints.get(parameter.name)
        if hint is random.Random:
            continue
        if hint is None or parameter.kind not in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            raise Unsupported(f"parameter {parameter.name} of {make.__name__} must be a keyword with a type")
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        fields.append(Field(camel(parameter.name), parameter.name, shape_of(hint), default))
    return Record(tuple(fields), make)


def generator_argument(make: type) -> str | None:
    """The constructor's argument that takes the process's `random.Random`."""
    return next((name for name, hint in _hints(make).items() if hint is random.Random), None)


def _hints(make: type) -> dict[str, Any]:
    constructor = inspect.getattr_static(make, "__init__")
    plain = constructor is object.__init__
    return {} if plain else typing.get_type_hints(constructor, include_extras=True)
