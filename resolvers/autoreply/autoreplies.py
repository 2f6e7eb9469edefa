"""Read and set the autoreplies of users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail import autoreply as answering
from mail.addresses import address_syntax
from mail.archives.json_lines import moment
from mail.autoreply import Rule
from models.addresses.tables import Address, AddressKind
from models.autoreply import Autoreply
from models.errors import Invalid, NotFound, Problems
from models.events import journal
from models.events.journal import ChangeKind, Entry
from models.store.columns import picked
from models.users.roles import Scope, opened
from models.users.tables import User
from resolvers.access import overseen_users, own
from resolvers.addresses.loaders import visible_addresses
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.autoreply.validation import (
    FACTS,
    LONGEST,
    facts,
    forget,
    logged,
    made,
    news,
    there,
    write,
)
from resolvers.context import Context
from resolvers.users.selection import Users, chosen
from resolvers.users.user_locks import Held, changing
from resolvers.users.validation import camel

AT = ("set",)  # the place of the patch in the input
ADDRESSES = 50
KINDS = {
    "enabled": bool,
    "interval": int,
    "addresses": list,
}  # in export files; other columns are text
SHOWING = frozenset({Scope.READ, Scope.SETTINGS})  # one of them is needed to load autoreplies by id


@dataclass(frozen=True, slots=True)
class Standing:
    """The autoreply of a user or an address. If `created_at` is None, none is set."""

    id: int  # of the user or the address
    rule: Rule
    addresses: Sequence[str]  # of the rule, in the form shown to users
    interval: timedelta
    active_now: bool
    created_at: datetime | None
    address: str | None = None  # None for the autoreply of a user


async def of_users(ctx: Context, ids: list[int]) -> list[Standing | None]:
    """Load the autoreplies of users, in the given order. None for users the viewer can't see."""
    asked = (
        select(col(User.id).label("its"), *picked(Autoreply, {*FACTS, "created_at"}))
        .outerjoin(Autoreply, col(Autoreply.id) == col(User.id))
        .where(col(User.id).in_(ids), overseen_users(ctx))
    )
    rows = await ctx.read(asked)
    shown = await _shown(ctx, [key for row in rows for key in row.addresses or ()])
    found = {row.its: _standing(ctx, row.its, row, shown) for row in rows}
    return [found.get(key) for key in ids]


async def _shown(ctx: Context, ids: Sequence[int]) -> dict[int, str]:
    """Load the texts of addresses by id, without deleted ones."""
    if not ids:
        return {}
    asked = select(col(Address.id), col(Address.shown)).where(col(Address.id).in_(set(ids)))
    return {row.id: row.shown for row in await ctx.read(asked)}


async def by_ids(ctx: Context, ids: list[int]) -> list[Standing | None]:
    """Load autoreplies by the id of their user or address, in the given order.

    None if none is set, the viewer can't see it, or the credential has no scope in READ_SCOPES.
    """
    if not SHOWING & opened(ctx.viewer.scopes):
        return [None] * len(ids)
    found = dict(zip(ids, await of_users(ctx, ids), strict=True))
    rest = [key for key, one in found.items() if one is None]
    found |= zip(rest, await of_addresses(ctx, rest), strict=True)
    return [one if one and one.created_at else None for one in (found[key] for key in ids)]


async def of_addresses(ctx: Context, ids: list[int]) -> list[Standing | None]:
    """Load the autoreplies of forwarding addresses, in the given order. None for others."""
    asked = (
        select(
            *(col(Address.id).label("its"), col(Address.shown)),
            *picked(Autoreply, {*FACTS, "created_at"}),
        )
        .outerjoin(Autoreply, col(Autoreply.id) == col(Address.id))
        .where(
            col(Address.id).in_(ids),
            col(Address.kind) == AddressKind.FORWARD,
            visible_addresses(ctx),
        )
    )
    rows = await ctx.read(asked) if ids else ()
    found = {row.its: replace(_standing(ctx, row.its, row, {}), address=row.shown) for row in rows}
    return [found.get(key) for key in ids]


def _standing(ctx: Context, key: int, row: Any, shown: Mapping[int, str]) -> Standing:
    rule = Rule() if row.created_at is None else Rule.of(row)
    interval = ctx.world.options.autoreply_interval
    if row.interval is not None:
        interval = timedelta(seconds=row.interval)
    active = rule.silent(ctx.world.now()) is None
    written = [shown[each] for each in rule.addresses if each in shown]
    return Standing(key, rule, written, interval, active, row.created_at)


async def exported(ctx: Context, user_id: int) -> dict[str, Any] | None:
    """Return the autoreply of the viewer by column for an export, or None if none is set."""
    asked = select(*picked(Autoreply, FACTS)).where(col(Autoreply.id) == user_id)
    row = next(iter(await ctx.read(asked.where(col(Autoreply.user_id) == own(ctx)))), None)
    if row is None:
        return None
    shown = await _shown(ctx, row.addresses)
    return {**row._asdict(), "addresses": list(shown.values())}


