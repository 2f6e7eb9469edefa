"""Checks of threads: they have the user of their messages, and at least one message."""

from collections.abc import Sequence

from sqlalchemy import case, delete, exists, func, literal, select
from sqlmodel import col

from mail.consistency.checks import ConsistencyCheck, EqualityRule
from models.messages.tables import Message, Thread, ThreadKey
from models.runtime.environment import DatabaseTransaction
from models.store.columns import core_table
from models.users.tables import User

SUBJECT = "threads"


def thread_checks() -> list[ConsistencyCheck]:
    """All checks of threads."""
    return [_thread_owner_check(), _empty_thread_check(), _thread_key_check()]


def _thread_owner_check() -> ConsistencyCheck:
    table = core_table(Message)
    return ConsistencyCheck(
        SUBJECT,
        Message,
        {"thread_owner": EqualityRule(col(Message.user_id), col(Thread.user_id))},
        table.outerjoin(Thread, col(Thread.id) == table.c.thread_id),
        col(Message.user_id),
    )


def _empty_thread_check() -> ConsistencyCheck:
    has_message = exists().where(col(Message.thread_id) == col(Thread.id))
    rule = EqualityRule(
        literal("some"), case((has_message, "some"), else_="none"), is_repairable=True
    )
    table = core_table(Thread)
    return ConsistencyCheck(
        SUBJECT,
        Thread,
        {"messages": rule},
        table,
        col(Thread.user_id),
        repair=_delete_empty_threads,
    )


def _delete_empty_threads(
    transaction: DatabaseTransaction, _check: ConsistencyCheck, keys: Sequence[int], _stream: int
) -> None:
    used = exists().where(col(Message.thread_id) == col(Thread.id))
    transaction.connection.execute(delete(Thread).where(col(Thread.id).in_(keys), ~used))


def _thread_key_check() -> ConsistencyCheck:
    """The check that a thread key refers to a thread of the same user."""
    is_own_thread = exists().where(
        col(Thread.id) == col(ThreadKey.thread_id), col(Thread.user_id) == col(ThreadKey.user_id)
    )
    astray = select(func.count()).where(col(ThreadKey.user_id) == col(User.id), ~is_own_thread)
    rule = EqualityRule(literal(0), astray.scalar_subquery(), is_repairable=True)
    table = core_table(User)
    return ConsistencyCheck(
        SUBJECT,
        User,
        {"refs_astray": rule},
        table,
        col(User.id),
        repair=_delete_keys_to_other_users_threads,
    )


def _delete_keys_to_other_users_threads(
    transaction: DatabaseTransaction, _check: ConsistencyCheck, keys: Sequence[int], _stream: int
) -> None:
    is_own_thread = exists().where(
        col(Thread.id) == col(ThreadKey.thread_id), col(Thread.user_id) == col(ThreadKey.user_id)
    )
    is_of_these_users = col(ThreadKey.user_id).in_(keys)
    transaction.connection.execute(delete(ThreadKey).where(is_of_these_users, ~is_own_thread))
