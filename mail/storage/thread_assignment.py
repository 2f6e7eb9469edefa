"""Assignment of messages to threads, and merging of threads."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Delete, Select, String, delete, func, insert, select, update
from sqlmodel import col

from models.events.journal import ChangeKind, Entry
from models.messages.tables import Message, Thread, ThreadRef
from models.runtime.environment import Turn
from models.store.columns import insert_or
from models.store.prepared_statements import Prepared, Sent, among, number, prepared
from models.store.query_hints import without_index

MOST = 1000  # a thread with more messages is not merged
_BEGUN = Prepared(insert(Thread).inline())


@prepared
def _joined(dialect: str) -> Any:
    return insert_or(dialect, ThreadRef).on_conflict_do_nothing().inline()


@prepared
def _threads(dialect: str) -> Select[*tuple[Any, ...]]:
    return (
        select(col(ThreadRef.key), col(Thread.id), col(Thread.muted))
        .join(Thread, col(ThreadRef.thread_id) == col(Thread.id))
        .where(
            col(ThreadRef.user_id) == number("user"),
            among(dialect, col(ThreadRef.key), "keys", String),
        )
    )


class Led(NamedTuple):
    """The thread of a message: the oldest that it refers to, or a new one."""

    id: int
    others: list[int]  # other threads that the message refers to
    muted: bool  # true if one of these threads is muted
    begun: list[Sent]
    refs: list[Sent]


def found(
    turn: Turn, user_id: int, messages: Sequence[tuple[Sequence[str], str]]
) -> list[Led] | None:
    """Assign a thread to each message by its thread keys; a new thread gets the subject.

    Returns None if one of several messages merges threads: the merge must be written before the
    next message can be assigned.
    """
    keys = sorted({key for theirs, _ in messages for key in theirs})
    known: dict[str, tuple[int, bool]] = {}
    if keys:
        asked = _threads(turn.connection.dialect.name)
        rows = turn.fetched(asked, user=user_id, keys=keys)
        known = {row.key: (row.id, row.muted) for row in rows}
    made = []
    for theirs, subject in messages:
        there = dict(known[key] for key in theirs if key in known)
        if len(there) > 1 and len(messages) > 1:
            return None
        new = [key for key in theirs if key not in known]
        if there:
            (first, *others), begun_by = sorted(there), list[Sent]()
        else:
            (first, one), others = begun(turn, user_id, subject), []
            begun_by = [one]
        muted = any(there.values())
        known.update(dict.fromkeys(new, (first, muted)))
        made.append(Led(first, others, muted, begun_by, led(turn, user_id, new, first)))
    return made


def sent(made: Iterable[Led]) -> list[Sent]:
    """The statements that insert the new threads, then their keys."""
    return [*(new for one in made for new in one.begun), *(ref for one in made for ref in one.refs)]


def begun(turn: Turn, user_id: int, subject: str) -> tuple[int, Sent]:
    """The id of a new thread and its insert statement. The subject must be storable."""
    key = turn.world.key()
    row = {
        "id": key,
        "user_id": user_id,
        "subject": subject,
        "created_at": turn.world.now(),
        "muted": False,
    }
    return key, (_BEGUN, row)


def ended(ids: Collection[int]) -> Delete:
    """The statement that deletes threads without messages; their keys are deleted by cascade."""
    left = select(col(Message.id)).where(col(Message.thread_id) == col(Thread.id))
    return delete(Thread).where(col(Thread.id).in_(ids), ~left.exists())


def led(turn: Turn, user_id: int, keys: Sequence[str], thread_id: int) -> list[Sent]:
    """The statements that assign keys to a thread.

    Keys that already have a thread keep it.
    """
    new = _joined(turn.connection.dialect.name)
    return [(new, {"user_id": user_id, "key": key, "thread_id": thread_id}) for key in keys]


def merge(turn: Turn, user_id: int, into: int, others: Sequence[int], origin: str | None) -> None:
    """Merge other threads of a user into the oldest one.

    The transaction holds the lock of the user.

    If one of them is muted, the result is muted. A thread with MAX_MERGED_MESSAGES stays, since
    moving it would delay a delivery. The journal entry names all threads; deleted ones resolve
    to null.
    """
    sizes = _sizes(turn, [into, *others])
    taken = [key for key in others if sizes.get(key, 0) < MOST]
    if not taken or sizes.get(into, 0) >= MOST:
        return
    theirs, here = col(Message.user_id) == user_id, turn.connection
    muted = select(func.count()).where(col(Thread.id).in_([into, *taken]), col(Thread.muted))
    if here.execute(muted).scalar_one():
        here.execute(update(Thread).where(col(Thread.id) == into).values(muted=True))
    moved = update(Message).where(without_index(theirs), col(Message.thread_id).in_(taken))
    here.execute(moved.values(thread_id=into))
    led = update(ThreadRef).where(
        col(ThreadRef.user_id) == user_id, col(ThreadRef.thread_id).in_(taken)
    )
    here.execute(led.values(thread_id=into))
    here.execute(delete(Thread).where(col(Thread.id).in_(taken)))
    entry = Entry(ChangeKind.THREAD_CHANGED, [into, *taken], {}, origin)
    turn.record(user_id, entry, at=turn.world.now())


def _sizes(turn: Turn, keys: Sequence[int]) -> dict[int, int]:
    asked = select(col(Message.thread_id), func.count().label("many")).where(
        col(Message.thread_id).in_(keys)
    )
    rows = turn.connection.execute(asked.group_by(col(Message.thread_id))).all()
    return {row.thread_id: row.many for row in rows}
