"""Everything that the command line and the environment say, as one frozen value. Nothing past it reads either."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from epp.extproc.events import BodyMode, Modes
from epp.resources.objects import EXPERIMENTAL, NETWORKING
from epp.resources.rules import Selection

MIN_REFRESH_S = 0.05
"""The Go picker's lower bound, and its default. At 50 ms and 8 servers with real pages it spends 0.34 cores on reading them."""

DEFAULT_POOL = "epp"

PLACEHOLDER = "{pool}"
"""Of a path, where the name of a pool goes."""

_MODES = {
    "full-duplex": Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED),
    "streamed": Modes(BodyMode.STREAMED, BodyMode.STREAMED),
    "buffered": Modes(BodyMode.BUFFERED, BodyMode.BUFFERED),
    "lean": Modes(BodyMode.BUFFERED_PARTIAL, BodyMode.NONE),
}

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""0 is any free one."""

TargetPort = Annotated[int, msgspec.Meta(ge=1, le=65535)]
MAX_TARGET_PORTS = 8

Seconds = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an operator said. A metric spec is None where the engine's own names hold, "" where the signal is off.

    `notices` are lines for the log: what was said without effect.
    """

    host: str | None = None
    """None is every interface."""
    grpc_port: Port = 9002
    grpc_health_port: Port = 9003
    metrics_port: Port = 9090
    transport: Literal["http2", "grpc.aio"] = "http2"
    drain_timeout_s: Seconds = 30.0
    max_message_bytes: int | None = None
    """Of one gRPC message; None is the transport's own limit."""
    max_body_bytes: int | None = None
    """Of one request's body, where it comes in pieces (full duplex); None is the exchange's own limit."""
    max_arriving_bytes: int | None = None
    """Of all such bodies that are not whole yet; None is `epp.extproc.room`'s, or twice the largest body."""
    max_connections: int | None = None
    """On each gRPC port; None is the transport's own limit."""
    default_body_mode: Literal["full-duplex", "streamed", "buffered", "lean"] = "full-duplex"
    look_share: Share = 0.01
    body_based_routing: bool = False
    """Requests carry the headers by which routes find a pool."""
    seed: int | None = None
    max_loop_lag_s: Seconds = 0.05
    """0 is any. 25 times the latency that may be added at the ninety-ninth percentile, a fortieth of Envoy's patience."""
    hang_timeout_s: Seconds = 30.0
    """0 is for ever."""

    endpoints: tuple[str, ...] = ()
    """`host:port`, or `pool=host:port` where there may be several pools; well-formed."""
    envoy_eds_file: Path | None = None
    """With several pools it holds `{pool}`."""
    pool_names: tuple[str, ...] = ()
    """Empty: the pool `DEFAULT_POOL`, unless `picker_service` says which."""
    picker_service: str = ""
    """The Service whose pools are served, in place of names."""
    pool_namespace: str = "default"
    pool_group: str | None = None
    """Of the InferencePool objects that count; None is any."""
    pod_name: str = ""
    endpoint_selector: str | None = None
    """Labels of the pods, as the API server takes them, where no object describes the pool."""
    endpoint_target_ports: tuple[TargetPort, ...] = ()
    """Of those pods."""
    kubeconfig: Path | None = None
    service_host: str | None = None
    """The API server as a pod is told of it; None outside of clusters."""
    service_port: Port = 443
    home: Path | None = None
    elects_leader: bool = False
    ignore_subset: bool = False
    emit_endpoint_scores: bool = False

    resources: Path | None = None
    """A directory of manifests."""
    config_file: Path | None = None
    config_text: str | None = None

    refresh_metrics_interval_s: Seconds = 1.0
    metrics_staleness_threshold_s: Seconds = 2.0
    model_server_metrics_port: Port | None = None
    model_server_metrics_path: str | None = None
    model_server_metrics_scheme: Literal["http", "https"] | None = None
    model_server_metrics_insecure: bool | None = None
    queued_requests_spec: str | None = None
    running_requests_spec: str | None = None
    kv_usage_spec: str | None = None
    lora_spec: str | None = None
    cache_info_spec: str | None = None

    secure_serving: bool = True
    cert_path: Path | None = None
    enable_cert_reload: bool = False
    tls_min_version: str = "VersionTLS12"
    tls_cipher_suites: tuple[str, ...] = ()
    client_ca_file: Path | None = None
    client_allowed_names: tuple[str, ...] = ()
    """Subject alternative names, one of which a client must show. Empty: whoever the authority signed."""
    metrics_cert_dir: Path | None = None
    metrics_client_ca_file: Path | None = None
    metrics_token_file: Path | None = None
    metrics_endpoint_auth: bool = True
    """Whether Kubernetes, where endpoints come from there, is asked who may read metrics."""

    decision_log: Path | None = None
    decision_log_max_bytes: int | None = None
    """None is `epp.decisions.file`'s own."""

    log_level: int = 20
    """As the standard library counts."""
    log_encoder: Literal["json", "console"] = "console"
    log_time_encoding: Literal["epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano"] = "rfc3339"

    notices: tuple[str, ...] = ()

    @property
    def selection(self) -> Selection:
        """Which pools are served."""
        if self.picker_service:
            return Selection((), self.picker_service)
        return Selection(self.pool_names or (self._nameless,))

    @property
    def _nameless(self) -> str:
        """What a pool is called that nobody named: after our own Deployment, where it is one of pods that were selected."""
        deployment = self.pod_name.rsplit("-", 2)[0]
        return deployment if self.endpoint_selector and deployment else DEFAULT_POOL

    @property
    def names_pods(self) -> bool:
        """Whether Kubernetes is to be asked who the endpoints are, where nothing nearer says it."""
        return bool(self.endpoint_selector or self.pool_names or self.picker_service)

    @property
    def only_pool(self) -> str | None:
        """The name of the pool, where there is never another."""
        names = self.selection.names
        return names[0] if len(names) == 1 else None

    @property
    def default_modes(self) -> Modes:
        """How Envoy shows the bodies where it does not say so itself."""
        return _MODES[self.default_body_mode]


