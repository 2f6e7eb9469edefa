"""Parsing and validation of PEM certificates and keys, and matching of server names."""

import re
import ssl
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mail.addresses.address_syntax import ascii_domain, checked_domain
from mail.tls.server_tls import loaded
from models.errors import Invalid

LONGEST = 1 << 16  # in one field
CHAIN = 10
LINKS = 20  # in the input, from which the chain is built
NAMES = 500  # in one certificate
ORDERED = 100  # authorities accept no more
BITS = 2048
LARGEST = 8192  # larger keys make handshakes too expensive
CURVES = ("secp256r1", "secp384r1", "secp521r1")
ISSUER = 300
BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----.*?-----END \1-----", re.DOTALL)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
BROKEN = (ValueError, TypeError, UnsupportedAlgorithm)  # what parsing raises


@dataclass(frozen=True, slots=True)
class Sent:
    """PEM texts of a certificate, its key and intermediate certificates.

    The key can be in the text of the certificate.
    """

    cert: str
    key: str | None = field(default=None, repr=False)
    ca: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Fitting:
    """A private key with its certificate chain and the values of the certificate."""

    key: str = field(repr=False)  # PKCS #8
    chain: str  # the certificate of the key first
    names: tuple[str, ...]  # in ASCII
    sha1: str
    sha256: str
    spki: str
    issuer: str
    not_before: datetime
    not_after: datetime
    for_servers: bool  # allowed by the extended key usage
    left: int  # input certificates that are not in the chain


def server_name(text: str) -> str:
    """A server name in ASCII and lower case. Raises Invalid."""
    name = ascii_domain(checked_domain(text, path="serverName"))
    if not all(LABEL.fullmatch(label) for label in name.split(".")):
        raise Invalid("not the name of a server", constraint="domain", path=["serverName"])
    if name.rpartition(".")[2].isdecimal():
        raise Invalid("a name, not an address", constraint="domain", path=["serverName"])
    return name


def public_name(text: str) -> str:
    """A server name that an authority can know: it has a dot. Raises Invalid."""
    name = server_name(text)
    if "." not in name:
        text = "no authority knows a name without a dot"
        raise Invalid(text, constraint="domain", path=["serverName"])
    return name


def other_names(own: str, given: Sequence[str]) -> list[str]:
    """The additional names for an ACME certificate, without duplicates, in order.

    Raises Invalid with the index of an invalid name, or if there are too many.
    """
    path, many = ["acmeNames"], f"at most {ORDERED} names, that of the server among them"
    if len(given) > ORDERED:
        raise Invalid(many, constraint="max", path=path)
    found: dict[str, None] = {}
    for nth, text in enumerate(given):
        if text.strip().startswith("*."):
            words = "no wildcard: it cannot be proved by HTTP"
            raise Invalid(words, constraint="wildcard", path=path, index=nth)
        try:
            found[public_name(text)] = None
        except Invalid as refusal:
            rule = refusal.constraint
            raise Invalid(refusal.message, constraint=rule, path=path, index=nth) from None
    found.pop(own, None)
    if len(found) >= ORDERED:
        raise Invalid(many, constraint="max", path=path)
    return list(found)


def wildcard(name: str) -> str:
    """The wildcard name that covers this name: `*` for its first label (RFC 6125)."""
    return f"*.{name.partition('.')[2]}"


def covers(names: Iterable[str], name: str) -> bool:
    """True if a certificate with these names is valid for this name."""
    return not {name, wildcard(name)}.isdisjoint(names)


def fitting(sent: Sent, old_key: str | None = None) -> Fitting:
    """Parse and validate a certificate, and build its chain.

    Without a key in the input, the old key is used if it matches. Raises Invalid with field and
    rule if the certificate can't be used.
    """
    blocks = list(_blocks(sent.cert, "cert"))
    given = _key_of(sent, blocks)
    if given is None and old_key is None:
        raise Invalid("its key is missing", constraint="required", path=["privateKey"])
    key = _key(given or old_key or "")
    certificates = _certificates(blocks, "cert")
    if not certificates:
        text = "no certificate stands in it: PEM begins with -----BEGIN CERTIFICATE-----"
        raise Invalid(text, constraint="pem", path=["cert"])
    for nth, text in enumerate(sent.ca):
        more = _certificates(list(_blocks(text, "ca", nth)), "ca", nth)
        if not more:
            raise Invalid("no certificate stands in it", constraint="pem", path=["ca"], index=nth)
        certificates += more
    if len(certificates) > LINKS:
        raise Invalid(f"at most {LINKS} certificates", constraint="max", path=["cert"])
    spki = _spki(key.public_key())
    own = next(
        (candidate for candidate in certificates if _spki(candidate.public_key()) == spki), None
    )
    if own is None:
        text = "key and certificate do not belong together"
        raise Invalid(text, constraint="mismatch", path=["privateKey" if given else "cert"])
    chain = _chain(own, certificates)
    left = len({candidate.fingerprint(hashes.SHA256()) for candidate in certificates}) - len(chain)
    made = _described(key, own, chain, left)
    _tried(made)
    return made


def _key_of(sent: Sent, blocks: Sequence[tuple[str, str]]) -> str | None:
    """The private key in the input, as PEM. None if there is none. Raises Invalid."""
    if sent.key is not None:
        found = [pem for kind, pem in _blocks(sent.key, "privateKey") if kind.endswith("KEY")]
        if not found:
            text = "no private key stands in it: PEM begins with -----BEGIN PRIVATE KEY-----"
            raise Invalid(text, constraint="pem", path=["privateKey"])
    else:
        found = [pem for kind, pem in blocks if kind.endswith("PRIVATE KEY")]
    if len(found) > 1:
        raise Invalid("more than one key", constraint="max", path=["privateKey"])
    return found[0] if found else None


