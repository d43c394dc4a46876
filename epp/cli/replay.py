"""`epp replay`: a log of traffic against configurations."""

from __future__ import annotations

import click

from epp.cli.lab import PASSED_ON, in_the_lab


@click.command("replay", context_settings=PASSED_ON)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(args: tuple[str, ...]) -> None:
    in_the_lab("replay", args)
