"""Read connectors and their runs."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, true
from sqlmodel import col

from models.connectors import Connector, ConnectorRun
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import is_managed_user
from resolvers.context import Context, GuardRule
from resolvers.pagination import PageScan, read_by_keys
from resolvers.users.selection import UserSelector, selection_condition

VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(Connector)) - {
    "secret",
    "lease",
    "holder",
}
GUARD_FOR_OTHERS = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.CONNECTORS)


@dataclass(frozen=True, slots=True)
class ConnectorWhere:
    """The conditions of a list of connectors; all of them hold."""

    users: UserSelector | None = None
    active: bool | None = None
    failing: bool | None = None


def is_visible_connector(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for connectors of the viewer and of accounts the viewer manages."""
    return col(Connector.once).is_(False) & _is_visible_owner(ctx, col(Connector.user_id))


def _is_visible_owner(ctx: Context, owner_column: Any) -> ColumnElement[bool]:
    viewer = ctx.viewer
    is_visible_owner: ColumnElement[bool] = owner_column == viewer.user_id
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and AdminPermission.CONNECTORS in viewer.permissions:
        is_visible_owner |= owner_column.in_(select(col(User.id)).where(is_managed_user(ctx)))
    return is_visible_owner


async def load_visible_connectors_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load connectors, in the order of the ids; None if the viewer does not see one."""
    visible_connectors = select(*select_columns(Connector, VISIBLE_COLUMNS)).where(
        is_visible_connector(ctx)
    )
    return await read_by_keys(ctx, visible_connectors, col(Connector.id), ids)


async def _filter_conditions(ctx: Context, where: ConnectorWhere) -> list[ColumnElement[bool]]:
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


async def read_connector_page(
    ctx: Context, where: ConnectorWhere, page_request: PageRequest, columns: Collection[str]
) -> Page[ColumnRow]:
    """Read a page of connectors, by account and then in the order of creation."""
    names = VISIBLE_COLUMNS.intersection(columns) | {"user_id", "id"}
    rows = select(*select_columns(Connector, names)).where(*await _filter_conditions(ctx, where))
    order_columns = (col(Connector.user_id), col(Connector.id))
    return await pagination.read_page(
        ctx, PageScan(rows, page_request, order_columns, is_descending=False)
    )


@dataclass(frozen=True, slots=True)
class ConnectorPageKey:
    """A page of the connectors of an account, which the viewer is known to see."""

    user_id: int
    page_request: PageRequest
    columns: frozenset[str]


async def load_visible_connector_pages_by_user(
    ctx: Context, page_keys: list[ConnectorPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the visible connectors of accounts, in the order of creation."""
    column_names = VISIBLE_COLUMNS.intersection(name for one in page_keys for name in one.columns)
    statement = select(*select_columns(Connector, column_names | {"user_id", "id"})).where(
        is_visible_connector(ctx)
    )
    order_columns = (col(Connector.user_id), col(Connector.id))
    scans = [
        PageScan(
            statement.where(col(Connector.user_id) == one.user_id),
            one.page_request,
            order_columns,
            is_descending=False,
        )
        for one in page_keys
    ]
    return await pagination.read_pages(ctx, scans)


async def count_visible_connectors_by_user(
    ctx: Context, page_keys: list[ConnectorPageKey]
) -> list[int]:
    """Count the connectors of each account that the viewer sees."""
    statement = select(col(Connector.user_id), func.count().label("many")).where(
        is_visible_connector(ctx)
    )
    statement = statement.where(col(Connector.user_id).in_({one.user_id for one in page_keys}))
    rows = await ctx.read(statement.group_by(col(Connector.user_id)))
    found = {row.user_id: row.many for row in rows}
    return [found.get(one.user_id, 0) for one in page_keys]


async def count_connectors(ctx: Context, where: ConnectorWhere) -> int:
    """Count the connectors of a list."""
    statement = select(func.count().label("many")).select_from(Connector)
    (row,) = await ctx.read(statement.where(*await _filter_conditions(ctx, where)))
    return int(row.many)


async def load_visible_runs_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load runs, in the order of the ids; None if the viewer does not see one."""
    visible_runs = select(*select_columns(ConnectorRun)).where(
        _is_visible_owner(ctx, col(ConnectorRun.user_id))
    )
    return await read_by_keys(ctx, visible_runs, col(ConnectorRun.id), ids)


@dataclass(frozen=True, slots=True)
class RunPageKey:
    """A page of the runs of a connector, which the viewer is known to see."""

    connector_id: int
    page_request: PageRequest
    columns: frozenset[str]


async def load_run_pages_by_connector(
    ctx: Context, page_keys: list[RunPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of the runs of connectors, newest first, with one statement."""
    column_names = frozenset({"connector_id", "id"}).union(*(one.columns for one in page_keys))
    order_columns = (col(ConnectorRun.connector_id), col(ConnectorRun.id))
    statement = select(*select_columns(ConnectorRun, column_names))
    scans = [
        PageScan(
            statement.where(col(ConnectorRun.connector_id) == one.connector_id),
            one.page_request,
            order_columns,
            True,
        )
        for one in page_keys
    ]
    return await pagination.read_pages(ctx, scans)


async def count_runs_by_connector(ctx: Context, page_keys: list[RunPageKey]) -> list[int]:
    """Count the stored runs of each connector."""
    connector_ids = {one.connector_id for one in page_keys}
    statement = select(col(ConnectorRun.connector_id), func.count().label("many"))
    statement = statement.where(col(ConnectorRun.connector_id).in_(connector_ids))
    rows = await ctx.read(statement.group_by(col(ConnectorRun.connector_id)))
    found = {row.connector_id: row.many for row in rows}
    return [found.get(one.connector_id, 0) for one in page_keys]


async def load_last_logs_by_connector(
    ctx: Context, connector_ids: list[int]
) -> list[list[str] | None]:
    """Load the log lines of the last run of each connector; None if it has no run."""
    statement = select(col(ConnectorRun.connector_id), col(ConnectorRun.log))
    rows = await ctx.read(
        statement.where(col(ConnectorRun.id).in_(_select_newest_run_ids(connector_ids)))
    )
    found = {row.connector_id: row.log for row in rows}
    return [found.get(key) for key in connector_ids]


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
    found = {row.connector_id: row for row in rows}
    return [found.get(key) for key in connector_ids]


def _select_newest_run_ids(connector_ids: list[int]) -> Select[int]:
    newest = select(func.max(col(ConnectorRun.id))).where(
        col(ConnectorRun.connector_id).in_(connector_ids)
    )
    return newest.group_by(col(ConnectorRun.connector_id))
