"""TLS for our ports: a certificate of our own making or one from a directory, and the authorities of clients, followed while running."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

VALID_DAYS = 3650
VERSIONS = {
    "VersionTLS10": ssl.TLSVersion.TLSv1,
    "VersionTLS11": ssl.TLSVersion.TLSv1_1,
    "VersionTLS12": ssl.TLSVersion.TLSv1_2,
    "VersionTLS13": ssl.TLSVersion.TLSv1_3,
}
"""Go's names for the minimum version."""

SUITES = {
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256": "ECDHE-ECDSA-AES128-GCM-SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384": "ECDHE-ECDSA-AES256-GCM-SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-ECDSA-CHACHA20-POLY1305",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256": "ECDHE-RSA-AES128-GCM-SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384": "ECDHE-RSA-AES256-GCM-SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256": "ECDHE-RSA-CHACHA20-POLY1305",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA": "ECDHE-ECDSA-AES128-SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA": "ECDHE-ECDSA-AES256-SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA": "ECDHE-RSA-AES128-SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA": "ECDHE-RSA-AES256-SHA",
    "TLS_RSA_WITH_AES_128_GCM_SHA256": "AES128-GCM-SHA256",
    "TLS_RSA_WITH_AES_256_GCM_SHA384": "AES256-GCM-SHA384",
}
"""Go's names for cipher suites up to TLS 1.2, and OpenSSL's. Those of TLS 1.3 cannot be chosen, in Go neither."""

_OF_TLS13 = frozenset(("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"))


_NO_CERTIFICATE = (ValueError, x509.InvalidVersion)
"""What `cryptography` raises, the second being no ValueError."""


class TlsError(ValueError):
    """TLS cannot be set up as asked. The message names the file or the flag's value."""


class Identity(msgspec.Struct, frozen=True):
    """A certificate chain and its private key, both PEM."""

    certificate: bytes
    key: bytes


class Terms(msgspec.Struct, frozen=True):
    """What handshakes go by: whom we are, and the certificates (PEM) of those who sign our clients', None where clients show none."""

    identity: Identity
    authorities: bytes | None = None


def self_signed(now: datetime.datetime, names: Iterable[str] = ("localhost",)) -> Identity:
    """A fresh ECDSA P-256 identity, valid for ten years from an hour before `now` (clocks differ).

    `names` are DNS names or IP addresses. Made in 0.2 ms; RSA-4096 needs a second and each handshake 6 times as long.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "epp")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    return Identity(
        certificate.public_bytes(pem),
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def read_identity(directory: Path) -> Identity:
    """`tls.crt` and `tls.key` as a Kubernetes secret mounts them. Raises TlsError."""
    certificate = directory / "tls.crt"
    try:
        identity = Identity(certificate.read_bytes(), (directory / "tls.key").read_bytes())
        x509.load_pem_x509_certificate(identity.certificate)
    except OSError as error:
        raise TlsError(f"cannot read the certificate: {error}") from error
    except _NO_CERTIFICATE as error:
        raise TlsError(f"{certificate} is no certificate: {error}") from error
    return identity


def read_authorities(file: Path) -> bytes:
    """The certificates (PEM) of those who sign clients'. Raises TlsError."""
    try:
        authorities = file.read_bytes()
    except OSError as error:
        raise TlsError(f"cannot read the client CA: {error}") from error
    if b"CERTIFICATE-----" not in authorities:
        raise TlsError(f"the client CA {file} holds no certificate (PEM)")
    return authorities


