"""`epp check`: whether configuration files are sound."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from epp import configuration


@click.command("check")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def command(files: tuple[str, ...]) -> None:
    """Read EndpointPickerConfig files as epp run would, and name every mistake by line.

    - is standard input. Exits with 1 where a file has a mistake.
    """
    sound = [_check(file) for file in files]
    sys.exit(0 if all(sound) else 1)


def _check(file: str) -> bool:
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        loaded = configuration.load(text, name)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        click.echo(f"{name}: cannot be read: {reason}", err=True)
        return False
    except configuration.ConfigurationError as error:
        click.echo(str(error), err=True)
        return False
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{name}: ok")
    return True
