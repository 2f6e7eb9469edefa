"""Sending limits: messages per time, counted in the transaction that queues a message.

A message counts once, independent of its recipients: for the user, the domain and the platform.
Each has a window that begins with its first message.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Integer,
    Select,
    bindparam,
    case,
    func,
    literal,
    select,
    true,
    union_all,
)
from sqlmodel import col

from mail.limits.user_limits import Reached, tell
from models.errors import RateLimited
from models.events.journal import PLATFORM
from models.queue.rate_limits import RateHold, RateLimit, RateWindow
from models.queue.rate_values import RateFrame, parse_rate
from models.runtime.environment import Turn, World
from models.runtime.options import Options
from models.store.columns import Big, Instant, insert_or, table_of
from models.store.prepared_statements import Made, Prepared, number, prepared
from models.users.tables import LimitKind, LimitSource, User

FRAME = table_of(RateLimit).c.frame.type
SOURCES = (
    LimitSource.USER,
    LimitSource.DOMAIN,
    LimitSource.PLATFORM,
)  # in the order of their locks
QUIET = timedelta(minutes=1)  # between two reports of refusals to a user
WORDS = {
    LimitSource.USER: "this account",
    LimitSource.DOMAIN: "all accounts of the domain together",
    LimitSource.PLATFORM: "all accounts together",
}


@dataclass(frozen=True, slots=True)
class Full:
    """A window with a reached limit."""

    window_id: int
    source: LimitSource
    allowed: int
    frame: RateFrame
    until: datetime

    def refusal(self, now: datetime) -> RateLimited:
        """The error for a message that exceeds the limit."""
        a = "an" if self.frame is RateFrame.HOUR else "a"
        messages = "message" if self.allowed == 1 else "messages"
        many = f"{self.allowed} {messages} {a} {self.frame.lower()}"
        wait = max(self.until - now, timedelta(0))
        return RateLimited(f"{WORDS[self.source]} may send {many}", retry_after=wait)


def count(turn: Turn, user_id: int, many: int = 1) -> Full | None:
    """Count messages of a user. Returns the window that they exceed, if any.

    Then the caller must roll back. Call it last: it locks the window of the domain.
    """
    now = turn.world.now()
    statement = _counting(turn.connection.dialect.name)
    given = _given(turn.world.options, user_id, now) | {"many": many}
    rows = turn.fetched(statement, **given)
    over = [row for row in rows if row.used > row.allowed]
    return longest(over, user_id) if over else None


def asking(world: World, user_id: int) -> tuple[Prepared, dict[str, Any]]:
    """The statement for the full windows of a user, and its parameters."""
    return _asking(), _given(world.options, user_id, world.now())


def longest(rows: Sequence[Any], user_id: int) -> Full:
    """The full window that ends last, as a row of `full_windows_query` or `count_messages`."""
    row = max(rows, key=lambda row: row.until)
    source = LimitSource.PLATFORM if row.id == PLATFORM else LimitSource.DOMAIN
    if row.id == user_id:
        source = LimitSource.USER
    return Full(row.id, source, row.allowed, RateFrame(row.frame), row.until)


async def held_up(world: World, user_id: int, full: Full) -> None:
    """Store that a message of a user was refused, and report it once per window.

    Windows that are shorter than a minute are reported once a minute.
    """
    asked = select(col(RateHold.until), col(RateHold.told_until)).where(col(RateHold.id) == user_id)

    def unit(turn: Turn) -> None:
        connection, now = turn.connection, world.now()
        row = connection.execute(asked).first()
        if full.until <= now or (row and row.until >= full.until):
            return
        silent = row is not None and row.told_until > now
        until = row.told_until if row and silent else max(full.until, now + QUIET)
        values = {
            "window_id": full.window_id,
            "source": full.source,
            "value": full.allowed,
            "frame": full.frame,
            "since": now,
            "until": full.until,
            "told_until": until,
        }
        new = insert_or(connection.dialect.name, RateHold).values(id=user_id, **values)
        connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
        if not silent:
            reached = Reached(LimitKind.RATE, full.allowed, full.allowed, full.until, refused=True)
            tell(turn, user_id, reached)

    rows = await world.database.read(asked)
    if not rows or rows[0].until < full.until:
        await world.apply(unit, user_id)


def _given(options: Options, user_id: int, now: datetime) -> dict[str, Any]:
    """The parameters of both statements."""
    given: dict[str, Any] = {"user": user_id, "now": now}
    for source, text in zip(SOURCES, _usual(options), strict=True):
        rate = parse_rate(text)
        given |= {f"{source}_value": rate.value, f"{source}_frame": rate.frame}
    return given | {f"until_{frame}": now + frame.span for frame in RateFrame}


def _usual(options: Options) -> tuple[str, str, str]:
    """The rates of the options for user, domain and platform."""
    return options.rate_user, options.rate_domain, options.rate_platform


def _bounds() -> Select[*tuple[Any, ...]]:
    """Select the limits that apply to a user, in the order their windows are locked."""
    mine = col(User.id) == number("user")
    home = col(User.domain_id)
    parts = [
        _bound(0, col(User.id)).where(mine),
        _bound(1, home).where(mine, home.is_not(None)),
        select(
            literal(2, Integer).label("nth"),
            literal(PLATFORM, Big).label("id"),
            _value(LimitSource.PLATFORM).label("allowed"),
            _frame(LimitSource.PLATFORM).label("frame"),
        ),
    ]
    every = union_all(*parts).subquery("bounds")
    return select(every).where(every.c.allowed > 0)


def _bound(nth: int, key: Any) -> Select[*tuple[Any, ...]]:
    """Select the limit of the user or the domain, or the default."""
    source = SOURCES[nth]
    joined = col(RateLimit.id) == key
    return (
        select(
            literal(nth, Integer).label("nth"),
            key.label("id"),
            func.coalesce(col(RateLimit.value), _value(source)).label("allowed"),
            func.coalesce(col(RateLimit.frame), _frame(source), type_=FRAME).label("frame"),
        )
        .select_from(User)
        .join(RateLimit, joined, isouter=True)
    )


def _value(source: LimitSource) -> ColumnElement[int]:
    return number(f"{source}_value")


def _frame(source: LimitSource) -> ColumnElement[Any]:
    return bindparam(f"{source}_frame", type_=FRAME)


def _at(name: str) -> ColumnElement[datetime]:
    return bindparam(name, type_=Instant())


@prepared
def _asking() -> Made:
    """Prepared select of the full windows of a user."""
    bounds = _bounds().subquery("held")
    window = RateWindow
    running = (col(window.until) > _at("now")) & (col(window.frame) == bounds.c.frame)
    return (
        select(bounds.c.id, bounds.c.allowed, bounds.c.frame, col(window.until).label("until"))
        .join(window, (col(window.id) == bounds.c.id) & running)
        .where(col(window.used) >= bounds.c.allowed)
    )


@prepared
def _counting(dialect: str) -> Made:
    """Statement that counts messages in all windows of a user and returns the new counts."""
    bounds = _bounds().subquery("counted")
    ends = [(bounds.c.frame == frame, _at(f"until_{frame}")) for frame in list(RateFrame)[:-1]]
    until = case(*ends, else_=_at(f"until_{RateFrame.DAY}"))
    rows = (
        select(bounds.c.id, bounds.c.frame, bounds.c.allowed, number("many"), until)
        .where(true())  # without it, SQLite parses ON CONFLICT as a join condition
        .order_by(bounds.c.nth)
    )
    new = insert_or(dialect, RateWindow)
    new = new.from_select(["id", "frame", "allowed", "used", "until"], rows)
    window, fresh = RateWindow, new.excluded
    running = (col(window.until) > _at("now")) & (col(window.frame) == fresh.frame)
    put = new.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "used": case((running, col(window.used) + fresh.used), else_=fresh.used),
            "until": case((running, col(window.until)), else_=fresh.until),
            "frame": fresh.frame,
            "allowed": fresh.allowed,
        },
    )
    columns = (window.id, window.frame, window.allowed, window.used, window.until)
    made: Made = put.returning(*(col(column) for column in columns))
    return made
