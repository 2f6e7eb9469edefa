"""Recalculation of the storage in use, from the stored messages and custom data."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from sqlalchemy import bindparam, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.tasks import Task, TaskKind
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.messages.tables import Message
from models.store.columns import core_table, select_columns
from models.users.custom_data_usage import custom_data_bytes_sql, stored_bytes_of_message_sql
from models.users.roles import Role
from models.users.tables import User
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.viewer import GuardRule

KIND = TaskKind.QUOTA_RECALCULATE
MAX_USERS = 100  # of one transaction; more need a task
MAX_MESSAGES_PER_STEP = 200_000  # of the users of a step with several users; about a second


@dataclass(frozen=True, slots=True)
class QuotaCount:
    """The storage in use of a user, in bytes, before and after a recalculation."""

    user_id: int
    bytes_before: int
    bytes_now: int


@dataclass(frozen=True, slots=True)
class QuotaRecalculation:
    """The result of a recalculation, or the task that does it."""

    counts: Sequence[QuotaCount] = ()
    task: Task | None = None


async def recalculate_storage_usage_or_queue(
    ctx: Context, selection: UserSelector
) -> QuotaRecalculation:
    """Count the bytes these users store: at once for up to 100 users, else in a task.

    Each user is locked during the count, so that the sum is exact. `all` needs the role ADMIN.
    """
    if selection.all:
        ctx.viewer.require(GuardRule(role=Role.ADMIN))
        return QuotaRecalculation(task=await _queue_recalculation(ctx, None))
    ids = [row.id for row in await require_selected_users(ctx, selection, only_managed=False)]
    if len(ids) > MAX_USERS:
        return QuotaRecalculation(task=await _queue_recalculation(ctx, ids))
    task_plan = await _plan_recalculation(ctx, ids)
    async with ctx.write_session(*task_plan.stream_ids) as session:
        return QuotaRecalculation(await recount_and_correct_locked_users(ctx, session, ids))


async def _queue_recalculation(ctx: Context, ids_or_all: Sequence[int] | None) -> Task:
    total = len(ids_or_all) if ids_or_all is not None else None
    if ids_or_all is None:
        ((total,),) = await ctx.read(select(func.count()).select_from(User))
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, KIND, [{"ids": ids_or_all}], total_count=total
        )
        await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
    return task


async def _plan_recalculation(ctx: Context, ids: Sequence[int]) -> TaskStepPlan:
    """Plan the transaction: it locks the users and the streams of their domains."""
    statement = select(col(User.domain_id)).where(col(User.id).in_(ids)).distinct()
    domain_streams = [row.domain_id or PLATFORM for row in await ctx.read(statement)]
    return TaskStepPlan([*ids, *domain_streams], ids)


async def plan_next_users(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Plan the recalculation of the next users, by id."""
    after, ids = checkpoint.get("after", 0), task_order["ids"]
    if ids is not None:
        next_ids = [key for key in ids if key > after][:MAX_USERS]
        is_next = col(User.id).in_(next_ids)
    else:
        is_next = col(User.id) > after
    statement = select(col(User.id), col(User.message_count)).where(is_next)
    rows = await ctx.read(statement.order_by(col(User.id)).limit(MAX_USERS))
    message_counts = accumulate(row.message_count for row in rows)
    step_ids = [
        row.id
        for index, (row, message_count) in enumerate(zip(rows, message_counts, strict=True))
        if not index or message_count <= MAX_MESSAGES_PER_STEP
    ]
    return await _plan_recalculation(ctx, step_ids)


async def recalculate_quota_of_next_users(
    ctx: Context,
    session: AsyncSession,
    _order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    """Recalculate the users of one transaction; return the task step."""
    if not task_plan.ids:
        return TaskStepResult(checkpoint)
    counts = await recount_and_correct_locked_users(ctx, session, task_plan.ids)
    corrected_count = checkpoint.get("correctedCount", 0) + sum(
        count.bytes_before != count.bytes_now for count in counts
    )
    next_checkpoint = {"after": task_plan.ids[-1], "correctedCount": corrected_count}
    return TaskStepResult(next_checkpoint, done_count=len(task_plan.ids), has_more=True)


async def recount_and_correct_locked_users(
    ctx: Context, session: AsyncSession, ids: Collection[int]
) -> list[QuotaCount]:
    """Count messages and custom data of users, which are locked, and correct their counters."""
    sums_statement = (
        select(col(Message.user_id), func.sum(stored_bytes_of_message_sql()), func.count())
        .where(col(Message.user_id).in_(ids), col(Message.deleted_at).is_(None))
        .group_by(col(Message.user_id))
    )
    stored = {
        key: (int(size), message_count)
        for key, size, message_count in await ctx.read(sums_statement)
    }
    names = {"id", "domain_id", "used", "message_count"}
    custom_data = custom_data_bytes_sql().label("custom_data")
    rows = await ctx.read(
        select(*select_columns(User, names), custom_data)
        .where(col(User.id).in_(ids))
        .order_by(col(User.id))
    )
    for row in rows:
        size, message_count = stored.get(row.id, (0, 0))
        stored[row.id] = (size + int(row.custom_data), message_count)
    incorrect_rows = [row for row in rows if (row.used, row.message_count) != stored[row.id]]
    table = core_table(User)
    statement = (
        update(table)
        .where(table.c.id == bindparam("key"))
        .values(used=bindparam("size"), message_count=bindparam("many"))
    )
    corrections = [
        dict(zip(("key", "size", "many"), (row.id, *stored[row.id]), strict=True))
        for row in incorrect_rows
    ]
    if corrections:
        await (await session.connection()).execute(statement, corrections)
    incorrect_ids_by_stream: defaultdict[int, list[int]] = defaultdict(list)
    for row in incorrect_rows:
        incorrect_ids_by_stream[row.domain_id or PLATFORM].append(row.id)
    event_type = EventType.USER_UPDATED
    await ctx.record_changes(
        session,
        {stream: [(event_type, user_ids)] for stream, user_ids in incorrect_ids_by_stream.items()},
    )
    return [QuotaCount(row.id, row.used, stored[row.id][0]) for row in rows]
