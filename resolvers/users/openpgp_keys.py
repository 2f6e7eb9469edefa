"""OpenPGP public keys of users: validate a key and read its properties."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Any

from mail.storage import openpgp_short_rsa
from models.errors import Invalid
from models.runtime.environment import World
from resolvers.context import Context

LONGEST = 128 * 1024  # characters
BEGIN = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An OpenPGP public key in ASCII armor, with its properties."""

    armored: str
    fingerprint: str  # lower case, hex
    name: str | None = None
    address: str | None = None
    expires_at: datetime | None = None
    is_short: bool = False  # shorter than OpenPGP programs call secure

    @property
    def info(self) -> dict[str, Any]:
        """The properties of the key, as stored in `users.key_info`."""
        return {
            "fingerprint": self.fingerprint,
            "name": self.name,
            "address": self.address,
            "expires_at": self.expires_at and self.expires_at.isoformat(),
        }


async def checked(world: World, text: str, *, path: Sequence[str] = ("pubKey",)) -> PublicKey:
    """Return the key if it can encrypt. Raises Invalid if it can't, or is revoked or expired.

    Accepts the keys that Sequoia's policy accepts, and RSA from 1,024 bits. A secret key is stored
    without its secret part.
    """
    if len(text) > LONGEST:
        raise Invalid(f"at most {LONGEST} characters", constraint="max", path=path)
    if BEGIN not in text or "\0" in text:
        raise Invalid("not an armoured OpenPGP public key", constraint="key", path=path)
    key, problem = await asyncio.to_thread(_read, text, world.now())
    if key is None or "\0" in key.armored or "\0" in f"{key.name}{key.address}":
        raise Invalid(problem or "no NUL", constraint="key", path=path)
    if key.expires_at and key.expires_at <= world.now():
        raise Invalid("the key is over", constraint="expired", path=path)
    return key


def warn(ctx: Context, key: PublicKey, *, path: Sequence[str]) -> None:
    """Add a warning to the payload if the key is too short."""
    if key.is_short:
        text = "the key is accepted, but too short to be secure: RSA needs 2,048 bits"
        ctx.warn("WEAK_KEY", text, path=path)


def _read(text: str, now: datetime) -> tuple[PublicKey | None, str]:
    """Return the key and an empty text, or None and the reason why it can't be used."""
    import pysequoia  # noqa: PLC0415 - few servers need it, and it delays the start

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
        if short := _short(text, cert, now):
            return short, ""
        return None, "nothing can be encrypted to this key: it cannot, is over, or is too weak"
    name, address = parseaddr(names[0]) if names else ("", "")
    return PublicKey(
        str(cert),  # without a secret key
        cert.fingerprint,
        name or None,
        address or None,
        expires,
    ), ""


def _short(text: str, cert: Any, now: datetime) -> PublicKey | None:
    """Return a key that is too short for Sequoia's policy.

    None if mail can't be encrypted to it.
    """
    try:
        short = openpgp_short_rsa.read(text, now)
    except (RuntimeError, ValueError):
        return None
    if short is None:
        return None
    name, address = parseaddr(short.user_id)
    facts = (short.fingerprint, name or None, address or None, short.expires_at)
    return PublicKey(str(cert), *facts, is_short=True)
