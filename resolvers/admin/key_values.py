"""Key-value entries: private to a user, or shared by all."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache, partial
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    String,
    UpdateBase,
    bindparam,
    cast,
    delete,
    func,
    null,
    select,
    true,
)
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.quota import require_quota_for_growth
from models import quantities
from models.admin.key_values import KeyValueEntry
from models.errors import InvalidInput, LimitReached, NotFound, StaleObject
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, UtcDateTime, insert_with_conflict, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.store.prepared_statements import integer_parameter, prepare_cached
from models.users.roles import Role, Scope, expand_scopes
from models.users.search_index import has_prefix
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_visible_user
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.key_value_validation import (
    parse_whole_number,
    require_key_within_limits,
    require_known_store,
    require_plain_text_within_limit,
    require_storable_value,
    validate_key_value_key,
    validated_expiry_time,
)
from resolvers.context import Context
from resolvers.list_orders import SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.viewer import GuardRule

DEFAULT_STORE = "default"  # used if the input names no store
READER_OF_OTHERS = Role.ADMIN  # roles below it need a token to act as the user
WRITER_OF_OTHERS = Role.ROOT
WRITER_OF_SHARED = Role.ADMIN  # writes the entries that all users can read
READ_SCOPES = frozenset({Scope.READ, Scope.SETTINGS})  # one of them is needed to load entries by id


class KeyValueEntryOrder(StrEnum):
    """The order of a list of entries, in byte order."""

    KEY_ASC = "KEY_ASC"
    KEY_DESC = "KEY_DESC"


LIST_ORDERS = list_orders(KeyValueEntryOrder, {"KEY": SortColumn("key", str)})


@dataclass(frozen=True, slots=True)
class KeyValueNamespace:
    """The owner and the store of entries. Entries of the owner PLATFORM are shared."""

    owner_id: int  # a user id, or PLATFORM
    store: str = DEFAULT_STORE


@dataclass(frozen=True, slots=True)
class KeyValueListConditions:
    """Conditions of a list of entries: one level below a prefix, or with `is_recursive` all levels.

    With `is_exact` it is only the entry with the prefix as its key.
    """

    namespace: KeyValueNamespace
    prefix: str = ""
    is_exact: bool = False
    is_recursive: bool = False

    def where_clauses(self, ctx: Context) -> list[ColumnElement[bool]]:
        """Return the WHERE clauses, which describe one range of an index."""
        key = col(KeyValueEntry.key)
        clauses = [
            *_namespace_clauses(self.namespace),
            _is_unexpired_own_shared_or_visible_entry(ctx, [self.namespace.owner_id]),
        ]
        if self.is_exact:
            return [*clauses, key == self.prefix]
        if not self.is_recursive:
            clauses.append(col(KeyValueEntry.level) == _parent_level(self.prefix))
        return [*clauses, has_prefix(ctx.environment.database.dialect, key, self.prefix)]


@dataclass(frozen=True, slots=True)
class NewKeyValue:
    """A value to set with its time to live.

    `if_version` is the required version, 0 for no entry.
    """

    value: str
    ttl: timedelta | None = None
    if_version: int | None = None


async def find_entry(ctx: Context, namespace: KeyValueNamespace, key: str) -> ColumnRow | None:
    """Return the entry of a key, or None if the viewer sees none."""
    require_known_store(ctx, namespace.store)
    return await ctx.load(load_visible_entries_by_key, (namespace, validate_key_value_key(key)))


async def load_visible_entries_by_key(
    ctx: Context, namespaces_and_keys: list[tuple[KeyValueNamespace, str]]
) -> list[ColumnRow | None]:
    """Load entries by namespace and key, in the given order. None if the viewer sees none."""
    (namespace, key), *others = namespaces_and_keys
    if not others and namespace.owner_id in (PLATFORM, ctx.viewer.user_id):
        return [await _find_unexpired_entry(ctx, namespace, key)]
    # a list per column, since SQLite uses no index for lists of row values
    owner_ids = {within.owner_id for within, _ in namespaces_and_keys}
    statement = select(*select_columns(KeyValueEntry)).where(
        col(KeyValueEntry.stream_id).in_(owner_ids),
        col(KeyValueEntry.store).in_({within.store for within, _ in namespaces_and_keys}),
        col(KeyValueEntry.key).in_({key for _, key in namespaces_and_keys}),
        _is_unexpired_own_shared_or_visible_entry(ctx, owner_ids),
    )
    rows = await ctx.read(statement)
    rows_by_key = {(KeyValueNamespace(row.stream_id, row.store), row.key): row for row in rows}
    return [rows_by_key.get(and_key) for and_key in namespaces_and_keys]


async def load_visible_entries_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load entries by id, in the given order. None for ids that the viewer can't see."""
    if not READ_SCOPES & expand_scopes(ctx.viewer.scopes):
        return [None] * len(ids)
    return await read_by_keys(
        ctx,
        select(*select_columns(KeyValueEntry)).where(
            _is_unexpired_own_shared_or_visible_entry(ctx)
        ),
        col(KeyValueEntry.id),
        ids,
    )


