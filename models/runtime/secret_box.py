"""Secrets that must be read again, such as seeds of codes: sealed with a key outside the store."""

import base64
import binascii
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

SIZE = 32  # bytes of a key: AES-256-GCM
NONCE = 12  # bytes (NIST SP 800-38D, section 8.2.2)


class Sealed(Exception):
    """It cannot be opened: sealed with a key we have not, for another place, or damaged."""


@dataclass(frozen=True, slots=True)
class Vault:
    """Seals texts with its newest key, and opens what any of its keys has sealed.

    `keys` are by name, the newest last. A sealed text is `name.nonce+text`, and holds for the
    place it was sealed for: moved to another row, it cannot be opened.
    """

    keys: Mapping[str, bytes] = field(repr=False)

    @classmethod
    def fresh(cls) -> "Vault":
        """One with a key of its own, lost with the process."""
        name, key = new_key()
        return cls({name: key})

    @property
    def newest(self) -> str:
        """The name of the key that seals."""
        return list(self.keys)[-1]

    def seal(self, text: str, place: str) -> str:
        """The text, for this place only: such as `totp:` and the account's key."""
        name, nonce = self.newest, secrets.token_bytes(NONCE)
        sealed = AESGCM(self.keys[name]).encrypt(nonce, text.encode(), place.encode())
        return f"{name}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, place: str) -> str:
        """The text that was sealed for this place; raises Sealed."""
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
        """What tells this key from others, and tells nothing of it."""
        return hmac.digest(self.keys[name], b"merganser vault", "sha256").hex()


def new_key() -> tuple[str, bytes]:
    """A key, and a name for it."""
    return secrets.token_hex(4), secrets.token_bytes(SIZE)
