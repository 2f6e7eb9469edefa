"""The journal: the table of all committed changes, in order in each stream."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
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

from models.errors import found
from models.store.columns import (
    Big,
    MaybeMoment,
    Moment,
    Number,
    Picked,
    Row,
    choice,
    picked,
    plain,
    ref,
)
from models.store.prepared_statements import Prepared, Sent, among, fetched, number, prepared, send

MOST = 500  # events of a batch
LONGEST = 1000  # larger changes are made by tasks, in several rows
PARAMETERS = 10_000  # of one statement; PostgreSQL allows 32,767
PLATFORM = 0  # the stream of changes that belong to no user and no domain

Position = Mapping[int, int]  # stream id -> position of its last event


class ChangeKind(StrEnum):
    """The kind of a change."""

    MAILBOX_CREATED = "MAILBOX_CREATED"
    MAILBOX_UPDATED = "MAILBOX_UPDATED"
    MAILBOX_RENAMED = "MAILBOX_RENAMED"
    MAILBOX_DELETED = "MAILBOX_DELETED"
    MESSAGE_ADDED = "MESSAGE_ADDED"
    MESSAGE_UPDATED = "MESSAGE_UPDATED"
    MESSAGE_MOVED = "MESSAGE_MOVED"
    MESSAGE_DELETED = "MESSAGE_DELETED"
    MESSAGE_ARCHIVED = "MESSAGE_ARCHIVED"
    MESSAGE_RESTORED = "MESSAGE_RESTORED"
    THREAD_CHANGED = "THREAD_CHANGED"
    LABEL_CHANGED = "LABEL_CHANGED"
    SAVED_SEARCH_CHANGED = "SAVED_SEARCH_CHANGED"
    SENDER_RULE_CHANGED = "SENDER_RULE_CHANGED"
    SUBMISSION_CHANGED = "SUBMISSION_CHANGED"
    FILE_CHANGED = "FILE_CHANGED"
    ADDRESS_CHANGED = "ADDRESS_CHANGED"
    IDENTITY_CHANGED = "IDENTITY_CHANGED"
    USER_CHANGED = "USER_CHANGED"
    DOMAIN_CHANGED = "DOMAIN_CHANGED"
    TASK_CHANGED = "TASK_CHANGED"
    SECURITY_EVENT = "SECURITY_EVENT"
    SETTING_CHANGED = "SETTING_CHANGED"
    KEY_VALUE_CHANGED = "KEY_VALUE_CHANGED"
    LIMIT_REACHED = "LIMIT_REACHED"
    AUTOREPLY_CHANGED = "AUTOREPLY_CHANGED"
    FILTER_CHANGED = "FILTER_CHANGED"
    CONNECTOR_CHANGED = "CONNECTOR_CHANGED"
    RELAY_HOST_CHANGED = "RELAY_HOST_CHANGED"
    TRANSPORT_CHANGED = "TRANSPORT_CHANGED"
    TLS_POLICY_CHANGED = "TLS_POLICY_CHANGED"
    FORWARDING_HOST_CHANGED = "FORWARDING_HOST_CHANGED"
    COMPOSE_REQUESTED = "COMPOSE_REQUESTED"
    CERTIFICATE_CHANGED = "CERTIFICATE_CHANGED"
    SIEVE_CHANGED = "SIEVE_CHANGED"
    QUARANTINE_CHANGED = "QUARANTINE_CHANGED"
    DKIM_CHANGED = "DKIM_CHANGED"
    RESYNC = "RESYNC"


class Stream(Row, table=True):
    """The journal of one user or domain. It has the same id.

    Its row has the last position of the stream. Transactions that change the user or domain lock
    it.
    """

    __tablename__ = "streams"

    last: Number = 0  # position of the newest event: MODSEQ (RFC 7162) if the stream is a user's
    gone: Number = 0  # position of the newest event that is no longer kept
    # time of that event; None if there is none, or if all events were dropped
    gone_at: MaybeMoment = None


class Change(SQLModel, table=True):
    """One change of one object or of many objects.

    Each object has a position, counted from 1 without gaps in its stream; `last` is the position of
    the last one. So a bulk change is one row, and a follower can stop inside it.
    """

    __tablename__ = "changes"

    stream_id: int = ref("streams.id", primary_key=True, index=False)
    last: int = Field(primary_key=True, sa_type=Big)
    at: Moment
    kind: ChangeKind = choice(ChangeKind)
    ids: list[int] = plain(list)
    # a list has one item for each id; other values apply to all ids
    facts: dict[str, Any] = plain(dict)
    origin: str | None = None  # session id or idempotency key of the caller


@dataclass(frozen=True, slots=True)
class Entry:
    """A change to record: `kind` for these objects, at most MAX_IDS_PER_ROW.

    `facts` are further values that followers need: lists have one item for each id.
    """

    kind: ChangeKind
    ids: Sequence[int]
    facts: Mapping[str, Any] = field(default_factory=dict)
    origin: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """The part of a change for one object, and the positions after it."""

    kind: ChangeKind
    object_id: int
    at: datetime
    stream_id: int
    position: Position
    facts: Mapping[str, Any]
    origin: str | None

    @property
    def modseq(self) -> int:
        """The MODSEQ of the change that this event is a part of."""
        return int(self.facts["modseq"])


# Built once: building a statement costs more than running it. Streams are locked in the order of
# their ids, so there is no deadlock.
_LOCK = (
    select(col(Stream.id))
    .where(col(Stream.id).in_(bindparam("streams", expanding=True)))
    .order_by(col(Stream.id))
    .with_for_update()
)
_STREAM = col(Stream.id) == number("stream")
_AHEAD = Prepared(update(Stream).where(_STREAM).values(last=number("to")))
_COUNT = Prepared(
    update(Stream)
    .where(_STREAM)
    .values(last=Stream.last + number("many"))
    .returning(col(Stream.last))
)
_APPEND = Prepared(insert(Change).inline())
_COUNT_EACH = (
    update(Stream)
    .where(col(Stream.id).in_(bindparam("streams", expanding=True)))
    .values(last=Stream.last + bindparam("many"))
    .returning(col(Stream.id), col(Stream.last))
)


@prepared
def _held(dialect: str) -> Select[*tuple[Any, ...]]:
    streams = select(col(Stream.id), col(Stream.last)).order_by(col(Stream.id))
    return streams.where(among(dialect, col(Stream.id), "streams")).with_for_update()


def hold(connection: Connection, streams: Sequence[int]) -> dict[int, int]:
    """Lock streams until the end of the transaction, and return their last positions.

    Streams that do not exist are absent.
    """
    statement = _held(connection.dialect.name)
    return dict(fetched(connection, statement, {"streams": list(streams)}).raw)


async def lock(session: AsyncSession, streams: Sequence[int]) -> None:
    """Lock streams until the end of the session's transaction."""
    if streams:
        await (await session.connection()).execute(_LOCK, {"streams": list(streams)})


