"""The manifests for those without Helm, which are renderings of the charts."""

from __future__ import annotations

import re

from tests.charts.cases import Case
from tests.charts.render import ROOT

_AT = ROOT / "deploy" / "manifests"
_SERVERS = "--set router.modelServers.matchLabels.app=my-model"

MANIFESTS = {
    _AT / "gateway" / "epp.yaml": Case("epp", "my-model", _SERVERS),
    _AT / "standalone" / "epp.yaml": Case("epp-standalone", "my-model", _SERVERS),
}

_HEAD = "# Rendered from deploy/helm by `make charts`: change the chart, not this file.\n"
_HELM_ONLY = re.compile(r"^ +(app\.kubernetes\.io/managed-by|helm\.sh/chart): .*\n|^# Source: .*\n", re.MULTILINE)
_EMPTY = re.compile(r"(^---\n)(?:---\n)+", re.MULTILINE)


def manifest(rendered: str) -> str:
    """A rendering without what only Helm means by it."""
    return _HEAD + _EMPTY.sub(r"\1", _HELM_ONLY.sub("", rendered))
