"""Create, update, delete, run and cancel connectors."""

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.connectors.remote_server import RemoteFailure
from models.admin.tasks import TaskState
from models.connectors import Connector, ConnectorRun, ConnectorSecurity, RemoteMailbox
from models.errors import Conflict, InvalidInput, LimitReached, require_all_found
from models.events.event_types import EventType
from models.events.wakeups import CONNECTORS
from models.runtime.environment import Environment
from models.store.columns import ColumnRow, select_columns
from models.users.roles import UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.access import require_user_id
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.connectors import credentials, one_time_imports
from resolvers.connectors import validation as connector_validation
from resolvers.connectors.loaders import (
    GUARD_FOR_OTHERS,
    WRITE_GUARD_FOR_OTHERS,
    is_visible_connector,
    load_visible_connectors_by_id,
    load_visible_runs_by_id,
)
from resolvers.connectors.schedule import new_queued_run, next_run_time
from resolvers.context import Context
from resolvers.users import managed_objects
from resolvers.users.selection import require_managed_users
from resolvers.viewer import GuardRule

MAX_CONNECTORS = 50  # of one account
LOGGED_COLUMNS = ("name", "host", "active")
SOURCE_COLUMNS = ("protocol", "host", "port", "username")  # the account that mail is fetched from
# No server has this number. So the next run compares all messages by their digests.
NO_UID_VALIDITY = -1


async def create_connector(
    ctx: Context,
    user_id: int | None,
    fields: Mapping[str, Any],
    password: str | None,
) -> int:
    """Create a connector and return its id. One with an interval runs at once.

    The default user is the viewer. Raises InvalidInput, LimitReached at 50 connectors, NotFound,
    and Forbidden if the viewer may not manage connectors of the user.
    """
    owner_id = require_user_id(ctx) if user_id is None else user_id
    environment = ctx.environment
    connector_id = ctx.environment.new_id()
    _require_guard_for_others(ctx, [owner_id])
    values = connector_validation.validate_connector_fields(fields, {}, environment.options)
    now = environment.now()
    runs_now = values.get("active", True) and values.get("interval")
    async with ctx.write_session(owner_id) as session:
        (user,) = await require_managed_users(ctx, [owner_id], path="user")
        await _require_below_connector_limit(ctx, owner_id)
        row = Connector(
            id=connector_id,
            user_id=owner_id,
            secret=credentials.encrypt_secret(
                environment, connector_id, _merged_connector_secret({}, None, fields, password)
            ),
            created_at=now,
            next_run_at=now if runs_now else None,
            **values,
        )
        session.add(row)
        await session.flush()
        await ctx.record_change(session, owner_id, EventType.CONNECTOR_CREATED, [connector_id])
        after = {name: getattr(row, name) for name in LOGGED_COLUMNS}
        log_entry = NewAuditLogEntry(
            "connectorCreate", "Connector", connector_id, user.domain_id, None, after
        )
        await _write_audit_and_security_logs(ctx, session, user, log_entry)
    wake_connector_workers_after_commit(ctx)
    return connector_id


def _merged_connector_secret(
    before: Mapping[str, Any],
    old_oauth: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    password: str | None,
) -> Any:
    """Return the secret to store. A new password removes the tokens of the old one.

    A client secret belongs to one client at one token endpoint: a new one of these removes it.
    """
    secret = dict(before)
    oauth, old_oauth = fields.get("oauth"), old_oauth or {}
    if password is not None:
        secret = {
            "password": connector_validation.validate_secret(password),
            "client": before.get("client"),
        }
    if "oauth" in fields and (
        not oauth or any(oauth[name] != old_oauth.get(name) for name in ("token_url", "client_id"))
    ):
        secret.pop("client", None)
    if oauth and oauth.get("client_secret"):
        secret["client"] = connector_validation.validate_secret(
            oauth["client_secret"], "server", "oauth", "clientSecret"
        )
    return secret


