"""TLS to other servers: the TLS contexts, and the certificate checks after the handshake.

The TLS library checks host names during the handshake. TLSA records and fingerprints are compared
after it. Nothing but STARTTLS is sent before that.
"""

import contextlib
import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mail.routing.certificate_checks import CertificateCheck, TlsaRecord, matches_names
from mail.routing.mx_hosts import NextHop, TlsLevel

MAX_CHAIN_LENGTH = 8  # certificates
DANE_EE, DANE_TA = 3, 2  # TLSA certificate usages (RFC 7218)
DER_ENCODING = 2  # the ENCODING_DER constant of Python's _ssl module

ContextKey = tuple[str, ssl.TLSVersion | None, ssl.TLSVersion | None]


class TlsFailed(Exception):
    """TLS is missing or does not meet the requirement."""


@dataclass
class TlsContexts:
    """TLS contexts by requirement. `trusted_context` replaces the system's authorities."""

    trusted_context: ssl.SSLContext | None = None
    context_by_key: dict[ContextKey, ssl.SSLContext] = field(default_factory=dict)

    def context_for_host(self, host: NextHop) -> ssl.SSLContext:
        """The TLS context for connections to this host."""
        check = host.certificate_requirement
        checks_names = needs_certificate_check(host) and check.check is CertificateCheck.NAMES
        key = (
            "" if not checks_names else "names" if check.names else "own",
            check.minimum_version,
            check.maximum_version,
        )
        if key not in self.context_by_key:
            self.context_by_key[key] = self._create_context(*key)
        return self.context_by_key[key]

    def _create_context(
        self,
        name_check: str,
        minimum_version: ssl.TLSVersion | None,
        maximum_version: ssl.TLSVersion | None,
    ) -> ssl.SSLContext:
        """Create a TLS context.

        `name_check` is empty for no check, "own" for the host name, "names" if other names are
        checked after the handshake.
        """
        if (
            name_check == "own"
            and minimum_version is None
            and maximum_version is None
            and self.trusted_context
        ):
            return self.trusted_context
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = name_check == "own"
        context.verify_mode = ssl.CERT_REQUIRED if name_check else ssl.CERT_NONE
        if name_check and self.trusted_context:
            for authority in self.trusted_context.get_ca_certs(binary_form=True):
                context.load_verify_locations(cadata=authority)
        elif name_check:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if minimum_version:
            context.minimum_version = minimum_version
        if maximum_version:
            context.maximum_version = maximum_version
        return context


def needs_certificate_check(host: NextHop) -> bool:
    """True if the certificate of the host must be checked."""
    return (
        host.tls_level in (TlsLevel.REQUIRED, TlsLevel.WRAPPED)
        and host.certificate_requirement.check is not CertificateCheck.NOTHING
    )


def verify_and_describe_tls(tls_object: ssl.SSLObject, host: NextHop) -> str:
    """Check the certificate after the handshake. Returns TLS version, cipher and check as text.

    Raises TlsFailed if the certificate does not meet the requirement of the host.
    """
    cipher = tls_object.cipher()
    description = f"{tls_object.version()} {cipher[0] if cipher else ''}".strip()
    if not needs_certificate_check(host):
        return description
    proof = host.certificate_requirement
    if proof.check is CertificateCheck.NAMES and proof.names:
        certificate_names = [
            str(value) for kind, value in _subject_alt_names(tls_object) if kind == "DNS"
        ]
        if not matches_names(certificate_names, proof.names):
            raise TlsFailed(f"certificate is for {', '.join(certificate_names)[:200] or 'no name'}")
    elif proof.check is CertificateCheck.PRINTS:
        _verify_fingerprint(_server_certificate(tls_object), proof.fingerprints)
    elif proof.check is CertificateCheck.TLSA:
        _verify_dane(tls_object, proof.tlsa_records, proof.names)
    return f"{description} ({proof.source or 'verified'})"


def _subject_alt_names(tls_object: ssl.SSLObject) -> Sequence[Any]:
    """The (type, value) pairs of subjectAltName."""
    certificate = tls_object.getpeercert() or {}
    names: Any = certificate.get("subjectAltName", ())
    return list(names)


