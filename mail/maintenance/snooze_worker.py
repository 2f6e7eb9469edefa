"""Return snoozed messages to their mailboxes when their time has come."""

import logging
from collections.abc import Sequence

from sqlalchemy import ColumnElement, func, select, update
from sqlmodel import col

from mail.maintenance.row_batches import run_in_batches_by_user
from mail.queue.held_messages import find_messages_without_hold
from mail.storage.mailbox_move import COLUMNS, move_messages
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.worker_stop import is_worker_stopping, sleep_until_worker_stops
from models.store.columns import ColumnRow, select_columns

log = logging.getLogger(__name__)

MAX_POLL_INTERVAL = 15.0  # seconds
MIN_POLL_INTERVAL = 0.05  # seconds
COLUMNS_WITH_ORIGIN = (*COLUMNS, "snoozed_from")


async def unsnooze_until_worker_stops(environment: Environment) -> None:
    """Return due messages until cancelled or stopped.

    Several processes can run it at the same time. Messages that became due while none was running
    return at the start.
    """
    while not is_worker_stopping():
        seconds = MAX_POLL_INTERVAL
        try:
            if message_count := await unsnooze_due_messages(environment):
                log.info("Snoozed messages returned", extra={"messages": message_count})
            seconds = await _load_seconds_until_next(environment)
        except Exception:  # the next poll may succeed
            log.exception("Could not return snoozed messages")
        await sleep_until_worker_stops(seconds)


async def _load_seconds_until_next(environment: Environment) -> float:
    """Seconds until the next snoozed message is due, within the limits of the poll interval."""
    next_ = func.min(col(Message.snoozed_until)).label("next")
    (row,) = await environment.database.read(
        select(next_).where(col(Message.snoozed_until).is_not(None))
    )
    if row.next is None:
        return MAX_POLL_INTERVAL
    seconds: float = (row.next - environment.now()).total_seconds()
    return min(MAX_POLL_INTERVAL, max(MIN_POLL_INTERVAL, seconds))


async def unsnooze_due_messages(environment: Environment) -> int:
    """Return all due messages to their mailboxes. Returns their number."""
    statement = select(col(Message.id), col(Message.user_id)).where(*_due_conditions(environment))
    return await run_in_batches_by_user(
        environment,
        statement.order_by(col(Message.snoozed_until), col(Message.id)),
        _unsnooze_messages_of_user_if_still_due,
    )


def _due_conditions(environment: Environment) -> list[ColumnElement[bool]]:
    """SQL conditions for snoozed messages that are due."""
    snoozed_until = col(Message.snoozed_until)
    return [snoozed_until.is_not(None), snoozed_until <= environment.now()]


async def _unsnooze_messages_of_user_if_still_due(
    environment: Environment, user_id: int, message_ids: Sequence[int]
) -> int:
    """Return these messages of a user if they are still due. Returns their number."""
    statement = select(*select_columns(Message, COLUMNS_WITH_ORIGIN)).where(
        col(Message.id).in_(message_ids), *_due_conditions(environment)
    )

    def unsnooze_batch(transaction: DatabaseTransaction) -> int:
        rows = transaction.connection.execute(statement.order_by(col(Message.id))).all()
        in_mailbox = [row for row in rows if row.mailbox_id is not None]
        if in_mailbox:
            _move_to_former_mailboxes_unread(transaction, user_id, in_mailbox)
        if deleted_ids := [row.id for row in rows if row.mailbox_id is None]:  # deleted
            ended = {"snoozed_until": None, "snoozed_from": None}
            transaction.connection.execute(
                update(Message).where(col(Message.id).in_(deleted_ids)).values(ended)
            )
        return len(rows)

    return await environment.run_transaction(unsnooze_batch, user_id)


def _move_to_former_mailboxes_unread(
    transaction: DatabaseTransaction, user_id: int, messages: Sequence[ColumnRow]
) -> None:
    """Move messages to their former mailbox or INBOX, unread and at the top of the list."""
    mailbox_by_message_id = _former_mailbox_or_inbox_by_message(transaction, user_id, messages)
    cleared = {"snoozed_until": None, "snoozed_from": None}
    changes = {"seen": False, "listed_at": transaction.environment.now(), **cleared}
    move_messages(transaction, user_id, messages, mailbox_by_message_id, changes)


def _former_mailbox_or_inbox_by_message(
    transaction: DatabaseTransaction, user_id: int, messages: Sequence[ColumnRow]
) -> dict[int, ColumnRow]:
    """The former mailbox of each message, or INBOX if that was deleted.

    INBOX also replaces SCHEDULED for a message that is no longer held.
    """
    mailbox_ids = {row.snoozed_from for row in messages} - {None}
    statement = select(*select_columns(Mailbox, ("id", "path", "retention", "special_use"))).where(
        col(Mailbox.user_id) == user_id,
        col(Mailbox.id).in_(mailbox_ids) | (col(Mailbox.path) == "INBOX"),
    )
    mailboxes = transaction.connection.execute(statement).all()
    by_id = {mailbox.id: mailbox for mailbox in mailboxes}
    inbox = next(mailbox for mailbox in mailboxes if mailbox.path == "INBOX")
    former = {row.id: by_id.get(row.snoozed_from, inbox) for row in messages}
    unheld_ids = find_messages_without_hold(transaction.connection, former)
    return former | dict.fromkeys(unheld_ids, inbox)
