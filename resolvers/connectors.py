"""Accounts elsewhere whose mail comes here: who may have which, and when they run."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.columns import Picked, picked
from models.connectors import Connector, ConnectorRun
from models.errors import LimitReached, all_found
from models.journal import ChangeKind
from models.pages import Ask, Page
from models.roles import AdminPermission, Role
from models.tasks import TaskState
from models.users import User
from models.wakeups import CONNECTORS
from resolvers import adminlog, connectorforms, connectorsecrets, listing
from resolvers.access import managed_users, own
from resolvers.adminlog import Done
from resolvers.connectorruns import next_at, queued
from resolvers.context import Context, Needs
from resolvers.listing import Scan, by_keys
from resolvers.userselection import managed_all

MOST = 50  # of an account
SHOWN = frozenset(column.name for column in picked(Connector)) - {"secret", "lease"}
LOGGED = ("name", "host", "active")
OF_OTHERS = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.SYNCJOBS)


@dataclass(frozen=True, slots=True)
class ConnectorWhere:
    """Which connectors to list; all conditions hold."""

    users: Collection[int] | None = None
    active: bool | None = None
    failing: bool | None = None


def _visible(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for connectors: one's own, and of those one manages."""
    mine = col(Connector.user_id) == ctx.viewer.user_id
    if ctx.viewer.role.includes(Role.ADMIN):
        return true()
    if ctx.viewer.role is Role.DOMAIN_ADMIN and ctx.viewer.allows(OF_OTHERS):
        theirs = select(col(User.id)).where(managed_users(ctx))
        return mine | col(Connector.user_id).in_(theirs)
    return mine


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The connectors with these ids, in this order; None where the viewer sees none."""
    seen = select(*picked(Connector, SHOWN)).where(_visible(ctx))
    return await by_keys(ctx, seen, col(Connector.id), ids)


def _terms(ctx: Context, where: ConnectorWhere) -> list[ColumnElement[bool]]:
    terms = [_visible(ctx)]
    if where.users is not None:
        terms.append(col(Connector.user_id).in_(where.users))
    if where.active is not None:
        terms.append(col(Connector.active).is_(where.active))
    if where.failing is not None:
        failing = col(Connector.failures) > 0
        terms.append(failing if where.failing else ~failing)
    return terms


async def page(
    ctx: Context, where: ConnectorWhere, ask: Ask, columns: Collection[str]
) -> Page[Picked]:
    """A page of connectors: account by account, in the order they were made."""
    names = SHOWN.intersection(columns) | {"user_id", "id"}
    rows = select(*picked(Connector, names)).where(*_terms(ctx, where))
    place = (col(Connector.user_id), col(Connector.id))
    return await listing.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, where: ConnectorWhere) -> int:
    """How many connectors such a list has."""
    many = select(func.count().label("many")).select_from(Connector)
    (row,) = await ctx.read(many.where(*_terms(ctx, where)))
    return int(row.many)


async def create(ctx: Context, user_id: int | None, given: Mapping[str, Any], secret: str) -> int:
    """Make a connector, which runs at once where it is active; its key.

    Invalid, LimitReached, NotFound.
    """
    owner, world, key = own(ctx) if user_id is None else user_id, ctx.world, ctx.world.key()
    _permitted(ctx, [owner])
    values = connectorforms.checked(given, {}, world.options)
    word = {"password": connectorforms.secret(secret)}
    now = world.now()
    async with ctx.write(owner) as session:
        (user,) = await managed_all(ctx, [owner], path="user")
        await _check_room(ctx, owner)
        row = Connector(
            id=key,
            user_id=owner,
            secret=connectorsecrets.sealed(world, key, word),
            created_at=now,
            next_run_at=now if values.get("active", True) and values.get("interval") else None,
            **values,
        )
        session.add(row)
        await session.flush()
        await ctx.record(session, owner, ChangeKind.CONNECTOR_CHANGED, [key])
        after = {name: getattr(row, name) for name in LOGGED}
        await _log(ctx, session, user, Done("connectorCreate", "Connector", key, None, None, after))
    wake(ctx)
    return key


async def change(
    ctx: Context, ids: Sequence[int], given: Mapping[str, Any], secret: str | None
) -> None:
    """Change connectors, all or none; one that is switched on runs at once."""
    word = None if secret is None else {"password": connectorforms.secret(secret)}
    known = await ctx.load_all(by_ids, list(ids))
    all_found(ids, {row.id for row in known if row})
    owners = {row.user_id for row in known if row}
    _permitted(ctx, owners)
    world, now = ctx.world, ctx.world.now()
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        connection = await session.connection()
        for row in await _held(ctx, session, ids):
            values = connectorforms.checked(given, row._asdict(), world.options)
            if word is not None:
                values["secret"] = connectorsecrets.sealed(world, row.id, word)
            values |= {"updated_at": now, "failures": 0}
            values["next_run_at"] = _next(row, values, now)
            this = update(Connector).where(col(Connector.id) == row.id)
            await connection.execute(this.values(values))
            await ctx.record(session, row.user_id, ChangeKind.CONNECTOR_CHANGED, [row.id])
            told = [{name: each.get(name, getattr(row, name)) for name in LOGGED}
                    for each in ({}, values)]  # fmt: skip
            done = Done("connectorUpdate", "Connector", row.id, None, *told)
            await _log(ctx, session, users[row.user_id], done)
    wake(ctx)


def _next(row: Picked, values: Mapping[str, Any], now: Any) -> Any:
    active = values.get("active", row.active)
    interval = values.get("interval", row.interval)
    if row.run_id is not None:
        return row.next_run_at  # it runs, or waits to
    if not active or interval is None:
        return None
    if not row.active or row.next_run_at is None:
        return now
    return min(row.next_run_at, next_at(now, interval, 0))


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Remove connectors, all or none; what they have fetched stays."""
    known = await ctx.load_all(by_ids, list(ids))
    all_found(ids, {row.id for row in known if row})
    owners = {row.user_id for row in known if row}
    _permitted(ctx, owners)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        rows = await _held(ctx, session, ids)
        connection = await session.connection()
        await connection.execute(delete(Connector).where(col(Connector.id).in_(ids)))
        for row in rows:
            await ctx.record(session, row.user_id, ChangeKind.CONNECTOR_CHANGED, [row.id])
            before = {name: getattr(row, name) for name in LOGGED}
            done = Done("connectorDelete", "Connector", row.id, None, before, None)
            await _log(ctx, session, users[row.user_id], done)


