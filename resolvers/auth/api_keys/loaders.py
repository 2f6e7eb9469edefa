"""Read the API keys that the viewer sees."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import ColumnElement, func, or_, select, true
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from resolvers.context import Context
from resolvers.list_orders import list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class ApiKeyOrder(StrEnum):
    """The order of a list of API keys; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


LIST_ORDERS = list_orders(ApiKeyOrder)
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(ApiKey)) - {"digest"}


@dataclass(frozen=True, slots=True)
class ApiKeyConditions:
    """Conditions of a list of API keys; all must hold. The id 0 matches no key."""

    query: str | None = None  # part of the name
    user_id: int | None = None
    maker_id: int | None = None  # of keys for other users and of keys without a user


async def load_calling_key_or_none(ctx: Context) -> ColumnRow | None:
    """Load the API key of the current request; None if it has no key."""
    statement = select(*select_columns(ApiKey, VISIBLE_COLUMNS)).where(
        col(ApiKey.id) == (ctx.viewer.api_key_id or 0)
    )
    return next(iter(await ctx.read(statement)), None)


def _is_visible_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for the keys that the viewer sees: the viewer's own, or all for an ADMIN."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    is_calling_key = col(ApiKey.id) == (viewer.api_key_id or 0)
    return (
        is_calling_key | (col(ApiKey.user_id) == viewer.user_id)
        if viewer.user_id
        else is_calling_key
    )


def _visible_and_filtered_key_clauses(
    ctx: Context, conditions: ApiKeyConditions
) -> list[ColumnElement[bool]]:
    clauses = [_is_visible_sql(ctx)]
    if conditions.query:
        clauses.append(contains_text_sql(col(ApiKey.name), conditions.query))
    if conditions.user_id is not None:
        clauses.append(col(ApiKey.user_id) == conditions.user_id)
    if conditions.maker_id is not None:
        made_by, creator_id = col(ApiKey.made_by), col(ApiKey.creator_id)
        clauses.append(or_(made_by == conditions.maker_id, creator_id == conditions.maker_id))
    return clauses


async def load_visible_api_key_page(
    ctx: Context,
    conditions: ApiKeyConditions,
    page_request: PageRequest,
    columns: Iterable[str] = VISIBLE_COLUMNS,
    order: ApiKeyOrder = ApiKeyOrder.CREATED_AT_DESC,
) -> Page[ColumnRow]:
    """Load a page of the visible keys. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    column_names = VISIBLE_COLUMNS.intersection(columns) | {list_order.column, "id"}
    statement = select(*select_columns(ApiKey, column_names)).where(
        *_visible_and_filtered_key_clauses(ctx, conditions)
    )
    return await read_ordered_page(ctx, statement, ApiKey, page_request, list_order)


async def count_visible_api_keys(ctx: Context, conditions: ApiKeyConditions) -> int:
    """Count the visible keys that meet the conditions."""
    statement = select(func.count(col(ApiKey.id)).label("many")).where(
        *_visible_and_filtered_key_clauses(ctx, conditions)
    )
    (row,) = await ctx.read(statement)
    return int(row.many)


async def load_visible_api_keys_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load keys by id, in this order; None for a key that the viewer does not see."""
    statement = select(*select_columns(ApiKey, VISIBLE_COLUMNS)).where(_is_visible_sql(ctx))
    return await read_by_keys(ctx, statement, col(ApiKey.id), ids)
