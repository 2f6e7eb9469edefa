"""Bulk changes of messages: at once if they are few, by a task if they are many."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.message_insert import SELECT_QUOTA
from models.admin.tasks import Task
from models.errors import Forbidden, InvalidInput, NotFound, OverQuota, StaleObject
from models.events.journal import PLATFORM, ChangeKind
from models.mailboxes.shares import Rights, ShareRight
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import raw_values
from resolvers.access import is_visible
from resolvers.admin.task_steps import (
    TaskStepPlan,
    TaskStepResult,
    insert_tasks,
    next_ids,
    result_after_ids,
)
from resolvers.context import Context
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rights as mailbox_rights
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages.bulk import copy, flags, owners, row_changes, snooze
from resolvers.messages.bulk import rights as bulk_rights
from resolvers.messages.bulk import undo as bulk_undo
from resolvers.messages.bulk.owners import BulkAccounts
from resolvers.messages.bulk.row_changes import STATE_COLUMNS, FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.users.selection import UserSelector

MESSAGES_PER_STEP = 1000  # per task step
NO_CHANGES = FlagChanges({})


@dataclass(slots=True)
class BulkOutcome:
    """The result of a bulk operation: the changed messages, or the task that changes them."""

    rows: Sequence[ColumnRow] = ()
    uids_by_message_id: dict[int, tuple[int, int]] = field(default_factory=dict)  # old and new UID
    task: Task | None = None
    undo_token: str | None = field(default=None, repr=False)
    undo_until: datetime | None = None
    deleted_mailbox_ids: Sequence[int] = ()  # mailboxes that were deleted


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A bulk operation on the messages of a selection."""

    selector: MessageSelector
    changes: FlagChanges | None = None
    target_mailbox: MailboxSelector | None = None  # the mailbox with this name in each account
    source_user: UserSelector | None = None  # its messages go to the account of the selection
    is_copy: bool = False  # keeps the messages where they are
    is_delete: bool = False
    is_permanent: bool = False
    duplicate_column: str | None = None  # only messages with the same value as an older one
    deletes_empty_mailboxes: bool = False  # that this request empties
    unchanged_since_modseq: int | None = None  # refuses messages that changed after this MODSEQ
    always_as_task: bool = False  # also for few messages
    muted_before: Mapping[int, bool] = field(
        default_factory=dict
    )  # `muted` of threads before the change
    source_mailbox_ids: Sequence[int] | None = (
        None  # mailboxes to select from, so that their index is used
    )

    @property
    def mutation_name(self) -> str:
        """The name of the mutation in the schema."""
        if self.duplicate_column:
            return "messageDeduplicate"
        if self.is_delete:
            return "messageDelete"
        if self.is_copy:
            return "messageCopy"
        return "messageMove" if self.target_mailbox is not None else "messageUpdate"

    @property
    def is_flag_change_by_id(self) -> bool:
        """True if the request only sets flags of messages given by ID."""
        changes = self.changes
        if changes is None or changes.values or changes.snooze is not None or self.muted_before:
            return False
        other = (
            self.always_as_task
            or self.target_mailbox is not None
            or self.unchanged_since_modseq is not None
        )
        return self.selector.ids is not None and not self.is_delete and not other

    @property
    def task_kind(self) -> str:
        """The kind of the task that runs the request."""
        return f"MESSAGE_{self.mutation_name.removeprefix('message').upper()}"


async def apply_bulk_request(ctx: Context, request: BulkRequest) -> BulkOutcome:
    """Apply the request: in one transaction, or as a task if it is large or asks for one.

    Raises InvalidInput, NotFound, Forbidden, OverQuota, or Stale if a message changed since
    `unchanged_since_modseq`.
    """
    if request.changes is not None and request.changes.is_empty and request.target_mailbox is None:
        raise InvalidInput("say what to change", constraint="required", path=["set"])
    snooze.validate_snooze(ctx, request.changes, is_move=request.target_mailbox is not None)
    accounts = await _load_accounts(ctx, request)
    if request.unchanged_since_modseq is not None and len(accounts.user_ids) != 1:
        text = "accounts count their changes apart: say it of one"
        raise InvalidInput(text, constraint="exclusive", path=["ifUnchangedSince"])
    request = replace(
        request, selector=await request.selector.with_filter_sql(ctx, accounts.user_ids)
    )
    few = len(request.selector.ids or ()) <= ctx.environment.options.bulk
    if request.is_flag_change_by_id and few and not (accounts.other_users or accounts.grantee_id):
        return await ctx.run_transaction(
            lambda transaction: _change_flags_in_transaction(ctx, transaction, request, accounts),
            *accounts.user_ids,
        )
    if accounts.grantee_id and accounts.user_ids != [accounts.grantee_id]:
        snooze.require_no_snooze(request.changes)
    given_to = (
        accounts.receiving_user.id
        if accounts.receiving_user and accounts.grantee_id
        else ctx.viewer.user_id
    )
    with mailbox_rights.hide_quota_figures(ctx, given_to):
        return await _apply_in_session(ctx, request, accounts)


