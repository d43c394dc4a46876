"""Trust, with a real Envoy on the other side: certificates, client certificates, tokens, and what a log may not hold."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.processes import ENVOY_CONFIGS
from epp.extproc.tls import Identity
from tests.certificates import DAY, Authority, store
from tests.integration.conftest import CHAT, FULL_DUPLEX, LEAN, Scene
from tests.integration.test_faults import begin_stream, failing, rest_of
from tests.waiting import PATIENCE_S, wait_for

ENVOY = "spiffe://cluster.local/ns/gateway/sa/envoy"
TRANSPORTS = ["http2", "grpc.aio"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority") / "ca.crt")


def over_tls(ca: Path | None = None, client: Path | None = None, version: str = "") -> Callable[[dict[str, Any]], None]:
    """The shipped TLS part of the picker's cluster, with paths of the test; without `ca` any certificate will do.

    Fails closed: a request that passes has been to the picker.
    """

    def edit(config: dict[str, Any]) -> None:
        part = yaml.safe_load((ENVOY_CONFIGS / "picker-tls.yaml").read_text())
        context = part["transport_socket"]["typed_config"]["common_tls_context"]
        if ca is None:
            del context["validation_context"]
        else:
            context["validation_context"]["trusted_ca"]["filename"] = str(ca)
        if client is None:
            del context["tls_certificates"]
        else:
            context["tls_certificates"][0]["certificate_chain"]["filename"] = str(client / "tls.crt")
            context["tls_certificates"][0]["private_key"]["filename"] = str(client / "tls.key")
        if version:
            context["tls_params"] = {
                "tls_minimum_protocol_version": version,
                "tls_maximum_protocol_version": version,
            }
        next(c for c in config["static_resources"]["clusters"] if c["name"] == "picker").update(part)
        failing(False)(config)

    return edit


def passes(scene: Scene) -> bool:
    return scene.ask().status == 200


def shown_by(port: int) -> str:
    """The certificate that the picker shows to a new connection, PEM."""
    return ssl.get_server_certificate(("127.0.0.1", port), timeout=PATIENCE_S)


def believed(port: int, root: Path, client: Path) -> bool:
    """Whether the picker greets a new connection that shows the certificate in `client`."""
    context = ssl.create_default_context(cafile=str(root))
    context.load_cert_chain(client / "tls.crt", client / "tls.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="epp") as greeted:
                greeted.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
                return greeted.recv(9)[3:4] == b"\x04"
        except (ssl.SSLError, ConnectionError):
            return False


def same(pem: str, identity: Identity) -> bool:
    return ssl.PEM_cert_to_DER_cert(pem) == ssl.PEM_cert_to_DER_cert(identity.certificate.decode())


@pytest.mark.parametrize("transport", TRANSPORTS)
class TestServing:
    def test_by_default_with_a_certificate_of_its_own_making(
        self, make_scene: Callable[..., Scene], transport: str
    ) -> None:
        scene = make_scene(2)
        scene.start_picker("--secure-serving", f"--transport={transport}")
        scene.start_envoy(LEAN, over_tls())
        wait_for(lambda: passes(scene))

    @pytest.mark.parametrize("source", [LEAN, FULL_DUPLEX], ids=["lean", "full duplex"])
    def test_a_new_certificate_is_served_while_a_stream_goes_on(
        self, make_scene: Callable[..., Scene], authority: Authority, tmp_path: Path, transport: str, source: Path
    ) -> None:
        first, second = authority.issue(["epp"]), authority.issue(["epp"])
        serving = store(tmp_path / "serving", first)
        scene = make_scene(1)
        scene.start_picker(
            "--secure-serving", f"--cert-path={serving}", "--enable-cert-reload", f"--transport={transport}"
        )
        scene.start_envoy(source, over_tls(authority.path))
        wait_for(lambda: passes(scene))
        assert same(shown_by(scene.grpc), first)
        client = begin_stream(scene, 60)
        store(serving, second)
        wait_for(lambda: same(shown_by(scene.grpc), second))
        assert scene.metric("llm_d_epp_request_running") == 1
        assert rest_of(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        client.close()
        assert passes(scene)

    def test_new_authorities_of_clients_are_believed_while_a_stream_goes_on(
        self, make_scene: Callable[..., Scene], authority: Authority, tmp_path: Path, transport: str
    ) -> None:
        serving = store(tmp_path / "serving", authority.issue(["epp"]))
        first, second = (Authority(tmp_path / f"{name}.crt") for name in ("first", "second"))
        before, after = (store(tmp_path / one.path.stem, one.issue([ENVOY])) for one in (first, second))
        ca = tmp_path / "clients.crt"
        ca.write_bytes(first.path.read_bytes())
        scene = make_scene(1)
        scene.start_picker(
            "--secure-serving",
            f"--cert-path={serving}",
            f"--client-ca-file={ca}",
            "--enable-cert-reload",
            f"--transport={transport}",
        )
        scene.start_envoy(FULL_DUPLEX, over_tls(authority.path, before))
        wait_for(lambda: passes(scene))
        assert believed(scene.grpc, authority.path, before)
        assert not believed(scene.grpc, authority.path, after)
        client = begin_stream(scene, 60)
        second.path.replace(ca)
        wait_for(lambda: believed(scene.grpc, authority.path, after))
        assert not believed(scene.grpc, authority.path, before)
        assert scene.metric("llm_d_epp_request_running") == 1
        assert rest_of(client).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        client.close()

    def test_clients_are_known_by_authority_and_name(
        self, make_scene: Callable[..., Scene], authority: Authority, tmp_path: Path, transport: str
    ) -> None:
        serving = store(tmp_path / "serving", authority.issue(["epp"]))
        friend = store(tmp_path / "friend", authority.issue([ENVOY]))
        other = store(tmp_path / "other", authority.issue(["spiffe://cluster.local/ns/default/sa/curious"]))
        stranger = store(tmp_path / "stranger", Authority(tmp_path / "own.crt").issue([ENVOY]))
        scene = make_scene(1)
        picker = scene.start_picker(
            "--secure-serving",
            f"--cert-path={serving}",
            f"--client-ca-file={authority.path}",
            f"--client-allowed-names=localhost,{ENVOY}",
            f"--transport={transport}",
        )
        for client, welcome in ((friend, True), (other, False), (stranger, False), (None, False)):
            # Full duplex has no health check of the picker: every call is made.
            envoy = scene.start_envoy(FULL_DUPLEX, over_tls(authority.path, client))
            assert passes(scene) is welcome, client
            envoy.kill()
        assert "spiffe://cluster.local/ns/default/sa/curious" in picker.output()
        assert scene.metric("epp_degraded_total") >= 1
        # Health on its own port asks for nothing.
        with socket.create_connection(("127.0.0.1", scene.health), timeout=PATIENCE_S) as probe:
            probe.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0)))
            assert probe.recv(9)[3] == 4


def test_an_envoy_that_is_too_old_is_turned_away(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(1)
    scene.start_picker("--secure-serving", "--tls-min-version=VersionTLS13")
    for version, welcome in (("TLSv1_2", False), ("TLSv1_3", True)):
        envoy = scene.start_envoy(FULL_DUPLEX, over_tls(version=version))
        assert passes(scene) is welcome
        envoy.kill()


def test_envoy_takes_no_certificate_that_is_over(
    make_scene: Callable[..., Scene], authority: Authority, tmp_path: Path
) -> None:
    serving = store(tmp_path / "serving", authority.issue(["epp"], ends_in=-DAY))
    scene = make_scene(1)
    picker = scene.start_picker("--secure-serving", f"--cert-path={serving}", "--enable-cert-reload")
    assert "the certificate of ext_proc ends on" in picker.output()
    scene.start_envoy(FULL_DUPLEX, over_tls(authority.path))
    assert not passes(scene)
    store(serving, authority.issue(["epp"]))
    wait_for(lambda: passes(scene))


def read_metrics(scene: Scene, authority: Authority, path: str, token: str | None) -> http.client.HTTPResponse:
    context = ssl.create_default_context(cafile=str(authority.path))
    connection = http.client.HTTPSConnection("localhost", scene.metrics, timeout=10, context=context)
    connection.request("GET", path, headers={"authorization": f"Bearer {token}"} if token else {})
    response = connection.getresponse()
    response.read()
    connection.close()
    return response


def test_metrics_want_a_token_over_tls(make_scene: Callable[..., Scene], authority: Authority, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"first").hexdigest())
    serving = store(tmp_path / "metrics", authority.issue(["localhost"]))
    scene = make_scene(1)
    args = scene.picker_args(f"--metrics-cert-dir={serving}", f"--metrics-token-file={tokens}")
    process = scene.stand.start("epp", [sys.executable, "-m", "epp", "run", *args])
    process.wait_until(lambda: "ready:" in process.output(), 20)

    def status(path: str, token: str | None) -> int:
        return read_metrics(scene, authority, path, token).status

    assert [status(path, None) for path in ("/healthz", "/readyz")] == [200, 200]
    refused = read_metrics(scene, authority, "/metrics", None)
    assert refused.status == 401
    assert (refused.getheader("www-authenticate") or "").startswith("Bearer")
    assert [status(path, "wrong") for path in ("/metrics", "/debug/endpoints", "/nowhere")] == [401] * 3
    assert [status(path, "first") for path in ("/metrics", "/debug/endpoints", "/nowhere")] == [200, 200, 404]
    tokens.write_text(hashlib.sha256(b"second").hexdigest())
    wait_for(lambda: status("/metrics", "second") == 200)
    assert status("/metrics", "first") == 401


def test_no_log_holds_what_was_entrusted(make_scene: Callable[..., Scene], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(hashlib.sha256(b"planted-metrics-token").hexdigest())
    scene = make_scene(2)
    picker = scene.start_picker("-v", "5", f"--metrics-token-file={tokens}", "--emit-endpoint-scores")
    scene.start_envoy(FULL_DUPLEX)
    secret = {"authorization": "Bearer planted-api-key", "x-api-key": "planted-x-api-key", "cookie": "planted-cookie"}
    prompt = {"role": "user", "content": "planted-prompt " * 50}
    bodies: list[bytes | dict[str, object]] = [
        {**CHAT, "messages": [prompt]},
        {**CHAT, "messages": [prompt], "user": "planted-user", "cache_salt": "planted-salt"},
        {"model": "base", "prompt": ["planted-prompt", 7]},
        {"model": ["planted-prompt"], "messages": [prompt]},
        {**CHAT, "messages": "planted-prompt"},
        {**CHAT, "max_tokens": "planted-prompt"},
        json.dumps({**CHAT, "messages": [prompt]}).encode()[:-9],
        b'{"model": "base", "messages": [{"content": planted-prompt}]}',
        b"planted-prompt \xff\xfe",
    ]
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings?key=planted-query"):
        for body in bodies:
            scene.ask(body, path=path, headers=secret)
    scene.ask(headers={**secret, "x-answer": "die:3"})
    for how in ("status:500", "sse:5", "trailers"):
        scene.ask({**CHAT, "messages": [prompt], "stream": True}, headers={**secret, "x-answer": how})
    for token in ("planted-metrics-token", "planted-wrong-token"):
        connection = http.client.HTTPConnection("127.0.0.1", scene.metrics, timeout=PATIENCE_S)
        connection.request("GET", "/metrics?token=planted-query", headers={"authorization": f"Bearer {token}"})
        page = connection.getresponse().read()
        assert b"planted" not in page
        connection.close()
    with socket.create_connection(("127.0.0.1", scene.grpc), timeout=PATIENCE_S) as stranger:
        stranger.sendall(b"GET /planted-path HTTP/1.1\r\nauthorization: planted-key\r\n\r\n")
    tokens.write_text("planted-token-not-hashed")
    wait_for(lambda: "the last good tokens stay" in picker.log.read_text())
    picker.signal(signal.SIGTERM)
    wait_for(lambda: "draining" in picker.log.read_text())
    text = picker.log.read_text()
    assert text.count("picked") > 5
    assert "planted" not in text, [line for line in text.splitlines() if "planted" in line][:3]
