"""Automatic answers: what accounts have answered while somebody is away."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col

from mail import addresses
from mail import autoreply as answering
from mail.archives.records import moment
from mail.autoreply import Rule
from models import journal
from models.addresses import Address
from models.autoreply import Autoreply, AutoreplySender
from models.columns import Picked, insert_or, picked, table_of
from models.errors import Invalid, NotFound, Problems
from models.journal import ChangeKind, Entry
from models.roles import Scope, opened
from models.users import User
from resolvers import adminlog
from resolvers.access import own, visible_users
from resolvers.adminlog import Done
from resolvers.context import Context
from resolvers.userfacts import camel
from resolvers.userholding import Held, changing
from resolvers.userselection import Users, chosen

AT = "set"  # where the patch is in the input
NAME = 128  # characters
SUBJECT = 2 << 10  # bytes
TEXT = 128 << 10
ADDRESSES = 50
KINDS = {"enabled": bool, "interval": int, "addresses": list}  # in files; else text
HOUR, LONGEST = timedelta(hours=1), timedelta(days=366)
RULE = tuple(field.name for field in fields(Rule))
PLAIN = tuple(name for name in RULE if name != "addresses")
FACTS = (*RULE, "interval")
# Another of these is another absence: whoever had an answer gets one of it.
ABSENCE = frozenset(RULE) - {"enabled", "name", "addresses"}
WORDS = frozenset(name for name in RULE if name.endswith(("text", "html", "subject")))
HIDDEN = WORDS | {"addresses"}  # of these the log has only that they are others
SHOWING = frozenset({Scope.READ, Scope.SETTINGS})  # either shows what is answered
_ODD = re.compile("[\0\ud800-\udfff]")
_CONTROLS = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Standing:
    """What an account has answered, or would have if it were set: then `created_at` is None."""

    id: int  # of the account
    rule: Rule
    addresses: Sequence[str]  # those of the rule, as they are written
    interval: timedelta
    active_now: bool
    created_at: datetime | None


# ---------------------------------------------------------------- reading


async def of_users(ctx: Context, ids: list[int]) -> list[Standing | None]:
    """The answers of these accounts, in this order; None where the viewer sees no such account."""
    asked = (
        select(col(User.id).label("its"), *picked(Autoreply, {*FACTS, "created_at"}))
        .outerjoin(Autoreply, col(Autoreply.id) == col(User.id))
        .where(col(User.id).in_(ids), visible_users(ctx))
    )
    rows = await ctx.read(asked)
    shown = await _shown(ctx, [key for row in rows for key in row.addresses or ()])
    found = {row.its: _standing(ctx, row.its, row, shown) for row in rows}
    return [found.get(key) for key in ids]


async def _shown(ctx: Context, ids: Sequence[int]) -> dict[int, str]:
    """How these addresses are written, by key; without those that are gone."""
    if not ids:
        return {}
    asked = select(col(Address.id), col(Address.shown)).where(col(Address.id).in_(set(ids)))
    return {row.id: row.shown for row in await ctx.read(asked)}


async def by_ids(ctx: Context, ids: list[int]) -> list[Standing | None]:
    """The same, and None where none is set, or the credential shows no settings."""
    if not SHOWING & opened(ctx.viewer.scopes):
        return [None] * len(ids)
    return [one if one and one.created_at else None for one in await of_users(ctx, ids)]


def _standing(ctx: Context, key: int, row: Any, shown: Mapping[int, str]) -> Standing:
    rule = Rule() if row.created_at is None else Rule.of(row)
    interval = ctx.world.options.autoreply_interval
    if row.interval is not None:
        interval = timedelta(seconds=row.interval)
    active = rule.silent(ctx.world.now()) is None
    written = [shown[each] for each in rule.addresses if each in shown]
    return Standing(key, rule, written, interval, active, row.created_at)


# ---------------------------------------------------------------- files


async def exported(ctx: Context, user_id: int) -> dict[str, Any] | None:
    """What an account has answered, by column; None where nothing is set."""
    asked = select(*picked(Autoreply, FACTS)).where(col(Autoreply.id) == user_id)
    row = next(iter(await ctx.read(asked.where(col(Autoreply.user_id) == own(ctx)))), None)
    if row is None:
        return None
    shown = await _shown(ctx, row.addresses)
    return {**row._asdict(), "addresses": list(shown.values())}


def brought(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of an answer, as `set_` takes it. Invalid, or Wrong, where it cannot be."""
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