async def start(ctx: Context, ids: Sequence[int], *, trial: bool) -> list[int]:
    """Have these run now; of one that runs already the run that is under way. Keys of runs."""
    known = await ctx.load_all(by_ids, list(ids))
    all_found(ids, {row.id for row in known if row})
    owners = {row.user_id for row in known if row}
    _permitted(ctx, owners)
    found: dict[int, int] = {}
    async with ctx.write(*owners) as session:
        await managed_all(ctx, owners, path="ids")
        connection, now = await session.connection(), ctx.world.now()
        for row in await _held(ctx, session, ids):
            key = row.run_id
            if key is None:
                key = ctx.world.key()
                session.add(queued(ctx, row.id, row.user_id, key, trial=trial))
                await session.flush()
                this = update(Connector).where(col(Connector.id) == row.id)
                await connection.execute(this.values(run_id=key, next_run_at=now))
                await ctx.record(session, row.user_id, ChangeKind.CONNECTOR_CHANGED, [row.id])
            found[row.id] = key
    wake(ctx)
    return [found[key] for key in ids]


async def stop(ctx: Context, ids: Sequence[int]) -> None:
    """End these runs at the next safe point; those that have ended stay as they are."""
    rows = await ctx.load_all(runs_by_ids, list(ids))
    all_found(ids, {row.id for row in rows if row})
    owners = {row.user_id for row in rows if row}
    _permitted(ctx, owners)
    now = ctx.world.now()
    async with ctx.write(*owners) as session:
        connection = await session.connection()
        these = update(ConnectorRun).where(col(ConnectorRun.id).in_(ids))
        waiting = these.where(col(ConnectorRun.state) == TaskState.QUEUED)
        ended = await connection.execute(
            waiting.values(state=TaskState.CANCELLED, finished_at=now, cancelled=True).returning(
                col(ConnectorRun.id)
            )
        )
        gone = [row.id for row in ended]
        free = update(Connector).where(col(Connector.run_id).in_(gone))
        await connection.execute(free.values(run_id=None))
        running = these.where(col(ConnectorRun.state) == TaskState.RUNNING)
        await connection.execute(running.values(cancelled=True))
        for row in rows:
            if row:
                kind = ChangeKind.CONNECTOR_CHANGED
                await ctx.record(session, row.user_id, kind, [row.connector_id])


