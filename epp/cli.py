"""The command line: `epp run` and what helps to write a configuration."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import msgspec

from epp import configuration, settings
from epp.configuration.notation import parse_duration, parse_quantity
from epp.configuration.problems import suggestion
from epp.discovery.source import DiscoveryError
from epp.discovery.spread import POOL_LABEL
from epp.discovery.static import parse_endpoint
from epp.observe.logs import level_named, level_of
from epp.settings import Settings

WIDTH = 100
"""Columns of help texts, where the terminal has them."""

GROUPS = ("Serving", "Pool and endpoints", "Configuration", "Signals", "TLS", "Observability", "Compatibility")

_TRUE = ("1", "t", "true")
_FALSE = ("0", "f", "false")


class _Parsed(click.ParamType[Any]):
    """What a function reads that raises ValueError with a message for the operator."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _switch(text: str) -> bool:
    """As Go's flags read it."""
    if text.lower() in _TRUE + _FALSE:
        return text.lower() in _TRUE
    raise ValueError(f"{text!r} is neither true nor false")


def _size(text: str) -> int | None:
    """`10MiB`, `25MB`, `4Mi` or bytes; nothing for the default."""
    return parse_quantity(re.sub("K(?!i)", "k", text.removesuffix("B"))) if text else None


def _path(text: str) -> Path | None:
    """A template that renders an empty value means the default, not the working directory."""
    return Path(text) if text else None


def _endpoint(text: str) -> str:
    try:
        endpoint = parse_endpoint(text)
    except DiscoveryError as error:
        raise ValueError(str(error)) from None
    pool = endpoint.labels.get(POOL_LABEL)
    return f"{pool}={endpoint.destination}" if pool else endpoint.destination


def _ports(text: str) -> tuple[int, ...]:
    """`8000,8001`."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not (part.isascii() and part.isdecimal() and 0 < int(part) < 65536):
            raise ValueError(f"{part!r} is no port in 1..65535")
    return tuple(map(int, parts))


def _metrics_port(text: str) -> int | None:
    """0 is the endpoint's own port, as in the Go picker."""
    if text.isdecimal() and int(text) < 65536:
        return int(text) or None
    raise ValueError(f"{text!r} is no port in 1..65535")


BOOL = _Parsed("BOOL", _switch)
DURATION = _Parsed("DURATION", parse_duration)
SIZE = _Parsed("SIZE", _size)
ENDPOINT = _Parsed("[POOL=]HOST:PORT", _endpoint)
PORT = click.IntRange(0, 65535)
PATH = _Parsed("PATH", _path)
LEVEL = _Parsed("LEVEL", level_named)
TEXT = click.STRING


class Flag(click.Option):
    """One flag of `epp run`: its help, its group, and the field of `Settings` that it sets.

    `shown` is the default in words. `inert` says why the flag has no effect; `quiet` is the value that asks for none.
    """

    def __init__(
        self,
        name: str,
        group: str,
        field: str,
        kind: click.ParamType[Any],
        text: str,
        *,
        metavar: str | None = None,
        shown: str = "",
        inert: str = "",
        quiet: object = None,
        repeated: bool = False,
        aliases: Sequence[str] = (),
    ) -> None:
        assert group in GROUPS
        switch: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if kind is BOOL else {}
        super().__init__(
            [*aliases, f"--{name}", f"flag_{name.replace('-', '_')}"],
            type=kind,
            help=text,
            metavar=metavar,
            multiple=repeated,
            **switch,
        )
        self.flag = f"--{name}"
        self.group = group
        self.field = field
        self.shown = shown
        self.inert = inert
        self.quiet = quiet

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        default = f" (default {self.shown})" if self.shown else ""
        reason = f": {self.inert}." if self.inert else ""
        return f"{', '.join(self.opts)} {self.make_metavar(ctx)}", f"{self.help}{reason}{default}"

    def notice(self, value: object) -> str | None:
        """What to say at the start about `value` having been given."""
        if not self.inert or value == self.quiet:
            return None
        return f"{self.flag}: accepted, has no effect yet: {self.inert}"


def _choice(*names: str) -> click.Choice[str]:
    return click.Choice(names)


