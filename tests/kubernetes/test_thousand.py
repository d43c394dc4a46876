"""What a thousand pods cost the picker that watches them, against a real API server."""

from __future__ import annotations

from collections.abc import Callable

from tests.cluster import Cluster, Object
from tests.kubernetes.conftest import Watching, a_pool, until
from tests.unit.test_pools import NO_SCRAPING

PODS = 1000
UPDATES = 1000
"""What comes in ten seconds where a hundred come in one."""


def test_a_thousand_pods_that_change_all_the_time_are_cheap(
    with_crds: Cluster, namespace: str, watch: Callable[..., Watching]
) -> None:
    cluster = with_crds
    cluster.apply(a_pool(namespace))
    pods = [
        cluster.pod(
            f"vllm-{number}", namespace=namespace, labels={"app": "vllm"}, ip=f"10.{number >> 8}.{number % 256}.1"
        )
        for number in range(PODS)
    ]
    # Their metrics pages would be asked for at addresses where nobody is.
    picker = watch("--pool-name=llama", f"--config-text={NO_SCRAPING}")
    until(lambda: picker.ready)
    assert len(picker.endpoints) == PODS
    used_s = picker.process.cpu_seconds()
    for number in range(UPDATES):
        _beat(cluster, pods[number % PODS], number)
    # What came before it is taken in by then.
    cluster.delete(pods[0], grace_s=0)
    until(lambda: len(picker.endpoints) == PODS - 1)
    used_s = picker.process.cpu_seconds() - used_s
    # CPU time and not time: 5 % of a core for as long as they come.
    assert used_s <= 0.05 * UPDATES / 100
    assert picker.process.resident_bytes() <= 120e6


def _beat(cluster: Cluster, pod: Object, number: int) -> None:
    """A change that is none to the picker, as most of a pod's are."""
    change = {"metadata": {"annotations": {"beat": str(number)}}}
    cluster.request("PATCH", cluster.path(pod), change, content_type="application/merge-patch+json")
