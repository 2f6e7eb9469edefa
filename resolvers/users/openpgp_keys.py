"""OpenPGP keys that accounts hand in: whether mail can be encrypted to one, and what it says."""

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
    """A key, armoured, and what it says."""

    armored: str
    fingerprint: str  # lower case, hex
    name: str | None = None
    address: str | None = None
    expires_at: datetime | None = None
    is_short: bool = False  # below what OpenPGP programs call secure

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
    """The key, if it can encrypt. Raises Invalid if it can't, or is secret, revoked or expired.

    Accepts what Sequoia's policy accepts, and RSA from 1,024 bits.
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
    """Tell the caller of a key that is too short."""
    if key.is_short:
        text = "the key is accepted, but too short to be secure: RSA needs 2,048 bits"
        ctx.warn("WEAK_KEY", text, path=path)


def _read(text: str, now: datetime) -> tuple[PublicKey | None, str]:
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
        if short := _short(text, cert, now):
            return short, ""
        return None, "nothing can be encrypted to this key: it cannot, is over, or is too weak"
    name, address = parseaddr(names[0]) if names else ("", "")
    return PublicKey(
        str(cert),  # without the secret key, if that was here
        cert.fingerprint,
        name or None,
        address or None,
        expires,
    ), ""


def _short(text: str, cert: Any, now: datetime) -> PublicKey | None:
    """A key that is too short for Sequoia's policy, if mail can be encrypted to it."""
    try:
        short = openpgp_short_rsa.read(text, now)
    except (RuntimeError, ValueError):
        return None
    if short is None:
        return None
    name, address = parseaddr(short.user_id)
    facts = (short.fingerprint, name or None, address or None, short.expires_at)
    return PublicKey(str(cert), *facts, is_short=True)
