"""Small values under keys: private to an account, or shared by all."""

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

DEFAULT = "default"  # the store of who names none
LONGEST = 1024  # bytes of a key that can be, whatever is set: an index holds it twice
LIFE = (timedelta(seconds=1), timedelta(days=3650))
READ_BY = Role.ADMIN  # what others keep; who is below that acts as them
WRITTEN_BY = Role.ROOT
SHARED_BY = Role.ADMIN  # who writes what all may read
SCOPES = frozenset({Scope.READ, Scope.SETTINGS})  # either shows entries that are come by
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff\U0010ffff]")  # the last ends every range
_UNKEPT = re.compile("[\0\ud800-\udfff]")  # what no store takes


@dataclass(frozen=True, slots=True)
class Namespace:
    """Whose entries, and of which store. Those of PLATFORM are shared."""

    owner: int  # an account, or PLATFORM
    store: str = DEFAULT


@dataclass(frozen=True, slots=True)
class Listing:
    """Entries whose keys begin so: those of one level, or `recurse` into the levels below.

    With `exact` it is the entry of this very key.
    """

    within: Namespace
    prefix: str = ""
    exact: bool = False
    recurse: bool = False

    def terms(self, ctx: Context) -> list[ColumnElement[bool]]:
        """The WHERE clause: a range of an index."""
        key = col(KeyValue.key)
        found = [*_of(self.within), _visible(ctx, [self.within.owner])]
        if self.exact:
            return [*found, key == self.prefix]
        if not self.recurse:
            found.append(col(KeyValue.level) == _level(self.prefix))
        return [*found, beginning(ctx.world.database.dialect, key, self.prefix)]


@dataclass(frozen=True, slots=True)
class NewValue:
    """A value to be set, for so long; `if_version` is the version there must be, 0 for none."""

    value: str
    ttl: timedelta | None = None
    if_version: int | None = None


# ---------------------------------------------------------------- reading


async def find(ctx: Context, within: Namespace, key: str) -> Picked | None:
    """The entry of this key, as far as the viewer sees it."""
    _known(ctx, within)
    return await ctx.load(named, (within, checked_key(key)))


async def named(ctx: Context, keys: list[tuple[Namespace, str]]) -> list[Picked | None]:
    """The entries of these keys, in this order; None where the viewer sees none."""
    # a list for each column, since SQLite finds lists of rows by no index
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
    """The entries with these ids, in this order; None where the viewer sees none."""
    if not SCOPES & opened(ctx.viewer.scopes):
        return [None] * len(ids)
    return await by_keys(ctx, select(*picked(KeyValue)).where(_visible(ctx)), col(KeyValue.id), ids)


async def page(
    ctx: Context, asked: Listing, ask: Ask, columns: Collection[str], *, values: bool = True
) -> Page[Picked]:
    """A page of entries by key; without `values` none is read."""
    _check_listing(ctx, asked)
    names = {"id", "key", *columns} - (set() if values else {"value"})
    chosen: list[Any] = [*picked(KeyValue, names)]
    if not values:
        chosen.append(cast(null(), String).label("value"))
    rows = select(*chosen).where(*asked.terms(ctx))
    place = (col(KeyValue.key), col(KeyValue.id))
    return await pagination.one(ctx, Scan(rows, ask, place, falling=False))


async def count(ctx: Context, asked: Listing) -> int:
    """How many entries such a list has."""
    many = select(func.count().label("many")).select_from(KeyValue)
    (row,) = await ctx.read(many.where(*asked.terms(ctx)))
    return int(row.many)


def _visible(ctx: Context, owners: Collection[int] | None = None) -> ColumnElement[bool]:
    """The WHERE clause for entries that last: one's own, what is shared, and READ_BY others'.

    Whoever knows the owners says so: the store then looks at their accounts alone.
    """
    owner, lasts = col(KeyValue.stream_id), _lasting(ctx.world.now())
    mine = owner.in_((PLATFORM, ctx.viewer.user_id))
    if not ctx.viewer.role.includes(READ_BY):
        return mine & lasts
    these = col(User.id) == owner if owners is None else col(User.id).in_(owners)
    theirs = select(col(User.id)).where(these, visible_users(ctx))
    return (mine | owner.in_(theirs)) & lasts


