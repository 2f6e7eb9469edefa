"""Time-based one-time passwords (TOTP, RFC 6238)."""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, delete, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.second_factors import TotpSecret
from models.errors import AuthenticationFailed, Conflict, InvalidInput
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

STEP_SECONDS = 30  # seconds
CODE_DIGITS = 6
SECRET_SIZE = 20  # bytes (RFC 4226, section 4: 160 bits)
IMPORTED_SECRET_SIZES = range(8, 129)  # bytes
MAX_LABEL_LENGTH = 64  # characters of a label or an issuer: both must fit into one QR code
PENDING_LIFETIME = timedelta(hours=6)  # in which a new secret must be proved
PRODUCT = "Merganser"


@dataclass(frozen=True, slots=True)
class NewTotpSecret:
    """A new TOTP secret, in the three forms that authenticators accept."""

    secret: str = field(repr=False)  # base32
    url: str = field(repr=False)  # otpauth:
    qr_code: str = field(repr=False)  # data URL of a PNG: the QR code of `url`


def code_at(secret: bytes, step: int) -> str:
    """Return the code of a time step: HOTP (RFC 4226, section 5.3) of its number."""
    digest = hmac.digest(secret, step.to_bytes(8, "big"), hashlib.sha1)
    start = digest[-1] & 0xF
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**CODE_DIGITS:0{CODE_DIGITS}}"


def step_at(time: datetime) -> int:
    """Return the number of the time step that contains this time."""
    return int(time.timestamp()) // STEP_SECONDS


def find_step_of_code(environment: Environment, secret: bytes, code: str) -> int | None:
    """Return the time step that this is the code of, within the tolerance of the clock; else None.

    If it is the code of several steps, returns the last.
    """
    current_step = step_at(environment.now())
    matching_step = None
    skew = environment.options.totp_drift_steps
    for step in range(current_step - skew, current_step + skew + 1):
        if hmac.compare_digest(code_at(secret, step), code):
            matching_step = step
    return matching_step


def normalize_totp_code_or_none(code: str) -> str | None:
    """Return a typed code without spaces as six digits; None if it has another form."""
    code = "".join(code.split()) if len(code) <= MAX_LABEL_LENGTH else ""
    return code if len(code) == CODE_DIGITS and code.isascii() and code.isdigit() else None


def decode_secret(text: str) -> bytes:
    """Decode a typed secret from base32 in any case, with or without spaces and hyphens.

    Raises InvalidInput if it is not base32 or has a wrong length.
    """
    normalized = "".join(text.split()).replace("-", "").rstrip("=").upper()
    try:
        secret = base64.b32decode(normalized + "=" * (-len(normalized) % 8))
    except (binascii.Error, ValueError) as problem:
        raise InvalidInput(
            "The secret must be base32.", constraint=ValidationConstraint.BASE32, path=["secret"]
        ) from problem
    if len(secret) not in IMPORTED_SECRET_SIZES:
        text = (
            f"The secret must have {IMPORTED_SECRET_SIZES[0]} to {IMPORTED_SECRET_SIZES[-1]} bytes."
        )
        raise InvalidInput(text, constraint=ValidationConstraint.LENGTH, path=["secret"])
    return secret


def secret_box_purpose(user_id: int) -> str:
    """Return the purpose that the secret box binds a user's TOTP secrets to."""
    return f"totp:{user_id}"


def _base32_from_secret(secret: bytes) -> str:
    return base64.b32encode(secret).decode().rstrip("=")


async def create_pending_secret(
    ctx: Context, session: AsyncSession, user: ColumnRow, label: str | None, issuer: str | None
) -> NewTotpSecret:
    """Create a pending secret in place of an older one. It must be proved within six hours."""
    names = [
        _validate_label(label, "label") or user.username,
        _validate_label(issuer, "issuer") or PRODUCT,
    ]
    secret = ctx.environment.random_bytes(SECRET_SIZE)
    encrypted = ctx.environment.secret_box.encrypt(
        _base32_from_secret(secret), secret_box_purpose(user.id)
    )
    await _upsert_totp_row(session, user.id, pending=encrypted, pending_at=ctx.environment.now())
    return _secret_for_authenticators(secret, *names)