# ---------------------------------------------------------------- changing


async def set_(ctx: Context, users: Users, given: Mapping[str, Any]) -> list[int]:
    """Change what these accounts have answered, all or none; returns their ids.

    `given` is by column, what is not given stays. Where words or times differ, or it is switched
    on, another absence begins: all senders are answered once more.
    """
    if not given:
        raise Invalid("change at least one thing", constraint="required", path=[AT])
    problems = Problems()
    values = _checked(given, problems)
    problems.settle()
    if values.get("addresses"):
        values["addresses"] = await _owned(ctx, users, values["addresses"])
    now = ctx.world.now()
    async with changing(ctx, users, "autoreplySet") as held:
        were = await _there(held)
        made = {row.id: _made(row.id, were.get(row.id), values, now) for row in held.rows}
        news = {key: _news(were.get(key), row) for key, row in made.items()}
        told = {key: names for key, names in news.items() if names or key not in were}
        await _write(held, [made[key] for key in told])
        anew = [key for key, names in told.items() if _begins(names, made[key])]
        await _forget(held, anew)
        await _tell(ctx, held, told, {key: made[key] for key in told})
        await _log(ctx, held, "autoreplySet", (were, told, made))
    return [row.id for row in held.rows]


async def remove(ctx: Context, users: Users) -> list[int]:
    """Forget what these accounts have answered; returns their ids."""
    async with changing(ctx, users, "autoreplyDelete") as held:
        were = await _there(held)
        gone = delete(Autoreply).where(col(Autoreply.id).in_(list(were)))
        await (await held.session.connection()).execute(gone)
        off = {key: {"enabled": False} for key in were}
        told = {key: ["enabled"] if row.enabled else [] for key, row in were.items()}
        await _tell(ctx, held, told, off)
        await _log(ctx, held, "autoreplyDelete", (were, told, off))
    return [row.id for row in held.rows]


def _checked(given: Mapping[str, Any], problems: Problems) -> dict[str, Any]:
    """What is given as it is stored; what cannot be is told to `problems`."""
    found = dict[str, Any]()
    for name, value in given.items():
        path = [AT, camel(name)]
        with problems.caught():
            found[name] = _value(name, value, path)
    begin, end = found.get("starts_at"), found.get("ends_at")
    with problems.caught():
        _check_times(begin, end)
    return found


def _value(name: str, value: Any, path: Sequence[str]) -> Any:
    if name == "interval":
        return None if value is None else _seconds(value, path)
    if name == "addresses":
        return list(value or ())
    if name not in WORDS and name != "name":
        return value
    if value is None:
        return None if name == "name" or name.startswith("internal") else ""
    if name == "name":
        if len(value) > NAME or _CONTROLS.search(value):
            text = f"at most {NAME} characters, and no control characters"
            raise Invalid(text, constraint="pattern", path=path)
        return value.strip() or None
    line = name.endswith("subject")
    if (_CONTROLS if line else _ODD).search(value):
        text = "one line, without control characters" if line else "text has no NUL"
        raise Invalid(text, constraint="pattern", path=path)
    most = SUBJECT if line else TEXT
    if len(value.encode()) > most:
        raise Invalid(f"at most {most} bytes", constraint="max", path=path)
    return value.strip() if line else value


def _seconds(interval: timedelta, path: Sequence[str]) -> int:
    if not HOUR <= interval <= LONGEST:
        raise Invalid("from an hour to 366 days", constraint="range", path=path)
    return int(interval.total_seconds())


def _check_times(begin: datetime | None, end: datetime | None) -> None:
    if begin and end and end <= begin:
        text = "it ends before it begins"
        raise Invalid(text, constraint="range", path=[AT, "endsAt"])