async def _apply_in_session(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> BulkOutcome:
    async with ctx.write_session(*bulk_accounts.stream_ids) as session:
        source_ids = await _source_mailbox_ids(ctx, request, bulk_accounts)
        if request.selector.mailbox is not None:
            request = replace(request, source_mailbox_ids=source_ids)
        limit = ctx.environment.options.bulk
        rows = await _load_selected_messages(
            ctx, request, bulk_accounts, max(limit, len(request.selector.ids or ())) + 1
        )
        await _require_selected_ids(ctx, request, bulk_accounts, rows)
        await _require_rights(ctx, request, bulk_accounts, rows)
        await _require_unchanged(ctx, request, bulk_accounts)
        if request.always_as_task or len(rows) > limit:
            return BulkOutcome(
                task=await _queue_task(ctx, session, request, bulk_accounts, source_ids)
            )
        _require_target_mailboxes(request, bulk_accounts, {row.user_id for row in rows})
        count_by_user = Counter(row.user_id for row in rows)
        await owners.log_bulk_change(
            ctx, session, bulk_accounts, request.mutation_name, count_by_user
        )
        undo, until = await _create_undo_token(ctx, session, request, rows, bulk_accounts)
        outcome = await _apply_to_rows(ctx, session, request, rows, bulk_accounts.target_by_user)
        outcome.undo_token, outcome.undo_until = undo, until
        if request.deletes_empty_mailboxes:
            emptied = {*source_ids, *(row.mailbox_id for row in rows)}
            outcome.deleted_mailbox_ids = await mailbox_delete.delete_empty_mailboxes(
                ctx, session, emptied
            )
        return outcome


async def _load_accounts(ctx: Context, request: BulkRequest) -> BulkAccounts:
    users, source = request.selector.users, request.source_user
    if users.is_given or source:
        return await owners.load_bulk_accounts(
            ctx, users, source_user=source, target_mailbox=request.target_mailbox
        )
    return await owners.load_accounts_of_selector(ctx, request.selector, request.target_mailbox)


def _change_flags_in_transaction(
    ctx: Context,
    transaction: DatabaseTransaction,
    request: BulkRequest,
    bulk_accounts: BulkAccounts,
) -> BulkOutcome:
    """Change flags in one synchronous transaction, since this is the most frequent request."""
    (user,) = bulk_accounts.user_ids
    statement = flags.flag_rows_query(ctx.environment.database.dialect)
    rows = transaction.fetch_rows(statement, user=user, ids=list(request.selector.ids or ()))
    _require_all_found(request, rows)
    if not rows or request.changes is None:
        return BulkOutcome()
    undo = bulk_undo.prepare_undo(
        ctx, bulk_undo.StateBeforeChange(request.task_kind, request.changes, rows)
    )
    flags.change_flags_in_transaction(
        ctx, transaction, rows, request.changes, extra_statements=[undo.insert_statement]
    )
    return BulkOutcome(rows, undo_token=undo.token, undo_until=undo.expires_at)


async def _source_mailbox_ids(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> list[int]:
    """Return the mailboxes to select from.

    Raises NotFound if the only account lacks the mailbox.
    """
    name = request.selector.mailbox
    if name is None:
        return []
    rows = await ctx.load_many(
        mailbox_loaders.load_by_selectors, [(user_id, name) for user_id in bulk_accounts.user_ids]
    )
    if len(rows) == 1 and rows[0] is None:
        raise NotFound(str(name), path=["select", "mailbox"])
    return [row.id for row in rows if row]


async def _load_selected_messages(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, limit: int
) -> Sequence[ColumnRow]:
    statement = select(*select_columns(Message, STATE_COLUMNS)).where(
        *_selected_messages_sql(ctx, request, bulk_accounts)
    )
    return await ctx.read(statement.order_by(col(Message.id)).limit(limit))


def _selected_messages_sql(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> list[ColumnElement[bool]]:
    is_visible_message = is_visible(ctx, Message) if bulk_accounts.grantee_id else true()
    conditions = [
        is_visible_message,
        col(Message.user_id).in_(bulk_accounts.user_ids),
        col(Message.archived_at).is_(None),
    ]
    if request.source_mailbox_ids is not None:
        conditions.append(col(Message.mailbox_id).in_(request.source_mailbox_ids))
    found = request.selector.build_conditions(ctx, conditions)
    if request.duplicate_column is None:
        return found
    duplicate_column = col(getattr(Message, request.duplicate_column))
    oldest_first = (col(Message.received_at), col(Message.id))
    nth = func.row_number().over(
        partition_by=(col(Message.mailbox_id), duplicate_column), order_by=oldest_first
    )
    numbered = select(col(Message.id), nth.label("nth")).where(
        *found, duplicate_column.is_not(None)
    )
    rows = numbered.subquery()
    return [col(Message.id).in_(select(rows.c.id).where(rows.c.nth > 1))]


async def _require_selected_ids(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, rows: Sequence[ColumnRow]
) -> None:
    """Raise NotFound if a message given by ID does not exist."""
    if request.selector.ids is None:
        return
    if request.duplicate_column:
        plain = replace(request, duplicate_column=None)
        rows = await _load_selected_messages(ctx, plain, bulk_accounts, len(request.selector.ids))
    _require_all_found(request, rows)


def _require_all_found(request: BulkRequest, rows: Sequence[ColumnRow]) -> None:
    found_ids = set(raw_values(rows, "id"))
    for index, key in enumerate(request.selector.ids or ()):
        if key not in found_ids:
            raise NotFound(str(key), path=["select", "ids"], index=index)


def _rights_needed_in_source(request: BulkRequest, *, to_other_account: bool) -> Rights:
    """Return the rights that the request needs in shared mailboxes that contain the messages.

    A message that goes to another account is lost for its owner, so this needs EXPUNGE.
    """
    rights = {ShareRight.READ}
    if request.target_mailbox is None:
        rights |= bulk_rights.rights_for_changes(request.changes)
    elif not request.is_copy:
        rights |= {ShareRight.DELETE, *({ShareRight.EXPUNGE} if to_other_account else ())}
    if request.is_delete:
        rights.add(ShareRight.EXPUNGE if request.is_permanent else ShareRight.DELETE)
    return frozenset(rights)


async def _require_rights(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts, rows: Sequence[ColumnRow]
) -> None:
    """Raise Forbidden if the viewer lacks a right in a mailbox of another user."""
    if not bulk_accounts.grantee_id:
        return
    if bulk_accounts.user_ids != [bulk_accounts.grantee_id]:
        source_rights = _rights_needed_in_source(
            request, to_other_account=bulk_accounts.receiving_user is not None
        )
        mailboxes = sorted({row.mailbox_id for row in rows})
        await bulk_rights.require_rights(ctx, mailboxes, source_rights, ["select"])
        if request.deletes_empty_mailboxes:
            raise Forbidden("folders are for their owner to delete", path=["dropEmpty"])
    for mailbox in bulk_accounts.target_by_user.values():
        if mailbox.user_id != bulk_accounts.grantee_id:
            source_rights = bulk_rights.rights_for_changes(request.changes) | {ShareRight.INSERT}
            await bulk_rights.require_rights(ctx, [mailbox.id], source_rights, ["to"])


async def _require_unchanged(
    ctx: Context, request: BulkRequest, bulk_accounts: BulkAccounts
) -> None:
    if request.unchanged_since_modseq is not None:
        statement = select(func.max(col(Message.modseq)).label("newest"))
        (row,) = await ctx.read(
            statement.where(*_selected_messages_sql(ctx, request, bulk_accounts))
        )
        if (row.newest or 0) > request.unchanged_since_modseq:
            raise StaleObject(current_modseq=row.newest, path=["ifUnchangedSince"])


def _require_target_mailboxes(
    request: BulkRequest, bulk_accounts: BulkAccounts, user_ids: Iterable[int]
) -> None:
    """Raise NotFound if an account with selected messages lacks the target mailbox."""
    for user_id in sorted(user_ids) if request.target_mailbox else ():
        if user_id not in bulk_accounts.target_by_user:
            raise NotFound(
                f"{bulk_accounts.username_prefix(user_id)}{request.target_mailbox}", path=["to"]
            )


async def _create_undo_token(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    bulk_accounts: BulkAccounts,
) -> tuple[str | None, datetime | None]:
    """Return an undo token and its expiry.

    None if the request can't be undone, or for platform keys.
    """
    final = (
        request.is_permanent
        or request.is_copy
        or bulk_accounts.receiving_user is not None
        or bulk_accounts.grantee_id
    )
    if final or not rows or not ctx.viewer.user_id:
        return None, None
    target_by_user = (
        {user: mailbox.id for user, mailbox in bulk_accounts.target_by_user.items()}
        if request.target_mailbox is not None
        else None
    )
    state = bulk_undo.StateBeforeChange(
        request.task_kind, request.changes or NO_CHANGES, rows, request.muted_before, target_by_user
    )
    return await bulk_undo.store_undo(ctx, session, state)


async def _apply_to_rows(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    target_by_user: Mapping[int, ColumnRow],
) -> BulkOutcome:
    outcome = BulkOutcome(rows=rows)
    if not rows:
        return outcome
    if request.target_mailbox is not None:
        for user_id, user_rows in row_changes.group_rows_by_user(rows).items():
            outcome.uids_by_message_id |= await _move_or_copy(
                ctx, session, request, user_rows, target_by_user[user_id]
            )
    if request.changes is not None and not request.changes.is_empty:
        if request.target_mailbox is not None:  # the rows after the move
            rows = await row_changes.load_rows_in_transaction(
                session, list(outcome.uids_by_message_id)
            )
        await flags.change_flags(ctx, session, rows, request.changes)
        await snooze.apply_snooze(ctx, session, rows, request.changes)
    if request.is_permanent:
        await row_changes.delete_permanently(ctx, session, rows)
    elif request.is_delete:
        mailboxes = await _load_mailboxes(session, {row.mailbox_id for row in rows})
        await row_changes.archive_messages(
            ctx, session, rows, {key: mailbox.path for key, mailbox in mailboxes.items()}
        )
    return outcome


async def _move_or_copy(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    rows: Sequence[ColumnRow],
    target: ColumnRow,
) -> dict[int, tuple[int, int]]:
    """Move or copy messages of one account into a mailbox.

    Returns old and new UID by message ID.
    """
    if target.user_id == rows[0].user_id and not request.is_copy:
        return await row_changes.move_messages(ctx, session, rows, target)
    uids = await copy.copy_messages(ctx, session, rows, target)
    if not request.is_copy:  # the copy belongs to another account
        await row_changes.delete_permanently(ctx, session, rows)
    return uids


async def _load_mailboxes(
    session: AsyncSession, mailbox_ids: Iterable[int]
) -> dict[int, ColumnRow]:
    statement = select(*select_columns(Mailbox)).where(col(Mailbox.id).in_(sorted(mailbox_ids)))
    return {row.id: row for row in (await (await session.connection()).execute(statement)).all()}


async def _queue_task(
    ctx: Context,
    session: AsyncSession,
    request: BulkRequest,
    bulk_accounts: BulkAccounts,
    source_mailbox_ids: Sequence[int],
) -> Task:
    """Queue a task for the messages that the selection contains now."""
    order_columns = (col(Message.user_id), col(Message.id))
    everything = select(*order_columns, col(Message.size)).where(
        *_selected_messages_sql(ctx, request, bulk_accounts)
    )
    rows = await ctx.read(everything.order_by(*order_columns))
    count_by_user, sizes = Counter(row.user_id for row in rows), Counter[int]()
    for row in rows:
        sizes[row.user_id] += row.size
    _require_target_mailboxes(request, bulk_accounts, count_by_user)
    if request.is_copy or bulk_accounts.receiving_user:
        for user_id, size in sizes.items():
            await _require_quota(ctx, bulk_accounts.target_by_user[user_id].user_id, size)
    await owners.log_bulk_change(ctx, session, bulk_accounts, request.mutation_name, count_by_user)
    orders = [
        {"ids": [row.id for row in rows], **_task_order(request, bulk_accounts, source_mailbox_ids)}
    ]
    owner = (
        None if bulk_accounts.other_users else bulk_accounts.grantee_id or bulk_accounts.user_ids[0]
    )
    (task,) = await insert_tasks(
        ctx, session, request.task_kind, orders, user_id=owner, total=len(rows)
    )
    stream = PLATFORM if owner is None else owner
    await ctx.record_change(session, stream, ChangeKind.TASK_CHANGED, [task.id])
    return task


async def _require_quota(ctx: Context, user_id: int, byte_count: int) -> None:
    """Raise OverQuota if the account has no room for this many bytes."""
    parameters = {"user": user_id, "platform": ctx.environment.options.default_quota}
    for row in await ctx.read(SELECT_QUOTA, parameters):
        if row.allowed and row.used + byte_count > row.allowed:
            raise OverQuota(used=row.used, allowed=row.allowed)


def _task_order(
    request: BulkRequest, bulk_accounts: BulkAccounts, source_mailbox_ids: Sequence[int]
) -> dict[str, Any]:
    changes: dict[str, Any] | None = asdict(request.changes) if request.changes else None
    values = changes["values"] if changes else None
    if values and values.get("expires"):
        values["expires"] = values["expires"].isoformat()
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


async def plan_task_step(
    ctx: Context, task_order: dict[str, Any], checkpoint: dict[str, Any]
) -> TaskStepPlan:
    """Return the streams that the next step locks, if they are not those of the task's user."""
    if not task_order.get("others"):
        return TaskStepPlan()
    ids = next_ids(task_order, checkpoint, MESSAGES_PER_STEP)
    statement = select(col(Message.user_id)).where(col(Message.id).in_(ids))
    streams = [row.user_id for row in await ctx.read(statement.distinct())]
    return TaskStepPlan([*streams, *([task_order["given_to"]] if task_order["given_to"] else [])])


async def run_task_step(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _plan: TaskStepPlan,
) -> TaskStepResult:
    """Run the next step of a task."""
    ids = next_ids(task_order, checkpoint, MESSAGES_PER_STEP)
    return result_after_ids(
        ids, task_order, checkpoint, await apply_task_chunk(ctx, session, task_order, ids)
    )


async def apply_task_chunk(
    ctx: Context, session: AsyncSession, task_order: dict[str, Any], message_ids: Sequence[int]
) -> int:
    """Apply a task to one chunk of messages, inside the transaction of its step.

    Returns the number of messages. Deleted messages are left out, and those that changed although
    `unless_since` excludes it.
    """
    changes = task_order["changes"] and FlagChanges(**task_order["changes"])
    if changes and changes.values and changes.values.get("expires"):
        expires = row_changes.parse_stored_time(changes.values["expires"])
        changes = replace(changes, values={**changes.values, "expires": expires})
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
        if row.archived_at is None and (since is None or row.modseq <= since)
    ]
    if order.duplicate_column:
        rows = await _rows_still_duplicate(session, rows, order.duplicate_column)
    folders = await _reload_targets(session, task_order, {row.user_id for row in rows})
    if task_order.get("grantee"):
        rows = await _rows_still_permitted(ctx, order, rows, folders)
    await _apply_to_rows(ctx, session, order, rows, folders)
    if task_order["emptied"] is not None:
        emptied = {*task_order["emptied"], *(row.mailbox_id for row in rows)}
        await mailbox_delete.delete_empty_mailboxes(ctx, session, emptied)
    return len(rows)


async def _rows_still_permitted(
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
    missing_rights = await bulk_rights.load_missing_rights(
        ctx, mailboxes, _rights_needed_in_source(request, to_other_account=is_for_other_account)
    )
    for mailbox in target_by_user.values():
        if mailbox.user_id != viewer_id:
            required_rights = bulk_rights.rights_for_changes(request.changes) | {ShareRight.INSERT}
            await bulk_rights.require_rights(ctx, [mailbox.id], required_rights, ["to"])
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


async def _reload_targets(
    session: AsyncSession, task_order: Mapping[str, Any], user_ids: Iterable[int]
) -> dict[int, ColumnRow]:
    """Return the target mailbox of each account. Raises NotFound if it was deleted."""
    keys = (
        {user: task_order["folders"][str(user)] for user in user_ids}
        if task_order["folders"]
        else {}
    )
    rows_by_id = await _load_mailboxes(session, keys.values()) if keys else {}
    for key in keys.values():
        if key not in rows_by_id:
            raise NotFound(str(key), path=["to"])
    return {user: rows_by_id[key] for user, key in keys.items()}
