"""Limits of users, and how much of them is used."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import UpdateBase, bindparam, case, select
from sqlmodel import col

from mail.limits.user_limits import (
    ReachedLimit,
    is_already_reported,
    journal_reached_limit,
    report_refusal_once_per_period,
    usage_level,
)
from mail.logs.message_entries import UNKNOWN_MESSAGE, LimitedMessage, ReachedLimitEntry
from models.errors import RateLimited
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow, UtcDateTime, insert_with_conflict, select_columns
from models.store.prepared_statements import PreparedStatement, integer_parameter, prepare_cached
from models.users.tables import LimitKind, LimitSource, Usage, UsageKind, UsageLevel, User
from resolvers.access import is_visible_user
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from resolvers.domains import loaders as domain_loaders
from resolvers.queue import rate_limits
from resolvers.queue.refused_messages import record_refused_message
from resolvers.users.quota.quota_allocation import effective_quota

DAY = timedelta(days=1)
_SELECT_RUNNING_USAGE = PreparedStatement(
    select(*select_columns(Usage)).where(
        col(Usage.user_id) == integer_parameter("user"),
        col(Usage.kind) == UsageKind.RECIPIENTS,
        col(Usage.until) > bindparam("now", type_=UtcDateTime),
    )
)
_SELECT_RECIPIENT_LIMIT = PreparedStatement(
    select(col(User.recipients_per_day)).where(col(User.id) == integer_parameter("user"))
)


@dataclass(frozen=True, slots=True)
class StorageUsage:
    """Storage of a user in bytes. `limit_bytes` is None if the quota is unlimited."""

    limit_bytes: int | None
    used_bytes: int
    source: LimitSource
    level: UsageLevel


@dataclass(frozen=True, slots=True)
class UsageWindow:
    """A counter in a time window, with its limit, which is None if it is unlimited."""

    limit: int | None
    source: LimitSource
    used: int = 0
    level: UsageLevel = UsageLevel.NORMAL
    resets_at: datetime | None = None  # None: no window is open


async def load_storage_usage(ctx: Context, user: ColumnRow) -> StorageUsage:
    """Return quota and storage in use, where the quota comes from, and the usage level."""
    allowed, source = await _load_quota_with_source(ctx, user)
    used = max(user.used, 0)
    level = usage_level(ctx.environment.options, used, allowed)
    return StorageUsage(allowed or None, used, source, level)


async def load_quota(ctx: Context, user: ColumnRow) -> int:
    """Return the quota in bytes: the user's own, else the domain's, else the platform's."""
    quota, _ = await _load_quota_with_source(ctx, user)
    return quota


class _QuotaWithSource(NamedTuple):
    """A quota in bytes, and where it is set."""

    quota: int
    source: LimitSource


async def _load_quota_with_source(ctx: Context, user: ColumnRow) -> _QuotaWithSource:
    """Return the quota in bytes, and whether user, domain or platform sets it."""
    if user.quota is not None:
        return _QuotaWithSource(int(user.quota), LimitSource.USER)  # the domain need not be read
    domain = (
        await ctx.load(domain_loaders.load_visible_domains_by_id, user.domain_id)
        if user.domain_id
        else None
    )
    is_set_by_domain = domain is not None and domain.default_user_quota is not None
    source = LimitSource.DOMAIN if is_set_by_domain else LimitSource.PLATFORM
    return _QuotaWithSource(effective_quota(ctx.environment, domain, None), source)


async def load_max_quota_within_domain(ctx: Context, user: ColumnRow) -> int | None:
    """Return the highest quota that this user can be given within the domain; None for no limit."""
    domain = (
        await ctx.load(domain_loaders.load_visible_domains_by_id, user.domain_id)
        if user.domain_id
        else None
    )
    if domain is None:
        return None
    limits = [domain.max_user_quota] if domain.max_user_quota else []
    if domain.quota:
        current_quota = await load_quota(ctx, user)
        limits.append(max(0, domain.quota - domain.quota_allocated + current_quota))
    return min(limits, default=None)


