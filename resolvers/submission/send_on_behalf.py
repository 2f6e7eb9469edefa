"""Send for another user: administrators can do so in the name of accounts that they manage."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEventAction
from models.messages.tables import Message
from models.store.columns import select_columns
from models.users.roles import AdminPermission, Role, Scope
from resolvers.access import is_of_managed_user_unshared
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.messages.listing import is_not_deleted_sql
from resolvers.users.selection import require_managed_user
from resolvers.viewer import GuardRule, Viewer

SENT_FOR_USER_ACTION = SecurityEventAction.MESSAGE_SENT  # in the security log of the account
IMPERSONATE_GUARD = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.IMPERSONATE)


SUBMIT_SCOPES = frozenset({Scope.SUBMIT})


@asynccontextmanager
async def logged_sending_transaction_as_user(
    ctx: Context,
    user_id: int | None,
    mutation: str,
    granted_scopes: frozenset[Scope] = SUBMIT_SCOPES,
) -> AsyncGenerator[Context]:
    """Return a context in which this account sends; by default the viewer's own.

    What an administrator sends is recorded in the audit log and the account's security log. Raises
    the errors of `audited_transaction_as_user`.
    """
    async with audited_transaction_as_user(ctx, user_id, mutation, granted_scopes) as user_ctx:
        yield user_ctx
        if user_ctx is not ctx and user_id is not None:
            async with ctx.write_session(user_id) as session:
                await security_log.log_event_and_queue_notice(
                    ctx, session, NewSecurityEvent(SENT_FOR_USER_ACTION, user_id)
                )


@asynccontextmanager
async def audited_transaction_as_user(
    ctx: Context, user_id: int | None, mutation: str, granted_scopes: frozenset[Scope]
) -> AsyncGenerator[Context]:
    """Return a context that acts as this account; by default as the viewer's own.

    What an administrator does is recorded in the audit log. Without the scope MAIL_READ the context
    can't read mail or files. Raises NotFound, and Forbidden if the viewer may not act as the
    account.
    """
    if user_id is None or user_id == ctx.viewer.user_id:
        yield ctx
        return
    ctx.viewer.require(IMPERSONATE_GUARD)
    user = await require_managed_user(ctx, user_id)
    async with ctx.combined_transaction():
        user_ctx = context_as_user(ctx, user_id, granted_scopes)
        yield user_ctx
        async with ctx.write_session(user_id) as session:
            await audit_log.insert_audit_log_entries(
                ctx, session, NewAuditLogEntry(mutation, "User", user_id, user.domain_id)
            )
        if user_ctx.committed_position:
            ctx.committed_position = {
                **user_ctx.committed_position,
                **(ctx.committed_position or {}),
            }


def context_as_user(
    ctx: Context, user_id: int, scopes: frozenset[Scope] = SUBMIT_SCOPES
) -> Context:
    """Return the same operation in the name of an account, by default to send only."""
    return ctx.copy_for_viewer(Viewer(user_id, Role.USER, scopes, actor_id=ctx.viewer.user_id))


async def find_managed_owner_id(ctx: Context, message_id: int) -> int | None:
    """Return the owner of a message that the viewer manages.

    Returns None if the viewer does not manage the owner, or the message is shared with the viewer.
    """
    statement = select(*select_columns(Message, {"user_id"})).where(
        is_of_managed_user_unshared(ctx, Message),
        is_not_deleted_sql(),
        col(Message.id) == message_id,
    )
    return next((int(row.user_id) for row in await ctx.read(statement)), None)
