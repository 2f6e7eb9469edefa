"""Flush of cached credentials on request, in all processes."""

from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context
from resolvers.users.selection import Users, chosen


async def flush(ctx: Context, users: Users | None) -> int:
    """Drop the cached credentials of these users, or of all.

    Returns the number dropped in this process.
    """
    memory = memory_of(ctx.world.database)
    if users is None or users.all:
        many = memory.clear()
        ctx.world.wakeups.recall([None])
        return many
    rows = await chosen(ctx, users, managed=False)
    many = memory.drop([row.id for row in rows], ctx.world.now())
    ctx.world.wakeups.recall([row.id for row in rows])
    return many
