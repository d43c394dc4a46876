"""A picker that watches a real API server: pods come, go, flap, terminate and move; pools change; the server goes and comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from epp.kubernetes.access import InCluster
from epp.kubernetes.api import Api, Unanswered
from epp.kubernetes.crds import crds
from epp.kubernetes.reflector import Refusal as Forbidden
from tests.certificates import Authority
from tests.cluster import Cluster, Refusal
from tests.kubernetes.conftest import Watching, a_pool, an_objective, until

VLLM = {"app": "vllm"}
Watch = Callable[..., Watching]


def test_pods_come_go_flap_terminate_and_move(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    cluster = with_crds
    picker = watch("--pool-name=llama")
    assert not picker.ready
    cluster.apply(a_pool(namespace, ports=(8000, 8001)))
    until(lambda: picker.ready)
    assert picker.endpoints == {}
    one = cluster.pod("one", namespace=namespace, labels=VLLM, ip="127.1.0.1")
    until(lambda: picker.endpoints == {"one-rank-0": "127.1.0.1:8000", "one-rank-1": "127.1.0.1:8001"})
    cluster.pod("other", namespace=namespace, labels={"app": "other"}, ip="127.1.0.9")
    two = cluster.pod(
        "two", namespace=namespace, labels=VLLM, ip="127.1.0.2", annotations={"llm-d.ai/active-ports": "8001"}
    )
    until(lambda: picker.endpoints.get("two-rank-1") == "127.1.0.2:8001")
    assert len(picker.endpoints) == 3
    cluster.set_status(two, ip="127.1.0.2", ready=False)
    until(lambda: len(picker.endpoints) == 2)
    cluster.set_status(two, ip="127.1.0.22", ready=True)
    until(lambda: picker.endpoints.get("two-rank-1") == "127.1.0.22:8001")
    cluster.delete(one)
    until(lambda: set(picker.endpoints) == {"two-rank-1"})
    cluster.delete(one, grace_s=0)
    cluster.delete(two, grace_s=0)
    until(lambda: picker.endpoints == {})


def test_the_pool_changes_goes_and_comes_back(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    cluster = with_crds
    cluster.apply(a_pool(namespace))
    cluster.pod("one", namespace=namespace, labels=VLLM, ip="127.1.0.1")
    cluster.pod("two", namespace=namespace, labels={"app": "sglang"}, ip="127.1.0.2")
    picker = watch("--pool-name=llama")
    until(lambda: picker.endpoints == {"one-rank-0": "127.1.0.1:8000"})
    cluster.apply(a_pool(namespace, ports=(9000,)))
    until(lambda: picker.endpoints == {"one-rank-0": "127.1.0.1:9000"})
    cluster.apply(a_pool(namespace, app="sglang"))
    until(lambda: picker.endpoints == {"two-rank-0": "127.1.0.2:8000"})
    cluster.delete(a_pool(namespace))
    until(lambda: not picker.ready)
    assert picker.endpoints == {}
    cluster.apply(a_pool(namespace))
    until(lambda: picker.ready)
    assert picker.endpoints == {"one-rank-0": "127.1.0.1:8000"}


def test_objectives_of_both_groups_and_old_versions_are_in_force(
    with_crds: Cluster, namespace: str, watch: Watch
) -> None:
    cluster = with_crds
    experimental, llm_d = "inference.networking.x-k8s.io", "llm-d.ai"
    cluster.apply(
        a_pool(namespace),
        an_objective(namespace, "gold", 10, group=experimental),
        an_objective(namespace, "silver", 5, group=llm_d),
        {
            "apiVersion": f"{experimental}/v1alpha1",
            "kind": "InferenceModel",
            "metadata": {"name": "food", "namespace": namespace},
            "spec": {"modelName": "food", "criticality": "Critical", "poolRef": {"name": "llama"}},
        },
        {
            "apiVersion": f"{llm_d}/v1alpha2",
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "canary", "namespace": namespace},
            "spec": {"poolRef": {"name": "llama"}, "rules": [{"targets": [{"modelRewrite": "new", "weight": 1}]}]},
        },
        {
            "apiVersion": f"{experimental}/v1alpha1",
            "kind": "InferencePool",
            "metadata": {"name": "old", "namespace": namespace},
            "spec": {"selector": VLLM, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}},
        },
    )
    picker = watch("--pool-name=llama")
    until(lambda: len(json.loads(picker.page("/debug/resources")[1])) == 6)
    cluster.delete(an_objective(namespace, "silver", 5, group=llm_d))
    until(lambda: len(json.loads(picker.page("/debug/resources")[1])) == 5)
    rows = json.loads(picker.page("/debug/resources")[1])
    assert {row["key"]["kind"]: row["reason"] for row in rows if row["key"]["name"] != "old"} == {
        "InferenceModel": "",
        "InferenceModelRewrite": "",
        "InferenceObjective": "",
        "InferencePool": "",
    }


def test_an_experimental_pool_alone_serves(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    group = "inference.networking.x-k8s.io"
    pool = {
        "apiVersion": f"{group}/v1alpha2",
        "kind": "InferencePool",
        "metadata": {"name": "llama", "namespace": namespace},
        "spec": {"selector": VLLM, "targetPortNumber": 8000, "extensionRef": {"name": "epp"}},
    }
    with_crds.apply(pool)
    with_crds.pod("one", namespace=namespace, labels=VLLM, ip="127.1.0.1")
    picker = watch("--pool-name=llama", f"--pool-group={group}")
    until(lambda: picker.ready and picker.endpoints == {"one-rank-0": "127.1.0.1:8000"})


def test_pods_without_a_pool(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    with_crds.pod("one", namespace=namespace, labels={**VLLM, "tier": "gpu"}, ip="127.1.0.1")
    with_crds.pod("two", namespace=namespace, labels=VLLM, ip="127.1.0.2")
    picker = watch("--endpoint-selector=app=vllm,tier in (gpu,tpu)", "--endpoint-target-ports=8000,8001")
    until(lambda: picker.ready)
    assert picker.endpoints == {"one-rank-0": "127.1.0.1:8000", "one-rank-1": "127.1.0.1:8001"}


def test_the_server_is_restarted_and_killed(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    cluster = with_crds
    cluster.apply(a_pool(namespace))
    pods = [cluster.pod(f"p{n}", namespace=namespace, labels=VLLM, ip=f"127.1.0.{n}") for n in range(3)]
    picker = watch("--pool-name=llama")
    until(lambda: len(picker.endpoints) == 3)
    cluster.stop_server()
    until(lambda: "does not answer" in picker.log)
    assert picker.ready
    assert len(picker.endpoints) == 3
    assert unanswered_s(picker) > 0.0
    cluster.start_server()
    cluster.delete(pods[0], grace_s=0)
    until(lambda: len(picker.endpoints) == 2)
    cluster.kill_server()
    cluster.start_server()
    cluster.pod("p9", namespace=namespace, labels=VLLM, ip="127.1.0.9")
    until(lambda: "p9-rank-0" in picker.endpoints)
    assert len(picker.endpoints) == 3
    assert picker.ready
    # Another watch may be still on its way back.
    until(lambda: unanswered_s(picker) == 0.0)


def unanswered_s(picker: Watching) -> float:
    lines = picker.page("/metrics")[1].splitlines()
    (value,) = (line.split()[1] for line in lines if line.startswith("epp_kubernetes_unanswered_seconds "))
    return float(value)


def test_types_installed_late_are_noticed(cluster: Cluster, with_crds: Cluster, namespace: str, watch: Watch) -> None:
    rewrites = next(crd for crd in crds() if crd["metadata"]["name"] == "inferencemodelrewrites.llm-d.ai")
    cluster.uninstall(rewrites)
    cluster.apply(a_pool(namespace))
    picker = watch("--pool-name=llama")
    until(lambda: picker.ready)
    assert "inferencemodelrewrites.llm-d.ai" in picker.log
    cluster.install(rewrites)
    cluster.apply(
        {
            "apiVersion": "llm-d.ai/v1alpha2",
            "kind": "InferenceModelRewrite",
            "metadata": {"name": "late", "namespace": namespace},
            "spec": {"poolRef": {"name": "llama"}, "rules": [{"targets": [{"modelRewrite": "new"}]}]},
        }
    )
    until(lambda: '"late"' in picker.page("/debug/resources")[1])


def test_client_certificates_and_service_accounts_let_in(
    with_crds: Cluster, namespace: str, watch: Watch, tmp_path: Path
) -> None:
    cluster = with_crds
    cluster.apply(a_pool(namespace), *may_watch(namespace, "reader"))
    cluster.pod("one", namespace=namespace, labels=VLLM, ip="127.1.0.1")
    token = tmp_path / "token"
    token.write_text(cluster.account_token(namespace, "reader"))
    by_token = cluster.kubeconfig(tmp_path / "by-token", user={"tokenFile": str(token)})
    identity = cluster.authority.issue(["picker"], user=f"user-{namespace}")
    for name, data in (("tls.crt", identity.certificate), ("tls.key", identity.key)):
        (tmp_path / name).write_bytes(data)
    by_certificate = cluster.kubeconfig(
        tmp_path / "by-certificate", user={"client-certificate": "tls.crt", "client-key": "tls.key"}
    )
    for kubeconfig in (by_token, by_certificate):
        picker = watch("--pool-name=llama", kubeconfig=kubeconfig)
        until(partial(lambda picker: picker.ready and picker.endpoints, picker))
        assert "may not be read" not in picker.log


def may_watch(namespace: str, account: str) -> list[dict[str, object]]:
    """Exactly what a picker reads, for a service account and for the user of the same namespace."""
    read = ["get", "list", "watch"]
    metadata = {"name": "picker", "namespace": namespace}
    groups = ["inference.networking.k8s.io", "inference.networking.x-k8s.io", "llm-d.ai"]
    kinds = ["inferencepools", "inferenceobjectives", "inferencemodels", "inferencemodelrewrites"]
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": metadata,
            "rules": [
                {"apiGroups": [""], "resources": ["pods"], "verbs": read},
                {"apiGroups": groups, "resources": kinds, "verbs": read},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "picker"},
            "subjects": [
                {"kind": "ServiceAccount", "name": account, "namespace": namespace},
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"user-{namespace}"},
            ],
        },
    ]


@pytest.mark.parametrize(
    "spec",
    [
        {"selector": {"matchLabels": {}}, "targetPorts": [{"number": 8000}]},
        {"selector": {"matchLabels": VLLM}, "targetPorts": []},
        {"selector": {"matchLabels": VLLM}, "targetPorts": [{"number": 8000}, {"number": 8000}]},
        {"selector": {"matchLabels": VLLM}, "targetPorts": [{"number": n} for n in range(1, 10)]},
        {"selector": {"matchLabels": VLLM}, "targetPorts": [{"number": 8000}], "endpointPickerRef": {"name": "epp"}},
        {"selector": {"matchLabels": VLLM}, "targetPorts": [{"number": 8000}], "appProtocol": "grpc"},
    ],
)
def test_the_crds_refuse_what_we_would_refuse(with_crds: Cluster, namespace: str, spec: dict[str, object]) -> None:
    pool = {**a_pool(namespace), "spec": spec}
    with pytest.raises(Refusal):
        with_crds.apply(pool)


def test_the_crds_fill_in_what_a_gateway_expects(with_crds: Cluster, namespace: str) -> None:
    (pool,) = with_crds.apply(a_pool(namespace))
    assert pool["spec"]["appProtocol"] == "http"
    ref = pool["spec"]["endpointPickerRef"]
    assert (ref["group"], ref["kind"], ref["failureMode"]) == ("", "Service", "FailClose")


def test_only_who_may_reads_metrics(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    cluster = with_crds
    reader = cluster.account_token(namespace, "reader")
    stranger = cluster.account_token(namespace, "stranger")
    cluster.apply(
        a_pool(namespace),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"{namespace}-reader"},
            "rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"{namespace}-reader"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"{namespace}-reader"},
            "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
        },
    )
    picker = watch("--pool-name=llama", "--metrics-endpoint-auth=true")
    until(lambda: picker.ready)
    assert picker.page("/metrics")[0] == 401
    assert picker.page("/metrics", "nonsense")[0] == 401
    assert picker.page("/metrics", stranger)[0] == 403
    status, page = picker.page("/metrics", reader)
    assert status == 200
    assert "llm_d_epp" in page
    assert picker.page("/debug/endpoints", reader)[0] == 403


def test_of_two_replicas_one_is_ready_and_the_other_takes_over(
    with_crds: Cluster, namespace: str, watch: Watch
) -> None:
    with_crds.apply(a_pool(namespace))
    one = watch("--pool-name=llama", "--ha-enable-leader-election", "--drain-timeout=1s")
    until(lambda: one.ready)
    assert "epp_leading 1" in one.page("/metrics")[1]
    two = watch("--pool-name=llama", "--ha-enable-leader-election")
    until(lambda: "following the pods" in two.log)
    assert not two.ready
    one.process.stop()
    until(lambda: two.ready)


def test_replicas_are_all_ready_by_default(with_crds: Cluster, namespace: str, watch: Watch) -> None:
    with_crds.apply(a_pool(namespace))
    replicas = [watch("--pool-name=llama") for _ in range(2)]
    for replica in replicas:
        until(partial(lambda replica: replica.ready, replica))


async def test_a_pods_own_account_lets_in(with_crds: Cluster, namespace: str, tmp_path: Path) -> None:
    with_crds.apply(*may_watch(namespace, "picker"))
    (tmp_path / "token").write_text(with_crds.account_token(namespace, "picker"))
    (tmp_path / "ca.crt").write_bytes(with_crds.authority.path.read_bytes())
    api = Api(InCluster("127.0.0.1", with_crds.port, tmp_path), asyncio.get_running_loop().time)
    connection = api.connection()
    pods = await connection.ask(f"/api/v1/namespaces/{namespace}/pods")
    assert json.loads(pods)["kind"] == "PodList"
    with pytest.raises(Forbidden, match="cannot list resource"):
        await connection.ask(f"/api/v1/namespaces/{namespace}/secrets")
    connection.close()


async def test_an_authority_that_is_not_the_clusters_is_not_believed(
    with_crds: Cluster, namespace: str, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    Authority(tmp_path / "ca.crt")
    api = Api(InCluster("127.0.0.1", with_crds.port, tmp_path), asyncio.get_running_loop().time)
    connection = api.connection()
    with pytest.raises(Unanswered, match="certificate verify failed"):
        await connection.ask("/version")
    connection.close()
