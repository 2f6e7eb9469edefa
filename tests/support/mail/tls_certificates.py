"""Certificates made for a test, and servers that show them."""

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def spki(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    def digest(self, *, spki: bool = True) -> str:
        digest = hashes.Hash(hashes.SHA256())
        digest.update(self.spki if spki else self.der)
        return digest.finalize().hex()


def made(*names: str, by: Pair | None = None, days: int = 30, authority: bool = False) -> Pair:
    """A certificate for these names, signed by another or by itself; `days` < 0: it is over."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    until = datetime.now(UTC) + days * DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - 60 * DAY)
        .not_valid_after(until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), True)
    )
    return Pair(builder.sign(by.key if by else key, hashes.SHA256()), key)


def shown(folder: Path, own: Pair, *chain: Pair) -> ssl.SSLContext:
    """TLS of a server that shows these."""
    file = folder / f"{own.certificate.serial_number}.pem"
    parts = [each.certificate.public_bytes(Encoding.PEM) for each in (own, *chain)]
    key = own.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(b"".join(parts) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def trusting(*authorities: Pair) -> ssl.SSLContext:
    """A client that trusts these."""
    context = ssl.create_default_context(cadata=authorities[0].der)
    for each in authorities[1:]:
        context.load_verify_locations(cadata=each.der)
    return context
