"""End of all connections of users."""

from collections.abc import Callable, Collection

from sqlalchemy import delete, update
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.errors import Code, Unavailable
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth.credential_cache import forget
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.users.selection import Users, chosen


async def kick(
    ctx: Context,
    users: Users,
    *,
    revoke_tokens: bool,
    connected: Callable[[Collection[int]], bool],
) -> dict[int, str]:
    """Record that all connections of these users must end. Return their usernames by id.

    This process ends its connections at once, others when they receive the wake-up or at their next
    check. Raises Unavailable, and records nothing, if no token was revoked and no user is connected
    in this process or possibly in another.
    """
    rows = await chosen(ctx, users)
    keys, revoked = [row.id for row in rows], 0
    async with ctx.write(*keys) as session:
        connection = await session.connection()
        theirs = update(User).where(col(User.id).in_(keys))
        await connection.execute(theirs.values(kicked_at=ctx.world.now()))
        if revoke_tokens:
            ended = delete(AccessToken).where(col(AccessToken.user_id).in_(keys))
            revoked = (await connection.execute(ended)).rowcount
        if not (revoked or connected(keys) or ctx.world.wakeups.shared):
            raise Unavailable("nobody is connected", code=Code.NO_SESSION)
        for key in keys:
            detail = {"tokens": True} if revoke_tokens else {}
            await security_log.note(ctx, session, Event("session kick", key, detail=detail))
    forget(ctx.world, *keys)
    return {row.id: row.username for row in rows}
