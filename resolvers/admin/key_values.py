"""Key-value entries: private to a user, or shared by all."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, String, cast, delete, func, null, select, true
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models import quantities
from models.admin.key_values import KeyValue
from models.errors import Invalid, LimitReached, NotFound, Stale
from models.events.journal import PLATFORM, ChangeKind
from models.store.columns import Picked, insert_or, picked
from models.store.keyset_pages import Ask, Page
from models.users.roles import Role, Scope, opened
from models.users.search_index import beginning
from models.users.tables import User
from resolvers import pagination
from resolvers.access import visible_users
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.pagination import Scan, by_keys

DEFAULT = "default"  # used if the input names no store
LONGEST = 1024  # whatever the setting says: an index holds the key twice
LIFE = (timedelta(seconds=1), timedelta(days=3650))
READ_BY = Role.ADMIN  # roles below it need a token to act as the user
WRITTEN_BY = Role.ROOT
SHARED_BY = Role.ADMIN  # writes the entries that all users can read
SCOPES = frozenset({Scope.READ, Scope.SETTINGS})  # one of them is needed to load entries by id
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\U0010ffff]")  # U+10FFFF ends prefix ranges
_UNKEPT = re.compile("[\0\ud800-\udfff]")  # not supported by every database


@dataclass(frozen=True, slots=True)
class Namespace:
    """The owner and the store of entries. Entries of the owner PLATFORM are shared."""

    owner: int  # a user id, or PLATFORM
    store: str = DEFAULT


@dataclass(frozen=True, slots=True)
class Listing:
    """Conditions of a list of entries: one level below a prefix, or with `recurse` all levels.

    With `exact` it is only the entry with the prefix as its key.
    """

    within: Namespace
    prefix: str = ""
    exact: bool = False
    recurse: bool = False

    def terms(self, ctx: Context) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses, which describe one range of an index."""
        key = col(KeyValue.key)
        found = [*_of(self.within), _visible(ctx, [self.within.owner])]
        if self.exact:
            return [*found, key == self.prefix]
        if not self.recurse:
            found.append(col(KeyValue.level) == _level(self.prefix))
        return [*found, beginning(ctx.world.database.dialect, key, self.prefix)]


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value to set with its time to live.

    `if_version` is the required version, 0 for no entry.
    """

    value: str
    ttl: timedelta | None = None
    if_version: int | None = None


async def find(ctx: Context, within: Namespace, key: str) -> Picked | None:
    """Return the entry of a key, or None if the viewer sees none."""
    _known(ctx, within)
    return await ctx.load(named, (within, checked_key(key)))


async def named(ctx: Context, keys: list[tuple[Namespace, str]]) -> list[Picked | None]:
    """Load entries by namespace and key, in the given order. None if the viewer sees none."""
    # a list per column, since SQLite uses no index for lists of row values
    owners = {within.owner for within, _ in keys}
    asked = select(*picked(KeyValue)).where(
        col(KeyValue.stream_id).in_(owners),
        col(KeyValue.store).in_({within.store for within, _ in keys}),
        col(KeyValue.key).in_({key for _, key in keys}),
        _visible(ctx, owners),
    )
    rows = await ctx.read(asked)
    found = {(Namespace(row.stream_id, row.store), row.key): row for row in rows}
    return [found.get(one) for one in keys]


async def by_ids(ctx: Context, ids: list[int]) -> list[Picked | None]:
    """Load entries by id, in the given order. None for ids that the viewer can't see."""
    if not SCOPES & opened(ctx.viewer.scopes):
        return [None] * len(ids)
    return await by_keys(ctx, select(*picked(KeyValue)).where(_visible(ctx)), col(KeyValue.id), ids)


