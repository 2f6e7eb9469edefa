"""The journal: the table of all committed changes, in order in each stream."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Connection,
    Select,
    and_,
    bindparam,
    case,
    delete,
    false,
    insert,
    or_,
    select,
    update,
)
from sqlmodel import Field, SQLModel, col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import require_found
from models.events.event_types import EventType
from models.store.columns import (
    BIG_INTEGER,
    ColumnRow,
    Int64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
    json_column,
    select_columns,
)
from models.store.prepared_statements import (
    PreparedStatement,
    StatementWithValues,
    execute_statements,
    fetch_rows,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)

MAX_BATCH_EVENTS = 500  # events of a batch
MAX_IDS_PER_ROW = 1000  # larger changes are made by tasks, in several rows
MAX_PARAMETERS = 10_000  # of one statement; PostgreSQL allows 32,767
PLATFORM = 0  # the stream of changes that belong to no user and no domain

StreamPositions = Mapping[int, int]  # stream id -> position of its last event


class Stream(RowWithId, table=True):
    """The journal of one user or domain. It has the same id.

    Its row has the last position of the stream. Transactions that change the user or domain lock
    it.
    """

    __tablename__ = "streams"

    last: Int64 = 0  # position of the newest event: MODSEQ (RFC 7162) if the stream is a user's
    pruned_position: Int64 = 0  # position of the newest event that is no longer kept
    # time of that event; None if there is none, or if all events were dropped
    pruned_at: OptionalTimestamp = None


class Change(SQLModel, table=True):
    """One change of one object or of many objects.

    Each object has a position, counted from 1 without gaps in its stream; `last` is the position of
    the last one. So a bulk change is one row, and a follower can stop inside it.
    """

    __tablename__ = "changes"

    stream_id: int = foreign_key("streams.id", primary_key=True, index=False)
    last: int = Field(primary_key=True, sa_type=BIG_INTEGER)
    at: Timestamp
    type: EventType = enum_column(EventType)
    ids: list[int] = json_column(list)
    # a list has one item for each id; other values apply to all ids
    facts: dict[str, Any] = json_column(dict)
    origin: str | None = None  # session id or idempotency key of the caller


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """A change to record: `type` for these objects, at most MAX_IDS_PER_ROW.

    `facts` are further values that followers need: lists have one item for each id.
    """

    type: EventType
    ids: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class JournalEvent:
    """The part of a change for one object, and the positions after it."""

    type: EventType
    object_id: int
    at: datetime
    stream_id: int
    positions: StreamPositions
    facts: Mapping[str, Any]
    origin: str | None

    @property
    def modseq(self) -> int:
        """The MODSEQ of the change that this event is a part of."""
        return int(self.facts["modseq"])


# Built once: building a statement costs more than running it. Streams are locked in the order of
# their ids, so there is no deadlock.
_LOCK_STREAMS = (
    select(col(Stream.id))
    .where(col(Stream.id).in_(bindparam("streams", expanding=True)))
    .order_by(col(Stream.id))
    .with_for_update()
)
_IS_STREAM = col(Stream.id) == integer_parameter("stream")
_SET_LAST_POSITION = PreparedStatement(
    update(Stream).where(_IS_STREAM).values(last=integer_parameter("to"))
)
_RESERVE_POSITIONS = PreparedStatement(
    update(Stream)
    .where(_IS_STREAM)
    .values(last=Stream.last + integer_parameter("many"))
    .returning(col(Stream.last))
)
_INSERT_CHANGE = PreparedStatement(insert(Change).inline())
_RESERVE_IN_STREAMS = (
    update(Stream)
    .where(col(Stream.id).in_(bindparam("streams", expanding=True)))
    .values(last=Stream.last + bindparam("many"))
    .returning(col(Stream.id), col(Stream.last))
)


@prepare_cached
def _lock_streams_statement(dialect: str) -> Select[*tuple[Any, ...]]:
    streams = select(col(Stream.id), col(Stream.last)).order_by(col(Stream.id))
    return streams.where(is_in_parameter(dialect, col(Stream.id), "streams")).with_for_update()


def lock_and_read_positions(connection: Connection, stream_ids: Sequence[int]) -> dict[int, int]:
    """Lock streams until the end of the transaction, and return their last positions.

    Streams that do not exist are absent.
    """
    statement = _lock_streams_statement(connection.dialect.name)
    return dict(fetch_rows(connection, statement, {"streams": list(stream_ids)}).raw)


async def lock_streams(session: AsyncSession, stream_ids: Sequence[int]) -> None:
    """Lock streams until the end of the session's transaction."""
    if stream_ids:
        await (await session.connection()).execute(_LOCK_STREAMS, {"streams": list(stream_ids)})