async def load_open_usages(
    ctx: Context, keys: list[tuple[int, UsageKind]]
) -> list[ColumnRow | None]:
    """Load the open counters by (user id, kind), in this order; None if no window is open."""
    is_visible = select(col(User.id)).where(
        col(User.id) == col(Usage.user_id), is_visible_user(ctx)
    )
    statement = select(*select_columns(Usage)).where(
        col(Usage.user_id).in_({user_id for user_id, _ in keys}),
        is_visible.exists(),
        col(Usage.until) > ctx.environment.now(),
    )
    rows = {(row.user_id, row.kind): row for row in await ctx.read(statement)}
    return [rows.get(key) for key in keys]


async def load_recipient_usage(ctx: Context, user: ColumnRow) -> UsageWindow:
    """Load the count of addresses written to, in 24 hours from the first."""
    row = await ctx.load(load_open_usages, (user.id, UsageKind.RECIPIENTS))
    used, until = (row.used, row.until) if row else (0, None)
    return _usage_window(
        ctx.environment,
        user.recipients_per_day,
        ctx.environment.options.limits_recipients_per_day,
        (used, until),
    )


async def load_forward_usage(ctx: Context, user: ColumnRow) -> UsageWindow:
    """Load the count of messages forwarded to targets, in 24 hours from the first."""
    row = await ctx.load(load_open_usages, (user.id, UsageKind.FORWARDS))
    used, until = (row.used, row.until) if row else (0, None)
    return _usage_window(
        ctx.environment,
        user.forwards_per_day,
        ctx.environment.options.limits_forwards_per_day,
        (used, until),
    )


def received_usage(environment: Environment, user: ColumnRow) -> UsageWindow:
    """Return the count of received messages, in an hour from the first."""
    used_and_end = (user.received, user.received_until)
    return _usage_window(
        environment,
        user.received_per_hour,
        environment.options.limits_received_per_hour,
        used_and_end,
    )


def forward_usage_of_address(environment: Environment, address: ColumnRow) -> UsageWindow:
    """Return the count of messages that an address has forwarded, in 24 hours from the first."""
    used_and_end = (address.forwarded, address.forwarded_until)
    return _usage_window(
        environment,
        address.forwards_per_day,
        environment.options.limits_forwards_per_day,
        used_and_end,
    )


def _usage_window(
    environment: Environment,
    own_limit: int | None,
    default_limit: int,
    used_and_end: tuple[int, Any],
) -> UsageWindow:
    """Return a counter with its own limit, or else the default of the platform."""
    source = LimitSource.PLATFORM if own_limit is None else LimitSource.USER
    limit = default_limit if own_limit is None else own_limit
    now, (used, until) = environment.now(), used_and_end
    if until is None or until <= now:
        return UsageWindow(limit or None, source)
    level = usage_level(environment.options, used, limit)
    return UsageWindow(limit or None, source, used, level, until)


async def require_below_sending_limits(
    ctx: Context, user: ColumnRow, message: LimitedMessage = UNKNOWN_MESSAGE
) -> None:
    """Raise RateLimited if the user has reached a limit of sending.

    Call it before a message is built. `message` has the facts that are known then, for the log.
    """
    await rate_limits.require_below_sending_rates(ctx, user.id, message)
    if not (limit := _recipient_limit(ctx.environment, user.recipients_per_day)):
        return
    parameters: dict[str, Any] = {"user": user.id, "now": ctx.environment.now()}
    row = next(iter(await ctx.read_prepared(_SELECT_RUNNING_USAGE, **parameters)), None)
    if row and row.used >= limit:
        raise _log_refusal_and_build_rate_limited(
            ctx, RecipientLimitExceeded(limit, row, row.used), message
        )


