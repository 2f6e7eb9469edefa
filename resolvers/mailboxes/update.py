"""Updates of mailboxes: visibility, retention, special use and encryption."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select, tuple_, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.special_use_names import NAMED_USES
from mail.storage.message_flags import SYSTEM_FLAGS
from models.admin.tasks import Task, TaskKind
from models.errors import (
    Forbidden,
    InvalidInput,
    NotFound,
    check_count_from_one_to_limit,
    require_within_limit,
)
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks_and_wake_workers
from resolvers.context import Context
from resolvers.mailboxes.create import load_refreshed_users, require_openpgp_keys
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    load_visible_by_ids,
    load_visible_by_selectors,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_audit_change
from resolvers.mailboxes.retention import own_retention_columns
from resolvers.messages.bulk import flags, row_changes
from resolvers.users.selection import VIEWER_ONLY, UserSelector

TASK_KIND = TaskKind.MAILBOX_RETENTION
INPUT_PATH = ("set",)


@dataclass(frozen=True, slots=True)
class MailboxUpdate:
    """Which mailboxes of each account change, and how."""

    selectors: Sequence[MailboxSelector]
    column_values: Mapping[str, Any]  # by column; retention is a MailboxRetention
    applies_retention: bool = False  # to existing messages


@dataclass(frozen=True, slots=True)
class MailboxUpdateResult:
    """The updated mailboxes, and the tasks that apply the retention to their messages."""

    mailboxes: Sequence[ColumnRow]
    tasks: Sequence[Task] = ()  # one for each account


async def update_mailboxes(
    ctx: Context, request: MailboxUpdate, user_selector: UserSelector = VIEWER_ONLY
) -> MailboxUpdateResult:
    """Update mailboxes of accounts: all of them or none.

    A special use moves from the mailbox that has it to the one that gets it. Raises InvalidInput,
    NotFound, LimitReached or Forbidden.
    """
    values = _validated_column_values(ctx, request)
    async with lock_mail_owners_and_audit_change(
        ctx, user_selector, "mailboxUpdate"
    ) as locked_owners:
        mailboxes = await _require_changeable_mailboxes(locked_owners, request.selectors, values)
        values_by_user = await _values_by_owner_or_raise(locked_owners, values)
        await _write_columns_and_move_special_use(locked_owners, mailboxes, values_by_user)
        tasks = (
            await _set_expiry_now_or_queue_tasks(locked_owners, mailboxes)
            if request.applies_retention
            else ()
        )
    rows = await ctx.load_many(load_visible_by_ids, [row.id for row in mailboxes])
    return MailboxUpdateResult([row for row in rows if row], tasks)


async def _require_changeable_mailboxes(
    locked: LockedAccounts, selectors: Sequence[MailboxSelector], values: Mapping[str, Any]
) -> list[ColumnRow]:
    """Return the selected mailboxes of each account, each once.

    Raises NotFound if an account lacks one of them, Forbidden if a value of one can't change, and
    LimitReached for too many mailboxes of all accounts.
    """
    keys = [(user_id, selector) for user_id in locked.user_ids for selector in selectors]
    max_count = locked.ctx.environment.options.bulk_max_items
    text = f"At most {max_count} mailboxes of all users are allowed."
    require_within_limit(len(keys), max_count, text, path=["mailboxes"])
    rows = await locked.ctx.load_many(load_visible_by_selectors, keys)
    mailboxes: dict[int, ColumnRow] = {}
    for position, ((user_id, selector), row) in enumerate(zip(keys, rows, strict=True)):
        if row is None:
            raise NotFound(
                locked.prefix_username_unless_viewer(user_id, str(selector)),
                path=["mailboxes"],
                index=position % len(selectors),
            )
        _require_changeable(row, values)
        mailboxes[row.id] = row
    return list(mailboxes.values())


def _validated_column_values(ctx: Context, request: MailboxUpdate) -> dict[str, Any]:
    """Return the column values to write. Raises InvalidInput."""
    values, max_mailboxes = dict(request.column_values), ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(request.selectors),
        max_mailboxes,
        f"From 1 to {max_mailboxes} mailboxes are required.",
        path=["mailboxes"],
    )
    if not values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=INPUT_PATH,
        )
    if values.get("special_use") and len(request.selectors) > 1:
        raise InvalidInput(
            "A special use can be set on only one mailbox.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=[*INPUT_PATH, "specialUse"],
        )
    if request.applies_retention and "retention" not in values:
        text = "`applyRetention` requires `retention` or `inheritRetention`."
        raise InvalidInput(
            text, constraint=ValidationConstraint.REQUIRED, path=[*INPUT_PATH, "retention"]
        )
    if values.get("retention") is not None:
        values |= own_retention_columns(values["retention"], [*INPUT_PATH, "retention"])
    return values


async def _values_by_owner_or_raise(
    locked: LockedAccounts, values: Mapping[str, Any]
) -> dict[int, Mapping[str, Any]]:
    """Return the values to write for each owner, whose retention the mailboxes can inherit.

    Raises InvalidInput if messages are to be encrypted and an owner has no OpenPGP key.
    """
    inherits_retention = "retention" in values and "retention_inherited" not in values
    if not (inherits_retention or values.get("encrypt_messages")):
        return dict.fromkeys(locked.user_ids, values)
    owners = await load_refreshed_users(locked, locked.user_ids)
    if values.get("encrypt_messages"):
        require_openpgp_keys(locked, owners.values(), [*INPUT_PATH, "encryptMessages"])
    if not inherits_retention:
        return dict.fromkeys(locked.user_ids, values)
    return {
        user_id: {**values, "retention": owner.retention, "retention_inherited": True}
        for user_id, owner in owners.items()
    }


def _require_changeable(mailbox: ColumnRow, column_values: Mapping[str, Any]) -> None:
    """Raise Forbidden if a value of this mailbox can't change."""
    if column_values.get("hidden") and mailbox.special_use is SpecialUse.INBOX:
        raise Forbidden("INBOX can't be hidden.", path=[*INPUT_PATH, "hidden"])
    if "special_use" in column_values and column_values["special_use"] != mailbox.special_use:
        if SpecialUse.INBOX in (mailbox.special_use, column_values["special_use"]):
            raise Forbidden(
                "The special use INBOX can't be set or removed.", path=[*INPUT_PATH, "specialUse"]
            )
        if mailbox.special_use in NAMED_USES:
            text = f"{mailbox.special_use} must be set on another mailbox first."
            raise Forbidden(text, path=[*INPUT_PATH, "specialUse"])