async def read_visible_key_value_page(  # noqa: PLR0913 - a list without values
    ctx: Context,
    conditions: KeyValueListConditions,
    page_request: PageRequest,
    columns: Collection[str],
    order: KeyValueEntryOrder = KeyValueEntryOrder.KEY_ASC,
    *,
    with_values: bool = True,
) -> Page[ColumnRow]:
    """Read a page of entries. Without `with_values` no value is read.

    Raises InvalidInput if the store is unknown or the prefix is not allowed, and for a cursor of
    another order.
    """
    _require_valid_list_conditions(ctx, conditions)
    list_order = LIST_ORDERS[order]
    column_names = {"id", list_order.column, *columns} - (set() if with_values else {"value"})
    selected_columns: list[Any] = [*select_columns(KeyValueEntry, column_names)]
    if not with_values:
        selected_columns.append(cast(null(), String).label("value"))
    rows = select(*selected_columns).where(*conditions.where_clauses(ctx))
    return await read_ordered_page(ctx, rows, KeyValueEntry, page_request, list_order)


async def count_visible_key_values(ctx: Context, conditions: KeyValueListConditions) -> int:
    """Count the entries of a list."""
    statement = select(func.count().label("many")).select_from(KeyValueEntry)
    (row,) = await ctx.read(statement.where(*conditions.where_clauses(ctx)))
    return int(row.many)


def _is_unexpired_own_shared_or_visible_entry(
    ctx: Context, owner_ids: Collection[int] | None = None
) -> ColumnElement[bool]:
    """Return the WHERE clause for entries that the viewer sees and that are not expired.

    These are the viewer's own, shared ones, and for READER_OF_OTHERS those of visible users.
    With `owner_ids` the database checks these users only.
    """
    owner_column = col(KeyValueEntry.stream_id)
    is_not_expired = _is_not_expired(ctx.environment.now())
    is_own_or_shared = owner_column.in_((PLATFORM, ctx.viewer.user_id))
    if not ctx.viewer.role.includes(READER_OF_OTHERS):
        return is_own_or_shared & is_not_expired
    is_owner = col(User.id) == owner_column if owner_ids is None else col(User.id).in_(owner_ids)
    visible_owner_ids = select(col(User.id)).where(is_owner, is_visible_user(ctx))
    return (is_own_or_shared | owner_column.in_(visible_owner_ids)) & is_not_expired


def _is_not_expired(now: datetime | ColumnElement[datetime]) -> ColumnElement[bool]:
    # no OR: SQLite would read two ranges of the index of expiry times, which are all rows
    return func.coalesce(col(KeyValueEntry.expires_at) > now, true())


def _namespace_clauses(namespace: KeyValueNamespace) -> list[ColumnElement[bool]]:
    return [
        col(KeyValueEntry.stream_id) == namespace.owner_id,
        col(KeyValueEntry.store) == namespace.store,
    ]


