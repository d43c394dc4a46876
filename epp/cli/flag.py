"""A flag of a command that serves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from epp.cli.values import BOOL

GROUPS = ("Serving", "Pool and endpoints", "Configuration", "Signals", "TLS", "Observability", "Compatibility")


class Flag(click.Option):
    """One flag of `epp run`: its help, its group, and the field of `Settings` that it sets.

    `shown` is the default in words. `inert` says why the flag has no effect; `quiet` is the value that asks for none.
    """

    def __init__(
        self,
        name: str,
        group: str,
        field: str,
        kind: click.ParamType[Any],
        text: str,
        *,
        metavar: str | None = None,
        shown: str = "",
        inert: str = "",
        quiet: object = None,
        repeated: bool = False,
        aliases: Sequence[str] = (),
    ) -> None:
        assert group in GROUPS
        switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is BOOL else {}
        super().__init__(
            [*aliases, f"--{name}", f"flag_{name.replace('-', '_')}"],
            type=kind,
            help=text,
            metavar=metavar,
            multiple=repeated,
            **switch,
        )
        self.flag = f"--{name}"
        self.group = group
        self.field = field
        self.shown = shown
        self.inert = inert
        self.quiet = quiet

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        default = f" (default {self.shown})" if self.shown else ""
        reason = f": {self.inert}." if self.inert else ""
        return f"{', '.join(self.opts)} {self.make_metavar(ctx)}", f"{self.help}{reason}{default}"

    def notice(self, value: object) -> str | None:
        """What to say at the start about `value` having been given."""
        if not self.inert or value == self.quiet:
            return None
        return f"{self.flag}: accepted, has no effect yet: {self.inert}"
