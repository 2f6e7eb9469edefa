"""Storage tiers of message bodies, and moving between them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.blobs import tier_move
from mail.storage.blobs.tiered_store import Tiers
from models.admin.tasks import Task
from models.errors import NotFound, Unavailable
from models.events.journal import PLATFORM, ChangeKind
from models.files.blobs import Blob, StorageTier
from models.messages.tables import Message
from resolvers.admin.task_steps import Plan, Step, part, past, queue
from resolvers.context import Context
from resolvers.messages.bulk import owners
from resolvers.messages.filters.filter_conditions import Selection

KIND = "MESSAGE_TIER_MOVE"
MUTATION = "messageTierMove"
TOGETHER = 100  # a request with more is run as a task
CHUNK = 200  # per task step


@dataclass(frozen=True, slots=True)
class Done:
    """The number of moved messages, or the task that moves them."""

    moved: int = 0
    task: Task | None = None


async def move(ctx: Context, asked: Selection, tier: StorageTier) -> Done:
    """Move the bodies of these messages to a tier.

    Messages that are already there are not counted. A body that other messages share moves for them
    too. Raises Unavailable if there is no cold store, Forbidden or NotFound.
    """
    if not isinstance(ctx.world.blobs, Tiers):
        raise Unavailable("there is one store only: see MERGANSER_COLD_BLOBS", component="blobs")
    whose = await owners.whose(ctx, asked.users)
    asked = await asked.looked(ctx, whose.ids)
    theirs = [col(Message.user_id).in_(whose.ids), col(Message.archived_at).is_(None)]
    found = asked.condition(ctx, theirs)
    await _check(ctx, asked, found)
    cold = tier is StorageTier.COLD
    place = (col(Message.user_id), col(Message.id))
    rows = await ctx.read(
        select(*place).where(*found, tier_move.needs_move(cold=cold)).order_by(*place)
    )
    ids, many = [row.id for row in rows], Counter(row.user_id for row in rows)
    if not rows:
        return Done()
    late = (
        len(ids) > TOGETHER or ctx.writing
    )  # the object store is not awaited inside a database transaction
    moved = [] if late or ctx.trial else await tier_move.bring(ctx.world, ids, cold=cold)
    ctx.world.fault("tier")
    async with ctx.write(PLATFORM) as session:
        await owners.log(ctx, session, whose, MUTATION, many)
        if late:
            (task,) = await queue(ctx, session, KIND, [{"ids": ids, "cold": cold}], total=len(ids))
            await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
            return Done(task=task)
        await ctx.world.join(session, lambda turn: tier_move.name(turn, moved))
    return Done(len(ids))


async def _check(ctx: Context, asked: Selection, found: Sequence[Any]) -> None:
    """Raise NotFound if a message given by ID does not exist."""
    if asked.ids is not None:
        there = {row.id for row in await ctx.read(select(col(Message.id)).where(*found))}
        for index, key in enumerate(asked.ids):
            if key not in there:
                raise NotFound(str(key), path=["select", "ids"], index=index)


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Copy the next bodies to their new tier."""
    ids = part(order, checkpoint, CHUNK)
    return Plan(ids=ids, made=await tier_move.bring(ctx.world, ids, cold=order["cold"]))


async def step(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Update the rows of the copied bodies to their new tier."""
    await ctx.world.join(session, lambda turn: tier_move.name(turn, held.made))
    return past(held.ids, order, checkpoint, len(held.ids))


async def of_blobs(ctx: Context, ids: list[int]) -> list[StorageTier]:
    """Load the storage tiers of these blobs, in this order."""
    statement = select(col(Blob.id)).where(col(Blob.id).in_(ids), tier_move.lies(cold=True))
    cold = {row.id for row in await ctx.read(statement)}
    return [StorageTier.COLD if key in cold else StorageTier.HOT for key in ids]
