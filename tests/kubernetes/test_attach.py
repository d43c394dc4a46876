"""`epp attach` against a real API server, with exactly the rights of its manifest."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.processes import ROOT, Process, Stand
from epp.attach.objects import ANNOTATION, MADE
from tests.charts.crds import definitions
from tests.cluster import Cluster, Object
from tests.kubernetes.conftest import until

PLACE = "name: llm-gateway\nport: 8081\n"
OLD = "inference.networking.x-k8s.io/v1alpha1"


@pytest.fixture
def namespace(with_crds: Cluster) -> str:
    with_crds.install(*definitions())
    return with_crds.namespace("attach")


def pool(name: str, annotation: str | None) -> Object:
    """As the document of the gateway that the annotation comes from has it."""
    return {
        "apiVersion": OLD,
        "kind": "InferencePool",
        "metadata": {
            "name": name,
            "namespace": "attach",
            "annotations": {ANNOTATION: annotation} if annotation else {},
        },
        "spec": {"targetPortNumber": 8000, "selector": {"app": name}, "extensionRef": {"name": "ext-proc"}},
    }


def rights(namespace: str) -> list[Object]:
    found = yaml.safe_load_all((ROOT / "deploy" / "gateways" / "attach" / "attach.yaml").read_text())
    kept = [one for one in found if one["kind"] in ("ServiceAccount", "Role", "RoleBinding")]
    for one in kept:
        one["metadata"]["namespace"] = namespace
        for subject in one.get("subjects", []):
            subject["namespace"] = namespace
    return kept


def names(cluster: Cluster) -> set[str]:
    """Of every object of the kinds that are made: its own and its kind's."""
    paths = [f"/{'apis' if '/' in version else 'api'}/{version}/namespaces/attach/{kind}" for version, kind in MADE]
    found = [(one, path) for path in paths for one in cluster.request("GET", path)["items"]]
    return {f"{one['metadata']['name']} {path.rpartition('/')[2]}" for one, path in found}


def all_of(*pools: str) -> set[str]:
    return {f"{name}-attached {kind}" for name in pools for _, kind in MADE}


def accepted(cluster: Cluster, name: str) -> dict[str, Any]:
    """The condition that we left at a pool."""
    parents = cluster.request("GET", cluster.path(pool(name, None))).get("status", {}).get("parent", [])
    ours = [one for parent in parents for one in parent.get("conditions", []) if one["type"] == "Accepted"]
    return {} if not ours else dict(ours[-1])


@pytest.fixture
def attach(with_crds: Cluster, namespace: str, tmp_path: Path) -> Iterator[Callable[[], Process]]:
    """Starts `epp attach` with the account of its manifest."""
    with_crds.apply(*rights(namespace))
    token = tmp_path / "token"
    token.write_text(with_crds.account_token(namespace, "epp-attach"))
    account = with_crds.kubeconfig(tmp_path / "account", user={"tokenFile": str(token)})
    args = ["attach", f"--kubeconfig={account}", f"--pool-namespace={namespace}"]
    with Stand(tmp_path) as stand:
        yield lambda: stand.start("attach", [sys.executable, "-m", "epp", *args])


def test_objects_come_and_go_with_the_annotation(with_crds: Cluster, attach: Callable[[], Process]) -> None:
    cluster = with_crds
    cluster.apply(pool("asks", PLACE), pool("quiet", None), pool("confused", "llm-gateway"))
    process = attach()
    until(lambda: names(cluster) == all_of("asks"), "for the first objects")
    until(lambda: accepted(cluster, "asks").get("status") == "True")
    until(lambda: accepted(cluster, "confused").get("status") == "False")
    assert ANNOTATION in accepted(cluster, "confused")["message"]
    # A slip in the annotation is told, and takes nothing away.
    cluster.apply(pool("asks", "name: llm-gateway, prot: 80"))
    until(lambda: accepted(cluster, "asks").get("status") == "False")
    cluster.apply(pool("gone", PLACE))
    until(lambda: names(cluster) == all_of("asks", "gone"))
    cluster.delete(pool("gone", PLACE))
    until(lambda: names(cluster) == all_of("asks"))
    # What a pool asks for later, or no more.
    cluster.apply(pool("quiet", PLACE))
    until(lambda: names(cluster) == all_of("asks", "quiet"))
    cluster.apply(pool("asks", None))
    until(lambda: names(cluster) == all_of("quiet"))
    cluster.delete(pool("quiet", PLACE))
    until(lambda: names(cluster) == set())
    assert process.running
    log = process.log.read_text()
    assert "forbidden" not in log and "Traceback" not in log, log


def test_nothing_is_taken_away_since_pools_cannot_be_read(with_crds: Cluster, attach: Callable[[], Process]) -> None:
    cluster = with_crds
    cluster.apply(pool("stays", PLACE))
    first = attach()
    until(lambda: names(cluster) == all_of("stays"))
    first.stop()
    (role,) = (one for one in rights("attach") if one["kind"] == "Role")
    role["rules"] = [rule for rule in role["rules"] if rule["resources"] != ["inferencepools"]]
    cluster.apply(role)
    blind = attach()
    until(lambda: blind.log.read_text().count("may not be read") == 2)
    cluster.apply(*rights("attach"))
    # It sees again: had it taken anything away, the object would be another one now.
    assert names(cluster) == all_of("stays")
    cluster.delete(pool("stays", None))
    until(lambda: names(cluster) == set())
