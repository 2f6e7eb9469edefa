"""Snoozing of messages: hiding them until a time, or until the user ends it.

Snoozed messages are in a mailbox of their own, so that no list must exclude them and mail programs
see them. Moving or deleting a message ends its snooze; `mail/maintenance/snooze_worker.py` ends
those that are due.
"""

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.mailboxes.special_use_names import snoozed_mailbox_name
from mail.queue.held_messages import find_messages_without_hold
from mail.storage.message_flags import imap_flags
from models.errors import Forbidden, InvalidInput, LimitReached
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import SpecialMailbox, ensure_special_mailbox
from resolvers.messages.bulk import flag_changes, row_changes
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk.flag_changes import FlagChanges

INPUT_PATH = ("set", "snoozedUntil")
MAX_SNOOZE = timedelta(days=3660)
MAILBOX_COLUMNS = frozenset({"id", "user_id", "path", "retention", "special_use"})
SNOOZED_MAILBOX = SpecialMailbox(SpecialUse.SNOOZED, snoozed_mailbox_name)


def validate_snooze(ctx: Context, changes: FlagChanges | None, *, is_move: bool) -> None:
    """Raise InvalidInput if the time is past or too late, or the request also moves messages."""
    if changes is None or changes.snooze is None:
        return
    if is_move:
        text = "A message can be moved or snoozed, not both."
        raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=INPUT_PATH)
    if changes.snooze:
        until, now = datetime.fromisoformat(changes.snooze), ctx.environment.now()
        if until <= now:
            raise InvalidInput(
                "`snoozedUntil` must be in the future.",
                constraint=ValidationConstraint.MIN,
                path=INPUT_PATH,
            )
        if until > now + MAX_SNOOZE:
            raise InvalidInput(
                "`snoozedUntil` must be at most P3660D ahead.",
                constraint=ValidationConstraint.MAX,
                path=INPUT_PATH,
            )


def require_no_snooze(changes: FlagChanges | None) -> None:
    """Raise Forbidden if the changes snooze, since only owners can snooze."""
    if changes is not None and changes.snooze is not None:
        raise Forbidden("Only the owner of a message can snooze it.", path=INPUT_PATH)


async def snooze_or_unsnooze_messages(
    ctx: Context, session: AsyncSession, rows: Sequence[ColumnRow], changes: FlagChanges | None
) -> None:
    """Apply the snooze of the changes to these messages, inside the caller's transaction."""
    if changes is None or changes.snooze is None:
        return
    now = await row_changes.load_rows_in_transaction(session, [row.id for row in rows])
    for user_id, user_rows in row_changes.group_rows_by_user(now).items():
        if changes.snooze:
            until = datetime.fromisoformat(changes.snooze)
            await _snooze_messages_of_user(ctx, session, user_id, user_rows, until)
        else:
            await _end_snooze(ctx, session, user_id, user_rows)


async def _snooze_messages_of_user(
    ctx: Context, session: AsyncSession, user_id: int, rows: Sequence[ColumnRow], until: datetime
) -> None:
    folder = await _ensure_snoozed_mailbox(ctx, user_id)
    newly_snoozed = [row for row in rows if row.mailbox_id != folder.id]
    if newly_snoozed:
        await row_changes.move_messages_to_mailbox(ctx, session, newly_snoozed, folder)
    homes: defaultdict[int, list[int]] = defaultdict(list)
    for row in newly_snoozed:
        homes[row.mailbox_id].append(row.id)
    connection = await session.connection()
    for home_mailbox_id, ids in homes.items():
        values = {"snoozed_until": until, "snoozed_from": home_mailbox_id}
        await connection.execute(update(Message).where(col(Message.id).in_(ids)).values(values))
    already_snoozed = [row for row in rows if row.mailbox_id == folder.id]
    states = {
        row.id: flag_changes.columns_from_flag_names(imap_flags(row)) | {"snoozed_until": until}
        for row in already_snoozed
    }
    await bulk_flags.set_columns_of_each(ctx, session, already_snoozed, states)


async def _end_snooze(
    ctx: Context, session: AsyncSession, user_id: int, rows: Sequence[ColumnRow]
) -> None:
    """Move the snoozed ones of these messages to the mailboxes they came from, else to INBOX.

    INBOX also replaces SCHEDULED for a message that is no longer held.
    """
    snoozed = [row for row in rows if row.snoozed_until is not None]
    if not snoozed:
        return
    mailboxes = {
        mailbox.id: mailbox
        for mailbox in await mailbox_loaders.load_visible_mailboxes_of_user(
            ctx, user_id, MAILBOX_COLUMNS
        )
    }
    inbox = next(mailbox for mailbox in mailboxes.values() if mailbox.path == "INBOX")
    former = {row.id: mailboxes.get(row.snoozed_from, inbox) for row in snoozed}
    connection = await session.connection()
    unheld_ids = await connection.run_sync(find_messages_without_hold, former)
    homes: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    for row in snoozed:
        homes[(inbox if row.id in unheld_ids else former[row.id]).id].append(row)
    for home_mailbox, mailbox_rows in homes.items():
        await row_changes.move_messages_to_mailbox(
            ctx, session, mailbox_rows, mailboxes[home_mailbox]
        )


async def _ensure_snoozed_mailbox(ctx: Context, user_id: int) -> ColumnRow:
    """Return the account's mailbox for snoozed messages; create it if there is none."""
    try:
        return await ensure_special_mailbox(ctx, user_id, SNOOZED_MAILBOX)
    except LimitReached as full:
        full.path = list(INPUT_PATH)
        raise
