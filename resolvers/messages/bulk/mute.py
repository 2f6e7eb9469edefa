"""Muting of threads: new messages of a muted thread arrive as seen."""

from collections.abc import Mapping

from sqlalchemy import select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.events.journal import ChangeKind
from models.messages.tables import Thread
from models.store.columns import picked
from resolvers.access import own, visible
from resolvers.context import Context


async def mute(ctx: Context, session: AsyncSession, wanted: Mapping[int, bool]) -> None:
    """Mute or unmute these threads of the viewer. Threads that no longer exist are ignored."""
    if not wanted:
        return
    asked = select(*picked(Thread, {"id", "muted"})).where(
        visible(ctx, Thread), col(Thread.id).in_(wanted)
    )
    rows = await ctx.read(asked)
    changed = [row.id for row in rows if row.muted is not wanted[row.id]]
    for on in (True, False):
        if ids := [key for key in changed if wanted[key] is on]:
            statement = update(Thread).where(col(Thread.id).in_(ids)).values(muted=on)
            await (await session.connection()).execute(statement)
    if changed:
        await ctx.record(session, own(ctx), ChangeKind.THREAD_CHANGED, sorted(changed))
