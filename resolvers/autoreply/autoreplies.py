"""Read and set the autoreplies of users."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from mail import autoreply as answering
from mail.addresses import address_syntax
from mail.archives.json_lines import parse_timestamp
from mail.autoreply import AutoreplyRule
from models.addresses.tables import Address, AddressKind
from models.autoreply import Autoreply
from models.errors import ErrorCollector, InvalidInput, NotFound
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.store.columns import select_columns
from models.store.prepared_statements import (
    PreparedStatement,
    integer_parameter,
    is_in_parameter,
    prepare_cached,
)
from models.users.roles import Scope, expand_scopes
from models.users.tables import User
from models.validation_constraints import ValidationConstraint
from resolvers.access import is_overseen_user, require_user_id
from resolvers.addresses.loaders import is_visible_address
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.autoreply.validation import (
    MAX_INTERVAL,
    SETTABLE_COLUMNS,
    audit_log_values_before_and_after,
    build_and_check_row,
    changed_column_names,
    delete_rows,
    load_stored_rows,
    store_rows_and_forget_senders,
    validate_autoreply_columns,
)
from resolvers.context import Context
from resolvers.users.selection import UserSelector, require_selected_users
from resolvers.users.user_locks import LockedUsers, lock_users_and_store_changes
from resolvers.users.validation import schema_name

PATCH_PATH = ("set",)  # the place of the patch in the input
MAX_ADDRESSES = 50
JSON_TYPES = {
    "enabled": bool,
    "interval": int,
    "addresses": list,
}  # in export files; other columns are text
# one of them is needed to load autoreplies by id
READ_SCOPES = frozenset({Scope.READ, Scope.SETTINGS})
_SELECT_AUTOREPLIES = select(
    col(User.id).label("its"), *select_columns(Autoreply, {*SETTABLE_COLUMNS, "created_at"})
).outerjoin(Autoreply, col(Autoreply.id) == col(User.id))
_AUTOREPLY_OF_VIEWER = PreparedStatement(
    _SELECT_AUTOREPLIES.where(
        col(User.id) == integer_parameter("viewer"), col(User.deleted_at).is_(None)
    )
)


@dataclass(frozen=True, slots=True)
class AutoreplyState:
    """The autoreply of a user or an address. If `created_at` is None, none is set."""

    id: int  # of the user or the address
    rule: AutoreplyRule
    addresses: Sequence[str]  # of the rule, in the form shown to users
    interval: timedelta
    active_now: bool
    created_at: datetime | None
    address: str | None = None  # None for the autoreply of a user


async def load_visible_autoreplies_by_user(
    ctx: Context, user_ids: list[int]
) -> list[AutoreplyState | None]:
    """Load the autoreplies of users, in the given order. None for users the viewer can't see."""
    if user_ids == [ctx.viewer.user_id]:
        rows = await ctx.read_prepared(_AUTOREPLY_OF_VIEWER)
    else:
        is_visible = is_overseen_user(ctx)
        rows = await ctx.read(_SELECT_AUTOREPLIES.where(col(User.id).in_(user_ids), is_visible))
    address_text_by_id = await _load_address_texts(
        ctx, [key for row in rows for key in row.addresses or ()]
    )
    autoreply_by_user = {
        row.its: _autoreply_state(ctx, row.its, row, address_text_by_id) for row in rows
    }
    return [autoreply_by_user.get(key) for key in user_ids]


async def _load_address_texts(ctx: Context, address_ids: Sequence[int]) -> dict[int, str]:
    """Load the texts of addresses by id, without deleted ones."""
    if not address_ids:
        return {}
    statement = _select_address_texts(ctx.environment.database.dialect)
    rows = await ctx.read_prepared(statement, ids=list(set(address_ids)), reads_many_rows=True)
    return {row.id: row.display_address for row in rows}


@prepare_cached
def _select_address_texts(dialect: str) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(Address, {"id", "display_address"})).where(
        is_in_parameter(dialect, col(Address.id), "ids")
    )


async def load_visible_autoreplies_by_id(
    ctx: Context, ids: list[int]
) -> list[AutoreplyState | None]:
    """Load autoreplies by the id of their user or address, in the given order.

    None if none is set, the viewer can't see it, or the credential has no scope in READ_SCOPES.
    """
    if not READ_SCOPES & expand_scopes(ctx.viewer.scopes):
        return [None] * len(ids)
    autoreply_by_id = dict(zip(ids, await load_visible_autoreplies_by_user(ctx, ids), strict=True))
    other_ids = [key for key, autoreply in autoreply_by_id.items() if autoreply is None]
    autoreply_by_id |= zip(
        other_ids, await load_visible_autoreplies_by_forward_address(ctx, other_ids), strict=True
    )
    return [
        autoreply if autoreply and autoreply.created_at else None
        for autoreply in (autoreply_by_id[key] for key in ids)
    ]


