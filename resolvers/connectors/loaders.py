"""Read connectors and their runs."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, func, select, true
from sqlmodel import col

from models.connectors import Connector, ConnectorRun
from models.store.columns import Picked, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers import pagination
from resolvers.access import managed_users
from resolvers.context import Context, Needs
from resolvers.pagination import Scan, by_keys
from resolvers.users.selection import Users, described

SHOWN = frozenset(column.name for column in picked(Connector)) - {"secret", "lease", "holder"}
OF_OTHERS = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.SYNCJOBS)


@dataclass(frozen=True, slots=True)
class ConnectorWhere:
    """The conditions of a list of connectors; all of them hold."""

    users: Users | None = None
    active: bool | None = None
    failing: bool | None = None


def visible(ctx: Context) -> ColumnElement[bool]:
    """Return the SQL condition for connectors of the viewer and of accounts the viewer manages."""
    return col(Connector.once).is_(False) & _theirs(ctx, col(Connector.user_id))


def _theirs(ctx: Context, owner: Any) -> ColumnElement[bool]:
    viewer = ctx.viewer
    mine: ColumnElement[bool] = owner == viewer.user_id
    if viewer.role.includes(Role.ADMIN):
        return true()
    if viewer.role is Role.DOMAIN_ADMIN and AdminPermission.SYNCJOBS in viewer.permissions:
        mine |= owner.in_(select(col(User.id)).where(managed_users(ctx)))
    return mine


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load connectors, in the order of the ids; None if the viewer does not see one."""
    seen = select(*picked(Connector, SHOWN)).where(visible(ctx))
    return await by_keys(ctx, seen, col(Connector.id), ids)


async def _terms(ctx: Context, where: ConnectorWhere) -> list[ColumnElement[bool]]:
    terms = [visible(ctx)]
    if where.users is not None:
        these = await described(ctx, where.users, path="filter")
        terms.append(col(Connector.user_id).in_(select(col(User.id)).where(these)))
    if where.active is not None:
        terms.append(col(Connector.active).is_(where.active))
    if where.failing is not None:
        failing = col(Connector.failures) > 0
        terms.append(failing if where.failing else ~failing)
    return terms


async def page(
    ctx: Context, where: ConnectorWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """Read a page of connectors, by account and then in the order of creation."""
    names = SHOWN.intersection(columns) | {"user_id", "id"}
    rows = select(*picked(Connector, names)).where(*await _terms(ctx, where))
    place = (col(Connector.user_id), col(Connector.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


@dataclass(frozen=True, slots=True)
class OfUser:
    """A page of the connectors of an account, which the viewer is known to see."""

    user_id: int
    ask: Ask
    columns: frozenset[str]


async def of_users(ctx: Context, wanted: list[OfUser]) -> list[Page[Picked]]:
    """Load pages of the connectors of accounts, in the order of creation, with one statement."""
    names = SHOWN.intersection(name for one in wanted for name in one.columns)
    asked = select(*picked(Connector, names | {"user_id", "id"})).where(visible(ctx))
    place = (col(Connector.user_id), col(Connector.id))
    scans = [
        Scan(asked.where(col(Connector.user_id) == one.user_id), one.ask, place, falling=False)
        for one in wanted
    ]
    return await pagination.pages(ctx, scans)


async def counts_of_users(ctx: Context, wanted: list[OfUser]) -> list[int]:
    """Count the connectors of each account."""
    asked = select(col(Connector.user_id), func.count().label("many")).where(visible(ctx))
    asked = asked.where(col(Connector.user_id).in_({one.user_id for one in wanted}))
    rows = await ctx.read(asked.group_by(col(Connector.user_id)))
    found = {row.user_id: row.many for row in rows}
    return [found.get(one.user_id, 0) for one in wanted]


async def count(ctx: Context, where: ConnectorWhere) -> int:
    """Count the connectors of a list."""
    many = select(func.count().label("many")).select_from(Connector)
    (row,) = await ctx.read(many.where(*await _terms(ctx, where)))
    return int(row.many)


async def runs_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load runs, in the order of the ids; None if the viewer does not see one."""
    seen = select(*picked(ConnectorRun)).where(_theirs(ctx, col(ConnectorRun.user_id)))
    return await by_keys(ctx, seen, col(ConnectorRun.id), ids)


@dataclass(frozen=True, slots=True)
class OfConnector:
    """A page of the runs of a connector, which the viewer is known to see."""

    connector_id: int
    ask: Ask
    columns: frozenset[str]


async def runs(ctx: Context, wanted: list[OfConnector]) -> list[Page[Picked]]:
    """Load pages of the runs of connectors, newest first, with one statement."""
    names = frozenset({"connector_id", "id"}).union(*(one.columns for one in wanted))
    place = (col(ConnectorRun.connector_id), col(ConnectorRun.id))
    asked = select(*picked(ConnectorRun, names))
    scans = [
        Scan(asked.where(col(ConnectorRun.connector_id) == one.connector_id), one.ask, place, True)
        for one in wanted
    ]
    return await pagination.pages(ctx, scans)


async def run_counts(ctx: Context, wanted: list[OfConnector]) -> list[int]:
    """Count the stored runs of each connector."""
    keys = {one.connector_id for one in wanted}
    asked = select(col(ConnectorRun.connector_id), func.count().label("many"))
    asked = asked.where(col(ConnectorRun.connector_id).in_(keys))
    rows = await ctx.read(asked.group_by(col(ConnectorRun.connector_id)))
    found = {row.connector_id: row.many for row in rows}
    return [found.get(one.connector_id, 0) for one in wanted]


async def last_logs(ctx: Context, ids: list[int]) -> list[list[str] | None]:
    """Load the log lines of the last run of each connector; None if it has no run."""
    asked = select(col(ConnectorRun.connector_id), col(ConnectorRun.log))
    rows = await ctx.read(asked.where(col(ConnectorRun.id).in_(_newest(ids))))
    found = {row.connector_id: row.log for row in rows}
    return [found.get(key) for key in ids]


async def last_runs(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load the last run of each of the viewer's own connectors; None if it has no run."""
    newest = _newest(ids).where(col(ConnectorRun.user_id) == ctx.viewer.user_id)
    rows = await ctx.read(select(*picked(ConnectorRun)).where(col(ConnectorRun.id).in_(newest)))
    found = {row.connector_id: row for row in rows}
    return [found.get(key) for key in ids]


def _newest(ids: list[int]) -> Select[int]:
    newest = select(func.max(col(ConnectorRun.id))).where(col(ConnectorRun.connector_id).in_(ids))
    return newest.group_by(col(ConnectorRun.connector_id))