def _parent_level(key: str) -> str:
    """Return the key up to and including its last slash."""
    return key[: key.rfind("/") + 1]


def _require_valid_list_conditions(ctx: Context, conditions: KeyValueListConditions) -> None:
    require_known_store(ctx, conditions.namespace.store, path=["filter", "store"])
    field_name, noun = ("exactKey", "key") if conditions.is_exact else ("prefix", "prefix")
    path = ["filter", field_name]
    require_plain_text_within_limit(conditions.prefix, noun, path=path)
    if conditions.is_exact and not conditions.prefix:
        raise InvalidInput(
            "A key is required.", constraint=ValidationConstraint.REQUIRED, path=path
        )


async def set_key_value(
    ctx: Context, namespace: KeyValueNamespace, key: str, new_value: NewKeyValue
) -> KeyValueEntry:
    """Set the value of a key and when it expires; without TTL it never expires.

    Raises StaleObject if the stored version is not `if_version`, and Forbidden, InvalidInput or
    LimitReached.
    """
    _require_valid_key_and_write_access(ctx, namespace, key)
    require_storable_value(ctx, new_value.value)
    expires_at = validated_expiry_time(ctx, new_value.ttl)
    async with ctx.write_session(namespace.owner_id) as session:
        stored = await _find_unexpired_entry(ctx, namespace, key)
        version = stored.version if stored else 0
        if new_value.if_version is not None and new_value.if_version != version:
            raise StaleObject(current_modseq=version, path=["ifVersion"])
        entry = _key_value_entry_to_store(
            ctx, namespace, key, stored, value=new_value.value, expires_at=expires_at
        )
        return await _store_and_log_key_value_entry(ctx, session, "keyValueSet", entry, stored)


async def increment_key_value(
    ctx: Context,
    namespace: KeyValueNamespace,
    key: str,
    delta: int,
    *,
    create_missing: bool = False,
) -> KeyValueEntry:
    """Add to a value that is a whole number; its expiry time stays.

    Raises NotFound if there is no entry and `create_missing` is false, and InvalidInput if the
    value is not a number or would exceed 2^53.
    """
    _require_valid_key_and_write_access(ctx, namespace, key)
    async with ctx.write_session(namespace.owner_id) as session:
        stored = await _find_unexpired_entry(ctx, namespace, key)
        if stored is None and not create_missing:
            raise NotFound(key, path=["key"])
        # the stream is locked, so no other transaction changes the same number
        number = (parse_whole_number(stored.value) if stored else 0) + delta
        if abs(number) >= quantities.INTEGER_LIMIT:
            constraint = ValidationConstraint.MAX if number > 0 else ValidationConstraint.MIN
            raise InvalidInput(
                "The result would reach 2^53.", constraint=constraint, path=["delta"]
            )
        expires_at = stored.expires_at if stored else None
        entry = _key_value_entry_to_store(
            ctx, namespace, key, stored, value=str(number), expires_at=expires_at
        )
        return await _store_and_log_key_value_entry(
            ctx, session, "keyValueIncrement", entry, stored
        )


async def delete_key_values(
    ctx: Context, namespace: KeyValueNamespace, key: str, *, recursive: bool = False
) -> int:
    """Delete an entry, with `recursive` also all entries below it, and return their number."""
    _require_valid_key_and_write_access(ctx, namespace, key)
    is_deleted: ColumnElement[bool] = col(KeyValueEntry.key) == key
    if recursive:
        dialect, key_column = ctx.environment.database.dialect, col(KeyValueEntry.key)
        # SQLite uses no index range for an OR: this range contains both, and few other keys
        is_deleted = has_prefix(dialect, key_column, key) & (
            is_deleted | has_prefix(dialect, key_column, f"{key}/")
        )
    async with ctx.write_session(namespace.owner_id) as session:
        ids = (
            await _delete_and_return_unexpired_ids(
                ctx, session, *_namespace_clauses(namespace), is_deleted
            )
        )[namespace.owner_id]
        if ids:
            await ctx.record_change(session, namespace.owner_id, EventType.KEY_VALUE_DELETED, ids)
            before = {"store": namespace.store, "key": key, "entries": len(ids)}
            target = ids[0] if len(ids) == 1 else None
            await _write_audit_log_unless_own_entry(
                ctx,
                session,
                namespace,
                NewAuditLogEntry("keyValueDelete", target_id=target, before=before),
            )
    return len(ids)


