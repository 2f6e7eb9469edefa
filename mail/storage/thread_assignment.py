"""Assignment of messages to threads, and merging of threads."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Delete, Select, String, UpdateBase, delete, func, insert, select, update
from sqlmodel import col

from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import DatabaseTransaction
from models.store.columns import insert_with_conflict
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.store.query_hints import without_index

MAX_MERGED_MESSAGES = 1000  # a thread with more messages is not merged
_INSERT_THREAD = PreparedStatement(insert(Thread).inline())


@prepare_cached
def _insert_thread_key(dialect: str) -> UpdateBase:
    return insert_with_conflict(dialect, ThreadKey).on_conflict_do_nothing().inline()


@prepare_cached
def _select_threads_by_key(dialect: str) -> Select[*tuple[Any, ...]]:
    return (
        select(col(ThreadKey.key), col(Thread.id), col(Thread.muted))
        .join(Thread, col(ThreadKey.thread_id) == col(Thread.id))
        .where(
            col(ThreadKey.user_id) == integer_parameter("user"),
            is_in_parameter(dialect, col(ThreadKey.key), "keys", String),
        )
    )


class ThreadAssignment(NamedTuple):
    """The thread of a message: the oldest that it refers to, or a new one."""

    thread_id: int
    other_thread_ids: list[int]  # other threads that the message refers to
    is_muted: bool  # true if one of these threads is muted
    thread_inserts: list[StatementWithValues]
    key_inserts: list[StatementWithValues]


def plan_thread_assignments_unless_merging(
    transaction: DatabaseTransaction,
    user_id: int,
    keys_and_subjects: Sequence[tuple[Sequence[str], str]],
) -> list[ThreadAssignment] | None:
    """Assign a thread to each message by its thread keys; a new thread gets the subject.

    Returns None if one of several messages merges threads: the merge must be written before the
    next message can be assigned.
    """
    keys = sorted({key for keys, _ in keys_and_subjects for key in keys})
    threads_by_key: dict[str, tuple[int, bool]] = {}
    if keys:
        statement = _select_threads_by_key(transaction.connection.dialect.name)
        rows = transaction.fetch_rows(statement, user=user_id, keys=keys)
        threads_by_key = {row.key: (row.id, row.muted) for row in rows}
    assignments = []
    for thread_keys, subject in keys_and_subjects:
        known_threads = dict(threads_by_key[key] for key in thread_keys if key in threads_by_key)
        if len(known_threads) > 1 and len(keys_and_subjects) > 1:
            return None
        new = [key for key in thread_keys if key not in threads_by_key]
        if known_threads:
            (first, *others), begun_by = sorted(known_threads), list[StatementWithValues]()
        else:
            (first, new_thread), others = new_thread_insert(transaction, user_id, subject), []
            begun_by = [new_thread]
        muted = any(known_threads.values())
        threads_by_key.update(dict.fromkeys(new, (first, muted)))
        assignments.append(
            ThreadAssignment(
                first,
                others,
                muted,
                begun_by,
                thread_key_insert_statements(transaction, user_id, new, first),
            )
        )
    return assignments


def insert_statements(assignments: Iterable[ThreadAssignment]) -> list[StatementWithValues]:
    """The statements that insert the new threads, then their keys."""
    return [
        *(new for assignment in assignments for new in assignment.thread_inserts),
        *(ref for assignment in assignments for ref in assignment.key_inserts),
    ]


class NewThreadInsert(NamedTuple):
    """The ID of a new thread, and the statement that inserts it."""

    thread_id: int
    statement: StatementWithValues


def new_thread_insert(
    transaction: DatabaseTransaction, user_id: int, subject: str
) -> NewThreadInsert:
    """The id of a new thread and its insert statement. The subject must be storable."""
    key = transaction.environment.new_id()
    row = {
        "id": key,
        "user_id": user_id,
        "subject": subject,
        "created_at": transaction.environment.now(),
        "muted": False,
    }
    return NewThreadInsert(key, (_INSERT_THREAD, row))


def delete_empty_threads_statement(thread_ids: Collection[int]) -> Delete:
    """The statement that deletes threads without messages; their keys are deleted by cascade."""
    left = select(col(Message.id)).where(col(Message.thread_id) == col(Thread.id))
    return delete(Thread).where(col(Thread.id).in_(thread_ids), ~left.exists())


def thread_key_insert_statements(
    transaction: DatabaseTransaction, user_id: int, thread_keys: Sequence[str], thread_id: int
) -> list[StatementWithValues]:
    """The statements that assign keys to a thread.

    Keys that already have a thread keep it.
    """
    new = _insert_thread_key(transaction.connection.dialect.name)
    return [(new, {"user_id": user_id, "key": key, "thread_id": thread_id}) for key in thread_keys]


def merge_threads_unless_large(
    transaction: DatabaseTransaction,
    user_id: int,
    thread_id: int,
    other_thread_ids: Sequence[int],
    origin: str | None,
) -> None:
    """Merge other threads of a user into the oldest one.

    The transaction holds the lock of the user.

    If one of them is muted, the result is muted. A thread with MAX_MERGED_MESSAGES stays, since
    moving it would delay a delivery. The journal entry names all threads; deleted ones resolve
    to null.
    """
    sizes = _count_messages(transaction, [thread_id, *other_thread_ids])
    merged_ids = [key for key in other_thread_ids if sizes.get(key, 0) < MAX_MERGED_MESSAGES]
    if not merged_ids or sizes.get(thread_id, 0) >= MAX_MERGED_MESSAGES:
        return
    is_own_message, connection = col(Message.user_id) == user_id, transaction.connection
    muted = select(func.count()).where(
        col(Thread.id).in_([thread_id, *merged_ids]), col(Thread.muted)
    )
    if connection.execute(muted).scalar_one():
        connection.execute(update(Thread).where(col(Thread.id) == thread_id).values(muted=True))
    moved = update(Message).where(
        without_index(is_own_message), col(Message.thread_id).in_(merged_ids)
    )
    connection.execute(moved.values(thread_id=thread_id))
    key_update = update(ThreadKey).where(
        col(ThreadKey.user_id) == user_id, col(ThreadKey.thread_id).in_(merged_ids)
    )
    connection.execute(key_update.values(thread_id=thread_id))
    connection.execute(delete(Thread).where(col(Thread.id).in_(merged_ids)))
    entry = JournalEntry(EventType.THREAD_MERGED, [thread_id, *merged_ids], {}, origin)
    transaction.record_entry(user_id, entry, at=transaction.environment.now())


def _count_messages(transaction: DatabaseTransaction, thread_ids: Sequence[int]) -> dict[int, int]:
    statement = select(col(Message.thread_id), func.count().label("many")).where(
        col(Message.thread_id).in_(thread_ids)
    )
    rows = transaction.connection.execute(statement.group_by(col(Message.thread_id))).all()
    return {row.thread_id: row.many for row in rows}
