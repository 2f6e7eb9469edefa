"""Temporary passwords for users who have lost theirs."""

from datetime import datetime, timedelta

from models.errors import Forbidden, Invalid
from resolvers.auth import security_log
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.auth.security_log import Event
from resolvers.context import Context
from resolvers.users.selection import Users
from resolvers.users.user_locks import changing

VALID = timedelta(hours=24)
LATEST = timedelta(days=365)  # until a temporary password becomes valid


async def reset_password(ctx: Context, user_id: int, valid_after: datetime | None) -> str:
    """Give a user a temporary password beside the current one; return it.

    It is valid for a day, from now or from `valid_after`, and can only be used to set a new
    password. The user's tokens and sessions end. Second factors stay. Raises Forbidden for the
    viewer's own account, Invalid if `valid_after` is too late.
    """
    now = ctx.world.now()
    if valid_after and valid_after > now + LATEST:
        text = f"at most {LATEST.days} days from now"
        raise Invalid(text, constraint="max", path=["validAfter"])
    if user_id == ctx.viewer.user_id:
        raise Forbidden("your own password you change by userUpdate", path=["user"])
    begin = max(now, valid_after or now)
    policy = await ctx.load(password_policy.of_users, user_id)
    password = new_passwords.generated(ctx.world, policy)
    stored = await password_hashes.make(ctx.world, password)
    async with changing(ctx, Users(ids=(user_id,)), "passwordReset", path="user") as held:
        for row in held.rows:
            held.set(
                row,
                temporary_password=stored,
                temporary_from=begin,
                temporary_until=begin + VALID,
                require_password_change=True,
            )
            held.end(row)
            await security_log.note(ctx, held.session, Event("password reset", row.id))
    return password
