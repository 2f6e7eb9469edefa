"""Creating, updating and deleting filters, each in one transaction that locks their owners."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.storage.quota import require_quota_for_growth
from models.auth.security_log import SecurityEventAction
from models.errors import InvalidInput, require_all_found
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.filters.tables import Filter
from models.store.columns import ColumnRow, core_table, select_columns
from models.users.roles import AdminPermission, Role, Scope
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.filters import validation as filter_validation
from resolvers.filters.loaders import (
    is_visible_filter_sql,
    load_visible_filters_of_user,
    mailbox_ids_in_action,
    require_filter_capacity,
)
from resolvers.filters.validation import CheckedAction, FilterBeforeChange
from resolvers.users.custom_data import json_byte_count
from resolvers.users.selection import require_managed_users
from resolvers.viewer import GuardRule

MAX_NAME_LENGTH = 255  # characters
POSITION_RANGE = range(-(1 << 31), 1 << 31)
LOGGED_COLUMNS = ("name", "position", "active", "forward_to")  # columns in the audit log
GUARD_FOR_OTHERS = GuardRule(
    role=Role.DOMAIN_ADMIN, scope=Scope.FULL, admin_permission=AdminPermission.FILTERS
)

FilterInputValues = Mapping[str, Any]  # by column; query and action as in the input


@dataclass(frozen=True, slots=True)
class ValidatedFilter:
    """The columns of a validated new filter, and its targets."""

    row: dict[str, Any]
    new_targets: Sequence[str]  # targets


async def create_filter(ctx: Context, user_id: int | None, values: FilterInputValues) -> int:
    """Create a filter and return its ID. Without `position` it runs last.

    Raises InvalidInput, Forbidden, LimitReached or NotFound.
    """
    owner = require_user_id(ctx) if user_id is None else user_id
    require_permission_for_others_filters(ctx, [owner])
    async with ctx.write_session(owner) as session:
        (user,) = await require_managed_users(ctx, [owner], path="user")
        await require_filter_capacity(ctx, owner)
        validated = await validate_new_filter(ctx, owner, values)
        validated.row.setdefault("position", await position_after_all_filters(ctx, owner))
        await insert_filters(ctx, session, user, [validated], "filterCreate")
    return int(validated.row["id"])


async def validate_new_filter(
    ctx: Context, owner_id: int, values: FilterInputValues
) -> ValidatedFilter:
    """Validate a new filter and return its columns, without `position` unless it is given.

    Raises InvalidInput or NotFound.
    """
    key = ctx.environment.new_id()
    query = filter_validation.validated_merged_query(values["query"], {}, ["query"])
    checked_action = await filter_validation.validated_merged_action(
        ctx, values["action"], FilterBeforeChange(key, owner_id), ["action"]
    )
    filter_validation.require_filter_fits_into_script(key, query, checked_action)
    row = {
        "id": key,
        "user_id": owner_id,
        "name": "",
        "active": True,
        "public_metadata": None,
        "match_count": 0,
        "created_at": ctx.environment.now(),
        **_validated_simple_columns(values, ()),
        **_query_and_action_columns(query, checked_action),
    }
    return ValidatedFilter(row, checked_action.new_targets)


async def insert_filters(
    ctx: Context,
    session: AsyncSession,
    user: ColumnRow,
    filters: Sequence[ValidatedFilter],
    mutation_name: str,
) -> None:
    """Insert filters of a user with a locked stream, and record and log it."""
    rows = {int(filter_.row["id"]): filter_ for filter_ in filters}
    if rows:
        await require_quota_for_new_filters(ctx, session, user.id, filters)
        table = core_table(Filter)
        await (await session.connection()).execute(
            insert(table), [filter_.row for filter_ in filters]
        )
        await ctx.record_change(session, user.id, EventType.FILTER_CREATED, list(rows))
    await _log_new_targets_to_security_log(
        ctx, session, {key: (user.id, row.new_targets) for key, row in rows.items()}
    )
    await _write_audit_log_of_others_filters(
        ctx,
        session,
        mutation_name,
        {key: LoggedFilterChange(user, None, row.row) for key, row in rows.items()},
    )


async def require_quota_for_new_filters(
    ctx: Context, session: AsyncSession, user_id: int, filters: Iterable[ValidatedFilter]
) -> None:
    """Raise OverQuota if the metadata of these new filters don't fit into the account."""
    growth = sum(json_byte_count(new_filter.row["public_metadata"]) for new_filter in filters)
    check = partial(require_quota_for_growth, user_id=user_id, byte_count=growth)
    await ctx.environment.run_in_session(session, check)