async def load_visible_autoreplies_by_forward_address(
    ctx: Context, address_ids: list[int]
) -> list[AutoreplyState | None]:
    """Load the autoreplies of forwarding addresses, in the given order. None for others."""
    statement = (
        select(
            *(col(Address.id).label("its"), col(Address.display_address)),
            *select_columns(Autoreply, {*SETTABLE_COLUMNS, "created_at"}),
        )
        .outerjoin(Autoreply, col(Autoreply.id) == col(Address.id))
        .where(
            col(Address.id).in_(address_ids),
            col(Address.kind) == AddressKind.FORWARD,
            is_visible_address(ctx),
        )
    )
    rows = await ctx.read(statement) if address_ids else ()
    autoreply_by_address = {
        row.its: replace(_autoreply_state(ctx, row.its, row, {}), address=row.display_address)
        for row in rows
    }
    return [autoreply_by_address.get(key) for key in address_ids]


def _autoreply_state(
    ctx: Context, owner_id: int, autoreply_row: Any, address_text_by_id: Mapping[int, str]
) -> AutoreplyState:
    """Return the autoreply of an owner with its interval.

    `autoreply_row` is a row of an outer join: if its `created_at` is null, the owner has no
    autoreply, and the default rule is returned.
    """
    rule = (
        AutoreplyRule()
        if autoreply_row.created_at is None
        else AutoreplyRule.from_row(autoreply_row)
    )
    interval = ctx.environment.options.autoreply_interval
    if autoreply_row.interval is not None:
        interval = timedelta(seconds=autoreply_row.interval)
    is_active = rule.inactive_reason(ctx.environment.now()) is None
    address_texts = [
        address_text_by_id[address] for address in rule.addresses if address in address_text_by_id
    ]
    return AutoreplyState(
        owner_id, rule, address_texts, interval, is_active, autoreply_row.created_at
    )


async def export_own_autoreply_if_set(ctx: Context, user_id: int) -> dict[str, Any] | None:
    """Return the autoreply of the viewer by column for an export, or None if none is set."""
    statement = select(*select_columns(Autoreply, SETTABLE_COLUMNS)).where(
        col(Autoreply.id) == user_id
    )
    row = next(
        iter(await ctx.read(statement.where(col(Autoreply.user_id) == require_user_id(ctx)))), None
    )
    if row is None:
        return None
    address_text_by_id = await _load_address_texts(ctx, row.addresses)
    return {**row._asdict(), "addresses": list(address_text_by_id.values())}