def from_flags(flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Settings of `flags`, which holds fields by name and only those that were given, and the variables that we read.

    Raises ValueError, with a message for the operator, where flags contradict each other or a value is out of range.
    """
    if flags.get("config_file") is not None and flags.get("config_text") is not None:
        raise ValueError("--config-file and --config-text exclude each other")
    for flag, field in (("--endpoint", "endpoints"), ("--pool-name", "pool_names")):
        given = flags.get(field)
        if isinstance(given, tuple) and len(set(given)) < len(given):
            raise ValueError(f"{flag} {max(given, key=given.count)} is given twice")
    if flags.get("metrics_client_ca_file") is not None and flags.get("metrics_cert_dir") is None:
        raise ValueError("--metrics-client-ca-file needs --metrics-cert-dir: clients show certificates only over TLS")
    _check_trust(flags)
    try:
        settings = msgspec.convert({**_environment(environment), **flags}, Settings)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    _check_pools(settings)
    if settings.refresh_metrics_interval_s >= MIN_REFRESH_S:
        return settings
    notice = f"--refresh-metrics-interval: raised to {MIN_REFRESH_S * 1e3:g}ms, the shortest there is"
    return msgspec.structs.replace(
        settings, refresh_metrics_interval_s=MIN_REFRESH_S, notices=(*settings.notices, notice)
    )


def _check_pools(settings: Settings) -> None:
    """Raises ValueError where what is said of pools does not fit together."""
    if settings.picker_service and settings.pool_names:
        raise ValueError(
            "--pool-name and --picker-service exclude each other: which pools there are is said by one of them"
        )
    if settings.picker_service and settings.endpoints and settings.resources is None:
        raise ValueError(
            "--picker-service with --endpoint needs --resources: the pools are those that name the Service in their manifests"
        )
    if bool(settings.endpoint_selector) != bool(settings.endpoint_target_ports):
        raise ValueError("--endpoint-selector and --endpoint-target-ports need each other: pods, and where they listen")
    if settings.endpoint_selector and (settings.pool_names or settings.picker_service):
        raise ValueError("--endpoint-selector is for pods without a pool: it excludes --pool-name and --picker-service")
    if len(settings.endpoint_target_ports) > MAX_TARGET_PORTS:
        raise ValueError(f"--endpoint-target-ports: at most {MAX_TARGET_PORTS} ports")
    if settings.pool_group not in (None, NETWORKING, EXPERIMENTAL):
        raise ValueError(f"--pool-group {settings.pool_group}: pools are in {NETWORKING} or in {EXPERIMENTAL}")
    for flag, path in (("--envoy-eds-file", settings.envoy_eds_file), ("--decision-log", settings.decision_log)):
        if settings.only_pool is None and path is not None and PLACEHOLDER not in str(path):
            raise ValueError(f"{flag} {path} needs {PLACEHOLDER} in its name: each pool has a file of its own")
    names = settings.selection.names
    for endpoint in settings.endpoints:
        pool, named, _ = endpoint.rpartition("=")
        if named and names and pool not in names:
            raise ValueError(
                f"--endpoint {endpoint}: there is no pool {pool}; there are {', '.join(names)} (--pool-name)"
            )
        if not named and settings.only_pool is None:
            raise ValueError(f"--endpoint {endpoint} does not say of which pool it is: write NAME={endpoint}")


def from_router_flags(flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """The same of `epp bbr`, which has fewer flags and other defaults."""
    if flags.get("metrics_client_ca_file") is not None and flags.get("metrics_cert_dir") is None:
        raise ValueError("--metrics-client-ca-file needs --metrics-cert-dir: clients show certificates only over TLS")
    _check_trust(flags)
    given = dict(flags)
    mode = "full-duplex" if given.pop("streaming", False) else "buffered"
    ports = {"grpc_port": 9004, "grpc_health_port": 9005, "default_body_mode": mode}
    try:
        return msgspec.convert({**ports, **_environment(environment), **given}, Settings)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None


def _check_trust(flags: Mapping[str, object]) -> None:
    """Raises ValueError where trust was asked for that would not be there."""
    if flags.get("client_allowed_names") and flags.get("client_ca_file") is None:
        raise ValueError(
            "--client-allowed-names needs --client-ca-file: names count only in certificates that it signed"
        )
    if flags.get("client_ca_file") is not None and flags.get("secure_serving") is False:
        raise ValueError("--client-ca-file needs --secure-serving: clients show certificates only over TLS")
    if flags.get("transport") != "grpc.aio":
        return
    if flags.get("tls_min_version", "VersionTLS12") != "VersionTLS12" or flags.get("tls_cipher_suites"):
        raise ValueError(
            "--tls-min-version and --tls-cipher-suites need --transport http2: gRPC's own server takes TLS 1.2 and 1.3 with "
            "suites of its choice"
        )


def _environment(environment: Mapping[str, str]) -> dict[str, object]:
    said = {name: value for name, value in environment.items() if value}
    fields: dict[str, object] = {}
    for name, field in (
        ("NAMESPACE", "pool_namespace"),
        ("POD_NAME", "pod_name"),
        ("KUBERNETES_SERVICE_HOST", "service_host"),
    ):
        if name in said:
            fields[field] = said[name]
    if said.get("KUBERNETES_SERVICE_PORT", "").isdecimal():
        fields["service_port"] = int(said["KUBERNETES_SERVICE_PORT"])
    if "KUBECONFIG" in said:
        # Of several files the first: contexts that are spread over files are for people, who can name one by --kubeconfig.
        fields["kubeconfig"] = Path(said["KUBECONFIG"].partition(":")[0])
    if "HOME" in said:
        fields["home"] = Path(said["HOME"])
    return fields
