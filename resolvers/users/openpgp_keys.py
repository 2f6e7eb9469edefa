"""OpenPGP public keys of users: validate a key and read its properties."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parseaddr
from typing import Any, NamedTuple

from mail.storage import openpgp_short_rsa
from mail.storage.openpgp_packets import MalformedCertificate, certificate_from_armor
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.context import Context

MAX_LENGTH = 128 * 1024  # characters
ARMOR_BEGIN = "-----BEGIN PGP PUBLIC KEY BLOCK-----"


@dataclass(frozen=True, slots=True)
class OpenPgpPublicKey:
    """An OpenPGP public key in ASCII armor, with its properties."""

    armored: str
    fingerprint: str  # lower case, hex
    name: str | None = None
    address: str | None = None
    expires_at: datetime | None = None
    is_short: bool = False  # shorter than OpenPGP programs call secure

    @property
    def info(self) -> dict[str, Any]:
        """The properties of the key, as stored in `users.openpgp_key`."""
        return {
            "fingerprint": self.fingerprint,
            "name": self.name,
            "address": self.address,
            "expires_at": self.expires_at and self.expires_at.isoformat(),
        }


async def validate_public_key(
    environment: Environment, armored_key: str, *, path: Sequence[str] = ("openpgpPublicKey",)
) -> OpenPgpPublicKey:
    """Return the key if it can encrypt. Raises InvalidInput if it can't, or is revoked or expired.

    Accepts the keys that Sequoia's policy accepts, and RSA from 1,024 bits. A secret key is stored
    without its secret part.
    """
    if len(armored_key) > MAX_LENGTH:
        raise InvalidInput(
            f"The key has at most {MAX_LENGTH:,} characters.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    if ARMOR_BEGIN not in armored_key or "\0" in armored_key:
        raise InvalidInput(
            "The key must be an ASCII-armored OpenPGP public key.",
            constraint=ValidationConstraint.KEY,
            path=path,
        )
    try:
        certificate = certificate_from_armor(armored_key)
    except MalformedCertificate as malformed:
        raise InvalidInput(
            "The key must be an ASCII-armored OpenPGP public key.",
            constraint=ValidationConstraint.KEY,
            path=path,
        ) from malformed
    key, problem = await asyncio.to_thread(
        _openpgp_key_or_reason_unusable, certificate, environment.now()
    )
    if key is None or "\0" in key.armored or "\0" in f"{key.name}{key.address}":
        raise InvalidInput(
            problem or "The key must not contain NUL.",
            constraint=ValidationConstraint.KEY,
            path=path,
        )
    if key.expires_at and key.expires_at <= environment.now():
        raise InvalidInput(
            "The key has expired.", constraint=ValidationConstraint.EXPIRED, path=path
        )
    return key


def warn_if_short(ctx: Context, key: OpenPgpPublicKey, *, path: Sequence[str]) -> None:
    """Add a warning to the payload if the key is too short."""
    if key.is_short:
        text = "The key was stored, but is too short to be secure: RSA requires 2,048 bits."
        ctx.add_warning(WarningCode.WEAK_KEY, text, path=path)


class _ParsedOpenpgpKey(NamedTuple):
    """A parsed key, or None with the reason why it can't be used."""

    key: OpenPgpPublicKey | None
    reason_unusable: str


def _openpgp_key_or_reason_unusable(certificate: bytes, now: datetime) -> _ParsedOpenpgpKey:
    """Return the key and an empty text, or None and the reason why it can't be used."""
    import pysequoia  # noqa: PLC0415 - few servers need it, and it delays the start

    try:
        cert = pysequoia.Cert.from_bytes(certificate)
    except (RuntimeError, ValueError):
        return _ParsedOpenpgpKey(None, "The key must be an ASCII-armored OpenPGP public key.")
    try:
        if cert.is_revoked:
            return _ParsedOpenpgpKey(None, "The key is revoked.")
        pysequoia.encrypt(b"a trial", recipients=[cert])
        expires_at, user_ids = cert.expiration, [str(user_id) for user_id in cert.user_ids]
    except RuntimeError:
        if short_key := _parse_short_key(certificate, cert, now):
            return _ParsedOpenpgpKey(short_key, "")
        return _ParsedOpenpgpKey(
            None,
            "The key can't be used for encryption: it has no valid encryption subkey, "
            "is expired or is too weak.",
        )
    name, address = parseaddr(user_ids[0]) if user_ids else ("", "")
    return _ParsedOpenpgpKey(
        OpenPgpPublicKey(
            str(cert),  # without a secret key
            cert.fingerprint,
            name or None,
            address or None,
            expires_at,
        ),
        "",
    )


def _parse_short_key(certificate: bytes, cert: Any, now: datetime) -> OpenPgpPublicKey | None:
    """Return a key that is too short for Sequoia's policy.

    None if mail can't be encrypted to it.
    """
    try:
        short = openpgp_short_rsa.parse_encryption_key_or_none(certificate, now)
    except (RuntimeError, ValueError):
        return None
    if short is None:
        return None
    name, address = parseaddr(short.user_id)
    properties = (short.fingerprint, name or None, address or None, short.expires_at)
    return OpenPgpPublicKey(str(cert), *properties, is_short=True)
