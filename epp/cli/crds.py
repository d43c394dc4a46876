"""`epp crds`: the custom resource definitions."""

from __future__ import annotations

import click


@click.command("crds")
def command() -> None:
    """Print CustomResourceDefinitions of every kind and version that epp run understands, for kubectl apply -f -.

    A cluster with a gateway that knows InferencePool has them already: keep those.
    """
    from epp.kubernetes.crds import as_yaml

    click.echo(as_yaml(), nl=False)