FLAGS = (
    Flag("grpc-port", "Serving", "grpc_port", PORT, "Port of ext_proc.", metavar="PORT", shown="9002"),
    Flag(
        "grpc-health-port",
        "Serving",
        "grpc_health_port",
        PORT,
        "Port of gRPC health checks.",
        metavar="PORT",
        shown="9003",
    ),
    Flag(
        "metrics-port",
        "Serving",
        "metrics_port",
        PORT,
        "Port of /metrics, /healthz and /readyz.",
        metavar="PORT",
        shown="9090",
    ),
    Flag("host", "Serving", "host", TEXT, "Address to listen on.", metavar="ADDRESS", shown="all, IPv4 and IPv6"),
    Flag(
        "transport",
        "Serving",
        "transport",
        _choice("http2", "grpc.aio"),
        "Server of ext_proc: our own, or the reference one at about four times the CPU per request.",
        shown="http2",
    ),
    Flag(
        "drain-timeout",
        "Serving",
        "drain_timeout_s",
        DURATION,
        "How long requests in flight may go on after SIGTERM.",
        shown="30s",
    ),
    Flag(
        "grpc-max-recv-msg-size",
        "Serving",
        "max_message_bytes",
        SIZE,
        "Largest gRPC message taken, such as 10MiB; at least Envoy's buffer limit.",
        shown="64MiB",
    ),
    Flag(
        "max-body-size",
        "Serving",
        "max_body_bytes",
        SIZE,
        "Largest request body taken in full duplex, such as 10MiB; a larger one is refused with 413.",
        shown="64MiB",
    ),
    Flag(
        "max-arriving-size",
        "Serving",
        "max_arriving_bytes",
        SIZE,
        "Most that all bodies still coming in full duplex may hold together; what is too much is refused with 429. What waits in "
        "flow control counts against its maxBytes instead.",
        shown="512MiB",
    ),
    Flag(
        "max-connections",
        "Serving",
        "max_connections",
        click.IntRange(1),
        "Connections at once on each gRPC port; Envoy opens one for each of its worker threads.",
        metavar="N",
        shown="4096",
    ),
    Flag(
        "default-body-mode",
        "Serving",
        "default_body_mode",
        _choice("full-duplex", "streamed", "buffered", "lean"),
        "Body modes to expect of an Envoy that does not announce them. lean is BUFFERED_PARTIAL for requests and NONE for "
        "answers.",
        shown="full-duplex",
    ),
    Flag(
        "body-based-routing",
        "Serving",
        "body_based_routing",
        BOOL,
        "Do the job of a body-based router in the same call: set X-Gateway-Model-Name, X-Gateway-Base-Model-Name and "
        "x-gateway-inference-pool, by which Envoy's routes find the pool's cluster.",
        shown="false",
    ),
    Flag(
        "look-share",
        "Serving",
        "look_share",
        click.FloatRange(0, 1),
        "Share of answers whose body is asked for in lean mode, to learn tokens and times from. Needs allow_mode_override in "
        "Envoy.",
        metavar="0..1",
        shown="0.01",
    ),
    Flag(
        "max-loop-lag",
        "Serving",
        "max_loop_lag_s",
        DURATION,
        "Event loop later than this on average: picks go without prefixes, then to any endpoint, until it is on time again. 0 "
        "for never.",
        shown="0.05s",
    ),
    Flag(
        "hang-timeout",
        "Serving",
        "hang_timeout_s",
        DURATION,
        "Event loop that has not turned for this long: the process prints all stacks and ends with status 70. 0 for never.",
        shown="30s",
    ),
    Flag("seed", "Serving", "seed", click.INT, "Make every random choice repeatable.", metavar="N"),
    Flag(
        "endpoint",
        "Pool and endpoints",
        "endpoints",
        ENDPOINT,
        "A model server. Give it once for each; with several pools say whose it is.",
        repeated=True,
    ),
    Flag(
        "pool-name",
        "Pool and endpoints",
        "pool_names",
        TEXT,
        "Name of the pool, as poolRef in manifests and name in metrics say it. Without endpoints from a flag or a file Kubernetes "
        "is watched for the InferencePool of this name and its pods. Give it once for each of several pools: a call's "
        "gRPC metadata or route metadata x-gateway-inference-pool says which is meant, else the request's model, else it is the "
        "first.",
        metavar="NAME",
        shown="epp",
        repeated=True,
    ),
    Flag(
        "picker-service",
        "Pool and endpoints",
        "picker_service",
        TEXT,
        "Serve every InferencePool of the namespace that names this Service as its endpoint picker, in place of --pool-name.",
        metavar="NAME",
    ),
    Flag(
        "pool-namespace",
        "Pool and endpoints",
        "pool_namespace",
        TEXT,
        "Namespace of the pool.",
        metavar="NAME",
        shown="$NAMESPACE, else default",
    ),
    Flag(
        "pool-group",
        "Pool and endpoints",
        "pool_group",
        TEXT,
        "API group of the InferencePool.",
        metavar="GROUP",
        shown="inference.networking.k8s.io, else inference.networking.x-k8s.io",
    ),
    Flag(
        "endpoint-selector",
        "Pool and endpoints",
        "endpoint_selector",
        TEXT,
        "Labels of the pods, where there is no InferencePool to say so. In place of --pool-name.",
        metavar="LABELS",
    ),
    Flag(
        "endpoint-target-ports",
        "Pool and endpoints",
        "endpoint_target_ports",
        _Parsed("PORT,...", _ports),
        "Ports of those pods, at most 8.",
        repeated=True,
    ),
    Flag(
        "kubeconfig",
        "Pool and endpoints",
        "kubeconfig",
        PATH,
        "Whose current context names the API server, where endpoints come from Kubernetes.",
        metavar="PATH",
        shown="$KUBECONFIG, else the pod's service account, else ~/.kube/config",
    ),
    Flag(
        "ha-enable-leader-election",
        "Pool and endpoints",
        "elects_leader",
        BOOL,
        "Let only one of several replicas be ready, by a Lease. Without it all are.",
        shown="false",
    ),
    Flag(
        "envoy-eds-file",
        "Pool and endpoints",
        "envoy_eds_file",
        PATH,
        "Keep the endpoints in this file for Envoy's EDS to watch. It is replaced whole at each change. With several pools the "
        "path holds {pool}, and each pool has a file of its own.",
        metavar="PATH",
    ),
    Flag(
        "disable-endpoint-subset-filter",
        "Pool and endpoints",
        "ignore_subset",
        BOOL,
        "Pass over the gateway's hint which endpoints may serve a request.",
        shown="false",
    ),
    Flag(
        "emit-endpoint-scores",
        "Pool and endpoints",
        "emit_endpoint_scores",
        BOOL,
        "Put every candidate's score into the answer's dynamic metadata, for access logs.",
        shown="false",
    ),
    Flag(
        "resources",
        "Configuration",
        "resources",
        PATH,
        "Directory of manifests to follow: InferencePool, InferenceObjective, InferenceModel, InferenceModelRewrite.",
        metavar="DIR",
    ),
    Flag(
        "config-file",
        "Configuration",
        "config_file",
        PATH,
        "EndpointPickerConfig to follow; epp check tells whether it is sound.",
        metavar="PATH",
        shown="built in: least delay",
    ),
    Flag("config-text", "Configuration", "config_text", TEXT, "The same as text instead of a file.", metavar="YAML"),
    Flag(
        "refresh-metrics-interval",
        "Signals",
        "refresh_metrics_interval_s",
        DURATION,
        "How often each model server's metrics page is read, at least 50ms. The Go picker's default is 50ms, which costs it "
        "0.34 cores at 8 servers; here the own account of requests in flight bridges the time between.",
        shown="1s",
    ),
    Flag(
        "metrics-staleness-threshold",
        "Signals",
        "metrics_staleness_threshold_s",
        DURATION,
        "Age from which a server's page no longer counts in the pool's averages and ready endpoints.",
        shown="2s",
    ),
    Flag(
        "model-server-metrics-port",
        "Signals",
        "model_server_metrics_port",
        _Parsed("PORT", _metrics_port),
        "Port of every server's metrics page.",
        shown="the endpoint's",
    ),
    Flag(
        "model-server-metrics-path",
        "Signals",
        "model_server_metrics_path",
        TEXT,
        "Path of every server's metrics page.",
        metavar="PATH",
        shown="/metrics",
    ),
    Flag(
        "model-server-metrics-scheme",
        "Signals",
        "model_server_metrics_scheme",
        _choice("http", "https"),
        "How metrics pages are fetched.",
        shown="http",
    ),
    Flag(
        "model-server-metrics-https-insecure-skip-verify",
        "Signals",
        "model_server_metrics_insecure",
        BOOL,
        "Trust any certificate of a metrics page.",
        shown="true",
    ),
    *(
        Flag(
            name,
            "Signals",
            field,
            TEXT,
            f'Metric of {what}: NAME or NAME{{LABEL=VALUE}}, "" for none.',
            metavar="SPEC",
            shown="by engine",
        )
        for name, field, what in (
            ("total-queued-requests-metric", "queued_requests_spec", "requests waiting"),
            ("total-running-requests-metric", "running_requests_spec", "requests running"),
            ("kv-cache-usage-percentage-metric", "kv_usage_spec", "KV memory in use, 0 to 1"),
            ("lora-info-metric", "lora_spec", "LoRA adapters"),
            ("cache-info-metric", "cache_info_spec", "the KV cache's size"),
        )
    ),
    Flag("secure-serving", "TLS", "secure_serving", BOOL, "Serve ext_proc over TLS.", shown="true"),
    Flag(
        "cert-path",
        "TLS",
        "cert_path",
        PATH,
        "Directory with tls.crt and tls.key.",
        metavar="DIR",
        shown="a certificate made at the start",
    ),
    Flag("enable-cert-reload", "TLS", "enable_cert_reload", BOOL, "Follow changes of --cert-path.", shown="false"),
    Flag(
        "tls-min-version",
        "TLS",
        "tls_min_version",
        _choice("VersionTLS10", "VersionTLS11", "VersionTLS12", "VersionTLS13"),
        "Oldest TLS version taken.",
        metavar="VERSION",
        shown="VersionTLS12",
    ),
    Flag(
        "tls-cipher-suites",
        "TLS",
        "tls_cipher_suites",
        TEXT,
        "Cipher suites up to TLS 1.2, by Go's names.",
        metavar="NAME,...",
        shown="OpenSSL's",
        repeated=True,
    ),
    Flag(
        "client-ca-file",
        "TLS",
        "client_ca_file",
        PATH,
        "Take ext_proc calls only from clients with a certificate signed by this authority. Health on its own port stays open.",
        metavar="PATH",
        shown="anyone may call",
    ),
    Flag(
        "client-allowed-names",
        "TLS",
        "client_allowed_names",
        TEXT,
        "Of those only clients whose certificate has one of these subject alternative names: DNS names, URIs such as "
        "spiffe://cluster.local/ns/gateway/sa/envoy, addresses.",
        metavar="NAME,...",
        shown="all that --client-ca-file signed",
        repeated=True,
    ),
    Flag(
        "metrics-cert-dir",
        "TLS",
        "metrics_cert_dir",
        PATH,
        "Serve the metrics port over TLS with tls.crt and tls.key of this directory.",
        metavar="DIR",
        shown="plain HTTP",
    ),
    Flag(
        "metrics-client-ca-file",
        "TLS",
        "metrics_client_ca_file",
        PATH,
        "Ask clients of the metrics port for a certificate signed by this authority.",
        metavar="PATH",
    ),
    Flag(
        "metrics-endpoint-auth",
        "TLS",
        "metrics_endpoint_auth",
        BOOL,
        "Where endpoints come from Kubernetes, ask it who may read the metrics port: a bearer token that may get the path as a "
        "non-resource URL. /healthz and /readyz stay open. Elsewhere, or with --metrics-token-file, without effect.",
        shown="true",
    ),
    Flag(
        "metrics-token-file",
        "TLS",
        "metrics_token_file",
        PATH,
        "Ask readers of the metrics port for a bearer token whose SHA-256 is a line of this file, in hex; # begins a comment. "
        "Changes are followed. /healthz and /readyz stay open.",
        metavar="PATH",
    ),
    Flag(
        "decision-log",
        "Observability",
        "decision_log",
        PATH,
        "Write every decision with its signals and outcome to this file, for epp replay. It holds sizes and salted hashes, no text "
        "of a prompt. With several pools the path holds {pool}.",
        metavar="PATH",
    ),
    Flag(
        "decision-log-max-size",
        "Observability",
        "decision_log_max_bytes",
        SIZE,
        "Most that the decision log and its seven older parts (PATH.1 to PATH.7) hold together; the oldest is replaced.",
        shown="1GiB",
    ),
    Flag(
        "v",
        "Observability",
        "verbosity",
        click.IntRange(0),
        "Verbosity of the log: 2 default, 3 verbose, 4 debug with a line per decision, 5 trace.",
        metavar="N",
        shown="2",
        aliases=("-v",),
    ),
    Flag(
        "zap-encoder",
        "Observability",
        "log_encoder",
        _choice("json", "console"),
        "Form of the log's lines.",
        shown="console",
        aliases=("--log-format",),
    ),
    Flag(
        "zap-log-level",
        "Observability",
        "log_level",
        LEVEL,
        "Level of the log by name (debug, info, warn, error, panic) or as for -v; goes before -v.",
    ),
    Flag(
        "zap-time-encoding",
        "Observability",
        "log_time_encoding",
        _choice("epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano"),
        "Form of the log's times.",
        metavar="FORM",
        shown="rfc3339",
    ),
    *(
        Flag(name, "Compatibility", "", kind, text, metavar=metavar, inert=inert, quiet=quiet, repeated=repeated)
        for name, kind, metavar, text, inert, quiet, repeated in (
            ("health-checking", BOOL, None, "gRPC health on the port of ext_proc", "it always is", True, False),
            ("tracing", BOOL, None, "Spans", "none are made", False, False),
            ("enable-pprof", BOOL, None, "Go's profiler", "this is no Go program", False, False),
            ("enable-grpc-stream-metrics", BOOL, None, "Metrics of gRPC streams", "there are none", False, False),
            ("grpc-max-send-msg-size", SIZE, None, "Largest gRPC message sent", "it is about 64 KiB", None, False),
            (
                "refresh-prometheus-metrics-interval",
                DURATION,
                None,
                "How often gauges are computed",
                "it is whenever they are read",
                None,
                False,
            ),
            ("allow-experimental-plugins", BOOL, None, "Plugins not yet stable", "all may be used", False, False),
            ("zap-devel", BOOL, None, "Presets of the log", "--zap-encoder and -v say the same", None, False),
            (
                "zap-stacktrace-level",
                TEXT,
                "LEVEL",
                "Least level with stack traces",
                "exceptions have one",
                None,
                False,
            ),
        )
    ),
)


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


