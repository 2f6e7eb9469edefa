"""Changes to locked users, one or many, with few statements and their journal entries."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.domains.tables import Domain
from models.errors import Conflict, Forbidden, NotFound
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.store.columns import ColumnRow, core_table
from models.users.tables import User
from resolvers.access import require_full_scope_for_other_users
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.users.limit_values import limit_or_none
from resolvers.users.selection import (
    UserSelector,
    require_managed_users,
    require_selected_users,
)
from resolvers.users.validation import schema_name, schema_path

# Columns that follow from others or mean nothing to clients.
UNREPORTED_COLUMNS = frozenset(
    {
        "openpgp_key",
        "password_changed_at",
        "relays",
        "temporary_from",
        "temporary_until",
        "username_key",
        "words",
    }
)

# Columns in which 0 is unlimited.
LIMIT_COLUMNS = frozenset({"quota", "received_per_hour", "recipients_per_day", "forwards_per_day"})


@dataclass
class LockedUsers:
    """Users that are locked until the transaction ends, with their changes."""

    session: AsyncSession
    rows: Sequence[ColumnRow]
    domains_by_id: Mapping[int, Domain]
    new_values: dict[int, dict[str, Any]] = field(default_factory=dict)  # by user id, then column
    before: dict[int, dict[str, Any]] = field(default_factory=dict)  # of changed values
    after: dict[int, dict[str, Any]] = field(default_factory=dict)
    user_ids_to_sign_out: set[int] = field(default_factory=set)  # users whose tokens end

    def set_columns_to_store(self, user_row: ColumnRow, **values: Any) -> Collection[str]:
        """Set columns of a user. Returns the columns with a changed value."""
        old_values = {name: getattr(user_row, name) for name in values}
        changed = [name for name in values if old_values[name] != values[name]]
        if changed:
            self.new_values.setdefault(user_row.id, {}).update(values)
        for name in changed:
            self.report_change(user_row, name, old_values[name], values[name])
        return changed

    def report_change(self, user_row: ColumnRow, name: str, before: Any, after: Any) -> None:
        """Report a changed value in the journal and the audit log, without storing it."""
        self.before.setdefault(user_row.id, {})[name] = before
        self.after.setdefault(user_row.id, {})[name] = after

    def sign_out_when_stored(self, user_row: ColumnRow) -> None:
        """Mark the user: the tokens end when the changes are stored."""
        self.user_ids_to_sign_out.add(user_row.id)

    @property
    def changed_users(self) -> list[ColumnRow]:
        """The users with changes."""
        return [
            row for row in self.rows if row.id in self.after or row.id in self.user_ids_to_sign_out
        ]

    def changed_field_names(self, user_row: ColumnRow) -> list[str]:
        """Return the changed columns of a user by their names in the schema."""
        return sorted(
            schema_name(name)
            for name in self.after.get(user_row.id, {}).keys() - UNREPORTED_COLUMNS
        )


@asynccontextmanager
async def lock_users_and_store_changes(
    ctx: Context, selection: UserSelector, mutation: str, *, path: str = "users"
) -> AsyncGenerator[LockedUsers]:
    """Lock users for a change. On leaving, store the changes with journal and audit log entries.

    Raises Forbidden or NotFound as `require_selected_users` does, and the errors of
    `lock_loaded_users_and_store_changes`.
    """
    rows = await require_selected_users(ctx, selection, path=path)
    async with lock_loaded_users_and_store_changes(ctx, rows, mutation, path=path) as locked_users:
        yield locked_users


@asynccontextmanager
async def lock_loaded_users_and_store_changes(
    ctx: Context, rows: Sequence[ColumnRow], mutation: str, *, path: str
) -> AsyncGenerator[LockedUsers]:
    """Lock users as `lock_users_and_store_changes` does, whose rows the viewer can change.

    Users other than the viewer need a credential with the scope FULL. Raises Conflict if a user
    moves to another domain, and Forbidden or NotFound if the viewer can no longer change one.
    """
    require_full_scope_for_other_users(ctx, [row.id for row in rows])
    user_ids = tuple(row.id for row in rows)
    domain_streams = {row.domain_id or PLATFORM for row in rows}
    async with ctx.write_session(*user_ids, *domain_streams) as session:
        rows = await _require_managed_users_again(ctx, user_ids, path)
        _require_users_in_locked_domains(rows, domain_streams, path)
        domains = {
            key: await session.get_one(Domain, key, populate_existing=True)
            for key in sorted(domain_streams - {PLATFORM})
        }
        locked_users = LockedUsers(session, rows, domains)
        yield locked_users
        await session.flush()
        await _store_user_changes(ctx, locked_users)
        await _journal_and_log_user_changes(ctx, locked_users, mutation)
    authentication.drop_cached_credentials(
        ctx.environment, *(row.id for row in locked_users.changed_users)
    )


async def _require_managed_users_again(
    ctx: Context, user_ids: Sequence[int], path: str
) -> Sequence[ColumnRow]:
    """Reload users. The index of an error would not be that of an item in the input."""
    try:
        return await require_managed_users(ctx, user_ids, path=path)
    except (NotFound, Forbidden) as refusal:
        refusal.index = None
        raise


def _require_users_in_locked_domains(
    rows: Sequence[ColumnRow], domain_streams: Set[int], path: str
) -> None:
    """Raise Conflict if a user moved to another domain before it was locked."""
    if not {row.domain_id or PLATFORM for row in rows} <= domain_streams:
        raise Conflict(
            "Another request moved a user to another domain at the same time: retry.",
            path=[path],
        )


async def _store_user_changes(ctx: Context, locked_users: LockedUsers) -> None:
    """Store the new column values and sign-outs. Users with the same ones share one statement."""
    user_ids_by_values: defaultdict[str, list[int]] = defaultdict(list)
    for row in locked_users.changed_users:
        user_ids_by_values[
            f"{row.id in locked_users.user_ids_to_sign_out} {locked_users.new_values.get(row.id)}"
        ].append(row.id)
    connection, now = await locked_users.session.connection(), ctx.environment.now()
    for user_ids in user_ids_by_values.values():
        version_values = (
            {"auth_version": col(User.auth_version) + 1}
            if user_ids[0] in locked_users.user_ids_to_sign_out
            else {}
        )
        values = {
            **locked_users.new_values.get(user_ids[0], {}),
            **version_values,
            "updated_at": now,
        }
        table = core_table(User)
        await connection.execute(update(table).where(table.c.id.in_(user_ids)).values(values))


async def _journal_and_log_user_changes(
    ctx: Context, locked_users: LockedUsers, mutation: str
) -> None:
    """Write the changes to the journals and to the audit log."""
    rows = locked_users.changed_users
    users_by_stream: defaultdict[int, list[ColumnRow]] = defaultdict(list)
    user_ids = {row.id for row in rows}
    for row in rows:
        users_by_stream[row.id].append(row)
        users_by_stream[row.domain_id or PLATFORM].append(row)
    entries = {
        stream: ctx.journal_entries(
            EventType.USER_UPDATED,
            [row.id for row in users],
            changed=[locked_users.changed_field_names(row) for row in users],
            **({} if stream in user_ids else {"twice": True}),  # the users' own streams have it too
        )
        for stream, users in users_by_stream.items()
    }
    await journal.record_entries_in_streams_or_raise(
        locked_users.session, entries, at=ctx.environment.now()
    )
    await audit_log.insert_audit_log_entries(
        ctx,
        locked_users.session,
        *(
            NewAuditLogEntry(
                mutation,
                "User",
                row.id,
                row.domain_id,
                *_old_and_new_audit_log_values(locked_users, row),
            )
            for row in rows
            if row.id != ctx.viewer.user_id
        ),
    )


def _old_and_new_audit_log_values(
    locked_users: LockedUsers, user_row: ColumnRow
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return old and new values of a user for the audit log; a public key as its properties."""
    hidden_columns = UNREPORTED_COLUMNS - {"openpgp_key"} | {"openpgp_public_key"}
    before = locked_users.before.get(user_row.id, {})
    after = locked_users.after.get(user_row.id, {})
    return _visible_values_by_field(before, hidden_columns), _visible_values_by_field(
        after, hidden_columns
    )


def _visible_values_by_field(values: Mapping[str, Any], hidden_columns: Set[str]) -> dict[str, Any]:
    """Return columns of a user by the names of the API's fields; None is an unlimited limit."""
    values_by_field: dict[str, Any] = {}
    for column, value in values.items():
        if column in hidden_columns:
            continue
        *parents, name = schema_path(column)
        holder = values_by_field
        for parent in parents:
            holder = holder.setdefault(parent, {})
        holder[name] = limit_or_none(value) if column in LIMIT_COLUMNS else value
    return values_by_field
