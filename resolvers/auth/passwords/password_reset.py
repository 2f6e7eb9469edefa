"""Temporary passwords for users who have lost theirs."""

from datetime import datetime, timedelta

from models.auth.security_log import SecurityEventAction
from models.errors import Forbidden, InvalidInput
from models.quantities import describe_duration
from models.validation_constraints import ValidationConstraint
from resolvers.auth import security_log
from resolvers.auth.passwords import new_passwords, password_hashes, password_policy
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.users.selection import require_managed_user
from resolvers.users.user_locks import lock_loaded_users_and_store_changes

TEMPORARY_LIFETIME = timedelta(hours=24)
MAX_START_DELAY = timedelta(days=365)  # until a temporary password becomes valid


async def set_temporary_password_and_sign_out(
    ctx: Context, user_id: int, starts_at: datetime | None
) -> str:
    """Give a user a temporary password beside the current one; return it.

    It is valid for a day, from now or from `starts_at`, and can only be used to set a new
    password. The user's tokens and sessions end. Second factors stay. Raises Forbidden for the
    viewer's own account, InvalidInput if `starts_at` is too late.
    """
    now = ctx.environment.now()
    if starts_at and starts_at > now + MAX_START_DELAY:
        text = f"The start must be at most {describe_duration(MAX_START_DELAY)} ahead."
        raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["startsAt"])
    if user_id == ctx.viewer.user_id:
        raise Forbidden("Use userUpdate to change your own password.", path=["user"])
    valid_from = max(now, starts_at or now)
    policy = await ctx.load(password_policy.load_policies_of_users, user_id)
    password = new_passwords.generate_password(ctx.environment, policy)
    password_hash = await password_hashes.hash_password(ctx.environment, password)
    rows = [await require_managed_user(ctx, user_id)]
    async with lock_loaded_users_and_store_changes(
        ctx, rows, "userPasswordReset", path="user"
    ) as locked_users:
        for user in locked_users.rows:
            locked_users.set_columns_to_store(
                user,
                temporary_password=password_hash,
                temporary_from=valid_from,
                temporary_until=valid_from + TEMPORARY_LIFETIME,
                password_change_required=True,
            )
            locked_users.sign_out_when_stored(user)
            await security_log.log_event_and_queue_notice(
                ctx,
                locked_users.session,
                NewSecurityEvent(SecurityEventAction.PASSWORD_RESET, user.id),
            )
    return password
