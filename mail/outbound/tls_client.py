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

from mail.routing.certificate_checks import Check, Tlsa, named
from mail.routing.mx_hosts import Host, Tls

DEEPEST = 8  # certificates
OWN_KEY, AUTHORITY = 3, 2  # TLSA certificate usages (RFC 7218)
DER = 2  # the ENCODING_DER constant of Python's _ssl module

Kind = tuple[str, ssl.TLSVersion | None, ssl.TLSVersion | None]


class NoTls(Exception):
    """TLS is missing or does not meet the requirement."""


@dataclass
class Contexts:
    """TLS contexts by requirement. `trusted_context` replaces the system's authorities."""

    trust: ssl.SSLContext | None = None
    made: dict[Kind, ssl.SSLContext] = field(default_factory=dict)

    def of(self, host: Host) -> ssl.SSLContext:
        """The TLS context for connections to this host."""
        proof = host.proof
        checked = proved(host) and proof.check is Check.NAMES
        kind = ("" if not checked else "names" if proof.names else "own", proof.least, proof.most)
        if kind not in self.made:
            self.made[kind] = self._made(*kind)
        return self.made[kind]

    def _made(
        self, check: str, least: ssl.TLSVersion | None, most: ssl.TLSVersion | None
    ) -> ssl.SSLContext:
        """Create a TLS context.

        `name_check` is empty for no check, "own" for the host name, "names" if other names are
        checked after the handshake.
        """
        if check == "own" and least is None and most is None and self.trust:
            return self.trust
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = check == "own"
        context.verify_mode = ssl.CERT_REQUIRED if check else ssl.CERT_NONE
        if check and self.trust:
            for authority in self.trust.get_ca_certs(binary_form=True):
                context.load_verify_locations(cadata=authority)
        elif check:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if least:
            context.minimum_version = least
        if most:
            context.maximum_version = most
        return context


def proved(host: Host) -> bool:
    """True if the certificate of the host must be checked."""
    return host.tls in (Tls.REQUIRED, Tls.WRAPPED) and host.proof.check is not Check.NOTHING


def looked_at(encryption: ssl.SSLObject, host: Host) -> str:
    """Check the certificate after the handshake. Returns TLS version, cipher and check as text.

    Raises TlsFailed if the certificate does not meet the requirement of the host.
    """
    cipher = encryption.cipher()
    told = f"{encryption.version()} {cipher[0] if cipher else ''}".strip()
    if not proved(host):
        return told
    proof = host.proof
    if proof.check is Check.NAMES and proof.names:
        names = [str(value) for kind, value in _names(encryption) if kind == "DNS"]
        if not named(names, proof.names):
            raise NoTls(f"its certificate is for {', '.join(names)[:200] or 'nobody'}")
    elif proof.check is Check.PRINTS:
        _printed(_own(encryption), proof.prints)
    elif proof.check is Check.TLSA:
        _by_dns(encryption, proof.tlsa, proof.names)
    return f"{told} ({proof.why or 'verified'})"


def _names(encryption: ssl.SSLObject) -> Sequence[Any]:
    """The (type, value) pairs of subjectAltName."""
    found = encryption.getpeercert() or {}
    names: Any = found.get("subjectAltName", ())
    return list(names)


def _own(encryption: ssl.SSLObject) -> x509.Certificate:
    """The certificate of the server. Raises TlsFailed if there is none or it can't be parsed."""
    raw = encryption.getpeercert(binary_form=True)
    if raw is None:
        raise NoTls("it shows no certificate")
    try:
        return x509.load_der_x509_certificate(raw)
    except ValueError:
        raise NoTls("its certificate cannot be read") from None


def _key(certificate: x509.Certificate) -> bytes:
    """The SubjectPublicKeyInfo of a certificate in DER. Raises TlsFailed if it can't be parsed."""
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, LookupError):
        raise NoTls("the key of its certificate cannot be read") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _printed(own: x509.Certificate, prints: Sequence[bytes]) -> None:
    """Raise TlsFailed unless certificate or key has one of these SHA-256 or SHA-1 digests."""
    both = own.public_bytes(Encoding.DER), _key(own)
    made = {hashlib.sha256(der).digest() for der in both}
    made |= {hashlib.sha1(der, usedforsecurity=False).digest() for der in both}
    if made.isdisjoint(prints):
        raise NoTls("its certificate has none of the fingerprints that are known")


def _by_dns(encryption: ssl.SSLObject, records: Sequence[Tlsa], names: Sequence[str]) -> None:
    """Raise TlsFailed unless a TLSA record matches (RFC 7672, section 3.1).

    DANE-EE compares only the certificate or key. DANE-TA also checks chain, name and validity.
    """
    own = _own(encryption)
    raw = own.public_bytes(Encoding.DER)
    if any(record.usage == OWN_KEY and record.fits(raw, _key(own)) for record in records):
        return
    anchors = [record for record in records if record.usage == AUTHORITY]
    if anchors and _anchored([own, *_shown(encryption)], anchors, names):
        return
    raise NoTls("its certificate is none of those that DNS names")


def _shown(encryption: ssl.SSLObject) -> list[x509.Certificate]:
    """The certificate chain that the server sent.

    Before Python 3.13 only the private object of the ssl module has it.
    """
    inner: Any = encryption if hasattr(encryption, "get_unverified_chain") else None
    inner = inner or getattr(encryption, "_sslobj", None)
    found: list[x509.Certificate] = []
    for each in (inner.get_unverified_chain() or [])[:DEEPEST] if inner else []:
        raw = each if isinstance(each, bytes) else each.public_bytes(DER)
        with contextlib.suppress(ValueError):
            found.append(x509.load_der_x509_certificate(raw))
    return found


def _anchored(
    chain: Sequence[x509.Certificate], anchors: Sequence[Tlsa], names: Sequence[str]
) -> bool:
    """True if a chain of valid certificates leads from the first one to a trust anchor.

    The first certificate must also be for one of the names.
    """
    now = datetime.now(UTC)
    own, others = chain[0], list(chain[1:])
    for each in anchors:  # the server need not send an anchor that DNS has completely
        if each.selector == 0 and each.matching == 0:
            with contextlib.suppress(ValueError):
                others.append(x509.load_der_x509_certificate(each.data))
    try:
        alternative = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        called = alternative.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, ValueError):
        called = []
    if not named(called, tuple(names)) or not _holds(own, now):
        return False
    at = own
    for _ in range(DEEPEST):
        above = next((candidate for candidate in others if _issued(at, candidate, now)), None)
        if above is None:
            return False
        raw = above.public_bytes(Encoding.DER)
        if any(candidate.fits(raw, _key(above)) for candidate in anchors):
            return True
        others.remove(above)
        at = above
    return False


def _holds(certificate: x509.Certificate, now: datetime) -> bool:
    """True if a certificate is within its validity period."""
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _issued(below: x509.Certificate, above: x509.Certificate, now: datetime) -> bool:
    """True if a valid authority has signed the certificate."""
    try:
        basic = above.extensions.get_extension_for_class(x509.BasicConstraints).value
        below.verify_directly_issued_by(above)
    except Exception:  # noqa: BLE001 - any error means that it is not verified
        return False
    return basic.ca and _holds(above, now)
