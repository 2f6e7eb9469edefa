"""Flush of cached credentials on request, in all processes."""

from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from resolvers.users.selection import UserSelector, require_selected_users


async def drop_cached_credentials_and_count(ctx: Context, users_or_all: UserSelector | None) -> int:
    """Drop the cached credentials of these users, or of all.

    Returns the number dropped in this process.
    """
    cache = cache_of_database(ctx.environment.database)
    if users_or_all is None or users_or_all.all:
        count = cache.clear_and_count()
        ctx.environment.wakeups.announce_credentials_changed([None])
        return count
    rows = await require_selected_users(ctx, users_or_all, only_managed=False)
    count = cache.drop_owners_and_pause_caching([row.id for row in rows], ctx.environment.now())
    ctx.environment.wakeups.announce_credentials_changed([row.id for row in rows])
    return count
