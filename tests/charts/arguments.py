"""What other charts start their picker with, so that changing the image is enough. In their order and their notation."""

from __future__ import annotations

_POOL = ["--pool-name", "model", "--pool-namespace", "inference"]
_LOG = ["--zap-encoder", "json"]

CONFIG = "CONFIG"
"""Stands for the directory where a chart mounts its configuration (`/config` there)."""

THEIRS: dict[str, list[str]] = {
    "inferencepool 1.0": [*_POOL, *_LOG, "--config-file", f"{CONFIG}/default-plugins.yaml"],
    "inferencepool 1.0, flags and leader election": [
        *(*_POOL, "--pool-group", "inference.networking.x-k8s.io", *_LOG),
        *("--config-file", f"{CONFIG}/default-plugins.yaml", "--ha-enable-leader-election"),
        *("--v", "4", "--enable-pprof", "true", "--grpc-port", "9002"),
    ],
    "inferencepool 1.0 for triton": [
        *(*_POOL, *_LOG, "--config-file", f"{CONFIG}/default-plugins.yaml"),
        *("--total-queued-requests-metric", "nv_trt_llm_request_metrics{request_type=waiting}"),
        *(
            "--kv-cache-usage-percentage-metric",
            "nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type=fraction}",
        ),
        *("--lora-info-metric", ""),
    ],
    "llm-d router gateway": [
        *(*_POOL, "--pool-group", "inference.networking.k8s.io", *_LOG),
        *("--config-file", f"{CONFIG}/default-plugins.yaml", "--grpc-health-port", "9003", "--tracing=false"),
    ],
    "llm-d router gateway, several replicas and flags": [
        *(*_POOL, "--pool-group", "inference.networking.k8s.io", *_LOG),
        *("--config-file", f"{CONFIG}/payload-agnostic.yaml", "--ha-enable-leader-election"),
        *("--grpc-health-port", "9003", "--v=3", "--secure-serving=false", "--tracing=true"),
        "--metrics-endpoint-auth=false",
    ],
    "llm-d router standalone": [
        *("--endpoint-selector", "app=my-vllm-service,tier=gold", "--endpoint-target-ports", "8000,8001", *_LOG),
        *("--config-file", f"{CONFIG}/default-plugins.yaml", "--grpc-health-port", "9003", "--tracing=false"),
    ],
}

CONFIGS = {
    "default-plugins.yaml": """
apiVersion: inference.networking.x-k8s.io/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: queue-scorer
- type: kv-cache-utilization-scorer
- type: prefix-cache-scorer
- type: metrics-data-source
  parameters: {scheme: "http", path: "/metrics", insecureSkipVerify: true}
- type: core-metrics-extractor
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: queue-scorer, weight: 2}
  - {pluginRef: kv-cache-utilization-scorer, weight: 2}
  - {pluginRef: prefix-cache-scorer, weight: 3}
""",
    "payload-agnostic.yaml": """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- type: passthrough-parser
- type: active-request-scorer
- type: session-affinity-scorer
requestHandler:
  parsers:
  - pluginRef: passthrough-parser
schedulingProfiles:
- name: default
  plugins:
  - {pluginRef: active-request-scorer, weight: 1}
  - {pluginRef: session-affinity-scorer, weight: 1}
""",
}
"""The configurations that those charts mount."""
