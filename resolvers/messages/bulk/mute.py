"""Muting of threads: new messages of a muted thread arrive as seen."""

from collections.abc import Mapping

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.events.event_types import EventType
from models.messages.tables import Thread
from models.store.columns import select_columns
from resolvers.access import is_own_or_shared, require_user_id
from resolvers.context import Context


async def set_muted(
    ctx: Context, session: AsyncSession, muted_by_thread_id: Mapping[int, bool]
) -> None:
    """Mute or unmute these threads of the viewer. Threads that no longer exist are ignored."""
    if not muted_by_thread_id:
        return
    query = select(*select_columns(Thread, {"id", "muted"})).where(
        is_own_or_shared(ctx, Thread), col(Thread.id).in_(muted_by_thread_id)
    )
    rows = await ctx.read(query)
    changed = [row.id for row in rows if row.muted is not muted_by_thread_id[row.id]]
    for on in (True, False):
        if ids := [key for key in changed if muted_by_thread_id[key] is on]:
            statement = update(Thread).where(col(Thread.id).in_(ids)).values(muted=on)
            await (await session.connection()).execute(statement)
    if changed:
        await ctx.record_change(
            session, require_user_id(ctx), EventType.THREAD_UPDATED, sorted(changed)
        )
