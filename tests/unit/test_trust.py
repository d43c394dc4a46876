"""Whom our ports believe and what they show, as the files change."""

from __future__ import annotations

import datetime
import logging
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from epp.extproc import tls
from epp.extproc.http2 import Limits
from epp.extproc.server import Http2Server
from epp.observe.logs import Every
from epp.observe.metrics import Metrics
from epp.settings import Settings
from epp.trust import Trust
from tests.certificates import DAY, Authority, store
from tests.unit.test_tls import der, shake_hands, trusting


class Files:
    """A certificate for each port, and the authority of each port's clients."""

    def __init__(self, directory: Path) -> None:
        self.servers = Authority(directory / "servers.crt")
        self.first, self.second = (Authority(directory / f"{name}.crt") for name in ("first", "second"))
        self.serving = store(directory / "serving", self.servers.issue(["localhost"]))
        self.metrics = store(directory / "metrics", self.servers.issue(["localhost"]))
        self.clients, self.scrapers = directory / "clients.crt", directory / "scrapers.crt"
        for file in (self.clients, self.scrapers):
            file.write_bytes(self.first.path.read_bytes())

    def settings(self, *, reload: bool = False, suites: tuple[str, ...] = ()) -> Settings:
        return Settings(
            secure_serving=True,
            cert_path=self.serving,
            client_ca_file=self.clients,
            metrics_cert_dir=self.metrics,
            metrics_client_ca_file=self.scrapers,
            enable_cert_reload=reload,
            tls_cipher_suites=suites,
        )

    def trust(self, *, reload: bool) -> Trust:
        return Trust(self.settings(reload=reload), Metrics())

    def client(self, authority: Authority) -> ssl.SSLContext:
        context = trusting(self.servers.path.read_bytes())
        tls.load(context, authority.issue(["client"]))
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@pytest.fixture(params=["ext_proc", "metrics"])
def port(request: pytest.FixtureRequest) -> Iterator[str]:
    return request.param  # type: ignore[no-any-return]


def context(trust: Trust, port: str) -> ssl.SSLContext:
    if port == "ext_proc":
        server = trust.server({}, Limits())
        assert isinstance(server, Http2Server)
        found = server._tls
    else:
        found = trust.metrics_context()
    assert found is not None
    return found


def believes(served: ssl.SSLContext, client: ssl.SSLContext) -> bool:
    try:
        shake_hands(served, client)
    except ssl.SSLError:
        return False
    return True


def test_each_port_speaks_its_protocol(files: Files) -> None:
    trust = files.trust(reload=False)
    for port, protocol in (("ext_proc", "h2"), ("metrics", "http/1.1")):
        end, _ = shake_hands(context(trust, port), files.client(files.first))
        assert end.selected_alpn_protocol() == protocol


def test_a_handshake_goes_by_the_suites_of_the_flag(files: Files, port: str) -> None:
    settings = files.settings(suites=("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",))
    served = context(Trust(settings, Metrics()), port)
    for offered, welcome in (
        ("ECDHE-ECDSA-CHACHA20-POLY1305", False),
        ("ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-ECDSA-AES256-GCM-SHA384", True),
    ):
        client = files.client(files.first)
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        client.set_ciphers(offered)
        assert believes(context(files.trust(reload=False), port), client)
        assert believes(served, client) is welcome
    cipher = shake_hands(served, client)[0].cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"


@pytest.mark.parametrize("reload", [True, False])
def test_other_authorities_of_clients_count_from_the_next_look_on(files: Files, port: str, reload: bool) -> None:
    trust = files.trust(reload=reload)
    assert trust.follows is reload
    served = context(trust, port)
    before, after = files.client(files.first), files.client(files.second)
    assert (believes(served, before), believes(served, after)) == (True, False)
    (files.clients if port == "ext_proc" else files.scrapers).write_bytes(files.second.path.read_bytes())
    trust.look()
    assert (believes(served, before), believes(served, after)) == (not reload, reload)


def test_a_new_certificate_is_shown_and_its_end_told(files: Files, port: str) -> None:
    trust = files.trust(reload=True)
    served = context(trust, port)
    renewed = files.servers.issue(["localhost"], ends_in=100 * DAY)
    store(files.serving if port == "ext_proc" else files.metrics, renewed)
    trust.look()
    assert shake_hands(served, files.client(files.first))[1] == der(renewed.certificate)
    (gauge,) = trust.gauges()
    days = 100 if port == "ext_proc" else 5
    ends = datetime.datetime.now(datetime.UTC) + days * DAY
    assert abs(gauge.read() - ends.timestamp()) < 3600


def test_no_message_tells_what_a_key_is(files: Files, port: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever is wrong with it: cut short, another's, damaged, in the certificate's place, the two swapped."""
    directory = files.serving if port == "ext_proc" else files.metrics
    certificate, key = (directory / "tls.crt").read_bytes(), (directory / "tls.key").read_bytes()
    another = files.servers.issue(["localhost"]).key
    secret = [line.decode() for one in (key, another) for line in one.splitlines()[1:-1]]
    trust = files.trust(reload=True)
    for shown in (
        (certificate, key[:-60]),
        (certificate, another),
        (certificate, key[:90] + b"AAAA" + key[94:]),
        (key, key),
        (key, certificate),
    ):
        for name, content in zip(("tls.crt", "tls.key"), shown, strict=True):
            (directory / name).write_bytes(content)
        with pytest.raises(tls.TlsError) as refused:
            files.trust(reload=True)
        trust._every = Every(60.0)
        caplog.clear()
        trust.look()
        assert "the last good certificates" in caplog.text
        for told in (str(refused.value), caplog.text):
            assert not [line for line in secret if line in told]


def test_what_cannot_be_used_is_said_once_and_the_last_good_stays(
    files: Files, port: str, caplog: pytest.LogCaptureFixture
) -> None:
    trust = files.trust(reload=True)
    served = context(trust, port)
    ca = files.clients if port == "ext_proc" else files.scrapers
    ca.write_text("half written")
    with caplog.at_level(logging.INFO, "epp.trust"):
        caplog.clear()
        for _ in range(3):
            trust.look()
    assert len(caplog.messages) == 1
    assert str(ca) in caplog.messages[0]
    assert believes(served, files.client(files.first))