def _blocks(text: str, path: str, index: int | None = None) -> Iterator[tuple[str, str]]:
    """The type and text of each PEM block. Raises Invalid if the text is too long."""
    if len(text) > LONGEST:
        words = f"at most {LONGEST} characters"
        raise Invalid(words, constraint="length", path=[path], index=index)
    for found in BLOCK.finditer(text):
        yield found[1], found[0]


def _certificates(
    blocks: Sequence[tuple[str, str]], path: str, index: int | None = None
) -> list[x509.Certificate]:
    """The certificates among the PEM blocks. Raises Invalid."""
    try:
        pems = [pem for kind, pem in blocks if kind.endswith("CERTIFICATE")]
        return [x509.load_pem_x509_certificate(pem.encode()) for pem in pems[: LINKS + 1]]
    except BROKEN:
        text = "the certificate cannot be read"
        raise Invalid(text, constraint="pem", path=[path], index=index) from None


PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def _key(pem: str) -> PrivateKey:
    """Parse a private key. Raises Invalid if it is encrypted, weak or of another type."""
    path = ["privateKey"]
    if "ENCRYPTED" in pem:
        text = "the key is encrypted: send it without a passphrase, it is sealed here"
        raise Invalid(text, constraint="encrypted", path=path)
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except BROKEN:
        raise Invalid("the key cannot be read", constraint="pem", path=path) from None
    if isinstance(key, rsa.RSAPrivateKey):
        if not BITS <= key.key_size <= LARGEST:
            text = f"a key of RSA has {BITS} to {LARGEST} bits"
            raise Invalid(text, constraint="weak", path=path)
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES:
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return key
    text = "keys are of RSA, ECDSA (P-256, P-384, P-521) or EdDSA"
    raise Invalid(text, constraint="weak", path=path)


def _digest(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key of a certificate, in hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_spki(certificate.public_key()))
    return digest.finalize().hex()


def _spki(key: PublicKeyTypes) -> bytes:
    """The SubjectPublicKeyInfo in DER. Empty if it can't be encoded."""
    try:
        return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except BROKEN:
        return b""


def _chain(own: x509.Certificate, known: Sequence[x509.Certificate]) -> list[x509.Certificate]:
    """The chain that begins with the leaf, as far as the issuers are known."""
    chain = [own]
    while len(chain) < CHAIN:
        found = (
            candidate
            for candidate in known
            if candidate not in chain and _signed(chain[-1], candidate)
        )
        if (signer := next(found, None)) is None:
            break
        chain.append(signer)
    return chain


def _signed(one: x509.Certificate, by: x509.Certificate) -> bool:
    """True if the issuer has signed the certificate."""
    try:
        one.verify_directly_issued_by(by)
    except (*BROKEN, InvalidSignature):
        return False
    return True


def _described(
    key: PrivateKey, own: x509.Certificate, chain: Sequence[x509.Certificate], left: int
) -> Fitting:
    """The result of a validation. Raises Invalid if the certificate has too many names."""
    plain, form = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    names = _names(own)
    if len(names) > NAMES:
        raise Invalid(f"at most {NAMES} names", constraint="max", path=["cert"])
    return Fitting(
        key.private_bytes(Encoding.PEM, form, plain).decode(),
        "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain),
        names,
        own.fingerprint(hashes.SHA1()).hex(),  # noqa: S303 - shown beside SHA-256
        own.fingerprint(hashes.SHA256()).hex(),
        _digest(own),
        _issuer(own),
        own.not_valid_before_utc,
        own.not_valid_after_utc,
        _for_servers(own),
        left,
    )


def _names(own: x509.Certificate) -> tuple[str, ...]:
    """The DNS names of a certificate. The common name counts only without others (RFC 6125)."""
    found: list[str]
    try:
        extension = own.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        found = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, *BROKEN):
        common = own.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        found = [str(attribute.value) for attribute in common]
    names = (name.lower().rstrip(".") for name in found)
    return tuple(dict.fromkeys(name for name in names if _possible(name)))


def _possible(name: str) -> bool:
    labels = name.removeprefix("*.").split(".")
    return len(name) <= 253 and all(map(LABEL.fullmatch, labels))  # noqa: PLR2004 - RFC 1035


def _issuer(own: x509.Certificate) -> str:
    """The issuer as printable text, cut to `MAX_ISSUER_CHARACTERS`. Empty if it is invalid."""
    try:
        said = own.issuer.rfc4514_string()
    except BROKEN:
        return ""
    return "".join(sign if sign.isprintable() else " " for sign in said)[:ISSUER]


def _for_servers(own: x509.Certificate) -> bool:
    """True if the extended key usage allows TLS servers or is missing."""
    try:
        found = own.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, *BROKEN):
        return True
    good = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return not good.isdisjoint(found.value)


def _tried(made: Fitting) -> None:
    """Raise Invalid if OpenSSL refuses the certificate, for example because of an MD5 signature."""
    try:
        loaded(made.chain, made.key)
    except ssl.SSLError as problem:
        reason = (problem.reason or "no reason given").lower().replace("_", " ")
        text = f"it cannot be used for TLS: {reason}"
        raise Invalid(text, constraint="unusable", path=["cert"]) from None


def spki_of(pem: str) -> str | None:
    """SHA-256 of the public key of the first certificate in a PEM text. None without one."""
    first = next(
        (match[0] for match in BLOCK.finditer(pem) if match[1].endswith("CERTIFICATE")), None
    )
    try:
        own = x509.load_pem_x509_certificate((first or "").encode())
    except BROKEN:
        return None
    return _digest(own)
