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

from mail.mailboxes.special_use_names import snoozed_in
from mail.storage.message_flags import flags
from models.errors import Forbidden, Invalid, LimitReached
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.store.columns import Picked
from resolvers.context import Context
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.special_mailboxes import SpecialMailbox, ensure_special_mailbox
from resolvers.messages.bulk import flags as bulk_flags
from resolvers.messages.bulk import row_changes
from resolvers.messages.bulk.row_changes import Changes

PATH = ("set", "snoozedUntil")
FARTHEST = timedelta(days=3660)
HOME = frozenset({"id", "user_id", "path", "retention"})
SNOOZED = SpecialMailbox(SpecialUse.SNOOZED, snoozed_in)


def check(ctx: Context, changes: Changes | None, *, moving: bool) -> None:
    """Raise InvalidInput if the time is past or too late, or the request also moves messages."""
    if changes is None or changes.snooze is None:
        return
    if moving:
        text = "what is moved is not snoozed: one of the two"
        raise Invalid(text, constraint="exclusive", path=PATH)
    if changes.snooze:
        until, now = datetime.fromisoformat(changes.snooze), ctx.world.now()
        if until <= now:
            raise Invalid("it is over", constraint="min", path=PATH)
        if until > now + FARTHEST:
            raise Invalid("at most ten years", constraint="max", path=PATH)


def check_owner(changes: Changes | None) -> None:
    """Raise Forbidden if the changes snooze, since only owners can snooze."""
    if changes is not None and changes.snooze is not None:
        raise Forbidden("messages are for their owner to snooze", path=PATH)


async def apply(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], changes: Changes | None
) -> None:
    """Apply the snooze of the changes to these messages, inside the caller's transaction."""
    if changes is None or changes.snooze is None:
        return
    now = await row_changes.chosen(session, [row.id for row in rows])
    for user_id, theirs in row_changes.by_user(now).items():
        if changes.snooze:
            until = datetime.fromisoformat(changes.snooze)
            await _put_off(ctx, session, user_id, theirs, until)
        else:
            await _bring_back(ctx, session, user_id, theirs)


async def _put_off(
    ctx: Context, session: AsyncSession, user_id: int, rows: Sequence[Picked], until: datetime
) -> None:
    folder = await _folder(ctx, user_id)
    fresh = [row for row in rows if row.mailbox_id != folder.id]
    if fresh:
        await row_changes.move(ctx, session, fresh, folder)
    homes: defaultdict[int, list[int]] = defaultdict(list)
    for row in fresh:
        homes[row.mailbox_id].append(row.id)
    connection = await session.connection()
    for home, ids in homes.items():
        values = {"snoozed_until": until, "snoozed_from": home}
        await connection.execute(update(Message).where(col(Message.id).in_(ids)).values(values))
    there = [row for row in rows if row.mailbox_id == folder.id]
    states = {row.id: row_changes.flagged(flags(row)) | {"snoozed_until": until} for row in there}
    await bulk_flags.restate(ctx, session, there, states)


async def _bring_back(
    ctx: Context, session: AsyncSession, user_id: int, rows: Sequence[Picked]
) -> None:
    """Move the snoozed ones of these messages to the mailboxes they came from, else to INBOX."""
    snoozed = [row for row in rows if row.snoozed_until is not None]
    if not snoozed:
        return
    mailboxes = {
        mailbox.id: mailbox for mailbox in await mailbox_loaders.all_of(ctx, user_id, HOME)
    }
    inbox = next(mailbox for mailbox in mailboxes.values() if mailbox.path == "INBOX")
    homes: defaultdict[int, list[Picked]] = defaultdict(list)
    for row in snoozed:
        homes[mailboxes.get(row.snoozed_from, inbox).id].append(row)
    for home, theirs in homes.items():
        await row_changes.move(ctx, session, theirs, mailboxes[home])


async def _folder(ctx: Context, user_id: int) -> Picked:
    """Return the account's mailbox for snoozed messages; create it if there is none."""
    try:
        return await ensure_special_mailbox(ctx, user_id, SNOOZED)
    except LimitReached as full:
        full.path = list(PATH)
        raise
