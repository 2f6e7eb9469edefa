"""Move expired messages to the deleted ones, and purge these at the end of their retention."""

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, bindparam, case, delete, exists, select, update
from sqlmodel import col

from mail.maintenance import row_batches
from mail.storage.held_copies import has_legal_hold_with_uncopied_messages
from mail.storage.thread_assignment import delete_empty_threads_statement
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message, Thread
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table
from models.users.tables import User


async def move_expired_to_deleted_messages(environment: Environment) -> int:
    """Move expired messages to the deleted messages. Returns their number."""
    statement = select(col(Message.id), col(Message.user_id)).where(
        *_expired_message_conditions(environment)
    )
    statement = statement.order_by(col(Message.expires_at), col(Message.id))
    return await row_batches.run_in_batches_by_user(
        environment, statement, _move_to_deleted_messages_if_still_expired
    )


def _expired_message_conditions(environment: Environment) -> list[ColumnElement[bool]]:
    """SQL conditions for expired messages in a mailbox."""
    return [col(Message.expires_at) <= environment.now(), col(Message.mailbox_id).is_not(None)]


async def _move_to_deleted_messages_if_still_expired(
    environment: Environment, user_id: int, message_ids: Sequence[int]
) -> int:
    """Move these expired messages of a user to the deleted messages. Returns their number."""
    columns = [getattr(Message, name) for name in ("id", "mailbox_id", "uid", "size", "seen")]
    statement = select(*columns).where(
        col(Message.id).in_(message_ids), *_expired_message_conditions(environment)
    )

    def move_batch_to_deleted_messages(transaction: DatabaseTransaction) -> int:
        rows = transaction.connection.execute(statement.order_by(col(Message.id))).all()
        if rows:
            facts = {"mailbox": [r.mailbox_id for r in rows], "uid": [r.uid for r in rows]}
            entry = JournalEntry(EventType.MESSAGE_DELETED, [row.id for row in rows], facts)
            last = transaction.record_entry(user_id, entry, at=environment.now())
            _remove_from_mailboxes_until_purge(transaction, [row.id for row in rows], last)
            _lower_mailbox_and_user_counters(transaction, user_id, rows, last)
        return len(rows)

    return await environment.run_transaction(move_batch_to_deleted_messages, user_id)


def _remove_from_mailboxes_until_purge(
    transaction: DatabaseTransaction, message_ids: Sequence[int], modseq: int
) -> None:
    """Remove messages from their mailboxes and set the time of their purge."""
    now, options = transaction.environment.now(), transaction.environment.options
    mailbox_path = select(col(Mailbox.path)).where(col(Mailbox.id) == col(Message.mailbox_id))
    transaction.connection.execute(
        update(Message)
        .where(col(Message.id).in_(message_ids))
        .values(
            mailbox_id=None,
            modseq=modseq,
            deleted_at=now,
            deleted_from=mailbox_path.scalar_subquery(),
            deleted_mailbox_id=Message.mailbox_id,
            purge_at=case(
                (col(Message.draft), now + options.undo_window),
                else_=now + options.deleted_messages_retention,
            ),
            expires_at=None,  # a restored message does not expire again
        )
    )


def _lower_mailbox_and_user_counters(
    transaction: DatabaseTransaction, user_id: int, messages: Sequence[ColumnRow], modseq: int
) -> None:
    """Lower the counters of mailboxes and user by these messages."""
    counts: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for row in messages:
        counts[row.mailbox_id].update(message_count=1, unseen_count=not row.seen, size=row.size)
    table = core_table(Mailbox)
    new_values = {
        name: table.c[name] - bindparam(f"by_{name}")
        for name in ("message_count", "unseen_count", "size")
    }
    statement = (
        update(table).where(table.c.id == bindparam("key")).values(**new_values, modseq=modseq)
    )
    parameters = [
        {"key": key, **{f"by_{name}": count[name] for name in new_values}}
        for key, count in counts.items()
    ]
    transaction.connection.execute(statement, parameters)
    total_size = sum(row.size for row in messages)
    transaction.connection.execute(
        update(User)
        .where(col(User.id) == user_id)
        .values(used=User.used - total_size, message_count=User.message_count - len(messages))
    )


class PurgedCounts(NamedTuple):
    """How many messages and threads were deleted."""

    message_count: int
    thread_count: int


async def purge_due_messages_and_empty_threads(environment: Environment) -> PurgedCounts:
    """Delete messages at the end of their retention, and threads without messages.

    Returns the number of messages and of threads.
    """
    # a running legal hold needs them
    is_audited = has_legal_hold_with_uncopied_messages(col(Message.user_id))
    conditions = [
        col(Message.purge_at) <= environment.now(),
        col(Message.mailbox_id).is_(None),
        ~is_audited,
    ]
    statement = select(col(Message.id), col(Message.user_id)).where(*conditions)
    statement = statement.order_by(col(Message.purge_at), col(Message.id)).limit(
        row_batches.BATCH_SIZE
    )
    message_count, thread_count = 0, 0
    while rows := await environment.database.read(statement):
        ids = [row.id for row in rows]
        deletion = delete(Message).where(col(Message.id).in_(ids), *conditions)

        def delete_batch(transaction: DatabaseTransaction, removal: Any = deletion) -> PurgedCounts:
            thread_ids = transaction.connection.execute(
                removal.returning(col(Message.thread_id))
            ).scalars()
            left = list(thread_ids)
            return PurgedCounts(len(left), _delete_threads_if_empty(transaction, set(left)))

        # The streams are locked, since a delivery could add a message to one of these threads.
        batch_count, ended_threads = await environment.run_transaction(
            delete_batch, *sorted({row.user_id for row in rows})
        )
        message_count, thread_count = message_count + batch_count, thread_count + ended_threads
        if len(rows) < row_batches.BATCH_SIZE or not batch_count:
            break
    return PurgedCounts(message_count, thread_count)


def _delete_threads_if_empty(transaction: DatabaseTransaction, thread_ids: Collection[int]) -> int:
    """Delete those of these threads that have no messages. Returns their number."""
    return transaction.connection.execute(delete_empty_threads_statement(thread_ids)).rowcount


async def delete_all_empty_threads(environment: Environment) -> int:
    """Delete all threads without messages. Returns their number."""
    has_messages = exists().where(col(Message.thread_id) == col(Thread.id))
    last_id, deleted_count = 0, 0
    while True:
        statement = select(col(Thread.id), col(Thread.user_id)).where(
            ~has_messages, col(Thread.id) > last_id
        )
        rows = await environment.database.read(
            statement.order_by(col(Thread.id)).limit(row_batches.BATCH_SIZE)
        )
        if not rows:
            return deleted_count
        ids, last_id = [row.id for row in rows], rows[-1].id
        user_ids = sorted({row.user_id for row in rows})
        deleted_count += await environment.run_transaction(
            partial(_delete_threads_if_empty, thread_ids=ids), *user_ids
        )
