"""Turn second factors of a locked user on and off, with their secrets and log entries."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEventAction
from models.errors import Conflict, NotFound
from models.events.event_types import EventType
from models.store.columns import ColumnRow, select_columns
from models.users.tables import User
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.second_factors import recovery_codes, totp, webauthn
from resolvers.auth.second_factors.second_factor_check import (
    TwoFactorMethod,
    enabled_methods,
)
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class FactorChange:
    """A mutation with its action name in the security log."""

    mutation: str
    action: SecurityEventAction
    target: str | None = None


async def _log_and_journal_factor_change(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    change: FactorChange,
    enabled_after: Sequence[str],
) -> None:
    """Write a change to the security log and the journal.

    Also to the audit log if by another user.
    """
    await security_log.log_event_and_queue_notice(
        ctx, session, NewSecurityEvent(change.action, user.id, target=change.target)
    )
    if enabled_methods(user) != [*enabled_after]:
        await ctx.record_change(session, user.id, EventType.USER_UPDATED, [user.id])
    if ctx.viewer.user_id == user.id:
        return
    old_values = {"twoFactorMethods": [*enabled_methods(user)]}
    admin_entry = NewAuditLogEntry(
        change.mutation,
        "User",
        user.id,
        user.domain_id,
        old_values,
        {"twoFactorMethods": [*enabled_after]},
    )
    await audit_log.insert_audit_log_entries(ctx, session, admin_entry)


async def require_user_in_transaction(session: AsyncSession, user: ColumnRow) -> ColumnRow:
    """Read the user inside the transaction that locks it. Raises NotFound if it was deleted."""
    statement = select(*select_columns(User)).where(
        col(User.id) == user.id, col(User.deleted_at).is_(None)
    )
    row = (await (await session.connection()).execute(statement)).first()
    if row is None:
        raise NotFound(str(user.id), path=["user"])
    return row


async def enable_factor_and_end_other_sign_ins(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    method: TwoFactorMethod,
    change: FactorChange,
) -> None:
    """Add a factor to those that are on; other sign-ins of the user end."""
    enabled_before = enabled_methods(user)
    enabled_after = [
        two_factor_method
        for two_factor_method in TwoFactorMethod
        if two_factor_method in {*enabled_before, method}
    ]
    connection = await session.connection()
    if method not in enabled_before:
        statement = (
            update(User)
            .where(col(User.id) == user.id)
            .values(
                second_factors=[method.value for method in enabled_after],
                auth_version=User.auth_version + 1,
                updated_at=ctx.environment.now(),
            )
            .returning(col(User.auth_version))
        )
        version = (await connection.execute(statement)).scalar_one()
        is_current_token = (col(AccessToken.id) == (ctx.viewer.token_id or 0)) & (
            col(AccessToken.user_id) == user.id
        )
        await connection.execute(
            update(AccessToken).where(is_current_token).values(auth_version=version)
        )
    await _log_and_journal_factor_change(ctx, session, user, change, enabled_after)


def has_factor_with_recovery_codes(user: ColumnRow) -> bool:
    """True if a factor is on that this server checks: such users have recovery codes."""
    return bool(
        {TwoFactorMethod.TOTP, TwoFactorMethod.WEBAUTHN}.intersection(enabled_methods(user))
    )


async def disable_factors_with_secrets(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    methods: Sequence[TwoFactorMethod],
    change: FactorChange,
) -> None:
    """Remove factors from those that are on, with their secrets, keys and recovery codes."""
    enabled_after = [method for method in enabled_methods(user) if method not in methods]
    connection = await session.connection()
    values: dict[str, Any] = {
        "second_factors": [method.value for method in enabled_after],
        "updated_at": ctx.environment.now(),
    }
    await connection.execute(update(User).where(col(User.id) == user.id).values(values))
    if TwoFactorMethod.TOTP in methods:
        await totp.delete_totp_secrets(session, user.id)
    if TwoFactorMethod.WEBAUTHN in methods:
        await webauthn.delete_keys_with_challenges_and_count_remaining(session, user.id)
    if not {TwoFactorMethod.TOTP, TwoFactorMethod.WEBAUTHN}.intersection(enabled_after):
        await recovery_codes.delete_recovery_codes(session, user.id)
    await _log_and_journal_factor_change(ctx, session, user, change, enabled_after)


def require_factor_enabled(user: ColumnRow, method: TwoFactorMethod) -> None:
    """Raise Conflict if the factor is off."""
    if method not in enabled_methods(user):
        raise Conflict(f"{method} is already off.")


def require_factor_disabled(user: ColumnRow, method: TwoFactorMethod) -> None:
    """Raise Conflict if the factor is on."""
    if method in enabled_methods(user):
        raise Conflict(f"{method} is already on.")
