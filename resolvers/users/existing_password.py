"""The check of the existing password of a user before the password changes."""

from collections.abc import Sequence

from models.errors import AuthenticationFailed
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from models.throttling.policy import BanCause
from resolvers.auth import throttles
from resolvers.auth.passwords import password_hashes
from resolvers.context import Context
from resolvers.throttling import client_failures


async def require_existing_password_count_failure(
    ctx: Context, rows: Sequence[ColumnRow], existing_password: str | None
) -> None:
    """Raise AuthenticationFailed if the existing password is wrong.

    Failures are counted; raises RateLimited after too many.
    """
    if existing_password is None:
        return
    for row in rows:
        stored_hashes = [
            row.password,
            row.temporary_password if _has_valid_temporary_password(ctx.environment, row) else None,
        ]
        if not any(stored_hashes):
            continue
        limits = {
            f"existing:{row.id}": throttles.limit_of_name_and_network(ctx.environment.options)
        }
        await throttles.require_not_throttled(ctx, limits)
        for password_hash in filter(None, stored_hashes):
            if await password_hashes.check_password(
                ctx.environment, password_hash, existing_password
            ):
                break
        else:
            await client_failures.count_failure_and_log_ban(ctx, BanCause.SIGN_IN, row.id)
            await throttles.count_failure_return_reached_keys(ctx.environment, limits)
            raise wrong_existing_password()


def has_password(environment: Environment, user_row: ColumnRow) -> bool:
    """True if the user can sign in with a password, also a temporary one."""
    return bool(user_row.password) or _has_valid_temporary_password(environment, user_row)


def _has_valid_temporary_password(environment: Environment, user_row: ColumnRow) -> bool:
    has_begun = user_row.temporary_from is None or user_row.temporary_from <= environment.now()
    has_expired = (
        user_row.temporary_until is not None and user_row.temporary_until <= environment.now()
    )
    return bool(user_row.temporary_password) and has_begun and not has_expired


def wrong_existing_password() -> AuthenticationFailed:
    """Return the error for a wrong existing password."""
    error = AuthenticationFailed("The existing password is wrong.")
    error.path = ["existingPassword"]
    return error
