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

from mail.authentication.dns_queries import Names
from mail.authentication.header_fields import Malformed, squeezed, tags

SHORTEST, LONGEST = 1024, 4096  # bits of an RSA key (RFC 8301)
NAME_MAX = 253  # characters of a name in DNS
EXPONENT = 33  # bits of the RSA exponent: a longer one only costs time

_WORD = re.compile(r"[A-Za-z0-9*_-]+")
_LABELS = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_-]+)*")


class NoKey(Exception):
    """No usable public key was found for a signature."""


class Weak(Exception):
    """The public key is too weak to be accepted."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key and the restriction of its use."""

    key: RSAPublicKey | Ed25519PublicKey
    strict: bool = False  # i= must be of the domain itself

    def proves(self, algorithm: str, signature: bytes, digest: bytes) -> bool:
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
    return len(text) <= NAME_MAX and bool(_LABELS.fullmatch(text))


async def published(names: Names, selector: str, domain: str) -> PublicKey:
    """Look up the public key of a selector.

    Raises KeyNotFound, WeakKey, DnsUnavailable or DnsLimitExceeded.
    """
    records = await names.texts(f"{selector}._domainkey.{domain}")
    if not records:
        raise NoKey("no key")
    return parsed(records[0])


def parsed(record: str) -> PublicKey:
    """Parse the public key of a TXT record. Raises KeyNotFound or WeakKey."""
    try:
        given = tags(record.encode(errors="surrogateescape"))
    except Malformed as problem:
        raise NoKey("no key record") from problem
    if given.get("v", "DKIM1") != "DKIM1" or ("v" in given and next(iter(given)) != "v"):
        raise NoKey("no key record of version 1")
    if "sha256" not in _words(given.get("h", "sha256")):
        raise NoKey("a key for another hash")
    if not {"*", "email"} & _words(given.get("s", "*")):
        raise NoKey("a key for another service")
    text = squeezed(given.get("p", ""))
    if not text:
        raise NoKey("the key is revoked" if "p" in given else "no key")
    try:
        der = base64.b64decode(text, validate=True)
        key = _loaded(given.get("k", "rsa").lower(), der)
    except (ValueError, binascii.Error, UnsupportedAlgorithm) as problem:
        raise NoKey("no key that can be read") from problem
    return PublicKey(key, "s" in _words(given.get("t", "")))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def _loaded(kind: str, der: bytes) -> RSAPublicKey | Ed25519PublicKey:
    if kind == "ed25519":
        return Ed25519PublicKey.from_public_bytes(der)
    if kind != "rsa":
        raise NoKey("a key of another kind")
    from cryptography.hazmat.primitives import serialization  # noqa: PLC0415 - few need it

    key = serialization.load_der_public_key(der)
    if not isinstance(key, RSAPublicKey):
        raise NoKey("a key of another kind")
    if key.key_size < SHORTEST:
        raise Weak(f"a key of less than {SHORTEST} bits")
    if key.key_size > LONGEST or key.public_numbers().e.bit_length() > EXPONENT:
        raise Weak(f"a key of more than {LONGEST} bits")
    return key
