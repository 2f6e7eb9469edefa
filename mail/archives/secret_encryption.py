"""Encryption of secrets in an archive with a key derived from a passphrase.

Each secret is bound to the object that it belongs to.
"""

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
    """A secret can't be decrypted: another passphrase, another object, or damaged."""


@dataclass(frozen=True, slots=True)
class Lock:
    """Encrypts and decrypts the secrets of an archive.

    Deriving the key takes 32 MiB of memory and CPU time.
    """

    salt: bytes
    key: bytes = field(repr=False)

    @classmethod
    def fresh(cls, passphrase: str) -> "Lock":
        """Return the cipher of a new archive with a random salt."""
        salt = secrets.token_bytes(SALT)
        return cls(salt, _key(salt, passphrase))

    @classmethod
    def told(cls, record: Mapping[str, Any], passphrase: str) -> "Lock":
        """Return the cipher of an archive's record. Raises ArchiveDecryptionError.

        Only our own parameters are accepted: an archive of a stranger must not decide how much
        memory the key derivation takes.
        """
        if {name: record.get(name) for name in MADE_BY} != MADE_BY:
            raise Locked("made in a way that we do not know")
        salt = _bytes(record.get("salt"))
        if len(salt) != SALT:
            raise Locked("made in a way that we do not know")
        return cls(salt, _key(salt, passphrase))

    def record(self) -> dict[str, Any]:
        """Return the parameters and salt for the account record."""
        return {**MADE_BY, "salt": base64.b64encode(self.salt).decode()}

    def seal(self, text: str, place: bytes) -> str:
        """Encrypt a text for one context, in base64."""
        nonce = secrets.token_bytes(NONCE)
        sealed = AESGCM(self.key).encrypt(nonce, text.encode(), place)
        return base64.b64encode(nonce + sealed).decode()

    def open(self, sealed: Any, place: bytes) -> str:
        """Decrypt a text that was encrypted for a context. Raises ArchiveDecryptionError."""
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
