"""Read connectors and their runs."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select
from sqlmodel import col

from models.connectors import Connector, ConnectorRun
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import User
from resolvers.context import Context
from resolvers.list_orders import (
    OwnerPageKey,
    SortColumn,
    list_orders,
    read_ordered_page,
    read_owner_pages,
)
from resolvers.pagination import read_by_keys
from resolvers.users import managed_objects
from resolvers.users.selection import UserSelector, selection_condition
from resolvers.viewer import GuardRule

VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(Connector)) - {
    "secret",
    "lease",
    "holder",
}


class ConnectorOrder(StrEnum):
    """The order of a list of connectors; ties by id."""

    USER_ASC = "USER_ASC"  # by the creation of the account
    USER_DESC = "USER_DESC"
    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


class ConnectorRunOrder(StrEnum):
    """The order of a list of runs."""

    CREATED_ASC = "CREATED_ASC"
    CREATED_DESC = "CREATED_DESC"


_CREATION = SortColumn("id", int)  # ids are in the order of creation
_SORT_COLUMNS = {"USER": SortColumn("user_id", int), "CREATED_AT": _CREATION}
LIST_ORDERS = list_orders(ConnectorOrder, _SORT_COLUMNS)
RUN_ORDERS = list_orders(ConnectorRunOrder, {"CREATED": _CREATION})
# Fetching mail for others needs the scope of the mutation, changing their connectors also FULL.
GUARD_FOR_OTHERS = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.CONNECTORS)
WRITE_GUARD_FOR_OTHERS = replace(GUARD_FOR_OTHERS, scope=Scope.FULL)


@dataclass(frozen=True, slots=True)
class ConnectorWhere:
    """The conditions of a list of connectors; all of them hold."""

    users: UserSelector | None = None
    active: bool | None = None
    failing: bool | None = None


def is_visible_connector(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for connectors of the viewer and of users the viewer oversees."""
    return col(Connector.is_one_time).is_(False) & _is_of_visible_owner(ctx, Connector)


def _is_of_visible_owner(
    ctx: Context, table: type[Connector] | type[ConnectorRun]
) -> ColumnElement[bool]:
    return managed_objects.is_visible_sql(ctx, table, AdminPermission.CONNECTORS)


async def load_visible_connectors_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load connectors, in the order of the ids; None if the viewer does not see one."""
    visible_connectors = select(*select_columns(Connector, VISIBLE_COLUMNS)).where(
        is_visible_connector(ctx)
    )
    return await read_by_keys(ctx, visible_connectors, col(Connector.id), ids)


async def _visible_and_filtered_connector_terms(
    ctx: Context, where: ConnectorWhere
) -> list[ColumnElement[bool]]:
    terms = [is_visible_connector(ctx)]
    if where.users is not None:
        user_condition = await selection_condition(ctx, where.users, path="filter")
        terms.append(col(Connector.user_id).in_(select(col(User.id)).where(user_condition)))
    if where.active is not None:
        terms.append(col(Connector.active).is_(where.active))
    if where.failing is not None:
        failing = col(Connector.failures) > 0
        terms.append(failing if where.failing else ~failing)
    return terms


async def read_visible_connector_page(
    ctx: Context,
    where: ConnectorWhere,
    page_request: PageRequest,
    columns: Collection[str],
    order: ConnectorOrder = ConnectorOrder.USER_ASC,
) -> Page[ColumnRow]:
    """Read a page of connectors. Raises InvalidInput for a cursor of another order."""
    list_order = LIST_ORDERS[order]
    names = VISIBLE_COLUMNS.intersection(columns) | {list_order.column, "id"}
    rows = select(*select_columns(Connector, names)).where(
        *await _visible_and_filtered_connector_terms(ctx, where)
    )
    return await read_ordered_page(ctx, rows, Connector, page_request, list_order)


async def load_visible_connector_pages_by_user(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the visible connectors of accounts."""
    return await read_owner_pages(ctx, Connector, page_keys, _select_visible_connectors_of_user)


