"""Encryption of secrets that must be read again, with keys outside the database."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SIZE = 32  # bytes: AES-256-GCM
NONCE = 12  # bytes (NIST SP 800-38D, section 8.2.2)


class Sealed(Exception):
    """The text can't be decrypted: unknown key, another place, or damaged."""


@dataclass(frozen=True, slots=True)
class Vault:
    """Encrypts texts with its newest key, and decrypts them with any of its keys.

    `keys` are by name, the newest last. An encrypted text is `name.nonce+text`. It is valid for one
    place only: a copy in another row can't be decrypted.
    """

    keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def fresh(cls) -> "Vault":
        """Create a box with a new key, which is lost with the process."""
        name, key = new_key()
        return cls({name: key})

    @property
    def newest(self) -> str:
        """The name of the key that encrypts."""
        return list(self.keys)[-1]

    def seal(self, text: str, place: str) -> str:
        """Encrypt a text for one place, such as `totp:` and the user's id."""
        name, nonce = self.newest, secrets.token_bytes(NONCE)
        sealed = AESGCM(self.keys[name]).encrypt(nonce, text.encode(), place.encode())
        return f"{name}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, place: str) -> str:
        """Decrypt a text that was encrypted for this place. Raises DecryptionError."""
        name, _, text = sealed.partition(".")
        if name not in self.keys:
            raise Sealed(f"there is no key {name}")
        try:
            raw = base64.urlsafe_b64decode(text)
            opened = AESGCM(self.keys[name]).decrypt(raw[:NONCE], raw[NONCE:], place.encode())
        except (InvalidTag, ValueError, binascii.Error) as problem:
            raise Sealed("it was sealed for another place, or is damaged") from problem
        return opened.decode()

    def proof(self, name: str) -> str:
        """Return a hash that identifies a key and does not reveal it."""
        return hmac.digest(self.keys[name], b"merganser vault", "sha256").hex()


def new_key() -> tuple[str, bytes]:
    """Generate a key; return its name and its bytes."""
    return secrets.token_hex(4), secrets.token_bytes(SIZE)
