"""Recovery codes, which replace a lost second factor once each."""

import base64
import hashlib

from sqlalchemy import delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.second_factors import RecoveryCode
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.access import is_overseen_user
from resolvers.context import Context

CODE_COUNT = 10
CODE_BYTES = 10  # random bytes: 80 bits need no salted hash
CODE_LENGTH = 16  # characters of a code, in base32
GROUP_LENGTH = 4  # characters between two hyphens
MAX_TYPED_LENGTH = 64  # characters, with spaces and hyphens


def normalize_recovery_code_or_none(code: str) -> str | None:
    """Return a code in lower case without hyphens and spaces; None if it has another form."""
    code = (
        "".join(code.split()).replace("-", "").casefold() if len(code) <= MAX_TYPED_LENGTH else ""
    )
    return code if len(code) == CODE_LENGTH and code.isascii() and code.isalnum() else None


def _code_digest(normalized_code: str) -> str:
    return hashlib.sha256(normalized_code.encode()).hexdigest()


async def replace_recovery_codes(
    environment: Environment, session: AsyncSession, user_id: int
) -> list[str]:
    """Replace the user's codes by new ones and return them. Only their digests are stored."""
    await delete_recovery_codes(session, user_id)
    codes = [
        base64.b32encode(environment.random_bytes(CODE_BYTES))
        .decode()
        .lower()  # 80 bits need no padding
        for _ in range(CODE_COUNT)
    ]
    session.add_all(
        RecoveryCode(
            id=environment.new_id(),
            user_id=user_id,
            digest=_code_digest(code),
            created_at=environment.now(),
        )
        for code in codes
    )
    await session.flush()
    return [
        "-".join(code[at : at + GROUP_LENGTH] for at in range(0, CODE_LENGTH, GROUP_LENGTH))
        for code in codes
    ]


async def delete_recovery_codes(session: AsyncSession, user_id: int) -> None:
    """Delete all codes of the user."""
    connection = await session.connection()
    await connection.execute(delete(RecoveryCode).where(col(RecoveryCode.user_id) == user_id))


async def is_unused_code(ctx: Context, user_id: int, code: str) -> bool:
    """True if this is an unused code of the user."""
    statement = select(col(RecoveryCode.id)).where(
        col(RecoveryCode.user_id) == user_id,
        col(RecoveryCode.digest) == _code_digest(code),
        col(RecoveryCode.used_at).is_(None),
    )
    return bool(await ctx.read(statement))


async def try_use_up_recovery_code(
    environment: Environment, session: AsyncSession, user_id: int, code: str
) -> bool:
    """Mark a code as used. Returns False if it was used already."""
    result = await (await session.connection()).execute(
        update(RecoveryCode)
        .where(
            col(RecoveryCode.user_id) == user_id,
            col(RecoveryCode.digest) == _code_digest(code),
            col(RecoveryCode.used_at).is_(None),
        )
        .values(used_at=environment.now())
    )
    return result.rowcount == 1


async def count_unused_codes(ctx: Context, user_ids: list[int]) -> list[int]:
    """Count the unused codes of each of these users; 0 for users that the viewer can't oversee."""
    owner_id = col(RecoveryCode.user_id)
    statement = select(owner_id, func.count().label("many")).where(
        owner_id.in_(select(col(User.id)).where(col(User.id).in_(user_ids), is_overseen_user(ctx))),
        col(RecoveryCode.used_at).is_(None),
    )
    counts = {row.user_id: int(row.many) for row in await ctx.read(statement.group_by(owner_id))}
    return [counts.get(key, 0) for key in user_ids]