def count(connection: Connection, stream_id: int, many: int) -> int:
    """Reserve the next positions of a stream, and return the last one.

    The update locks the stream's row until the commit. So entries of one stream become visible in
    the order of their positions, and a follower that reads "all after 7" never misses an 8 that was
    committed later than a 9. The caller must append entries for all positions. Raises NotFound if
    there is no such stream.
    """
    counted = fetched(connection, _COUNT, {"stream": stream_id, "many": many}).raw
    last: int | None = counted[0][0] if counted else None
    return found(last, str(stream_id), path=["user"])


def append(
    connection: Connection, stream_id: int, entry: Entry, *, last: int, at: datetime
) -> None:
    """Write an entry. Its positions, up to `last`, must be reserved."""
    send(connection, [(_APPEND, _row(stream_id, entry, last=last, at=at))])


def told(stream_id: int, entries: Sequence[Entry], *, since: int, at: datetime) -> list[Sent]:
    """Return the statements that record entries in a locked stream with this last position."""
    appended: list[Sent] = []
    for entry in entries:
        since += len(entry.ids)
        appended.append((_APPEND, _row(stream_id, entry, last=since, at=at)))
    return [(_AHEAD, {"stream": stream_id, "to": since}), *appended]


def record_each(
    connection: Connection, entries: Mapping[int, Sequence[Entry]], *, at: datetime
) -> Position:
    """Record entries in locked streams, and return the last position of each.

    It takes as few statements for many streams as for one. Ids without a stream are absent.
    """
    totals = {key: sum(len(entry.ids) for entry in group) for key, group in entries.items()}
    usual = Counter(totals.values()).most_common(1)[0][0] if totals else 0
    streams = list(totals)
    reached: dict[int, int] = {}
    rows: list[dict[str, Any]] = []
    for start in range(0, len(streams), PARAMETERS):
        some = streams[start : start + PARAMETERS]
        others = {key: totals[key] for key in some if totals[key] != usual}
        statement = _COUNT_EACH
        if others:
            more = case(others, value=col(Stream.id), else_=usual)
            statement = statement.values(last=Stream.last + more)
        counted = connection.execute(statement, {"streams": some, "many": usual}).all()
        reached |= {row.id: row.last for row in counted}
        for row in counted:
            last = row.last - totals[row.id]
            for entry in entries[row.id]:
                last += len(entry.ids)
                rows.append(_row(row.id, entry, last=last, at=at))
    if rows:
        connection.execute(insert(Change), rows)
    return reached


