"""What our ports show and whom they believe: certificates, client authorities, tokens; followed while running."""

from __future__ import annotations

import datetime
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from epp.extproc import tls
from epp.extproc.grpc_aio import AioServer
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.extproc.transport import OpenSession
from epp.observe.auth import BearerTokens, TokenError
from epp.observe.exposition import Gauge
from epp.observe.logs import Every
from epp.observe.metrics import Metrics
from epp.settings import Settings

log = logging.getLogger("epp.trust")

LOOK_INTERVAL_S = 1.0
"""How often files are read again: two or three of a few KB, 0.1 ms in all."""

EXT_PROC, METRICS = "ext_proc", "the metrics port"

EXPIRY_NOTICE = datetime.timedelta(days=7)


class Trust:
    """Reads certificates, authorities and tokens at the start; `look` follows those that are to be followed.

    Raises TlsError and TokenError where something cannot be used.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self._every = Every(60.0)
        self._allowed = frozenset(settings.client_allowed_names)
        self._followers: dict[str, tls.Follower] = {}
        self._expiry_s: float | None = None
        if settings.secure_serving:
            self._followers[EXT_PROC] = self._follower(settings.cert_path, settings.client_ca_file, "h2")
            self._expiry_s = self._expiry(self._followers[EXT_PROC].terms.identity)
        if settings.metrics_cert_dir is not None:
            # Not HTTP/2, which Prometheus offers.
            follower = self._follower(settings.metrics_cert_dir, settings.metrics_client_ca_file, "http/1.1")
            self._followers[METRICS] = follower
        self.tokens = BearerTokens(settings.metrics_token_file) if settings.metrics_token_file else None

    @property
    def follows(self) -> bool:
        """Whether calling `look` now and then is of use."""
        return (self._settings.enable_cert_reload and bool(self._followers)) or self.tokens is not None

    @property
    def judge(self) -> Callable[[str, str], Awaitable[HTTPStatus]] | None:
        """Who may read metrics, by the token file; None where there is none."""
        tokens = self.tokens
        if tokens is None:
            return None

        async def judged(authorization: str, path: str) -> HTTPStatus:
            return HTTPStatus.OK if tokens.admits(authorization) else HTTPStatus.UNAUTHORIZED

        return judged

    def server(
        self, routes: Mapping[str, OpenSession], limits: Limits, on_limit: Callable[[str], None] | None = None
    ) -> Http2Server | AioServer:
        """The ext_proc server. Call once. `on_limit` is for `Http2Server`."""
        settings, follower = self._settings, self._followers.get(EXT_PROC)
        admits = self.admits if settings.client_ca_file else None
        if settings.transport == "grpc.aio":
            credentials = tls.grpc_credentials(lambda: follower.terms) if follower is not None else None
            return AioServer(routes, limits, credentials, admits)
        return Http2Server(routes, limits, follower.context if follower is not None else None, admits, on_limit)

    def metrics_context(self) -> ssl.SSLContext | None:
        """TLS of the observation port."""
        follower = self._followers.get(METRICS)
        return follower.context if follower is not None else None

    def look(self) -> None:
        """Follow what has changed. What cannot be used is said, and the last good one stays."""
        if self._settings.enable_cert_reload:
            for port, follower in self._followers.items():
                self._look_at(port, follower)
        try:
            if self.tokens is not None and self.tokens.look():
                log.info("other tokens may read metrics now")
        except TokenError as error:
            self._say_once_a_minute("tokens", f"the last good tokens stay: {error}")

    def admits(self, names: frozenset[str]) -> bool:
        """Whether a client with a verified certificate for `names` may call."""
        if not self._allowed or not self._allowed.isdisjoint(names):
            return True
        self._metrics.degraded("unadmitted")
        shown = ", ".join(sorted(names)) or "nobody by name"
        self._say_once_a_minute("unadmitted", f"a client was turned away: its certificate is for {shown}")
        return False

    def gauges(self) -> tuple[Gauge, ...]:
        if self._expiry_s is None:
            return ()
        text = "When the certificate of ext_proc ends, in seconds since 1970."
        return (Gauge("epp_certificate_expiry_timestamp_seconds", text, lambda: self._expiry_s or 0.0),)

    def _follower(self, directory: Path | None, client_ca: Path | None, protocol: str) -> tls.Follower:
        settings = self._settings
        own = tls.self_signed(datetime.datetime.now(datetime.UTC)) if directory is None else None

        def read() -> tls.Terms:
            identity = tls.read_identity(directory) if directory is not None else own
            assert identity is not None
            return tls.Terms(identity, tls.read_authorities(client_ca) if client_ca is not None else None)

        def make(terms: tls.Terms) -> ssl.SSLContext:
            return tls.server_context(terms, settings.tls_min_version, settings.tls_cipher_suites, protocol)

        return tls.Follower(read, make)

    def _look_at(self, port: str, follower: tls.Follower) -> None:
        before = follower.terms
        try:
            if not follower.look():
                return
        except tls.TlsError as error:
            self._say_once_a_minute(port, f"the last good certificates of {port} stay: {error}")
            return
        now = follower.terms
        if now.authorities != before.authorities:
            log.info("%s believes clients by other authorities", port)
        if now.identity != before.identity:
            log.info("%s shows a new certificate", port)
            if port == EXT_PROC:
                self._expiry_s = self._expiry(now.identity)

    def _expiry(self, identity: tls.Identity) -> float:
        """Seconds since 1970; says so where it is soon or over. Clients judge, not we: it is served all the same."""
        end = tls.expires(identity)
        if end - datetime.datetime.now(datetime.UTC) < EXPIRY_NOTICE:
            log.warning("the certificate of ext_proc ends on %s: clients that verify it will stop calling", end)
        return end.timestamp()

    def _say_once_a_minute(self, key: str, text: str) -> None:
        if self._every(key, time.monotonic()):
            log.warning("%s", text)
