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

from mail.addresses.address_syntax import ascii_domain, normalize_and_validate_domain
from mail.tls.server_tls import context_from_pem
from models.errors import InvalidInput
from models.validation_constraints import ValidationConstraint

MAX_PEM_CHARACTERS = 1 << 16  # in one field
MAX_CHAIN_LENGTH = 10
MAX_CERTIFICATES = 20  # in the input, from which the chain is built
MAX_NAMES = 500  # in one certificate
MAX_ACME_NAMES = 100  # authorities accept no more
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # larger keys make handshakes too expensive
ALLOWED_CURVES = ("secp256r1", "secp384r1", "secp521r1")
MAX_ISSUER_CHARACTERS = 300
PEM_BLOCK = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----.*?-----END \1-----", re.DOTALL)
LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
PARSE_ERRORS = (ValueError, TypeError, UnsupportedAlgorithm)  # what parsing raises


@dataclass(frozen=True, slots=True)
class CertificateInput:
    """PEM texts of a certificate, its key and intermediate certificates.

    The key can be in the text of the certificate.
    """

    certificate_pem: str
    key_pem: str | None = field(default=None, repr=False)
    ca_pems: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class CertificateWithKey:
    """A private key with its certificate chain and the values of the certificate."""

    key_pem: str = field(repr=False)  # PKCS #8
    chain_pem: str  # the certificate of the key first
    dns_names: tuple[str, ...]  # in ASCII
    sha1: str
    sha256: str
    spki_sha256: str
    issuer: str
    not_before: datetime
    not_after: datetime
    is_for_servers: bool  # allowed by the extended key usage
    unused_count: int  # input certificates that are not in the chain


def parse_server_name(name_text: str) -> str:
    """A server name in ASCII and lower case. Raises InvalidInput."""
    name = ascii_domain(normalize_and_validate_domain(name_text, path="serverName"))
    if not all(LABEL.fullmatch(label) for label in name.split(".")):
        raise InvalidInput(
            "Must be the name of a server.",
            constraint=ValidationConstraint.DOMAIN,
            path=["serverName"],
        )
    if name.rpartition(".")[2].isdecimal():
        raise InvalidInput(
            "Must be a name, not an IP address.",
            constraint=ValidationConstraint.DOMAIN,
            path=["serverName"],
        )
    return name


def parse_public_name(name_text: str) -> str:
    """A server name that an authority can know: it has a dot. Raises InvalidInput."""
    name = parse_server_name(name_text)
    if "." not in name:
        name_text = "ACME requires a name with a dot."
        raise InvalidInput(name_text, constraint=ValidationConstraint.DOMAIN, path=["serverName"])
    return name


def parse_additional_acme_names(server_name: str, texts: Sequence[str]) -> list[str]:
    """The additional names for an ACME certificate, without duplicates, in order.

    Raises InvalidInput with the index of an invalid name, or if there are too many.
    """
    path = ["acmeNames"]
    limit_text = f"At most {MAX_ACME_NAMES} names are allowed, including the name of the server."
    if len(texts) > MAX_ACME_NAMES:
        raise InvalidInput(limit_text, constraint=ValidationConstraint.MAX, path=path)
    names: dict[str, None] = {}
    for index, text in enumerate(texts):
        if text.strip().startswith("*."):
            problem = "ACME does not support wildcards, since they can't be validated over HTTP."
            raise InvalidInput(
                problem, constraint=ValidationConstraint.WILDCARD, path=path, index=index
            )
        try:
            names[parse_public_name(text)] = None
        except InvalidInput as refusal:
            constraint = refusal.constraint
            raise InvalidInput(
                refusal.message, constraint=constraint, path=path, index=index
            ) from None
    names.pop(server_name, None)
    if len(names) >= MAX_ACME_NAMES:
        raise InvalidInput(limit_text, constraint=ValidationConstraint.MAX, path=path)
    return list(names)


def wildcard_name(name: str) -> str:
    """The wildcard name that covers this name: `*` for its first label (RFC 6125)."""
    return f"*.{name.partition('.')[2]}"


def covers_name(certificate_names: Iterable[str], name: str) -> bool:
    """True if a certificate with these names is valid for this name."""
    return not {name, wildcard_name(name)}.isdisjoint(certificate_names)


