"""The limits of users: usage levels, and reports to the journal and by message."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Column, ColumnElement, bindparam, func, insert, null, select, update
from sqlmodel import col

from mail.logs.message_entries import ReachedLimitEntry, record_limited_message
from models.admin.tasks import Task, TaskKind
from models.domains.tables import Domain
from models.errors import NotFound, RateLimited
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.events.wakeups import TASKS
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.options import Options
from models.store.columns import BIG_INTEGER, ColumnRow, core_table, insert_with_conflict
from models.users.tables import LimitKind, Usage, UsageKind, UsageLevel, User

DAY = timedelta(days=1)  # also the interval between two reports of a full mailbox

STORAGE_QUOTA = func.coalesce(  # bytes; 0: no limit
    col(User.quota),
    select(col(Domain.default_user_quota))
    .where(col(Domain.id) == col(User.domain_id))
    .scalar_subquery(),
    bindparam("platform", type_=BIG_INTEGER),
)
TOO_MUCH_MAIL = "The account receives mail too quickly."
SELECT_RECEIVED = select(
    col(User.received), col(User.received_per_hour), col(User.received_until)
).where(col(User.id) == bindparam("user"), col(User.deleted_at).is_(None))


@dataclass(frozen=True, slots=True)
class ReachedLimit:
    """A limit of a user with its current usage."""

    limit_kind: LimitKind
    used_amount: int
    allowed_amount: int
    resets_at: datetime | None = None  # None: the limit has no period
    is_refusal: bool = False  # a message or recipient was refused


class UserLimitExceeded(RateLimited):
    """An operation was refused because a limit of the user is used up."""

    def __init__(self, message: str, limit: ReachedLimit, now: datetime) -> None:
        retry_after = limit.resets_at - now if limit.resets_at else DAY
        super().__init__(message, retry_after=retry_after)
        self.limit = limit


def usage_level(options: Options, used_amount: int, allowed_amount: int) -> UsageLevel:
    """The usage level of a limit. NORMAL if there is no limit (0)."""
    if not allowed_amount:
        return UsageLevel.NORMAL
    if used_amount >= allowed_amount:
        return UsageLevel.FULL
    share = used_amount * 100
    if (
        options.limits_critical_percent
        and share >= options.limits_critical_percent * allowed_amount
    ):
        return UsageLevel.CRITICAL
    if options.limits_warning_percent and share >= options.limits_warning_percent * allowed_amount:
        return UsageLevel.WARNING
    return UsageLevel.NORMAL


def journal_reached_limit(
    transaction: DatabaseTransaction, user_id: int, limit: ReachedLimit
) -> None:
    """Write LIMIT_REACHED to the user's journal stream."""
    resets_at = limit.resets_at
    data = {
        "limitKind": limit.limit_kind.value,
        "level": usage_level(
            transaction.environment.options, limit.used_amount, limit.allowed_amount
        ).value,
        "used": limit.used_amount,
        "limit": limit.allowed_amount,
        "refused": limit.is_refusal,
        "resetsAt": resets_at and resets_at.isoformat(),
    }
    entry = JournalEntry(EventType.LIMIT_REACHED, [user_id], data)
    transaction.record_entry(user_id, entry, at=transaction.environment.now())


def report_storage_level_if_raised(
    transaction: DatabaseTransaction,
    user_id: int,
    usage: ColumnRow,
    added_bytes: int,
    *,
    send_message: bool = True,
) -> None:
    """Report if `added_bytes` raised the storage usage to a higher level.

    `usage` has `used`, which includes `added_bytes`, and `allowed`. With `send_message`, the user
    also gets a message in INBOX.
    """
    options = transaction.environment.options
    level_now = usage_level(options, usage.used, usage.allowed)
    if level_now is UsageLevel.NORMAL or level_now is usage_level(
        options, usage.used - added_bytes, usage.allowed
    ):
        return
    journal_reached_limit(
        transaction, user_id, ReachedLimit(LimitKind.STORAGE, usage.used, usage.allowed)
    )
    if send_message:
        # the message about a full mailbox also covers later refusals
        notified_until = transaction.environment.now() if level_now is UsageLevel.FULL else None
        statement = update(User).where(col(User.id) == user_id)
        transaction.connection.execute(statement.values(storage_notified_until=notified_until))
        _create_limit_warning_task_if_enabled(transaction, user_id, level_now)


def report_received_limit_if_reached(
    transaction: DatabaseTransaction, user_id: int, usage: ColumnRow, message_count: int = 1
) -> None:
    """Report if these messages reached the hourly limit of received messages."""
    own_limit, options = usage.received_per_hour, transaction.environment.options
    limit = options.limits_received_per_hour if own_limit is None else own_limit
    if limit and usage.received - message_count < limit <= usage.received:
        reached = ReachedLimit(LimitKind.RECEIVED, usage.received, limit, usage.received_until)
        journal_reached_limit(transaction, user_id, reached)


def received_limit_error(
    transaction: DatabaseTransaction, user_id: int
) -> UserLimitExceeded | None:
    """The error if the user has reached the hourly limit of received messages, else None."""
    options, now = transaction.environment.options, transaction.environment.now()
    row = transaction.connection.execute(SELECT_RECEIVED, {"user": user_id}).first()
    if row is None or row.received_until is None or row.received_until <= now:
        return None
    limit = (
        options.limits_received_per_hour if row.received_per_hour is None else row.received_per_hour
    )
    if not limit or row.received < limit:
        return None
    limit_status = ReachedLimit(
        LimitKind.RECEIVED, row.received, limit, row.received_until, is_refusal=True
    )
    return UserLimitExceeded(TOO_MUCH_MAIL, limit_status, now)


