"""`epp version`."""

from __future__ import annotations

import importlib.metadata
import platform

import click


@click.command("version")
def command() -> None:
    """Print the version, and that of Python."""
    click.echo(f"epp {importlib.metadata.version('epp')} (Python {platform.python_version()})")
