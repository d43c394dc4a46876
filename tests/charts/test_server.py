"""A real API server takes every rendering, in a dry run that is strict about fields, and Helm installs from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.charts.cases import CASES
from tests.charts.render import ROOT, Made, objects, run
from tests.cluster import Cluster, Refusal


@pytest.mark.parametrize("name", CASES)
def test_every_object_is_taken(taking: Cluster, made: Callable[[str], Made], name: str) -> None:
    taking.apply(*made(name), dry_run=True)


MANIFESTS = [*ROOT.glob("deploy/gateways/*/gateway.yaml"), ROOT / "deploy" / "gateways" / "attach" / "attach.yaml"]
UNDEFINED = ("GatewayClass", "ClientTrafficPolicy")


@pytest.mark.parametrize("path", sorted(MANIFESTS), ids=lambda path: path.parent.name)
def test_every_manifest_of_a_gateway_is_taken(taking: Cluster, path: Path) -> None:
    known = [each for each in objects(path.read_text()) if each["kind"] not in UNDEFINED]
    assert {"Gateway", "Deployment"} & {each["kind"] for each in known}
    taking.apply(*known, dry_run=True)


def test_a_field_that_is_not_one_would_be_refused(taking: Cluster, made: Callable[[str], Made]) -> None:
    """The dry run sees what it is there for, in kinds of the server's own and in custom ones."""
    for found in made("gke-deploy"):
        broken = {**found, "spec": {**found.get("spec", {}), "typo": 1}} if "spec" in found else {**found, "typo": 1}
        with pytest.raises(Refusal, match="typo"):
            taking.apply(broken, dry_run=True)


@pytest.fixture
def namespace(taking: Cluster) -> str:
    return taking.namespace("charts")


@pytest.mark.parametrize("chart", ["epp", "epp-standalone"])
def test_one_command_installs_says_what_to_try_and_another_takes_all_away(
    taking: Cluster, namespace: str, helm: Path, tmp_path: Path, chart: str
) -> None:
    config = taking.kubeconfig(tmp_path / "kubeconfig", namespace=namespace)
    own = [f"--kubeconfig={config}", f"--namespace={namespace}"]
    said = run(helm, "install", "model", f"deploy/helm/{chart}", "--set=router.modelServers.matchLabels.app=vllm", *own)
    notes = said.partition("NOTES:")[2]
    assert "get pods -l app=vllm" in notes and "rollout status deployment/model-epp" in notes
    assert ("port-forward service/model-epp 8081" in notes) == (chart == "epp-standalone")
    deployment = f"/apis/apps/v1/namespaces/{namespace}/deployments/model-epp"
    before = taking.request("GET", deployment)["spec"]["template"]
    run(helm, "upgrade", "model", f"deploy/helm/{chart}", "--reuse-values", "--set=router.epp.flags.v=4", *own)
    after = taking.request("GET", deployment)["spec"]["template"]
    assert before != after
    run(helm, "uninstall", "model", *own)
    with pytest.raises(Refusal, match="not found"):
        taking.request("GET", deployment)
