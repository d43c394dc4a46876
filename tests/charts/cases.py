"""Values worth a rendering of their own, as somebody types them behind `helm install`."""

from __future__ import annotations

import shlex

import msgspec

_VLLM = "vllm-llama3-8b-instruct"
_QWEN = "--set router.modelServers.matchLabels.app=vllm-qwen3-32b"
_CUSTOM = "tests/data/helm/values"


class Case(msgspec.Struct, frozen=True):
    """One `helm install NAME deploy/helm/CHART ARGUMENTS`, from the root of the project."""

    chart: str
    release: str
    line: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.line)


DOCUMENTED = {
    # GKE Inference Gateway: deploy; the chart's name is ours, the rest theirs.
    "gke-deploy": Case(
        "epp",
        _VLLM,
        f"--set inferencePool.modelServers.matchLabels.app={_VLLM} --set provider.name=gke "
        "--set inferenceExtension.monitoring.gke.enabled=true --version v1.0.1",
    ),
    "gke-deploy-autopilot": Case(
        "epp",
        _VLLM,
        f"--set inferencePool.modelServers.matchLabels.app={_VLLM} --set provider.name=gke "
        "--set inferenceExtension.monitoring.gke.enabled=true --set provider.gke.autopilot=true",
    ),
    # GKE Inference Gateway across clusters.
    "gke-multi-cluster": Case(
        "epp",
        _VLLM,
        f"--set inferencePool.modelServers.matchLabels.app={_VLLM} --set provider.name=gke --version v1.1.0",
    ),
    # The readme of the inferencepool chart.
    "inferencepool-triton": Case(
        "epp",
        "triton-llama3-8b-instruct",
        "--set inferencePool.modelServers.matchLabels.app=triton-llama3-8b-instruct "
        "--set inferencePool.modelServerType=triton-tensorrt-llm --set provider.name=none",
    ),
    "inferencepool-leader-election": Case(
        "epp",
        _VLLM,
        f"--set inferencePool.modelServers.matchLabels.app={_VLLM} --set inferenceExtension.enableLeaderElection=true "
        "--set inferenceExtension.replicas=3 --set provider.name=istio",
    ),
    "inferencepool-values": Case("epp", _VLLM, f"-f {_CUSTOM}/inferencepool.yaml"),
    # The readme of the llm-d router's charts.
    "router-gateway": Case("epp", "vllm-qwen3-32b", _QWEN),
    "router-gateway-gke": Case("epp", "vllm-qwen3-32b", f"{_QWEN} --set provider.name=gke"),
    "router-values": Case("epp", "vllm-qwen3-32b", f"-f {_CUSTOM}/router.yaml"),
    "router-standalone": Case(
        "epp-standalone", "my-standalone-router", "--set router.modelServers.matchLabels.app=my-vllm-service"
    ),
    "router-standalone-service": Case(
        "epp-standalone",
        "my-standalone-router",
        "--set router.modelServers.matchLabels.app=my-vllm-service --set router.inferencePool.create=false "
        "--set router.proxy.mode=service --set router.proxy.replicas=3",
    ),
}
"""Command lines that others print for their charts."""

OURS = {
    "everything": Case("epp", "pool", f"-f {_CUSTOM}/everything.yaml"),
    "autoscaling": Case("epp", "pool", f"{_QWEN} --set router.epp.autoscaling.enabled=true"),
    "old-pool": Case(
        "epp",
        "pool",
        f"{_QWEN} --set router.inferencePool.apiVersion=inference.networking.x-k8s.io/v1alpha2 "
        "--set router.inferencePool.failureMode=FailClosed --set inferenceObjectives[0].name=batch "
        "--set inferenceObjectives[0].priority=-1",
    ),
    "without-pool": Case("epp", "pool", f"{_QWEN} --set router.inferencePool.create=false"),
    "standalone-guarded": Case("epp-standalone", "pool", f"{_QWEN} --set router.networkPolicy.enabled=true"),
    "istio": Case(
        "epp",
        "pool",
        f"{_QWEN} --set provider.name=istio --set httpRoute.create=true "
        "--set provider.istio.destinationRule.trafficPolicy.connectionPool.http.maxRequestsPerConnection=256000",
    ),
    "standalone-everything": Case("epp-standalone", "pool", f"-f {_CUSTOM}/standalone.yaml"),
}

GATEWAYS = {
    f"gateway-{name}": Case(
        "epp",
        "my-model",
        f"-f deploy/gateways/{name}/values.yaml --set router.modelServers.matchLabels.app=my-model",
    )
    for name in ("agentgateway", "envoy-gateway", "gke", "istio", "kgateway", "nginx-gateway-fabric")
}
"""What `deploy/gateways` says to install."""

CASES = {**DOCUMENTED, **OURS, **GATEWAYS}
