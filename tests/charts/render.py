"""Helm at work: a case in, manifests out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.charts.cases import Case

ROOT = Path(__file__).parents[2]
CHARTS = ROOT / "deploy" / "helm"
GOLDEN = ROOT / "tests" / "data" / "helm"
KUBERNETES = "1.34.2"

Made = list[dict[str, Any]]


class Refused(Exception):
    """Helm does not render these values. The message is what Helm says."""


def run(helm: Path, *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What Helm prints. Raises Refused."""
    done = subprocess.run(
        [helm, *arguments], cwd=ROOT, check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    if done.returncode != 0:
        # Links in charts/ and files/ are meant, and Helm tells of each.
        lines = [line for line in done.stderr.splitlines() if "found symbolic link" not in line]
        raise Refused("\n".join(lines))
    return done.stdout


def render(helm: Path, case: Case, more: Sequence[str] = ()) -> str:
    """The manifests, as `helm template` has them. Raises Refused."""
    chart = str(CHARTS.relative_to(ROOT) / case.chart)
    return run(helm, "template", case.release, chart, f"--kube-version={KUBERNETES}", *case.arguments, *more)


def objects(text: str) -> Made:
    """The objects of a rendering; documents that say nothing are none."""
    return [document for document in yaml.safe_load_all(text) if document]


def one(made: Made, kind: str, name: str = "") -> dict[str, Any]:
    """The object of this kind, and of this name where there are several."""
    (found,) = (each for each in made if each["kind"] == kind and name in ("", each["metadata"]["name"]))
    return found


def pods(made: Made) -> Iterator[dict[str, Any]]:
    return (each["spec"]["template"]["spec"] for each in made if each["kind"] == "Deployment")


def containers(made: Made) -> Iterator[dict[str, Any]]:
    return (each for pod in pods(made) for each in [*pod.get("initContainers", []), *pod["containers"]])


def picker(made: Made) -> dict[str, Any]:
    (found,) = (each for each in containers(made) if each["name"] == "epp")
    return found


def envoy(made: Made) -> dict[str, Any]:
    (text,) = (each["data"]["envoy.yaml"] for each in made if "envoy.yaml" in each.get("data", {}))
    parsed: dict[str, Any] = yaml.safe_load(text)
    return parsed
