"""Deleted messages that can be restored: listing, single messages, and restoring by time."""

from collections import defaultdict
from collections.abc import Collection, Container, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.special_use_names import restored_mailbox_name
from mail.queue.held_messages import find_messages_without_hold
from models.admin.tasks import Task, TaskKind
from models.errors import Forbidden, InvalidInput, NotFound
from models.events.event_types import EventType
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.keyset_pages import Page
from models.users.roles import AdminPermission, Role
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import (
    can_see_managed_mail_records,
    is_own_prepared,
    is_visible_or_managed,
    require_user_id,
)
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.list_orders import OwnerPageKey, read_whole_own_list
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.bulk import flags, row_changes
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.bulk.row_changes import STATE_COLUMNS
from resolvers.messages.content_access import CONTENT_COLUMNS, withhold_content_or_log_read
from resolvers.messages.filters.filter_conditions import FilterSql, load_filter_sql
from resolvers.messages.filters.filter_lookups import ScopedMessageFilter
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.messages.listing import ALL_MESSAGES
from resolvers.pagination import PageScan
from resolvers.users import loaders as user_loaders
from resolvers.users.selection import require_managed_user, require_managed_users

TASK_KIND = TaskKind.DELETED_MESSAGES_RESTORE  # of the task that restores a period
MESSAGES_PER_STEP = 1000  # per task step
NEWEST_FIRST, OLDEST_FIRST = "archived-", "archived+"
SORT_KEY = (col(Message.deleted_at), col(Message.id))
ORIGIN_COLUMNS = frozenset({"deleted_from", "deleted_mailbox_id"})


@dataclass(frozen=True, slots=True)
class DeletedMessageListing(OwnerPageKey):
    """A page of a user's deleted messages, with the columns that are read."""

    conditions: MessageConditions = ALL_MESSAGES


@dataclass(frozen=True, slots=True)
class DeletionPeriod:
    """Messages deleted from `since` to `before`, and whether they go into one mailbox."""

    since: datetime
    before: datetime
    user_id: int | None = None  # None: the viewer
    into_new_mailbox: bool = False  # named "Restored (date)" in the user's language


def restorable_conditions_without_access(
    now: datetime | ColumnElement[datetime],
) -> list[ColumnElement[bool]]:
    """Build the conditions that a deleted message can be restored. Drafts can't, except by undo."""
    return [
        col(Message.deleted_at).is_not(None),
        ~col(Message.draft),
        col(Message.purge_at) > now,
    ]


async def load_visible_deleted_message_pages(
    ctx: Context, listings: list[DeletedMessageListing]
) -> list[Page[ColumnRow]]:
    """Load the pages of these listings, each in reading order."""
    own_pages = await read_whole_own_list(
        ctx,
        Message,
        listings,
        _select_own_messages,
        now=ctx.environment.now(),
        reads_many_rows=True,
    )
    if own_pages:
        return own_pages
    names = frozenset({"deleted_at", "id", "user_id"}).union(*(key.columns for key in listings))
    scans = []
    for key, filter_sql in zip(listings, await _load_filters(ctx, listings), strict=True):
        has_few_rows = filter_sql.finds_rows_by_key_or_word
        conditions = (
            _listing_conditions(ctx, key, filter_sql)
            if has_few_rows
            else _scope_conditions(ctx, key)
        )
        scans.append(
            PageScan(
                select(*select_columns(Message, names)).where(*conditions),
                key.page_request,
                SORT_KEY,
                is_descending=key.order.is_descending,
                tested_conditions=() if has_few_rows else filter_sql.conditions,
            )
        )
    pages = await pagination.read_pages(ctx, scans)
    if not (
        ctx.viewer.role is Role.ROOT
        or ctx.viewer.share_visibility.has_shared_mailboxes
        or names & CONTENT_COLUMNS
    ):
        return pages
    return [
        replace(page, rows=await withhold_content_or_log_read(ctx, page.rows)) for page in pages
    ]


def _select_own_messages(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Message, columns)).where(
        is_own_prepared(Message),
        *restorable_conditions_without_access(bindparam("now", type_=UtcDateTime)),
    )


async def count_visible_deleted_messages(
    ctx: Context, listings: list[DeletedMessageListing]
) -> list[int]:
    """Count the messages of these listings."""
    count_column = func.count().label("many")
    scans = [
        select(count_column).select_from(Message).where(*_listing_conditions(ctx, key, filter_sql))
        for key, filter_sql in zip(listings, await _load_filters(ctx, listings), strict=True)
    ]
    return [row.many for (row,) in await pagination.read_union(ctx, scans)]


