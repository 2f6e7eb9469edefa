"""Public DKIM keys in DNS records (RFC 6376, section 3.6.1; RFC 8463)."""

import base64
import binascii
import re
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from mail.authentication.dns_queries import MessageDns
from mail.authentication.header_fields import MalformedInput, parse_tags, without_white_space

MIN_RSA_BITS, MAX_RSA_BITS = 1024, 4096  # bits of an RSA key (RFC 8301)
MAX_NAME_LENGTH = 253  # characters of a name in DNS
MAX_EXPONENT_BITS = 33  # bits of the RSA exponent: a longer one only costs time

_WORD = re.compile(r"[A-Za-z0-9*_-]+")
_LABELS = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*")


class KeyNotFound(Exception):
    """No usable public key was found for a signature."""


class WeakKey(Exception):
    """The public key is too weak to be accepted."""


@dataclass(frozen=True, slots=True)
class DkimPublicKey:
    """A public key and the restriction of its use."""

    key: RSAPublicKey | Ed25519PublicKey
    requires_exact_identity: bool = False  # i= must be of the domain itself

    def is_valid_signature(self, algorithm: str, signature: bytes, digest: bytes) -> bool:
        """True if this is the signature of a SHA-256 digest with this key."""
        try:
            if isinstance(self.key, RSAPublicKey):
                if algorithm != "rsa-sha256":
                    return False
                self.key.verify(signature, digest, PKCS1v15(), Prehashed(SHA256()))
            else:
                if algorithm != "ed25519-sha256":
                    return False
                self.key.verify(signature, digest)
        except InvalidSignature:
            return False
        return True


def is_domain(text: str) -> bool:
    """True if the text can be the domain or the selector of a signature."""
    return len(text) <= MAX_NAME_LENGTH and bool(_LABELS.fullmatch(text))


async def find_key(dns: MessageDns, selector: str, domain: str) -> DkimPublicKey:
    """Look up the public key of a selector.

    Raises KeyNotFound, WeakKey, DnsUnavailable or DnsLimitExceeded.
    """
    records = await dns.query_txt(f"{selector}._domainkey.{domain}")
    if not records:
        raise KeyNotFound("no key for signature")
    return parse_dkim_key_record(records[0])


def parse_dkim_key_record(record: str) -> DkimPublicKey:
    """Parse the public key of a TXT record. Raises KeyNotFound or WeakKey."""
    try:
        tags = parse_tags(record.encode(errors="surrogateescape"))
    except MalformedInput as problem:
        raise KeyNotFound("invalid key record") from problem
    if tags.get("v", "DKIM1") != "DKIM1" or ("v" in tags and next(iter(tags)) != "v"):
        raise KeyNotFound("unsupported key record version")
    if "sha256" not in _lower_case_words(tags.get("h", "sha256")):
        raise KeyNotFound("key does not allow SHA-256")
    if not {"*", "email"} & _lower_case_words(tags.get("s", "*")):
        raise KeyNotFound("key is not for email")
    text = without_white_space(tags.get("p", ""))
    if not text:
        raise KeyNotFound("key revoked" if "p" in tags else "no key for signature")
    try:
        der = base64.b64decode(text, validate=True)
        key = _load_public_key(tags.get("k", "rsa").lower(), der)
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as problem:
        raise KeyNotFound("key can't be parsed") from problem
    return DkimPublicKey(key, "s" in _lower_case_words(tags.get("t", "")))


def _lower_case_words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _load_public_key(key_type: str, der: bytes) -> RSAPublicKey | Ed25519PublicKey:
    if key_type == "ed25519":
        return Ed25519PublicKey.from_public_bytes(der)
    if key_type != "rsa":
        raise KeyNotFound("unsupported key type")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it

    key = serialization.load_der_public_key(der)
    if not isinstance(key, RSAPublicKey):
        raise KeyNotFound("unsupported key type")
    if key.key_size < MIN_RSA_BITS:
        raise WeakKey(f"RSA key shorter than {MIN_RSA_BITS} bits")
    if key.key_size > MAX_RSA_BITS or key.public_numbers().e.bit_length() > MAX_EXPONENT_BITS:
        raise WeakKey(f"RSA key longer than {MAX_RSA_BITS} bits")
    return key
