"""Reset of the data that browser clients store for users."""

from typing import Any

from models.store.columns import ColumnRow
from resolvers.access import require_full_scope_for_other_users
from resolvers.admin import audit_log, key_values
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import UserSelector, require_selected_users

CLIENT_KEY_PREFIX = "ui/"  # of the keys of browser clients


async def delete_browser_client_data(ctx: Context, selection: UserSelector) -> list[ColumnRow]:
    """Delete what browser clients store for these users in key-value stores. Returns the users.

    Raises Forbidden or NotFound.
    """
    rows = await require_selected_users(ctx, selection)
    ids = [row.id for row in rows]
    require_full_scope_for_other_users(ctx, ids)
    async with ctx.write_session(*ids) as session:
        await key_values.delete_entries_of_users(ctx, session, ids, CLIENT_KEY_PREFIX)
        other_users: list[Any] = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [
            NewAuditLogEntry("userPreferencesReset", "User", row.id, row.domain_id)
            for row in other_users
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *log)
    reloaded = await ctx.load_many(user_loaders.load_visible_users_by_id, ids)
    return [row for row in reloaded if row is not None]
