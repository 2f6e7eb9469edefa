"""Creating, updating and deleting filters, each in one transaction that locks their owners."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.errors import Invalid, all_found
from models.events.journal import ChangeKind, Entry
from models.filters.tables import Filter
from models.store.columns import Picked, picked, table_of
from models.users.roles import AdminPermission, Role
from resolvers import sql_text
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.auth import security_log
from resolvers.auth.security_log import Event
from resolvers.context import Context, Needs
from resolvers.filters import validation as filter_validation
from resolvers.filters.loaders import all_of, check_room, used, visible
from resolvers.filters.validation import Checked, Whose
from resolvers.users.selection import managed_all

NAME = 255  # characters
ORDERS = range(-(1 << 31), 1 << 31)
LOGGED = ("name", "order", "active", "targets")  # columns in the admin log

Values = Mapping[str, Any]  # by column; query and action as in the input


@dataclass(frozen=True, slots=True)
class Prepared:
    """The columns of a validated new filter, and its targets."""

    row: dict[str, Any]
    fresh: Sequence[str]  # targets


async def create(ctx: Context, user_id: int | None, given: Values) -> int:
    """Create a filter and return its ID. Without `order` it runs last.

    Raises InvalidInput, Forbidden, LimitReached or NotFound.
    """
    owner = own(ctx) if user_id is None else user_id
    permitted(ctx, [owner])
    async with ctx.write(owner) as session:
        (user,) = await managed_all(ctx, [owner], path="user")
        await check_room(ctx, owner)
        made = await prepared(ctx, owner, given)
        made.row.setdefault("order", await behind_all(ctx, owner))
        await store(ctx, session, user, [made], "filterCreate")
    return int(made.row["id"])


async def prepared(ctx: Context, owner: int, given: Values) -> Prepared:
    """Validate a new filter and return its columns, without `order` unless it is given.

    Raises InvalidInput or NotFound.
    """
    key = ctx.world.key()
    query = filter_validation.query(given["query"], {}, ["query"])
    done = await filter_validation.action(ctx, given["action"], Whose(key, owner), ["action"])
    filter_validation.check_script(key, query, done)
    row = {
        "id": key,
        "user_id": owner,
        "name": "",
        "active": True,
        "meta_data": None,
        "match_count": 0,
        "created_at": ctx.world.now(),
        **_plain(given, ()),
        **_stored(query, done),
    }
    return Prepared(row, done.fresh)


async def store(
    ctx: Context, session: AsyncSession, user: Picked, made: Sequence[Prepared], mutation: str
) -> None:
    """Insert filters of a user with a locked stream, and record and log it."""
    rows = {int(one.row["id"]): one for one in made}
    if rows:
        table = table_of(Filter)
        await (await session.connection()).execute(insert(table), [one.row for one in made])
        await ctx.record(session, user.id, ChangeKind.FILTER_CHANGED, list(rows))
    await _security(ctx, session, {key: (user.id, one.fresh) for key, one in rows.items()})
    await _log(ctx, session, mutation, {key: (user, None, one.row) for key, one in rows.items()})


async def clear(ctx: Context, session: AsyncSession, user: Picked, mutation: str) -> None:
    """Delete all filters of a user with a locked stream, and record and log it."""
    rows = await all_of(ctx, user.id)
    await _delete(session, [row.id for row in rows])
    await _tell(ctx, session, rows)
    await _log(ctx, session, mutation, {row.id: (user, row._asdict(), None) for row in rows})


async def behind_all(ctx: Context, owner: int) -> int:
    """Return the order number after all filters of a user."""
    statement = select(func.max(col(Filter.order)).label("last")).where(
        col(Filter.user_id) == owner
    )
    (row,) = await ctx.read(statement)
    return 0 if row.last is None else min(row.last + 1, ORDERS[-1])


async def change(ctx: Context, ids: Sequence[int], given: Values) -> None:
    """Update filters, all or none. Parts of query and action that are not given stay.

    Raises InvalidInput, NotFound or Forbidden.
    """
    if not given:
        raise Invalid("say what to change", constraint="required", path=["set"])
    known = await _rows(ctx, ids)
    all_found(ids, {row.id for row in known})
    owners = {row.user_id for row in known}
    permitted(ctx, owners)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        rows = await _rows(ctx, ids)
        all_found(ids, {row.id for row in rows})
        made, fresh = dict[int, dict[str, Any]](), dict[int, tuple[int, Sequence[str]]]()
        for row in rows:
            values, done = await _changed(ctx, row, given)
            made[row.id] = {k: v for k, v in values.items() if getattr(row, k) != v}
            fresh[row.id] = (row.user_id, done.fresh)
        connection = await session.connection()
        for key, values in made.items():
            if values:
                await connection.execute(
                    update(table_of(Filter)).where(col(Filter.id) == key).values(values)
                )
        told = [row for row in rows if made[row.id]]
        await _tell(ctx, session, told)
        await _security(ctx, session, fresh)
        log = {row.id: (users[row.user_id], row._asdict(), made[row.id]) for row in told}
        await _log(ctx, session, "filterUpdate", log)


async def _changed(ctx: Context, row: Picked, given: Values) -> tuple[dict[str, Any], Checked]:
    """Return the new column values and the validated action."""
    query, at = row.query, ["set", "query"]
    if given.get("query") is not None:
        query = filter_validation.query(given["query"], row.query, at)
    done = Checked(row.action, row.targets, row.relays)
    if given.get("action") is not None:
        whose = Whose(row.id, row.user_id, row.action, row.targets, row.relays)
        done = await filter_validation.action(ctx, given["action"], whose, ["set", "action"])
    filter_validation.check_script(row.id, query, done)
    return {**_plain(given, ("set",)), **_stored(query, done)}, done


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete filters, all or none. Raises NotFound or Forbidden."""
    known = await _rows(ctx, ids)
    all_found(ids, {row.id for row in known})
    owners = {row.user_id for row in known}
    permitted(ctx, owners)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        rows = await _rows(ctx, ids)
        all_found(ids, {row.id for row in rows})
        await _delete(session, [row.id for row in rows])
        await _tell(ctx, session, rows)
        log = {row.id: (users[row.user_id], row._asdict(), None) for row in rows}
        await _log(ctx, session, "filterDelete", log)


