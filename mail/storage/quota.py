"""Quota of a user: take it for new messages, or refuse them."""

from collections.abc import Mapping
from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import bindparam, case, func, or_, select, update
from sqlmodel import col

from mail.limits import user_limits
from mail.limits.user_limits import STORAGE_QUOTA
from models.errors import NotFound, OverQuota, RequestError
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, UtcDateTime
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
)
from models.users.tables import User


class InsertKind(StrEnum):
    """The way a message comes to a user, which decides the limits it counts against."""

    ADDED_BY_USER = "PUT_IN"  # by the user: the quota
    RECEIVED = "RECEIVED"  # from outside: the quota, and the messages of an hour
    FETCHED = (
        "FETCHED"  # by a connector, as new mail: counted as RECEIVED, but never refused for it
    )
    RECEIVED_COPY = "AGAIN"  # a copy in another mailbox: the quota
    RELEASED = "RELEASED"  # from quarantine: its hour was counted before
    GENERATED = "GENERATED"  # by this server, such as a DSN: the quota
    QUOTA_NOTICE = "NOTICE"  # a notice about the quota: never refused, and causes no other notice


# All but the messages that clients, imports and scripts of the user store.
RECEIVED_KINDS = frozenset(InsertKind) - {InsertKind.ADDED_BY_USER}
HOURLY_COUNTED_KINDS = frozenset({InsertKind.RECEIVED, InsertKind.FETCHED})
HOUR = timedelta(hours=1)  # for the limit of received messages
_IS_HOUR_RUNNING = col(User.received_until) > bindparam("now", type_=UtcDateTime)
_ADD_TO_QUOTA = (
    update(User)
    .where(col(User.id) == integer_parameter("user"), col(User.deleted_at).is_(None))
    .values(
        used=User.used + integer_parameter("bytes"),
        message_count=User.message_count + integer_parameter("many"),
    )
    .returning(col(User.used), STORAGE_QUOTA.label("allowed"))
)
_ADD_WITHIN_QUOTA = _ADD_TO_QUOTA.where(
    (STORAGE_QUOTA == 0) | (col(User.used) + integer_parameter("bytes") <= STORAGE_QUOTA)
)
ADD_TO_RECEIVED: dict[
    str, Any
] = {  # adds `many` messages; `until` is the end of an hour that begins now
    "received": case(
        (_IS_HOUR_RUNNING, User.received + integer_parameter("many")),
        else_=integer_parameter("many"),
    ),
    "received_until": case(
        (_IS_HOUR_RUNNING, col(User.received_until)), else_=bindparam("until", type_=UtcDateTime)
    ),
}
_RECEIVED_LIMIT = func.coalesce(col(User.received_per_hour), integer_parameter("hourly"))
# The UPDATE that counts also checks, so that concurrent deliveries can't pass the limit together.
IS_BELOW_RECEIVED_LIMIT = or_(
    _RECEIVED_LIMIT == 0,
    col(User.received_until).is_(None),
    ~_IS_HOUR_RUNNING,
    col(User.received) < _RECEIVED_LIMIT,
)
RECEIVED_COLUMNS = col(User.received), col(User.received_per_hour), col(User.received_until)
# The same statement counts received messages: a separate row would need another statement.
_ADD_RECEIVED = _ADD_WITHIN_QUOTA.values(**ADD_TO_RECEIVED).returning(*RECEIVED_COLUMNS)
_ADD_BY_KIND = {
    InsertKind.ADDED_BY_USER: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.RECEIVED: PreparedStatement(_ADD_RECEIVED.where(IS_BELOW_RECEIVED_LIMIT)),
    InsertKind.FETCHED: PreparedStatement(_ADD_RECEIVED),
    InsertKind.RECEIVED_COPY: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.RELEASED: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.GENERATED: PreparedStatement(_ADD_WITHIN_QUOTA),
    InsertKind.QUOTA_NOTICE: PreparedStatement(_ADD_TO_QUOTA),
}
_SELECT_QUOTAS = select(col(User.id), col(User.used), STORAGE_QUOTA.label("allowed")).where(
    col(User.id).in_(bindparam("users", expanding=True)), col(User.deleted_at).is_(None)
)
SELECT_QUOTA = select(col(User.used), STORAGE_QUOTA.label("allowed")).where(
    col(User.id) == bindparam("user"), col(User.deleted_at).is_(None)
)


def take_quota_and_count_received(
    transaction: DatabaseTransaction,
    user_id: int,
    byte_count: int,
    *,
    message_count: int = 1,
    kind: InsertKind = InsertKind.ADDED_BY_USER,
) -> ColumnRow:
    """Count the bytes of messages as used; return the new `used`, and `allowed`.

    Raises OverQuota, RateLimited if the user has received the limit of the hour, and NotFound.
    """
    platform = transaction.environment.options.users_default_quota
    parameters: dict[str, Any] = {
        "user": user_id,
        "platform": platform,
        "bytes": byte_count,
        "many": message_count,
    }
    if kind in HOURLY_COUNTED_KINDS:
        now = transaction.environment.now()
        parameters |= {"now": now, "until": now + HOUR}
    if kind is InsertKind.RECEIVED:
        parameters["hourly"] = transaction.environment.options.limits_received_per_hour
    quota_rows = transaction.fetch_rows(_ADD_BY_KIND[kind], **parameters)
    if not quota_rows:
        counted = kind is InsertKind.RECEIVED and user_limits.received_limit_error(
            transaction, user_id
        )
        raise counted or error_of_refused_quota(transaction, user_id)
    row: ColumnRow = quota_rows[0]
    return row


def require_quota_for_growth(
    transaction: DatabaseTransaction, user_id: int, byte_count: int
) -> None:
    """Raise OverQuota if the storage of a user would grow beyond the quota.

    For custom data, which triggers count when it is stored.
    """
    if byte_count <= 0:
        return
    parameters = {"user": user_id, "platform": transaction.environment.options.users_default_quota}
    row = transaction.connection.execute(SELECT_QUOTA, parameters).first()
    if row is not None and row.allowed and row.used + byte_count > row.allowed:
        raise OverQuota(used=row.used, limit=row.allowed)


def require_quota_for_growth_of_users(
    transaction: DatabaseTransaction, growth_by_user: Mapping[int, int]
) -> None:
    """Raise OverQuota if the storage of one of these users would grow beyond its quota.

    As `require_quota_for_growth`, with one statement for all users.
    """
    growing = {user_id: growth for user_id, growth in growth_by_user.items() if growth > 0}
    if not growing:
        return
    platform = transaction.environment.options.users_default_quota
    parameters = {"users": sorted(growing), "platform": platform}
    for row in transaction.connection.execute(_SELECT_QUOTAS, parameters):
        if row.allowed and row.used + growing[row.id] > row.allowed:
            raise OverQuota(used=row.used, limit=row.allowed)


def error_of_refused_quota(transaction: DatabaseTransaction, user_id: int) -> RequestError:
    """The reason why the quota was not taken: OverQuota, or NotFound if the user is gone."""
    parameters = {"user": user_id, "platform": transaction.environment.options.users_default_quota}
    row = transaction.connection.execute(SELECT_QUOTA, parameters).first()
    if row is None:
        return NotFound(str(user_id), path=["user"])
    return OverQuota(used=row.used, limit=row.allowed)
