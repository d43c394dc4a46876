"""What a flag's value can be, in Go's notations where Go has one."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from epp.configuration.notation import parse_duration, parse_quantity
from epp.discovery.source import DiscoveryError
from epp.discovery.spread import POOL_LABEL
from epp.discovery.static import parse_endpoint
from epp.observe.logs import level_named

_TRUE = ("1", "t", "true")
_FALSE = ("0", "f", "false")


class Parsed(click.ParamType[Any]):
    """What a function reads that raises ValueError with a message for the operator."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _switch(text: str) -> bool:
    """As Go's flags read it."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(f"{text!r} is neither true nor false")


def _size(text: str) -> int | None:
    """`10MiB`, `25MB`, `4Mi` or bytes; nothing for the default."""
    return parse_quantity(re.sub("K(?!i)", "k", text.removesuffix("B"))) if text else None


def _path(text: str) -> Path | None:
    """A template that renders an empty value means the default, not the working directory."""
    return Path(text) if text else None


def _endpoint(text: str) -> str:
    try:
        endpoint = parse_endpoint(text)
    except DiscoveryError as error:
        raise ValueError(str(error)) from None
    pool = endpoint.labels.get(POOL_LABEL)
    return f"{pool}={endpoint.destination}" if pool else endpoint.destination


def _ports(text: str) -> tuple[int, ...]:
    """`8000,8001`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdecimal() and 0 < int(part) < 65536):
            raise ValueError(f"{part!r} is no port in 1..65535")
    return tuple(map(int, parts))


def _metrics_port(text: str) -> int | None:
    """0 is the endpoint's own port, as in the Go picker."""
    if text.isdecimal() and int(text) < 65536:
        return int(text) or None
    raise ValueError(f"{text!r} is no port in 1..65535")


BOOL = Parsed("BOOL", _switch)
DURATION = Parsed("DURATION", parse_duration)
SIZE = Parsed("SIZE", _size)
ENDPOINT = Parsed("[POOL=]HOST:PORT", _endpoint)
PORT = click.IntRange(0, 65535)
PATH = Parsed("PATH", _path)
LEVEL = Parsed("LEVEL", level_named)
TEXT = click.STRING
PORTS = Parsed("PORT,...", _ports)
METRICS_PORT = Parsed("PORT", _metrics_port)


def choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)
