"""The limits of users: usage levels, and reports to the journal and by message."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, bindparam, func, insert, null, select, update
from sqlmodel import col

from models.admin.tasks import Task
from models.domains.tables import Domain
from models.errors import NotFound, RateLimited
from models.events.journal import ChangeKind, Entry
from models.events.wakeups import TASKS
from models.runtime.environment import Turn, World
from models.runtime.options import Options
from models.store.columns import Big, Picked, insert_or, table_of
from models.users.tables import LimitKind, Usage, UsageKind, UsageLevel, User

LETTER = "LIMIT_LETTER"  # kind of the task of resolvers/users/quota/quota_warnings.py
DAY = timedelta(days=1)  # also the interval between two reports of a full mailbox

ALLOWED = func.coalesce(  # bytes; 0: no limit
    col(User.quota),
    select(col(Domain.default_user_quota))
    .where(col(Domain.id) == col(User.domain_id))
    .scalar_subquery(),
    bindparam("platform", type_=Big),
)
TOO_MUCH_MAIL = "too much mail for this mailbox"
RECEIVED = select(col(User.received), col(User.received_max), col(User.received_until)).where(
    col(User.id) == bindparam("user"), col(User.deleted_at).is_(None)
)


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit of a user with its current usage."""

    kind: LimitKind
    used: int
    allowed: int
    resets_at: datetime | None = None  # None: the limit has no period
    refused: bool = False  # a message or recipient was refused


class TooMany(RateLimited):
    """An operation was refused because a limit of the user is used up."""

    def __init__(self, message: str, reached: Reached, now: datetime) -> None:
        wait = reached.resets_at - now if reached.resets_at else DAY
        super().__init__(message, retry_after=wait)
        self.reached = reached


def level(options: Options, used: int, allowed: int) -> UsageLevel:
    """The usage level of a limit. NORMAL if there is no limit (0)."""
    if not allowed:
        return UsageLevel.NORMAL
    if used >= allowed:
        return UsageLevel.FULL
    share = used * 100
    if options.limit_critical and share >= options.limit_critical * allowed:
        return UsageLevel.CRITICAL
    if options.limit_warning and share >= options.limit_warning * allowed:
        return UsageLevel.WARNING
    return UsageLevel.NORMAL


def tell(turn: Turn, user_id: int, reached: Reached) -> None:
    """Write LIMIT_REACHED to the user's journal stream."""
    until = reached.resets_at
    facts = {
        "limit": reached.kind.value,
        "level": level(turn.world.options, reached.used, reached.allowed).value,
        "used": reached.used,
        "allowed": reached.allowed,
        "refused": reached.refused,
        "resetsAt": until and until.isoformat(),
    }
    entry = Entry(ChangeKind.LIMIT_REACHED, [user_id], facts)
    turn.record(user_id, entry, at=turn.world.now())


def stored(turn: Turn, user_id: int, taken: Picked, more: int, *, letter: bool = True) -> None:
    """Report if `added_bytes` raised the storage usage to a higher level.

    `usage` has `used`, which includes `added_bytes`, and `allowed`. With `send_message`, the user
    also gets a message in INBOX.
    """
    options = turn.world.options
    at = level(options, taken.used, taken.allowed)
    if at is UsageLevel.NORMAL or at is level(options, taken.used - more, taken.allowed):
        return
    tell(turn, user_id, Reached(LimitKind.STORAGE, taken.used, taken.allowed))
    if letter:
        # the message about a full mailbox also covers later refusals
        until = turn.world.now() if at is UsageLevel.FULL else None
        this = update(User).where(col(User.id) == user_id)
        turn.connection.execute(this.values(storage_told_until=until))
        _write_to(turn, user_id, at)


def received(turn: Turn, user_id: int, taken: Picked, many: int = 1) -> None:
    """Report if these messages reached the hourly limit of received messages."""
    own, options = taken.received_max, turn.world.options
    most = options.received_hourly if own is None else own
    if most and taken.received - many < most <= taken.received:
        reached = Reached(LimitKind.RECEIVED, taken.received, most, taken.received_until)
        tell(turn, user_id, reached)


