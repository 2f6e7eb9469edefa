"""Tasks of administrators that fill, rebuild and optimize the text index."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, text
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes import paths
from mail.search import index_rebuild, index_worker
from mail.search.index_worker import BATCH_SIZE, MESSAGE_COLUMNS
from models.admin.tasks import Task, TaskKind
from models.errors import Conflict, InvalidInput
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.events.wakeups import UNINDEXED
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import wake_workers_after_commit
from models.search import text_index
from models.store.columns import ColumnRow, select_columns
from models.users.roles import Role, Scope
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.admin.task_steps import (
    TaskRunner,
    TaskStepPlan,
    TaskStepResult,
    insert_tasks_and_wake_workers,
)
from resolvers.context import Context
from resolvers.mailboxes.loaders import matches_pattern_sql
from resolvers.mailboxes.owners import require_permitted_mail_owners
from resolvers.users.selection import UserSelector
from resolvers.viewer import GuardRule

BUILD = TaskKind.SEARCH_INDEX_BUILD
REBUILD = TaskKind.SEARCH_INDEX_REBUILD
OPTIMIZE = TaskKind.SEARCH_INDEX_OPTIMIZE
OPERATOR_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)
MAX_MESSAGES_IN_REQUEST = 1000  # a request indexes up to this number itself; more become a task
ROWS_PER_OPTIMIZE_STEP = 5000
IS_UNINDEXED = text("NOT messages.indexed")  # spelled as in the partial database index


@dataclass(frozen=True, slots=True)
class IndexBuildRequest:
    """Which unindexed messages to index."""

    mailbox_patterns: Sequence[str]
    max_unindexed: int | None = None  # skip mailboxes with more of them
    always_queue: bool = False  # queue a task even for few messages


@dataclass(frozen=True, slots=True)
class IndexBuildResult:
    """The number of messages indexed, or the task that indexes them."""

    indexed_count: int | None = None
    task: Task | None = None


async def index_or_queue_unindexed_messages(
    ctx: Context, request: IndexBuildRequest, user_selector: UserSelector
) -> IndexBuildResult:
    """Index the unindexed messages of matching mailboxes, at once if they are few, else by a task.

    Raises Forbidden if the viewer is no administrator, InvalidInput for a bad pattern or number.
    """
    ctx.viewer.require(OPERATOR_RULE)
    paths.patterns_regex_with_atomic_groups(
        request.mailbox_patterns, input_path=["mailboxPatterns"]
    )
    order = {
        **await _user_part_of_task_order(ctx, user_selector),
        "patterns": list(request.mailbox_patterns),
    }
    if request.max_unindexed is not None:
        if request.max_unindexed < 0:
            raise InvalidInput(
                "Must be at least 0.", constraint=ValidationConstraint.MIN, path=["maxRecent"]
            )
        order["without"] = await _load_crowded_mailbox_ids(ctx, order, request.max_unindexed)
    if not (request.always_queue or ctx.is_writing):
        rows = await ctx.read(
            _unindexed_messages_query(ctx, order).limit(MAX_MESSAGES_IN_REQUEST + 1)
        )
        if len(rows) <= MAX_MESSAGES_IN_REQUEST:
            return IndexBuildResult(
                indexed_count=await _index_messages_and_record_contacts(ctx, rows)
            )
    return IndexBuildResult(
        task=await _insert_task(
            ctx, BUILD, order, await _count_rows(ctx, _unindexed_messages_query(ctx, order))
        )
    )


async def queue_rebuild(ctx: Context, user_selector: UserSelector) -> Task:
    """Queue a task that indexes the messages of these users again.

    On SQLite, and for all users of a ROOT, the task creates a whole new index. Raises Conflict if
    such a task is unfinished.
    """
    ctx.viewer.require(OPERATOR_RULE)
    order = await _user_part_of_task_order(ctx, user_selector)
    if ctx.environment.database.dialect == "sqlite":
        order = {"ids": None}
    if _is_whole_index(order):
        unfinished_rebuild = select(col(Task.id)).where(
            col(Task.kind) == REBUILD, _is_unfinished_sql()
        )
        if any(True for _ in await ctx.read(unfinished_rebuild)):
            error_text = "The index is being rebuilt: wait for that task, or cancel it."
            raise Conflict(error_text, path=["users"])
    return await _insert_task(ctx, REBUILD, order, await _count_rows(ctx, _messages_query(order)))


async def queue_optimize(ctx: Context) -> Task:
    """Queue a task that optimizes the index.

    On SQLite it merges index segments; on PostgreSQL it deletes rows of deleted messages.
    """
    ctx.viewer.require(OPERATOR_RULE)
    total = None
    if ctx.environment.database.dialect == "postgresql":
        listed = select(func.count()).select_from(text_index.indexed_ids_table("postgresql"))
        ((total,),) = await ctx.read(listed)
    return await _insert_task(ctx, OPTIMIZE, {}, total)


def _is_unfinished_sql() -> ColumnElement[bool]:
    """Return the WHERE clause for unfinished tasks."""
    return col(Task.finished_at).is_(None)


async def _user_part_of_task_order(ctx: Context, user_selector: UserSelector) -> dict[str, Any]:
    """Return the part of a task order that says whose messages the task indexes.

    `ids` of None means all users; with `excludes_root`, all except those with the role ROOT.
    """
    if user_selector.all:
        return {"ids": None, "excludes_root": ctx.viewer.role is not Role.ROOT}
    rows = await require_permitted_mail_owners(ctx, user_selector, "users")
    return {"ids": [row.id for row in rows]}


def _is_whole_index(task_order: dict[str, Any]) -> bool:
    """True if a task is for the messages of all users, also of those with the role ROOT."""
    return task_order["ids"] is None and not task_order.get("excludes_root")


async def _index_messages_and_record_contacts(
    ctx: Context, message_rows: Sequence[ColumnRow]
) -> int:
    """Index these messages and return how many were new."""
    entries = []
    for start in range(0, len(message_rows), BATCH_SIZE):
        entries += await index_worker.load_index_entries(
            ctx.environment, message_rows[start : start + BATCH_SIZE], ctx.read
        )
    if not entries:
        return 0
    async with ctx.write_session() as session:
        return await (await session.connection()).run_sync(
            index_worker.insert_unindexed_and_record_contacts, entries
        )


async def _insert_task(
    ctx: Context, task_kind: TaskKind, task_order: dict[str, Any], total_count: int | None
) -> Task:
    """Insert a task and record it in the platform's journal."""
    async with ctx.write_session(PLATFORM) as session:
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, task_kind, [task_order], total_count=total_count
        )
        await ctx.record_change(session, PLATFORM, EventType.TASK_CREATED, [task.id])
    return task