def _server_certificate(tls_object: ssl.SSLObject) -> x509.Certificate:
    """The certificate of the server. Raises TlsFailed if there is none or it can't be parsed."""
    der = tls_object.getpeercert(binary_form=True)
    if der is None:
        raise TlsFailed("no certificate presented")
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        raise TlsFailed("certificate can't be parsed") from None


def _public_key_der(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo of a certificate in DER. Raises TlsFailed if it can't be parsed."""
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, LookupError):
        raise TlsFailed("key of the certificate can't be parsed") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _verify_fingerprint(
    certificate: x509.Certificate, allowed_fingerprints: Sequence[bytes]
) -> None:
    """Raise TlsFailed unless certificate or key has one of these SHA-256 or SHA-1 digests."""
    der_values = certificate.public_bytes(Encoding.DER), _public_key_der(certificate)
    fingerprints = {hashlib.sha256(der).digest() for der in der_values}
    fingerprints |= {hashlib.sha1(der, usedforsecurity=False).digest() for der in der_values}
    if fingerprints.isdisjoint(allowed_fingerprints):
        raise TlsFailed("certificate matches no fingerprint")


def _verify_dane(
    tls_object: ssl.SSLObject, records: Sequence[TlsaRecord], names: Sequence[str]
) -> None:
    """Raise TlsFailed unless a TLSA record matches (RFC 7672, section 3.1).

    DANE-EE compares only the certificate or key. DANE-TA also checks chain, name and validity.
    """
    certificate = _server_certificate(tls_object)
    certificate_der = certificate.public_bytes(Encoding.DER)
    if any(
        record.usage == DANE_EE and record.matches(certificate_der, _public_key_der(certificate))
        for record in records
    ):
        return
    anchors = [record for record in records if record.usage == DANE_TA]
    if anchors and _is_chain_anchored([certificate, *_sent_chain(tls_object)], anchors, names):
        return
    raise TlsFailed("certificate matches no TLSA record")


def _sent_chain(tls_object: ssl.SSLObject) -> list[x509.Certificate]:
    """The certificate chain that the server sent.

    Before Python 3.13 only the private object of the ssl module has it.
    """
    chain_source: Any = tls_object if hasattr(tls_object, "get_unverified_chain") else None
    chain_source = chain_source or getattr(tls_object, "_sslobj", None)
    certificates: list[x509.Certificate] = []
    for sent in (
        (chain_source.get_unverified_chain() or [])[:MAX_CHAIN_LENGTH] if chain_source else []
    ):
        der = sent if isinstance(sent, bytes) else sent.public_bytes(DER_ENCODING)
        with contextlib.suppress(ValueError):
            certificates.append(x509.load_der_x509_certificate(der))
    return certificates


def _is_chain_anchored(
    chain: Sequence[x509.Certificate], trust_anchors: Sequence[TlsaRecord], names: Sequence[str]
) -> bool:
    """True if a chain of valid certificates leads from the first one to a trust anchor.

    The first certificate must also be for one of the names.
    """
    now = datetime.now(UTC)
    certificate, others = chain[0], list(chain[1:])
    for anchor in trust_anchors:  # the server need not send an anchor that DNS has completely
        if anchor.selector == 0 and anchor.matching_type == 0:
            with contextlib.suppress(ValueError):
                others.append(x509.load_der_x509_certificate(anchor.association_data))
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        dns_names = alternative.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        dns_names = []
    if not matches_names(dns_names, tuple(names)) or not _is_valid_at(certificate, now):
        return False
    current = certificate
    for _ in range(MAX_CHAIN_LENGTH):
        issuer = next(
            (candidate for candidate in others if _is_issued_by(current, candidate, now)), None
        )
        if issuer is None:
            return False
        issuer_der = issuer.public_bytes(Encoding.DER)
        if any(
            candidate.matches(issuer_der, _public_key_der(issuer)) for candidate in trust_anchors
        ):
            return True
        others.remove(issuer)
        current = issuer
    return False


def _is_valid_at(certificate: x509.Certificate, at: datetime) -> bool:
    """True if a certificate is within its validity period."""
    return certificate.not_valid_before_utc <= at <= certificate.not_valid_after_utc


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    """True if a valid authority has signed the certificate."""
    try:
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - any error means that it is not verified
        return False
    return basic.ca and _is_valid_at(issuer, now)
