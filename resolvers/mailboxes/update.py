"""Updates of mailboxes: visibility, retention, special use and encryption."""

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
from models.errors import Forbidden, InvalidInput, NotFound, check_count_from_one_to_limit
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.admin.task_steps import TaskStepPlan, TaskStepResult, insert_tasks
from resolvers.context import Context
from resolvers.mailboxes.loaders import (
    MailboxSelector,
    load_by_selectors,
    load_refreshed_users,
    load_visible_by_ids,
    require_openpgp_keys,
    retention_seconds,
)
from resolvers.mailboxes.owners import LockedAccounts, lock_mail_owners_and_log_change
from resolvers.messages.bulk import flags, row_changes
from resolvers.users.selection import VIEWER_ONLY, UserSelector

TASK_KIND = TaskKind.MAILBOX_RETENTION
INPUT_PATH = ("set",)


@dataclass(frozen=True, slots=True)
class MailboxUpdate:
    """Which mailboxes of an account change, and how."""

    selectors: Sequence[MailboxSelector]
    column_values: Mapping[str, Any]  # by column; retention is a timedelta
    applies_retention: bool = False  # to existing messages


@dataclass(frozen=True, slots=True)
class MailboxUpdateResult:
    """The updated mailboxes, and the task that applies the retention to their messages."""

    mailboxes: Sequence[ColumnRow]
    task: Task | None = None


async def update_mailboxes(
    ctx: Context, request: MailboxUpdate, user_selector: UserSelector = VIEWER_ONLY
) -> MailboxUpdateResult:
    """Update mailboxes of an account: all of them or none.

    A special use moves from the mailbox that has it to the one that gets it. Raises InvalidInput,
    NotFound or Forbidden.
    """
    values = _validated_column_values(ctx, request)
    async with lock_mail_owners_and_log_change(
        ctx, user_selector, "mailboxUpdate", path="user"
    ) as locked_owners:
        (owner,) = locked_owners.user_ids
        rows = await ctx.load_many(load_by_selectors, [(owner, name) for name in request.selectors])
        mailboxes: dict[int, ColumnRow] = {}
        for index, (name, row) in enumerate(zip(request.selectors, rows, strict=True)):
            if row is None:
                raise NotFound(
                    locked_owners.prefix_username_unless_viewer(owner, str(name)),
                    path=["mailboxes"],
                    index=index,
                )
            _require_changeable(row, values)
            mailboxes[row.id] = row
        if values.get("encrypt_messages"):
            require_openpgp_keys(
                locked_owners,
                (await load_refreshed_users(locked_owners, locked_owners.user_ids)).values(),
                [*INPUT_PATH, "encryptMessages"],
            )
        await _write_columns_and_move_special_use(locked_owners, list(mailboxes.values()), values)
        task = (
            await _apply_retention(locked_owners, list(mailboxes.values()))
            if request.applies_retention
            else None
        )
    return MailboxUpdateResult(
        [row for row in await ctx.load_many(load_visible_by_ids, list(mailboxes)) if row], task
    )


def _validated_column_values(ctx: Context, request: MailboxUpdate) -> dict[str, Any]:
    """Return the column values to write. Raises InvalidInput."""
    values, max_mailboxes = dict(request.column_values), ctx.environment.options.bulk_max_items
    check_count_from_one_to_limit(
        len(request.selectors),
        max_mailboxes,
        f"name 1 to {max_mailboxes} folders",
        path=["mailboxes"],
    )
    if not values:
        raise InvalidInput(
            "change at least one thing", constraint=ValidationConstraint.REQUIRED, path=INPUT_PATH
        )
    if values.get("special_use") and len(request.selectors) > 1:
        raise InvalidInput(
            "one folder has the role",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=[*INPUT_PATH, "specialUse"],
        )
    if request.applies_retention and "retention" not in values:
        text = "say which retention is to be applied"
        raise InvalidInput(
            text, constraint=ValidationConstraint.REQUIRED, path=[*INPUT_PATH, "retention"]
        )
    if "retention" in values:
        life = values["retention"] or timedelta()
        values["retention"] = retention_seconds(life, path_in_input=[*INPUT_PATH, "retention"])
    return values


