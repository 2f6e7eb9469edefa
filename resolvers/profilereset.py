"""Forgetting what browser clients keep of accounts."""

from typing import Any

from models.store.columns import Picked
from resolvers import adminlog, keyvalue, users
from resolvers.adminlog import Done
from resolvers.context import Context
from resolvers.userselection import Users, chosen

PREFERENCES = "ui/"  # what the keys of browser clients begin with


async def reset(ctx: Context, which: Users) -> list[Picked]:
    """Remove what browser clients keep of these accounts in key-value stores."""
    rows = await chosen(ctx, which)
    ids = [row.id for row in rows]
    async with ctx.write(*ids) as session:
        await keyvalue.forget(ctx, session, ids, PREFERENCES)
        others: list[Any] = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [Done("profileReset", "User", row.id, row.domain_id) for row in others]
        await adminlog.note(ctx, session, *log)
    found = await ctx.load_all(users.by_ids, ids)
    return [row for row in found if row is not None]
