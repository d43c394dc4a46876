"""Envoy that traces: each call of a connection brings header fields of its own, which go into the table that all calls refer to."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from typing import Any

from tests.integration.conftest import FULL_DUPLEX, Scene
from tests.integration.test_faults import failing
from tests.waiting import PATIENCE_S

OPEN_TELEMETRY = "type.googleapis.com/envoy.config.trace.v3.OpenTelemetryConfig"


def traced(config: dict[str, Any]) -> None:
    """Every request has a span, which goes to the picker's cluster and is refused there. Without the picker a request fails."""
    failing(False)(config)
    listener = config["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    service = {"envoy_grpc": {"cluster_name": "picker"}, "timeout": "1s"}
    tracer = {"@type": OPEN_TELEMETRY, "grpc_service": service, "service_name": "test"}
    manager["tracing"] = {"provider": {"name": "envoy.tracers.opentelemetry", "typed_config": tracer}}


def test_calls_that_are_traced_are_read_as_long_as_a_connection_lasts(make_scene: Callable[..., Scene]) -> None:
    """A `traceparent` takes 98 of the table's 4,096 bytes: 100 calls have pushed out every other field twice."""
    scene = make_scene(1)
    scene.start_picker()
    scene.start_envoy(FULL_DUPLEX, traced)
    assert [scene.ask().status for _ in range(100)] == [200] * 100
    # A block that is read wrong ends its connection, and Envoy makes the call again on another.
    stats = f"http://127.0.0.1:{scene.admin}/stats?filter=cluster.picker.upstream_cx_total"
    with urllib.request.urlopen(stats, timeout=PATIENCE_S) as page:
        assert page.read().decode().split() == ["cluster.picker.upstream_cx_total:", "1"]