def too_many_received(turn: Turn, user_id: int) -> TooMany | None:
    """The error if the user has reached the hourly limit of received messages, else None."""
    options, now = turn.world.options, turn.world.now()
    row = turn.connection.execute(RECEIVED, {"user": user_id}).first()
    if row is None or row.received_until is None or row.received_until <= now:
        return None
    most = options.received_hourly if row.received_max is None else row.received_max
    if not most or row.received < most:
        return None
    reached = Reached(LimitKind.RECEIVED, row.received, most, row.received_until, refused=True)
    return TooMany(TOO_MUCH_MAIL, reached, now)


def _write_to(turn: Turn, user_id: int, at: UsageLevel, *, refused: bool = False) -> None:
    """Create the task that writes a message about the limit to the user."""
    if not turn.world.options.limit_letters:
        return
    now = turn.world.now()
    order = {"level": at.value, "refused": refused}
    task = Task(id=turn.world.key(), kind=LETTER, user_id=user_id, order=order, created_at=now)
    turn.connection.execute(insert(Task).values(task.model_dump()))
    turn.record(user_id, Entry(ChangeKind.TASK_CHANGED, [task.id]), at=now)
    turn.bells.add(TASKS)


def count_forwards(turn: Turn, user_id: int, many: int) -> None:
    """Count forwards of a user against the daily limit.

    One message may exceed the limit; the next is refused. Reports when the limit is reached. Raises
    RateLimited if it was reached before, and NotFound if the user does not exist.
    """
    now, connection = turn.world.now(), turn.connection
    own = connection.execute(select(col(User.forwards)).where(col(User.id) == user_id)).first()
    if own is None:
        raise NotFound(str(user_id), path=["user"])
    most = turn.world.options.forwards_daily if own.forwards is None else own.forwards
    mine = (col(Usage.user_id) == user_id) & (col(Usage.kind) == UsageKind.FORWARDS)
    running = select(col(Usage.used), col(Usage.until)).where(mine, col(Usage.until) > now)
    row = connection.execute(running).first()
    used, until = (row.used, row.until) if row else (0, now + DAY)
    if most and used >= most:
        reached = Reached(LimitKind.FORWARDS, used, most, until, refused=True)
        raise TooMany("this account has forwarded as much as it may", reached, now)
    new = insert_or(connection.dialect.name, Usage).values(
        user_id=user_id, kind=UsageKind.FORWARDS, used=used + many, until=until
    )
    again = {"used": new.excluded.used, "until": new.excluded.until}
    if row is None:
        again["told_until"] = null()
    put = new.on_conflict_do_update(index_elements=["user_id", "kind"], set_=again)
    connection.execute(put)
    if most and used + many >= most:
        tell(turn, user_id, Reached(LimitKind.FORWARDS, used + many, most, until))


async def refused(world: World, user_id: int, reached: Reached) -> None:
    """Report a refusal to the user, once per period of the limit.

    For storage the period is a day, or until the usage level changes; only the first refusal sends
    a message. Further refusals cost one select.
    """
    column, mine = _told(user_id, reached.kind)
    asked = select(column).where(mine)

    def unit(turn: Turn) -> None:
        row = turn.connection.execute(asked).first()
        if row is None or still(world, row[0]):
            return
        until = reached.resets_at or world.now() + DAY
        turn.connection.execute(update(column.table).where(mine).values({column: until}))
        tell(turn, user_id, reached)
        at = level(world.options, reached.used, reached.allowed)
        first = reached.kind is LimitKind.STORAGE and row[0] is None
        if first and at is not UsageLevel.NORMAL:
            _write_to(turn, user_id, at, refused=True)

    rows = await world.database.read(asked)
    if rows and not still(world, rows[0][0]):
        await world.apply(unit, user_id)


def still(world: World, told_until: datetime | None) -> bool:
    """True if refusals are not reported again before `told_until`."""
    return told_until is not None and told_until > world.now()


def _told(user_id: int, kind: LimitKind) -> tuple[Column[Any], ColumnElement[bool]]:
    """The column with the end of the report interval, and the condition for its row."""
    users, usages = table_of(User).c, table_of(Usage).c
    if kind in (LimitKind.RECIPIENTS, LimitKind.FORWARDS):
        mine = (usages.user_id == user_id) & (usages.kind == UsageKind(kind.value))
        return usages.told_until, mine
    storage = kind is LimitKind.STORAGE
    column = users.storage_told_until if storage else users.received_told_until
    return column, users.id == user_id