def _validate_label(text: str | None, field: str) -> str | None:
    """Return a label or issuer. Raises InvalidInput if it is too long or has a colon."""
    if text and (len(text) > MAX_LABEL_LENGTH or not text.isprintable() or ":" in text):
        raise InvalidInput(
            f"The label has at most {MAX_LABEL_LENGTH} printable characters, without a colon.",
            constraint=ValidationConstraint.PATTERN,
            path=[field],
        )
    return text


def _secret_for_authenticators(secret: bytes, label: str, issuer: str) -> NewTotpSecret:
    """Return a secret as base32, URL and QR code."""
    import pyotp  # noqa: PLC0415 - only set-ups need both
    import segno  # noqa: PLC0415

    text = _base32_from_secret(secret)
    url = pyotp.TOTP(text).provisioning_uri(name=label, issuer_name=issuer)
    return NewTotpSecret(text, url, segno.make(url, micro=False).png_data_uri(scale=4))


async def _upsert_totp_row(session: AsyncSession, user_id: int, **values: object) -> None:
    connection = await session.connection()
    insert = insert_with_conflict(connection.dialect.name, TotpSecret).values(
        user_id=user_id, **values
    )
    await connection.execute(insert.on_conflict_do_update(index_elements=["user_id"], set_=values))


async def enable_pending_secret(
    ctx: Context, session: AsyncSession, user_id: int, code: str
) -> None:
    """Put the pending secret into use; its code is used up.

    Raises Conflict if no secret is pending or it has expired, AuthenticationFailed for a wrong
    code.
    """
    environment, now = ctx.environment, ctx.environment.now()
    row = (await (await session.connection()).execute(_select_totp_row(user_id))).first()
    if row is None or row.pending is None or row.pending_at + PENDING_LIFETIME <= now:
        raise Conflict(
            "No TOTP secret waits for its confirmation: call totpSetup first.", path=["token"]
        )
    digits = normalize_totp_code_or_none(code)
    step = (
        find_step_of_code(environment, _decrypt_secret(environment, row.pending, user_id), digits)
        if digits
        else None
    )
    if step is None:
        raise AuthenticationFailed("The code is wrong.", path=["token"])
    await _upsert_totp_row(
        session,
        user_id,
        seed=row.pending,
        pending=None,
        pending_at=None,
        last_step=step,
        enabled_at=now,
    )


async def enable_imported_secret(
    ctx: Context, session: AsyncSession, user_id: int, secret: bytes
) -> None:
    """Put a secret into use that an authenticator of the user already has."""
    encrypted = ctx.environment.secret_box.encrypt(
        _base32_from_secret(secret), secret_box_purpose(user_id)
    )
    await _upsert_totp_row(
        session,
        user_id,
        seed=encrypted,
        pending=None,
        pending_at=None,
        last_step=None,
        enabled_at=ctx.environment.now(),
    )


async def delete_totp_secrets(session: AsyncSession, user_id: int) -> None:
    """Delete the user's TOTP secrets."""
    connection = await session.connection()
    await connection.execute(delete(TotpSecret).where(col(TotpSecret.user_id) == user_id))


def _select_totp_row(user_id: int) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(TotpSecret)).where(col(TotpSecret.user_id) == user_id)


def _decrypt_secret(environment: Environment, encrypted: str, user_id: int) -> bytes:
    return decode_secret(environment.secret_box.decrypt(encrypted, secret_box_purpose(user_id)))


async def find_step_of_unused_code(ctx: Context, user_id: int, code: str) -> int | None:
    """Return the time step of an unused code of the user's secret; None if the code is wrong."""
    rows = await ctx.read(_select_totp_row(user_id))
    digits = normalize_totp_code_or_none(code)
    if not rows or rows[0].seed is None or digits is None:
        return None
    step = find_step_of_code(
        ctx.environment, _decrypt_secret(ctx.environment, rows[0].seed, user_id), digits
    )
    last_used_step = rows[0].last_step
    return step if step is not None and (last_used_step is None or last_used_step < step) else None


async def try_use_up_totp_step(session: AsyncSession, user_id: int, step: int) -> bool:
    """Use up the code of this time step and all earlier ones.

    Returns False if it was used already.
    """
    last_used_step = col(TotpSecret.last_step)
    result = await (await session.connection()).execute(
        update(TotpSecret)
        .where(
            col(TotpSecret.user_id) == user_id, or_(last_used_step.is_(None), last_used_step < step)
        )
        .values(last_step=step)
    )
    return result.rowcount == 1
