"""The incarnation of the database: the history that its rows belong to.

A restore returns the database to an earlier moment. The changes after that moment, which clients
have seen, don't exist in the restored database. A new incarnation begins then: the positions of all
streams of the journal rise above every position that an earlier incarnation can have given, and all
mailboxes get a new UIDVALIDITY. So cursors, UIDs and signed links of the lost history are
recognized, although they look like valid ones.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    case,
    cast,
    delete,
    func,
    select,
    update,
)
from sqlmodel import Field, SQLModel, col

from models.events.journal import Change, Stream
from models.mailboxes.tables import Mailbox
from models.store.columns import (
    BIG_INTEGER,
    ColumnRow,
    Int64,
    OptionalTimestamp,
    UtcDateTime,
    core_table,
    insert_with_conflict,
)
from models.users.tables import User

MARK_OBJECT_NAME = (
    "00/incarnation.json"  # an object that the garbage collector keeps, see RestoreGuard
)
ROW_ID = 1  # of the only row
POSITIONS_PER_SECOND = 1 << 23  # the base stays below 2^53 until the year 2060
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MIN_POSITION_GAP = 1 << 20  # between the last position of a stream and the new ones
# More than the mailboxes created in the lost history: UIDVALIDITY begins with the time of day.
UID_VALIDITY_GAP = int(timedelta(days=1).total_seconds())


class StoreIncarnation(SQLModel, table=True):
    """The incarnation of this database, in one row."""

    __tablename__ = "store_incarnation"

    id: int = Field(
        primary_key=True, sa_type=BIG_INTEGER, sa_column_kwargs={"autoincrement": False}
    )
    store: str  # random: the mark of another database is ignored
    number: Int64 = 0  # count of incarnations after the first
    base: Int64 = 0  # positions of earlier incarnations are below it; 0 in the first
    beat: Int64 = 0  # increased by each mark that is written to the object store
    began_at: OptionalTimestamp = None
    reason: str | None = None  # why this incarnation began


class DroppedObject(SQLModel, table=True):
    """An object that no row names; it is kept while a restore may need it."""

    __tablename__ = "dropped_objects"

    name: str = Field(primary_key=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)  # when it was first found without a row


@dataclass(frozen=True, slots=True)
class Incarnation:
    """The incarnation that a process works in."""

    store: str = ""
    number: int = 0
    base: int = 0
    beat: int = 0
    began_at: datetime | None = None  # None: the first


COLUMNS = tuple(
    getattr(StoreIncarnation, name) for name in ("store", "number", "base", "beat", "began_at")
)
SELECT_INCARNATION = select(*COLUMNS).where(col(StoreIncarnation.id) == ROW_ID)


def from_row(row: ColumnRow | None) -> Incarnation:
    """Convert a row of `SELECT_INCARNATION`; return the first incarnation if there is no row."""
    return Incarnation(*row) if row else Incarnation()


def insert_first_incarnation_if_missing(connection: Connection, database_id: str) -> None:
    """Insert the row of the first incarnation unless there is a row."""
    new = insert_with_conflict(connection.dialect.name, StoreIncarnation)
    values = {"id": ROW_ID, "store": database_id, "number": 0, "base": 0, "beat": 0}
    connection.execute(new.values(**values).on_conflict_do_nothing())


def increase_incarnation_beat(connection: Connection) -> Incarnation:
    """Increase the beat by one, and return the incarnation. A mark is written with that beat."""
    beat = update(StoreIncarnation).where(col(StoreIncarnation.id) == ROW_ID)
    raised = beat.values(beat=StoreIncarnation.beat + 1)
    return Incarnation(*connection.execute(raised.returning(*COLUMNS)).one())


def lock_row(connection: Connection) -> Incarnation:
    """Lock the row until the end of the transaction, and return its incarnation."""
    return Incarnation(*connection.execute(SELECT_INCARNATION.with_for_update()).one())


def begin_incarnation_invalidating_cursors_and_uids(
    connection: Connection, highest_known: Incarnation, *, reason: str, at: datetime
) -> Incarnation:
    """Begin a new incarnation, and return it. The caller has locked the row.

    All changes are deleted, and all streams continue at higher positions. All mailboxes get a new
    UIDVALIDITY. `highest_known` has the highest base and beat of the database and the object store.
    """
    clock = int((at - EPOCH).total_seconds() * POSITIONS_PER_SECOND)
    base = max(clock, highest_known.base + MIN_POSITION_GAP)
    _raise_positions_and_delete_changes(connection, base, at)
    _renew_uid_validity_of_all_mailboxes(connection, int(at.timestamp()) + UID_VALIDITY_GAP)
    begun = {
        "number": max(highest_known.number, 0) + 1,
        "base": base,
        "beat": highest_known.beat + 1,
        "began_at": at,
        "reason": reason,
    }
    row = update(StoreIncarnation).where(col(StoreIncarnation.id) == ROW_ID).values(**begun)
    return Incarnation(*connection.execute(row.returning(*COLUMNS)).one())


def _raise_positions_and_delete_changes(connection: Connection, base: int, at: datetime) -> None:
    """Let all streams continue above `base`, and delete their changes."""
    room = col(Stream.last) + MIN_POSITION_GAP
    last = case((room > base, room), else_=cast(base, BigInteger))
    connection.execute(delete(Change))
    connection.execute(update(Stream).values(last=last, pruned_position=last, pruned_at=at))


def _renew_uid_validity_of_all_mailboxes(connection: Connection, minimum: int) -> None:
    """Give all mailboxes a UIDVALIDITY that no mailbox of the user has had."""
    users, mailboxes = core_table(User), core_table(Mailbox)
    start: ColumnElement[int] = case(
        (users.c.uid_validity > minimum, users.c.uid_validity), else_=cast(minimum, BigInteger)
    )
    nth = func.row_number().over(
        partition_by=mailboxes.c.user_id, order_by=(mailboxes.c.uid_validity, mailboxes.c.id)
    )
    new = (
        select(mailboxes.c.id, mailboxes.c.user_id, (start + nth).label("uid_validity"))
        .join(users, users.c.id == mailboxes.c.user_id)
        .subquery()
    )
    connection.execute(
        update(mailboxes).where(mailboxes.c.id == new.c.id).values(uid_validity=new.c.uid_validity)
    )
    most = (
        select(mailboxes.c.user_id, func.max(mailboxes.c.uid_validity).label("uid_validity"))
        .group_by(mailboxes.c.user_id)
        .subquery()
    )
    connection.execute(
        update(users).where(users.c.id == most.c.user_id).values(uid_validity=most.c.uid_validity)
    )
