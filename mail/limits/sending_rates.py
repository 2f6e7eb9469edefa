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

from mail.limits.user_limits import ReachedLimit, journal_reached_limit
from models.errors import RateLimited
from models.events.journal import PLATFORM
from models.queue.rate_limits import RateLimit, RateLimitHold, RateWindow
from models.queue.rate_values import RatePeriod, parse_rate_or_unlimited
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import Options
from models.store.columns import BIG_INTEGER, UtcDateTime, core_table, insert_with_conflict
from models.store.prepared_statements import (
    PreparedStatement,
    SqlStatement,
    integer_parameter,
    prepare_cached,
)
from models.users.tables import LimitKind, LimitSource, User

FRAME_TYPE = core_table(RateLimit).c.per.type
SOURCES = (
    LimitSource.USER,
    LimitSource.DOMAIN,
    LimitSource.PLATFORM,
)  # in the order of their locks
MIN_REPORT_INTERVAL = timedelta(minutes=1)  # between two reports of refusals to a user
SOURCE_PHRASES = {
    LimitSource.USER: "This account",
    LimitSource.DOMAIN: "All accounts of the domain together",
    LimitSource.PLATFORM: "All accounts together",
}


@dataclass(frozen=True, slots=True)
class FullRateWindow:
    """A window with a reached limit."""

    window_id: int
    source: LimitSource
    allowed: int
    per: RatePeriod
    ends_at: datetime

    def rate_limited_error(self, now: datetime) -> RateLimited:
        """The error for a message that exceeds the limit."""
        messages = "message" if self.allowed == 1 else "messages"
        limit_text = f"{self.allowed} {messages} per {self.per.lower()}"
        retry_after = max(self.ends_at - now, timedelta(0))
        return RateLimited(
            f"{SOURCE_PHRASES[self.source]} can send at most {limit_text}.", retry_after=retry_after
        )


def increment_and_find_exceeded_window(
    transaction: DatabaseTransaction, user_id: int, message_count: int = 1
) -> FullRateWindow | None:
    """Count messages of a user. Returns the window that they exceed, if any.

    Then the caller must roll back. Call it last: it locks the window of the domain.
    """
    now = transaction.environment.now()
    statement = _increment_windows_statement(transaction.connection.dialect.name)
    parameters = _statement_parameters(transaction.environment.options, user_id, now) | {
        "many": message_count
    }
    rows = transaction.fetch_rows(statement, **parameters)
    exceeded = [row for row in rows if row.used > row.allowed]
    return last_ending_full_window(exceeded, user_id) if exceeded else None


def full_windows_query_and_values(
    environment: Environment, user_id: int
) -> tuple[PreparedStatement, dict[str, Any]]:
    """The statement for the full windows of a user, and its parameters."""
    return _select_full_windows(), _statement_parameters(
        environment.options, user_id, environment.now()
    )


def last_ending_full_window(rows: Sequence[Any], user_id: int) -> FullRateWindow:
    """The full window that ends last, as a row of `full_windows_query_and_values` or a count."""
    row = max(rows, key=lambda row: row.until)
    source = LimitSource.PLATFORM if row.id == PLATFORM else LimitSource.DOMAIN
    if row.id == user_id:
        source = LimitSource.USER
    return FullRateWindow(row.id, source, row.allowed, RatePeriod(row.per), row.until)


async def record_and_report_refusal_once(
    environment: Environment, user_id: int, window: FullRateWindow
) -> None:
    """Store that a message of a user was refused, and report it once per window.

    Windows that are shorter than a minute are reported once a minute.
    """
    statement = select(col(RateLimitHold.until), col(RateLimitHold.notified_until)).where(
        col(RateLimitHold.id) == user_id
    )

    def store_and_journal_refusal_if_new(transaction: DatabaseTransaction) -> None:
        connection, now = transaction.connection, environment.now()
        row = connection.execute(statement).first()
        if window.ends_at <= now or (row and row.until >= window.ends_at):
            return
        silent = row is not None and row.notified_until > now
        until = (
            row.notified_until if row and silent else max(window.ends_at, now + MIN_REPORT_INTERVAL)
        )
        values = {
            "window_id": window.window_id,
            "source": window.source,
            "messages": window.allowed,
            "per": window.per,
            "since": now,
            "until": window.ends_at,
            "notified_until": until,
        }
        new = insert_with_conflict(connection.dialect.name, RateLimitHold).values(
            id=user_id, **values
        )
        connection.execute(new.on_conflict_do_update(index_elements=["id"], set_=values))
        if not silent:
            reached = ReachedLimit(
                LimitKind.RATE, window.allowed, window.allowed, window.ends_at, is_refusal=True
            )
            journal_reached_limit(transaction, user_id, reached)

    rows = await environment.database.read(statement)
    if not rows or rows[0].until < window.ends_at:
        await environment.run_transaction(store_and_journal_refusal_if_new, user_id)


