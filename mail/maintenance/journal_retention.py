"""Delete old journal entries: by age, by number, and after webhooks and push have read them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    and_,
    bindparam,
    case,
    delete,
    func,
    not_,
    or_,
    select,
    update,
)
from sqlalchemy.orm import Mapped
from sqlmodel import col

from models.events.journal import Change, Stream
from models.notifications import push_channels, webhooks
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, core_table

STREAMS_PER_PAGE = 5000
EVENTS_PER_TRANSACTION = 1000
STREAMS_PER_TRANSACTION = 50  # each stream is locked
UNREAD_GRACE = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class JournalReader:
    """A reader of the journal with its own position in each stream.

    `select_read_position` selects the last position that was read, or NULL. `is_followed` is an SQL
    condition: the reader waits for events of the stream.
    """

    name: str
    select_read_position: Callable[[Mapped[int]], Select[int]]
    is_followed: Callable[[Mapped[int]], ColumnElement[bool]]


# Entries that one of these has not read are kept for UNREAD_GRACE longer. A reader detects
# deleted entries by `Stream.pruned_position`.
READERS = (
    JournalReader(
        "webhooks",
        webhooks.last_webhook_read_position,
        webhooks.is_stream_covered_by_active_webhooks,
    ),
    JournalReader(
        "push", push_channels.lowest_push_read_position, push_channels.has_active_channel
    ),
)


async def delete_excess_and_old_entries(environment: Environment, *, by_age: bool = True) -> int:
    """Delete journal entries above the number limit, and with `by_age` old ones.

    Returns the number of rows. The check by age looks up the oldest entry of each stream, so it is
    for rare runs.
    """
    last_id, deleted_count = -1, 0
    while True:
        rows = await environment.database.read(
            _select_deletion_ends(environment, last_id, by_age=by_age)
        )
        for end_by_stream in _split_into_transactions(rows):
            deleted_count += await environment.run_transaction(
                partial(_delete_entries_up_to_positions, end_by_stream=end_by_stream),
                *sorted(end_by_stream),
            )
        if len(rows) < STREAMS_PER_PAGE:
            return deleted_count
        last_id = rows[-1].id


def _select_deletion_ends(
    environment: Environment, last_id: int, *, by_age: bool
) -> Select[*tuple[Any, ...]]:
    """Select the next streams to shorten, with the last position to delete.

    That is NULL if all entries are unread. Entries are deleted from the beginning only, so the rest
    has no gaps.
    """
    now, options = environment.now(), environment.options
    oldest_kept = now - options.journal_retention
    streams = _select_streams_with_old_or_excess_entries(
        _has_entry_before(oldest_kept) if by_age else None, last_id, options.journal_max_events
    )
    position, changed_at = col(Change.last), col(Change.at)
    too_many = position <= streams.c.last - options.journal_max_events
    is_unread = or_(*(position > streams.c[_read_position_label(feed)] for feed in READERS))
    is_over_limit = (changed_at < oldest_kept) | too_many
    is_grace_over = (changed_at < oldest_kept - UNREAD_GRACE) | (
        too_many & (changed_at < now - UNREAD_GRACE)
    )
    is_same_stream = col(Change.stream_id) == streams.c.id
    first_kept = (
        select(position)
        .where(is_same_stream, not_(is_over_limit & (not_(is_unread) | is_grace_over)))
        .order_by(position)
        .limit(1)
    )
    with_first_kept = select(streams, first_kept.scalar_subquery().label("stays")).subquery()
    end = select(func.max(position)).where(
        col(Change.stream_id) == with_first_kept.c.id,
        position < func.coalesce(with_first_kept.c.stays, with_first_kept.c.last + 1),
    )
    return select(
        with_first_kept.c.id, with_first_kept.c.pruned_position, end.scalar_subquery().label("end")
    ).order_by(with_first_kept.c.id)


def _select_streams_with_old_or_excess_entries(
    has_old_entry: ColumnElement[bool] | None, last_id: int, max_events: int
) -> Subquery:
    """Subquery: the next streams with entries to delete, and the position of each reader."""
    stream_id = col(Stream.id)
    read_positions = []
    for feed in READERS:
        read_position = func.coalesce(feed.select_read_position(stream_id).scalar_subquery(), 0)
        position_or_last = case(
            (feed.is_followed(stream_id), read_position), else_=col(Stream.last)
        )
        read_positions.append(position_or_last.label(_read_position_label(feed)))
    has_too_many = col(Stream.last) - col(Stream.pruned_position) > max_events
    statement = select(
        stream_id, col(Stream.last), col(Stream.pruned_position), *read_positions
    ).where(stream_id > last_id)
    statement = statement.where(
        has_too_many if has_old_entry is None else has_too_many | has_old_entry
    )
    return statement.order_by(stream_id).limit(STREAMS_PER_PAGE).subquery()


def _read_position_label(reader: JournalReader) -> str:
    return f"{reader.name}_read"


def _has_entry_before(oldest_kept: Any) -> ColumnElement[bool]:
    """SQL: the first entry of the stream is older than this."""
    is_same_stream = col(Change.stream_id) == col(Stream.id)
    first_changed_at = (
        select(col(Change.at)).where(is_same_stream).order_by(col(Change.last)).limit(1)
    )
    return and_(
        col(Stream.last) > col(Stream.pruned_position),
        first_changed_at.scalar_subquery() < oldest_kept,
    )


def _split_into_transactions(deletion_ends: Iterable[ColumnRow]) -> Iterator[dict[int, int]]:
    """The deletions of one transaction each: the last position to delete, by stream id."""
    end_by_stream: dict[int, int] = {}
    event_count = 0
    for row in deletion_ends:
        position = row.pruned_position
        while row.end is not None and position < row.end:
            end = min(position + EVENTS_PER_TRANSACTION, row.end)
            end_by_stream[row.id], event_count, position = end, event_count + end - position, end
            if (
                event_count >= EVENTS_PER_TRANSACTION
                or len(end_by_stream) == STREAMS_PER_TRANSACTION
            ):
                yield end_by_stream
                end_by_stream, event_count = {}, 0
    if end_by_stream:
        yield end_by_stream


def _delete_entries_up_to_positions(
    transaction: DatabaseTransaction, end_by_stream: Mapping[int, int]
) -> int:
    """Delete the entries of these streams up to these positions. Returns the number of rows."""
    stream, position = col(Change.stream_id), col(Change.last)
    is_deleted = or_(
        *(and_(stream == key, position <= upto) for key, upto in end_by_stream.items())
    )
    statement = select(
        stream, func.max(position).label("last"), func.max(col(Change.at)).label("at")
    )
    stream_ends = transaction.connection.execute(statement.where(is_deleted).group_by(stream)).all()
    if not stream_ends:
        return 0
    table = core_table(Stream)
    update_stream = update(table).where(table.c.id == bindparam("key"))
    update_stream = update_stream.values(
        pruned_position=bindparam("end"), pruned_at=bindparam("at")
    )
    deleted_count = transaction.connection.execute(delete(Change).where(is_deleted)).rowcount
    parameters = [{"key": row.stream_id, "end": row.last, "at": row.at} for row in stream_ends]
    transaction.connection.execute(update_stream, parameters)
    return deleted_count
