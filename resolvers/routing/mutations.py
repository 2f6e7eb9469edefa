"""Create, update and delete relay hosts, transports and TLS policies. For an ADMIN."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col

from models.domains.tables import Domain
from models.errors import Conflict, Invalid, LimitReached, NotFound, Problems, Refused, Unavailable
from models.events.journal import PLATFORM, ChangeKind
from models.routing.tables import TlsPolicyLevel
from models.store.columns import Picked, table_of
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context
from resolvers.routing import validation as routing_validation
from resolvers.routing.loaders import HAS_PASSWORD, PLACES, POLICIES, RELAYS, TRANSPORTS, Sort, seen

PORT = 25
EXISTS = "there is one for this destination already"
WORDS = {
    "next_hop": "nextHop",
    "lookup_mx": "lookupMx",
    "filter_spam": "filterSpam",
}  # names of these columns in the schema
# the columns that decide which server receives the password
LED = {RELAYS: ("host", "port"), TRANSPORTS: ("next_hop", "lookup_mx"), POLICIES: ()}


async def create(
    ctx: Context, sort: Sort, given: Mapping[str, Any], password: str | None = None
) -> int:
    """Create a row of a routing table and return its id.

    Raises InvalidInput, LimitReached, or Conflict if the destination has a row already.
    """
    values = _checked(sort, given, {}, password)
    if sort is RELAYS:
        values.setdefault("port", PORT)
    now, key = ctx.world.now(), ctx.world.key()
    values |= {"id": key, "created_at": now}
    if sort.secret:
        values["secret"] = _sealed(ctx, sort, key, password)
    table = table_of(sort.table)
    async with ctx.write(PLATFORM) as session:
        await room(ctx, sort, 1)
        if "destination" in values:
            await _free(ctx, sort, values["destination"], ())
        await (await session.connection()).execute(insert(table).values(values))
        (row,) = await seen(ctx, sort, [key])
        await ctx.record(session, PLATFORM, sort.kind, [key])
        done = Done(f"{_named(sort)}Create", sort.name, key, after=facts(sort, row))
        await admin_log.note(ctx, session, done)
    return key


async def change(
    ctx: Context,
    sort: Sort,
    ids: Sequence[int],
    given: Mapping[str, Any],
    password: str | None = None,
) -> None:
    """Update rows of a routing table, all or none. Raises NotFound and the errors of `create_row`.

    Raises InvalidInput if a stored password would be sent to another server than before.
    """
    if not given and password is None:
        raise Invalid("say what to change", constraint="required", path=[])
    table = table_of(sort.table)
    async with ctx.write(PLATFORM) as session:
        before, connection = await seen(ctx, sort, ids), await session.connection()
        if "destination" in given and len(before) > 1:
            raise Conflict("only one can be for a destination", path=["destination"], index=1)
        for index, row in enumerate(before):
            values = _changed(ctx, sort, row, given, password, index=index)
            if values.get("destination", row_of(row, "destination")) != row_of(row, "destination"):
                await _free(ctx, sort, values["destination"], [row.id])
            await connection.execute(update(table).where(table.c.id == row.id).values(values))
        after = await seen(ctx, sort, ids)
        await ctx.record(session, PLATFORM, sort.kind, [row.id for row in before])
        told = (_told(sort, *pair, password) for pair in zip(before, after, strict=True))
        await admin_log.note(ctx, session, *told)


async def remove(ctx: Context, sort: Sort, ids: Sequence[int]) -> None:
    """Delete rows of a routing table, all or none.

    Domains that used a deleted relay host send directly then. Raises NotFound, and
    ServiceUnavailable if a domain began to use a relay host meanwhile.
    """
    used = await _users(ctx, sort, ids)
    async with ctx.write(PLATFORM, *used) as session:
        rows = await seen(ctx, sort, ids)
        table, connection = table_of(sort.table), await session.connection()
        if sort is RELAYS:
            if set(await _users(ctx, sort, ids)) - set(used):
                text = "a domain began to use it at this very moment: try again"
                raise Unavailable(text, component="store")
            mine = update(Domain).where(col(Domain.relay_host_id).in_(ids))
            await connection.execute(mine.values(relay_host_id=None, updated_at=ctx.world.now()))
        await connection.execute(delete(table).where(table.c.id.in_(ids)))
        told = {key: [(ChangeKind.DOMAIN_CHANGED, [key])] for key in used}
        here = [(sort.kind, [row.id for row in rows])]
        here += [(ChangeKind.DOMAIN_CHANGED, used)] if used else []
        await ctx.record_all(session, {**told, PLATFORM: here})
        done = (
            Done(f"{_named(sort)}Delete", sort.name, row.id, before=facts(sort, row))
            for row in rows
        )
        await admin_log.note(ctx, session, *done)


async def relay_host_there(ctx: Context, key: int, *, path: Sequence[str]) -> None:
    """Raise NotFound if there is no such relay host, in the transaction that uses it."""
    table = table_of(RELAYS.table)
    if not await ctx.read(select(table.c.id).where(table.c.id == key)):
        raise NotFound(str(key), path=path)


async def room(ctx: Context, sort: Sort, more: int) -> None:
    """Raise LimitReached if the routing table can't have this number of new rows."""
    (row,) = await ctx.read(select(func.count().label("many")).select_from(table_of(sort.table)))
    if row.many + more > sort.most:
        raise LimitReached(f"at most {sort.most}", limit=sort.most, used=row.many)


