"""Credentials that are remembered, forgotten on request, by all processes."""

from resolvers.auth.credential_cache import memory_of
from resolvers.context import Context
from resolvers.users.selection import Users, chosen


async def flush(ctx: Context, users: Users | None) -> int:
    """Ask the store again about these users' credentials, or all; how many were remembered here."""
    memory = memory_of(ctx.world.database)
    if users is None or users.all:
        many = memory.clear()
        ctx.world.wakeups.recall([None])
        return many
    rows = await chosen(ctx, users, managed=False)
    many = memory.drop([row.id for row in rows], ctx.world.now())
    ctx.world.wakeups.recall([row.id for row in rows])
    return many
