"""Every flag of `epp bbr`: its own, and those that it shares with `epp run`."""

from __future__ import annotations

from epp.cli.flag import Flag
from epp.cli.run_flags import FLAGS
from epp.cli.values import BOOL, PATH, PORT, TEXT

_SHARED = frozenset(
    [
        "metrics-port",
        "host",
        "transport",
        "drain-timeout",
        "grpc-max-recv-msg-size",
        "max-body-size",
        "max-connections",
        "hang-timeout",
        "secure-serving",
        "cert-path",
        "enable-cert-reload",
        "tls-min-version",
        "tls-cipher-suites",
        "client-ca-file",
        "client-allowed-names",
        "metrics-cert-dir",
        "metrics-client-ca-file",
        "metrics-token-file",
        "kubeconfig",
        "v",
        "zap-encoder",
        "zap-log-level",
        "zap-time-encoding",
        "tracing",
        "enable-pprof",
        "zap-devel",
        "zap-stacktrace-level",
    ]
)
"""Flags of `epp run` that `epp bbr` has too, to the same effect."""


BBR_FLAGS = (
    Flag("grpc-port", "Serving", "grpc_port", PORT, "Port of ext_proc.", metavar="PORT", shown="9004"),
    Flag(
        "grpc-health-port",
        "Serving",
        "grpc_health_port",
        PORT,
        "Port of gRPC health checks; any service name will do.",
        metavar="PORT",
        shown="9005",
    ),
    Flag(
        "streaming",
        "Serving",
        "streaming",
        BOOL,
        "Expect bodies in full duplex of an Envoy that does not announce how it sends them; false: buffered.",
        shown="false",
    ),
    Flag(
        "plugin",
        "Configuration",
        "plugins",
        TEXT,
        "What to do with a request, in order, as TYPE:NAME or TYPE:NAME:JSON: body-field-to-header with "
        '{"field_name": ..., "header_name": ...}, or base-model-to-header.',
        metavar="SPEC",
        shown="model to X-Gateway-Model-Name, its base model to X-Gateway-Base-Model-Name",
        repeated=True,
    ),
    Flag(
        "resources",
        "Configuration",
        "resources",
        PATH,
        "Directory of manifests to follow, of which ConfigMaps with the label inference.networking.k8s.io/bbr-managed count: "
        "baseModel, and its adapters as a YAML list. In a cluster, or with a kubeconfig, those of the namespace count as well.",
        metavar="DIR",
    ),
    *(flag for flag in FLAGS if flag.flag.removeprefix("--") in _SHARED),
    Flag(
        "metrics-endpoint-auth",
        "Compatibility",
        "metrics_endpoint_auth",
        BOOL,
        "Kubernetes asked who may read the metrics port: it is not; --metrics-token-file and --metrics-client-ca-file guard it.",
    ),
)
