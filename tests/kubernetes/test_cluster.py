"""The API server that tests run against is a real one: it keeps schemas, permissions and graceful deletion."""

from __future__ import annotations

import pytest

from tests.cluster import Cluster, Refusal


def test_pods_have_the_status_that_a_test_gives_them_and_terminate_as_pods_do(cluster: Cluster) -> None:
    namespace = cluster.namespace("cluster-pods")
    pod = cluster.pod("one", namespace=namespace, labels={"app": "vllm"}, ip="127.1.0.1")
    seen = cluster.request("GET", cluster.path(pod))
    assert seen["status"]["podIP"] == "127.1.0.1"
    assert "deletionTimestamp" not in seen["metadata"]
    cluster.delete(pod)
    assert "deletionTimestamp" in cluster.request("GET", cluster.path(pod))["metadata"]
    cluster.delete(pod, grace_s=0)
    with pytest.raises(Refusal, match="404"):
        cluster.request("GET", cluster.path(pod))


def test_a_dry_run_checks_and_changes_nothing(cluster: Cluster) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "dry"},
        "spec": {"ports": [{"port": 80}]},
    }
    cluster.apply(service, dry_run=True)
    with pytest.raises(Refusal, match="404"):
        cluster.request("GET", cluster.path(service))
    with pytest.raises(Refusal, match="field not declared in schema"):
        cluster.apply({**service, "spec": {"prots": []}}, dry_run=True)


def test_who_is_nobody_may_do_nothing(cluster: Cluster) -> None:
    token = cluster.account_token(cluster.namespace("cluster-accounts"), "nobody")
    with pytest.raises(Refusal, match="403"):
        cluster.request("GET", "/api/v1/namespaces/default/pods", token=token)
