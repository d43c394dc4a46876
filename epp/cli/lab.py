"""Where `epp replay` and `epp tune` go: to the routing lab, which needs more than the picker does."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}
"""Of a command that leaves its arguments, `--help` among them, to the lab."""

_LAB = ("bench", "rich", "matplotlib", "optuna")


def in_the_lab(command: str, args: Sequence[str]) -> None:
    """Run a command that needs more than the picker does, and say what to install where it is not there."""
    try:
        # Imported late, and only here: the picker itself runs without any of it.
        from bench.replay import commands

        getattr(commands, command).main(args=list(args), prog_name=f"epp {command}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LAB:
            raise
        click.echo(f"epp {command} needs the routing lab: pip install 'epp[lab]' ({error.name} is missing)", err=True)
        sys.exit(2)
