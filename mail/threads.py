"""Making one conversation of several, when a message comes that belongs to all of them."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select, update
from sqlmodel import col

from models.journal import ChangeKind, Entry
from models.messages import Message, Thread, ThreadRef
from models.world import Turn

MOST = 1000  # messages of a conversation that takes others in, or is taken in


def merge(turn: Turn, user_id: int, into: int, others: Sequence[int], origin: str | None) -> None:
    """Let the others of the account, whose stream is held, be part of the one that is oldest.

    What was muted of them mutes all. A large one stays as it is: moving it would keep a
    delivery waiting. Followers are told of all of them; those that are gone are null then.
    """
    sizes = _sizes(turn, [into, *others])
    taken = [key for key in others if sizes.get(key, 0) < MOST]
    if not taken or sizes.get(into, 0) >= MOST:
        return
    theirs, here = col(Message.user_id) == user_id, turn.connection
    muted = select(func.count()).where(col(Thread.id).in_([into, *taken]), col(Thread.muted))
    if here.execute(muted).scalar_one():
        here.execute(update(Thread).where(col(Thread.id) == into).values(muted=True))
    moved = update(Message).where(theirs, col(Message.thread_id).in_(taken))
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
