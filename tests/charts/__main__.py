"""Writes the renderings anew: `tests/data/helm/*.yaml` and `deploy/manifests/*/epp.yaml`."""

from __future__ import annotations

from tests.charts.cases import CASES
from tests.charts.manifests import MANIFESTS, manifest
from tests.charts.render import GOLDEN, render
from tests.tools import Builder


def main() -> None:
    builder = Builder(["helm"])
    helm = builder.path("helm")
    for name, case in CASES.items():
        (GOLDEN / f"{name}.yaml").write_text(render(helm, case))
    for path, case in MANIFESTS.items():
        path.write_text(manifest(render(helm, case)))


if __name__ == "__main__":
    main()