def facts(sort: Sort, row: Picked) -> dict[str, Any]:
    """Return the values of a row for the admin log."""
    return {WORDS.get(name, name): getattr(row, name) for name in sort.shown}


def row_of(row: Picked, name: str) -> Any:
    """Return a column of a row, or None if the row has no such column."""
    return getattr(row, name, None)


def _named(sort: Sort) -> str:
    return sort.name[0].lower() + sort.name[1:]


async def _users(ctx: Context, sort: Sort, ids: Sequence[int]) -> list[int]:
    if sort is not RELAYS:
        return []
    asked = select(col(Domain.id)).where(col(Domain.relay_host_id).in_(ids))
    return sorted(row.id for row in await ctx.read(asked))


async def _free(ctx: Context, sort: Sort, destination: str, but: Collection[int]) -> None:
    table = table_of(sort.table)
    taken = select(table.c.id).where(table.c.destination == destination, table.c.id.not_in(but))
    if await ctx.read(taken):
        raise Conflict(EXISTS, path=["destination"])


def _changed(  # noqa: PLR0913 - the row, its new values and its index
    ctx: Context,
    sort: Sort,
    row: Picked,
    given: Mapping[str, Any],
    password: str | None,
    *,
    index: int,
) -> dict[str, Any]:
    """Return the new columns of one row. Raises errors with this index."""
    try:
        values = _checked(sort, given, row._asdict(), password)
    except Refused as problem:
        for one in problem.each:
            one.index = index
        raise
    if "updated_at" in table_of(sort.table).c:
        values["updated_at"] = ctx.world.now()
    if password is not None:
        values["secret"] = _sealed(ctx, sort, row.id, password)
    elif "username" in values and values["username"] is None:
        values["secret"] = None
    return values


def _checked(
    sort: Sort, given: Mapping[str, Any], before: Mapping[str, Any], password: str | None
) -> dict[str, Any]:
    """Validate the given columns together with the stored ones.

    Raises InvalidInput, or MultipleErrors.
    """
    problems, values = Problems(), dict(given)
    if sort is RELAYS:
        _check_relay(values, problems)
    elif sort is TRANSPORTS:
        _check_transport(values, before, problems)
    else:
        _check_policy(values, before, problems)
    with problems.caught():
        if values.get("username") is not None:
            values["username"] = routing_validation.username(values["username"])
    with problems.caught():
        if password is not None:
            routing_validation.password(password)
    problems.settle()
    if sort.secret:
        _check_access(sort, values, before, password)
    return values


def _check_relay(values: dict[str, Any], problems: Problems) -> None:
    with problems.caught():
        if values.get("port") is not None:
            routing_validation.port(values["port"])
    with problems.caught():
        if "host" in values:
            name, number, _ = routing_validation.host_and_port(values["host"], path=["host"])
            values["host"] = name
            if number is not None and values.setdefault("port", number) != number:
                text = "the port is said twice, and differs"
                raise Invalid(text, constraint="exclusive", path=["port"])


def _check_transport(values: dict[str, Any], before: Mapping[str, Any], problems: Problems) -> None:
    with problems.caught():
        if "destination" in values:
            values["destination"] = routing_validation.destination(values["destination"])
    with problems.caught():
        if "next_hop" in values or "lookup_mx" in values:
            whole = {**before, **values}
            values["next_hop"] = routing_validation.next_hop(
                whole["next_hop"], lookup_mx=whole["lookup_mx"]
            )


def _check_policy(values: dict[str, Any], before: Mapping[str, Any], problems: Problems) -> None:
    with problems.caught():
        if "destination" in values:
            values["destination"] = routing_validation.tls_destination(values["destination"])
    with problems.caught():
        if "policy" in values or "parameters" in values:
            whole = {**before, **values}
            level = TlsPolicyLevel(whole["policy"])
            values["parameters"] = routing_validation.parameters(whole.get("parameters"), level)


def _check_access(
    sort: Sort, values: Mapping[str, Any], before: Mapping[str, Any], password: str | None
) -> None:
    """Raise InvalidInput unless username and password are both set or both missing.

    A stored password must be given again if the server changes.
    """
    name = values.get("username", before.get("username"))
    kept = bool(before.get(HAS_PASSWORD)) and name is not None
    if password is not None and name is None:
        raise Invalid("a password needs a user name", constraint="requires", path=["username"])
    if name is not None and password is None and not kept:
        raise Invalid("a user name needs a password", constraint="requires", path=["password"])
    if not kept or password is not None:
        return
    other = any(values.get(column, before[column]) != before[column] for column in LED[sort])
    if other:
        text = "the password has to be given once more for another way"
        raise Invalid(text, constraint="required", path=["password"])


def _sealed(ctx: Context, sort: Sort, key: int, password: str | None) -> str | None:
    if password is None:
        return None
    return ctx.world.vault.seal(password, PLACES[sort.table](key))


def _told(sort: Sort, row: Picked, now: Picked, password: str | None) -> Done:
    before, after = facts(sort, row), facts(sort, now)
    names = [name for name in after if before[name] != after[name]]
    old: dict[str, Any] = {name: before[name] for name in names}
    new: dict[str, Any] = {name: after[name] for name in names}
    if password is not None:
        new["password"] = password  # the admin log hides it
    return Done(f"{_named(sort)}Update", sort.name, row.id, None, old, new)
