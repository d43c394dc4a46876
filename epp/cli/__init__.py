"""The command line: each command in the module of its name. Only the one that is asked for is imported, so that help costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click

WIDTH = 100
"""Columns of help texts, where the terminal has them."""

COMMANDS: Mapping[str, str] = {
    "run": "Answer Envoy until SIGTERM.",
    "bbr": "Route by the body, until SIGTERM.",
    "attach": "Attach pools to listeners of an Envoy Gateway.",
    "check": "Tell whether configuration files are sound.",
    "crds": "Print the custom resource definitions that are understood.",
    "plugins": "List the plugins that a configuration can name.",
    "schema": "Print the JSON schema of configuration files.",
    "replay": "Replay a log of traffic against configurations.",
    "tune": "Search a configuration's weights and thresholds on a log.",
    "version": "Print the version.",
}
"""What each is for, in a line."""


class _ByName(click.Group):
    """The commands of `COMMANDS`: `command` of `epp.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"epp.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))


@click.group(cls=_ByName, context_settings={"max_content_width": WIDTH, "help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Endpoint picker for LLM inference behind Envoy."""


def main() -> None:
    """The console script. Exits with 0 when all is well, 1 when a problem was found, 2 for wrong usage."""
    cli(prog_name="epp")