def parse_exported_autoreply(exported: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns of an exported autoreply as `set_autoreplies` takes them.

    Raises InvalidInput or the error of a wrong time value.
    """
    columns: dict[str, Any] = {}
    for name in SETTABLE_COLUMNS:
        value = exported.get(name)
        json_type: Any = JSON_TYPES.get(name, str)
        if value is not None and not isinstance(value, json_type):
            raise InvalidInput(
                "The value has the wrong type.", constraint=ValidationConstraint.TYPE, path=[name]
            )
        if name.endswith("_at"):
            value = parse_timestamp(value)
        elif name == "interval" and value is not None:
            value = timedelta(seconds=max(0, min(value, int(MAX_INTERVAL.total_seconds()))))
        elif name == "addresses" and not all(isinstance(item, str) for item in value or ()):
            raise InvalidInput(
                "The value has the wrong type.", constraint=ValidationConstraint.TYPE, path=[name]
            )
        columns[name] = bool(value) if name == "enabled" else value
    return columns


async def set_autoreplies(
    ctx: Context, selection: UserSelector, columns: Mapping[str, Any]
) -> list[int]:
    """Change the autoreplies of users, all or none, and return the user ids.

    Columns that are not given stay. If texts or times change, or the autoreply is enabled,
    every sender gets a reply again. Raises InvalidInput, NotFound or Forbidden.
    """
    if not columns:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=PATCH_PATH,
        )
    problems = ErrorCollector()
    validated = validate_autoreply_columns(columns, problems, PATCH_PATH)
    problems.raise_collected()
    if validated.get("addresses"):
        validated["addresses"] = await _require_address_ids_of_single_user(
            ctx, selection, validated["addresses"]
        )
    now = ctx.environment.now()
    async with lock_users_and_store_changes(ctx, selection, "autoreplySet") as locked_users:
        stored_rows = await load_stored_rows(
            locked_users.session, [row.id for row in locked_users.rows]
        )
        rows = dict[int, dict[str, Any]]()
        for row in locked_users.rows:
            row_ids = {"id": row.id, "user_id": row.id}
            rows[row.id] = build_and_check_row(
                row_ids, stored_rows.get(row.id), validated, now, PATCH_PATH
            )
        changed_by_user = {
            key: changed_column_names(stored_rows.get(key), row) for key, row in rows.items()
        }
        changes_to_store = {
            key: names for key, names in changed_by_user.items() if names or key not in stored_rows
        }
        await store_rows_and_forget_senders(
            locked_users.session, {key: rows[key] for key in changes_to_store}, changes_to_store
        )
        changes = AutoreplyChanges(stored_rows, changes_to_store, rows)
        await _journal_autoreply_changes(ctx, locked_users, changes)
        await _write_audit_log_of_others_autoreplies(ctx, locked_users, "autoreplySet", changes)
    return [row.id for row in locked_users.rows]


async def delete_autoreplies(ctx: Context, selection: UserSelector) -> list[int]:
    """Delete the autoreplies of users and return the user ids."""
    async with lock_users_and_store_changes(ctx, selection, "autoreplyDelete") as locked_users:
        stored_rows = await load_stored_rows(
            locked_users.session, [row.id for row in locked_users.rows]
        )
        await delete_rows(locked_users.session, stored_rows)
        disabled_rows = {key: {"enabled": False} for key in stored_rows}
        changed_columns = {
            key: ["enabled"] if row.enabled else [] for key, row in stored_rows.items()
        }
        changes = AutoreplyChanges(stored_rows, changed_columns, disabled_rows)
        await _journal_autoreply_changes(ctx, locked_users, changes)
        await _write_audit_log_of_others_autoreplies(ctx, locked_users, "autoreplyDelete", changes)
    return [row.id for row in locked_users.rows]


async def _require_address_ids_of_single_user(
    ctx: Context, selection: UserSelector, address_texts: Sequence[str]
) -> list[int]:
    """Return the ids of the user's addresses, each once.

    Raises NotFound if one is not the user's, InvalidInput if one is received by a catch-all
    only, there are too many, or there is more than one user.
    """
    path = [*PATCH_PATH, "addresses"]
    if len(address_texts) > MAX_ADDRESSES:
        raise InvalidInput(
            f"At most {MAX_ADDRESSES} addresses are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    rows = await require_selected_users(ctx, selection)
    if len(rows) > 1:
        address_text = "`addresses` can be set for one user only."
        raise InvalidInput(address_text, constraint=ValidationConstraint.EXCLUSIVE, path=path)
    address_ids = list[int]()
    for index, address_text in enumerate(address_texts):
        try:
            address = address_syntax.normalize_and_validate_address(address_text)
        except InvalidInput as error:
            rule = error.constraint
            raise InvalidInput(error.message, constraint=rule, path=path, index=index) from error
        row = await answering.find_receiving_address_record(ctx.environment, address)
        if row is None or not rows or row.user_id != rows[0].id:
            raise NotFound(address_text, path=path, index=index)
        if "*" in row.local:
            pattern_message = (
                "Mail to this address is received by a catch-all: create the address first."
            )
            raise InvalidInput(
                pattern_message, constraint=ValidationConstraint.PATTERN, path=path, index=index
            )
        address_ids.append(row.id)
    return list(dict.fromkeys(address_ids))


@dataclass(frozen=True, slots=True)
class AutoreplyChanges:
    """The changes of autoreplies in one transaction, by user id."""

    stored_rows: Mapping[int, Any]  # before the change
    changed_columns: Mapping[int, Sequence[str]]
    new_rows: Mapping[int, Mapping[str, Any]]


async def _journal_autoreply_changes(
    ctx: Context, locked_users: LockedUsers, changes: AutoreplyChanges
) -> None:
    """Record the changed columns in the streams of users, and whether it was switched."""
    entries = dict[int, Sequence[JournalEntry]]()
    for user_id, column_names in changes.changed_columns.items():
        event_facts: dict[str, Any] = {"changed": [sorted(map(schema_name, column_names))]}
        event_type = EventType.AUTOREPLY_UPDATED
        if "enabled" in column_names:
            is_enabled = changes.new_rows[user_id]["enabled"]
            event_type = EventType.AUTOREPLY_ENABLED if is_enabled else EventType.AUTOREPLY_DISABLED
        entries[user_id] = ctx.journal_entries(event_type, [user_id], **event_facts)
    await journal.record_entries_in_streams_or_raise(
        locked_users.session, entries, at=ctx.environment.now()
    )


async def _write_audit_log_of_others_autoreplies(
    ctx: Context, locked_users: LockedUsers, mutation: str, changes: AutoreplyChanges
) -> None:
    """Write changes of other users' autoreplies to the audit log, without texts."""
    log_entries = []
    for row in locked_users.rows:
        if row.id in changes.changed_columns and row.id != ctx.viewer.user_id:
            before, after = audit_log_values_before_and_after(
                changes.stored_rows.get(row.id),
                changes.new_rows[row.id],
                changes.changed_columns[row.id],
            )
            log_entries.append(
                NewAuditLogEntry(mutation, "User", row.id, row.domain_id, before, after)
            )
    await audit_log.insert_audit_log_entries(ctx, locked_users.session, *log_entries)