async def _load_filters(ctx: Context, listings: Sequence[DeletedMessageListing]) -> list[FilterSql]:
    scopes = [
        ScopedMessageFilter(key.conditions, key.owner_id, is_deleted=True) for key in listings
    ]
    return await ctx.load_many(load_filter_sql, scopes)


def _scope_conditions(ctx: Context, listing: DeletedMessageListing) -> list[ColumnElement[bool]]:
    return [
        is_visible_or_managed(ctx, Message),
        col(Message.user_id) == listing.owner_id,
        *restorable_conditions_without_access(ctx.environment.now()),
    ]


def _listing_conditions(
    ctx: Context, listing: DeletedMessageListing, filter_sql: FilterSql
) -> list[ColumnElement[bool]]:
    return filter_sql.combine_with(ctx, _scope_conditions(ctx, listing))


async def load_visible_by_ids(ctx: Context, message_ids: list[int]) -> list[ColumnRow | None]:
    """Load the deleted messages with these IDs, in this order. None if the viewer can't see one.

    Messages of other users have only the record: `resolvers/messages/content_access.py`.
    """
    statement = select(*select_columns(Message)).where(
        is_visible_or_managed(ctx, Message),
        *restorable_conditions_without_access(ctx.environment.now()),
        col(Message.id).in_(message_ids),
    )
    rows_by_id = {
        row.id: row for row in await withhold_content_or_log_read(ctx, await ctx.read(statement))
    }
    return [rows_by_id.get(key) for key in message_ids]


async def restore_deleted_messages(
    ctx: Context, message_ids: Sequence[int], mailbox: MailboxSelector | None
) -> None:
    """Restore deleted messages, all or none: into `mailbox`, else where each was, else INBOX.

    Administrators restore messages of other accounts that they see as records; the mailbox is that
    of each account. Raises NotFound, with its path, for a message that is not among the deleted
    ones, and OverQuota.
    """
    conditions = (
        is_visible_or_managed(ctx, Message),
        *restorable_conditions_without_access(ctx.environment.now()),
        col(Message.id).in_(message_ids),
    )
    message_rows = await ctx.read(
        select(*select_columns(Message, {"id", "user_id"})).where(*conditions)
    )
    owners = {row.id: row.user_id for row in message_rows}
    _require_all_found(message_ids, owners)
    owner_ids = [owners[message_id] for message_id in message_ids]
    accounts = (
        await require_managed_users(ctx, owner_ids, path="select")
        if set(owner_ids) != {ctx.viewer.user_id}
        else []
    )
    async with ctx.write_session(*owners.values()) as session:
        statement = select(*select_columns(Message, STATE_COLUMNS | ORIGIN_COLUMNS)).where(
            *conditions
        )
        rows = {row.id: row for row in await ctx.read(statement)}
        _require_all_found(message_ids, rows)
        by_user = row_changes.group_rows_by_user(list(rows.values()))
        for user_id, user_message_ids in by_user.items():
            target_mailbox = (
                await ctx.load(mailbox_loaders.load_visible_by_selectors, (user_id, mailbox))
                if mailbox
                else None
            )
            if mailbox and target_mailbox is None:
                raise NotFound(str(mailbox), path=["mailbox"])
            await _undelete_rows_into_given_or_former_mailbox(
                ctx, session, user_message_ids, target_mailbox.id if target_mailbox else None
            )
        entries = [
            NewAuditLogEntry(
                "deletedMessageRestore",
                "User",
                row.id,
                row.domain_id,
                after={"messages": message_count},
            )
            for row, message_count in ((row, len(by_user[row.id])) for row in accounts)
            if row.id != ctx.viewer.user_id
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


def _require_all_found(message_ids: Sequence[int], found_ids: Container[int]) -> None:
    """Raise NotFound, with its path, for the first deleted message that is not found."""
    for nth, message_id in enumerate(message_ids):
        if message_id not in found_ids:
            raise NotFound(str(message_id), path=["select", "ids", str(nth)])


async def _undelete_rows_into_given_or_former_mailbox(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], mailbox_id: int | None
) -> None:
    r"""Restore deleted messages of one account into its mailboxes.

    The flag \Deleted is removed, since mail programs expunge messages with it.
    """
    columns = {"id", "user_id", "path", "retention", "special_use"}
    mailboxes = await mailbox_loaders.load_visible_mailboxes_of_user(ctx, rows[0].user_id, columns)
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    by_path = {mailbox.path: mailbox for mailbox in mailboxes}
    inbox = by_path["INBOX"]
    targets = {
        row.id: by_id.get(mailbox_id or row.deleted_mailbox_id)
        or by_path.get(row.deleted_from, inbox)
        for row in rows
    }
    if mailbox_id is None:
        connection = await session.connection()
        unheld_ids = await connection.run_sync(find_messages_without_hold, targets)
        for key, target in targets.items():  # from a holding mailbox, nothing would bring it back
            if key in unheld_ids or target.special_use is SpecialUse.SNOOZED:
                targets[key] = inbox
    groups: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in rows:
        groups[targets[row.id].id].append(row)
    for key, group_rows in sorted(groups.items()):
        await row_changes.restore_deleted_messages_to_mailbox(ctx, session, group_rows, by_id[key])
    if deleted_flag_ids := [row.id for row in rows if row.deleted]:
        flagged_rows = await row_changes.load_rows_in_transaction(session, deleted_flag_ids)
        await flags.change_flags(ctx, session, flagged_rows, FlagChanges({"deleted": False}))