async def delete_entries_of_users(
    ctx: Context, session: AsyncSession, user_ids: Sequence[int], prefix: str
) -> None:
    """Delete the entries of users below a prefix in every store.

    The transaction must hold locks on the users' streams. The number of statements does not
    depend on the number of users.
    """
    ids_by_owner = await _delete_and_return_unexpired_ids(
        ctx,
        session,
        col(KeyValueEntry.stream_id).in_(user_ids),
        col(KeyValueEntry.store).in_(ctx.environment.options.key_value_stores),
        has_prefix(ctx.environment.database.dialect, col(KeyValueEntry.key), prefix),
    )
    event_type = EventType.KEY_VALUE_DELETED
    await ctx.record_changes(
        session, {owner: [(event_type, ids)] for owner, ids in ids_by_owner.items() if ids}
    )


def _require_valid_key_and_write_access(
    ctx: Context, namespace: KeyValueNamespace, key: str
) -> None:
    """Raise Forbidden if the viewer may not write here, and InvalidInput for a bad key or store.

    Shared entries and those of other users need a higher role and the scope FULL.
    """
    require_known_store(ctx, namespace.store)
    validate_key_value_key(key)
    if namespace.owner_id == PLATFORM or namespace.owner_id != ctx.viewer.user_id:
        role = WRITER_OF_SHARED if namespace.owner_id == PLATFORM else WRITER_OF_OTHERS
        ctx.viewer.require(GuardRule(role=role, scope=Scope.FULL))


async def _find_unexpired_entry(
    ctx: Context, namespace: KeyValueNamespace, key: str
) -> ColumnRow | None:
    """Return the entry of a key, without a check of access. None if none or it is expired."""
    query, now = _select_unexpired_entry(), ctx.environment.now()
    owner, store = namespace.owner_id, namespace.store
    rows = await ctx.read_prepared(query, owner=owner, store=store, key=key, now=now)
    return next(iter(rows), None)


@prepare_cached
def _select_unexpired_entry() -> Select[*tuple[Any, ...]]:
    return select(*select_columns(KeyValueEntry)).where(
        col(KeyValueEntry.stream_id) == integer_parameter("owner"),
        col(KeyValueEntry.store) == bindparam("store"),
        col(KeyValueEntry.key) == bindparam("key"),
        _is_not_expired(bindparam("now", type_=UtcDateTime)),
    )


def _key_value_entry_to_store(
    ctx: Context, namespace: KeyValueNamespace, key: str, stored: ColumnRow | None, **columns: Any
) -> KeyValueEntry:
    """Return the entry to store. It keeps the id of the stored one; its version is set later."""
    return KeyValueEntry(
        id=stored.id if stored else ctx.environment.new_id(),
        stream_id=namespace.owner_id,
        store=namespace.store,
        key=key,
        level=_parent_level(key),
        version=0,
        size=len(key.encode()) + len(columns["value"].encode()),
        **columns,
    )


