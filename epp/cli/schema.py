"""`epp schema`: the JSON schema of configuration files."""

from __future__ import annotations

import click

from epp import configuration


@click.command("schema")
def command() -> None:
    """Print the JSON schema of EndpointPickerConfig, for editors and pipelines."""
    click.echo(configuration.render_schema(), nl=False)