def _create_limit_warning_task_if_enabled(
    transaction: DatabaseTransaction, user_id: int, level_: UsageLevel, *, is_refusal: bool = False
) -> None:
    """Create the task that writes a message about the limit to the user."""
    if not transaction.environment.options.quota_warning_emails:
        return
    now = transaction.environment.now()
    arguments = {"level": level_.value, "refused": is_refusal}
    task = Task(
        id=transaction.environment.new_id(),
        kind=TaskKind.LIMIT_WARNING,
        user_id=user_id,
        order=arguments,
        created_at=now,
    )
    transaction.connection.execute(insert(Task).values(task.model_dump()))
    transaction.record_entry(user_id, JournalEntry(EventType.TASK_CREATED, [task.id]), at=now)
    transaction.workers_to_wake.add(TASKS)


def count_forwards_within_daily_limit(
    transaction: DatabaseTransaction, user_id: int, target_count: int
) -> None:
    """Count forwards of a user against the daily limit.

    One message may exceed the limit; the next is refused. Reports when the limit is reached. Raises
    RateLimited if it was reached before, and NotFound if the user does not exist.
    """
    now, connection = transaction.environment.now(), transaction.connection
    own_limit = connection.execute(
        select(col(User.forwards_per_day)).where(col(User.id) == user_id)
    ).first()
    if own_limit is None:
        raise NotFound(str(user_id), path=["user"])
    limit = (
        transaction.environment.options.limits_forwards_per_day
        if own_limit.forwards_per_day is None
        else own_limit.forwards_per_day
    )
    is_counter = (col(Usage.user_id) == user_id) & (col(Usage.kind) == UsageKind.FORWARDS)
    statement = select(col(Usage.used), col(Usage.until)).where(is_counter, col(Usage.until) > now)
    row = connection.execute(statement).first()
    used, until = (row.used, row.until) if row else (0, now + DAY)
    if limit and used >= limit:
        limit_status = ReachedLimit(LimitKind.FORWARDS, used, limit, until, is_refusal=True)
        raise UserLimitExceeded(
            "The account has reached its limit of forwarded mail.", limit_status, now
        )
    insertion = insert_with_conflict(connection.dialect.name, Usage).values(
        user_id=user_id, kind=UsageKind.FORWARDS, used=used + target_count, until=until
    )
    changed_values: dict[str, Any] = {
        "used": insertion.excluded.used,
        "until": insertion.excluded.until,
    }
    if row is None:
        changed_values["notified_until"] = null()
    upsert = insertion.on_conflict_do_update(
        index_elements=["user_id", "kind"], set_=changed_values
    )
    connection.execute(upsert)
    if limit and used + target_count >= limit:
        journal_reached_limit(
            transaction,
            user_id,
            ReachedLimit(LimitKind.FORWARDS, used + target_count, limit, until),
        )


async def report_refusal_once_per_period(
    environment: Environment, user_id: int, limit: ReachedLimit
) -> None:
    """Report a refusal to the user, once per period of the limit.

    For storage the period is a day, or until the usage level changes; only the first refusal sends
    a message. Further refusals cost one select.
    """
    notified_until, is_row = _notified_until_column_and_condition(user_id, limit.limit_kind)
    statement = select(notified_until).where(is_row)

    def store_and_journal_refusal_if_new(transaction: DatabaseTransaction) -> None:
        row = transaction.connection.execute(statement).first()
        if row is None or is_already_reported(environment, row[0]):
            return
        until = limit.resets_at or environment.now() + DAY
        transaction.connection.execute(
            update(notified_until.table).where(is_row).values({notified_until: until})
        )
        journal_reached_limit(transaction, user_id, limit)
        level_ = usage_level(environment.options, limit.used_amount, limit.allowed_amount)
        is_first = limit.limit_kind is LimitKind.STORAGE and row[0] is None
        if is_first and level_ is not UsageLevel.NORMAL:
            _create_limit_warning_task_if_enabled(transaction, user_id, level_, is_refusal=True)

    if limit.limit_kind is not LimitKind.RECIPIENTS:  # those are logged when they are refused
        record_limited_message(
            environment,
            ReachedLimitEntry(user_id, limit.limit_kind, limit.allowed_amount, limit.resets_at),
        )
    rows = await environment.database.read(statement)
    if rows and not is_already_reported(environment, rows[0][0]):
        await environment.run_transaction(store_and_journal_refusal_if_new, user_id)


def is_already_reported(environment: Environment, notified_until: datetime | None) -> bool:
    """True if refusals are not reported again before `notified_until`."""
    return notified_until is not None and notified_until > environment.now()


def _notified_until_column_and_condition(
    user_id: int, limit_kind: LimitKind
) -> tuple[Column[Any], ColumnElement[bool]]:
    """The column with the end of the report interval, and the condition for its row."""
    users, usages = core_table(User).c, core_table(Usage).c
    if limit_kind in (LimitKind.RECIPIENTS, LimitKind.FORWARDS):
        is_counter = (usages.user_id == user_id) & (usages.kind == UsageKind(limit_kind.value))
        return usages.notified_until, is_counter
    is_storage = limit_kind is LimitKind.STORAGE
    column = users.storage_notified_until if is_storage else users.received_notified_until
    return column, users.id == user_id