async def _store_and_log_key_value_entry(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    entry: KeyValueEntry,
    stored: ColumnRow | None,
) -> KeyValueEntry:
    """Store an entry with its new version, and record it in the journal and the audit log.

    Raises LimitReached or OverQuota if the owner has no room for it.
    """
    if stored is None:
        require_key_within_limits(ctx, entry.key)
    await _require_below_entry_and_byte_limits(ctx, entry, stored)
    growth = entry.size - (stored.size if stored else 0)
    check = partial(require_quota_for_growth, user_id=entry.stream_id, byte_count=growth)
    await ctx.environment.run_in_session(session, check)
    event_type = EventType.KEY_VALUE_UPDATED if stored else EventType.KEY_VALUE_CREATED
    namespace = KeyValueNamespace(entry.stream_id, entry.store)
    entry.version = await ctx.record_change(session, entry.stream_id, event_type, [entry.id])
    connection = await session.connection()
    await connection.execute(_upsert_statement(connection.dialect.name), entry.model_dump())
    store_and_key = {"store": entry.store, "key": entry.key}
    before = {**store_and_key, "version": stored.version} if stored else None
    after = {**store_and_key, "version": entry.version}
    await _write_audit_log_unless_own_entry(
        ctx,
        session,
        namespace,
        NewAuditLogEntry(mutation, target_id=entry.id, before=before, after=after),
    )
    return entry


@cache
def _upsert_statement(dialect: str) -> UpdateBase:
    """Return the statement that inserts an entry or overwrites the one of the same key.

    The stored one can be an expired entry. An UPDATE alone would miss a row that housekeeping
    deletes at the same time, since that takes no lock on the stream.
    """
    insert = insert_with_conflict(dialect, KeyValueEntry)
    columns = [column.name for column in select_columns(KeyValueEntry)]
    return insert.on_conflict_do_update(
        index_elements=["stream_id", "store", "key"],
        set_={name: insert.excluded[name] for name in columns},
    )


async def _require_below_entry_and_byte_limits(
    ctx: Context, entry: KeyValueEntry, stored: ColumnRow | None
) -> None:
    """Raise LimitReached if the entry does not fit. Expired entries are not counted."""
    difference = entry.size - (stored.size if stored else 0)
    if stored and difference <= 0:
        return
    statement = select(
        func.count().label("many"),
        func.coalesce(func.sum(col(KeyValueEntry.size)), 0).label("bytes"),
    ).where(col(KeyValueEntry.stream_id) == entry.stream_id, _is_not_expired(ctx.environment.now()))
    (totals,) = await ctx.read(statement)
    options = ctx.environment.options
    if stored is None and totals.many >= (limit := options.key_value_max_entries):
        raise LimitReached(
            f"At most {limit} entries are allowed.", limit=limit, used=totals.many, path=["key"]
        )
    if totals.bytes + difference > (limit := options.key_value_max_total_size):
        message = f"All keys and values of an owner have at most {limit} bytes."
        raise LimitReached(message, limit=limit, used=int(totals.bytes), path=["value"])


async def _delete_and_return_unexpired_ids(
    ctx: Context, session: AsyncSession, *conditions: ColumnElement[bool]
) -> defaultdict[int, list[int]]:
    """Delete the matching entries; return the ids of unexpired ones by owner, in order."""
    columns = select_columns(KeyValueEntry, ("id", "stream_id", "expires_at"))
    deleted = await (await session.connection()).execute(
        delete(KeyValueEntry).where(*conditions).returning(*columns)
    )
    now = ctx.environment.now()
    ids_by_owner: defaultdict[int, list[int]] = defaultdict(list)
    for row in sorted(deleted, key=lambda row: row.id):
        if row.expires_at is None or row.expires_at > now:
            ids_by_owner[row.stream_id].append(row.id)
    return ids_by_owner


async def _write_audit_log_unless_own_entry(
    ctx: Context, session: AsyncSession, namespace: KeyValueNamespace, entry: NewAuditLogEntry
) -> None:
    """Write an entry without values to the audit log, unless the entry is the viewer's own.

    For a private entry of another user the target is that user.
    """
    if namespace.owner_id == PLATFORM:
        await audit_log.insert_audit_log_entries(
            ctx, session, replace(entry, target_kind="KeyValueEntry")
        )
    elif namespace.owner_id != ctx.viewer.user_id:
        await audit_log.insert_audit_log_entries(
            ctx, session, replace(entry, target_kind="User", target_id=namespace.owner_id)
        )