async def delete_all_filters_of_user(
    ctx: Context, session: AsyncSession, user: ColumnRow, mutation_name: str
) -> None:
    """Delete all filters of a user with a locked stream, and record and log it."""
    rows = await load_visible_filters_of_user(ctx, user.id)
    await _delete_rows(session, [row.id for row in rows])
    await _journal_filter_changes(ctx, session, EventType.FILTER_DELETED, rows)
    await _write_audit_log_of_others_filters(
        ctx,
        session,
        mutation_name,
        {row.id: LoggedFilterChange(user, row._asdict(), None) for row in rows},
    )


async def position_after_all_filters(ctx: Context, owner_id: int) -> int:
    """Return the position after all filters of a user."""
    statement = select(func.max(col(Filter.position)).label("last")).where(
        col(Filter.user_id) == owner_id
    )
    (row,) = await ctx.read(statement)
    return 0 if row.last is None else position_after(row.last)


def position_after(position: int) -> int:
    """Return the next position, or the same if it is the last possible one."""
    return min(position + 1, POSITION_RANGE[-1])


async def update_filters(
    ctx: Context, filter_ids: Sequence[int], new_values: FilterInputValues
) -> None:
    """Update filters, all or none. Parts of query and action that are not given stay.

    Raises InvalidInput, NotFound or Forbidden.
    """
    if not new_values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    visible_rows = {row.id: row for row in await _load_visible_rows(ctx, filter_ids)}
    require_all_found(filter_ids, visible_rows)
    owners = [visible_rows[filter_id].user_id for filter_id in filter_ids]
    require_permission_for_others_filters(ctx, owners)
    async with ctx.write_session(*owners) as session:
        users = {user.id: user for user in await require_managed_users(ctx, owners, path="ids")}
        rows = await _load_visible_rows(ctx, filter_ids)
        require_all_found(filter_ids, {row.id for row in rows})
        changes_by_filter = dict[int, dict[str, Any]]()
        new_targets_by_filter = dict[int, tuple[int, Sequence[str]]]()
        for row in rows:
            values, checked_action = await _updated_columns(ctx, row, new_values)
            changes_by_filter[row.id] = {k: v for k, v in values.items() if getattr(row, k) != v}
            new_targets_by_filter[row.id] = (row.user_id, checked_action.new_targets)
        await _require_quota_for_metadata(ctx, session, rows, changes_by_filter)
        connection = await session.connection()
        for key, values in changes_by_filter.items():
            if values:
                await connection.execute(
                    update(core_table(Filter)).where(col(Filter.id) == key).values(values)
                )
        changed_rows = [row for row in rows if changes_by_filter[row.id]]
        await _journal_filter_changes(ctx, session, EventType.FILTER_UPDATED, changed_rows)
        await _log_new_targets_to_security_log(ctx, session, new_targets_by_filter)
        log = {
            row.id: LoggedFilterChange(users[row.user_id], row._asdict(), changes_by_filter[row.id])
            for row in changed_rows
        }
        await _write_audit_log_of_others_filters(ctx, session, "filterUpdate", log)


async def _require_quota_for_metadata(
    ctx: Context,
    session: AsyncSession,
    rows: Sequence[ColumnRow],
    changes_by_filter: Mapping[int, Mapping[str, Any]],
) -> None:
    """Raise OverQuota if the new metadata of these filters don't fit into an account."""
    growth_by_user = Counter[int]()
    for row in rows:
        if "public_metadata" in (changes := changes_by_filter[row.id]):
            old_size = json_byte_count(row.public_metadata)
            new_size = json_byte_count(changes["public_metadata"])
            growth_by_user[row.user_id] += new_size - old_size
    for user_id, growth in growth_by_user.items():
        check = partial(require_quota_for_growth, user_id=user_id, byte_count=growth)
        await ctx.environment.run_in_session(session, check)


