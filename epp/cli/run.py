"""`epp run`: the picker."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from epp import settings
from epp.cli.run_flags import FLAGS
from epp.cli.serving import RunCommand, fields_of
from epp.settings import Settings


@click.command("run", cls=RunCommand, params=list(FLAGS), options_metavar="[FLAGS]")
def command(**given: Any) -> None:
    """Answer Envoy's external processing calls until SIGTERM.

    Flags are those of the Go endpoint picker and a few of our own. A flag may have one dash or two and its value after a
    space or =; a BOOL may stand alone for true. A DURATION is 50ms, 30s or 1m30s. Port 0 is any free port.
    """
    try:
        found = settings_of(given, dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    # Imported late: epp check and the help need none of it.
    from epp import app

    sys.exit(app.run(found))


def settings_of(given: dict[str, Any], environment: dict[str, str]) -> Settings:
    """Settings of what click read, by parameter name. Raises ValueError."""
    return settings.from_flags(fields_of(given, FLAGS), environment)
