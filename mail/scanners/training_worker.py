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
from mail.scanners.rspamd_training import TRAINED_MESSAGES, train_or_refuse
from mail.storage import message_open
from mail.storage.blobs.errors import CorruptBlob
from models.errors import NotFound
from models.events import wakeups
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime import leases
from models.runtime.environment import DatabaseTransaction, Environment
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
BATCH_SIZE = 10  # lessons per lease
MAX_ATTEMPTS = 60
FIRST_RETRY_DELAY, MAX_RETRY_DELAY = timedelta(minutes=1), timedelta(hours=1)
POLL_INTERVAL = 60.0  # seconds between two looks without a wake-up


async def enqueue_lessons_if_junk_changes(
    environment: Environment,
    session: AsyncSession,
    message_rows: Sequence[ColumnRow],
    target_mailbox: ColumnRow,
) -> None:
    """Enqueue lessons for messages that are moved to a mailbox, in the same transaction."""
    if not environment.options.rspamd_learn_url or not message_rows:
        return
    places = {row.mailbox_id for row in message_rows if row.mailbox_id is not None} | {
        target_mailbox.id
    }
    asked = select(col(Mailbox.id), col(Mailbox.special_use)).where(col(Mailbox.id).in_(places))
    found = (await (await session.connection()).execute(asked)).all()
    uses = {row.id: row.special_use for row in found}
    spam = uses.get(target_mailbox.id) == SpecialUse.JUNK
    if uses.get(target_mailbox.id) in NEUTRAL_USES:
        return
    was_junk = [uses.get(row.mailbox_id) == SpecialUse.JUNK for row in message_rows]
    ids = [row.id for row, was in zip(message_rows, was_junk, strict=True) if was is not spam]
    await environment.run_in_session(session, lambda turn: enqueue_lessons(turn, ids, is_spam=spam))


def enqueue_lessons_for_junk_keywords(
    transaction: DatabaseTransaction, message_ids: Sequence[int], keywords: Collection[str]
) -> None:
    """Enqueue lessons for messages that get a junk or not-junk keyword."""
    said = {SPAM_BY_KEYWORD[word.lower()] for word in keywords if word.lower() in SPAM_BY_KEYWORD}
    if transaction.environment.options.rspamd_learn_url and len(said) == 1:
        enqueue_lessons(transaction, message_ids, is_spam=said.pop())


def enqueue_ham_lessons_of_released(
    transaction: DatabaseTransaction, message_ids: Sequence[int]
) -> None:
    """Enqueue lessons for messages that are released from quarantine."""
    if transaction.environment.options.rspamd_learn_url:
        enqueue_lessons(transaction, message_ids, is_spam=False)


def enqueue_lessons(
    transaction: DatabaseTransaction, message_ids: Sequence[int], *, is_spam: bool
) -> None:
    """Enqueue one lesson per message. A newer lesson replaces the older one."""
    if not message_ids:
        return
    new = insert_with_conflict(transaction.connection.dialect.name, TrainingMessage)
    names = ("spam", "turn", "due_at", "attempts", "holder")
    again = {name: getattr(new.excluded, name) for name in names}
    upsert = new.on_conflict_do_update(index_elements=["message_id"], set_=again)
    same = {
        "spam": is_spam,
        "turn": transaction.environment.new_id(),
        "due_at": transaction.environment.now(),
        "attempts": 0,
    }
    same["holder"] = None
    transaction.connection.execute(upsert, [{"message_id": key, **same} for key in message_ids])
    transaction.workers_to_wake.add(wakeups.LESSONS)


async def run_worker(environment: Environment) -> None:
    """Train the spam filter with enqueued lessons until cancelled."""
    async with leases.registered_process(environment):
        await _train_until_cancelled(environment)


async def _train_until_cancelled(environment: Environment) -> None:
    with environment.wakeups.follow([wakeups.LESSONS]) as bell:
        while True:
            bell.clear()
            try:
                while await train_batch(environment):
                    pass
            except Exception:  # leased lessons become due again
                log.exception("the spam filter could not be taught")
            try:
                async with asyncio.timeout(POLL_INTERVAL):  # unlike wait_for, it loses no wake-up
                    await bell.wait()
            except TimeoutError:
                continue


