"""Settings in the database: read, changed and applied while the process runs."""

import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

import orjson
from sqlalchemy import Connection, Select, delete, insert, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.admin.settings import SettingHistoryEntry, SettingValue
from models.errors import InvalidInput, LimitReached
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Stream
from models.runtime.environment import CommittedOptions, Environment
from models.store.columns import ColumnRow, insert_with_conflict, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.admin.setting_definitions import DEFINITIONS
from resolvers.admin.setting_types import SettingJson, SettingKind, json_from_value
from resolvers.admin.setting_values import (
    CUSTOM_PREFIX,
    options_with_stored_values,
    type_of_custom_value,
    validate_custom_scalar_or_list,
    validate_setting_key,
)
from resolvers.auth.log_actors import load_log_actor
from resolvers.context import Context
from resolvers.list_orders import ListOrder, SortColumn, list_orders, read_list_pages
from resolvers.pagination import read_by_keys, rows_beyond_cursor
from resolvers.users.quota.default_quota import recount_allocated_quotas
from resolvers.viewer import GuardRule

log = logging.getLogger(__name__)

WRITE_RULE = GuardRule(role=Role.ADMIN, scope=Scope.FULL)
READ_RULE = GuardRule(role=Role.ADMIN, scope=Scope.READ)
MAX_CUSTOM_SETTINGS = 200
MAX_KEYS_PER_CALL = 100
SELECT_STORED_VALUES = select(*select_columns(SettingValue, ("key", "value")))


class SettingOrder(StrEnum):
    """The order of a list of settings."""

    KEY_ASC = "KEY_ASC"
    KEY_DESC = "KEY_DESC"


class SettingHistoryEntryOrder(StrEnum):
    """The order of a list of changes of a setting; ties by id."""

    AT_ASC = "AT_ASC"
    AT_DESC = "AT_DESC"


SETTING_ORDERS = list_orders(SettingOrder, {"KEY": SortColumn("key", str)})
HISTORY_ORDERS = list_orders(SettingHistoryEntryOrder, {"AT": SortColumn("at", datetime)})


@dataclass(frozen=True, slots=True)
class CurrentSetting:
    """A setting with its current value."""

    key: str
    value: SettingJson
    type: SettingKind
    is_set: bool  # a value is set
    default: SettingJson = None
    name: str | None = None
    description: str | None = None
    restart_required: bool = False


