"""Loading of threads: with their counts, senders and mailboxes."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.messages.tables import Message, Thread
from models.store.columns import ColumnRow, select_columns
from models.store.prepared_statements import is_in_parameter, prepare_cached
from models.store.query_hints import without_index
from resolvers.access import (
    can_see_mail_of_others,
    is_own_prepared,
    is_shared,
    is_visible_or_managed,
)
from resolvers.context import Context
from resolvers.messages.content_access import withhold_content_or_log_read
from resolvers.messages.listing import THREAD_SORT_KEY, is_not_deleted_sql

ThreadSelectBuilder = Callable[[str, ColumnElement[bool]], Select[*tuple[Any, ...]]]


async def _read_messages_of_threads(
    ctx: Context, build_select: ThreadSelectBuilder, thread_ids: list[int]
) -> Sequence[Any]:
    """Return the rows of a select about the messages of these threads that the viewer can see."""
    dialect = ctx.environment.database.dialect
    if can_see_mail_of_others(ctx):
        statement = build_select(dialect, is_visible_or_managed(ctx, Message))
        return await ctx.read(statement, {"threads": thread_ids})
    prepared = _prepare_for_own_messages(build_select, dialect)
    return await ctx.read_prepared(prepared, threads=thread_ids, reads_many_rows=True)


@prepare_cached
def _prepare_for_own_messages(
    build_select: ThreadSelectBuilder, dialect: str
) -> Select[*tuple[Any, ...]]:
    return build_select(dialect, is_own_prepared(Message))


async def load_visible_threads_by_ids(
    ctx: Context, thread_ids: list[int]
) -> list[ColumnRow | None]:
    """Load these threads with their counts, in this order. None if the viewer can't see one."""
    rows = await _read_messages_of_threads(ctx, _select_threads_with_counts, thread_ids)
    rows_by_id = {
        row.id: row for row in await withhold_content_or_log_read(ctx, rows)
    } | await _load_shared_threads_by_id(ctx, rows)
    return [rows_by_id.get(key) for key in thread_ids]


def _select_threads_with_counts(
    dialect: str, is_visible: ColumnElement[bool]
) -> Select[*tuple[Any, ...]]:
    thread_columns = select_columns(Thread, {"id", "user_id", "subject", "muted"})
    return (
        select(
            *thread_columns,
            func.count().label("message_count"),
            func.count().filter(~col(Message.seen)).label("unseen_count"),
            func.max(col(Message.received_at)).label("last_received_at"),
        )
        .join(Message, col(Message.thread_id) == col(Thread.id))
        .where(
            is_in_parameter(dialect, col(Thread.id), "threads"),
            without_index(is_visible),
            is_not_deleted_sql(),
        )
        .group_by(*thread_columns)
    )


async def _load_shared_threads_by_id(ctx: Context, threads: Sequence[ColumnRow]) -> dict[int, Any]:
    """Return those of these threads that others share, with the first shared subject."""
    foreign_threads = {row.id: row for row in threads if row.user_id != ctx.viewer.user_id}
    if not foreign_threads or not ctx.viewer.share_visibility.has_shared_mailboxes:
        return {}
    statement = select(col(Message.thread_id), col(Message.subject)).where(
        col(Message.thread_id).in_(foreign_threads), without_index(is_shared(ctx, Message))
    )
    threads_by_id = {}
    for row in await ctx.read(statement.order_by(*(column.desc() for column in THREAD_SORT_KEY))):
        threads_by_id[row.thread_id] = ThreadWithSubject(
            foreign_threads[row.thread_id], row.subject
        )
    return threads_by_id


class ThreadWithSubject:
    """A thread row with another subject than that of its first message."""

    __slots__ = ("_row", "subject")

    def __init__(self, row: Any, subject: str) -> None:
        self._row = row
        self.subject = subject

    def __getattr__(self, name: str) -> Any:
        return getattr(self._row, name)


async def load_senders_of_threads(
    ctx: Context, thread_ids: list[int]
) -> list[list[tuple[str | None, str]]]:
    """Load name and address of the senders in these threads, in this order.

    Each address is listed once, the first sender first.
    """
    senders_by_thread: defaultdict[int, list[tuple[str | None, str]]] = defaultdict(list)
    for row in await _read_messages_of_threads(ctx, _select_senders, thread_ids):
        senders_by_thread[row.thread_id].append((row.name, row.from_address))
    return [senders_by_thread[key] for key in thread_ids]


def _select_senders(dialect: str, is_visible: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return (
        select(
            col(Message.thread_id),
            func.max(col(Message.from_name)).label("name"),
            col(Message.from_address),
        )
        .where(
            is_in_parameter(dialect, col(Message.thread_id), "threads"),
            without_index(is_visible),
            is_not_deleted_sql(),
            col(Message.from_address).is_not(None),
        )
        .group_by(col(Message.thread_id), col(Message.from_address))
        .order_by(func.min(col(Message.id)))
    )


async def load_mailbox_ids_of_threads(ctx: Context, thread_ids: list[int]) -> list[list[int]]:
    """Load the IDs of the mailboxes in which these threads have messages."""
    ids_by_thread: defaultdict[int, list[int]] = defaultdict(list)
    for row in await _read_messages_of_threads(ctx, _select_mailbox_ids, thread_ids):
        ids_by_thread[row.thread_id].append(row.mailbox_id)
    return [sorted(ids_by_thread[key]) for key in thread_ids]


def _select_mailbox_ids(dialect: str, is_visible: ColumnElement[bool]) -> Select[*tuple[Any, ...]]:
    return (
        select(col(Message.thread_id), col(Message.mailbox_id))
        .where(
            is_in_parameter(dialect, col(Message.thread_id), "threads"),
            without_index(is_visible),
            is_not_deleted_sql(),
        )
        .distinct()
    )
