"""Bulk changes of many messages, which run as a task."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.quota import SELECT_QUOTA
from models.admin.tasks import Task
from models.errors import NotFound, OverQuota
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.mailboxes.shares import ShareRight
from models.messages.tables import Message
from models.store.columns import ColumnRow, select_columns
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepResult,
    insert_tasks_and_wake_workers,
    next_ids_of_task,
    step_result_after_ids,
)
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.bulk import owners, row_changes
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.bulk.apply import apply_bulk_request_to_rows, load_mailboxes
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.metadata_quota import (
    metadata_bytes_by_user,
    require_quota_for_metadata_in_session,
)
from resolvers.messages.bulk.owners import BulkAccounts
from resolvers.messages.bulk.selected_messages import (
    require_target_mailboxes,
    selected_messages_sql,
)
from resolvers.messages.filters.filter_conditions import MessageSelector

MESSAGES_PER_STEP = 1000  # per task step


async def insert_bulk_change_task(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    bulk_accounts: BulkAccounts,
    source_mailbox_ids: Sequence[int],
) -> Task:
    """Queue a task for the messages that the selection contains now."""
    order_columns = (col(Message.user_id), col(Message.id))
    everything = select(*order_columns, col(Message.size)).where(
        *selected_messages_sql(ctx, request, bulk_accounts)
    )
    rows = await ctx.read(everything.order_by(*order_columns))
    count_by_user, sizes = Counter(row.user_id for row in rows), Counter[int]()
    for row in rows:
        sizes[row.user_id] += row.size
    require_target_mailboxes(request, bulk_accounts, count_by_user)
    if request.is_copy or bulk_accounts.receiving_user:
        load_sizes = partial(metadata_bytes_by_user, message_ids=[row.id for row in rows])
        sizes += await ctx.environment.run_in_session(session, load_sizes)
        for user_id, size in sizes.items():
            await _require_quota(ctx, bulk_accounts.target_by_user[user_id].user_id, size)
    if request.changes:
        await require_quota_for_metadata_in_session(ctx, session, rows, request.changes)
    await owners.write_audit_log_of_bulk_change(
        ctx, session, bulk_accounts, request.mutation_name, count_by_user
    )
    orders = [
        {
            "ids": [row.id for row in rows],
            **_bulk_task_order_as_json(request, bulk_accounts, source_mailbox_ids),
        }
    ]
    owner = task_owner_id(ctx, bulk_accounts)
    (task,) = await insert_tasks_and_wake_workers(
        ctx, session, request.task_kind, orders, user_id=owner, total_count=len(rows)
    )
    stream = PLATFORM if owner is None else owner
    await ctx.record_change(session, stream, EventType.TASK_CREATED, [task.id])
    return task


def task_owner_id(ctx: Context, bulk_accounts: BulkAccounts) -> int | None:
    """Return the account of a task, or None for a task of the platform.

    A task without messages belongs to the viewer.
    """
    if bulk_accounts.other_users:
        return None
    first_user_id = next(iter(bulk_accounts.user_ids), ctx.viewer.user_id)
    return bulk_accounts.grantee_id or first_user_id or None


async def _require_quota(ctx: Context, user_id: int, byte_count: int) -> None:
    """Raise OverQuota if the account has no room for this many bytes."""
    parameters = {"user": user_id, "platform": ctx.environment.options.users_default_quota}
    for row in await ctx.read(SELECT_QUOTA, parameters):
        if row.allowed and row.used + byte_count > row.allowed:
            raise OverQuota(used=row.used, limit=row.allowed)


def _bulk_task_order_as_json(
    request: BulkRequest, bulk_accounts: BulkAccounts, source_mailbox_ids: Sequence[int]
) -> dict[str, Any]:
    changes: dict[str, Any] | None = asdict(request.changes) if request.changes else None
    values = changes["values"] if changes else None
    if values and values.get("expires_at"):
        values["expires_at"] = values["expires_at"].isoformat()
    return {
        "changes": changes,
        "folders": {str(key): mailbox.id for key, mailbox in bulk_accounts.target_by_user.items()}
        if request.target_mailbox
        else None,
        "given_to": bulk_accounts.receiving_user and bulk_accounts.receiving_user.id,
        "others": bool(bulk_accounts.other_users or bulk_accounts.grantee_id),
        "grantee": bulk_accounts.grantee_id,
        "copy": request.is_copy,
        "delete": request.is_delete,
        "permanent": request.is_permanent,
        "duplicates": request.duplicate_column,
        "emptied": list(source_mailbox_ids) if request.deletes_empty_mailboxes else None,
        "unless_since": request.unchanged_since_modseq,
    }


async def plan_streams_of_next_step(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Return the streams that the next step locks, if they are not those of the task's user."""
    if not task_order.get("others"):
        return TaskStepPlan()
    ids = next_ids_of_task(task_order, checkpoint, MESSAGES_PER_STEP)
    statement = select(col(Message.user_id)).where(col(Message.id).in_(ids))
    streams = [row.user_id for row in await ctx.read(statement.distinct())]
    return TaskStepPlan([*streams, *([task_order["given_to"]] if task_order["given_to"] else [])])