async def queue_restore_of_period(ctx: Context, period: DeletionPeriod) -> Task:
    """Queue a task that restores the messages deleted in a period.

    Administrators can do that for users if they see their mail as records. Raises InvalidInput or
    Forbidden.
    """
    if period.since >= period.before:
        text = "`before` must be later than `since`."
        raise InvalidInput(
            text, constraint=ValidationConstraint.RANGE, path=["select", "period", "before"]
        )
    user = await require_managed_user(
        ctx, require_user_id(ctx) if period.user_id is None else period.user_id
    )
    foreign = user.id != ctx.viewer.user_id
    if foreign and not can_see_managed_mail_records(ctx):
        requires = AdminPermission.IMPERSONATE
        raise Forbidden(f"Requires the permission {requires}.", requires=requires)
    # later deletions are not restored
    before = min(period.before, ctx.environment.now() + timedelta(microseconds=1))
    order = {
        "since": period.since.isoformat(),
        "before": before.isoformat(),
        "together": period.into_new_mailbox,
    }
    async with ctx.write_session(user.id) as session:
        statement = select(func.count()).select_from(Message)
        ((total,),) = await ctx.read(statement.where(*_deleted_in_period_sql(ctx, user.id, order)))
        (task,) = await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order], user_id=user.id, total_count=total
        )
        await ctx.record_change(session, user.id, EventType.TASK_CREATED, [task.id])
        if foreign:
            entry = NewAuditLogEntry(
                "deletedMessageRestore", "User", user.id, user.domain_id, None, order
            )
            await audit_log.insert_audit_log_entries(ctx, session, entry)
    return task


def _deleted_in_period_sql(
    ctx: Context, user_id: int, task_order: dict[str, Any]
) -> list[ColumnElement[bool]]:
    at = col(Message.deleted_at)
    since, before = (datetime.fromisoformat(task_order[name]) for name in ("since", "before"))
    return [
        col(Message.user_id) == user_id,
        *restorable_conditions_without_access(ctx.environment.now()),
        at >= since,
        at < before,
    ]


async def plan_nothing(
    _ctx: Context, _task_order: dict[str, Any], _checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Return an empty plan: the step locks only the account of the task."""
    return TaskStepPlan()


async def restore_next_messages(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _plan: TaskStepPlan,
) -> TaskStepResult:
    """Restore the next messages. Restored messages are no longer selected."""
    statement = select(*select_columns(Message, STATE_COLUMNS | ORIGIN_COLUMNS | {"deleted_at"}))
    statement = (
        statement.where(*_deleted_in_period_sql(ctx, require_user_id(ctx), task_order))
        .order_by(*SORT_KEY)
        .limit(MESSAGES_PER_STEP)
    )
    rows = await ctx.read(statement)
    target_mailbox_id = checkpoint.get("mailbox")
    if rows and task_order["together"] and target_mailbox_id is None:
        target_mailbox_id = await _find_or_create_restore_mailbox(ctx)
    if rows:
        await _undelete_rows_into_given_or_former_mailbox(ctx, session, rows, target_mailbox_id)
    return TaskStepResult(
        {"mailbox": target_mailbox_id},
        done_count=len(rows),
        has_more=len(rows) == MESSAGES_PER_STEP,
    )


async def _find_or_create_restore_mailbox(ctx: Context) -> int:
    """Return the mailbox for messages restored today; create it if needed."""
    user = await ctx.load(user_loaders.load_visible_users_by_id, require_user_id(ctx))
    path = restored_mailbox_name(user.language if user else None, ctx.environment.now().date())
    mailboxes = await mailbox_loaders.load_visible_mailboxes_of_user(
        ctx, require_user_id(ctx), {"id", "path"}
    )
    if (
        existing_id := next((mailbox.id for mailbox in mailboxes if mailbox.path == path), None)
    ) is not None:
        return int(existing_id)
    return (await mailbox_create.create_mailboxes(ctx, NewMailboxes([path])))[-1].id