def validate_certificate(
    certificate: CertificateInput, old_key_pem: str | None = None
) -> CertificateWithKey:
    """Parse and validate a certificate, and build its chain.

    Without a key in the input, the old key is used if it matches. Raises InvalidInput with field
    and rule if the certificate can't be used.
    """
    pem_blocks = list(_pem_blocks(certificate.certificate_pem, "cert"))
    given_key = _find_key(certificate, pem_blocks)
    if given_key is None and old_key_pem is None:
        raise InvalidInput(
            "The private key is missing.",
            constraint=ValidationConstraint.REQUIRED,
            path=["privateKey"],
        )
    key = _parse_private_key(given_key or old_key_pem or "")
    certificates = _parse_certificates(pem_blocks, "cert")
    if not certificates:
        problem = "The PEM text has no certificate: it must begin with -----BEGIN CERTIFICATE-----."
        raise InvalidInput(problem, constraint=ValidationConstraint.PEM, path=["cert"])
    for index, problem in enumerate(certificate.ca_pems):
        ca_certificates = _parse_certificates(list(_pem_blocks(problem, "ca", index)), "ca", index)
        if not ca_certificates:
            raise InvalidInput(
                "The PEM text has no certificate.",
                constraint=ValidationConstraint.PEM,
                path=["ca"],
                index=index,
            )
        certificates += ca_certificates
    if len(certificates) > MAX_CERTIFICATES:
        raise InvalidInput(
            f"The PEM text has at most {MAX_CERTIFICATES} certificates.",
            constraint=ValidationConstraint.MAX,
            path=["cert"],
        )
    public_key_der = _public_key_der(key.public_key())
    leaf = next(
        (
            candidate
            for candidate in certificates
            if _public_key_der(candidate.public_key()) == public_key_der
        ),
        None,
    )
    if leaf is None:
        problem = "The private key does not match the certificate."
        raise InvalidInput(
            problem,
            constraint=ValidationConstraint.MISMATCH,
            path=["privateKey" if given_key else "cert"],
        )
    chain = _build_chain(leaf, certificates)
    unused_count = len(
        {candidate.fingerprint(hashes.SHA256()) for candidate in certificates}
    ) - len(chain)
    result = _certificate_with_matching_key(key, leaf, chain, unused_count)
    _require_loadable_by_openssl(result)
    return result


def _find_key(certificate: CertificateInput, pem_blocks: Sequence[tuple[str, str]]) -> str | None:
    """The private key in the input, as PEM. None if there is none. Raises InvalidInput."""
    if certificate.key_pem is not None:
        keys = [
            pem
            for kind, pem in _pem_blocks(certificate.key_pem, "privateKey")
            if kind.endswith("KEY")
        ]
        if not keys:
            text = (
                "The PEM text has no private key: it must begin with -----BEGIN PRIVATE KEY-----."
            )
            raise InvalidInput(text, constraint=ValidationConstraint.PEM, path=["privateKey"])
    else:
        keys = [pem for kind, pem in pem_blocks if kind.endswith("PRIVATE KEY")]
    if len(keys) > 1:
        raise InvalidInput(
            "The PEM text has more than one private key.",
            constraint=ValidationConstraint.MAX,
            path=["privateKey"],
        )
    return keys[0] if keys else None


def _pem_blocks(pem_text: str, field: str, index: int | None = None) -> Iterator[tuple[str, str]]:
    """The type and text of each PEM block. Raises InvalidInput if the text is too long."""
    if len(pem_text) > MAX_PEM_CHARACTERS:
        words = f"The PEM text has at most {MAX_PEM_CHARACTERS} characters."
        raise InvalidInput(words, constraint=ValidationConstraint.LENGTH, path=[field], index=index)
    for match in PEM_BLOCK.finditer(pem_text):
        yield match[1], match[0]


def _parse_certificates(
    pem_blocks: Sequence[tuple[str, str]], field: str, index: int | None = None
) -> list[x509.Certificate]:
    """The certificates among the PEM blocks. Raises InvalidInput."""
    try:
        pems = [pem for kind, pem in pem_blocks if kind.endswith("CERTIFICATE")]
        return [
            x509.load_pem_x509_certificate(pem.encode()) for pem in pems[: MAX_CERTIFICATES + 1]
        ]
    except PARSE_ERRORS:
        text = "The certificate can't be parsed."
        raise InvalidInput(
            text, constraint=ValidationConstraint.PEM, path=[field], index=index
        ) from None


PrivateKey = (
    rsa.RSAPrivateKey
    | ec.EllipticCurvePrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
)