async def load_current_settings(ctx: Context, key_part: str | None = None) -> list[CurrentSetting]:
    """Return the settings with a key that contains this text in any case, ordered by key.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    stored_values, key_part = await _read_stored_values(ctx), (key_part or "").casefold()
    keys = sorted({*DEFINITIONS, *(key for key in stored_values if key.startswith(CUSTOM_PREFIX))})
    return [
        _current_setting(ctx.environment, key, stored_values)
        for key in keys
        if key_part in key.casefold()
    ]


def page_of_settings(
    settings: Sequence[CurrentSetting], page_request: PageRequest, order: SettingOrder
) -> Page[CurrentSetting]:
    """Return the page of these settings, which are in ascending order of their keys.

    Raises InvalidInput for a cursor of another order.
    """
    list_order = SETTING_ORDERS[order]
    list_order.require_fitting_cursor(page_request)
    if cursor := page_request.cursor:
        keys = [setting.key for setting in settings]
        is_backward = page_request.is_backward is not list_order.is_descending
        settings = rows_beyond_cursor(settings, keys, cursor.sort_value, is_backward=is_backward)
    return page_request.page_from_rows(settings[::-1] if list_order.is_descending else settings)


async def find_setting(ctx: Context, key: str) -> CurrentSetting | None:
    """Return the setting of a key, or None. Raises Forbidden unless the viewer is an ADMIN."""
    ctx.viewer.require(READ_RULE)
    stored_values = await _read_stored_values(ctx)
    exists = key in DEFINITIONS or (key.startswith(CUSTOM_PREFIX) and key in stored_values)
    return _current_setting(ctx.environment, key, stored_values) if exists else None


async def _read_stored_values(ctx: Context) -> dict[str, Any]:
    return _values_by_key(await ctx.read(SELECT_STORED_VALUES))


def _values_by_key(rows: Sequence[ColumnRow]) -> dict[str, Any]:
    return {row.key: row.value["value"] for row in rows}


def _current_setting(
    environment: Environment, key: str, stored_values: Mapping[str, Any]
) -> CurrentSetting:
    """Return a setting with its default. A stored value that is invalid now counts as not set."""
    definition = DEFINITIONS.get(key)
    if definition is None:
        return CurrentSetting(
            key, stored_values[key], type_of_custom_value(stored_values[key]), is_set=True
        )
    default = definition.json_from_options(environment.initial_options)
    value, is_set = default, False
    if key in stored_values:
        with suppress(InvalidInput):  # of another version: the default applies
            value, is_set = json_from_value(definition.parse_value(stored_values[key])), True
    return CurrentSetting(
        key,
        value,
        definition.type,
        is_set,
        default,
        definition.name,
        definition.description,
        definition.restart_required,
    )


async def store_setting_value(ctx: Context, key: str, value: object) -> CurrentSetting:
    """Store the value of a setting; this process uses it as soon as the commit is durable.

    Raises Forbidden, InvalidInput if the key is unknown or the value has the wrong type or is out
    of range, and LimitReached if there are too many custom settings.
    """
    ctx.viewer.require(WRITE_RULE)
    validate_setting_key(key)
    definition = DEFINITIONS.get(key)
    json_value = (
        json_from_value(definition.parse_value(value))
        if definition
        else validate_custom_scalar_or_list(value)
    )
    async with ctx.write_session(PLATFORM) as session:
        stored_values = await _read_locked_values(session)
        if _stored_json(stored_values, key) != _stored_json({key: json_value}, key):
            values_after = {**stored_values, key: json_value}
            _require_custom_settings_within_limit(values_after)
            await _store_changed_settings_with_history_and_logs(
                ctx, session, _SettingsChange("settingSet", stored_values, values_after)
            )
    return _current_setting(ctx.environment, key, {key: json_value})


def _require_custom_settings_within_limit(values_after: Mapping[str, Any]) -> None:
    """Raise LimitReached if there are too many custom settings after a change."""
    custom_keys = [key for key in values_after if key.startswith(CUSTOM_PREFIX)]
    if len(custom_keys) > MAX_CUSTOM_SETTINGS:
        message = f"At most {MAX_CUSTOM_SETTINGS} custom settings are allowed."
        raise LimitReached(
            message, limit=MAX_CUSTOM_SETTINGS, used=MAX_CUSTOM_SETTINGS, path=["key"]
        )


class SettingsReset(NamedTuple):
    """The reset settings that have a definition, and the indexes of keys without stored value."""

    defined_settings: list[CurrentSetting]
    unset_key_indexes: list[int]


async def reset_settings(ctx: Context, keys: Sequence[str]) -> SettingsReset:
    """Delete the stored values of settings, so that their defaults apply.

    Custom settings are deleted. Raises Forbidden or InvalidInput.
    """
    ctx.viewer.require(WRITE_RULE)
    if len(keys) > MAX_KEYS_PER_CALL:
        raise InvalidInput(
            f"At most {MAX_KEYS_PER_CALL} settings can be changed at once.",
            constraint=ValidationConstraint.MAX,
            path=["settings"],
        )
    for index, key in enumerate(keys):
        validate_setting_key(key, path=("settings",), index=index)
    async with ctx.write_session(PLATFORM) as session:
        stored_values = await _read_locked_values(session)
        values_left = {key: value for key, value in stored_values.items() if key not in keys}
        if values_left != stored_values:
            await _store_changed_settings_with_history_and_logs(
                ctx, session, _SettingsChange("settingDelete", stored_values, values_left)
            )
    default_indexes = [index for index, key in enumerate(keys) if key not in stored_values]
    defined_settings = [
        _current_setting(ctx.environment, key, {})
        for key in dict.fromkeys(keys)
        if key in DEFINITIONS
    ]
    return SettingsReset(defined_settings, default_indexes)


async def _read_locked_values(session: AsyncSession) -> dict[str, Any]:
    """Return the stored values, which no other transaction can change before this one ends."""
    return _values_by_key((await (await session.connection()).execute(SELECT_STORED_VALUES)).all())


@dataclass(frozen=True, slots=True)
class _SettingsChange:
    """The stored values of all settings, before and after a mutation."""

    mutation: str
    values_before: Mapping[str, Any]
    values_after: Mapping[str, Any]

    @property
    def changed_keys(self) -> list[str]:
        """The keys with another value, or with one only before or after, in their order."""
        before, after = self.values_before, self.values_after
        keys = sorted({*before, *after})
        return [key for key in keys if _stored_json(before, key) != _stored_json(after, key)]


async def _store_changed_settings_with_history_and_logs(
    ctx: Context, session: AsyncSession, change: _SettingsChange
) -> None:
    """Store the differing values with history, audit log and journal entries.

    The options apply when the transaction is committed.
    """
    now, initial_options = ctx.environment.now(), ctx.environment.initial_options
    history_rows = await _setting_history_rows(ctx, session, change, now)
    await _write_changed_setting_values(session, change, now)
    await (await session.connection()).execute(insert(SettingHistoryEntry), history_rows)
    await _write_audit_log_of_settings(ctx, session, change)
    (options_before, _), (options, _) = (
        options_with_stored_values(initial_options, change.values_before),
        options_with_stored_values(initial_options, change.values_after),
    )
    if options.users_default_quota != options_before.users_default_quota:
        await recount_allocated_quotas(ctx, session, options.users_default_quota)
    history_ids = [row["id"] for row in history_rows]
    position = await ctx.record_change(
        session, PLATFORM, EventType.SETTING_UPDATED, history_ids, key=change.changed_keys
    )
    session.info[CommittedOptions] = CommittedOptions(options, position)


async def _setting_history_rows(
    ctx: Context, session: AsyncSession, change: _SettingsChange, now: datetime
) -> list[dict[str, Any]]:
    """Return a row of the settings' history for each changed key."""
    before, after = change.values_before, change.values_after
    actor = await load_log_actor(session, ctx.viewer)
    return [
        {
            "id": ctx.environment.new_id(),
            "key": key,
            "before": {"value": before[key]} if key in before else None,
            "after": {"value": after[key]} if key in after else None,
            "at": now,
            "actor": actor.name,
            "actor_id": actor.user_id,
            "reason": ctx.reason,
        }
        for key in change.changed_keys
    ]


