"""Reset of the data that browser clients store for users."""

from typing import Any

from models.store.columns import Picked
from resolvers.admin import admin_log, key_values
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import Users, chosen

PREFERENCES = "ui/"  # of the keys of browser clients


async def reset(ctx: Context, which: Users) -> list[Picked]:
    """Delete what browser clients store for these users in key-value stores. Returns the users."""
    rows = await chosen(ctx, which)
    ids = [row.id for row in rows]
    async with ctx.write(*ids) as session:
        await key_values.forget(ctx, session, ids, PREFERENCES)
        others: list[Any] = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [Done("profileReset", "User", row.id, row.domain_id) for row in others]
        await admin_log.note(ctx, session, *log)
    found = await ctx.load_all(user_loaders.by_ids, ids)
    return [row for row in found if row is not None]