async def _count_rows(ctx: Context, message_query: Any) -> int:
    """Return the number of messages of a SELECT."""
    counted = message_query.with_only_columns(col(Message.id)).order_by(None).subquery()
    ((row_count,),) = await ctx.read(select(func.count()).select_from(counted))
    return int(row_count)


def _messages_query(task_order: dict[str, Any]) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the messages of these users, by ID."""
    statement = select(*select_columns(Message, MESSAGE_COLUMNS)).order_by(col(Message.id))
    if _is_whole_index(task_order):
        return statement
    if task_order["ids"] is not None:
        return statement.where(col(Message.user_id).in_(task_order["ids"]))
    root_ids = select(col(User.id)).where(col(User.role) == Role.ROOT)
    return statement.where(col(Message.user_id).not_in(root_ids))


def _unindexed_messages_query(ctx: Context, task_order: dict[str, Any]) -> Select[*tuple[Any, ...]]:
    """Return a SELECT of the unindexed messages in the mailboxes of a task order."""
    mailbox_ids = select(col(Mailbox.id)).where(
        matches_pattern_sql(ctx, paths.patterns_regex_with_atomic_groups(task_order["patterns"]))
    )
    statement = _messages_query(task_order).where(
        IS_UNINDEXED, col(Message.mailbox_id).in_(mailbox_ids)
    )
    return statement.where(col(Message.mailbox_id).not_in(task_order.get("without", ())))


async def _load_crowded_mailbox_ids(
    ctx: Context, task_order: dict[str, Any], max_unindexed: int
) -> list[int]:
    """Return the IDs of mailboxes with more than `max_unindexed` unindexed messages."""
    statement = (
        _unindexed_messages_query(ctx, task_order)
        .with_only_columns(col(Message.mailbox_id))
        .order_by(None)
    )
    rows = statement.group_by(col(Message.mailbox_id)).having(func.count() > max_unindexed)
    return [row.mailbox_id for row in await ctx.read(rows)]


async def _read_next_rows(
    ctx: Context, message_query: Any, checkpoint: dict[str, Any]
) -> Sequence[ColumnRow]:
    """Read the next batch of messages after a checkpoint."""
    rows_after_checkpoint = message_query.where(col(Message.id) > checkpoint.get("at", 0))
    return await ctx.read(rows_after_checkpoint.limit(BATCH_SIZE))


def _result_after_rows(rows: Sequence[ColumnRow], done_count: int) -> TaskStepResult:
    """Return the step result with the last of these rows as checkpoint."""
    return TaskStepResult({"at": rows[-1].id}, done_count, has_more=True)


async def _prepare_build_step(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    rows = await _read_next_rows(ctx, _unindexed_messages_query(ctx, task_order), checkpoint)
    return TaskStepPlan(
        prepared=(rows, await index_worker.load_index_entries(ctx.environment, rows))
    )


async def _insert_index_entries_in_step(
    _ctx: Context,
    session: AsyncSession,
    _: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    rows, entries = task_plan.prepared
    if not rows:
        return TaskStepResult(checkpoint)
    return _result_after_rows(
        rows,
        await (await session.connection()).run_sync(
            index_worker.insert_unindexed_and_record_contacts, entries
        ),
    )


async def _load_index_entries_of_step(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    rows = await _read_next_rows(ctx, _messages_query(task_order), checkpoint)
    return TaskStepPlan(
        prepared=(
            rows,
            await index_worker.load_index_entries(ctx.environment, rows, is_reindex=True),
        )
    )


async def _reindex_or_activate_new_index_in_step(
    _ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    rows, entries = task_plan.prepared
    connection = await session.connection()
    if not _is_whole_index(task_order):
        if not rows:
            return TaskStepResult(checkpoint)
        return _result_after_rows(
            rows, await index_rebuild.reindex_unchanged_messages(connection, entries)
        )
    if not checkpoint:
        await index_rebuild.create_new_index(connection)
    if not rows:
        await index_rebuild.activate_new_index_and_mark_missing_messages(connection)
        wake_workers_after_commit(session, UNINDEXED)
        return TaskStepResult(checkpoint)
    return _result_after_rows(rows, await index_rebuild.add_to_new_index(connection, entries))


async def _plan_rows_of_optimize_step(
    ctx: Context, _: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    if ctx.environment.database.dialect == "sqlite":
        return TaskStepPlan()
    (key,) = text_index.indexed_ids_table("postgresql").c
    statement = (
        select(key).where(key > checkpoint.get("at", 0)).order_by(key).limit(ROWS_PER_OPTIMIZE_STEP)
    )
    return TaskStepPlan(ids=[row.rowid for row in await ctx.read(statement)])


async def _merge_segments_or_delete_rows_in_step(
    ctx: Context,
    session: AsyncSession,
    _: dict[str, Any],
    checkpoint: dict[str, Any],
    task_plan: TaskStepPlan,
) -> TaskStepResult:
    connection, at = await session.connection(), checkpoint.get("at", 0)
    if ctx.environment.database.dialect == "sqlite":
        has_more = await index_rebuild.merge_segments_and_return_has_more(
            connection, is_first=not at
        )
        return TaskStepResult({"at": at + 1}, done_count=1, has_more=has_more)
    if not task_plan.ids:
        return TaskStepResult(checkpoint)
    last = task_plan.ids[-1]
    delete_result = await connection.execute(
        text_index.DELETE_ORPHANED_ROWS, {"after": at, "last": last}
    )
    corrected = checkpoint.get("correctedCount", 0) + delete_result.rowcount
    return TaskStepResult(
        {"at": last, "correctedCount": corrected}, done_count=len(task_plan.ids), has_more=True
    )


TASK_RUNNERS = {
    BUILD: TaskRunner(_prepare_build_step, _insert_index_entries_in_step),
    REBUILD: TaskRunner(_load_index_entries_of_step, _reindex_or_activate_new_index_in_step),
    OPTIMIZE: TaskRunner(_plan_rows_of_optimize_step, _merge_segments_or_delete_rows_in_step),
}
