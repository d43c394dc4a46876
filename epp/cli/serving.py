"""What the commands that serve have in common: flags as Go programs take them, a help text by group, and values as fields of `Settings`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import click

from epp.cli.bbr_flags import BBR_FLAGS
from epp.cli.flag import GROUPS, Flag
from epp.cli.run_flags import FLAGS
from epp.observe.logs import level_of


class RunCommand(click.Command):
    """A command that serves: flags as Go programs take them, and a help text by group."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, go_style(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            records = [
                flag.get_help_record(ctx) for flag in self.params if isinstance(flag, Flag) and flag.group == group
            ]
            if not records:
                continue
            title = "Compatibility (accepted, without effect yet)" if group == "Compatibility" else group
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


_KNOWN = frozenset(option for flag in (*FLAGS, *BBR_FLAGS) for option in flag.opts)


def go_style(args: Iterable[str]) -> list[str]:
    """`args` as click takes them: Go's flags may have one dash and camelCase names, and `-v=4` is `-v 4`."""
    return [part for arg in args for part in _go_style(arg)]


def _go_style(arg: str) -> list[str]:
    match = re.fullmatch(r"--?([A-Za-z][\w-]*)(=.*)?", arg, re.DOTALL)
    if match is None:
        return [arg]
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", match[1]).lower()
    value = match[2] or ""
    if name == "v":
        return ["--v" + value]
    return [f"--{name}{value}"] if f"--{name}" in _KNOWN else [arg]


def fields_of(given: dict[str, Any], flags: Iterable[Flag]) -> dict[str, object]:
    """What was said by `flags`, by field of `Settings`."""
    fields: dict[str, object] = {}
    notices = []
    for flag in flags:
        assert flag.name is not None
        value = given[flag.name]
        if flag.multiple:
            value = tuple(one for one in value if one != "")
        if value is None or (flag.multiple and not value) or (value == "" and not flag.field.endswith("_spec")):
            continue
        if flag.inert:
            notices.append(flag.notice(value))
        else:
            fields[flag.field] = value
    verbosity = fields.pop("verbosity", None)
    if isinstance(verbosity, int):
        fields.setdefault("log_level", level_of(verbosity))
    for field in ("tls_cipher_suites", "client_allowed_names"):
        listed = fields.get(field)
        if isinstance(listed, tuple):
            fields[field] = tuple(name for part in listed for name in part.split(",") if name)
    ports = fields.get("endpoint_target_ports")
    if isinstance(ports, tuple):
        fields["endpoint_target_ports"] = tuple(dict.fromkeys(port for part in ports for port in part))
    fields["notices"] = tuple(notice for notice in notices if notice)
    return fields