async def _write_changed_setting_values(
    session: AsyncSession, change: _SettingsChange, now: datetime
) -> None:
    """Insert, update or delete the stored values of the changed keys."""
    connection = await session.connection()
    changed_keys = change.changed_keys
    after = change.values_after
    await connection.run_sync(
        _upsert_setting_values, {key: after[key] for key in changed_keys if key in after}, now
    )
    deleted_keys = [key for key in changed_keys if key not in after]
    await connection.execute(delete(SettingValue).where(col(SettingValue.key).in_(deleted_keys)))


async def _write_audit_log_of_settings(
    ctx: Context, session: AsyncSession, change: _SettingsChange
) -> None:
    """Write an audit log entry for each changed key."""
    before, after = change.values_before, change.values_after
    entries = [
        NewAuditLogEntry(
            change.mutation,
            "Setting",
            before={key: before[key]} if key in before else None,
            after={key: after[key]} if key in after else None,
        )
        for key in change.changed_keys
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)


def _stored_json(values_by_key: Mapping[str, Any], key: str) -> bytes | None:
    """Return the canonical JSON of a stored value, or None."""
    return orjson.dumps(values_by_key[key]) if key in values_by_key else None


def _upsert_setting_values(
    connection: Connection, values: Mapping[str, Any], updated_at: Any
) -> None:
    if values:
        insert = insert_with_conflict(connection.dialect.name, SettingValue).values(
            [
                {"key": key, "value": {"value": value}, "updated_at": updated_at}
                for key, value in values.items()
            ]
        )
        changed = {name: insert.excluded[name] for name in ("value", "updated_at")}
        connection.execute(insert.on_conflict_do_update(index_elements=["key"], set_=changed))


async def apply_stored_settings_and_list_invalid(environment: Environment) -> list[str]:
    """Apply the stored settings in this process and return the keys with unusable values."""
    statement = select(col(Stream.last)).where(col(Stream.id) == PLATFORM)
    position = next((row.last for row in await environment.database.read(statement)), 0)
    options, invalid_keys = options_with_stored_values(
        environment.initial_options,
        _values_by_key(await environment.database.read(SELECT_STORED_VALUES)),
    )
    environment.use_options_unless_outdated(CommittedOptions(options, position))
    return invalid_keys


def log_unusable_settings(keys: Sequence[str]) -> None:
    """Log a warning for stored values that are not usable by this version."""
    for key in keys:
        log.warning("Invalid stored setting; using the default", extra={"key": key})


@dataclass(frozen=True, slots=True)
class SettingHistoryPageKey:
    """A page of the changes of one setting."""

    key: str
    page_request: PageRequest
    order: ListOrder
    columns: frozenset[str]


async def load_history_pages(
    ctx: Context, page_keys: list[SettingHistoryPageKey]
) -> list[Page[ColumnRow]]:
    """Load pages of setting changes.

    Raises Forbidden unless the viewer is an ADMIN, and InvalidInput for a cursor of another order.
    """
    ctx.viewer.require(READ_RULE)
    return await read_list_pages(ctx, SettingHistoryEntry, page_keys, _select_changes_of_setting)


async def count_history_entries(ctx: Context, page_keys: list[SettingHistoryPageKey]) -> list[int]:
    """Count the changes of settings, in the given order.

    Raises Forbidden unless the viewer is an ADMIN.
    """
    ctx.viewer.require(READ_RULE)
    statements = [_select_changes_of_setting(ctx, key, ["id"]) for key in page_keys]
    return await pagination.count_rows(ctx, statements)


def _select_changes_of_setting(
    _ctx: Context, page_key: SettingHistoryPageKey, columns: Collection[str]
) -> Select[*tuple[Any, ...]]:
    return select(*select_columns(SettingHistoryEntry, columns)).where(
        col(SettingHistoryEntry.key) == page_key.key
    )


async def load_visible_changes_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load setting changes by id, in the given order. None for ids that the viewer can't see."""
    if not ctx.viewer.role.includes(Role.ADMIN):
        return [None] * len(ids)
    return await read_by_keys(
        ctx, select(*select_columns(SettingHistoryEntry)), col(SettingHistoryEntry.id), ids
    )