async def update_connectors(
    ctx: Context, ids: Sequence[int], fields: Mapping[str, Any], password: str | None
) -> None:
    """Update connectors, all or none. One that is activated runs at once.

    Raises NotFound, InvalidInput, LimitReached, Forbidden, and Conflict if one is moved to another
    user while it runs.
    """
    if not fields and password is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    owner_ids = managed_objects.require_owner_ids_of_rows(
        ids, await ctx.load_many(load_visible_connectors_by_id, list(ids))
    )
    new_owner_ids = [] if fields.get("user_id") is None else [fields["user_id"]]
    _require_guard_for_others(ctx, [*owner_ids, *new_owner_ids])
    async with ctx.write_session(*owner_ids, *new_owner_ids) as session:
        owners = await require_managed_users(ctx, owner_ids, path="ids")
        new_owners = await require_managed_users(ctx, new_owner_ids, path="user")
        users = {user.id: user for user in (*owners, *new_owners)}
        for row in await _require_and_lock_visible_connectors(ctx, session, ids):
            values = await _update_connector(ctx, session, row, fields, password)
            for owner in {row.user_id, values.get("user_id", row.user_id)}:
                await ctx.record_change(session, owner, EventType.CONNECTOR_UPDATED, [row.id])
            logged = [{name: settings.get(name, getattr(row, name)) for name in LOGGED_COLUMNS}
                    for settings in ({}, values)]  # fmt: skip
            user = users[row.user_id]
            log_entry = NewAuditLogEntry(
                "connectorUpdate", "Connector", row.id, user.domain_id, *logged
            )
            await _write_audit_and_security_logs(ctx, session, user, log_entry)
    wake_connector_workers_after_commit(ctx)


async def _update_connector(
    ctx: Context,
    session: AsyncSession,
    connector_row: ColumnRow,
    fields: Mapping[str, Any],
    password: str | None,
) -> dict[str, Any]:
    """Update one connector and return its new values."""
    environment = ctx.environment
    now = ctx.environment.now()
    connection = await session.connection()
    new_user_id = fields.get("user_id", connector_row.user_id)
    own_fields = {name: value for name, value in fields.items() if name != "user_id"}
    values = connector_validation.validate_connector_fields(
        own_fields, connector_row._asdict(), environment.options
    )
    _require_password_for_new_server(connector_row, {**values, "user_id": new_user_id}, password)
    _require_password_to_activate(environment, connector_row, values, password)
    if password is not None or "oauth" in fields:
        try:
            before = credentials.decrypt_secret(environment, connector_row.id, connector_row.secret)
        except RemoteFailure as problem:
            if password is None:
                raise InvalidInput(
                    problem.message,
                    constraint=ValidationConstraint.DECRYPTION,
                    path=["server", "password"],
                ) from None
            before = {}
        secret = _merged_connector_secret(before, connector_row.oauth, fields, password)
        values["secret"] = credentials.encrypt_secret(environment, connector_row.id, secret)
    values |= {"updated_at": now, "failures": 0}
    values["next_run_at"] = _next_run_at(connector_row, values, now)
    if new_user_id != connector_row.user_id:
        if connector_row.run_id is not None:
            raise Conflict("The connector is running: cancel the run first.", path=["set", "user"])
        await _require_below_connector_limit(ctx, new_user_id)
        values["user_id"] = new_user_id
        # the results of the runs so far describe the mail of the previous user
        values |= dict.fromkeys(("last_error", "last_run_at", "last_success_at"))
        for table in (RemoteMailbox, ConnectorRun):
            is_of_connector = col(table.connector_id) == connector_row.id
            await connection.execute(delete(table).where(is_of_connector))
    elif _is_changed(connector_row, values, SOURCE_COLUMNS):
        is_of_connector = col(RemoteMailbox.connector_id) == connector_row.id
        renumbering = update(RemoteMailbox).where(is_of_connector)
        await connection.execute(renumbering.values(validity=NO_UID_VALIDITY, modseq=0))
        values |= {"lease": None, "holder": None}  # a run continues with the new account
    statement = update(Connector).where(col(Connector.id) == connector_row.id)
    await connection.execute(statement.values(values))
    return values


def _is_changed(
    connector_row: ColumnRow, new_values: Mapping[str, Any], columns: Iterable[str]
) -> bool:
    """True if one of the columns gets another value."""
    return any(
        new_values.get(name, getattr(connector_row, name)) != getattr(connector_row, name)
        for name in columns
    )


def _require_password_for_new_server(
    connector_row: ColumnRow, new_values: Mapping[str, Any], password: str | None
) -> None:
    """Raise InvalidInput if a stored password would get another server or user."""
    is_new_use = _is_changed(connector_row, new_values, ("host", "username", "oauth", "user_id"))
    loses_tls = (
        new_values.get("security", connector_row.security)
        is ConnectorSecurity.NONE
        is not connector_row.security
    )
    if password is None and (is_new_use or loses_tls):
        text = (
            "The password is required, since the server, its security, the username or the user "
            "changes."
        )
        raise InvalidInput(
            text, constraint=ValidationConstraint.REQUIRED, path=["server", "password"]
        )


