"""End of all connections of users."""

from collections.abc import Callable, Collection

from sqlalchemy import delete, update
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.auth.security_log import AuthEventAction
from models.errors import ErrorCode, ServiceUnavailable
from models.users.tables import User
from resolvers.auth import security_log
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context
from resolvers.users.selection import UserSelector, load_selected_users


async def end_sessions_and_return_usernames(
    ctx: Context,
    users: UserSelector,
    *,
    revoke_tokens: bool,
    is_any_connected: Callable[[Collection[int]], bool],
) -> dict[int, str]:
    """Record that all connections of these users must end. Return their usernames by id.

    This process ends its connections at once, others when they receive the wake-up or at their next
    check. Raises Unavailable, and records nothing, if no token was revoked and no user is connected
    in this process or possibly in another.
    """
    rows = await load_selected_users(ctx, users)
    user_ids, revoked_count = [row.id for row in rows], 0
    async with ctx.write_session(*user_ids) as session:
        connection = await session.connection()
        statement = update(User).where(col(User.id).in_(user_ids))
        await connection.execute(statement.values(sessions_ended_at=ctx.environment.now()))
        if revoke_tokens:
            tokens = delete(AccessToken).where(col(AccessToken.user_id).in_(user_ids))
            revoked_count = (await connection.execute(tokens)).rowcount
        if not (revoked_count or is_any_connected(user_ids) or ctx.environment.wakeups.is_shared):
            raise ServiceUnavailable("None of the users is connected", code=ErrorCode.NO_SESSION)
        for user_id in user_ids:
            detail = {"tokens": True} if revoke_tokens else {}
            await security_log.log_event(
                ctx,
                session,
                NewSecurityEvent(AuthEventAction.SESSION_TERMINATE, user_id, detail=detail),
            )
    drop_cached_credentials(ctx.environment, *user_ids)
    return {row.id: row.username for row in rows}