@prepare_cached
def _add_usage_sql(dialect: str) -> UpdateBase:
    """SQL: add to `used` in the window that is open at `now`, or open a new one."""
    insert = insert_with_conflict(dialect, Usage)
    is_open = col(Usage.until) > bindparam("now", type_=UtcDateTime)
    changed = {
        "used": case((is_open, Usage.used + insert.excluded.used), else_=insert.excluded.used),
        "until": case((is_open, col(Usage.until)), else_=insert.excluded.until),
    }
    upsert = insert.on_conflict_do_update(index_elements=["user_id", "kind"], set_=changed)
    return upsert.returning(*select_columns(Usage))


class RecipientLimitExceeded(RateLimited):
    """More recipients than the limit allows."""

    def __init__(self, limit: int, row: ColumnRow, used_before: int) -> None:
        super().__init__("", retry_after=DAY)
        self.limit, self.row, self.used_before = limit, row, used_before


@contextmanager
def convert_and_log_exceeded_limits(ctx: Context, message: LimitedMessage) -> Generator[None]:
    """Convert exceeded limits of a transaction to RateLimited, and log the refused message.

    A transaction can run in a thread, so it raises errors without a context.
    """
    try:
        yield
    except rate_limits.SendingRateExceeded as over:
        raise rate_limits.log_refusal_and_build_rate_limited_error(ctx, over, message) from None
    except RecipientLimitExceeded as over:
        raise _log_refusal_and_build_rate_limited(ctx, over, message) from None


def count_against_recipient_limit(
    transaction: DatabaseTransaction, user_id: int, count: int
) -> None:
    """Count recipients in the transaction that queues them.

    Raises RecipientLimitExceeded beyond the limit, which `convert_and_log_exceeded_limits`
    converts. A user who just reaches the limit gets a message.
    """
    now = transaction.environment.now()
    parameters = {
        "user_id": user_id,
        "kind": UsageKind.RECIPIENTS,
        "used": count,
        "until": now + DAY,
    }
    (row,) = transaction.fetch_rows(
        _add_usage_sql(transaction.connection.dialect.name),
        **parameters,
        notified_until=None,
        now=now,
    )
    limit_rows = transaction.fetch_rows(_SELECT_RECIPIENT_LIMIT, user=user_id)
    limit = _recipient_limit(
        transaction.environment, limit_rows[0].recipients_per_day if limit_rows else None
    )
    if limit and row.used > limit:
        raise RecipientLimitExceeded(limit, row, row.used - count)
    if limit and row.used == limit:
        journal_reached_limit(
            transaction, user_id, ReachedLimit(LimitKind.RECIPIENTS, row.used, limit, row.until)
        )


def _recipient_limit(environment: Environment, own_limit: int | None) -> int:
    return environment.options.limits_recipients_per_day if own_limit is None else own_limit


def _log_refusal_and_build_rate_limited(
    ctx: Context, exceeded: RecipientLimitExceeded, message: LimitedMessage
) -> RateLimited:
    """Return the error; the user gets a message about the first one of a window."""
    limit, row, used_before = exceeded.limit, exceeded.row, exceeded.used_before
    now = ctx.environment.now()
    entry = ReachedLimitEntry(row.user_id, LimitKind.RECIPIENTS, limit, row.until, message=message)
    record_refused_message(ctx, entry)
    if not (ctx.is_dry_run or is_already_reported(ctx.environment, row.notified_until)):
        reached = ReachedLimit(LimitKind.RECIPIENTS, used_before, limit, row.until, is_refusal=True)
        # in the background: the error rolls the open transaction back
        cache_of_database(ctx.environment.database).write_in_background(
            report_refusal_once_per_period(ctx.environment, row.user_id, reached)
        )
    left_count = max(limit - used_before, 0)
    text = f"At most {limit} recipients in 24 hours are allowed. {left_count} are left."
    return RateLimited(text, retry_after=row.until - now)
