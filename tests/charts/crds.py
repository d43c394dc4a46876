"""Definitions of the custom resources of others that the charts render, strict about fields.

Written from each project's reference, with the fields that we use and those beside them that catch a slip.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
LABELS: Schema = {"type": "object", "additionalProperties": STRING}
DURATION: Schema = {"type": "string", "pattern": r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"}


def number(least: int, most: int) -> Schema:
    return {"type": "integer", "minimum": least, "maximum": most}


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def a(*required: str, **fields: Schema) -> Schema:
    """An object."""
    return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}


def some(items: Schema, least: int = 0, most: int = 64) -> Schema:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


PORT = number(1, 65535)
TARGET = a("group", "kind", "name", group=STRING, kind=STRING, name=STRING, namespace=STRING)
SELECTOR = a(matchLabels=LABELS)

ROUTE = a(
    parentRefs=some(a("name", group=STRING, kind=STRING, name=STRING, namespace=STRING, sectionName=STRING, port=PORT)),
    hostnames=some(STRING),
    rules=some(
        a(
            backendRefs=some(a("name", group=STRING, kind=STRING, name=STRING, port=PORT, weight=number(0, 10**6))),
            matches=some(
                a(
                    path=a(type=one_of("Exact", "PathPrefix", "RegularExpression"), value=STRING),
                    headers=some(
                        a("name", "value", type=one_of("Exact", "RegularExpression"), name=STRING, value=STRING)
                    ),
                )
            ),
            timeouts=a(request=DURATION, backendRequest=DURATION),
        )
    ),
)
GATEWAY = a(
    "gatewayClassName",
    "listeners",
    gatewayClassName=STRING,
    listeners=some(a("name", "port", "protocol", name=STRING, port=PORT, protocol=STRING, hostname=STRING), 1),
)
BACKEND_POLICY = a(
    "targetRef",
    targetRef=TARGET,
    default=a(
        logging=a(enabled=BOOLEAN, sampleRate=number(0, 10**6)),
        timeoutSec=number(1, 2**31 - 1),
        maxRatePerEndpoint=number(1, 10**9),
    ),
)
HEALTH_CHECK_POLICY = a(
    "targetRef",
    targetRef=TARGET,
    default=a(
        checkIntervalSec=number(1, 300),
        timeoutSec=number(1, 300),
        healthyThreshold=number(1, 10),
        unhealthyThreshold=number(1, 10),
        config={
            **a(
                type=one_of("TCP", "HTTP", "HTTPS", "HTTP2", "GRPC"),
                httpHealthCheck={
                    **a(
                        port=PORT,
                        portSpecification=one_of("USE_FIXED_PORT", "USE_NAMED_PORT", "USE_SERVING_PORT"),
                        host=STRING,
                        requestPath=STRING,
                    ),
                    "x-kubernetes-validations": [
                        {
                            "rule": "!has(self.port) || has(self.portSpecification)",
                            "message": "port needs portSpecification",
                        }
                    ],
                },
            )
        },
    ),
)
POD_MONITORING = a(
    "selector",
    "endpoints",
    selector=SELECTOR,
    endpoints=some(
        a(
            "port",
            "interval",
            port={"x-kubernetes-int-or-string": True},
            scheme=one_of("http", "https"),
            path=STRING,
            interval=STRING,
            timeout=STRING,
            authorization=a(type=STRING, credentials=a(secret=a(name=STRING, key=STRING, namespace=STRING))),
        ),
        1,
    ),
)
SERVICE_MONITOR = a(
    "selector",
    "endpoints",
    selector=SELECTOR,
    jobLabel=STRING,
    namespaceSelector=a(any=BOOLEAN, matchNames=some(STRING)),
    endpoints=some(
        a(
            port=STRING,
            scheme=one_of("http", "https"),
            path=STRING,
            interval=STRING,
            authorization=a(type=STRING, credentials=a("key", name=STRING, key=STRING, optional=BOOLEAN)),
        )
    ),
)
TARGETS = some(a("group", "kind", "name", group=STRING, kind=STRING, name=STRING), 1)
BREAKER = a(**dict.fromkeys(("maxConnections", "maxPendingRequests", "maxParallelRequests"), number(0, 2**32 - 1)))
EXTENSION_POLICY = a(
    targetRefs=TARGETS,
    extProc=some(
        a(
            backendRefs=some(a("name", group=STRING, kind=STRING, name=STRING, port=PORT)),
            failOpen=BOOLEAN,
            messageTimeout=DURATION,
            processingMode=a(
                allowModeOverride=BOOLEAN,
                request=a(body=one_of("Streamed", "Buffered", "BufferedPartial", "FullDuplexStreamed")),
                response=a(body=one_of("Streamed", "Buffered", "BufferedPartial", "FullDuplexStreamed")),
            ),
            backendSettings=a(circuitBreaker=BREAKER),
        )
    ),
)
TRAFFIC_POLICY = a(
    targetRefs=TARGETS,
    loadBalancer=a(
        "type",
        type=one_of("ConsistentHash", "LeastRequest", "Random", "RoundRobin"),
        endpointOverride=a("extractFrom", extractFrom=some(a(header=STRING), 1)),
    ),
    retry=a(numRetries=number(0, 100), retryOn=a(triggers=some(STRING))),
    circuitBreaker=BREAKER,
    healthCheck=a(
        active=a(
            "type",
            type=one_of("HTTP", "TCP", "GRPC"),
            http=a("path", path=STRING, expectedStatuses=some(number(100, 599))),
            timeout=DURATION,
            interval=DURATION,
            unhealthyThreshold=number(1, 2**32 - 1),
            healthyThreshold=number(1, 2**32 - 1),
        )
    ),
)
DESTINATION_RULE = a(
    "host",
    host=STRING,
    trafficPolicy=a(
        tls=a(mode=one_of("DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"), sni=STRING, insecureSkipVerify=BOOLEAN),
        connectionPool=a(
            tcp=a(maxConnections=number(0, 2**31 - 1)),
            http=a(
                maxRequestsPerConnection=number(0, 2**31 - 1),
                http1MaxPendingRequests=number(0, 2**31 - 1),
                http2MaxRequests=number(0, 2**31 - 1),
            ),
        ),
    ),
)

KINDS: tuple[tuple[str, str, str, dict[str, Schema]], ...] = (
    ("gateway.networking.k8s.io", "HTTPRoute", "httproutes", {"v1": ROUTE}),
    ("gateway.networking.k8s.io", "Gateway", "gateways", {"v1": GATEWAY}),
    ("networking.gke.io", "GCPBackendPolicy", "gcpbackendpolicies", {"v1": BACKEND_POLICY}),
    ("networking.gke.io", "HealthCheckPolicy", "healthcheckpolicies", {"v1": HEALTH_CHECK_POLICY}),
    ("monitoring.googleapis.com", "PodMonitoring", "podmonitorings", {"v1": POD_MONITORING}),
    ("monitoring.coreos.com", "ServiceMonitor", "servicemonitors", {"v1": SERVICE_MONITOR}),
    ("gateway.envoyproxy.io", "EnvoyExtensionPolicy", "envoyextensionpolicies", {"v1alpha1": EXTENSION_POLICY}),
    ("gateway.envoyproxy.io", "BackendTrafficPolicy", "backendtrafficpolicies", {"v1alpha1": TRAFFIC_POLICY}),
    ("networking.istio.io", "DestinationRule", "destinationrules", {"v1": DESTINATION_RULE}),
)


def definitions() -> list[dict[str, Any]]:
    return [_definition(*each) for each in KINDS]


def _definition(group: str, kind: str, plural: str, versions: dict[str, Schema]) -> dict[str, Any]:
    served = [
        {
            "name": version,
            "served": True,
            "storage": place == 0,
            "schema": {"openAPIV3Schema": a(spec=spec, status=a())},
        }
        for place, (version, spec) in enumerate(versions.items())
    ]
    annotations = {"api-approved.kubernetes.io": "unapproved, for tests"} if group.endswith("k8s.io") else {}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "annotations": annotations},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": served,
        },
    }
