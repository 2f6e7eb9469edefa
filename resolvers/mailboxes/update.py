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
    """Which mailboxes of an account change, and how."""

    selectors: Sequence[MailboxSelector]
    column_values: Mapping[str, Any]  # by column; retention is a MailboxRetention
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
    async with lock_mail_owners_and_audit_change(
        ctx, user_selector, "mailboxUpdate", path="user"
    ) as locked_owners:
        (owner,) = locked_owners.user_ids
        rows = await ctx.load_many(
            load_visible_by_selectors, [(owner, name) for name in request.selectors]
        )
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
        await _add_owner_retention_and_require_key(locked_owners, values)
        await _write_columns_and_move_special_use(locked_owners, list(mailboxes.values()), values)
        task = (
            await _set_expiry_now_or_queue_task(locked_owners, list(mailboxes.values()))
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


async def _add_owner_retention_and_require_key(
    locked: LockedAccounts, values: dict[str, Any]
) -> None:
    """Set the retention if it is inherited from the owner of the mailboxes.

    Raises InvalidInput if messages are to be encrypted and the owner has no OpenPGP key.
    """
    inherits_retention = "retention" in values and "retention_inherited" not in values
    if not (inherits_retention or values.get("encrypt_messages")):
        return
    (owner,) = (await load_refreshed_users(locked, locked.user_ids)).values()
    if inherits_retention:
        values |= {"retention": owner.retention, "retention_inherited": True}
    if values.get("encrypt_messages"):
        require_openpgp_keys(locked, [owner], [*INPUT_PATH, "encryptMessages"])


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
    await locked.record_changes({user_id: changed})
    if before:
        without = update(Mailbox).where(col(Mailbox.id).in_(before))
        await connection.execute(without.values(special_use=None))
    update_statement = update(Mailbox).where(col(Mailbox.id).in_(keys))
    await connection.execute(update_statement.values(**column_values))


async def _set_expiry_now_or_queue_task(
    locked: LockedAccounts, mailboxes: Sequence[ColumnRow]
) -> Task | None:
    """Set the expiry of existing messages by the retention. Returns a task if there are many."""
    ctx, message_count = locked.ctx, sum(row.message_count for row in mailboxes)
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
    (task,) = await insert_tasks_and_wake_workers(
        ctx, locked.session, TASK_KIND, [order], user_id=owner, total_count=message_count
    )
    await ctx.record_change(locked.session, owner, EventType.TASK_CREATED, [task.id])
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
