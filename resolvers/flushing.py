"""Credentials that are remembered, forgotten on request."""

from resolvers.context import Context
from resolvers.known import memory_of
from resolvers.userselection import Users, chosen


async def flush(ctx: Context, users: Users | None) -> int:
    """Ask the store again about these users' credentials, or all; how many were remembered."""
    memory = memory_of(ctx.world.database)
    if users is None or users.all:
        return memory.clear()
    rows = await chosen(ctx, users, managed=False)
    return memory.drop([row.id for row in rows], ctx.world.now())
