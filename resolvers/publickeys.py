"""OpenPGP keys that accounts hand in: whether mail can be encrypted to one, and what it says."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Any

from models.errors import Invalid
from models.world import World

LONGEST = 128 * 1024  # characters
BEGIN = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key, armoured, and what it says."""

    armored: str
    fingerprint: str  # lower case, hex
    name: str | None = None
    address: str | None = None
    expires_at: datetime | None = None

    @property
    def info(self) -> dict[str, Any]:
        """What it says, as `users.key_info` keeps it."""
        return {
            "fingerprint": self.fingerprint,
            "name": self.name,
            "address": self.address,
            "expires_at": self.expires_at and self.expires_at.isoformat(),
        }


async def checked(world: World, text: str, *, path: Sequence[str] = ("pubKey",)) -> PublicKey:
    """The key, if it can encrypt; Invalid where it is none, secret, weak, revoked or over.

    What is weak, RSA of 1024 bits and less among it, is what Sequoia's policy says.
    """
    if len(text) > LONGEST:
        raise Invalid(f"at most {LONGEST} characters", constraint="max", path=path)
    if BEGIN not in text or "\0" in text:
        raise Invalid("not an armoured OpenPGP public key", constraint="key", path=path)
    key, problem = await asyncio.to_thread(_read, text)
    if key is None or "\0" in key.armored or "\0" in f"{key.name}{key.address}":
        raise Invalid(problem or "no NUL", constraint="key", path=path)
    if key.expires_at and key.expires_at <= world.now():
        raise Invalid("the key is over", constraint="expired", path=path)
    return key


def _read(text: str) -> tuple[PublicKey | None, str]:
    """The key, or else why it is none."""
    import pysequoia  # noqa: PLC0415 - few need it, and all wait for the start

    try:
        cert = pysequoia.Cert.from_bytes(text.encode())
    except (RuntimeError, ValueError):
        return None, "not an armoured OpenPGP public key"
    try:
        if cert.is_revoked:
            return None, "the key is revoked"
        pysequoia.encrypt(b"a trial", recipients=[cert])
        expires, names = cert.expiration, [str(one) for one in cert.user_ids]
    except RuntimeError:
        return None, "nothing can be encrypted to this key: it cannot, is over, or is too weak"
    name, address = parseaddr(names[0]) if names else ("", "")
    return PublicKey(
        str(cert),  # without the secret key, if that was here
        cert.fingerprint,
        name or None,
        address or None,
        expires,
    ), ""