class _ValidatedFilterUpdate(NamedTuple):
    """The new columns of a filter, and its action after the update."""

    columns: dict[str, Any]
    checked_action: CheckedAction


async def _updated_columns(
    ctx: Context, filter_row: ColumnRow, values: FilterInputValues
) -> _ValidatedFilterUpdate:
    """Return the new column values and the validated action."""
    query, at = filter_row.query, ["set", "query"]
    if values.get("query") is not None:
        query = filter_validation.validated_merged_query(values["query"], filter_row.query, at)
    checked_action = CheckedAction(filter_row.action, filter_row.forward_to, filter_row.relays)
    if values.get("action") is not None:
        filter_state = FilterBeforeChange(
            filter_row.id,
            filter_row.user_id,
            filter_row.action,
            filter_row.forward_to,
            filter_row.relays,
        )
        checked_action = await filter_validation.validated_merged_action(
            ctx, values["action"], filter_state, ["set", "action"]
        )
    filter_validation.require_filter_fits_into_script(filter_row.id, query, checked_action)
    return _ValidatedFilterUpdate(
        {
            **_validated_simple_columns(values, ("set",)),
            **_query_and_action_columns(query, checked_action),
        },
        checked_action,
    )


async def delete_filters(ctx: Context, filter_ids: Sequence[int]) -> None:
    """Delete filters, all or none. Raises NotFound or Forbidden."""
    visible_rows = {row.id: row for row in await _load_visible_rows(ctx, filter_ids)}
    require_all_found(filter_ids, visible_rows)
    owners = [visible_rows[filter_id].user_id for filter_id in filter_ids]
    require_permission_for_others_filters(ctx, owners)
    async with ctx.write_session(*owners) as session:
        users = {user.id: user for user in await require_managed_users(ctx, owners, path="ids")}
        rows = await _load_visible_rows(ctx, filter_ids)
        require_all_found(filter_ids, {row.id for row in rows})
        await _delete_rows(session, [row.id for row in rows])
        await _journal_filter_changes(ctx, session, EventType.FILTER_DELETED, rows)
        log = {row.id: LoggedFilterChange(users[row.user_id], row._asdict(), None) for row in rows}
        await _write_audit_log_of_others_filters(ctx, session, "filterDelete", log)


async def delete_filters_and_build_journal_entries(
    ctx: Context, session: AsyncSession, mailbox_ids_by_user: Mapping[int, Collection[int]]
) -> dict[int, list[JournalEntry]]:
    """Delete the filters that use one of these mailboxes. Returns the journal entries by user.

    The users' streams are locked.
    """
    statement = select(*select_columns(Filter, ("id", "user_id", "action"))).where(
        col(Filter.user_id).in_(mailbox_ids_by_user)
    )
    rows = (await (await session.connection()).execute(statement)).all()
    deleted_rows = [
        row
        for row in rows
        if set(mailbox_ids_by_user[row.user_id]).intersection(mailbox_ids_in_action(row.action))
    ]
    await _delete_rows(session, [row.id for row in deleted_rows])
    return {
        user: ctx.journal_entries(
            EventType.FILTER_DELETED, sorted(row.id for row in deleted_rows if row.user_id == user)
        )
        for user in {row.user_id for row in deleted_rows}
    }


async def _delete_rows(session: AsyncSession, filter_ids: Sequence[int]) -> None:
    if filter_ids:
        table = core_table(Filter)
        await (await session.connection()).execute(delete(table).where(table.c.id.in_(filter_ids)))


async def _load_visible_rows(ctx: Context, filter_ids: Sequence[int]) -> Sequence[ColumnRow]:
    statement = select(*select_columns(Filter)).where(
        is_visible_filter_sql(ctx), col(Filter.id).in_(filter_ids)
    )
    return await ctx.read(statement.order_by(col(Filter.id)))