def _lasting(now: datetime) -> ColumnElement[bool]:
    # no OR: SQLite would take it for two ranges of the index of ends, and read all there are
    return func.coalesce(col(KeyValue.expires_at) > now, true())


def _of(within: Namespace) -> list[ColumnElement[bool]]:
    return [col(KeyValue.stream_id) == within.owner, col(KeyValue.store) == within.store]


def _level(key: str) -> str:
    """The key as far as its last slash."""
    return key[: key.rfind("/") + 1]


# ---------------------------------------------------------------- what can be


def checked_key(key: str) -> str:
    """The key, which is compared letter by letter. Invalid where none can be like this."""
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
    """See that a key that is not there yet is within its limits."""
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


# ---------------------------------------------------------------- writing


async def put(ctx: Context, within: Namespace, key: str, new: NewValue) -> KeyValue:
    """Set a value, and for how long it lasts: for ever without a TTL.

    Stale where there is another version than it must be.
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
    """Add to a value that is a whole number, and lasts as long as before.

    NotFound where there is none, unless it is to begin with 0 then.
    """
    _begin(ctx, within, key)
    async with ctx.write(within.owner) as session:
        old = await _held(ctx, within, key)
        if old is None and not create_missing:
            raise NotFound(key, path=["key"])
        # whoever writes here holds the stream, so nobody adds to the same number meanwhile
        number = (_number(old.value) if old else 0) + difference
        if abs(number) >= quantities.WHOLE:
            rule = "max" if number > 0 else "min"
            raise Invalid("it would pass 2^53", constraint=rule, path=["difference"])
        ends = old.expires_at if old else None
        entry = _entry(ctx, within, key, old, value=str(number), expires_at=ends)
        return await _store(ctx, session, "keyValueIncrement", entry, old)


async def remove(ctx: Context, within: Namespace, key: str, *, recursive: bool = False) -> int:
    """Remove an entry, and all below it where it is `recursive`; how many there were."""
    _begin(ctx, within, key)
    which: ColumnElement[bool] = col(KeyValue.key) == key
    if recursive:
        dialect, found = ctx.world.database.dialect, col(KeyValue.key)
        # SQLite makes no ranges of an OR: the range around both, whose other keys are few
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
    """Remove what these accounts, which are held, keep below a prefix in any store.

    As few statements for many accounts as for one.
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
    """See that the viewer may write here, and that there can be such a key.

    One's own takes what the field asks for. What is shared or another's takes more: a role, and a
    credential for all.
    """
    _known(ctx, within)
    checked_key(key)
    if within.owner == PLATFORM or within.owner != ctx.viewer.user_id:
        role = SHARED_BY if within.owner == PLATFORM else WRITTEN_BY
        ctx.viewer.require(Needs(role=role, scope=Scope.MASTER))


async def _held(ctx: Context, within: Namespace, key: str) -> Picked | None:
    """The entry as it is now that its stream is held; None also where it has ended."""
    lasts = _lasting(ctx.world.now())
    asked = select(*picked(KeyValue)).where(*_of(within), col(KeyValue.key) == key, lasts)
    return next(iter(await ctx.read(asked)), None)


def _entry(ctx: Context, within: Namespace, key: str, old: Picked | None, **given: Any) -> KeyValue:
    """The entry as it is to be; in place of an old one it keeps the id. Its version is to come."""
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
    """Insert an entry, or put it over the one of its key: that may have ended just now.

    An update alone would miss a row that is removed meanwhile, which takes no stream.
    """
    new = insert_or(dialect, KeyValue)
    columns = [column.name for column in picked(KeyValue)]
    return new.on_conflict_do_update(
        index_elements=["stream_id", "store", "key"],
        set_={name: new.excluded[name] for name in columns},
    )


async def _room(ctx: Context, entry: KeyValue, old: Picked | None) -> None:
    """See that there is room for it; what has ended takes none."""
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
    """Remove these; the ids of those that had not ended, in order, by whose they were."""
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
    """Tell the administrative log, without values; what is one's own is no administration.

    What is another's is found there by the account.
    """
    if within.owner == PLATFORM:
        await admin_log.note(ctx, session, replace(done, kind="KeyValue"))
    elif within.owner != ctx.viewer.user_id:
        await admin_log.note(ctx, session, replace(done, kind="User", target_id=within.owner))
