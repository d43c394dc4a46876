"""What settings and configuration come to, part by part."""

from __future__ import annotations

import random
import secrets
import sys

import msgspec

from epp.configuration import (
    Configuration,
    ExtractorSettings,
    MetricsSettings,
    load,
    load_default,
)
from epp.dispatcher import Policy
from epp.extproc.http2 import Limits
from epp.kubernetes.access import ACCOUNT, InCluster, Kubeconfig
from epp.kubernetes.api import Credentials
from epp.observe.metrics import Metrics
from epp.prefix.index import BLOCK_TOKENS
from epp.quota.quota import Quota
from epp.quota.store import MemoryStore
from epp.quota.tenants import Tenants
from epp.settings import Settings
from epp.signals.engines import EngineChoice, EngineConfig
from epp.signals.source import MetricsSource

OWN_ACCOUNT = frozenset({"concurrency-detector", "prefill-wait-detector"})
"""Saturation detectors that go by our own account, which shows the end of a request at once; others may go by scrapes."""

GO_DETECTOR_STALE_S = 0.2
"""By how much a report may be older than the interval of scrapes and still count."""

FLAG_ENGINE = EngineConfig(
    name="vllm",
    queued_requests_spec="vllm:num_requests_waiting",
    running_requests_spec="vllm:num_requests_running",
    kv_usage_spec="vllm:kv_cache_usage_perc",
    lora_spec="vllm:lora_requests_info",
    cache_info_spec="vllm:cache_config_info",
)
"""What the Go picker's metric flags default to: giving one of them leaves the others at these."""


class StartError(Exception):
    """The process cannot start. The message says why, and what to do."""


def read_configuration(settings: Settings) -> Configuration:
    """Raises ConfigurationError, and StartError where the file cannot be read."""
    if settings.config_text:
        return load(settings.config_text, "--config-text")
    path = settings.config_file
    if path is None:
        return load_default()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise StartError(f"the configuration {path} cannot be read: {reason}") from error
    return load(text, str(path))


def _metrics_source(settings: Settings, configured: MetricsSettings) -> MetricsSettings:
    """What flags say of the servers' metrics pages wins over the configuration file."""
    told = {
        "port": settings.model_server_metrics_port,
        "path": settings.model_server_metrics_path,
        "scheme": settings.model_server_metrics_scheme,
        "insecure_skip_verify": settings.model_server_metrics_insecure,
    }
    return msgspec.structs.replace(configured, **{name: value for name, value in told.items() if value is not None})


def what_to_scrape(settings: Settings, configuration: Configuration) -> tuple[MetricsSource, EngineChoice] | None:
    """None where nothing is. Raises StartError."""
    if configuration.metrics is None:
        return None
    try:
        return _metrics_source(settings, configuration.metrics).source(), _engines(settings, configuration.extractor)
    except ValueError as error:
        raise StartError(f"model servers' metrics cannot be read as configured: {error}") from error


def stale_after_s(settings: Settings) -> float:
    """The age from which a report no longer describes the queue: never before the next one is overdue."""
    return max(settings.metrics_staleness_threshold_s, 2.5 * settings.refresh_metrics_interval_s)


def _engines(settings: Settings, configured: ExtractorSettings) -> EngineChoice:
    """The default engine with the families that flags name, the others as configured."""
    told = {
        "queued_requests_spec": settings.queued_requests_spec,
        "running_requests_spec": settings.running_requests_spec,
        "kv_usage_spec": settings.kv_usage_spec,
        "lora_spec": settings.lora_spec,
        "cache_info_spec": settings.cache_info_spec,
    }
    specs = {name: value for name, value in told.items() if value is not None}
    if not specs:
        return configured.choice()
    engine = msgspec.structs.replace(FLAG_ENGINE, name=configured.default_engine, **specs)
    others = [one for one in configured.engine_configs if one.name != engine.name]
    return msgspec.structs.replace(configured, engine_configs=(engine, *others)).choice()


def credentials_of(settings: Settings) -> Credentials:
    """Where the API server is and who we are to it, in the order in which other programs look. Raises StartError."""
    if settings.kubeconfig is not None:
        return Kubeconfig(settings.kubeconfig)
    if settings.service_host and (ACCOUNT / "token").exists():
        return InCluster(settings.service_host, settings.service_port)
    own = settings.home / ".kube" / "config" if settings.home is not None else None
    if own is not None and own.exists():
        return Kubeconfig(own)
    raise StartError(
        "Kubernetes is to be asked, and there is neither a service account of a pod nor a kubeconfig: name one with --kubeconfig "
        "(epp run does without where --endpoint host:port names the endpoints)"
    )


def limits_of(settings: Settings) -> Limits:
    told = {"max_message_bytes": settings.max_message_bytes, "max_connections": settings.max_connections}
    return Limits(**{name: value for name, value in told.items() if value is not None})


def quota_of(configuration: Configuration, rng: random.Random, metrics: Metrics) -> Quota | None:
    settings = configuration.quota
    if settings is None:
        return None
    return Quota(
        settings.table(),
        Tenants(settings.tenant, secrets.token_bytes(32)),
        MemoryStore(settings.max_tenants),
        answer_tokens=settings.estimated_answer_tokens,
        rng=rng,
        refused=metrics.quota_refused,
    )


def grace_s(settings: Settings, configuration: Configuration) -> float:
    """How long after the end of a request the saturation may still not show it."""
    if configuration.plugins[configuration.detector].type in OWN_ACCOUNT:
        return 0.01
    return settings.refresh_metrics_interval_s + GO_DETECTOR_STALE_S + 0.25


def dispatch_policy(settings: Settings, configuration: Configuration) -> Policy:
    """What flags and file together say about dispatching."""
    prefix = configuration.prefix
    blocks = prefix.max_prefix_tokens_to_match // BLOCK_TOKENS or prefix.max_prefix_blocks_to_match
    in_flight = configuration.in_flight
    return Policy(
        look_share=settings.look_share,
        ignore_subset=settings.ignore_subset,
        emit_scores=settings.emit_endpoint_scores,
        max_prefix_blocks=blocks or sys.maxsize,
        output_ratio=in_flight.output_ratio if in_flight.add_estimated_output_tokens else 0.0,
        max_output_tokens=in_flight.max_estimated_output_tokens,
    )
