"""Secrets in an archive: sealed with a key that a passphrase makes, each for what it belongs to."""

import base64
import binascii
import secrets
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

MADE_BY = {"kdf": "scrypt", "n": 1 << 15, "r": 8, "p": 1, "cipher": "AES-256-GCM"}
SIZE = 32  # bytes of a key
SALT = 16  # bytes
NONCE = 12  # bytes (NIST SP 800-38D, section 8.2.2)


class Locked(Exception):
    """It cannot be opened: another passphrase, sealed for something else, or damaged."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Seals the secrets of an archive, or opens them. What is made takes 32 MiB, and a while."""

    salt: bytes
    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls, passphrase: str) -> "Lock":
        """A lock for another archive."""
        salt = secrets.token_bytes(SALT)
        return cls(salt, _key(salt, passphrase))

    @classmethod
    def told(cls, record: Mapping[str, Any], passphrase: str) -> "Lock":
        """The lock that an archive tells of; Locked where it is none of ours.

        An archive may be anybody's: it does not say how much memory a key takes.
        """
        if {name: record.get(name) for name in MADE_BY} != MADE_BY:
            raise Locked("made in a way that we do not know")
        salt = _bytes(record.get("salt"))
        if len(salt) != SALT:
            raise Locked("made in a way that we do not know")
        return cls(salt, _key(salt, passphrase))

    def record(self) -> dict[str, Any]:
        """What the archive tells of it."""
        return {**MADE_BY, "salt": base64.b64encode(self.salt).decode()}

    def seal(self, text: str, place: bytes) -> str:
        """The text, for this place alone."""
        nonce = secrets.token_bytes(NONCE)
        sealed = AESGCM(self.key).encrypt(nonce, text.encode(), place)
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: Any, place: bytes) -> str:
        """The text that was sealed for this place; Locked."""
        raw = _bytes(sealed)
        try:
            return AESGCM(self.key).decrypt(raw[:NONCE], raw[NONCE:], place).decode()
        except (InvalidTag, ValueError) as problem:
            raise Locked("another passphrase, another place, or damaged") from problem


def _key(salt: bytes, passphrase: str) -> bytes:
    made = Scrypt(salt=salt, length=SIZE, n=1 << 15, r=8, p=1)
    return made.derive(unicodedata.normalize("NFC", passphrase).encode())


def _bytes(text: Any) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError) as problem:
        raise Locked("no base64") from problem