async def _owned(ctx: Context, users: Users, given: Sequence[str]) -> list[int]:
    """The keys of these addresses, each once.

    NotFound where one is not the account's; Invalid for one that only a pattern takes, and where
    there are many, or many accounts.
    """
    path = [AT, "addresses"]
    if len(given) > ADDRESSES:
        raise Invalid(f"at most {ADDRESSES} addresses", constraint="max", path=path)
    rows = await chosen(ctx, users)
    if len(rows) > 1:
        text = "addresses are of one account only"
        raise Invalid(text, constraint="exclusive", path=path)
    found = list[int]()
    for index, text in enumerate(given):
        try:
            address = addresses.checked(text)
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


async def _there(held: Held) -> dict[int, Picked]:
    """What is set of the accounts that are held."""
    asked = select(*picked(Autoreply)).where(col(Autoreply.id).in_([row.id for row in held.rows]))
    found = (await (await held.session.connection()).execute(asked)).all()
    return {row.id: row for row in found}


def _made(
    key: int, before: Picked | None, values: Mapping[str, Any], now: datetime
) -> dict[str, Any]:
    """The row as it is to be; Invalid where it says nothing, or ends before it begins."""
    new: dict[str, Any] = {
        **{name: getattr(Rule(), name) for name in RULE},
        "id": key,
        "user_id": key,
        "address_id": None,
        "interval": None,
        "addresses": [],
        "created_at": now,
    }
    if before is not None:
        new |= before._asdict()
    new |= values
    _check_times(new["starts_at"], new["ends_at"])
    words = (new[name] for name in WORDS if not name.endswith("subject"))
    if new["enabled"] and not any(text and text.strip() for text in words):
        text = "there is nothing to answer: give text or html"
        raise Invalid(text, constraint="required", path=[AT, "text"])
    return new | {"updated_at": now}


def _news(before: Picked | None, row: Mapping[str, Any]) -> list[str]:
    """The columns that are another now."""
    if before is None:
        return [name for name in FACTS if row[name] not in (None, "", False, [])]
    return [name for name in FACTS if row[name] != getattr(before, name)]


def _begins(names: Sequence[str], row: Mapping[str, Any]) -> bool:
    """Whether another absence begins."""
    return bool(ABSENCE.intersection(names)) or ("enabled" in names and row["enabled"])


async def _write(held: Held, rows: Sequence[Mapping[str, Any]]) -> None:
    if rows:
        connection = await held.session.connection()
        new = insert_or(connection.dialect.name, Autoreply)
        fresh = {
            column.name: new.excluded[column.name]
            for column in table_of(Autoreply).c
            if not (column.primary_key or column.name == "created_at")
        }
        put = new.on_conflict_do_update(index_elements=["id"], set_=fresh)
        await connection.execute(put, [dict(row) for row in rows])


async def _forget(held: Held, ids: Sequence[int]) -> None:
    if ids:
        theirs = col(AutoreplySender.autoreply_id).in_(ids)
        await (await held.session.connection()).execute(delete(AutoreplySender).where(theirs))


async def _tell(
    ctx: Context,
    held: Held,
    told: Mapping[int, Sequence[str]],
    made: Mapping[int, Mapping[str, Any]],
) -> None:
    """Write into the journals of accounts what is new, and whether it was switched."""
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
    """Note for administrators what was done to others; of words only that they are others."""
    were, told, made = done

    def plain(value: Any) -> Any:
        return value.isoformat() if isinstance(value, datetime) else value

    deeds = []
    for row in held.rows:
        if row.id in told and row.id != ctx.viewer.user_id:
            names, was = [name for name in told[row.id] if name not in HIDDEN], were.get(row.id)
            before = {name: plain(getattr(was, name, None)) for name in names}
            after = {name: plain(made[row.id][name]) for name in names}
            after |= {name: "…" for name in told[row.id] if name in HIDDEN}
            deeds.append(Done(mutation, "User", row.id, row.domain_id, before, after))
    await adminlog.note(ctx, held.session, *deeds)
