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

from models.auth.second_factors import TotpSeed
from models.errors import AuthenticationFailed, Conflict, Invalid
from models.runtime.environment import World
from models.store.columns import Picked, insert_or, picked
from resolvers.context import Context

STEP = 30  # seconds
DIGITS = 6
SIZE = 20  # bytes (RFC 4226, section 4: 160 bits)
SIZES = range(8, 129)  # bytes
LONGEST = 64  # characters of a label or an issuer: both must fit into one QR code
PENDING = timedelta(hours=6)  # in which a new secret must be proved
PRODUCT = "Merganser"


@dataclass(frozen=True, slots=True)
class Shown:
    """A new TOTP secret, in the three forms that authenticators accept."""

    seed: str = field(repr=False)  # base32
    url: str = field(repr=False)  # otpauth:
    picture: str = field(repr=False)  # data URL of a PNG: the QR code of `url`


def code_at(seed: bytes, step: int) -> str:
    """Return the code of a time step: HOTP (RFC 4226, section 5.3) of its number."""
    digest = hmac.digest(seed, step.to_bytes(8, "big"), hashlib.sha1)
    start = digest[-1] & 0xF
    number = int.from_bytes(digest[start : start + 4], "big") & 0x7FFF_FFFF
    return f"{number % 10**DIGITS:0{DIGITS}}"


def step_of(at: datetime) -> int:
    """Return the number of the time step that contains this time."""
    return int(at.timestamp()) // STEP


def fitting(world: World, seed: bytes, code: str) -> int | None:
    """Return the time step that this is the code of, within the tolerance of the clock; else None.

    If it is the code of several steps, returns the last.
    """
    here, found, skew = step_of(world.now()), None, world.options.totp_steps
    for step in range(here - skew, here + skew + 1):
        if hmac.compare_digest(code_at(seed, step), code):
            found = step
    return found


def written(code: str) -> str | None:
    """Return a typed code without spaces as six digits; None if it has another form."""
    code = "".join(code.split()) if len(code) <= LONGEST else ""
    return code if len(code) == DIGITS and code.isascii() and code.isdigit() else None


def decoded(text: str) -> bytes:
    """Decode a typed secret from base32 in any case, with or without spaces and hyphens.

    Raises Invalid if it is not base32 or has a wrong length.
    """
    plain = "".join(text.split()).replace("-", "").rstrip("=").upper()
    try:
        seed = base64.b32decode(plain + "=" * (-len(plain) % 8))
    except (binascii.Error, ValueError) as problem:
        raise Invalid("a seed is base32", constraint="base32", path=["seed"]) from problem
    if len(seed) not in SIZES:
        text = f"a seed has {SIZES[0]} to {SIZES[-1]} bytes"
        raise Invalid(text, constraint="length", path=["seed"])
    return seed


def place_of(user_id: int) -> str:
    """Return the purpose that the secret box binds a user's TOTP secrets to."""
    return f"totp:{user_id}"


def _base32(seed: bytes) -> str:
    return base64.b32encode(seed).decode().rstrip("=")


async def setup(
    ctx: Context, session: AsyncSession, user: Picked, label: str | None, issuer: str | None
) -> Shown:
    """Create a pending secret in place of an older one. It must be proved within six hours."""
    names = [_name(label, "label") or user.username, _name(issuer, "issuer") or PRODUCT]
    seed = ctx.world.random(SIZE)
    sealed = ctx.world.vault.seal(_base32(seed), place_of(user.id))
    await _keep(session, user.id, pending=sealed, pending_at=ctx.world.now())
    return _shown(seed, *names)


def _name(text: str | None, path: str) -> str | None:
    """Return a label or issuer. Raises Invalid if it is too long or has a colon."""
    if text and (len(text) > LONGEST or not text.isprintable() or ":" in text):
        raise Invalid(
            f"at most {LONGEST} printable characters, without a colon",
            constraint="pattern",
            path=[path],
        )
    return text


def _shown(seed: bytes, label: str, issuer: str) -> Shown:
    """Return a secret as base32, URL and QR code."""
    import pyotp  # noqa: PLC0415 - only set-ups need both
    import segno  # noqa: PLC0415

    text = _base32(seed)
    url = pyotp.TOTP(text).provisioning_uri(name=label, issuer_name=issuer)
    return Shown(text, url, segno.make(url, micro=False).png_data_uri(scale=4))


async def _keep(session: AsyncSession, user_id: int, **values: object) -> None:
    connection = await session.connection()
    new = insert_or(connection.dialect.name, TotpSeed).values(user_id=user_id, **values)
    await connection.execute(new.on_conflict_do_update(index_elements=["user_id"], set_=values))


async def enable(ctx: Context, session: AsyncSession, user_id: int, code: str) -> None:
    """Put the pending secret into use; its code is used up.

    Raises Conflict if no secret is pending or it has expired, AuthenticationFailed for a wrong
    code.
    """
    world, now = ctx.world, ctx.world.now()
    row = (await (await session.connection()).execute(_row(user_id))).first()
    if row is None or row.pending is None or row.pending_at + PENDING <= now:
        raise Conflict("no new seed waits to be proved: set one up first", path=["token"])
    digits = written(code)
    step = fitting(world, _opened(world, row.pending, user_id), digits) if digits else None
    if step is None:
        raise AuthenticationFailed("the code is wrong")
    await _keep(
        session,
        user_id,
        seed=row.pending,
        pending=None,
        pending_at=None,
        last_step=step,
        enabled_at=now,
    )


async def bring(ctx: Context, session: AsyncSession, user_id: int, seed: bytes) -> None:
    """Put a secret into use that an authenticator of the user already has."""
    sealed = ctx.world.vault.seal(_base32(seed), place_of(user_id))
    await _keep(
        session,
        user_id,
        seed=sealed,
        pending=None,
        pending_at=None,
        last_step=None,
        enabled_at=ctx.world.now(),
    )


async def forget(session: AsyncSession, user_id: int) -> None:
    """Delete the user's TOTP secrets."""
    connection = await session.connection()
    await connection.execute(delete(TotpSeed).where(col(TotpSeed.user_id) == user_id))


def _row(user_id: int) -> Select[*tuple[Any, ...]]:
    return select(*picked(TotpSeed)).where(col(TotpSeed.user_id) == user_id)


def _opened(world: World, sealed: str, user_id: int) -> bytes:
    return decoded(world.vault.open(sealed, place_of(user_id)))


async def step_for(ctx: Context, user_id: int, code: str) -> int | None:
    """Return the time step of an unused code of the user's secret; None if the code is wrong."""
    rows = await ctx.read(_row(user_id))
    digits = written(code)
    if not rows or rows[0].seed is None or digits is None:
        return None
    step = fitting(ctx.world, _opened(ctx.world, rows[0].seed, user_id), digits)
    last = rows[0].last_step
    return step if step is not None and (last is None or last < step) else None


async def spend(session: AsyncSession, user_id: int, step: int) -> bool:
    """Use up the code of this time step and all earlier ones.

    Returns False if it was used already.
    """
    last = col(TotpSeed.last_step)
    taken = await (await session.connection()).execute(
        update(TotpSeed)
        .where(col(TotpSeed.user_id) == user_id, or_(last.is_(None), last < step))
        .values(last_step=step)
    )
    return taken.rowcount == 1
