"""Reset of the state of mail clients."""

from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.events import journal
from models.store.columns import ColumnRow
from models.users.tables import User
from resolvers.access import require_full_scope_for_other_users
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector, require_selected_users


async def end_connections_and_invalidate_cursors(
    ctx: Context, selection: UserSelector
) -> list[ColumnRow]:
    """End the connections of these users and invalidate the cursors of their journals.

    Returns the users. Credentials stay unchanged. Raises Forbidden or NotFound.
    """
    rows = await require_selected_users(ctx, selection)
    ids = [row.id for row in rows]
    require_full_scope_for_other_users(ctx, ids)
    async with ctx.write_session(*ids) as session:
        connection = await session.connection()
        statement = update(User).where(col(User.id).in_(ids))
        await connection.execute(statement.values(sessions_ended_at=ctx.environment.now()))
        await journal.delete_changes_and_force_resync(
            session, ids, origin=ctx.origin, at=ctx.environment.now()
        )
        other_users: list[Any] = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [
            NewAuditLogEntry("userSyncReset", "User", row.id, row.domain_id) for row in other_users
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *log)
    reloaded = await ctx.load_many(user_loaders.load_visible_users_by_id, ids)
    return [row for row in reloaded if row is not None]
