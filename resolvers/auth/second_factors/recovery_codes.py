"""Recovery codes: for whoever has lost the factor."""

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
SIZE = 10  # bytes of chance: a plain hash of 80 bits will do
LENGTH = 16  # letters of a code: base32
GROUP = 4  # of them between two hyphens
LONGEST = 64  # characters that somebody may type for one


def written(code: str) -> str | None:
    """The code in normal form: lower case, no hyphens or spaces; None where it is none."""
    code = "".join(code.split()).replace("-", "").casefold() if len(code) <= LONGEST else ""
    return code if len(code) == LENGTH and code.isascii() and code.isalnum() else None


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


async def renew(world: World, session: AsyncSession, user_id: int) -> list[str]:
    """New codes in the place of the old ones. They are nowhere else."""
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
    """Remove all codes of the account."""
    connection = await session.connection()
    await connection.execute(delete(RecoveryCode).where(col(RecoveryCode.user_id) == user_id))


async def there(ctx: Context, user_id: int, code: str) -> bool:
    """Whether this is an unused code of the account."""
    asked = select(col(RecoveryCode.id)).where(
        col(RecoveryCode.user_id) == user_id,
        col(RecoveryCode.digest) == _digest(code),
        col(RecoveryCode.used_at).is_(None),
    )
    return bool(await ctx.read(asked))


async def spend(world: World, session: AsyncSession, user_id: int, code: str) -> bool:
    """Take the code; False where it was taken already."""
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
    """How many codes each of these accounts has left, as far as the viewer sees them."""
    owner = col(RecoveryCode.user_id)
    asked = select(owner, func.count().label("many")).where(
        owner.in_(select(col(User.id)).where(col(User.id).in_(user_ids), overseen_users(ctx))),
        col(RecoveryCode.used_at).is_(None),
    )
    many = {row.user_id: int(row.many) for row in await ctx.read(asked.group_by(owner))}
    return [many.get(key, 0) for key in user_ids]
