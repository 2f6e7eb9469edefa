"""Settings in the database: read, changed and applied while the process runs."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Connection, delete, func, insert, literal, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.settings import SettingChange, SettingValue
from models.domains.tables import Domain
from models.errors import Invalid, LimitReached
from models.events.journal import PLATFORM, ChangeKind, Stream
from models.runtime.environment import Adopted, World
from models.store.columns import Big, Picked, insert_or, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers import pagination
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.admin.setting_definitions import (
    CUSTOM,
    DECLARED,
    Kind,
    Plain,
    checked_key,
    custom_value,
    effective,
    kind_of,
)
from resolvers.auth.security_log import actor
from resolvers.context import Context, Needs
from resolvers.pagination import Scan, by_keys, together

log = logging.getLogger(__name__)

OPERATORS = Needs(role=Role.ADMIN, scope=Scope.MASTER)
READERS = Needs(role=Role.ADMIN, scope=Scope.READ)
CUSTOMS = 200
MOST = 100
LOOK = 1.0  # between checks for changes whose wake-up was lost
NEWEST = "settings-newest"
STORED = select(*picked(SettingValue, ("key", "value")))


@dataclass(frozen=True, slots=True)
class Found:
    """A setting with its current value."""

    key: str
    value: Plain
    kind: Kind
    custom: bool  # a value is set
    default: Plain = None
    name: str | None = None
    description: str | None = None
    restart_required: bool = False


async def all_of(ctx: Context, part: str | None = None) -> list[Found]:
    """Return the settings with a key that contains this text in any case, ordered by key.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READERS)
    stored, part = await _stored(ctx), (part or "").casefold()
    keys = sorted({*DECLARED, *(key for key in stored if key.startswith(CUSTOM))})
    return [_found(ctx.world, key, stored) for key in keys if part in key.casefold()]


