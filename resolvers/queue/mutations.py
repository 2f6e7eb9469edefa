"""Delete, flush and hold queue entries; many of them by a task, step by step."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.queue import bulk_updates, held_messages, removal
from models.admin.tasks import Task
from models.errors import Invalid, LimitReached, NotFound, check_limit
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import Turn
from models.store.columns import Picked
from models.submission.tables import Submission
from models.users.roles import Role
from models.users.tables import User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.task_steps import Plan, Step, part, past, queue
from resolvers.context import Context, Needs
from resolvers.queue.loaders import EntryWhere, terms, visible, waiting

DELETE, FLUSH = "QUEUE_DELETE", "QUEUE_FLUSH"
MOST = 1_000_000  # entries per call


@dataclass(frozen=True, slots=True)
class Which:
    """A selection of queue entries: by queue id, by conditions, or all."""

    queue_ids: Sequence[str] | None = None
    where: EntryWhere | None = None
    all: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The number of changed recipients, or the task that changes them."""

    many: int = 0
    task: Task | None = None


async def remove(ctx: Context, which: Which, *, notify: bool = False) -> Outcome:
    """Cancel the deliveries of queue entries that no worker has leased.

    With `notifies_sender` a task sends a report to each sender. Raises InvalidInput, NotFound,
    Forbidden or LimitReached.
    """
    return await _carry_out(ctx, which, DELETE, later=notify)


async def flush(ctx: Context, which: Which) -> Outcome:
    """Make deferred deliveries due now, except held ones.

    Raises InvalidInput, NotFound, Forbidden or LimitReached.
    """
    return await _carry_out(ctx, which, FLUSH)


async def hold(ctx: Context, queue_ids: Sequence[str], *, stop: bool) -> list[int]:
    """Hold queue entries or release them, and return the entry ids. Raises NotFound."""
    rows = await _chosen(ctx, Which(queue_ids), ctx.world.options.bulk)
    ids = [row.id for row in rows]
    async with ctx.write(*_streams(rows)) as session:
        done = bulk_updates.hold if stop else bulk_updates.go_on
        await ctx.world.join(session, lambda turn: done(turn, ids))
        await _log(ctx, session, "queueHold", rows, {"hold": stop})
    return ids


async def _carry_out(ctx: Context, which: Which, kind: str, *, later: bool = False) -> Outcome:
    """Change the selected entries now, or by a task if there are many or `needs_task` is set."""
    few = ctx.world.options.bulk
    rows = await _chosen(ctx, which, MOST)
    ids = [row.id for row in rows]
    if not ids:
        return Outcome()
    if later or len(ids) > few:
        return Outcome(task=await _task(ctx, kind, rows, notify=later))
    streams = [*_streams(rows), *await _of_copies(ctx, ids)]
    async with ctx.write(*streams) as session:
        work = held_messages.cancel if kind == DELETE else bulk_updates.hurry
        done = await ctx.world.join(session, lambda turn: work(turn, ids))
        await _log(ctx, session, MUTATIONS[kind], rows, {})
    return Outcome(len(done))


MUTATIONS = {DELETE: "queueDelete", FLUSH: "queueFlush"}


async def _chosen(ctx: Context, which: Which, most: int) -> list[Picked]:
    """Load the selected visible entries, the oldest first.

    Raises InvalidInput unless exactly one selector is given, NotFound for an unknown queue id,
    Forbidden for all entries unless the viewer is an ADMIN, and LimitReached if there are too
    many.
    """
    given = [which.queue_ids is not None, which.where is not None, which.all]
    if sum(given) != 1:
        text = "say which: queueIds, filter or all"
        raise Invalid(text, constraint="exclusive", path=["queueIds"])
    names = list(dict.fromkeys(which.queue_ids or ()))
    few = ctx.world.options.bulk
    check_limit(len(names), few, f"at most {few} at once", path=["queueIds"])
    if which.all:
        ctx.viewer.require(Needs(role=Role.ADMIN))
    conditions = [visible(ctx)]
    if which.queue_ids is not None:
        conditions.append(col(Submission.queue_id).in_(names))
    elif which.where is not None:
        conditions = await terms(ctx, which.where)
    columns = (Submission.id, Submission.user_id, Submission.queue_id, Submission.envelope_from)
    asked = select(*map(col, columns)).where(waiting(), *conditions)
    order = (col(Submission.created_at), col(Submission.id))
    rows = list(await ctx.read(asked.order_by(*order).limit(most + 1)))
    if len(rows) > most:
        raise LimitReached(f"at most {most} at once", limit=most, used=len(rows), path=["filter"])
    there = {row.queue_id for row in rows}
    for index, name in enumerate(which.queue_ids or ()):
        if name not in there:
            raise NotFound(name, path=["queueIds"], index=index)
    return rows