async def record(session: AsyncSession, stream_id: int, entry: Entry, *, at: datetime) -> int:
    """Record an entry in the transaction of the session, and return its last position.

    Raises NotFound if there is no such stream.
    """

    def write(connection: Connection) -> int:
        last = count(connection, stream_id, len(entry.ids))
        append(connection, stream_id, entry, last=last, at=at)
        return last

    last = await (await session.connection()).run_sync(write)
    session.info["reached"] = {**reached(session), stream_id: last}
    return last


async def restart(
    session: AsyncSession, streams: Sequence[int], *, origin: str | None, at: datetime
) -> None:
    """Make all followers of these users' streams resync. The caller has locked the streams.

    All changes are deleted, and one position is skipped that no follower has read. The next one is
    a change of the user, so that waiting followers see the gap.
    """
    connection, these = await session.connection(), col(Stream.id).in_(streams)
    await connection.execute(delete(Change).where(col(Change.stream_id).in_(streams)))
    positions = {"last": Stream.last + 2, "gone": Stream.last + 1, "gone_at": None}
    ahead = update(Stream).where(these).values(positions)
    counted = (await connection.execute(ahead.returning(col(Stream.id), col(Stream.last)))).all()
    rows = [
        _row(key, Entry(ChangeKind.USER_CHANGED, [key], {}, origin), last=last, at=at)
        for key, last in counted
    ]
    if rows:
        await connection.execute(insert(Change), rows)
    session.info["reached"] = {**reached(session), **{row.id: row.last for row in counted}}


async def lift(session: AsyncSession, streams: Sequence[int], *, to: int) -> None:
    """Set a higher last position of these locked streams.

    All changes are deleted, so that all followers resync.
    """
    if streams:
        connection, these = await session.connection(), col(Stream.id).in_(streams)
        await connection.execute(delete(Change).where(col(Change.stream_id).in_(streams)))
        await connection.execute(update(Stream).where(these).values(last=to, gone=to, gone_at=None))


async def record_all(
    session: AsyncSession, entries: Mapping[int, Sequence[Entry]], *, at: datetime
) -> None:
    """Record entries in many locked streams, with as few statements as for one.

    Raises NotFound if a stream does not exist.
    """
    connection = await session.connection()
    lasts = await connection.run_sync(lambda connection: record_each(connection, entries, at=at))
    for key in entries:
        found(lasts.get(key), str(key), path=["user"])
    session.info["reached"] = {**reached(session), **lasts}


def _row(stream_id: int, entry: Entry, *, last: int, at: datetime) -> dict[str, Any]:
    return {
        "stream_id": stream_id,
        "last": last,
        "at": at,
        "kind": entry.kind,
        "ids": list(entry.ids),
        "facts": {"modseq": last, **entry.facts},
        "origin": entry.origin,
    }


def reached(session: AsyncSession) -> Position:
    """Return the last positions of the streams in which this session has recorded changes."""
    known: Position = session.info.get("reached", {})
    return known


_NEXT = (  # of one stream, the usual case: building it takes longer than running it
    select(*picked(Change))
    .where(
        col(Change.stream_id) == number("stream"),
        col(Change.last).between(number("first"), number("to")),
    )
    .order_by(col(Change.last))
    .limit(number("most"))
)


def coming(since: Position, most: int = MOST) -> tuple[Select[*tuple[Any, ...]], dict[str, int]]:
    """Return the select of `select_next_changes`, and the values of its parameters."""
    if len(since) != 1:
        return after(since, most), {}
    ((stream, last),) = since.items()
    to = last + most + LONGEST
    return _NEXT, {"stream": stream, "first": last + 1, "to": to, "most": most}


def after(since: Position, most: int = MOST) -> Select[*tuple[Any, ...]]:
    """Return the select of the next changes of these streams, with at least `max_events` events.

    The oldest changes come first. All changes are returned if there are fewer events.
    """
    is_later = (
        and_(
            col(Change.stream_id) == stream,
            col(Change.last).between(number + 1, number + most + LONGEST),  # there are no gaps
        )
        for stream, number in since.items()
    )
    order = (col(Change.stream_id), col(Change.last))
    return select(*picked(Change)).where(or_(false(), *is_later)).order_by(*order).limit(most)


def events(changes: Iterable[Picked], since: Position) -> Iterator[Event]:
    """Yield the events of changes after these positions, one for each object."""
    for change in changes:
        first = change.last - len(change.ids) + 1
        for nth, key in enumerate(change.ids):
            number = first + nth
            if number > since[change.stream_id]:
                since = {**since, change.stream_id: number}
                facts = {
                    name: value[nth] if isinstance(value, list) else value
                    for name, value in change.facts.items()
                }
                yield Event(
                    change.kind, key, change.at, change.stream_id, since, facts, change.origin
                )