def _require_password_to_activate(
    environment: Environment,
    connector_row: ColumnRow,
    new_values: Mapping[str, Any],
    password: str | None,
) -> None:
    """Raise InvalidInput if a connector without a password is activated."""
    if password is not None or connector_row.active or not new_values.get("active"):
        return
    with contextlib.suppress(RemoteFailure):  # reported by the run
        if not credentials.decrypt_secret(environment, connector_row.id, connector_row.secret).get(
            "password"
        ):
            text = "An active connector requires a password."
            raise InvalidInput(
                text, constraint=ValidationConstraint.REQUIRED, path=["server", "password"]
            )


def _next_run_at(connector_row: ColumnRow, new_values: Mapping[str, Any], now: Any) -> Any:
    """Return when the connector runs next after a change; None if it doesn't run by itself."""
    active = new_values.get("active", connector_row.active)
    interval = new_values.get("interval", connector_row.interval)
    if connector_row.run_id is not None:
        return connector_row.next_run_at  # it is running or queued
    if not active or interval is None:
        return None
    if not connector_row.active or connector_row.next_run_at is None:
        return now
    return min(connector_row.next_run_at, next_run_time(now, interval, 0) or now)


async def delete_connectors(ctx: Context, ids: Sequence[int]) -> None:
    """Delete connectors, all or none. Fetched messages stay. Raises NotFound or Forbidden."""
    owner_ids = managed_objects.require_owner_ids_of_rows(
        ids, await ctx.load_many(load_visible_connectors_by_id, list(ids))
    )
    _require_guard_for_others(ctx, owner_ids)
    async with ctx.write_session(*owner_ids) as session:
        users = {user.id: user for user in await require_managed_users(ctx, owner_ids, path="ids")}
        rows = await _require_and_lock_visible_connectors(ctx, session, ids)
        connection = await session.connection()
        await connection.execute(delete(Connector).where(col(Connector.id).in_(ids)))
        for row in rows:
            await ctx.record_change(session, row.user_id, EventType.CONNECTOR_DELETED, [row.id])
            before = {name: getattr(row, name) for name in LOGGED_COLUMNS}
            user = users[row.user_id]
            log_entry = NewAuditLogEntry(
                "connectorDelete", "Connector", row.id, user.domain_id, before, None
            )
            await _write_audit_and_security_logs(ctx, session, user, log_entry)


async def queue_or_find_runs(
    ctx: Context, connector_ids: Sequence[int], *, is_dry_run: bool
) -> list[int]:
    """Queue a run of each connector and return the run ids. A run in progress is not repeated.

    A dry run stores and deletes nothing. Raises NotFound or Forbidden.
    """
    owner_ids = managed_objects.require_owner_ids_of_rows(
        connector_ids, await ctx.load_many(load_visible_connectors_by_id, list(connector_ids))
    )
    _require_guard_for_others(ctx, owner_ids)
    run_ids: dict[int, int] = {}
    async with ctx.write_session(*owner_ids) as session:
        users = {user.id: user for user in await require_managed_users(ctx, owner_ids, path="ids")}
        connection, now = await session.connection(), ctx.environment.now()
        for row in await _require_and_lock_visible_connectors(ctx, session, connector_ids):
            run_id = row.run_id
            if run_id is None:
                run_id = ctx.environment.new_id()
                session.add(new_queued_run(ctx, row.id, row.user_id, run_id, is_dry_run=is_dry_run))
                await session.flush()
                statement = update(Connector).where(col(Connector.id) == row.id)
                await connection.execute(statement.values(run_id=run_id, next_run_at=now))
                await ctx.record_change(session, row.user_id, EventType.CONNECTOR_UPDATED, [row.id])
            run_ids[row.id] = run_id
            user, after = users[row.user_id], {"name": row.name, "dryRun": is_dry_run}
            log_entry = NewAuditLogEntry(
                "connectorStart", "Connector", row.id, user.domain_id, None, after
            )
            await _write_audit_and_security_logs(ctx, session, user, log_entry)
    wake_connector_workers_after_commit(ctx)
    return [run_ids[key] for key in connector_ids]


