"""Assignment of messages to threads, and merging of threads."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Delete, Select, String, delete, func, insert, select, update
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
def _insert_thread_key(dialect: str) -> Any:
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


def plan_thread_assignments(
    transaction: DatabaseTransaction,
    user_id: int,
    keys_and_subjects: Sequence[tuple[Sequence[str], str]],
) -> list[ThreadAssignment] | None:
    """Assign a thread to each message by its thread keys; a new thread gets the subject.

    Returns None if one of several messages merges threads: the merge must be written before the
    next message can be assigned.
    """
    keys = sorted({key for theirs, _ in keys_and_subjects for key in theirs})
    known: dict[str, tuple[int, bool]] = {}
    if keys:
        asked = _select_threads_by_key(transaction.connection.dialect.name)
        rows = transaction.fetch_rows(asked, user=user_id, keys=keys)
        known = {row.key: (row.id, row.muted) for row in rows}
    made = []
    for theirs, subject in keys_and_subjects:
        there = dict(known[key] for key in theirs if key in known)
        if len(there) > 1 and len(keys_and_subjects) > 1:
            return None
        new = [key for key in theirs if key not in known]
        if there:
            (first, *others), begun_by = sorted(there), list[StatementWithValues]()
        else:
            (first, one), others = new_thread_insert(transaction, user_id, subject), []
            begun_by = [one]
        muted = any(there.values())
        known.update(dict.fromkeys(new, (first, muted)))
        made.append(
            ThreadAssignment(
                first,
                others,
                muted,
                begun_by,
                thread_key_insert_statements(transaction, user_id, new, first),
            )
        )
    return made


def insert_statements(assignments: Iterable[ThreadAssignment]) -> list[StatementWithValues]:
    """The statements that insert the new threads, then their keys."""
    return [
        *(new for one in assignments for new in one.thread_inserts),
        *(ref for one in assignments for ref in one.key_inserts),
    ]


def new_thread_insert(
    transaction: DatabaseTransaction, user_id: int, subject: str
) -> tuple[int, StatementWithValues]:
    """The id of a new thread and its insert statement. The subject must be storable."""
    key = transaction.environment.new_id()
    row = {
        "id": key,
        "user_id": user_id,
        "subject": subject,
        "created_at": transaction.environment.now(),
        "muted": False,
    }
    return key, (_INSERT_THREAD, row)


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
    taken = [key for key in other_thread_ids if sizes.get(key, 0) < MAX_MERGED_MESSAGES]
    if not taken or sizes.get(thread_id, 0) >= MAX_MERGED_MESSAGES:
        return
    theirs, here = col(Message.user_id) == user_id, transaction.connection
    muted = select(func.count()).where(col(Thread.id).in_([thread_id, *taken]), col(Thread.muted))
    if here.execute(muted).scalar_one():
        here.execute(update(Thread).where(col(Thread.id) == thread_id).values(muted=True))
    moved = update(Message).where(without_index(theirs), col(Message.thread_id).in_(taken))
    here.execute(moved.values(thread_id=thread_id))
    led = update(ThreadKey).where(
        col(ThreadKey.user_id) == user_id, col(ThreadKey.thread_id).in_(taken)
    )
    here.execute(led.values(thread_id=thread_id))
    here.execute(delete(Thread).where(col(Thread.id).in_(taken)))
    entry = JournalEntry(EventType.THREAD_CHANGED, [thread_id, *taken], {}, origin)
    transaction.record_entry(user_id, entry, at=transaction.environment.now())


def _count_messages(transaction: DatabaseTransaction, thread_ids: Sequence[int]) -> dict[int, int]:
    asked = select(col(Message.thread_id), func.count().label("many")).where(
        col(Message.thread_id).in_(thread_ids)
    )
    rows = transaction.connection.execute(asked.group_by(col(Message.thread_id))).all()
    return {row.thread_id: row.many for row in rows}
