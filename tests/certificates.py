"""Authorities and what they sign, for tests of trust."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from epp.extproc.tls import Identity

DAY = datetime.timedelta(days=1)


class Authority:
    """Signs leaf certificates. `path` holds its own, PEM."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, path.stem)])
        certificate = (
            _begun(self._name, self._name, self._key.public_key(), 10 * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, names: Sequence[str], ends_in: datetime.timedelta = 5 * DAY, user: str = "") -> Identity:
        """A leaf for DNS names, IPv4 addresses and URIs (those with ://), valid since two days ago until `ends_in` from now.

        `user` is its common name: who a client is to Kubernetes.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user)] if user else [])
        shown = [_general_name(name) for name in names]
        certificate = (
            _begun(subject, self._name, key.public_key(), ends_in)
            .add_extension(x509.SubjectAlternativeName(shown), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Identity(certificate.public_bytes(serialization.Encoding.PEM), private)


def _general_name(name: str) -> x509.GeneralName:
    if "://" in name:
        return x509.UniformResourceIdentifier(name)
    if name.replace(".", "").isdecimal():
        return x509.IPAddress(ipaddress.IPv4Address(name))
    return x509.DNSName(name)


def _begun(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, ends_in: datetime.timedelta
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 2 * DAY)
        .not_valid_after(now + ends_in)
    )


def store(directory: Path, identity: Identity) -> Path:
    """`tls.crt` and `tls.key`, as a Kubernetes secret mounts them. Returns `directory`."""
    directory.mkdir(exist_ok=True)
    for name, data in (("tls.crt", identity.certificate), ("tls.key", identity.key)):
        # Replaced, not rewritten: whoever reads at the same time sees one or the other.
        (directory / f".{name}").write_bytes(data)
        (directory / f".{name}").replace(directory / name)
    return directory