async def cancel_runs(ctx: Context, run_ids: Sequence[int]) -> None:
    """Cancel these runs at the next safe point; finished ones stay unchanged.

    Raises NotFound or Forbidden.
    """
    rows = await ctx.load_many(load_visible_runs_by_id, list(run_ids))
    owner_ids = managed_objects.require_owner_ids_of_rows(run_ids, rows)
    _require_guard_for_others(ctx, owner_ids, GUARD_FOR_OTHERS)
    connectors = await ctx.load_many(
        load_visible_connectors_by_id, [row.connector_id for row in rows if row]
    )
    if any(connectors):  # one-time imports need no permission
        ctx.viewer.require(GuardRule(user_permission=UserPermission.CONNECTORS))
    now = ctx.environment.now()
    async with ctx.write_session(*owner_ids) as session:
        connection = await session.connection()
        statement = update(ConnectorRun).where(col(ConnectorRun.id).in_(run_ids))
        waiting = statement.where(col(ConnectorRun.state) == TaskState.QUEUED)
        ended = await connection.execute(
            waiting.values(state=TaskState.CANCELLED, finished_at=now, cancelled=True).returning(
                col(ConnectorRun.id)
            )
        )
        cancelled_ids = [row.id for row in ended]
        waiting_connectors = select(*select_columns(Connector)).where(
            col(Connector.run_id).in_(cancelled_ids)
        )
        for connector in (await connection.execute(waiting_connectors.with_for_update())).all():
            next_run = next_run_time(now, connector.interval, 0) if connector.active else None
            update_statement = update(Connector).where(col(Connector.id) == connector.id)
            await connection.execute(update_statement.values(run_id=None, next_run_at=next_run))
        await one_time_imports.delete_one_time_import_data(session, cancelled_ids)
        running = statement.where(col(ConnectorRun.state) == TaskState.RUNNING)
        await connection.execute(running.values(cancelled=True))
        users = {user.id: user for user in await require_managed_users(ctx, owner_ids, path="ids")}
        for row in filter(None, rows):
            event_type, user = EventType.CONNECTOR_UPDATED, users[row.user_id]
            await ctx.record_change(session, row.user_id, event_type, [row.connector_id])
            before = {"state": row.state}
            log_entry = NewAuditLogEntry(
                "connectorRunCancel", "ConnectorRun", row.id, user.domain_id, before, None
            )
            await _write_audit_and_security_logs(ctx, session, user, log_entry)
    wake_connector_workers_after_commit(ctx)


def wake_connector_workers_after_commit(ctx: Context) -> None:
    """Wake the connector workers after the transaction."""
    ctx.call_after_commit_or_now(lambda: ctx.environment.wakeups.announce({CONNECTORS: 0}))


async def _require_and_lock_visible_connectors(
    ctx: Context, session: AsyncSession, connector_ids: Sequence[int]
) -> list[ColumnRow]:
    statement = select(*select_columns(Connector)).where(
        col(Connector.id).in_(connector_ids), is_visible_connector(ctx)
    )
    statement_locked = statement.order_by(col(Connector.id)).with_for_update()
    rows = {
        row.id: row for row in (await (await session.connection()).execute(statement_locked)).all()
    }
    require_all_found(connector_ids, rows)
    return [rows[key] for key in dict.fromkeys(connector_ids)]


async def _require_below_connector_limit(ctx: Context, user_id: int) -> None:
    conditions = col(Connector.user_id) == user_id, col(Connector.is_one_time).is_(False)
    statement = select(func.count().label("many")).where(*conditions)
    (row,) = await ctx.read(statement)
    if row.many >= MAX_CONNECTORS:
        raise LimitReached(
            f"At most {MAX_CONNECTORS} connectors are allowed.",
            limit=MAX_CONNECTORS,
            used=row.many,
            path=["user"],
        )


def _require_guard_for_others(
    ctx: Context, owner_ids: Collection[int], guard: GuardRule = WRITE_GUARD_FOR_OTHERS
) -> None:
    """Raise Forbidden if one of the owners is another user, and the viewer fails the guard."""
    if set(owner_ids) - {ctx.viewer.user_id}:
        ctx.viewer.require(guard)


async def _write_audit_and_security_logs(
    ctx: Context, session: AsyncSession, user: ColumnRow, log_entry: NewAuditLogEntry
) -> None:
    if (action := security_log.ACTION_BY_MUTATION.get(log_entry.mutation)) is not None:
        facts = {**(log_entry.before or {}), **(log_entry.after or {})}
        detail = {name: facts[name] for name in ("host", "username") if facts.get(name)}
        event = NewSecurityEvent(action, user.id, target=str(log_entry.target_id), detail=detail)
        await security_log.log_event_and_queue_notice(ctx, session, event)
    if user.id != ctx.viewer.user_id:
        await audit_log.insert_audit_log_entries(ctx, session, log_entry)
