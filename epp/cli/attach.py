"""`epp attach`: pools onto listeners of an Envoy Gateway."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from epp import settings
from epp.cli.run_flags import FLAGS
from epp.cli.serving import RunCommand, fields_of

_SHARED = frozenset({"pool-namespace", "kubeconfig", "v", "zap-encoder", "zap-log-level", "zap-time-encoding"})
ATTACH_FLAGS = tuple(flag for flag in FLAGS if flag.flag.removeprefix("--") in _SHARED)
"""Those of `epp run` that `epp attach` has too, to the same effect."""


@click.command("attach", cls=RunCommand, params=list(ATTACH_FLAGS), options_metavar="[FLAGS]")
def command(**given: Any) -> None:
    """Keep the HTTPRoute and policies of an Envoy Gateway for each InferencePool that asks for a listener, until SIGTERM.

    A pool asks by the annotation inference.networking.x-k8s.io/attach-to, whose value names a Gateway (name) and the port of one of
    its listeners (port). What was made goes with the pool or its annotation. --pool-namespace is where pools are.
    """
    try:
        found = settings.from_flags(fields_of(given, ATTACH_FLAGS), dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from epp.attach import app

    sys.exit(app.run(found))