async def run_task_step_in_transaction(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _plan: TaskStepPlan,
) -> TaskStepResult:
    """Run the next step of a task."""
    ids = next_ids_of_task(task_order, checkpoint, MESSAGES_PER_STEP)
    return step_result_after_ids(
        ids,
        task_order,
        checkpoint,
        await apply_bulk_request_to_chunk_and_count(ctx, session, task_order, ids),
    )


async def apply_bulk_request_to_chunk_and_count(
    ctx: Context, session: AsyncSession, task_order: dict[str, Any], message_ids: Sequence[int]
) -> int:
    """Apply a task to one chunk of messages, inside the transaction of its step.

    Returns the number of messages. Deleted messages are left out, and those that changed although
    `unless_since` excludes it.
    """
    changes = task_order["changes"] and FlagChanges(**task_order["changes"])
    if changes and changes.values and changes.values.get("expires_at"):
        expires = row_changes.parse_stored_time(changes.values["expires_at"])
        changes = replace(changes, values={**changes.values, "expires_at": expires})
    order = BulkRequest(
        MessageSelector(ids=message_ids),
        changes or None,
        target_mailbox=MailboxSelector() if task_order["folders"] else None,
        is_copy=task_order["copy"],
        is_delete=task_order["delete"],
        is_permanent=task_order["permanent"],
        duplicate_column=task_order["duplicates"],
    )
    since = task_order.get("unless_since")
    rows = [
        row
        for row in await row_changes.load_rows_in_transaction(session, message_ids)
        if row.deleted_at is None and (since is None or row.modseq <= since)
    ]
    if order.duplicate_column:
        rows = await _rows_still_duplicate(session, rows, order.duplicate_column)
    folders = await _require_target_mailboxes_by_user(
        session, task_order, {row.user_id for row in rows}
    )
    if task_order.get("grantee"):
        rows = await _require_target_rights_and_permitted_rows(ctx, order, rows, folders)
    await apply_bulk_request_to_rows(ctx, session, order, rows, folders)
    if task_order["emptied"] is not None:
        emptied = {*task_order["emptied"], *(row.mailbox_id for row in rows)}
        await mailbox_delete.delete_empty_mailboxes(ctx, session, emptied)
    return len(rows)


async def _require_target_rights_and_permitted_rows(
    ctx: Context,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    target_by_user: Mapping[int, ColumnRow],
) -> list[ColumnRow]:
    """Return the messages for which the grantee still has the rights.

    Raises Forbidden for a target.
    """
    viewer_id = ctx.viewer.user_id
    mailboxes = sorted({row.mailbox_id for row in rows if row.user_id != viewer_id})
    is_for_other_account = any(mailbox.user_id != user for user, mailbox in target_by_user.items())
    missing_rights = await bulk_rights.load_missing_rights_in_shared_mailboxes(
        ctx,
        mailboxes,
        bulk_rights.rights_needed_in_source(request, to_other_account=is_for_other_account),
    )
    for mailbox in target_by_user.values():
        if mailbox.user_id != viewer_id:
            required_rights = bulk_rights.rights_for_changes(request.changes) | {ShareRight.INSERT}
            await bulk_rights.require_rights_in_shared_mailboxes(
                ctx, [mailbox.id], required_rights, ["to"]
            )
    return [row for row in rows if row.mailbox_id not in missing_rights]


async def _rows_still_duplicate(
    session: AsyncSession, rows: Sequence[ColumnRow], duplicate_column: str
) -> list[ColumnRow]:
    """Return the messages that are still duplicates: an older one that is not among them exists."""
    duplicate_value = col(getattr(Message, duplicate_column))
    names = ("id", "mailbox_id", "received_at", duplicate_column)
    connection = await session.connection()
    query = select(*select_columns(Message, names)).where(
        col(Message.id).in_([row.id for row in rows])
    )
    rows_by_id = {row.id: row for row in (await connection.execute(query)).all()}
    values = {getattr(row, duplicate_column) for row in rows_by_id.values()}
    mailboxes = {row.mailbox_id for row in rows}
    statement = select(*select_columns(Message, names)).where(
        col(Message.mailbox_id).in_(mailboxes), duplicate_value.in_(values)
    )
    oldest: dict[tuple[int, Any], tuple[datetime, int]] = {}
    for row in (await connection.execute(statement)).all():
        key, age = (row.mailbox_id, getattr(row, duplicate_column)), (row.received_at, row.id)
        oldest[key] = min(age, oldest.get(key, age))
    oldest_ids = {age[1] for age in oldest.values()}
    return [row for row in rows if row.id not in oldest_ids]


async def _require_target_mailboxes_by_user(
    session: AsyncSession, task_order: Mapping[str, Any], user_ids: Iterable[int]
) -> dict[int, ColumnRow]:
    """Return the target mailbox of each account. Raises NotFound if it was deleted."""
    keys = (
        {user: task_order["folders"][str(user)] for user in user_ids}
        if task_order["folders"]
        else {}
    )
    rows_by_id = await load_mailboxes(session, keys.values()) if keys else {}
    for key in keys.values():
        if key not in rows_by_id:
            raise NotFound(str(key), path=["to"], noun="Target mailbox")
    return {user: rows_by_id[key] for user, key in keys.items()}
