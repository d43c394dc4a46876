"""`epp tune`: the search for better numbers."""

from __future__ import annotations

import click

from epp.cli.lab import PASSED_ON, in_the_lab


@click.command("tune", context_settings=PASSED_ON)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def command(args: tuple[str, ...]) -> None:
    in_the_lab("tune", args)