async def _write_columns_and_move_special_use(
    locked: LockedAccounts,
    mailboxes: Sequence[ColumnRow],
    values_by_user: Mapping[int, Mapping[str, Any]],
) -> None:
    """Write new column values to mailboxes of several owners, and record the changes.

    `values_by_user` has the values by owner, which may differ in `retention` only. Mailboxes that
    have all values already stay unchanged. A new special use is removed from the other mailboxes
    of these owners.
    """
    changed_rows = [
        row
        for row in mailboxes
        if any(getattr(row, name) != value for name, value in values_by_user[row.user_id].items())
    ]
    if not changed_rows:
        return
    special_use = values_by_user[changed_rows[0].user_id].get("special_use")
    former_rows = (
        await _load_other_mailboxes_with_use(locked, changed_rows, special_use)
        if special_use
        else []
    )
    ids_by_user = defaultdict[int, list[int]](list)
    for row in (*former_rows, *changed_rows):
        ids_by_user[row.user_id].append(row.id)
    await locked.record_changes(
        {
            user_id: locked.ctx.journal_entries(EventType.MAILBOX_UPDATED, ids)
            for user_id, ids in ids_by_user.items()
        }
    )
    connection = await locked.session.connection()
    if former_rows:
        former_ids = [row.id for row in former_rows]
        without_use = update(Mailbox).where(col(Mailbox.id).in_(former_ids))
        await connection.execute(without_use.values(special_use=None))
    for retention, rows in _group_by_new_retention(changed_rows, values_by_user).items():
        values = dict(values_by_user[rows[0].user_id])
        if "retention" in values:
            values["retention"] = retention
        statement = update(Mailbox).where(col(Mailbox.id).in_([row.id for row in rows]))
        await connection.execute(statement.values(**values))


