"""What the flags and the environment make of the settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from epp.extproc.events import BodyMode, Modes
from epp.settings import Settings, from_flags


def test_nothing_said_is_the_defaults() -> None:
    assert from_flags({}, {}) == Settings()


def test_what_was_said_is_kept() -> None:
    settings = from_flags({"grpc_port": 1, "config_file": Path("/c.yaml"), "endpoints": ("a:1", "b:2")}, {})
    assert (settings.grpc_port, settings.config_file, settings.endpoints) == (1, Path("/c.yaml"), ("a:1", "b:2"))


@pytest.mark.parametrize(
    ("flags", "environment", "namespace"),
    [
        ({}, {}, "default"),
        ({}, {"NAMESPACE": ""}, "default"),
        ({}, {"NAMESPACE": "models"}, "models"),
        ({"pool_namespace": "mine"}, {"NAMESPACE": "models"}, "mine"),
    ],
)
def test_the_namespace_comes_from_the_flag_then_the_environment(
    flags: dict[str, object], environment: dict[str, str], namespace: str
) -> None:
    assert from_flags(flags, environment).pool_namespace == namespace


def test_only_two_variables_are_read() -> None:
    environment = {"NAMESPACE": "models", "POD_NAME": "epp-0", "GRPC_PORT": "1", "HOST": "x"}
    assert from_flags({}, environment) == Settings(pool_namespace="models", pod_name="epp-0")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"config_file": Path("c"), "config_text": "x"}, "--config-file and --config-text exclude each other"),
        ({"metrics_client_ca_file": Path("ca")}, "--metrics-client-ca-file needs --metrics-cert-dir"),
        ({"client_allowed_names": ("envoy",)}, "--client-allowed-names needs --client-ca-file"),
        ({"client_ca_file": Path("ca"), "secure_serving": False}, "--client-ca-file needs --secure-serving"),
        ({"transport": "grpc.aio", "tls_min_version": "VersionTLS13"}, "--tls-min-version"),
        ({"transport": "grpc.aio", "tls_cipher_suites": ("TLS_RSA_WITH_AES_128_GCM_SHA256",)}, "--tls-cipher-suites"),
        ({"endpoints": ("a:1", "b:1", "a:1")}, "--endpoint a:1 is given twice"),
        ({"grpc_port": 65536}, "grpc_port"),
        ({"look_share": 1.5}, "look_share"),
        ({"no_such_field": 1}, "no_such_field"),
        ({"transport": "http3"}, "transport"),
    ],
)
def test_contradictions_and_values_out_of_range_are_refused(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_flags(flags, {})


def test_a_client_authority_is_fine_with_a_certificate() -> None:
    flags = {"metrics_client_ca_file": Path("ca"), "metrics_cert_dir": Path("certs")}
    assert from_flags(flags, {}).metrics_client_ca_file == Path("ca")


@pytest.mark.parametrize(("asked_s", "got_s", "notices"), [(0.05, 0.05, 0), (0.0, 0.05, 1), (2.0, 2.0, 0)])
def test_scraping_has_a_shortest_interval(asked_s: float, got_s: float, notices: int) -> None:
    settings = from_flags({"refresh_metrics_interval_s": asked_s, "notices": ("before",)}, {})
    assert settings.refresh_metrics_interval_s == got_s
    assert len(settings.notices) == 1 + notices


def test_body_modes_by_name() -> None:
    assert Settings().default_modes == Modes(BodyMode.FULL_DUPLEX_STREAMED, BodyMode.FULL_DUPLEX_STREAMED)
    assert Settings(default_body_mode="lean").default_modes == Modes(BodyMode.BUFFERED_PARTIAL, BodyMode.NONE)
    assert Settings(default_body_mode="buffered").default_modes.request is BodyMode.BUFFERED
    assert Settings(default_body_mode="streamed").default_modes.response is BodyMode.STREAMED
