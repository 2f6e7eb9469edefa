"""Checks of threads: they have the user of their messages, and at least one message."""

from collections.abc import Sequence

from sqlalchemy import case, delete, exists, func, literal, select
from sqlmodel import col

from mail.consistency.checks import Check, Rule
from models.messages.tables import Message, Thread, ThreadRef
from models.runtime.environment import Turn
from models.store.columns import table_of
from models.users.tables import User

SUBJECT = "threads"


def checks() -> list[Check]:
    """All checks of threads."""
    return [_owners(), _empty(), _refs()]


def _owners() -> Check:
    table = table_of(Message)
    return Check(
        SUBJECT,
        Message,
        {"thread_owner": Rule(col(Message.user_id), col(Thread.user_id))},
        table.outerjoin(Thread, col(Thread.id) == table.c.thread_id),
        col(Message.user_id),
    )


def _empty() -> Check:
    some = exists().where(col(Message.thread_id) == col(Thread.id))
    rule = Rule(literal("some"), case((some, "some"), else_="none"), cured=True)
    table = table_of(Thread)
    return Check(SUBJECT, Thread, {"messages": rule}, table, col(Thread.user_id), cure=_let_go)


def _let_go(turn: Turn, _check: Check, keys: Sequence[int], _stream: int) -> None:
    used = exists().where(col(Message.thread_id) == col(Thread.id))
    turn.connection.execute(delete(Thread).where(col(Thread.id).in_(keys), ~used))


def _refs() -> Check:
    """The check that a thread key refers to a thread of the same user."""
    own = exists().where(
        col(Thread.id) == col(ThreadRef.thread_id), col(Thread.user_id) == col(ThreadRef.user_id)
    )
    astray = select(func.count()).where(col(ThreadRef.user_id) == col(User.id), ~own)
    rule = Rule(literal(0), astray.scalar_subquery(), cured=True)
    table = table_of(User)
    return Check(SUBJECT, User, {"refs_astray": rule}, table, col(User.id), cure=_forget)


def _forget(turn: Turn, _check: Check, keys: Sequence[int], _stream: int) -> None:
    own = exists().where(
        col(Thread.id) == col(ThreadRef.thread_id), col(Thread.user_id) == col(ThreadRef.user_id)
    )
    theirs = col(ThreadRef.user_id).in_(keys)
    turn.connection.execute(delete(ThreadRef).where(theirs, ~own))