async def page(
    ctx: Context, asked: Listing, ask: Ask, columns: Collection[str], *, values: bool = True
) -> Page[Picked]:
    """Read a page of entries, ordered by key. Without `with_values` no value is read.

    Raises InvalidInput if the store is unknown or the prefix is not allowed.
    """
    _check_listing(ctx, asked)
    names = {"id", "key", *columns} - (set() if values else {"value"})
    chosen: list[Any] = [*picked(KeyValue, names)]
    if not values:
        chosen.append(cast(null(), String).label("value"))
    rows = select(*chosen).where(*asked.terms(ctx))
    place = (col(KeyValue.key), col(KeyValue.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, asked: Listing) -> int:
    """Count the entries of a list."""
    many = select(func.count().label("many")).select_from(KeyValue)
    (row,) = await ctx.read(many.where(*asked.terms(ctx)))
    return int(row.many)


def _visible(ctx: Context, owners: Collection[int] | None = None) -> ColumnElement[bool]:
    """Return the WHERE clause for entries that the viewer sees and that are not expired.

    These are the viewer's own, shared ones, and for READER_OF_OTHERS those of visible users.
    With `owner_ids` the database checks these users only.
    """
    owner, lasts = col(KeyValue.stream_id), _lasting(ctx.world.now())
    mine = owner.in_((PLATFORM, ctx.viewer.user_id))
    if not ctx.viewer.role.includes(READ_BY):
        return mine & lasts
    these = col(User.id) == owner if owners is None else col(User.id).in_(owners)
    theirs = select(col(User.id)).where(these, visible_users(ctx))
    return (mine | owner.in_(theirs)) & lasts


def _lasting(now: datetime) -> ColumnElement[bool]:
    # no OR: SQLite would read two ranges of the index of expiry times, which are all rows
    return func.coalesce(col(KeyValue.expires_at) > now, true())


def _of(within: Namespace) -> list[ColumnElement[bool]]:
    return [col(KeyValue.stream_id) == within.owner, col(KeyValue.store) == within.store]


def _level(key: str) -> str:
    """Return the key up to and including its last slash."""
    return key[: key.rfind("/") + 1]


def checked_key(key: str) -> str:
    """Return the key. Keys are compared character by character.

    Raises InvalidInput if the key is too long, or has control characters or empty levels.
    """
    _check_letters(key, "key")
    if not all(key.split("/")):
        raise Invalid("a key has no empty levels", constraint="pattern", path=["key"])
    return key


def _check_letters(text: str, name: str) -> None:
    if _ODD.search(text):
        raise Invalid(f"a {name} has no control characters", constraint="pattern", path=[name])
    if len(text.encode()) > LONGEST:
        raise Invalid(f"a {name} has at most {LONGEST} bytes", constraint="max", path=[name])


def _check_listing(ctx: Context, asked: Listing) -> None:
    _known(ctx, asked.within)
    _check_letters(asked.prefix, "prefix")
    if asked.exact and not asked.prefix:
        raise Invalid("say which key", constraint="required", path=["prefix"])


def _known(ctx: Context, within: Namespace) -> None:
    if within.store not in ctx.world.options.key_value_stores:
        raise Invalid("there is no store of this name", constraint="unknown", path=["store"])


def _check_new(ctx: Context, key: str) -> None:
    """Raise LimitReached if a new key is longer or deeper than the settings allow."""
    options = ctx.world.options
    for what, used, limit in (
        ("bytes", len(key.encode()), options.key_value_key),
        ("levels", key.count("/") + 1, options.key_value_levels),
    ):
        if used > limit:
            text = f"a key has at most {limit} {what}"
            raise LimitReached(text, limit=limit, used=used, path=["key"])


def _check_value(ctx: Context, value: str) -> None:
    if _UNKEPT.search(value):
        words = "a value has no character that no store takes"
        raise Invalid(words, constraint="pattern", path=["value"])
    if (used := len(value.encode())) > (limit := ctx.world.options.key_value_max):
        text = f"a value has at most {limit} bytes"
        raise LimitReached(text, limit=limit, used=used, path=["value"])


def _end(ctx: Context, ttl: timedelta | None) -> datetime | None:
    if ttl is None:
        return None
    least, most = LIFE
    if ttl < least:
        raise Invalid("it lasts a second at least", constraint="min", path=["ttl"])
    if ttl > most:
        raise Invalid(f"it lasts {most.days} days at most", constraint="max", path=["ttl"])
    return ctx.world.now() + ttl


def _number(value: str) -> int:
    try:
        return quantities.whole(value)
    except ValueError as problem:
        text = "its value is no whole number below 2^53"
        raise Invalid(text, constraint="number", path=["key"]) from problem


async def put(ctx: Context, within: Namespace, key: str, new: NewValue) -> KeyValue:
    """Set the value of a key and when it expires; without TTL it never expires.

    Raises StaleObject if the stored version is not `if_version`, and Forbidden, InvalidInput or
    LimitReached.
    """
    _begin(ctx, within, key)
    _check_value(ctx, new.value)
    ends = _end(ctx, new.ttl)
    async with ctx.write(within.owner) as session:
        old = await _held(ctx, within, key)
        version = old.version if old else 0
        if new.if_version is not None and new.if_version != version:
            raise Stale(current_modseq=version, path=["ifVersion"])
        entry = _entry(ctx, within, key, old, value=new.value, expires_at=ends)
        return await _store(ctx, session, "keyValueSet", entry, old)


async def increment(
    ctx: Context, within: Namespace, key: str, difference: int, *, create_missing: bool = False
) -> KeyValue:
    """Add to a value that is a whole number; its expiry time stays.

    Raises NotFound if there is no entry and `create_missing` is false, and InvalidInput if the
    value is not a number or would exceed 2^53.
    """
    _begin(ctx, within, key)
    async with ctx.write(within.owner) as session:
        old = await _held(ctx, within, key)
        if old is None and not create_missing:
            raise NotFound(key, path=["key"])
        # the stream is locked, so no other transaction changes the same number
        number = (_number(old.value) if old else 0) + difference
        if abs(number) >= quantities.WHOLE:
            rule = "max" if number > 0 else "min"
            raise Invalid("it would pass 2^53", constraint=rule, path=["difference"])
        ends = old.expires_at if old else None
        entry = _entry(ctx, within, key, old, value=str(number), expires_at=ends)
        return await _store(ctx, session, "keyValueIncrement", entry, old)


async def remove(ctx: Context, within: Namespace, key: str, *, recursive: bool = False) -> int:
    """Delete an entry, with `recursive` also all entries below it, and return their number."""
    _begin(ctx, within, key)
    which: ColumnElement[bool] = col(KeyValue.key) == key
    if recursive:
        dialect, found = ctx.world.database.dialect, col(KeyValue.key)
        # SQLite uses no index range for an OR: this range contains both, and few other keys
        which = beginning(dialect, found, key) & (which | beginning(dialect, found, f"{key}/"))
    async with ctx.write(within.owner) as session:
        ids = (await _removed(ctx, session, *_of(within), which))[within.owner]
        if ids:
            await ctx.record(session, within.owner, ChangeKind.KEY_VALUE_CHANGED, ids)
            before = {"store": within.store, "key": key, "entries": len(ids)}
            target = ids[0] if len(ids) == 1 else None
            await _log(
                ctx, session, within, Done("keyValueDelete", target_id=target, before=before)
            )
    return len(ids)


async def forget(ctx: Context, session: AsyncSession, owners: Sequence[int], prefix: str) -> None:
    """Delete the entries of users below a prefix in every store.

    The transaction must hold locks on the users' streams. The number of statements does not
    depend on the number of users.
    """
    removed = await _removed(
        ctx,
        session,
        col(KeyValue.stream_id).in_(owners),
        col(KeyValue.store).in_(ctx.world.options.key_value_stores),
        beginning(ctx.world.database.dialect, col(KeyValue.key), prefix),
    )
    kind = ChangeKind.KEY_VALUE_CHANGED
    await ctx.record_all(session, {owner: [(kind, ids)] for owner, ids in removed.items() if ids})


def _begin(ctx: Context, within: Namespace, key: str) -> None:
    """Raise Forbidden if the viewer may not write here, and InvalidInput for a bad key or store.

    Shared entries and those of other users need a higher role and the scope MASTER.
    """
    _known(ctx, within)
    checked_key(key)
    if within.owner == PLATFORM or within.owner != ctx.viewer.user_id:
        role = SHARED_BY if within.owner == PLATFORM else WRITTEN_BY
        ctx.viewer.require(Needs(role=role, scope=Scope.MASTER))


async def _held(ctx: Context, within: Namespace, key: str) -> Picked | None:
    """Return the stored entry after its stream is locked.

    None if there is none or it is expired.
    """
    lasts = _lasting(ctx.world.now())
    asked = select(*picked(KeyValue)).where(*_of(within), col(KeyValue.key) == key, lasts)
    return next(iter(await ctx.read(asked)), None)


def _entry(ctx: Context, within: Namespace, key: str, old: Picked | None, **given: Any) -> KeyValue:
    """Return the entry to store. It keeps the id of the stored one; its version is set later."""
    return KeyValue(
        id=old.id if old else ctx.world.key(),
        stream_id=within.owner,
        store=within.store,
        key=key,
        level=_level(key),
        version=0,
        size=len(key.encode()) + len(given["value"].encode()),
        **given,
    )


async def _store(
    ctx: Context, session: AsyncSession, mutation: str, entry: KeyValue, old: Picked | None
) -> KeyValue:
    """Store an entry with its new version, and record it in the journal and the admin log.

    Raises LimitReached if the owner has no room for it.
    """
    if old is None:
        _check_new(ctx, entry.key)
    await _room(ctx, entry, old)
    kind, within = ChangeKind.KEY_VALUE_CHANGED, Namespace(entry.stream_id, entry.store)
    entry.version = await ctx.record(session, entry.stream_id, kind, [entry.id])
    connection = await session.connection()
    await connection.execute(_upsert(connection.dialect.name), entry.model_dump())
    place = {"store": entry.store, "key": entry.key}
    before = {**place, "version": old.version} if old else None
    after = {**place, "version": entry.version}
    await _log(ctx, session, within, Done(mutation, target_id=entry.id, before=before, after=after))
    return entry


@cache
def _upsert(dialect: str) -> Any:
    """Return the statement that inserts an entry or overwrites the one of the same key.

    The stored one can be an expired entry. An UPDATE alone would miss a row that housekeeping
    deletes at the same time, since that takes no lock on the stream.
    """
    new = insert_or(dialect, KeyValue)
    columns = [column.name for column in picked(KeyValue)]
    return new.on_conflict_do_update(
        index_elements=["stream_id", "store", "key"],
        set_={name: new.excluded[name] for name in columns},
    )


async def _room(ctx: Context, entry: KeyValue, old: Picked | None) -> None:
    """Raise LimitReached if the entry does not fit. Expired entries are not counted."""
    more = entry.size - (old.size if old else 0)
    if old and more <= 0:
        return
    asked = select(
        func.count().label("many"), func.coalesce(func.sum(col(KeyValue.size)), 0).label("bytes")
    ).where(col(KeyValue.stream_id) == entry.stream_id, _lasting(ctx.world.now()))
    (kept,) = await ctx.read(asked)
    options = ctx.world.options
    if old is None and kept.many >= (most := options.key_value_entries):
        raise LimitReached(f"at most {most} entries", limit=most, used=kept.many, path=["key"])
    if kept.bytes + more > (most := options.key_value_bytes):
        text = f"keys and values have at most {most} bytes together"
        raise LimitReached(text, limit=most, used=int(kept.bytes), path=["value"])


async def _removed(
    ctx: Context, session: AsyncSession, *which: ColumnElement[bool]
) -> defaultdict[int, list[int]]:
    """Delete the matching entries; return the ids of unexpired ones by owner, in order."""
    columns = picked(KeyValue, ("id", "stream_id", "expires_at"))
    gone = await (await session.connection()).execute(
        delete(KeyValue).where(*which).returning(*columns)
    )
    now = ctx.world.now()
    found: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(gone, key=lambda row: row.id):
        if row.expires_at is None or row.expires_at > now:
            found[row.stream_id].append(row.id)
    return found


async def _log(ctx: Context, session: AsyncSession, within: Namespace, done: Done) -> None:
    """Write an entry without values to the admin log, unless the entry is the viewer's own.

    For a private entry of another user the target is that user.
    """
    if within.owner == PLATFORM:
        await admin_log.note(ctx, session, replace(done, kind="KeyValue"))
    elif within.owner != ctx.viewer.user_id:
        await admin_log.note(ctx, session, replace(done, kind="User", target_id=within.owner))
