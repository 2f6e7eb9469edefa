"""Check, count and list sending rates, and the users that are rate limited now."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, case, func, or_, select
from sqlmodel import col

from mail.limits import sending_rates
from mail.limits.sending_rates import FullRateWindow, record_and_report_refusal_once
from mail.logs.message_entries import UNKNOWN_MESSAGE, LimitedMessage, ReachedLimitEntry
from models.domains.tables import Domain
from models.errors import RateLimited
from models.queue.rate_limits import RateLimit, RateLimitHold, RateWindow
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.tables import LimitSource, User
from resolvers.access import is_visible_user
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from resolvers.domains.loaders import is_administered_domain
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.queue.refused_messages import record_refused_message

WINDOW_COLUMNS = frozenset({"used", "until"})  # columns of the current window
LIMIT_COLUMNS = WINDOW_COLUMNS | {column.name for column in select_columns(RateLimit)}
DOMAIN_COLUMN = "domain_id"  # of a hold whose limit is that of a domain


class RateLimitOrder(StrEnum):
    """The order of a list of rate limits; ties by id."""

    CREATED_ASC = "CREATED_ASC"  # by the creation of the user or domain
    CREATED_DESC = "CREATED_DESC"


class RateLimitHoldOrder(StrEnum):
    """The order of a list of rate limited users; ties by id."""

    HELD_AT_ASC = "HELD_AT_ASC"
    HELD_AT_DESC = "HELD_AT_DESC"


LIMIT_ORDERS = list_orders(RateLimitOrder, {"CREATED": SortColumn("created_at", datetime)})
HOLD_ORDERS = list_orders(RateLimitHoldOrder, {"HELD_AT": SortColumn("since", datetime)})


@dataclass(frozen=True, slots=True)
class RateLimitConditions:
    """Conditions of a list of rate limits: of these users or domains, or all."""

    user_ids: Collection[int] | None = None
    domain_ids: Collection[int] | None = None
    is_exhausted: bool | None = None


class SendingRateExceeded(RateLimited):
    """The message would exceed the rate of the user, the domain or the platform."""

    def __init__(self, user_id: int, full_window: FullRateWindow) -> None:
        super().__init__("", retry_after=timedelta())
        self.user_id, self.full_window = user_id, full_window


async def require_below_sending_rates(
    ctx: Context, user_id: int, message: LimitedMessage = UNKNOWN_MESSAGE
) -> None:
    """Raise RateLimited if the user, the domain or the platform has used up its rate."""
    statement, parameters = sending_rates.full_windows_query_and_values(ctx.environment, user_id)
    rows = await ctx.read_prepared(statement, **parameters)
    if rows:
        window = sending_rates.last_ending_full_window(rows, user_id)
        exceeded = SendingRateExceeded(user_id, window)
        raise log_refusal_and_build_rate_limited_error(ctx, exceeded, message)


def count_against_sending_rates(
    transaction: DatabaseTransaction, user_id: int, message_count: int = 1
) -> None:
    """Count messages of a user, last in the transaction that queues them.

    Raises SendingRateExceeded if they exceed a rate.
    """
    if full_window := sending_rates.increment_and_find_exceeded_window(
        transaction, user_id, message_count
    ):
        raise SendingRateExceeded(user_id, full_window)


def log_refusal_and_build_rate_limited_error(
    ctx: Context, exceeded: SendingRateExceeded, message: LimitedMessage
) -> RateLimited:
    """Return the RateLimited error. The first one of a window is also recorded for the user."""
    window: FullRateWindow = exceeded.full_window
    entry = ReachedLimitEntry(
        exceeded.user_id,
        f"RATE_{window.source}",
        window.allowed,
        window.ends_at,
        message=message,
    )
    record_refused_message(ctx, entry)
    if not ctx.is_dry_run:
        # in the background, since the current transaction is rolled back
        recording = record_and_report_refusal_once(ctx.environment, exceeded.user_id, window)
        cache_of_database(ctx.environment.database).write_in_background(recording)
    return window.rate_limited_error(ctx.environment.now())


def _is_visible_limit(ctx: Context) -> ColumnElement[bool]:
    """Return the WHERE clause for limits of visible users and domains."""
    user_ids = select(col(User.id)).where(is_visible_user(ctx))
    domain_ids = select(col(Domain.id)).where(is_administered_domain(ctx))
    return col(RateLimit.user_id).in_(user_ids) | col(RateLimit.domain_id).in_(domain_ids)


def _select_visible_rate_limits_and_windows(
    ctx: Context, *columns: Any
) -> Select[*tuple[Any, ...]]:
    """Select visible limits with their current window."""
    window = RateWindow
    is_current_window = (
        (col(window.id) == col(RateLimit.id))
        & (col(window.until) > ctx.environment.now())
        & (col(window.per) == col(RateLimit.per))
    )
    return (
        select(*columns)
        .select_from(RateLimit)
        .join(window, is_current_window, isouter=True)
        .where(_is_visible_limit(ctx))
    )


def _select_limit_columns(
    ctx: Context, column_names: Collection[str] = LIMIT_COLUMNS
) -> Select[*tuple[Any, ...]]:
    """Select columns of visible limits. WINDOW_COLUMNS are those of the current window."""
    window_columns = select_columns(RateWindow, WINDOW_COLUMNS.intersection(column_names))
    return _select_visible_rate_limits_and_windows(
        ctx, *select_columns(RateLimit, set(column_names) - WINDOW_COLUMNS), *window_columns
    )


async def load_limits_by_owner(ctx: Context, owner_ids: list[int]) -> list[ColumnRow | None]:
    """Load the limits of users and domains, in the given order.

    None for one without own limit or that the viewer can't see.
    """
    return await read_by_keys(ctx, _select_limit_columns(ctx), col(RateLimit.id), owner_ids)


async def load_inheritance_by_domain(ctx: Context, domain_ids: list[int]) -> list[bool | None]:
    """Load whether domains have no limit of their own, in the given order.

    None for a domain that the viewer does not administer.
    """
    statement = (
        select(col(Domain.id), col(RateLimit.id).is_(None).label("inherits_limit"))
        .join(RateLimit, col(RateLimit.domain_id) == col(Domain.id), isouter=True)
        .where(is_administered_domain(ctx))
    )
    rows = await read_by_keys(ctx, statement, col(Domain.id), domain_ids)
    return [None if row is None else bool(row.inherits_limit) for row in rows]


async def read_limit_page(
    ctx: Context,
    conditions: RateLimitConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: RateLimitOrder = RateLimitOrder.CREATED_ASC,
) -> Page[ColumnRow]:
    """Read a page of the limits that are set. Raises InvalidInput for a cursor of another order."""
    list_order = LIMIT_ORDERS[order]
    statement = _select_limit_columns(ctx, {"id", list_order.column, *columns}).where(
        *_where_clauses(conditions)
    )
    return await read_ordered_page(ctx, statement, RateLimit, page_request, list_order)


async def count_visible_limits(ctx: Context, conditions: RateLimitConditions) -> int:
    """Count the limits that meet the conditions."""
    (row,) = await ctx.read(
        _select_visible_rate_limits_and_windows(ctx, func.count()).where(
            *_where_clauses(conditions)
        )
    )
    return int(row[0])


def _where_clauses(conditions: RateLimitConditions) -> list[ColumnElement[bool]]:
    owner_clauses = []
    if conditions.user_ids is not None:
        owner_clauses.append(col(RateLimit.user_id).in_(conditions.user_ids))
    if conditions.domain_ids is not None:
        owner_clauses.append(col(RateLimit.domain_id).in_(conditions.domain_ids))
    clauses = [or_(*owner_clauses)] if owner_clauses else []
    if conditions.is_exhausted is not None:
        used = func.coalesce(col(RateWindow.used), 0)
        is_full = (col(RateLimit.messages) > 0) & (used >= col(RateLimit.messages))
        clauses.append(is_full if conditions.is_exhausted else ~is_full)
    return clauses


def _select_visible_rate_limited_users(
    ctx: Context, user_ids: Collection[int] | None, *columns: Any
) -> Select[*tuple[Any, ...]]:
    """Select the visible users that are rate limited now, all or these."""
    is_visible = col(RateLimitHold.id).in_(select(col(User.id)).where(is_visible_user(ctx)))
    user_clauses = [] if user_ids is None else [col(RateLimitHold.id).in_(user_ids)]
    return (
        select(*columns)
        .select_from(RateLimitHold)
        .where(col(RateLimitHold.until) > ctx.environment.now(), is_visible, *user_clauses)
    )


def _select_columns_of_rate_limit_holds(
    ctx: Context, user_ids: Collection[int] | None, column_names: Collection[str] | None
) -> Select[*tuple[Any, ...]]:
    is_domain_limit = col(RateLimitHold.source) == LimitSource.DOMAIN
    domain = case((is_domain_limit, col(RateLimitHold.window_id))).label(DOMAIN_COLUMN)
    stored_names = None if column_names is None else {"id", *column_names} - {DOMAIN_COLUMN}
    extra_columns = [domain] if column_names is None or DOMAIN_COLUMN in column_names else []
    return _select_visible_rate_limited_users(
        ctx, user_ids, *select_columns(RateLimitHold, stored_names), *extra_columns
    )


async def load_holds_by_user(ctx: Context, user_ids: list[int]) -> list[ColumnRow | None]:
    """Load the holds of rate limited users, in the given order.

    None for a user without hold or that the viewer can't see.
    """
    return await read_by_keys(
        ctx, _select_columns_of_rate_limit_holds(ctx, None, None), col(RateLimitHold.id), user_ids
    )


async def read_rate_limit_hold_page(
    ctx: Context,
    user_ids: Collection[int] | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: RateLimitHoldOrder = RateLimitHoldOrder.HELD_AT_DESC,
) -> Page[ColumnRow]:
    """Read a page of the users that are rate limited now.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = HOLD_ORDERS[order]
    statement = _select_columns_of_rate_limit_holds(ctx, user_ids, {list_order.column, *columns})
    return await read_ordered_page(ctx, statement, RateLimitHold, page_request, list_order)


async def count_rate_limited_users(ctx: Context, user_ids: Collection[int] | None) -> int:
    """Count the users that are rate limited now."""
    (row,) = await ctx.read(_select_visible_rate_limited_users(ctx, user_ids, func.count()))
    return int(row[0])