def _streams(rows: Sequence[Picked]) -> list[int]:
    return sorted({PLATFORM if row.user_id is None else row.user_id for row in rows})


async def _of_copies(ctx: Context, ids: Sequence[int]) -> list[int]:
    copied = select(col(Submission.id)).where(col(Submission.copy_of).in_(ids)).limit(1)
    return [PLATFORM] if await ctx.read(copied) else []


async def _task(ctx: Context, kind: str, rows: Sequence[Picked], *, notify: bool) -> Task:
    """Insert a task that changes those of the entries that are still waiting."""
    ids = [row.id for row in rows]
    mine = {row.user_id for row in rows} == {ctx.viewer.user_id}
    owner = ctx.viewer.user_id if mine else None
    stream = PLATFORM if owner is None else owner
    async with ctx.write(stream) as session:
        order = {"ids": ids, "notify": notify}
        (task,) = await queue(ctx, session, kind, [order], user_id=owner, total=len(ids))
        await ctx.record(session, stream, ChangeKind.TASK_CHANGED, [task.id])
        if not mine:
            after = {"entries": len(ids), "notifySender": notify}
            await admin_log.note(ctx, session, Done(MUTATIONS[kind], "Task", task.id, after=after))
    return task


async def _log(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    rows: Sequence[Picked],
    after: dict[str, Any],
) -> None:
    """Write the changes of other users' entries to the admin log, one log entry each."""
    others = [row for row in rows if row.user_id is None or row.user_id != ctx.viewer.user_id]
    if not others:
        return
    asked = select(col(User.id), col(User.domain_id)).where(
        col(User.id).in_({row.user_id for row in others} - {None})
    )
    homes = {row.id: row.domain_id for row in await ctx.read(asked)}
    done = (
        Done(
            mutation,
            "QueueEntry",
            row.id,
            homes.get(row.user_id),
            {"queueId": row.queue_id, "sender": row.envelope_from},
            after or None,
        )
        for row in others
    )
    await admin_log.note(ctx, session, *done)


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Plan the next step of a task: its entries and the streams to lock.

    With `notify` the reports are sent here, each in its own transaction.
    """
    ids = part(order, checkpoint, bulk_updates.MOST)
    if order.get("notify"):
        await removal.give_back(ctx.world, ids)
        return Plan(ids=ids)
    asked = select(col(Submission.user_id)).where(col(Submission.id).in_(ids))
    rows = await ctx.read(asked.distinct())
    return Plan([*_streams(rows), *await _of_copies(ctx, ids)], ids)


async def step_delete(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    plan: Plan,
) -> Step:
    """Cancel the planned entries and return the result of the task step."""
    if not order.get("notify"):
        await ctx.world.join(session, lambda turn: held_messages.cancel(turn, plan.ids))
    return past(plan.ids, order, checkpoint, len(plan.ids))


async def step_flush(
    ctx: Context,
    session: AsyncSession,
    order: dict[str, Any],
    checkpoint: dict[str, Any],
    plan: Plan,
) -> Step:
    """Flush the planned entries and return the result of the task step."""

    def unit(turn: Turn) -> None:
        bulk_updates.hurry(turn, plan.ids)

    await ctx.world.join(session, unit)
    return past(plan.ids, order, checkpoint, len(plan.ids))