def server_context(
    terms: Terms, min_version: str = "VersionTLS12", cipher_suites: Iterable[str] = (), protocol: str = "h2"
) -> ssl.SSLContext:
    """A context that negotiates `protocol` by ALPN, without compression. Clients have to show a certificate that one of the
    authorities signed, where there are any, at each handshake anew.

    Raises TlsError for an unknown version or suite, an identity that does not fit together, or authorities that are none.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if min_version not in VERSIONS:
        raise TlsError(f"unknown TLS version {min_version!r}; known are {', '.join(VERSIONS)}")
    context.minimum_version = VERSIONS[min_version]
    context.set_alpn_protocols([protocol])
    suites = tuple(cipher_suites)
    if suites:
        context.set_ciphers(":".join(_openssl_names(suites)))
    if terms.authorities is not None:
        try:
            # Names of authorities stand between their certificates, in any script; Python wants ASCII.
            context.load_verify_locations(cadata=terms.authorities.decode("ascii", "ignore"))
        except (ValueError, ssl.SSLError) as error:
            raise TlsError(f"the client CA cannot be used: {error}") from error
        context.verify_mode = ssl.CERT_REQUIRED
        # A session would let its client in for two hours more, whatever has become of its certificate.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    load(context, terms.identity)
    return context


def _openssl_names(suites: Iterable[str]) -> list[str]:
    unknown = [name for name in suites if name not in SUITES and name not in _OF_TLS13]
    if unknown:
        raise TlsError(f"unknown cipher suite {unknown[0]!r}; known are {', '.join(SUITES)}")
    # OpenSSL wants at least one name here; TLS 1.3 keeps its own three whatever the list says.
    return [SUITES[name] for name in suites if name in SUITES] or ["ECDHE+AESGCM"]


def names_of(certificate: Mapping[str, object] | None) -> frozenset[str]:
    """The subject alternative names of a peer's certificate as `ssl` tells them; none where it showed none.

    DNS names, URIs (SPIFFE ids among them) and addresses alike, without their kind. The common name is not one of them, as
    in Go and Envoy.
    """
    shown = certificate.get("subjectAltName", ()) if certificate else ()
    assert isinstance(shown, tuple)
    return frozenset(name for _, name in shown)


def expires(identity: Identity) -> datetime.datetime:
    """When the leaf certificate ends, UTC. Raises TlsError where it is no certificate."""
    try:
        return x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc
    except _NO_CERTIFICATE as error:
        raise TlsError(f"this is no certificate: {error}") from error


@contextlib.contextmanager
def _as_file(secret: bytes) -> Iterator[str]:
    """A path that holds `secret` for the moment: OpenSSL's Python binding reads files only.

    In memory where the system can (Linux), so that nothing needs to be writable; else in a private directory.
    """
    if hasattr(os, "memfd_create"):
        with open(os.memfd_create("identity"), "wb") as file:
            file.write(secret)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
        return
    with tempfile.NamedTemporaryFile() as file:
        file.write(secret)
        file.flush()
        yield file.name


def _no_pass_phrase() -> str:
    """Asked for by OpenSSL, which else asks the terminal, and the loop waits."""
    raise TlsError("the private key is encrypted, and nobody is there to give a pass phrase")


def load(context: ssl.SSLContext, identity: Identity) -> None:
    """Have `context` show `identity`. Raises TlsError where its parts do not fit together, the key is encrypted, or the system gives no file for it."""
    try:
        with _as_file(identity.key + b"\n" + identity.certificate) as path:
            context.load_cert_chain(path, password=_no_pass_phrase)
    except TlsError:
        raise
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"certificate and key do not fit together: {error}") from error
    except OSError as error:
        raise TlsError(f"the certificate cannot be loaded: {error}") from error


class _Newest(ssl.SSLContext):
    """For servers, which take one context for ever: each handshake goes by the one that is `newest` when it begins.

    Changing a context in place would not do: it forgets no authority.
    """

    newest: ssl.SSLContext

    def wrap_bio(self, *args: Any, **named: Any) -> ssl.SSLObject:
        return self.newest.wrap_bio(*args, **named)


class Follower:
    """Terms that change: what `read` tells now and then, made a context by `make`. The caller decides how often to `look`.

    `context` is for a server of ours; `grpc_credentials` asks for `terms` at each handshake. Connections made go on.
    """

    def __init__(self, read: Callable[[], Terms], make: Callable[[Terms], ssl.SSLContext]) -> None:
        """Raises TlsError."""
        self._read = read
        self._make = make
        self._terms = read()
        self._context = _Newest(ssl.PROTOCOL_TLS_SERVER)
        self._context.newest = make(self._terms)

    @property
    def terms(self) -> Terms:
        return self._terms

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    def look(self) -> bool:
        """True when other terms hold from the next handshake on. Raises TlsError when what is there cannot be used; the last
        good ones stay."""
        found = self._read()
        if found == self._terms:
            return False
        self._context.newest = self._make(found)
        self._terms = found
        return True


def grpc_credentials(terms: Callable[[], Terms]) -> grpc.ServerCredentials:
    """Credentials for `AioServer`; `terms` is asked at each handshake, from a thread of gRPC's. Whether clients have to show
    certificates is settled by the first."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        now = terms()
        return grpc.ssl_server_certificate_configuration(
            [(now.identity.key, now.identity.certificate)], now.authorities
        )

    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, terms().authorities is not None)
