"""Create, update, delete, run and cancel connectors."""

import contextlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.remote_server import Failure
from models.admin.tasks import TaskState
from models.connectors import Connector, ConnectorFolder, ConnectorRun, Security
from models.errors import Conflict, Invalid, LimitReached, all_found
from models.events.journal import ChangeKind
from models.events.wakeups import CONNECTORS
from models.runtime.environment import World
from models.store.columns import Picked, picked
from models.users.roles import UserPermission
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.connectors import credentials, one_time_imports
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import OF_OTHERS, by_ids, runs_by_ids, visible
from resolvers.connectors.schedule import next_at, queued
from resolvers.context import Context, Needs
from resolvers.users import managed_objects
from resolvers.users.selection import managed_all

MOST = 50  # of one account
LOGGED = ("name", "host", "active")
CREDENTIAL = {  # mutation: its action in the security log
    "connectorCreate": "connector create",
    "connectorDelete": "connector delete",
    "connectorUpdate": "connector update",
}


async def create(
    ctx: Context,
    user_id: int | None,
    given: Mapping[str, Any],
    password: str | None,
) -> int:
    """Create a connector and return its id. One with an interval runs at once.

    The default user is the viewer. Raises Invalid, LimitReached at 50 connectors, NotFound, and
    Forbidden if the viewer may not manage connectors of the user.
    """
    owner, world, key = own(ctx) if user_id is None else user_id, ctx.world, ctx.world.key()
    _permitted(ctx, [owner])
    values = connector_validation.checked(given, {}, world.options)
    now = world.now()
    due = values.get("active", True) and values.get("interval")
    async with ctx.write(owner) as session:
        (user,) = await managed_all(ctx, [owner], path="user")
        await _check_room(ctx, owner)
        row = Connector(
            id=key,
            user_id=owner,
            secret=credentials.sealed(world, key, _word({}, given, password)),
            created_at=now,
            next_run_at=now if due else None,
            **values,
        )
        session.add(row)
        await session.flush()
        await ctx.record(session, owner, ChangeKind.CONNECTOR_CHANGED, [key])
        after = {name: getattr(row, name) for name in LOGGED}
        done = Done("connectorCreate", "Connector", key, user.domain_id, None, after)
        await _log(ctx, session, user, done)
    wake(ctx)
    return key


def _word(before: Mapping[str, Any], given: Mapping[str, Any], password: str | None) -> Any:
    """Return the secret to store. A new password removes the tokens of the old one."""
    found = dict(before)
    if password is not None:
        found = {"password": connector_validation.secret(password), "client": before.get("client")}
    if (oauth := given.get("oauth")) and oauth.get("client_secret"):
        found["client"] = connector_validation.secret(
            oauth["client_secret"], "oauth", "clientSecret"
        )
    return found


async def change(
    ctx: Context, ids: Sequence[int], given: Mapping[str, Any], password: str | None
) -> None:
    """Update connectors, all or none. One that is activated runs at once.

    Raises NotFound, Invalid, LimitReached, Forbidden, and Conflict if one is moved to another user
    while it runs.
    """
    owners = {*managed_objects.owners(ids, await ctx.load_all(by_ids, list(ids)))}
    if (heir := given.get("user_id")) is not None:
        owners.add(heir)
    _permitted(ctx, owners)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        for row in await _held(ctx, session, ids):
            values = await _change(ctx, session, row, given, password)
            for owner in {row.user_id, values.get("user_id", row.user_id)}:
                await ctx.record(session, owner, ChangeKind.CONNECTOR_CHANGED, [row.id])
            told = [{name: each.get(name, getattr(row, name)) for name in LOGGED}
                    for each in ({}, values)]  # fmt: skip
            user = users[row.user_id]
            done = Done("connectorUpdate", "Connector", row.id, user.domain_id, *told)
            await _log(ctx, session, user, done)
    wake(ctx)


async def _change(
    ctx: Context, session: AsyncSession, row: Picked, given: Mapping[str, Any], password: str | None
) -> dict[str, Any]:
    """Update one connector and return its new values."""
    world, now, connection = ctx.world, ctx.world.now(), await session.connection()
    asked = {name: value for name, value in given.items() if name != "user_id"}
    values = connector_validation.checked(asked, row._asdict(), world.options)
    _check_told(row, values, password)
    _check_known(world, row, values, password)
    if password is not None or (given.get("oauth") or {}).get("client_secret"):
        try:
            before = credentials.opened(world, row.id, row.secret)
        except Failure as problem:
            if password is None:
                raise Invalid(problem.message, constraint="closed", path=["password"]) from None
            before = {}
        word = _word(before, given, password)
        values["secret"] = credentials.sealed(world, row.id, word)
    values |= {"updated_at": now, "failures": 0}
    values["next_run_at"] = _next(row, values, now)
    if given.get("user_id", row.user_id) != row.user_id:
        if row.run_id is not None:
            raise Conflict("it runs: cancel the run first", path=["set", "user"])
        await _check_room(ctx, given["user_id"])
        values["user_id"] = given["user_id"]
        for table in (ConnectorFolder, ConnectorRun):  # they describe the mail of the previous user
            mine = col(table.connector_id) == row.id
            await connection.execute(delete(table).where(mine))
    this = update(Connector).where(col(Connector.id) == row.id)
    await connection.execute(this.values(values))
    return values


def _check_told(row: Picked, values: Mapping[str, Any], password: str | None) -> None:
    """Raise Invalid if a stored password would be sent to another server or without TLS."""
    where = ("host", "oauth", "user_id")
    other = any(values.get(name, getattr(row, name)) != getattr(row, name) for name in where)
    weaker = values.get("security", row.security) is Security.PLAIN is not row.security
    if password is None and (other or weaker):
        text = "the password has to be given once more for another server"
        raise Invalid(text, constraint="required", path=["password"])


