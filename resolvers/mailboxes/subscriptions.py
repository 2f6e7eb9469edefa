"""Subscriptions to paths that have no mailbox."""

from collections import defaultdict
from collections.abc import Collection, Mapping
from hashlib import sha256
from typing import Any

from sqlalchemy import bindparam, delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.mailboxes.tables import Subscription
from models.store.columns import table_of
from models.users.tables import User
from resolvers.access import administered, managed_users, own
from resolvers.context import Context

Paths = Mapping[int, set[str]]  # by user ID


async def standing(session: AsyncSession, users: Collection[int]) -> Paths:
    """Load these subscriptions by user, in a transaction that has locked the users' streams."""
    statement = select(col(Subscription.user_id), col(Subscription.path)).where(
        col(Subscription.user_id).in_(users)
    )
    found: defaultdict[int, set[str]] = defaultdict(set)
    for user_id, path in await (await session.connection()).execute(statement):
        found[user_id].add(path)
    return found


async def rewrite(session: AsyncSession, before: Paths, after: Paths) -> list[int]:
    """Write the difference of these subscriptions. Returns the IDs of the users with a change."""
    connection, users = await session.connection(), sorted({*before, *after})
    gone = [row for user in users for row in _more(user, before, after)]
    new = [row for user in users for row in _more(user, after, before)]
    table = table_of(Subscription)
    if gone:
        these = (table.c.user_id == bindparam("user"), table.c.digest == bindparam("which"))
        given = [{"user": row["user_id"], "which": row["digest"]} for row in gone]
        await connection.execute(delete(table).where(*these), given)
    if new:
        await connection.execute(insert(table), new)
    return sorted({row["user_id"] for row in [*gone, *new]})


def _more(user: int, here: Paths, there: Paths) -> list[dict[str, Any]]:
    """Return the rows of a user's paths that only the first mapping has."""
    paths = sorted(here.get(user, set()) - there.get(user, set()))
    return [
        {"user_id": user, "digest": sha256(path.encode()).hexdigest(), "path": path}
        for path in paths
    ]


async def of_users(ctx: Context, keys: list[int]) -> list[list[str]]:
    """Load the paths for these users, in their order. Empty for users the viewer can't see."""
    statement = select(col(Subscription.user_id), col(Subscription.path)).where(
        col(Subscription.user_id).in_(keys)
    )
    if administered(ctx):
        theirs = select(col(User.id)).where(managed_users(ctx))
        statement = statement.where(col(Subscription.user_id).in_(theirs))
    else:
        statement = statement.where(col(Subscription.user_id) == own(ctx))
    found: defaultdict[int, list[str]] = defaultdict(list)
    for row in await ctx.read(statement):
        found[row.user_id].append(row.path)
    return [found[key] for key in keys]
