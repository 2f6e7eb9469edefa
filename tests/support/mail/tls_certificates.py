"""Certificates, and the TLS contexts of servers and clients that use them."""

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
class CertificatePair:
    """A certificate and its private key."""

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


def make_certificate(
    *names: str, issuer: CertificatePair | None = None, days: int = 30, is_authority: bool = False
) -> CertificatePair:
    """Make a certificate for these names, self-signed or signed by `by`; expired if `days` < 0."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
    not_after = datetime.now(UTC) + days * DAY
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_after - 60 * DAY)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), False)
        .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), True)
    )
    return CertificatePair(builder.sign(issuer.key if issuer else key, hashes.SHA256()), key)


def server_tls_context(
    folder: Path, certificate: CertificatePair, *chain: CertificatePair
) -> ssl.SSLContext:
    """The TLS context of a server with this certificate and chain."""
    file = folder / f"{certificate.certificate.serial_number}.pem"
    parts = [pair.certificate.public_bytes(Encoding.PEM) for pair in (certificate, *chain)]
    key = certificate.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(b"".join(parts) + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def client_tls_context(*authorities: CertificatePair) -> ssl.SSLContext:
    """The TLS context of a client that trusts these authorities."""
    context = ssl.create_default_context(cadata=authorities[0].der)
    for authority in authorities[1:]:
        context.load_verify_locations(cadata=authority.der)
    return context
