"""Recovery codes, which replace a lost second factor once each."""

import base64
import hashlib

from sqlalchemy import delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.second_factors import RecoveryCode
from models.runtime.environment import World
from models.users.tables import User
from resolvers.access import overseen_users
from resolvers.context import Context

MANY = 10
SIZE = 10  # random bytes: 80 bits need no salted hash
LENGTH = 16  # letters of a code: base32
GROUP = 4  # letters between two hyphens
LONGEST = 64  # characters, with spaces and hyphens


def written(code: str) -> str | None:
    """Return a code in lower case without hyphens and spaces; None if it has another form."""
    code = "".join(code.split()).replace("-", "").casefold() if len(code) <= LONGEST else ""
    return code if len(code) == LENGTH and code.isascii() and code.isalnum() else None


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


async def renew(world: World, session: AsyncSession, user_id: int) -> list[str]:
    """Replace the user's codes by new ones and return them. Only their digests are stored."""
    await forget(session, user_id)
    codes = [
        base64.b32encode(world.random(SIZE)).decode().lower()  # 80 bits need no padding
        for _ in range(MANY)
    ]
    session.add_all(
        RecoveryCode(id=world.key(), user_id=user_id, digest=_digest(code), created_at=world.now())
        for code in codes
    )
    await session.flush()
    return ["-".join(code[at : at + GROUP] for at in range(0, LENGTH, GROUP)) for code in codes]


async def forget(session: AsyncSession, user_id: int) -> None:
    """Delete all codes of the user."""
    connection = await session.connection()
    await connection.execute(delete(RecoveryCode).where(col(RecoveryCode.user_id) == user_id))


async def there(ctx: Context, user_id: int, code: str) -> bool:
    """True if this is an unused code of the user."""
    asked = select(col(RecoveryCode.id)).where(
        col(RecoveryCode.user_id) == user_id,
        col(RecoveryCode.digest) == _digest(code),
        col(RecoveryCode.used_at).is_(None),
    )
    return bool(await ctx.read(asked))


async def spend(world: World, session: AsyncSession, user_id: int, code: str) -> bool:
    """Mark a code as used. Returns False if it was used already."""
    taken = await (await session.connection()).execute(
        update(RecoveryCode)
        .where(
            col(RecoveryCode.user_id) == user_id,
            col(RecoveryCode.digest) == _digest(code),
            col(RecoveryCode.used_at).is_(None),
        )
        .values(used_at=world.now())
    )
    return taken.rowcount == 1


async def left(ctx: Context, user_ids: list[int]) -> list[int]:
    """Count the unused codes of each of these users; 0 for users that the viewer can't oversee."""
    owner = col(RecoveryCode.user_id)
    asked = select(owner, func.count().label("many")).where(
        owner.in_(select(col(User.id)).where(col(User.id).in_(user_ids), overseen_users(ctx))),
        col(RecoveryCode.used_at).is_(None),
    )
    many = {row.user_id: int(row.many) for row in await ctx.read(asked.group_by(owner))}
    return [many.get(key, 0) for key in user_ids]