ATTACH = frozenset({"pool-namespace", "kubeconfig", "v", "zap-encoder", "zap-log-level", "zap-time-encoding"})
"""Flags of `epp run` that `epp attach` has too, to the same effect."""


class RunCommand(click.Command):
    """A command that serves: flags as Go programs take them, and a help text by group."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, go_style(args))

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for group in GROUPS:
            records = [
                flag.get_help_record(ctx) for flag in self.params if isinstance(flag, Flag) and flag.group == group
            ]
            if not records:
                continue
            title = "Compatibility (accepted, without effect yet)" if group == "Compatibility" else group
            with formatter.section(title):
                formatter.write_dl(records, col_max=34)


_KNOWN = frozenset(option for flag in (*FLAGS, *BBR_FLAGS) for option in flag.opts)


def go_style(args: Iterable[str]) -> list[str]:
    """`args` as click takes them: Go's flags may have one dash and camelCase names, and `-v=4` is `-v 4`."""
    return [part for arg in args for part in _go_style(arg)]


def _go_style(arg: str) -> list[str]:
    match = re.fullmatch(r"--?([A-Za-z][\w-]*)(=.*)?", arg, re.DOTALL)
    if match is None:
        return [arg]
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", match[1]).lower()
    value = match[2] or ""
    if name == "v":
        return ["--v" + value]
    return [f"--{name}{value}"] if f"--{name}" in _KNOWN else [arg]


