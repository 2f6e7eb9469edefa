"""Reset of the state of mail clients."""

from typing import Any

from sqlalchemy import update
from sqlmodel import col

from models.events import journal
from models.store.columns import Picked
from models.users.tables import User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import Users, chosen


async def reset(ctx: Context, which: Users) -> list[Picked]:
    """End the connections of these users and invalidate the cursors of their journals.

    Returns the users. Credentials stay unchanged.
    """
    rows = await chosen(ctx, which)
    ids = [row.id for row in rows]
    async with ctx.write(*ids) as session:
        connection = await session.connection()
        these = update(User).where(col(User.id).in_(ids))
        await connection.execute(these.values(kicked_at=ctx.world.now()))
        await journal.restart(session, ids, origin=ctx.origin, at=ctx.world.now())
        others: list[Any] = [row for row in rows if row.id != ctx.viewer.user_id]
        log = [Done("clientStateReset", "User", row.id, row.domain_id) for row in others]
        await admin_log.note(ctx, session, *log)
    found = await ctx.load_all(user_loaders.by_ids, ids)
    return [row for row in found if row is not None]
