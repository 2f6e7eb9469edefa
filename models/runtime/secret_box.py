"""Encryption of secrets that must be read again, with keys outside the database."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_SIZE = 32  # bytes: AES-256-GCM
NONCE_SIZE = 12  # bytes (NIST SP 800-38D, section 8.2.2)


class DecryptionError(Exception):
    """The text can't be decrypted: unknown key, another place, or damaged."""


@dataclass(frozen=True, slots=True)
class SecretBox:
    """Encrypts texts with its newest key, and decrypts them with any of its keys.

    `keys` are by name, the newest last. An encrypted text is `name.nonce+text`. It is valid for one
    place only: a copy in another row can't be decrypted.
    """

    keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def with_new_key(cls) -> "SecretBox":
        """Create a box with a new key, which is lost with the process."""
        name, key = generate_key()
        return cls({name: key})

    @property
    def newest_key_name(self) -> str:
        """The name of the key that encrypts."""
        return list(self.keys)[-1]

    def encrypt(self, text: str, encryption_context: str) -> str:
        """Encrypt a text for one place, such as `totp:` and the user's id."""
        name, nonce = self.newest_key_name, secrets.token_bytes(NONCE_SIZE)
        sealed = AESGCM(self.keys[name]).encrypt(nonce, text.encode(), encryption_context.encode())
        return f"{name}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def decrypt(self, encrypted: str, encryption_context: str) -> str:
        """Decrypt a text that was encrypted for this place. Raises DecryptionError."""
        name, _, text = encrypted.partition(".")
        if name not in self.keys:
            raise DecryptionError(f"The key {name} is missing.")
        try:
            raw = base64.urlsafe_b64decode(text)
            opened = AESGCM(self.keys[name]).decrypt(
                raw[:NONCE_SIZE], raw[NONCE_SIZE:], encryption_context.encode()
            )
        except (InvalidTag, ValueError, binascii.Error) as problem:
            raise DecryptionError(
                "The secret belongs to another object, or is damaged."
            ) from problem
        return opened.decode()

    def key_fingerprint(self, key_name: str) -> str:
        """Return a hash that identifies a key and does not reveal it."""
        return hmac.digest(self.keys[key_name], b"merganser vault", "sha256").hex()


def generate_key() -> tuple[str, bytes]:
    """Generate a key; return its name and its bytes."""
    return secrets.token_hex(4), secrets.token_bytes(KEY_SIZE)