def reserve_journal_positions_returning_last(
    connection: Connection, stream_id: int, position_count: int
) -> int:
    """Reserve the next positions of a stream, and return the last one.

    The update locks the stream's row until the commit. So entries of one stream become visible in
    the order of their positions, and a follower that reads "all after 7" never misses an 8 that was
    committed later than a 9. The caller must append entries for all positions. Raises NotFound if
    there is no such stream.
    """
    counted = fetch_rows(
        connection, _RESERVE_POSITIONS, {"stream": stream_id, "many": position_count}
    ).raw
    last: int | None = counted[0][0] if counted else None
    return require_found(last, str(stream_id), path=["user"])


def insert_entry_at_reserved_positions(
    connection: Connection, stream_id: int, entry: JournalEntry, *, last_position: int, at: datetime
) -> None:
    """Write an entry. Its positions, up to `last_position`, must be reserved."""
    execute_statements(
        connection,
        [(_INSERT_CHANGE, _journal_row_from_entry(stream_id, entry, last=last_position, at=at))],
    )


def statements_to_record_entries(
    stream_id: int, entries: Sequence[JournalEntry], *, current_last_position: int, at: datetime
) -> list[StatementWithValues]:
    """Return the statements that record entries in a locked stream with this last position."""
    appended: list[StatementWithValues] = []
    for entry in entries:
        current_last_position += len(entry.ids)
        appended.append(
            (
                _INSERT_CHANGE,
                _journal_row_from_entry(stream_id, entry, last=current_last_position, at=at),
            )
        )
    return [(_SET_LAST_POSITION, {"stream": stream_id, "to": current_last_position}), *appended]


def record_entries_in_existing_streams(
    connection: Connection, entries_by_stream: Mapping[int, Sequence[JournalEntry]], *, at: datetime
) -> StreamPositions:
    """Record entries in locked streams, and return the last position of each.

    It takes as few statements for many streams as for one. Ids without a stream are absent.
    """
    totals = {
        key: sum(len(entry.ids) for entry in group) for key, group in entries_by_stream.items()
    }
    usual_total = Counter(totals.values()).most_common(1)[0][0] if totals else 0
    streams = list(totals)
    positions: dict[int, int] = {}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(streams), MAX_PARAMETERS):
        chunk = streams[start : start + MAX_PARAMETERS]
        others = {key: totals[key] for key in chunk if totals[key] != usual_total}
        statement = _RESERVE_IN_STREAMS
        if others:
            total_of_stream = case(others, value=col(Stream.id), else_=usual_total)
            statement = statement.values(last=Stream.last + total_of_stream)
        counted = connection.execute(statement, {"streams": chunk, "many": usual_total}).all()
        positions |= {row.id: row.last for row in counted}
        for row in counted:
            last = row.last - totals[row.id]
            for entry in entries_by_stream[row.id]:
                last += len(entry.ids)
                rows.append(_journal_row_from_entry(row.id, entry, last=last, at=at))
    if rows:
        connection.execute(insert(Change), rows)
    return positions


async def append_journal_entry(
    session: AsyncSession, stream_id: int, entry: JournalEntry, *, at: datetime
) -> int:
    """Record an entry in the transaction of the session, and return its last position.

    Raises NotFound if there is no such stream.
    """

    def append_entry(connection: Connection) -> int:
        last = reserve_journal_positions_returning_last(connection, stream_id, len(entry.ids))
        insert_entry_at_reserved_positions(connection, stream_id, entry, last_position=last, at=at)
        return last

    last = await (await session.connection()).run_sync(append_entry)
    session.info["reached"] = {**recorded_positions(session), stream_id: last}
    return last


async def delete_changes_and_force_resync(
    session: AsyncSession, user_ids: Sequence[int], *, origin: str | None, at: datetime
) -> None:
    """Make all followers of these users' streams resync. The caller has locked the streams.

    All changes are deleted, and one position is skipped that no follower has read. The next one is
    a change of the user, so that waiting followers see the gap.
    """
    connection, these = await session.connection(), col(Stream.id).in_(user_ids)
    await connection.execute(delete(Change).where(col(Change.stream_id).in_(user_ids)))
    positions = {"last": Stream.last + 2, "pruned_position": Stream.last + 1, "pruned_at": None}
    ahead = update(Stream).where(these).values(positions)
    counted = (await connection.execute(ahead.returning(col(Stream.id), col(Stream.last)))).all()
    rows = [
        _journal_row_from_entry(
            key, JournalEntry(EventType.USER_UPDATED, [key], {}, origin), last=last, at=at
        )
        for key, last in counted
    ]
    if rows:
        await connection.execute(insert(Change), rows)
    session.info["reached"] = {
        **recorded_positions(session),
        **{row.id: row.last for row in counted},
    }