async def runs_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """The runs with these ids, in this order; None where the viewer sees none."""
    theirs = select(col(Connector.id)).where(_visible(ctx))
    seen = select(*picked(ConnectorRun)).where(col(ConnectorRun.connector_id).in_(theirs))
    return await by_keys(ctx, seen, col(ConnectorRun.id), ids)


@dataclass(frozen=True, slots=True)
class OfConnector:
    """A page of the runs of a connector, which the viewer has reached."""

    connector_id: int
    ask: Ask
    columns: frozenset[str]


async def runs(ctx: Context, wanted: list[OfConnector]) -> list[Page[Picked]]:
    """Pages of the runs of connectors, the newest first; all in one statement."""
    names = frozenset({"connector_id", "id"}).union(*(one.columns for one in wanted))
    place = (col(ConnectorRun.connector_id), col(ConnectorRun.id))
    asked = select(*picked(ConnectorRun, names))
    scans = [
        Scan(asked.where(col(ConnectorRun.connector_id) == one.connector_id), one.ask, place, True)
        for one in wanted
    ]
    return await listing.pages(ctx, scans)


async def run_counts(ctx: Context, wanted: list[OfConnector]) -> list[int]:
    """How many runs of these are remembered."""
    keys = {one.connector_id for one in wanted}
    asked = select(col(ConnectorRun.connector_id), func.count().label("many"))
    asked = asked.where(col(ConnectorRun.connector_id).in_(keys))
    rows = await ctx.read(asked.group_by(col(ConnectorRun.connector_id)))
    found = {row.connector_id: row.many for row in rows}
    return [found.get(one.connector_id, 0) for one in wanted]


async def last_logs(ctx: Context, ids: list[int]) -> list[list[str] | None]:
    """The lines of the last run of each connector; None where none has begun."""
    newest = (
        select(func.max(col(ConnectorRun.id)))
        .where(col(ConnectorRun.connector_id).in_(ids))
        .group_by(col(ConnectorRun.connector_id))
    )
    asked = select(col(ConnectorRun.connector_id), col(ConnectorRun.log))
    rows = await ctx.read(asked.where(col(ConnectorRun.id).in_(newest)))
    found = {row.connector_id: row.log for row in rows}
    return [found.get(key) for key in ids]


def wake(ctx: Context) -> None:
    """Let the workers look."""
    ctx.afterwards(lambda: ctx.world.wakeups.tell({CONNECTORS: 0}))


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    asked = select(*picked(Connector)).where(col(Connector.id).in_(ids), _visible(ctx))
    held = asked.order_by(col(Connector.id)).with_for_update()
    rows = {row.id: row for row in (await (await session.connection()).execute(held)).all()}
    all_found(ids, rows)
    return [rows[key] for key in dict.fromkeys(ids)]


async def _check_room(ctx: Context, user_id: int) -> None:
    asked = select(func.count().label("many")).where(col(Connector.user_id) == user_id)
    (row,) = await ctx.read(asked)
    if row.many >= MOST:
        raise LimitReached(f"at most {MOST} connectors", limit=MOST, used=row.many, path=["user"])


def _permitted(ctx: Context, owners: Collection[int]) -> None:
    """A DOMAIN_ADMIN needs SYNCJOBS for those of others."""
    if set(owners) - {ctx.viewer.user_id}:
        ctx.viewer.require(OF_OTHERS)


async def _log(ctx: Context, session: AsyncSession, user: Picked, done: Done) -> None:
    if user.id != ctx.viewer.user_id:
        await adminlog.note(ctx, session, done)
