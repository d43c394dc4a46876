"""Certificates and contexts, shaken hands in memory: no sockets."""

from __future__ import annotations

import datetime
import errno
import ipaddress
import os
import ssl
import tempfile
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from epp.extproc import tls
from tests.certificates import Authority

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
CURRENT = datetime.datetime.now(datetime.UTC)


def shake_hands(
    server: ssl.SSLContext, client: ssl.SSLContext, again: ssl.SSLObject | None = None
) -> tuple[ssl.SSLObject, bytes]:
    """The client's end of a handshake, and the certificate it was shown (DER). `again` is an end whose session it goes on with."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    session = again.session if again is not None else None
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost", session=session)
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    ends = [theirs, ours]
    for _ in range(10):
        for end in tuple(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    assert not ends
    shown = theirs.getpeercert(binary_form=True)
    assert shown is not None
    return theirs, shown


def trusting(root: bytes) -> ssl.SSLContext:
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(cadata=root.decode())
    client.set_alpn_protocols(["h2", "http/1.1"])
    return client


def der(pem: bytes) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pem.decode())


def write(directory: Path, identity: tls.Identity) -> None:
    (directory / "tls.crt").write_bytes(identity.certificate)
    (directory / "tls.key").write_bytes(identity.key)


def test_a_self_made_certificate_says_for_whom_and_how_long() -> None:
    identity = tls.self_signed(NOW, ("localhost", "10.0.0.7"))
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ipaddress.ip_address("10.0.0.7")]
    assert certificate.not_valid_before_utc == NOW - datetime.timedelta(hours=1)
    assert certificate.not_valid_after_utc == NOW + datetime.timedelta(days=3650)


def test_a_client_that_trusts_it_verifies_it_and_speaks_h2() -> None:
    identity = tls.self_signed(CURRENT)
    client, shown = shake_hands(tls.server_context(tls.Terms(identity)), trusting(identity.certificate))
    assert shown == der(identity.certificate)
    assert client.selected_alpn_protocol() == "h2"
    assert client.version() == "TLSv1.3"


def test_no_key_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    tls.server_context(tls.Terms(tls.self_signed(CURRENT)))
    assert list(tmp_path.iterdir()) == []


def test_versions_and_suites_go_by_their_go_names() -> None:
    identity = tls.self_signed(CURRENT)
    suite = "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"
    context = tls.server_context(tls.Terms(identity), "VersionTLS12", (suite, "TLS_AES_128_GCM_SHA256"))
    client = trusting(identity.certificate)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    end, _ = shake_hands(context, client)
    cipher = end.cipher()
    assert cipher is not None
    assert cipher[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
    with pytest.raises(ssl.SSLError):
        shake_hands(tls.server_context(tls.Terms(identity), "VersionTLS13"), client)


def test_every_suite_is_known_to_openssl() -> None:
    for suite in tls.SUITES:
        tls.server_context(tls.Terms(tls.self_signed(CURRENT)), cipher_suites=(suite,))


@pytest.mark.parametrize(
    ("version", "suites", "named"),
    [("TLS1.2", (), "TLS1.2"), ("VersionTLS12", ("TLS_RSA_WITH_RC4_128_SHA",), "TLS_RSA_WITH_RC4_128_SHA")],
)
def test_unknown_names_are_refused_by_name(version: str, suites: tuple[str, ...], named: str) -> None:
    with pytest.raises(tls.TlsError, match=named):
        tls.server_context(tls.Terms(tls.self_signed(CURRENT)), version, suites)


def test_a_missing_or_unfit_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(tls.TlsError, match=r"tls\.crt"):
        tls.read_identity(tmp_path)
    one, other = tls.self_signed(CURRENT), tls.self_signed(CURRENT)
    with pytest.raises(tls.TlsError, match="do not fit"):
        tls.server_context(tls.Terms(tls.Identity(one.certificate, other.key)))
    with pytest.raises(tls.TlsError, match="do not fit"):
        tls.server_context(tls.Terms(tls.Identity(b"", b"")))


def encrypted(identity: tls.Identity) -> tls.Identity:
    key = serialization.load_pem_private_key(identity.key, None)
    secret = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"open sesame"),
    )
    return tls.Identity(identity.certificate, secret)


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_pass_phrase(tmp_path: Path) -> None:
    identity = tls.self_signed(CURRENT)
    write(tmp_path, identity)
    follower = following(tmp_path)
    write(tmp_path, encrypted(identity))
    with pytest.raises(tls.TlsError, match="encrypted"):
        follower.look()
    assert follower.terms.identity == identity


def test_a_system_without_files_for_us_leaves_the_last_good_terms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, tls.self_signed(CURRENT))
    follower = following(tmp_path)
    second = tls.self_signed(CURRENT)
    write(tmp_path, second)

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(os, "memfd_create", full)
        with pytest.raises(tls.TlsError, match="Too many open files"):
            follower.look()
    assert follower.look()
    assert follower.terms.identity == second


def test_a_certificate_with_a_wrong_byte_is_refused_as_such(tmp_path: Path) -> None:
    """The byte is its version."""
    identity = tls.self_signed(CURRENT)
    damaged = bytearray(der(identity.certificate))
    damaged[damaged.index(b"\xa0\x03\x02\x01\x02") + 4] = 9
    pem = ssl.DER_cert_to_PEM_cert(bytes(damaged)).encode()
    write(tmp_path, tls.Identity(pem, identity.key))
    with pytest.raises(tls.TlsError, match="no certificate"):
        tls.read_identity(tmp_path)
    with pytest.raises(tls.TlsError, match="no certificate"):
        tls.expires(tls.Identity(pem, identity.key))


def test_a_client_ca_shuts_out_strangers(tmp_path: Path) -> None:
    identity, friend, stranger = (tls.self_signed(CURRENT) for _ in range(3))
    context = tls.server_context(tls.Terms(identity, "Főtanúsítvány\n".encode() + friend.certificate))
    welcome = trusting(identity.certificate)
    tls.load(welcome, friend)
    shake_hands(context, welcome)
    for key in (stranger, None):
        client = trusting(identity.certificate)
        if key is not None:
            tls.load(client, key)
        with pytest.raises(ssl.SSLError):
            shake_hands(context, client)
    with pytest.raises(tls.TlsError, match="cannot be used"):
        tls.server_context(tls.Terms(identity, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
    for content in (None, b"", b"\xff nothing of the kind"):
        if content is not None:
            (tmp_path / "ca.crt").write_bytes(content)
        with pytest.raises(tls.TlsError, match=r"ca\.crt"):
            tls.read_authorities(tmp_path / "ca.crt")


def following(directory: Path) -> tls.Follower:
    """Of the certificate in `directory`, and of ca.crt beside it, where there is one."""
    ca = directory / "ca.crt"

    def read() -> tls.Terms:
        return tls.Terms(tls.read_identity(directory), tls.read_authorities(ca) if ca.exists() else None)

    return tls.Follower(read, tls.server_context)


def test_a_changed_certificate_is_served_and_a_broken_one_is_not(tmp_path: Path) -> None:
    first, second = tls.self_signed(CURRENT), tls.self_signed(CURRENT)
    write(tmp_path, first)
    follower = following(tmp_path)
    context = follower.context
    to_first, to_second = trusting(first.certificate), trusting(second.certificate)
    assert not follower.look()

    (tmp_path / "tls.crt").write_bytes(second.certificate)
    with pytest.raises(tls.TlsError):
        follower.look()
    assert shake_hands(context, to_first)[1] == der(first.certificate)

    write(tmp_path, second)
    assert follower.look()
    assert not follower.look()
    assert follower.terms.identity == second
    assert shake_hands(context, to_second)[1] == der(second.certificate)

    (tmp_path / "tls.key").unlink()
    with pytest.raises(tls.TlsError):
        follower.look()
    assert shake_hands(context, to_second)[1] == der(second.certificate)


def test_changed_authorities_are_believed_and_those_before_are_not(tmp_path: Path) -> None:
    identity = tls.self_signed(CURRENT)
    write(tmp_path, identity)
    authorities = [Authority(tmp_path / name) for name in ("first.crt", "second.crt")]
    first, second = (authority.path.read_bytes() for authority in authorities)
    ca = tmp_path / "ca.crt"
    ca.write_bytes(first)
    follower = following(tmp_path)
    clients = []
    for authority in authorities:
        clients.append(trusting(identity.certificate))
        tls.load(clients[-1], authority.issue(["envoy"]))

    def welcome(client: ssl.SSLContext) -> bool:
        try:
            shake_hands(follower.context, client)
        except ssl.SSLError:
            return False
        return True

    assert [*map(welcome, clients)] == [True, False]
    for now, believed in ((first + second, [True, True]), (second, [False, True])):
        ca.write_bytes(now)
        assert follower.look()
        assert [*map(welcome, clients)] == believed
    for broken in (b"", second[:200] + b"\n-----END CERTIFICATE-----\n"):
        ca.write_bytes(broken)
        with pytest.raises(tls.TlsError):
            follower.look()
        assert [*map(welcome, clients)] == [False, True]
    ca.write_bytes(first)
    assert follower.look()
    assert [*map(welcome, clients)] == [True, False]


def test_a_client_that_has_to_show_a_certificate_shows_it_each_time() -> None:
    """An old session knows nothing of authorities that are believed no more, and of certificates that are over."""
    identity, friend = (tls.self_signed(CURRENT) for _ in range(2))
    for authorities, goes_on in ((None, True), (friend.certificate, False)):
        context = tls.server_context(tls.Terms(identity, authorities))
        client = trusting(identity.certificate)
        tls.load(client, friend)
        # Here a session is there when the handshake is.
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        before, _ = shake_hands(context, client)
        assert shake_hands(context, client, before)[0].session_reused is goes_on
        assert (context.num_tickets > 0) is goes_on


def test_names_are_the_alternative_ones_of_every_kind() -> None:
    shown = (("DNS", "epp"), ("URI", "spiffe://x/y"), ("IP Address", "10.0.0.7"))
    certificate = {"subject": ((("commonName", "trusted"),),), "subjectAltName": shown}
    assert tls.names_of(certificate) == {"epp", "spiffe://x/y", "10.0.0.7"}
    assert tls.names_of({}) == tls.names_of(None) == frozenset()


def test_a_certificate_says_when_it_ends() -> None:
    assert tls.expires(tls.self_signed(NOW)) == NOW + datetime.timedelta(days=3650)
    with pytest.raises(tls.TlsError, match="no certificate"):
        tls.expires(tls.Identity(b"x", b"y"))