async def delete_changes_and_raise_positions(
    session: AsyncSession, stream_ids: Sequence[int], *, last_position: int
) -> None:
    """Set a higher last position of these locked streams.

    All changes are deleted, so that all followers resync.
    """
    if stream_ids:
        connection, these = await session.connection(), col(Stream.id).in_(stream_ids)
        await connection.execute(delete(Change).where(col(Change.stream_id).in_(stream_ids)))
        await connection.execute(
            update(Stream)
            .where(these)
            .values(last=last_position, pruned_position=last_position, pruned_at=None)
        )


async def record_entries_in_streams_or_raise(
    session: AsyncSession, entries_by_stream: Mapping[int, Sequence[JournalEntry]], *, at: datetime
) -> None:
    """Record entries in many locked streams, with as few statements as for one.

    Raises NotFound if a stream does not exist.
    """
    connection = await session.connection()
    lasts = await connection.run_sync(
        lambda connection: record_entries_in_existing_streams(connection, entries_by_stream, at=at)
    )
    for key in entries_by_stream:
        require_found(lasts.get(key), str(key), path=["user"])
    session.info["reached"] = {**recorded_positions(session), **lasts}


def _journal_row_from_entry(
    stream_id: int, entry: JournalEntry, *, last: int, at: datetime
) -> dict[str, Any]:
    return {
        "stream_id": stream_id,
        "last": last,
        "at": at,
        "type": entry.type,
        "ids": list(entry.ids),
        "facts": {"modseq": last, **entry.facts},
        "origin": entry.origin,
    }


def recorded_positions(session: AsyncSession) -> StreamPositions:
    """Return the last positions of the streams in which this session has recorded changes."""
    positions: StreamPositions = session.info.get("reached", {})
    return positions


_NEXT_CHANGES = (  # of one stream, the usual case: building it takes longer than running it
    select(*select_columns(Change))
    .where(
        col(Change.stream_id) == integer_parameter("stream"),
        col(Change.last).between(integer_parameter("first"), integer_parameter("to")),
    )
    .order_by(col(Change.last))
    .limit(integer_parameter("most"))
)


def next_changes_select_and_parameters(
    positions: StreamPositions, max_events: int = MAX_BATCH_EVENTS
) -> tuple[Select[*tuple[Any, ...]], dict[str, int]]:
    """The select of the next changes of streams, and the values of its parameters.

    `positions` has the last position that was read of each stream. For one stream, the select is
    built in advance. Otherwise it is that of `next_changes_select`, without parameters.
    """
    if len(positions) != 1:
        return next_changes_select(positions, max_events), {}
    ((stream, last),) = positions.items()
    end_position = last + max_events + MAX_IDS_PER_ROW
    return _NEXT_CHANGES, {
        "stream": stream,
        "first": last + 1,
        "to": end_position,
        "most": max_events,
    }


def next_changes_select(
    positions: StreamPositions, max_events: int = MAX_BATCH_EVENTS
) -> Select[*tuple[Any, ...]]:
    """Return the select of the next changes of these streams, with at least `max_events` events.

    The oldest changes come first. All changes are returned if there are fewer events.
    """
    is_later = (
        and_(
            col(Change.stream_id) == stream,
            col(Change.last).between(
                number + 1, number + max_events + MAX_IDS_PER_ROW
            ),  # there are no gaps
        )
        for stream, number in positions.items()
    )
    order = (col(Change.stream_id), col(Change.last))
    return (
        select(*select_columns(Change))
        .where(or_(false(), *is_later))
        .order_by(*order)
        .limit(max_events)
    )


def events_after_positions(
    changes: Iterable[ColumnRow], positions: StreamPositions
) -> Iterator[JournalEvent]:
    """Yield the events of changes after these positions, one for each object."""
    for change in changes:
        first = change.last - len(change.ids) + 1
        for nth, key in enumerate(change.ids):
            number = first + nth
            if number > positions[change.stream_id]:
                positions = {**positions, change.stream_id: number}
                facts = {
                    name: value[nth] if isinstance(value, list) else value
                    for name, value in change.facts.items()
                }
                yield JournalEvent(
                    change.type, key, change.at, change.stream_id, positions, facts, change.origin
                )