def _parse_private_key(pem: str) -> PrivateKey:
    """Parse a private key. Raises InvalidInput if it is encrypted, weak or of another type."""
    path = ["privateKey"]
    if "ENCRYPTED" in pem:
        text = "The private key is encrypted: send it without a passphrase. It is stored encrypted."
        raise InvalidInput(text, constraint=ValidationConstraint.ENCRYPTED_KEY, path=path)
    try:
        key = serialization.load_pem_private_key(pem.encode(), password=None)
    except PARSE_ERRORS:
        raise InvalidInput(
            "The private key can't be parsed.", constraint=ValidationConstraint.PEM, path=path
        ) from None
    if isinstance(key, rsa.RSAPrivateKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            text = f"An RSA key must have from {MIN_RSA_BITS} to {MAX_RSA_BITS} bits."
            raise InvalidInput(text, constraint=ValidationConstraint.WEAK, path=path)
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in ALLOWED_CURVES:
        return key
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        return key
    text = "The key must be RSA, ECDSA (P-256, P-384, P-521) or EdDSA."
    raise InvalidInput(text, constraint=ValidationConstraint.WEAK, path=path)


def _spki_sha256(certificate: x509.Certificate) -> str:
    """SHA-256 of the public key of a certificate, in hexadecimal."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(_public_key_der(certificate.public_key()))
    return digest.finalize().hex()


def _public_key_der(public_key: PublicKeyTypes) -> bytes:
    """The SubjectPublicKeyInfo in DER. Empty if it can't be encoded."""
    try:
        return public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except PARSE_ERRORS:
        return b""


def _build_chain(
    leaf: x509.Certificate, certificates: Sequence[x509.Certificate]
) -> list[x509.Certificate]:
    """The chain that begins with the leaf, as far as the issuers are known."""
    chain = [leaf]
    while len(chain) < MAX_CHAIN_LENGTH:
        issuers = (
            candidate
            for candidate in certificates
            if candidate not in chain and _is_issued_by(chain[-1], candidate)
        )
        if (issuer := next(issuers, None)) is None:
            break
        chain.append(issuer)
    return chain


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """True if the issuer has signed the certificate."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*PARSE_ERRORS, InvalidSignature):
        return False
    return True


def _certificate_with_matching_key(
    private_key: PrivateKey,
    leaf: x509.Certificate,
    chain: Sequence[x509.Certificate],
    unused_count: int,
) -> CertificateWithKey:
    """The result of a validation. Raises InvalidInput if the certificate has too many names."""
    no_encryption, key_format = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    names = _dns_names(leaf)
    if len(names) > MAX_NAMES:
        raise InvalidInput(
            f"The certificate has at most {MAX_NAMES} names.",
            constraint=ValidationConstraint.MAX,
            path=["cert"],
        )
    return CertificateWithKey(
        private_key.private_bytes(Encoding.PEM, key_format, no_encryption).decode(),
        "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in chain),
        names,
        leaf.fingerprint(hashes.SHA1()).hex(),  # noqa: S303 - shown beside SHA-256
        leaf.fingerprint(hashes.SHA256()).hex(),
        _spki_sha256(leaf),
        _issuer_text_or_empty(leaf),
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        _is_for_servers(leaf),
        unused_count,
    )


def _dns_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The DNS names of a certificate. The common name counts only without others (RFC 6125)."""
    names_: list[str]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names_ = extension.value.get_values_for_type(x509.DNSName)
    except (x509.ExtensionNotFound, *PARSE_ERRORS):
        common_names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        names_ = [str(attribute.value) for attribute in common_names]
    names = (name.lower().rstrip(".") for name in names_)
    return tuple(dict.fromkeys(name for name in names if _is_valid_name(name)))


def _is_valid_name(name: str) -> bool:
    labels = name.removeprefix("*.").split(".")
    return len(name) <= 253 and all(map(LABEL.fullmatch, labels))  # noqa: PLR2004 - RFC 1035


def _issuer_text_or_empty(certificate: x509.Certificate) -> str:
    """The issuer as printable text, cut to `MAX_ISSUER_CHARACTERS`. Empty if it is invalid."""
    try:
        text = certificate.issuer.rfc4514_string()
    except PARSE_ERRORS:
        return ""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:MAX_ISSUER_CHARACTERS]


def _is_for_servers(certificate: x509.Certificate) -> bool:
    """True if the extended key usage allows TLS servers or is missing."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage)
    except (x509.ExtensionNotFound, *PARSE_ERRORS):
        return True
    server_usages = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
    return not server_usages.isdisjoint(extension.value)


def _require_loadable_by_openssl(certificate: CertificateWithKey) -> None:
    """Raise InvalidInput if OpenSSL refuses the certificate, such as one with an MD5 signature."""
    try:
        context_from_pem(certificate.chain_pem, certificate.key_pem)
    except ssl.SSLError as problem:
        reason = (problem.reason or "no reason given").lower().replace("_", " ")
        text = f"The certificate can't be used for TLS: {reason}."
        raise InvalidInput(
            text, constraint=ValidationConstraint.UNUSABLE_CERTIFICATE, path=["cert"]
        ) from None


def first_spki_sha256(pem: str) -> str | None:
    """SHA-256 of the public key of the first certificate in a PEM text. None without one."""
    block = next(
        (match[0] for match in PEM_BLOCK.finditer(pem) if match[1].endswith("CERTIFICATE")), None
    )
    try:
        certificate = x509.load_pem_x509_certificate((block or "").encode())
    except PARSE_ERRORS:
        return None
    return _spki_sha256(certificate)