def require_permission_for_others_filters(ctx: Context, owner_ids: Collection[int]) -> None:
    """Raise Forbidden if the viewer may not change filters of others.

    The credential needs the scope FULL, and a DOMAIN_ADMIN the permission FILTERS.
    """
    if set(owner_ids) - {ctx.viewer.user_id}:
        ctx.viewer.require(GUARD_FOR_OTHERS)


def _validated_simple_columns(
    values: FilterInputValues, input_path: Sequence[str]
) -> dict[str, Any]:
    """Return the columns that are stored as given.

    For most, None means no change. Raises InvalidInput.
    """
    columns: dict[str, Any] = {}
    if "name" in values:
        columns["name"] = (
            sql_text.validated_trimmed_text(
                values["name"], max_length=MAX_NAME_LENGTH, path=[*input_path, "name"]
            )
            or ""
        )
    if values.get("active") is not None:
        columns["active"] = values["active"]
    if values.get("position") is not None:
        if values["position"] not in POSITION_RANGE:
            raise InvalidInput(
                "The position must be a 32-bit integer.",
                constraint=ValidationConstraint.RANGE,
                path=[*input_path, "position"],
            )
        columns["position"] = values["position"]
    if "public_metadata" in values:
        columns["public_metadata"] = values["public_metadata"]
    return columns


def _query_and_action_columns(
    query: dict[str, Any], checked_action: CheckedAction
) -> dict[str, Any]:
    return {
        "query": query,
        "action": checked_action.action,
        "forward_to": list(checked_action.targets),
        "relays": checked_action.encrypted_relays,
    }


async def _journal_filter_changes(
    ctx: Context, session: AsyncSession, event_type: EventType, rows: Sequence[ColumnRow]
) -> None:
    filter_ids_by_user: dict[int, list[int]] = {}
    for row in rows:
        filter_ids_by_user.setdefault(row.user_id, []).append(row.id)
    changes_by_user = {
        user_id: [(event_type, filter_ids)] for user_id, filter_ids in filter_ids_by_user.items()
    }
    if changes_by_user:
        await ctx.record_changes(session, changes_by_user)


async def _log_new_targets_to_security_log(
    ctx: Context,
    session: AsyncSession,
    owner_and_targets_by_filter: Mapping[int, tuple[int, Sequence[str]]],
) -> None:
    """Write each new target to the owner's security log, since an attacker often adds forwards."""
    events = [
        NewSecurityEvent(
            SecurityEventAction.FILTER_FORWARDING_ADDED,
            owner,
            target=_target_without_secrets(target),
        )
        for owner, new_targets in owner_and_targets_by_filter.values()
        for target in new_targets
    ]
    await security_log.insert_security_events_and_queue_notices(ctx, session, events)


def _target_without_secrets(target: str) -> str:
    """Return a target without the parts of a URL that can be secret."""
    if "://" not in target:
        return target
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname}"


@dataclass(frozen=True, slots=True)
class LoggedFilterChange:
    """The owner of a filter, and its values before and after a change; None if it didn't exist."""

    owner: ColumnRow
    values_before: FilterInputValues | None
    values_after: FilterInputValues | None


async def _write_audit_log_of_others_filters(
    ctx: Context,
    session: AsyncSession,
    mutation_name: str,
    changes_by_filter: Mapping[int, LoggedFilterChange],
) -> None:
    """Log changes of other users' filters for administrators."""

    def logged_values(values: FilterInputValues | None) -> dict[str, Any] | None:
        if values is None:
            return None
        logged = {name: values[name] for name in LOGGED_COLUMNS if name in values}
        if "forward_to" in logged:
            targets = logged.pop("forward_to")
            logged["forwardTo"] = [_target_without_secrets(target) for target in targets]
        return logged

    entries = [
        NewAuditLogEntry(
            mutation_name,
            "Filter",
            key,
            change.owner.domain_id,
            logged_values(change.values_before),
            logged_values(change.values_after),
        )
        for key, change in changes_by_filter.items()
        if change.owner.id != ctx.viewer.user_id
    ]
    await audit_log.insert_audit_log_entries(ctx, session, *entries)