def _check_known(
    world: World, row: Picked, values: Mapping[str, Any], password: str | None
) -> None:
    """Raise Invalid if a connector without a password is activated."""
    if password is not None or row.active or not values.get("active"):
        return
    with contextlib.suppress(Failure):  # reported by the run
        if not credentials.opened(world, row.id, row.secret).get("password"):
            text = "it has no password: give it one to switch it on"
            raise Invalid(text, constraint="required", path=["password"])


def _next(row: Picked, values: Mapping[str, Any], now: Any) -> Any:
    active = values.get("active", row.active)
    interval = values.get("interval", row.interval)
    if row.run_id is not None:
        return row.next_run_at  # it is running or queued
    if not active or interval is None:
        return None
    if not row.active or row.next_run_at is None:
        return now
    return min(row.next_run_at, next_at(now, interval, 0) or now)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete connectors, all or none. Fetched messages stay. Raises NotFound or Forbidden."""
    owners = managed_objects.owners(ids, await ctx.load_all(by_ids, list(ids)))
    _permitted(ctx, owners)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        rows = await _held(ctx, session, ids)
        connection = await session.connection()
        await connection.execute(delete(Connector).where(col(Connector.id).in_(ids)))
        for row in rows:
            await ctx.record(session, row.user_id, ChangeKind.CONNECTOR_CHANGED, [row.id])
            before = {name: getattr(row, name) for name in LOGGED}
            user = users[row.user_id]
            done = Done("connectorDelete", "Connector", row.id, user.domain_id, before, None)
            await _log(ctx, session, user, done)


async def start(ctx: Context, ids: Sequence[int], *, trial: bool) -> list[int]:
    """Queue a run of each connector and return the run ids. A run in progress is not repeated.

    A trial stores and deletes nothing. Raises NotFound or Forbidden.
    """
    owners = managed_objects.owners(ids, await ctx.load_all(by_ids, list(ids)))
    _permitted(ctx, owners)
    found: dict[int, int] = {}
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
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
            user, after = users[row.user_id], {"name": row.name, "trial": trial}
            done = Done("connectorRun", "Connector", row.id, user.domain_id, None, after)
            await _log(ctx, session, user, done)
    wake(ctx)
    return [found[key] for key in ids]


async def stop(ctx: Context, ids: Sequence[int]) -> None:
    """Cancel these runs at the next safe point; finished ones stay unchanged.

    Raises NotFound or Forbidden.
    """
    rows = await ctx.load_all(runs_by_ids, list(ids))
    owners = managed_objects.owners(ids, rows)
    _permitted(ctx, owners)
    lasting = await ctx.load_all(by_ids, [row.connector_id for row in rows if row])
    if any(lasting):  # one-time imports need no permission
        ctx.viewer.require(Needs(user_permission=UserPermission.SYNCJOBS))
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
        freed = select(*picked(Connector)).where(col(Connector.run_id).in_(gone))
        for one in (await connection.execute(freed.with_for_update())).all():
            due = next_at(now, one.interval, 0) if one.active else None
            this = update(Connector).where(col(Connector.id) == one.id)
            await connection.execute(this.values(run_id=None, next_run_at=due))
        await one_time_imports.forget(session, gone)
        running = these.where(col(ConnectorRun.state) == TaskState.RUNNING)
        await connection.execute(running.values(cancelled=True))
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        for row in filter(None, rows):
            kind, user = ChangeKind.CONNECTOR_CHANGED, users[row.user_id]
            await ctx.record(session, row.user_id, kind, [row.connector_id])
            before = {"state": row.state}
            done = Done("connectorCancel", "ConnectorRun", row.id, user.domain_id, before, None)
            await _log(ctx, session, user, done)
    wake(ctx)


def wake(ctx: Context) -> None:
    """Wake the connector workers after the transaction."""
    ctx.afterwards(lambda: ctx.world.wakeups.tell({CONNECTORS: 0}))


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    asked = select(*picked(Connector)).where(col(Connector.id).in_(ids), visible(ctx))
    held = asked.order_by(col(Connector.id)).with_for_update()
    rows = {row.id: row for row in (await (await session.connection()).execute(held)).all()}
    all_found(ids, rows)
    return [rows[key] for key in dict.fromkeys(ids)]


async def _check_room(ctx: Context, user_id: int) -> None:
    mine = col(Connector.user_id) == user_id, col(Connector.once).is_(False)
    asked = select(func.count().label("many")).where(*mine)
    (row,) = await ctx.read(asked)
    if row.many >= MOST:
        raise LimitReached(f"at most {MOST} connectors", limit=MOST, used=row.many, path=["user"])


def _permitted(ctx: Context, owners: Collection[int]) -> None:
    """Raise Forbidden if the viewer may not manage connectors of other users."""
    if set(owners) - {ctx.viewer.user_id}:
        ctx.viewer.require(OF_OTHERS)


async def _log(ctx: Context, session: AsyncSession, user: Picked, done: Done) -> None:
    if (action := CREDENTIAL.get(done.mutation)) is not None:
        facts = {**(done.before or {}), **(done.after or {})}
        told = {name: facts[name] for name in ("host", "username") if facts.get(name)}
        event = Event(action, user.id, target=str(done.target_id), detail=told)
        await security_log.note(ctx, session, event)
    if user.id != ctx.viewer.user_id:
        await admin_log.note(ctx, session, done)