async def one(ctx: Context, key: str) -> Found | None:
    """Return the setting of a key, or None. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READERS)
    stored = await _stored(ctx)
    known = key in DECLARED or (key.startswith(CUSTOM) and key in stored)
    return _found(ctx.world, key, stored) if known else None


async def _stored(ctx: Context) -> dict[str, Any]:
    return _by_key(await ctx.read(STORED))


def _by_key(rows: Sequence[Picked]) -> dict[str, Any]:
    return {row.key: row.value["value"] for row in rows}


def _found(world: World, key: str, stored: Mapping[str, Any]) -> Found:
    declared = DECLARED.get(key)
    if declared is None:
        return Found(key, stored[key], kind_of(stored[key]), custom=True)
    default = declared.standing(world.base)
    value, custom = default, False
    if key in stored:
        with suppress(Invalid):  # of another version: the default applies
            value, custom = declared.plain(declared.parse(stored[key])), True
    return Found(
        key,
        value,
        declared.kind,
        custom,
        default,
        declared.name,
        declared.description,
        declared.restart_required,
    )


async def put(ctx: Context, key: str, value: object) -> Found:
    """Store the value of a setting; this process uses it as soon as the commit is durable.

    Raises Forbidden, and InvalidInput if the key is unknown or the value has the wrong type or
    is out of range.
    """
    ctx.viewer.require(OPERATORS)
    checked_key(key)
    declared = DECLARED.get(key)
    plain = declared.plain(declared.parse(value)) if declared else custom_value(value)
    async with ctx.write(PLATFORM) as session:
        stored = await _held(session)
        if _json(stored, key) != _json({key: plain}, key):
            await _change(ctx, session, stored, {**stored, key: plain}, "settingSet")
    return _found(ctx.world, key, {key: plain})


async def drop(ctx: Context, keys: Sequence[str]) -> tuple[list[Found], list[int]]:
    """Delete the stored values of settings, so that their defaults apply.

    Returns the settings with a definition, and the indexes of keys that had no stored value.
    Custom settings are deleted. Raises Forbidden or InvalidInput.
    """
    ctx.viewer.require(OPERATORS)
    if len(keys) > MOST:
        raise Invalid(f"at most {MOST} at once", constraint="max", path=["keys"])
    for index, key in enumerate(keys):
        checked_key(key, path=("keys",), index=index)
    async with ctx.write(PLATFORM) as session:
        stored = await _held(session)
        left = {key: value for key, value in stored.items() if key not in keys}
        if left != stored:
            await _change(ctx, session, stored, left, "settingDelete")
    already = [index for index, key in enumerate(keys) if key not in stored]
    there = [_found(ctx.world, key, {}) for key in dict.fromkeys(keys) if key in DECLARED]
    return there, already


async def _held(session: AsyncSession) -> dict[str, Any]:
    """Return the stored values, which no other transaction can change before this one ends."""
    return _by_key((await (await session.connection()).execute(STORED)).all())


async def _change(
    ctx: Context,
    session: AsyncSession,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    mutation: str,
) -> None:
    """Store the differing values with history, admin log and journal entries.

    The options apply when the transaction is committed. Raises LimitReached if there are too
    many custom settings.
    """
    if len([key for key in after if key.startswith(CUSTOM)]) > CUSTOMS:
        text = f"at most {CUSTOMS} settings of your own"
        raise LimitReached(text, limit=CUSTOMS, used=CUSTOMS, path=["key"])
    keys = sorted({*before, *after})
    changed = [key for key in keys if _json(before, key) != _json(after, key)]
    actor_id, name = await actor(session, ctx.viewer)
    now, base = ctx.world.now(), ctx.world.base
    ids = [ctx.world.key() for _ in changed]
    rows = [
        {
            "id": row_id,
            "key": key,
            "before": {"value": before[key]} if key in before else None,
            "after": {"value": after[key]} if key in after else None,
            "at": now,
            "actor": name,
            "actor_id": actor_id or None,
            "reason": ctx.reason,
        }
        for row_id, key in zip(ids, changed, strict=True)
    ]
    connection = await session.connection()
    await connection.run_sync(_store, {key: after[key] for key in changed if key in after}, now)
    gone = [key for key in changed if key not in after]
    await connection.execute(delete(SettingValue).where(col(SettingValue.key).in_(gone)))
    await connection.execute(insert(SettingChange), rows)
    await admin_log.note(
        ctx,
        session,
        *(
            Done(
                mutation,
                "Setting",
                before={key: before[key]} if key in before else None,
                after={key: after[key]} if key in after else None,
            )
            for key in changed
        ),
    )
    (was, _), (options, _) = effective(base, before), effective(base, after)
    await _allocate(ctx, session, options.default_quota - was.default_quota)
    number = await ctx.record(session, PLATFORM, ChangeKind.SETTING_CHANGED, ids, key=changed)
    session.info[Adopted] = Adopted(options, number)


def _json(stored: Mapping[str, Any], key: str) -> bytes | None:
    """Return the canonical JSON of a stored value, or None."""
    return orjson.dumps(stored[key]) if key in stored else None


def _store(connection: Connection, values: Mapping[str, Any], now: Any) -> None:
    if values:
        new = insert_or(connection.dialect.name, SettingValue).values(
            [
                {"key": key, "value": {"value": value}, "updated_at": now}
                for key, value in values.items()
            ]
        )
        changed = {name: new.excluded[name] for name in ("value", "updated_at")}
        connection.execute(new.on_conflict_do_update(index_elements=["key"], set_=changed))


async def _allocate(ctx: Context, session: AsyncSession, more: int) -> None:
    """Add the difference of the default quota to the allocated quota of domains.

    Only users without own quota in domains without default quota count.
    """
    if not more:
        return
    connection = await session.connection()
    inherits = col(Domain.default_user_quota).is_(None)
    theirs = select(col(Domain.id)).where(inherits)
    streams = select(col(Stream.id)).where(col(Stream.id).in_(theirs)).order_by(col(Stream.id))
    await connection.execute(streams.with_for_update())
    many = (
        select(func.count())
        .where(col(User.domain_id) == col(Domain.id), col(User.quota).is_(None))
        .scalar_subquery()
    )
    counted = (
        update(Domain)
        .where(inherits, many > 0)
        .values(quota_allocated=Domain.quota_allocated + many * literal(more, Big))
        .returning(col(Domain.id))
        .execution_options(synchronize_session=False)
    )
    ids = sorted((await connection.execute(counted)).scalars())
    if ids:
        await ctx.record(session, PLATFORM, ChangeKind.DOMAIN_CHANGED, ids)


async def refresh(world: World) -> list[str]:
    """Apply the stored settings in this process and return the keys with unusable values."""
    asked = select(col(Stream.last)).where(col(Stream.id) == PLATFORM)
    number = next((row.last for row in await world.database.read(asked)), 0)
    options, useless = effective(world.base, _by_key(await world.database.read(STORED)))
    world.adopt(Adopted(options, number))
    return useless


async def follow(world: World) -> None:
    """Apply settings that other processes store, until cancelled.

    A wake-up triggers it at once; changes are also checked every POLL_SECONDS.
    """
    told: list[str] = []
    with world.wakeups.listen([PLATFORM]) as bell:
        while True:
            bell.clear()  # before reading: a later change sets it again
            try:
                if await _grown(world):
                    useless = await refresh(world)
                    warn([key for key in useless if key not in told])
                    told = useless
            except Exception:  # keep running: the next attempt can succeed
                log.exception("the settings could not be read")
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await bell.wait()


def warn(useless: Sequence[str]) -> None:
    """Log a warning for stored values that are not usable by this version."""
    for key in useless:
        log.warning(
            "a stored setting is of no use, and its default is in force", extra={"key": key}
        )


async def _grown(world: World) -> bool:
    asked = select(col(Stream.last)).where(
        col(Stream.id) == PLATFORM, col(Stream.last) != world.settled
    )
    return bool(await world.database.read(asked))


@dataclass(frozen=True, slots=True)
class History:
    """A page of the changes of one setting, the newest first."""

    key: str
    ask: Ask
    columns: frozenset[str]


async def pages(ctx: Context, keys: list[History]) -> list[Page[Picked]]:
    """Load pages of setting changes, each in reading order.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READERS)
    columns = {"id", "at"}.union(*(key.columns for key in keys))
    place = (col(SettingChange.at), col(SettingChange.id))
    scans = []
    for key in keys:
        rows = select(*picked(SettingChange, columns)).where(col(SettingChange.key) == key.key)
        scans.append(Scan(rows, key.ask, place, falling=True))
    return await pagination.pages(ctx, scans)


async def counts(ctx: Context, keys: list[History]) -> list[int]:
    """Count the changes of settings, in the given order.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READERS)
    many = func.count().label("many")
    of = [select(many).where(col(SettingChange.key) == key.key) for key in keys]
    return [row.many for (row,) in await together(ctx, of)]


async def changes_by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load setting changes by id, in the given order. None for ids that the viewer can't see."""
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None] * len(ids)
    return await by_keys(ctx, select(*picked(SettingChange)), col(SettingChange.id), ids)
