"""`epp plugins`: what a configuration can name."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import groupby

import click
import msgspec

from epp import configuration
from epp.cli import WIDTH
from epp.configuration.problems import suggestion


@click.command("plugins")
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def command(type_name: str | None, as_json: bool) -> None:
    """List plugin types by kind, or describe one with its parameters."""
    known = configuration.describe()
    if type_name is not None:
        known = tuple(one for one in known if one.type == type_name)
        if not known:
            names = [one.type for one in configuration.describe()]
            raise click.BadParameter(f"there is no plugin type {type_name}; {suggestion(type_name, names)}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(known), indent=2))
    elif type_name is not None:
        click.echo(_described(known[0]))
    else:
        click.echo(_listed(known))


def _listed(known: Sequence[configuration.Description]) -> str:
    lines = []
    for kind, group in groupby(known, key=lambda one: one.kinds[:1]):
        members = tuple(group)
        width = max(len(one.type) for one in members) + 4
        lines += ["", f"{kind[0] if kind else 'unusable'}:"]
        for one in members:
            lines += _columns(f"  {one.type}", one.purpose, width)
            if one.parameters:
                lines += _columns("", "; ".join(map(_briefly, one.parameters)), width)
    return "\n".join(lines[1:])


def _briefly(parameter: configuration.ParameterDescription) -> str:
    if parameter.required:
        return f"{parameter.name} (required)"
    return f"{parameter.name} = {parameter.default}" if parameter.default else parameter.name


def _described(one: configuration.Description) -> str:
    lines = [f"{one.type} ({', '.join(one.kinds)})", "", *textwrap.wrap(one.purpose, WIDTH)]
    if not one.parameters:
        return "\n".join([*lines, "", "No parameters."])
    width = max(len(parameter.name) for parameter in one.parameters) + 4
    lines += ["", "parameters:"]
    for parameter in one.parameters:
        default = ", required" if parameter.required else f", default {parameter.default}" if parameter.default else ""
        lines += _columns(f"  {parameter.name}", f"{parameter.accepts}{default}", width)
    return "\n".join(lines)


def _columns(first: str, second: str, width: int) -> list[str]:
    indent = " " * width
    lines = textwrap.wrap(
        second, WIDTH, initial_indent=first.ljust(width), subsequent_indent=indent, break_on_hyphens=False
    )
    return lines or [first]
