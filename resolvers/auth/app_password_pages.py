"""Read pages of the application passwords of users."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlmodel import col

from models.auth.application_passwords import ApplicationPassword
from models.store.columns import ColumnRow, UtcDateTime, select_columns
from models.store.keyset_pages import Page
from resolvers import pagination
from resolvers.access import is_own_prepared
from resolvers.auth.app_passwords import (
    VISIBLE_COLUMNS,
    is_not_expired_sql,
    select_visible_app_passwords,
)
from resolvers.context import Context
from resolvers.list_orders import (
    OwnerPageKey,
    list_orders,
    read_list_pages,
    read_whole_own_list,
)


class AppPasswordOrder(StrEnum):
    """The order of a list of application passwords; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(AppPasswordOrder)


@dataclass(frozen=True, slots=True)
class AppPasswordPageKey(OwnerPageKey):
    """A page of a user's application passwords that meet the conditions; None is no condition."""

    is_active: bool | None = None
    has_ttl: bool | None = None


async def load_visible_app_password_pages(
    ctx: Context, page_keys: list[AppPasswordPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the passwords of users that the viewer sees.

    Raises InvalidInput for a cursor of another order.
    """
    own_pages = await read_whole_own_list(
        ctx, ApplicationPassword, page_keys, _select_own_passwords, now=ctx.environment.now()
    )
    return own_pages or await read_list_pages(ctx, ApplicationPassword, page_keys, _select_of_page)


def _select_own_passwords(columns: Collection[str]) -> Select[*tuple[Any, ...]]:
    names = VISIBLE_COLUMNS.intersection(columns)
    return select(*select_columns(ApplicationPassword, names)).where(
        is_own_prepared(ApplicationPassword),
        is_not_expired_sql(bindparam("now", type_=UtcDateTime)),
    )


async def count_app_passwords(ctx: Context, page_keys: list[AppPasswordPageKey]) -> list[int]:
    """Count the passwords of the lists, in the order of the keys."""
    statements = [_select_of_page(ctx, key, {"id"}) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_of_page(
    ctx: Context, page_key: AppPasswordPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    """SQL: the visible passwords of the list that a page belongs to."""
    conditions = [col(ApplicationPassword.user_id) == page_key.owner_id]
    if page_key.is_active is not None:
        conditions.append(col(ApplicationPassword.active).is_(page_key.is_active))
    if page_key.has_ttl is not None:
        has_no_lifetime = col(ApplicationPassword.ttl).is_(None)
        conditions.append(~has_no_lifetime if page_key.has_ttl else has_no_lifetime)
    return select_visible_app_passwords(ctx, columns).where(*conditions)
