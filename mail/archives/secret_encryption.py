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

KEY_DERIVATION = {"kdf": "scrypt", "n": 1 << 15, "r": 8, "p": 1, "cipher": "AES-256-GCM"}
KEY_BYTES = 32  # bytes of a key
SALT_BYTES = 16  # bytes
NONCE_BYTES = 12  # bytes (NIST SP 800-38D, section 8.2.2)


class ArchiveDecryptionError(Exception):
    """A secret can't be decrypted: another passphrase, another object, or damaged."""


@dataclass(frozen=True, slots=True)
class ArchiveCipher:
    """Encrypts and decrypts the secrets of an archive.

    Deriving the key takes 32 MiB of memory and CPU time.
    """

    salt: bytes
    key: bytes = field(repr=False)

    @classmethod
    def for_new_archive(cls, passphrase: str) -> "ArchiveCipher":
        """Return the cipher of a new archive with a random salt."""
        salt = secrets.token_bytes(SALT_BYTES)
        return cls(salt, _derive_key(salt, passphrase))

    @classmethod
    def from_derivation_record(cls, record: Mapping[str, Any], passphrase: str) -> "ArchiveCipher":
        """Return the cipher of an archive's record. Raises ArchiveDecryptionError.

        Only our own parameters are accepted: an archive of a stranger must not decide how much
        memory the key derivation takes.
        """
        if {name: record.get(name) for name in KEY_DERIVATION} != KEY_DERIVATION:
            raise ArchiveDecryptionError("The encryption of the archive is not supported.")
        salt = _decode_base64(record.get("salt"))
        if len(salt) != SALT_BYTES:
            raise ArchiveDecryptionError("The encryption of the archive is not supported.")
        return cls(salt, _derive_key(salt, passphrase))

    def derivation_record(self) -> dict[str, Any]:
        """Return the parameters and salt for the account record."""
        return {**KEY_DERIVATION, "salt": base64.b64encode(self.salt).decode()}

    def encrypt(self, text: str, context: bytes) -> str:
        """Encrypt a text for one context, in base64."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(self.key).encrypt(nonce, text.encode(), context)
        return base64.b64encode(nonce + sealed).decode()

    def decrypt(self, ciphertext: Any, context: bytes) -> str:
        """Decrypt a text that was encrypted for a context. Raises ArchiveDecryptionError."""
        raw = _decode_base64(ciphertext)
        try:
            return AESGCM(self.key).decrypt(raw[:NONCE_BYTES], raw[NONCE_BYTES:], context).decode()
        except (InvalidTag, ValueError) as problem:
            raise ArchiveDecryptionError(
                "The passphrase is wrong, or the secret is damaged or of another account."
            ) from problem


def _derive_key(salt: bytes, passphrase: str) -> bytes:
    key_derivation = Scrypt(salt=salt, length=KEY_BYTES, n=1 << 15, r=8, p=1)
    return key_derivation.derive(unicodedata.normalize("NFC", passphrase).encode())


def _decode_base64(text: Any) -> bytes:
    try:
        return base64.b64decode(text if isinstance(text, str) else "?", validate=True)
    except (binascii.Error, ValueError) as problem:
        raise ArchiveDecryptionError("The secret is not base64.") from problem