def _select_visible_connectors_of_user(
    ctx: Context, user_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Connector, VISIBLE_COLUMNS.intersection(columns))).where(
        col(Connector.user_id) == user_id, is_visible_connector(ctx)
    )


async def count_visible_connectors_by_user(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[int]:
    """Count the connectors of each account that the viewer sees."""
    statement = select(col(Connector.user_id), func.count().label("many")).where(
        is_visible_connector(ctx)
    )
    statement = statement.where(
        col(Connector.user_id).in_({page_key.owner_id for page_key in page_keys})
    )
    rows = await ctx.read(statement.group_by(col(Connector.user_id)))
    counts = {row.user_id: row.many for row in rows}
    return [counts.get(page_key.owner_id, 0) for page_key in page_keys]


async def count_visible_connectors(ctx: Context, where: ConnectorWhere) -> int:
    """Count the connectors of a list."""
    statement = select(func.count().label("many")).select_from(Connector)
    (row,) = await ctx.read(
        statement.where(*await _visible_and_filtered_connector_terms(ctx, where))
    )
    return int(row.many)


async def load_visible_runs_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load runs, in the order of the ids; None if the viewer does not see one."""
    visible_runs = select(*select_columns(ConnectorRun)).where(
        _is_of_visible_owner(ctx, ConnectorRun)
    )
    return await read_by_keys(ctx, visible_runs, col(ConnectorRun.id), ids)


async def load_run_pages_by_connector(
    ctx: Context, page_keys: list[OwnerPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the runs of connectors, which the viewer is known to see."""
    return await read_owner_pages(ctx, ConnectorRun, page_keys, _select_runs_of_connector)


def _select_runs_of_connector(
    _ctx: Context, connector_id: int, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(ConnectorRun, columns)).where(
        col(ConnectorRun.connector_id) == connector_id
    )


async def count_runs_by_connector(ctx: Context, page_keys: list[OwnerPageKey]) -> list[int]:
    """Count the stored runs of each connector."""
    connector_ids = {page_key.owner_id for page_key in page_keys}
    statement = select(col(ConnectorRun.connector_id), func.count().label("many"))
    statement = statement.where(col(ConnectorRun.connector_id).in_(connector_ids))
    rows = await ctx.read(statement.group_by(col(ConnectorRun.connector_id)))
    counts = {row.connector_id: row.many for row in rows}
    return [counts.get(page_key.owner_id, 0) for page_key in page_keys]


async def load_last_logs_by_connector(
    ctx: Context, connector_ids: list[int]
) -> list[list[str] | None]:
    """Load the log lines of the last run of each connector; None if it has no run."""
    statement = select(col(ConnectorRun.connector_id), col(ConnectorRun.log))
    rows = await ctx.read(
        statement.where(col(ConnectorRun.id).in_(_select_newest_run_ids(connector_ids)))
    )
    logs = {row.connector_id: row.log for row in rows}
    return [logs.get(key) for key in connector_ids]


async def load_own_last_runs_by_connector(
    ctx: Context, connector_ids: list[int]
) -> list[ColumnRow | None]:
    """Load the last run of each of the viewer's own connectors; None if it has no run."""
    newest = _select_newest_run_ids(connector_ids).where(
        col(ConnectorRun.user_id) == ctx.viewer.user_id
    )
    rows = await ctx.read(
        select(*select_columns(ConnectorRun)).where(col(ConnectorRun.id).in_(newest))
    )
    runs = {row.connector_id: row for row in rows}
    return [runs.get(key) for key in connector_ids]


def _select_newest_run_ids(connector_ids: list[int]) -> Select[int]:
    newest = select(func.max(col(ConnectorRun.id))).where(
        col(ConnectorRun.connector_id).in_(connector_ids)
    )
    return newest.group_by(col(ConnectorRun.connector_id))