def brought(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of an exported autoreply as `set_autoreplies` takes them.

    Raises InvalidInput or the error of a wrong time value.
    """
    found: dict[str, Any] = {}
    for name in FACTS:
        value = given.get(name)
        kind: Any = KINDS.get(name, str)
        if value is not None and not isinstance(value, kind):
            raise Invalid("not what it must be", constraint="type", path=[name])
        if name.endswith("_at"):
            value = moment(value)
        elif name == "interval" and value is not None:
            value = timedelta(seconds=max(0, min(value, int(LONGEST.total_seconds()))))
        elif name == "addresses" and not all(isinstance(each, str) for each in value or ()):
            raise Invalid("not what it must be", constraint="type", path=[name])
        found[name] = bool(value) if name == "enabled" else value
    return found


async def set_(ctx: Context, users: Users, given: Mapping[str, Any]) -> list[int]:
    """Change the autoreplies of users, all or none, and return the user ids.

    Columns that are not given stay. If texts or times change, or the autoreply is enabled,
    every sender gets a reply again. Raises InvalidInput, NotFound or Forbidden.
    """
    if not given:
        raise Invalid("change at least one thing", constraint="required", path=AT)
    problems = Problems()
    values = facts(given, problems, AT)
    problems.settle()
    if values.get("addresses"):
        values["addresses"] = await _owned(ctx, users, values["addresses"])
    now = ctx.world.now()
    async with changing(ctx, users, "autoreplySet") as held:
        were = await there(held.session, [row.id for row in held.rows])
        rows = dict[int, dict[str, Any]]()
        for row in held.rows:
            whose = {"id": row.id, "user_id": row.id}
            rows[row.id] = made(whose, were.get(row.id), values, now, AT)
        differing = {key: news(were.get(key), row) for key, row in rows.items()}
        told = {key: names for key, names in differing.items() if names or key not in were}
        await write(held.session, {key: rows[key] for key in told}, told)
        await _tell(ctx, held, told, rows)
        await _log(ctx, held, "autoreplySet", (were, told, rows))
    return [row.id for row in held.rows]


async def remove(ctx: Context, users: Users) -> list[int]:
    """Delete the autoreplies of users and return the user ids."""
    async with changing(ctx, users, "autoreplyDelete") as held:
        were = await there(held.session, [row.id for row in held.rows])
        await forget(held.session, were)
        off = {key: {"enabled": False} for key in were}
        told = {key: ["enabled"] if row.enabled else [] for key, row in were.items()}
        await _tell(ctx, held, told, off)
        await _log(ctx, held, "autoreplyDelete", (were, told, off))
    return [row.id for row in held.rows]


async def _owned(ctx: Context, users: Users, given: Sequence[str]) -> list[int]:
    """Return the ids of the user's addresses, each once.

    Raises NotFound if one is not the user's, InvalidInput if one is received by a catch-all
    only, there are too many, or there is more than one user.
    """
    path = [*AT, "addresses"]
    if len(given) > ADDRESSES:
        raise Invalid(f"at most {ADDRESSES} addresses", constraint="max", path=path)
    rows = await chosen(ctx, users)
    if len(rows) > 1:
        text = "addresses are of one account only"
        raise Invalid(text, constraint="exclusive", path=path)
    found = list[int]()
    for index, text in enumerate(given):
        try:
            address = address_syntax.checked(text)
        except Invalid as wrong:
            rule = wrong.constraint
            raise Invalid(wrong.message, constraint=rule, path=path, index=index) from wrong
        row = await answering.taker(ctx.world, address)
        if row is None or not rows or row.user_id != rows[0].id:
            raise NotFound(text, path=path, index=index)
        if "*" in row.local:
            words = "a pattern takes its mail: give it an address of its own first"
            raise Invalid(words, constraint="pattern", path=path, index=index)
        found.append(row.id)
    return list(dict.fromkeys(found))


async def _tell(
    ctx: Context,
    held: Held,
    told: Mapping[int, Sequence[str]],
    made: Mapping[int, Mapping[str, Any]],
) -> None:
    """Record the changed columns in the streams of users, and whether it was switched."""
    entries = dict[int, Sequence[Entry]]()
    for key, names in told.items():
        facts: dict[str, Any] = {"changed": [sorted(map(camel, names))]}
        if "enabled" in names:
            facts["did"] = "enabled" if made[key]["enabled"] else "disabled"
        entries[key] = ctx.entries(ChangeKind.AUTOREPLY_CHANGED, [key], **facts)
    await journal.record_all(held.session, entries, at=ctx.world.now())


async def _log(
    ctx: Context,
    held: Held,
    mutation: str,
    done: tuple[Mapping[int, Any], Mapping[int, Sequence[str]], Mapping[int, Mapping[str, Any]]],
) -> None:
    """Write changes of other users' autoreplies to the admin log, without texts."""
    were, told, rows = done
    deeds = []
    for row in held.rows:
        if row.id in told and row.id != ctx.viewer.user_id:
            before, after = logged(were.get(row.id), rows[row.id], told[row.id])
            deeds.append(Done(mutation, "User", row.id, row.domain_id, before, after))
    await admin_log.note(ctx, held.session, *deeds)