def _statement_parameters(options: Options, user_id: int, now: datetime) -> dict[str, Any]:
    """The parameters of both statements."""
    parameters: dict[str, Any] = {"user": user_id, "now": now}
    for source, text in _default_rates(options).items():
        rate = parse_rate_or_unlimited(text)
        parameters |= {f"{source}_value": rate.messages, f"{source}_frame": rate.per}
    return parameters | {f"until_{frame}": now + frame.length for frame in RatePeriod}


def _default_rates(options: Options) -> dict[LimitSource, str]:
    """The rates of the options."""
    return {
        LimitSource.USER: options.limits_send_rate_per_user,
        LimitSource.DOMAIN: options.limits_send_rate_per_domain,
        LimitSource.PLATFORM: options.limits_send_rate_platform,
    }


def _select_rate_limits_of_user() -> Select[*tuple[Any, ...]]:
    """Select the limits that apply to a user, in the order their windows are locked."""
    is_user = col(User.id) == integer_parameter("user")
    domain_id = col(User.domain_id)
    parts = [
        _select_rate_limit_or_default(0, col(User.id)).where(is_user),
        _select_rate_limit_or_default(1, domain_id).where(is_user, domain_id.is_not(None)),
        select(
            literal(2, Integer).label("nth"),
            literal(PLATFORM, BIG_INTEGER).label("id"),
            _value_parameter(LimitSource.PLATFORM).label("allowed"),
            _frame_parameter(LimitSource.PLATFORM).label("per"),
        ),
    ]
    limits = union_all(*parts).subquery("bounds")
    return select(limits).where(limits.c.allowed > 0)


def _select_rate_limit_or_default(position: int, owner_id: Any) -> Select[*tuple[Any, ...]]:
    """Select the limit of the user or the domain, or the default."""
    source = SOURCES[position]
    is_owner = col(RateLimit.id) == owner_id
    return (
        select(
            literal(position, Integer).label("nth"),
            owner_id.label("id"),
            func.coalesce(col(RateLimit.messages), _value_parameter(source)).label("allowed"),
            func.coalesce(col(RateLimit.per), _frame_parameter(source), type_=FRAME_TYPE).label(
                "per"
            ),
        )
        .select_from(User)
        .join(RateLimit, is_owner, isouter=True)
    )


def _value_parameter(source: LimitSource) -> ColumnElement[int]:
    return integer_parameter(f"{source}_value")


def _frame_parameter(source: LimitSource) -> ColumnElement[Any]:
    return bindparam(f"{source}_frame", type_=FRAME_TYPE)


def _time_parameter(name: str) -> ColumnElement[datetime]:
    return bindparam(name, type_=UtcDateTime())


@prepare_cached
def _select_full_windows() -> SqlStatement:
    """Prepared select of the full windows of a user."""
    limits = _select_rate_limits_of_user().subquery("held")
    window = RateWindow
    is_running = (col(window.until) > _time_parameter("now")) & (col(window.per) == limits.c.per)
    return (
        select(limits.c.id, limits.c.allowed, limits.c.per, col(window.until).label("until"))
        .join(window, (col(window.id) == limits.c.id) & is_running)
        .where(col(window.used) >= limits.c.allowed)
    )


@prepare_cached
def _increment_windows_statement(dialect: str) -> SqlStatement:
    """Statement that counts messages in all windows of a user and returns the new counts."""
    limits = _select_rate_limits_of_user().subquery("counted")
    end_by_frame = [
        (limits.c.per == frame, _time_parameter(f"until_{frame}"))
        for frame in list(RatePeriod)[:-1]
    ]
    until = case(*end_by_frame, else_=_time_parameter(f"until_{RatePeriod.DAY}"))
    rows = (
        select(limits.c.id, limits.c.per, limits.c.allowed, integer_parameter("many"), until)
        .where(true())  # without it, SQLite parses ON CONFLICT as a join condition
        .order_by(limits.c.nth)
    )
    insertion = insert_with_conflict(dialect, RateWindow)
    insertion = insertion.from_select(["id", "per", "allowed", "used", "until"], rows)
    window, new_values = RateWindow, insertion.excluded
    is_running = (col(window.until) > _time_parameter("now")) & (col(window.per) == new_values.per)
    upsert = insertion.on_conflict_do_update(
        index_elements=["id"],
        set_={
            "used": case((is_running, col(window.used) + new_values.used), else_=new_values.used),
            "until": case((is_running, col(window.until)), else_=new_values.until),
            "per": new_values.per,
            "allowed": new_values.allowed,
        },
    )
    columns = (window.id, window.per, window.allowed, window.used, window.until)
    statement: SqlStatement = upsert.returning(*(col(column) for column in columns))
    return statement
