"""Values that cannot work are refused before anything is installed, with what to do instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.charts.cases import Case
from tests.charts.render import Refused, render

SERVERS = "--set router.modelServers.matchLabels.app=m"
REFUSED = {
    "epp": [
        ("", "router.modelServers.matchLabels is missing"),
        (f"{SERVERS} --set router.epp.replica=2", "'replica' not allowed"),
        (f"{SERVERS} --set inferenceExtension.replica=2", "'replica' not allowed"),
        (f"{SERVERS} --set routr.epp.replicas=2", "'routr' not allowed"),
        (f"{SERVERS} --set router.epp.replicas=0", "minimum"),
        (f"{SERVERS} --set provider.name=gcp", "'none', 'gke', 'istio'"),
        (f"{SERVERS} --set router.modelServers.type=vlm", "'vllm', 'sglang'"),
        (f"{SERVERS} --set router.modelServers.targetPorts[0].number=70000", "65,535"),
        (f"{SERVERS} --set router.modelServers.protocol=grpc", "payload-agnostic.yaml"),
        (f"{SERVERS} --set router.epp.pluginsConfigFile=mine.yaml", "there is no mine.yaml"),
        (f"{SERVERS} --set router.epp.flags.grpc-port=1", "router.epp.extProcPort"),
        (f"{SERVERS} --set router.epp.flags.metrics-port=1", "9090"),
        (
            f"{SERVERS} --set router.inferencePool.create=false --set router.inferenceObjectives[0].name=a",
            "create=true",
        ),
        (f"{SERVERS} --set router.tokenizer.enabled=true", "leave it out"),
        (f"{SERVERS} --set inferenceExtension.latencyPredictor.enabled=true", "leave it out"),
        (f"{SERVERS} --set provider.gke.preferredBackends.enabled=true", "router.epp.replicas"),
        (f"{SERVERS} --set router.proxy.enabled=true", "epp-standalone"),
        (
            f"{SERVERS} --set router.epp.autoscaling.enabled=true --set router.epp.flags.ha-enable-leader-election=true",
            "leave out the flag",
        ),
        (
            f"{SERVERS} --set router.epp.parsers[0]=openai-parser --set router.epp.pluginsConfigFile=payload-agnostic.yaml",
            "requestHandler.parsers",
        ),
    ],
    "epp-standalone": [
        ("", "router.modelServers.matchLabels is missing"),
        (f"{SERVERS} --set router.proxy.enabled=false", "install the chart epp"),
        (f"{SERVERS} --set router.proxy.proxyType=agentgateway", "deploy/gateways"),
        (f"{SERVERS} --set router.proxy.mode=sidcar", "'sidecar', 'service'"),
        (f"{SERVERS} --set router.epp.flags.ha-enable-leader-election=true", "router.proxy.mode=service"),
        (f"{SERVERS} --set router.proxy.drainSeconds=200", "terminationGracePeriodSeconds"),
        (
            f"{SERVERS} --set router.extraServicePorts[0].name=web --set router.extraServicePorts[0].port=1",
            "called http",
        ),
    ],
}


@pytest.mark.parametrize(
    ("chart", "line", "said"), [(chart, *each) for chart, lines in REFUSED.items() for each in lines]
)
def test_a_mistake_is_refused_with_what_to_do(helm: Path, chart: str, line: str, said: str) -> None:
    with pytest.raises(Refused) as refused:
        render(helm, Case(chart, "pool", line))
    assert said in str(refused.value)
