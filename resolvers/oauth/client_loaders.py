"""Load OAuth clients. For an ADMIN."""

from collections.abc import Collection, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, or_, select, true
from sqlmodel import col

from models.errors import require_all_found
from models.oauth.tables import OauthClient, OauthGrant
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.sql_text import contains_text_sql


class OauthClientOrder(StrEnum):
    """The order of a list of OAuth clients; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    NAME_ASC = "NAME_ASC"
    NAME_DESC = "NAME_DESC"


LIST_ORDERS = list_orders(
    OauthClientOrder,
    {"CREATED_AT": SortColumn("created_at", datetime), "NAME": SortColumn("name", str)},
)
HAS_SECRET_COLUMN = "has_secret"  # noqa: S105 - the name of a boolean column
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(OauthClient)) - {
    "secret_digest"
}


def _is_visible_client(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def _select_visible_clients(
    ctx: Context, columns: Collection[str] = VISIBLE_COLUMNS
) -> Select[*tuple[Any, ...]]:
    """Select visible clients. Instead of the secret only whether there is one."""
    names = VISIBLE_COLUMNS.intersection(columns) | {"id"}
    has_secret = col(OauthClient.secret_digest).is_not(None).label(HAS_SECRET_COLUMN)
    return select(*select_columns(OauthClient, names), has_secret).where(_is_visible_client(ctx))


async def load_visible_clients_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load clients by id, in this order; None for a client the viewer does not see."""
    return await read_by_keys(ctx, _select_visible_clients(ctx), col(OauthClient.id), ids)


async def load_visible_ids_by_client_id(ctx: Context, client_ids: Sequence[str]) -> dict[str, int]:
    """Load the row ids of visible clients by their public identifiers."""
    statement = select(col(OauthClient.id), col(OauthClient.client_id)).where(
        col(OauthClient.client_id).in_(client_ids), _is_visible_client(ctx)
    )
    return {row.client_id: int(row.id) for row in await ctx.read(statement)}


async def require_visible_clients(ctx: Context, ids: Sequence[int]) -> list[ColumnRow]:
    """Load clients in the order of the ids, each once.

    Raises NotFound if one is not visible.
    """
    rows = {row.id: row for row in await load_visible_clients_by_id(ctx, list(ids)) if row}
    require_all_found(ids, rows, path=["oauthClients"])
    return list(rows.values())


def _contains_text(text: str | None) -> ColumnElement[bool]:
    """Return the WHERE clause for clients with the text in name or identifier; all without."""
    if not text:
        return true()
    columns = col(OauthClient.name), col(OauthClient.client_id)
    return or_(*(contains_text_sql(column, text) for column in columns))


async def read_visible_client_page(
    ctx: Context,
    text: str | None,
    page_request: PageRequest,
    columns: Collection[str],
    order: OauthClientOrder,
) -> Page[ColumnRow]:
    """Read a page of clients. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    statement = _select_visible_clients(ctx, {list_order.column, *columns})
    return await read_ordered_page(
        ctx, statement.where(_contains_text(text)), OauthClient, page_request, list_order
    )


async def count_visible_clients(ctx: Context, text: str | None) -> int:
    """Count the clients of a list."""
    statement = select(func.count().label("many")).select_from(OauthClient)
    (row,) = await ctx.read(statement.where(_is_visible_client(ctx), _contains_text(text)))
    return int(row.many)


async def count_grants_of_clients(ctx: Context, client_row_ids: list[int]) -> list[int]:
    """Count the users who have given access to these clients; 0 if the viewer is no ADMIN."""
    statement = (
        select(col(OauthGrant.client_id), func.count().label("many"))
        .where(col(OauthGrant.client_id).in_(client_row_ids), _is_visible_client(ctx))
        .group_by(col(OauthGrant.client_id))
    )
    counts = {row.client_id: int(row.many) for row in await ctx.read(statement)}
    return [counts.get(client_row_id, 0) for client_row_id in client_row_ids]