def settings_of(given: dict[str, Any], environment: dict[str, str]) -> Settings:
    """Settings of what click read, by parameter name. Raises ValueError."""
    return settings.from_flags(_fields(given, FLAGS), environment)


def _fields(given: dict[str, Any], flags: Iterable[Flag]) -> dict[str, object]:
    """What was said by `flags`, by field of `Settings`."""
    fields: dict[str, object] = {}
    notices = []
    for flag in flags:
        assert flag.name is not None
        value = given[flag.name]
        if flag.multiple:
            value = tuple(one for one in value if one != "")
        if value is None or (flag.multiple and not value) or (value == "" and not flag.field.endswith("_spec")):
            continue
        if flag.inert:
            notices.append(flag.notice(value))
        else:
            fields[flag.field] = value
    verbosity = fields.pop("verbosity", None)
    if isinstance(verbosity, int):
        fields.setdefault("log_level", level_of(verbosity))
    for field in ("tls_cipher_suites", "client_allowed_names"):
        listed = fields.get(field)
        if isinstance(listed, tuple):
            fields[field] = tuple(name for part in listed for name in part.split(",") if name)
    ports = fields.get("endpoint_target_ports")
    if isinstance(ports, tuple):
        fields["endpoint_target_ports"] = tuple(dict.fromkeys(port for part in ports for port in part))
    fields["notices"] = tuple(notice for notice in notices if notice)
    return fields


