"""SQL conditions of user lists by quota, last sign-in and second factor."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import (
    ColumnElement,
    CompoundSelect,
    Select,
    false,
    literal_column,
    select,
    text,
    true,
    union_all,
)
from sqlmodel import col

from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.store.keyset_pages import EPOCH
from models.users.search_index import last_login_column, unindexed_last_login_column
from models.users.tables import User
from resolvers.context import Context

# Up to this number of users without a later sign-in are looked up by their index and sorted. More
# users are found soon in any order.
MAX_SORTED_USERS = 1000


def is_quota_full_sql(environment: Environment) -> ColumnElement[bool]:
    """SQL: users that store at least as many bytes as their quota, which is not unlimited."""
    return col(User.id).in_(_full_user_ids(environment))


def _full_user_ids(environment: Environment) -> CompoundSelect[Any]:
    """Select the IDs of these users. Each part of the statement reads an index."""
    has_domain_quota = (
        select(col(Domain.id))
        .where(col(Domain.id) == col(User.domain_id), col(Domain.default_user_quota).is_not(None))
        .exists()
    )
    platform_quota = environment.options.users_default_quota
    user_ids = select(col(User.id))
    # as in the partial index
    own_quota = user_ids.where(text("users.quota > 0 AND users.used >= users.quota"))
    quota_of_platform = user_ids.where(
        col(User.quota).is_(None),
        ~has_domain_quota,
        col(User.used) >= platform_quota if platform_quota else false(),
    )
    parts = [own_quota.correlate(None), quota_of_platform.correlate(None)]
    return union_all(*parts, _ids_by_quota_of_domain(environment.database.dialect))


def _ids_by_quota_of_domain(dialect: str) -> Select[Any]:
    """Select the IDs of users that reach the default quota of their domain."""
    quota = col(Domain.default_user_quota)
    # the sign keeps SQLite from reading all users and looking up the domain of each
    domain_id: Any = literal_column("+domains.id") if dialect == "sqlite" else col(Domain.id)
    user_ids = select(col(User.id)).where(
        col(User.domain_id) == domain_id, col(User.quota).is_(None), col(User.used) >= quota
    )
    if dialect == "sqlite":
        return user_ids.where(quota > 0).correlate(None)
    # OFFSET 0 keeps PostgreSQL from reading all users at once: it can't estimate the comparison
    of_domain = user_ids.correlate(Domain).offset(0).lateral()
    return select(of_domain.c.id).select_from(Domain).join(of_domain, true()).where(quota > 0)


def has_second_factor_sql(*, is_wanted: bool) -> ColumnElement[bool]:
    """SQL: users with a second factor or, if not `is_wanted`, without one."""
    # as in the partial indexes
    condition: Any = text(f"users.second_factors {'<>' if is_wanted else '='} '[]'")
    return condition  # type: ignore[no-any-return]


def has_not_signed_in_since_sql(dialect: str, time: datetime) -> ColumnElement[bool]:
    """SQL: users whose last sign-in is before this time, and users who never signed in."""
    condition: ColumnElement[bool] = last_login_column(dialect).element < _after_epoch(time)
    return condition


def _after_epoch(time: datetime) -> datetime:
    """Return the time, or the first one after EPOCH, the value of users who never signed in."""
    return max(time, EPOCH + timedelta(microseconds=1))


async def not_signed_in_condition_of_page(ctx: Context, time: datetime) -> ColumnElement[bool]:
    """Return `has_not_signed_in_since_sql` for a page in another order than that of sign-ins.

    If few users match, the index of sign-ins returns them, else the index of the order is read.
    """
    dialect = ctx.environment.database.dialect
    matching_ids = select(col(User.id)).where(has_not_signed_in_since_sql(dialect, time))
    if await ctx.read(matching_ids.offset(MAX_SORTED_USERS).limit(1)):
        condition: ColumnElement[bool] = unindexed_last_login_column(dialect) < _after_epoch(time)
        return condition
    return col(User.id).in_(matching_ids.correlate(None))
