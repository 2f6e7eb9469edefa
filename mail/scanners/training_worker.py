"""Train the spam filter in the background from what users do with their mail.

Messages moved to Junk or marked `$Junk` are learned as spam. Messages moved out of Junk (but not to
Trash), marked `$NotJunk` or released from quarantine are learned as good mail. The last action
counts.
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy import delete, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.scanners.body_stream import ScanBody
from mail.scanners.circuit_breaker import ScannerUnavailable
from mail.scanners.rspamd_training import TRAINED_MESSAGES, train_rspamd_and_return_metric_label
from mail.storage import message_open
from mail.storage.blobs.errors import CorruptBlob
from models.errors import NotFound
from models.events import wakeups
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.worker_stop import is_worker_stopping
from models.spam.training import TrainingMessage
from models.store.columns import ColumnRow, insert_with_conflict, select_columns

log = logging.getLogger(__name__)

SPAM_BY_KEYWORD = {
    "$junk": True,
    "junk": True,
    "$notjunk": False,
    "notjunk": False,
    "nonjunk": False,
}
NEUTRAL_USES = (SpecialUse.TRASH, SpecialUse.SNOOZED)  # a move from Junk to these is no vote
BATCH_SIZE = 10  # training messages per lease
MAX_ATTEMPTS = 60
FIRST_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(minutes=1), timedelta(hours=1)
POLL_INTERVAL = 60.0  # seconds between two looks without a wake-up


async def enqueue_training_if_junk_changes(
    environment: Environment,
    session: AsyncSession,
    message_rows: Sequence[ColumnRow],
    target_mailbox: ColumnRow,
) -> None:
    """Enqueue training with messages that are moved to a mailbox, in the same transaction."""
    if not environment.options.rspamd_learn_url or not message_rows:
        return
    mailbox_ids = {row.mailbox_id for row in message_rows if row.mailbox_id is not None} | {
        target_mailbox.id
    }
    statement = select(col(Mailbox.id), col(Mailbox.special_use)).where(
        col(Mailbox.id).in_(mailbox_ids)
    )
    rows = (await (await session.connection()).execute(statement)).all()
    uses = {row.id: row.special_use for row in rows}
    spam = uses.get(target_mailbox.id) == SpecialUse.JUNK
    if uses.get(target_mailbox.id) in NEUTRAL_USES:
        return
    was_junk = [uses.get(row.mailbox_id) == SpecialUse.JUNK for row in message_rows]
    ids = [row.id for row, was in zip(message_rows, was_junk, strict=True) if was is not spam]
    await environment.run_in_session(
        session, lambda turn: enqueue_training(turn, ids, is_spam=spam)
    )


def enqueue_training_for_junk_keywords(
    transaction: DatabaseTransaction, message_ids: Sequence[int], keywords: Collection[str]
) -> None:
    """Enqueue training with messages that get a junk or not-junk keyword."""
    spam_flags = {
        SPAM_BY_KEYWORD[word.lower()] for word in keywords if word.lower() in SPAM_BY_KEYWORD
    }
    if transaction.environment.options.rspamd_learn_url and len(spam_flags) == 1:
        enqueue_training(transaction, message_ids, is_spam=spam_flags.pop())


def enqueue_released_as_ham(transaction: DatabaseTransaction, message_ids: Sequence[int]) -> None:
    """Enqueue training with messages that are released from quarantine."""
    if transaction.environment.options.rspamd_learn_url:
        enqueue_training(transaction, message_ids, is_spam=False)


def enqueue_training(
    transaction: DatabaseTransaction, message_ids: Sequence[int], *, is_spam: bool
) -> None:
    """Enqueue training with messages. A newer verdict about a message replaces the older one."""
    if not message_ids:
        return
    new = insert_with_conflict(transaction.connection.dialect.name, TrainingMessage)
    names = ("spam", "revision", "due_at", "attempts", "holder")
    update_columns = {name: getattr(new.excluded, name) for name in names}
    upsert = new.on_conflict_do_update(index_elements=["message_id"], set_=update_columns)
    columns = {
        "spam": is_spam,
        "revision": transaction.environment.new_id(),
        "due_at": transaction.environment.now(),
        "attempts": 0,
    }
    columns["holder"] = None
    transaction.connection.execute(upsert, [{"message_id": key, **columns} for key in message_ids])
    transaction.workers_to_wake.add(wakeups.LESSONS)


async def run_worker(environment: Environment) -> None:
    """Train the spam filter with enqueued messages until cancelled or stopped."""
    async with leases.keep_process_registered(environment):
        await _train_until_worker_stops(environment)


async def _train_until_worker_stops(environment: Environment) -> None:
    with environment.wakeups.follow([wakeups.LESSONS]) as bell:
        while not is_worker_stopping():
            bell.clear()
            try:
                while not is_worker_stopping() and await try_train_with_next_messages(environment):
                    pass
            except Exception:  # leased training messages become due again
                log.exception("Could not train the spam filter")
            try:
                async with asyncio.timeout(POLL_INTERVAL):  # unlike wait_for, it loses no wake-up
                    await bell.wait()
            except TimeoutError:
                continue


async def try_train_with_next_messages(environment: Environment) -> bool:
    """Train with the next messages. Returns False if there are none or the filter is down."""
    if not environment.options.rspamd_learn_url:
        return False
    training_messages = await _lease_training_messages(environment)
    try:
        with leases.protect_leases_in_use(
            environment, *(training_message.message_id for training_message in training_messages)
        ):
            for index, training_message in enumerate(training_messages):
                if is_worker_stopping():  # the leases of the others end with the worker
                    return False
                try:
                    await _train_and_delete_training_message(environment, training_message)
                except ScannerUnavailable:
                    await _retry_or_delete_training_messages(environment, training_messages[index:])
                    return False
    except Exception:
        these = col(TrainingMessage.message_id).in_(
            [training_message.message_id for training_message in training_messages]
        )
        leases.end_lease_at_later_heartbeat(
            environment, TrainingMessage, these, delay_seconds=FIRST_RETRY_DELAY.total_seconds()
        )
        raise
    return bool(training_messages)


async def _lease_training_messages(environment: Environment) -> Sequence[ColumnRow]:
    """Lease the next due messages for this process."""
    now = environment.now()
    due_messages = select(col(TrainingMessage.message_id)).where(
        col(TrainingMessage.due_at) <= now, leases.is_unleased(TrainingMessage)
    )
    due_messages = due_messages.order_by(
        col(TrainingMessage.due_at), col(TrainingMessage.message_id)
    ).limit(BATCH_SIZE)
    if not await environment.database.read(due_messages):
        return ()  # an idle worker writes nothing
    process_id = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        connection = await session.connection()
        ids = (
            (await connection.execute(due_messages.with_for_update(skip_locked=True)))
            .scalars()
            .all()
        )
        these = col(TrainingMessage.message_id).in_(ids), leases.is_registered(process_id)
        claim = update(TrainingMessage).where(*these)
        claim = claim.values(holder=process_id, attempts=TrainingMessage.attempts + 1)
        return (await connection.execute(claim.returning(*select_columns(TrainingMessage)))).all()


async def _train_and_delete_training_message(
    environment: Environment, training_message: ColumnRow
) -> None:
    """Train with one message and delete its row. Deleted and damaged messages are skipped."""
    body = await _open_readable_message_body_or_none(environment, training_message.message_id)
    try:
        result = (
            "refused"
            if body is None
            else await train_rspamd_and_return_metric_label(
                environment, body, is_spam=training_message.spam
            )
        )
    except (CorruptBlob, NotFound):  # noticed while streaming
        result = "refused"
    TRAINED_MESSAGES.add("spam" if training_message.spam else "ham", result)
    await _delete_training_message(environment, training_message)


async def _delete_training_message(environment: Environment, training_message: ColumnRow) -> None:
    """Delete the row unless a newer verdict has replaced it."""
    statement = delete(TrainingMessage).where(
        col(TrainingMessage.message_id) == training_message.message_id,
        col(TrainingMessage.revision) == training_message.revision,
    )
    await environment.run_transaction(lambda turn: turn.connection.execute(statement).close())


async def _open_readable_message_body_or_none(
    environment: Environment, message_id: int
) -> ScanBody | None:
    """Return the message as received; None if it is deleted, damaged or encrypted."""
    columns = (
        col(Message.id),
        col(Message.user_id),
        col(Message.blob_id),
        col(Message.mime_structure),
    )
    statement = select(*columns, col(Message.encrypted)).where(col(Message.id) == message_id)
    rows = [row for row in await environment.database.read(statement) if not row.encrypted]
    messages = await message_open.open_messages_and_log_damage(environment, rows)
    try:
        return ScanBody(messages[0].size, messages[0].stream_raw) if messages else None
    except CorruptBlob:  # already logged by the reader
        return None


async def _retry_or_delete_training_messages(
    environment: Environment, training_messages: Sequence[ColumnRow]
) -> None:
    """Schedule retries. Rows with too many attempts are deleted."""
    now = environment.now()
    over = [
        training_message
        for training_message in training_messages
        if training_message.attempts >= MAX_ATTEMPTS
    ]
    for training_message in over:
        TRAINED_MESSAGES.add("spam" if training_message.spam else "ham", "given_up")
        await _delete_training_message(environment, training_message)

    def reschedule_in_transaction(transaction: DatabaseTransaction) -> None:
        for training_message in training_messages:
            statement = update(TrainingMessage).where(
                col(TrainingMessage.message_id) == training_message.message_id,
                col(TrainingMessage.revision) == training_message.revision,
            )
            due_at = _next_attempt_at(now, training_message.attempts)
            transaction.connection.execute(statement.values(due_at=due_at, holder=None))

    await environment.run_transaction(reschedule_in_transaction)


def _next_attempt_at(now: datetime, attempts: int) -> datetime:
    """Return the time of the next attempt. The delay doubles up to MAX_RETRY_DELAY."""
    pause: timedelta = FIRST_RETRY_DELAY * 2 ** min(attempts - 1, 10)
    return now + min(pause, MAX_RETRY_DELAY)