async def train_batch(environment: Environment) -> bool:
    """Train with the next lessons. Returns False if there are none or the filter is down."""
    if not environment.options.rspamd_learn_url:
        return False
    lessons = await _claim_lessons(environment)
    try:
        with leases.protect_leases_in_use(environment, *(lesson.message_id for lesson in lessons)):
            for place, lesson in enumerate(lessons):
                try:
                    await _train_and_delete_lesson(environment, lesson)
                except ScannerUnavailable:
                    await _retry_or_delete_lessons(environment, lessons[place:])
                    return False
    except Exception:
        these = col(TrainingMessage.message_id).in_([lesson.message_id for lesson in lessons])
        leases.end_lease_at_later_heartbeat(
            environment, TrainingMessage, these, delay_seconds=FIRST_RETRY_DELAY.total_seconds()
        )
        raise
    return bool(lessons)


async def _claim_lessons(environment: Environment) -> Sequence[ColumnRow]:
    """Lease the next due lessons for this process."""
    now = environment.now()
    due = select(col(TrainingMessage.message_id)).where(
        col(TrainingMessage.due_at) <= now, leases.is_unleased(TrainingMessage)
    )
    due = due.order_by(col(TrainingMessage.due_at), col(TrainingMessage.message_id)).limit(
        BATCH_SIZE
    )
    if not await environment.database.read(due):
        return ()  # an idle worker writes nothing
    process_id = await leases.ensure_registered(environment)
    async with environment.write_session() as session:
        connection = await session.connection()
        ids = (await connection.execute(due.with_for_update(skip_locked=True))).scalars().all()
        these = col(TrainingMessage.message_id).in_(ids), leases.is_registered(process_id)
        claim = update(TrainingMessage).where(*these)
        claim = claim.values(holder=process_id, attempts=TrainingMessage.attempts + 1)
        return (await connection.execute(claim.returning(*select_columns(TrainingMessage)))).all()


async def _train_and_delete_lesson(environment: Environment, lesson: ColumnRow) -> None:
    """Train with one lesson and delete it. Deleted and damaged messages are skipped."""
    body = await _readable_message_body(environment, lesson.message_id)
    try:
        result = (
            "refused"
            if body is None
            else await train_or_refuse(environment, body, is_spam=lesson.spam)
        )
    except (CorruptBlob, NotFound):  # noticed while streaming
        result = "refused"
    TRAINED_MESSAGES.add("spam" if lesson.spam else "ham", result)
    await _delete_lesson(environment, lesson)


async def _delete_lesson(environment: Environment, lesson: ColumnRow) -> None:
    """Delete a lesson unless a newer one has replaced it."""
    this = delete(TrainingMessage).where(
        col(TrainingMessage.message_id) == lesson.message_id,
        col(TrainingMessage.turn) == lesson.turn,
    )
    await environment.run_transaction(lambda turn: turn.connection.execute(this).close())


async def _readable_message_body(environment: Environment, message_id: int) -> ScanBody | None:
    """Return the message as received; None if it is deleted, damaged or encrypted."""
    columns = (col(Message.id), col(Message.user_id), col(Message.blob_id), col(Message.structure))
    asked = select(*columns, col(Message.encrypted)).where(col(Message.id) == message_id)
    rows = [row for row in await environment.database.read(asked) if not row.encrypted]
    found = await message_open.open_messages(environment, rows)
    try:
        return ScanBody(found[0].size, found[0].stream_raw) if found else None
    except CorruptBlob:  # already logged by the reader
        return None


async def _retry_or_delete_lessons(environment: Environment, lessons: Sequence[ColumnRow]) -> None:
    """Schedule retries of lessons. Lessons with too many attempts are deleted."""
    now = environment.now()
    over = [lesson for lesson in lessons if lesson.attempts >= MAX_ATTEMPTS]
    for lesson in over:
        TRAINED_MESSAGES.add("spam" if lesson.spam else "ham", "given_up")
        await _delete_lesson(environment, lesson)

    def reschedule_in_transaction(transaction: DatabaseTransaction) -> None:
        for lesson in lessons:
            this = update(TrainingMessage).where(
                col(TrainingMessage.message_id) == lesson.message_id,
                col(TrainingMessage.turn) == lesson.turn,
            )
            due_at = _next_attempt_at(now, lesson.attempts)
            transaction.connection.execute(this.values(due_at=due_at, holder=None))

    await environment.run_transaction(reschedule_in_transaction)


def _next_attempt_at(now: datetime, attempts: int) -> datetime:
    """Return the time of the next attempt. The delay doubles up to MAX_RETRY_DELAY."""
    pause: timedelta = FIRST_RETRY_DELAY * 2 ** min(attempts - 1, 10)
    return now + min(pause, MAX_RETRY_DELAY)
