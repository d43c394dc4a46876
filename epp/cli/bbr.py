"""`epp bbr`: the body-based router."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from epp import settings
from epp.cli.bbr_flags import BBR_FLAGS
from epp.cli.serving import RunCommand, fields_of


@click.command("bbr", cls=RunCommand, params=list(BBR_FLAGS), options_metavar="[FLAGS]")
def command(**given: Any) -> None:
    """Tell Envoy's routes by headers which model a request asks for, until SIGTERM.

    A body-based router: it reads the model of a request's body and sets X-Gateway-Model-Name and X-Gateway-Base-Model-Name, by which
    an HTTPRoute finds the pool. It changes no byte of a body. Where the picker is called with every request anyway,
    epp run --body-based-routing does the same in that call.
    """
    try:
        fields = fields_of(given, BBR_FLAGS)
        plugins = fields.pop("plugins", ())
        found = settings.from_router_flags(fields, dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from epp.bbr import app

    assert isinstance(plugins, tuple)
    sys.exit(app.run(found, plugins))