def _group_by_new_retention(
    mailboxes: Sequence[ColumnRow], values_by_user: Mapping[int, Mapping[str, Any]]
) -> dict[int | None, list[ColumnRow]]:
    """Return the mailboxes by their new retention, the only value that differs among owners."""
    rows_by_retention = defaultdict[int | None, list[ColumnRow]](list)
    for row in mailboxes:
        rows_by_retention[values_by_user[row.user_id].get("retention")].append(row)
    return rows_by_retention


async def _load_other_mailboxes_with_use(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow], special_use: SpecialUse
) -> Sequence[Any]:
    """Load the ids and owners of the mailboxes that lose a special use to these mailboxes."""
    statement = select(col(Mailbox.id), col(Mailbox.user_id)).where(
        col(Mailbox.user_id).in_({row.user_id for row in mailboxes}),
        col(Mailbox.special_use) == special_use,
        col(Mailbox.id).not_in([row.id for row in mailboxes]),
    )
    return (await (await locked.session.connection()).execute(statement)).all()


async def _set_expiry_now_or_queue_tasks(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow]
) -> list[Task]:
    """Set the expiry of existing messages by the retention.

    If there are many messages, a task for each account does it. Returns the tasks.
    """
    ctx, session = locked.ctx, locked.session
    if sum(row.message_count for row in mailboxes) <= ctx.environment.options.bulk_max_items:
        order = {"mailboxes": sorted(row.id for row in mailboxes)}
        checkpoint: dict[str, Any] = {}
        has_more = True
        while has_more:
            result = await set_expiry_of_next_messages(
                ctx, session, order, checkpoint, TaskStepPlan()
            )
            checkpoint, has_more = result.checkpoint, result.has_more
        return []
    tasks = list[Task]()
    for user_id in locked.user_ids:
        rows = [row for row in mailboxes if row.user_id == user_id]
        order = {"mailboxes": sorted(row.id for row in rows)}
        message_count = sum(row.message_count for row in rows)
        tasks += await insert_tasks_and_wake_workers(
            ctx, session, TASK_KIND, [order], user_id=user_id, total_count=message_count
        )
        await ctx.record_change(session, user_id, EventType.TASK_CREATED, [tasks[-1].id])
    return tasks


async def set_expiry_of_next_messages(
    ctx: Context,
    session: AsyncSession,
    task_order: dict[str, Any],
    checkpoint: dict[str, Any],
    _plan: TaskStepPlan,
) -> TaskStepResult:
    """Set the expiry of the next thousand messages by the retention of their mailboxes."""
    connection, after = await session.connection(), checkpoint.get("after", (0, 0))
    mailboxes = select(col(Mailbox.id), col(Mailbox.retention))
    mailboxes = mailboxes.where(col(Mailbox.id).in_(task_order["mailboxes"]))
    lives = {row.id: row.retention for row in (await connection.execute(mailboxes)).all()}
    order_columns = (col(Message.mailbox_id), col(Message.uid))
    inside = (col(Message.mailbox_id).in_(lives), tuple_(*order_columns) > tuple(after))
    statement = (
        select(col(Message.id), *order_columns)
        .where(*inside)
        .order_by(*order_columns)
        .limit(MAX_IDS_PER_ROW)
    )
    changed_rows = (await connection.execute(statement)).all()
    keys = [row.id for row in changed_rows]
    rows = await row_changes.load_rows_in_transaction(
        session, keys, extra_columns=frozenset({"saved_at"})
    )
    states = {row.id: _state_with_new_expiry(row, lives[row.mailbox_id]) for row in rows}
    await flags.set_columns_of_each(ctx, session, rows, states)
    next_checkpoint = {"after": list(changed_rows[-1][1:]) if changed_rows else after}
    return TaskStepResult(
        next_checkpoint, done_count=len(keys), has_more=len(keys) == MAX_IDS_PER_ROW
    )


def _state_with_new_expiry(message: ColumnRow, retention: int | None) -> dict[str, Any]:
    """Return the state of a message with a new expiry. The rest stays."""
    expires = None if retention is None else message.saved_at + timedelta(seconds=retention)
    return {name: getattr(message, name) for name in (*SYSTEM_FLAGS, "keywords")} | {
        "expires_at": expires
    }