def _require_changeable(mailbox: ColumnRow, column_values: Mapping[str, Any]) -> None:
    """Raise Forbidden if a value of this mailbox can't change."""
    if column_values.get("hidden") and mailbox.special_use is SpecialUse.INBOX:
        raise Forbidden("INBOX is not hidden", path=[*INPUT_PATH, "hidden"])
    if "special_use" in column_values and column_values["special_use"] != mailbox.special_use:
        if SpecialUse.INBOX in (mailbox.special_use, column_values["special_use"]):
            raise Forbidden("INBOX is what it is", path=[*INPUT_PATH, "specialUse"])
        if mailbox.special_use in NAMED_USES:
            text = f"give {mailbox.special_use} to another folder first: mail is filed by it"
            raise Forbidden(text, path=[*INPUT_PATH, "specialUse"])


async def _write_columns_and_move_special_use(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow], column_values: dict[str, Any]
) -> None:
    connection = await locked.session.connection()
    keys = [
        row.id for row in mailboxes if any(getattr(row, n) != v for n, v in column_values.items())
    ]
    if not keys:
        return
    user_id, role = locked.user_ids[0], column_values.get("special_use")
    before = []
    if role:
        has_special_use = (col(Mailbox.user_id) == user_id, col(Mailbox.special_use) == role)
        statement = select(col(Mailbox.id)).where(*has_special_use, col(Mailbox.id).not_in(keys))
        before = list((await connection.execute(statement)).scalars())
    changed = locked.ctx.journal_entries(EventType.MAILBOX_UPDATED, [*before, *keys])
    last = (await locked.record_changes({user_id: changed}))[user_id]
    if before:
        without = update(Mailbox).where(col(Mailbox.id).in_(before))
        await connection.execute(without.values(special_use=None, modify_index=last))
    update_statement = update(Mailbox).where(col(Mailbox.id).in_(keys))
    await connection.execute(update_statement.values(**column_values, modify_index=last))


async def _apply_retention(locked: LockedAccounts, mailboxes: Sequence[ColumnRow]) -> Task | None:
    """Set the expiry of existing messages by the retention. Returns a task if there are many."""
    ctx, message_count = locked.ctx, sum(row.total for row in mailboxes)
    order = {"mailboxes": sorted(row.id for row in mailboxes)}
    if message_count <= ctx.environment.options.bulk_max_items:
        checkpoint: dict[str, Any] = {}
        has_more = True
        while has_more:
            result = await set_expiry_of_next_messages(
                ctx, locked.session, order, checkpoint, TaskStepPlan()
            )
            checkpoint, has_more = result.checkpoint, result.has_more
        return None
    (owner,) = locked.user_ids
    (task,) = await insert_tasks(
        ctx, locked.session, TASK_KIND, [order], user_id=owner, total=message_count
    )
    await ctx.record_change(locked.session, owner, EventType.TASK_CHANGED, [task.id])
    return task


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
    found = (await connection.execute(statement)).all()
    keys = [row.id for row in found]
    rows = await row_changes.load_rows_in_transaction(
        session, keys, extra_columns=frozenset({"saved_at"})
    )
    ends = {row.id: _state_with_new_expiry(row, lives[row.mailbox_id]) for row in rows}
    await flags.set_columns_of_each(ctx, session, rows, ends)
    next_checkpoint = {"after": list(found[-1][1:]) if found else after}
    return TaskStepResult(
        next_checkpoint, done_count=len(keys), has_more=len(keys) == MAX_IDS_PER_ROW
    )


def _state_with_new_expiry(message: ColumnRow, retention: int | None) -> dict[str, Any]:
    """Return the state of a message with a new expiry. The rest stays."""
    expires = None if retention is None else message.saved_at + timedelta(seconds=retention)
    return {name: getattr(message, name) for name in (*SYSTEM_FLAGS, "keywords")} | {
        "expires_at": expires
    }