async def without(
    ctx: Context, session: AsyncSession, gone: Mapping[int, Collection[int]]
) -> dict[int, list[Entry]]:
    """Delete the filters that use one of these mailboxes. Returns the journal entries by user.

    The users' streams are locked.
    """
    statement = select(*picked(Filter, ("id", "user_id", "action"))).where(
        col(Filter.user_id).in_(gone)
    )
    rows = (await (await session.connection()).execute(statement)).all()
    lost = [row for row in rows if set(gone[row.user_id]).intersection(used(row.action))]
    await _delete(session, [row.id for row in lost])
    return {
        user: ctx.entries(
            ChangeKind.FILTER_CHANGED, sorted(row.id for row in lost if row.user_id == user)
        )
        for user in {row.user_id for row in lost}
    }


async def _delete(session: AsyncSession, ids: Sequence[int]) -> None:
    if ids:
        table = table_of(Filter)
        await (await session.connection()).execute(delete(table).where(table.c.id.in_(ids)))


async def _rows(ctx: Context, ids: Sequence[int]) -> Sequence[Picked]:
    statement = select(*picked(Filter)).where(visible(ctx), col(Filter.id).in_(ids))
    return await ctx.read(statement.order_by(col(Filter.id)))


def permitted(ctx: Context, owners: Collection[int]) -> None:
    """Raise Forbidden if a DOMAIN_ADMIN lacks the permission FILTERS for filters of others."""
    if set(owners) - {ctx.viewer.user_id}:
        needs = Needs(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.FILTERS)
        ctx.viewer.require(needs)


def _plain(given: Values, at: Sequence[str]) -> dict[str, Any]:
    """Return the columns that are stored as given.

    For most, None means no change. Raises InvalidInput.
    """
    found: dict[str, Any] = {}
    if "name" in given:
        found["name"] = sql_text.checked(given["name"], most=NAME, path=[*at, "name"]) or ""
    if given.get("active") is not None:
        found["active"] = given["active"]
    if given.get("order") is not None:
        if given["order"] not in ORDERS:
            raise Invalid("a number of 32 bits", constraint="range", path=[*at, "order"])
        found["order"] = given["order"]
    if "meta_data" in given:
        found["meta_data"] = given["meta_data"]
    return found


def _stored(query: dict[str, Any], done: Checked) -> dict[str, Any]:
    return {
        "query": query,
        "action": done.action,
        "targets": list(done.targets),
        "relays": done.relays,
    }


async def _tell(ctx: Context, session: AsyncSession, rows: Sequence[Picked]) -> None:
    told: dict[int, list[int]] = {}
    for row in rows:
        told.setdefault(row.user_id, []).append(row.id)
    kinds = {user: [(ChangeKind.FILTER_CHANGED, keys)] for user, keys in told.items()}
    if kinds:
        await ctx.record_all(session, kinds)


async def _security(
    ctx: Context, session: AsyncSession, fresh: Mapping[int, tuple[int, Sequence[str]]]
) -> None:
    """Write each new target to the owner's security log, since an attacker often adds forwards."""
    events = [
        Event("filter forward", owner, target=_host(one))
        for owner, shown in fresh.values()
        for one in shown
    ]
    await security_log.note_all(ctx, session, events)


def _host(target: str) -> str:
    """Return a target without the parts of a URL that can be secret."""
    if "://" not in target:
        return target
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname}"


async def _log(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    done: Mapping[int, tuple[Picked, Values | None, Values | None]],
) -> None:
    """Log changes of other users' filters for administrators."""

    def said(values: Values | None) -> dict[str, Any] | None:
        if values is None:
            return None
        told = {name: values[name] for name in LOGGED if name in values}
        if "targets" in told:
            told["targets"] = [_host(one) for one in told["targets"]]
        return told

    deeds = [
        Done(mutation, "Filter", key, user.domain_id, said(before), said(after))
        for key, (user, before, after) in done.items()
        if user.id != ctx.viewer.user_id
    ]
    await admin_log.note(ctx, session, *deeds)
