"""What a body-based router does with a request: fields of its body become headers that routes can match."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from epp.openai.canonical import string
from epp.resources.routing import BASE_MODEL_HEADER, MODEL_HEADER, Routing, fits_header

FIELD_TO_HEADER = "body-field-to-header"
BASE_MODEL_TO_HEADER = "base-model-to-header"

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

Fields = Mapping[str, msgspec.Raw]
"""The fields of a body's outermost object, their values as they are written."""

Header = tuple[str, str]


class Missing(Exception):
    """The body does not have the field."""

    def __init__(self, field: str) -> None:
        super().__init__(field)
        self.field = field


class Empty(Missing):
    """It has, and there is nothing in it."""


class Unfit(Missing):
    """It has, and it is no text that a header can hold."""


class Resources(Protocol):
    @property
    def routing(self) -> Routing: ...


class Step(Protocol):
    """`type` and `name` are labels of metrics."""

    @property
    def type(self) -> str: ...
    @property
    def name(self) -> str: ...
    def header(self, fields: Fields) -> Header:
        """Raises Missing, and what derives from it."""
        ...


class FieldToHeader(msgspec.Struct, frozen=True):
    """Copies a text field of the body to a header (lower case)."""

    name: str
    field: str
    to: str

    @property
    def type(self) -> str:
        return FIELD_TO_HEADER

    def header(self, fields: Fields) -> Header:
        return self.to, _text(fields, self.field)


class BaseModelToHeader:
    """Tells the base model of the body's `model`; "" where nothing is known of it."""

    type = BASE_MODEL_TO_HEADER

    def __init__(self, name: str, resources: Resources) -> None:
        self.name = name
        self._resources = resources

    def header(self, fields: Fields) -> Header:
        return BASE_MODEL_HEADER, self._resources.routing.base(_text(fields, "model").strip())


def default_steps(resources: Resources) -> tuple[Step, ...]:
    return (
        FieldToHeader(FIELD_TO_HEADER, "model", MODEL_HEADER),
        BaseModelToHeader(BASE_MODEL_TO_HEADER, resources),
    )


class _FieldParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    field_name: str
    header_name: str


def steps_of(specs: Sequence[str], resources: Resources) -> tuple[Step, ...]:
    """The steps that `specs`, each `type:name` or `type:name:JSON`, ask for, in their order; the default ones where there are none.

    Raises ValueError, with a message for the operator.
    """
    if not specs:
        return default_steps(resources)
    return tuple(_step(spec, resources) for spec in specs)


def _step(spec: str, resources: Resources) -> Step:
    type_name, _, rest = spec.partition(":")
    name, _, parameters = rest.partition(":")
    if not name:
        raise ValueError(f"--plugin {spec}: must be TYPE:NAME or TYPE:NAME:JSON")
    if type_name == BASE_MODEL_TO_HEADER:
        return BaseModelToHeader(name, resources)
    if type_name != FIELD_TO_HEADER:
        known = f"{FIELD_TO_HEADER}, {BASE_MODEL_TO_HEADER}"
        raise ValueError(f"--plugin {spec}: there is no plugin type {type_name}; known: {known}")
    try:
        told = msgspec.json.decode(parameters or "{}", type=_FieldParameters)
    except msgspec.DecodeError as error:
        raise ValueError(f"--plugin {spec}: {error}") from None
    if not told.field_name or not _TOKEN.fullmatch(told.header_name):
        raise ValueError(f"--plugin {spec}: field_name and header_name must be names")
    return FieldToHeader(name, told.field_name, told.header_name.lower())


def _text(fields: Fields, name: str) -> str:
    raw = fields.get(name)
    if raw is None:
        raise Missing(name)
    text = string(raw)
    if text is None or not fits_header(text):
        raise Unfit(name)
    if not text.strip():
        raise Empty(name)
    return text
