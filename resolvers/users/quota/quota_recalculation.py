"""Recalculation of the storage in use, from the stored messages."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import Task
from models.events.journal import PLATFORM, ChangeKind
from models.messages.tables import Message
from models.store.columns import picked, table_of
from models.users.roles import Role
from models.users.tables import User
from resolvers.admin.task_steps import Plan, Step, queue
from resolvers.context import Context, Needs
from resolvers.users.selection import Users, chosen

KIND = "QUOTA_RECALCULATE"
TOGETHER = 100  # of one transaction; more need a task


@dataclass(frozen=True, slots=True)
class Recounted:
    """The result of a recalculation, or the task that does it."""

    counts: Sequence[tuple[int, int, int]] = ()  # id, bytes before, bytes now
    task: Task | None = None


async def recalculate(ctx: Context, users: Users) -> Recounted:
    """Count the bytes these users store: at once for up to 100 users, else in a task.

    Each user is locked during the count, so that the sum is exact. `all` needs the role ADMIN.
    """
    if users.all:
        ctx.viewer.require(Needs(role=Role.ADMIN))
        return Recounted(task=await _task(ctx, None))
    ids = [row.id for row in await chosen(ctx, users, managed=False)]
    if len(ids) > TOGETHER:
        return Recounted(task=await _task(ctx, ids))
    held = await _held(ctx, ids)
    async with ctx.write(*held.streams) as session:
        return Recounted(await recount(ctx, session, ids))


async def _task(ctx: Context, ids: Sequence[int] | None) -> Task:
    total = len(ids) if ids is not None else None
    if ids is None:
        ((total,),) = await ctx.read(select(func.count()).select_from(User))
    async with ctx.write(PLATFORM) as session:
        (task,) = await queue(ctx, session, KIND, [{"ids": ids}], total=total)
        await ctx.record(session, PLATFORM, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def _held(ctx: Context, ids: Sequence[int]) -> Plan:
    """Plan the transaction: it locks the users and the streams of their domains."""
    asked = select(col(User.domain_id)).where(col(User.id).in_(ids)).distinct()
    places = [row.domain_id or PLATFORM for row in await ctx.read(asked)]
    return Plan([*ids, *places], ids)


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Plan the recalculation of the next users, by id."""
    after, ids = checkpoint.get("after", 0), order["ids"]
    if ids is not None:
        return await _held(ctx, [key for key in ids if key > after][:TOGETHER])
    asked = select(col(User.id)).where(col(User.id) > after).order_by(col(User.id)).limit(TOGETHER)
    return await _held(ctx, [row.id for row in await ctx.read(asked)])


async def step(
    ctx: Context,
    session: AsyncSession,
    _order: dict[str, Any],
    checkpoint: dict[str, Any],
    held: Plan,
) -> Step:
    """Recalculate the users of one transaction; return the task step."""
    counts = await recount(ctx, session, held.ids)
    wrong = checkpoint.get("corrected", 0) + sum(before != now for _, before, now in counts)
    after = held.ids[-1] if held.ids else checkpoint.get("after", 0)
    left = {"after": after, "corrected": wrong}
    return Step(left, done=len(held.ids), more=len(held.ids) == TOGETHER)


async def recount(
    ctx: Context, session: AsyncSession, ids: Collection[int]
) -> list[tuple[int, int, int]]:
    """Count the messages of users, which are locked, and correct their counters.

    Returns id, old bytes and new bytes of each user.
    """
    asked = (
        select(col(Message.user_id), func.sum(col(Message.size)), func.count())
        .where(col(Message.user_id).in_(ids), col(Message.archived_at).is_(None))
        .group_by(col(Message.user_id))
    )
    stored = {key: (int(size), many) for key, size, many in await ctx.read(asked)}
    names = {"id", "domain_id", "used", "message_count"}
    rows = await ctx.read(
        select(*picked(User, names)).where(col(User.id).in_(ids)).order_by(col(User.id))
    )
    wrong = [row for row in rows if (row.used, row.message_count) != stored.get(row.id, (0, 0))]
    table = table_of(User)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(used=bindparam("size"), message_count=bindparam("many"))
    )
    given = [
        dict(zip(("key", "size", "many"), (row.id, *stored.get(row.id, (0, 0))), strict=True))
        for row in wrong
    ]
    if given:
        await (await session.connection()).execute(statement, given)
    told: defaultdict[int, list[int]] = defaultdict(list)
    for row in wrong:
        told[row.domain_id or PLATFORM].append(row.id)
    kind = ChangeKind.USER_CHANGED
    await ctx.record_all(session, {stream: [(kind, theirs)] for stream, theirs in told.items()})
    return [(row.id, row.used, stored.get(row.id, (0, 0))[0]) for row in rows]
