"""Where and how the metrics of an endpoint are fetched: the parameters of `metrics-data-source`."""

from __future__ import annotations

import re
import ssl

from epp.endpoint import Endpoint, host_port

_PATH = re.compile(r"/[!-~]*")
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class MetricsSource:
    """The `metrics-data-source`. Parameters are those of the plugin.

    `port` is asked on every endpoint instead of the endpoint's own. With `https` a server's certificate is checked only
    where `insecure_skip_verify` is False, against `ca_cert_path` or else the system's authorities. `interval` is a Go
    duration such as "500ms" or "1m30s"; None leaves the process's default.

    Raises ValueError for a parameter out of its range, and for certificate files that cannot be used.
    """

    def __init__(
        self,
        *,
        scheme: str = "http",
        path: str = "/metrics",
        port: int | None = None,
        insecure_skip_verify: bool = True,
        ca_cert_path: str = "",
        client_cert_path: str = "",
        client_key_path: str = "",
        interval: str | None = None,
    ) -> None:
        if scheme not in ("http", "https"):
            raise ValueError(f"scheme is {scheme!r}; it can be http or https")
        if not _PATH.fullmatch(path):
            raise ValueError(f"path is {path!r}; it must begin with / and have no spaces")
        if port is not None and not 0 < port < 65536:
            raise ValueError(f"port is {port}; it must be in 1..65535")
        if bool(client_cert_path) != bool(client_key_path):
            raise ValueError("clientCertPath and clientKeyPath go together")
        self.interval_s = None if interval is None else _duration_s(interval)
        self.ssl = None
        if scheme == "https":
            self.ssl = _ssl(insecure_skip_verify, ca_cert_path, client_cert_path, client_key_path)
        self._scheme = scheme
        self._path = path
        self._port = port

    def address(self, endpoint: Endpoint) -> tuple[str, int]:
        """Host and port to connect to."""
        return endpoint.metrics_address or endpoint.address, self._port or endpoint.metrics_port or endpoint.port

    def url(self, endpoint: Endpoint) -> str:
        return f"{self._scheme}://{host_port(*self.address(endpoint))}{self._path}"

    def request(self, endpoint: Endpoint) -> bytes:
        """The request's bytes. No content coding is offered: unpacking costs more than the bytes within a cluster."""
        return (
            f"GET {self._path} HTTP/1.1\r\nhost: {host_port(*self.address(endpoint))}\r\n"
            "accept: text/plain; version=0.0.4\r\nuser-agent: epp\r\n\r\n"
        ).encode()


def _duration_s(text: str) -> float:
    parts = _DURATION.findall(text)
    duration_s = sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or duration_s <= 0:
        raise ValueError(f"interval is {text!r}; it must be a duration above zero such as 500ms or 1s")
    return duration_s


def _ssl(skip_verify: bool, ca: str, certificate: str, key: str) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca or None)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        named = ", ".join(path for path in (ca, certificate, key) if path)
        raise ValueError(f"certificates for metrics ({named}) cannot be used: {error}") from error
    if skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
