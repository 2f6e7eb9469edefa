"""TLS to servers elsewhere: what is asked before, and what of a certificate is looked at behind.

Names are checked by the library while hands are shaken. Records of DNS and fingerprints are
compared once they are: nothing has been said by then but STARTTLS.
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

DEEPEST = 8  # certificates of a chain
OWN_KEY, AUTHORITY = 3, 2  # usages of TLSA
DER = 2  # of the library's own certificates: how they are written

Kind = tuple[str, ssl.TLSVersion | None, ssl.TLSVersion | None]


class NoTls(Exception):
    """Encryption was offered or asked for, but did not come about as it should."""


@dataclass
class Contexts:
    """One for each kind of demand. `trust` is instead of the system's authorities."""

    trust: ssl.SSLContext | None = None
    made: dict[Kind, ssl.SSLContext] = field(default_factory=dict)

    def of(self, host: Host) -> ssl.SSLContext:
        """The one that a connection to this host needs."""
        proof = host.proof
        checked = proved(host) and proof.check is Check.NAMES
        kind = ("" if not checked else "names" if proof.names else "own", proof.least, proof.most)
        if kind not in self.made:
            self.made[kind] = self._made(*kind)
        return self.made[kind]

    def _made(
        self, check: str, least: ssl.TLSVersion | None, most: ssl.TLSVersion | None
    ) -> ssl.SSLContext:
        if check == "own" and least is None and most is None and self.trust:
            return self.trust
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = check == "own"
        context.verify_mode = ssl.CERT_REQUIRED if check else ssl.CERT_NONE
        if check and self.trust:
            for each in self.trust.get_ca_certs(binary_form=True):
                context.load_verify_locations(cadata=each)
        elif check:
            context.load_default_certs(ssl.Purpose.SERVER_AUTH)
        if least:
            context.minimum_version = least
        if most:
            context.maximum_version = most
        return context


def proved(host: Host) -> bool:
    """Whether its certificate is looked at at all."""
    return host.tls in (Tls.REQUIRED, Tls.WRAPPED) and host.proof.check is not Check.NOTHING


def looked_at(encryption: ssl.SSLObject, host: Host) -> str:
    """Protocol, cipher, and how the other side was known. NoTls where it is not who it should be.

    This is for what is left to do once hands are shaken.
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
    found = encryption.getpeercert() or {}
    names: Any = found.get("subjectAltName", ())
    return list(names)


def _own(encryption: ssl.SSLObject) -> x509.Certificate:
    raw = encryption.getpeercert(binary_form=True)
    if raw is None:
        raise NoTls("it shows no certificate")
    try:
        return x509.load_der_x509_certificate(raw)
    except ValueError:
        raise NoTls("its certificate cannot be read") from None


def _key(certificate: x509.Certificate) -> bytes:
    try:
        key = certificate.public_key()
    except (ValueError, TypeError, LookupError):
        raise NoTls("the key of its certificate cannot be read") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _printed(own: x509.Certificate, prints: Sequence[bytes]) -> None:
    both = own.public_bytes(Encoding.DER), _key(own)
    made = {hashlib.sha256(each).digest() for each in both}
    made |= {hashlib.sha1(each, usedforsecurity=False).digest() for each in both}
    if made.isdisjoint(prints):
        raise NoTls("its certificate has none of the fingerprints that are known")


def _by_dns(encryption: ssl.SSLObject, records: Sequence[Tlsa], names: Sequence[str]) -> None:
    """RFC 7672, section 3.1: its own key, whatever else it says, or an authority of its own."""
    own = _own(encryption)
    raw = own.public_bytes(Encoding.DER)
    if any(each.usage == OWN_KEY and each.fits(raw, _key(own)) for each in records):
        return
    anchors = [each for each in records if each.usage == AUTHORITY]
    if anchors and _anchored([own, *_shown(encryption)], anchors, names):
        return
    raise NoTls("its certificate is none of those that DNS names")


def _shown(encryption: ssl.SSLObject) -> list[x509.Certificate]:
    """The chain it has shown.

    Until Python 3.13, which has it in the open, only the object behind the object has it.
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
    """Whether the first of these leads up to a certificate that DNS names, and is for a name."""
    now = datetime.now(UTC)
    own, others = chain[0], list(chain[1:])
    for each in anchors:  # a whole certificate need not have been shown
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
        above = next((each for each in others if _issued(at, each, now)), None)
        if above is None:
            return False
        raw = above.public_bytes(Encoding.DER)
        if any(each.fits(raw, _key(above)) for each in anchors):
            return True
        others.remove(above)
        at = above
    return False


def _holds(certificate: x509.Certificate, now: datetime) -> bool:
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _issued(below: x509.Certificate, above: x509.Certificate, now: datetime) -> bool:
    """Whether one has signed the other, and may."""
    try:
        basic = above.extensions.get_extension_for_class(x509.BasicConstraints).value
        below.verify_directly_issued_by(above)
    except Exception:  # noqa: BLE001 - of any kind: then it has not, as far as we can see
        return False
    return basic.ca and _holds(above, now)