@click.group(context_settings={"max_content_width": WIDTH, "help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Endpoint picker for LLM inference behind Envoy."""


@cli.command(cls=RunCommand, params=list(FLAGS), options_metavar="[FLAGS]", short_help="Answer Envoy until SIGTERM.")
def run(**given: Any) -> None:
    """Answer Envoy's external processing calls until SIGTERM.

    Flags are those of the Go endpoint picker and a few of our own. A flag may have one dash or two and its value after a
    space or =; a BOOL may stand alone for true. A DURATION is 50ms, 30s or 1m30s. Port 0 is any free port.
    """
    try:
        found = settings_of(given, dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    # Imported late: epp check and the help need none of it.
    from epp import app

    sys.exit(app.run(found))


@cli.command(
    cls=RunCommand, params=list(BBR_FLAGS), options_metavar="[FLAGS]", short_help="Route by the body, until SIGTERM."
)
def bbr(**given: Any) -> None:
    """Tell Envoy's routes by headers which model a request asks for, until SIGTERM.

    A body-based router: it reads the model of a request's body and sets X-Gateway-Model-Name and X-Gateway-Base-Model-Name, by which
    an HTTPRoute finds the pool. It changes no byte of a body. Where the picker is called with every request anyway,
    epp run --body-based-routing does the same in that call.
    """
    try:
        fields = _fields(given, BBR_FLAGS)
        plugins = fields.pop("plugins", ())
        found = settings.from_router_flags(fields, dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from epp.bbr import app

    assert isinstance(plugins, tuple)
    sys.exit(app.run(found, plugins))


@cli.command(
    cls=RunCommand,
    params=[flag for flag in FLAGS if flag.flag.removeprefix("--") in ATTACH],
    options_metavar="[FLAGS]",
    short_help="Attach pools to listeners of an Envoy Gateway.",
)
def attach(**given: Any) -> None:
    """Keep the HTTPRoute and policies of an Envoy Gateway for each InferencePool that asks for a listener, until SIGTERM.

    A pool asks by the annotation inference.networking.x-k8s.io/attach-to, whose value names a Gateway (name) and the port of one of
    its listeners (port). What was made goes with the pool or its annotation. --pool-namespace is where pools are.
    """
    try:
        flags = [flag for flag in FLAGS if flag.flag.removeprefix("--") in ATTACH]
        found = settings.from_flags(_fields(given, flags), dict(os.environ))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    from epp.attach import app

    sys.exit(app.run(found))


@cli.command(short_help="Tell whether configuration files are sound.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check(files: tuple[str, ...]) -> None:
    """Read EndpointPickerConfig files as epp run would, and name every mistake by line.

    - is standard input. Exits with 1 where a file has a mistake.
    """
    sound = [_check(file) for file in files]
    sys.exit(0 if all(sound) else 1)


def _check(file: str) -> bool:
    name = "standard input" if file == "-" else file
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        loaded = configuration.load(text, name)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        click.echo(f"{name}: cannot be read: {reason}", err=True)
        return False
    except configuration.ConfigurationError as error:
        click.echo(str(error), err=True)
        return False
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo(f"{name}: ok")
    return True


@cli.command(short_help="Print the custom resource definitions that are understood.")
def crds() -> None:
    """Print CustomResourceDefinitions of every kind and version that epp run understands, for kubectl apply -f -.

    A cluster with a gateway that knows InferencePool has them already: keep those.
    """
    from epp.kubernetes.crds import as_yaml

    click.echo(as_yaml(), nl=False)


@cli.command(short_help="List the plugins that a configuration can name.")
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def plugins(type_name: str | None, as_json: bool) -> None:
    """List plugin types by kind, or describe one with its parameters."""
    known = configuration.describe()
    if type_name is not None:
        known = tuple(one for one in known if one.type == type_name)
        if not known:
            names = [one.type for one in configuration.describe()]
            raise click.BadParameter(f"there is no plugin type {type_name}; {suggestion(type_name, names)}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(known), indent=2))
    elif type_name is not None:
        click.echo(_described(known[0]))
    else:
        click.echo(_listed(known))


def _listed(known: Sequence[configuration.Description]) -> str:
    lines = []
    for kind, group in groupby(known, key=lambda one: one.kinds[:1]):
        members = tuple(group)
        width = max(len(one.type) for one in members) + 4
        lines += ["", f"{kind[0] if kind else 'unusable'}:"]
        for one in members:
            lines += _columns(f"  {one.type}", one.purpose, width)
            if one.parameters:
                lines += _columns("", "; ".join(map(_briefly, one.parameters)), width)
    return "\n".join(lines[1:])


def _briefly(parameter: configuration.ParameterDescription) -> str:
    if parameter.required:
        return f"{parameter.name} (required)"
    return f"{parameter.name} = {parameter.default}" if parameter.default else parameter.name


def _described(one: configuration.Description) -> str:
    lines = [f"{one.type} ({', '.join(one.kinds)})", "", *textwrap.wrap(one.purpose, WIDTH)]
    if not one.parameters:
        return "\n".join([*lines, "", "No parameters."])
    width = max(len(parameter.name) for parameter in one.parameters) + 4
    lines += ["", "parameters:"]
    for parameter in one.parameters:
        default = ", required" if parameter.required else f", default {parameter.default}" if parameter.default else ""
        lines += _columns(f"  {parameter.name}", f"{parameter.accepts}{default}", width)
    return "\n".join(lines)


def _columns(first: str, second: str, width: int) -> list[str]:
    indent = " " * width
    lines = textwrap.wrap(
        second, WIDTH, initial_indent=first.ljust(width), subsequent_indent=indent, break_on_hyphens=False
    )
    return lines or [first]


@cli.command(short_help="Print the JSON schema of configuration files.")
def schema() -> None:
    """Print the JSON schema of EndpointPickerConfig, for editors and pipelines."""
    click.echo(configuration.render_schema(), nl=False)


_PASSED_ON: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}


@cli.command(short_help="Replay a log of traffic against configurations.", context_settings=_PASSED_ON)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def replay(args: tuple[str, ...]) -> None:
    _in_the_lab("replay", args)


@cli.command(short_help="Search a configuration's weights and thresholds on a log.", context_settings=_PASSED_ON)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def tune(args: tuple[str, ...]) -> None:
    _in_the_lab("tune", args)


def _in_the_lab(command: str, args: Sequence[str]) -> None:
    """Run a command that needs more than the picker does, and say what to install where it is not there."""
    try:
        # Imported late, and only here: the picker itself runs without any of it.
        from bench.replay import commands

        getattr(commands, command).main(args=list(args), prog_name=f"epp {command}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _LAB:
            raise
        click.echo(f"epp {command} needs the routing lab: pip install 'epp[lab]' ({error.name} is missing)", err=True)
        sys.exit(2)


_LAB = ("bench", "rich", "matplotlib", "optuna")


@cli.command(name="version", short_help="Print the version.")
def print_version() -> None:
    """Print the version, and that of Python."""
    click.echo(f"epp {importlib.metadata.version('epp')} (Python {platform.python_version()})")


def main() -> None:
    """The console script. Exits with 0 when all is well, 1 when a problem was found, 2 for wrong usage."""
    cli(prog_name="epp")
