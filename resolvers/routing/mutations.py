"""Create, update and delete relay hosts, transports and TLS policies. For an ADMIN."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import delete, func, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.domains.tables import Domain
from models.errors import (
    Conflict,
    ErrorCollector,
    InvalidInput,
    LimitReached,
    NotFound,
    ServiceUnavailable,
    prefix_error_messages,
)
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.routing.tables import TlsPolicyLevel
from models.store.columns import ColumnRow, core_table
from models.validation_constraints import ValidationConstraint
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.routing import validation as routing_validation
from resolvers.routing.loaders import (
    CONTEXT_OF_PASSWORD,
    HAS_PASSWORD_COLUMN,
    POLICIES,
    RELAYS,
    TRANSPORTS,
    RoutingTable,
    require_visible_routing_rows,
)

DEFAULT_PORT = 25
DESTINATION_EXISTS_TEXT = "Another record has the same destination."
GRAPHQL_NAMES = {
    "next_hop": "nextHop",
    "lookup_mx": "lookupMx",
    "filter_spam": "filterSpam",
}  # names of these columns in the schema
# the columns that decide which server receives the password
SERVER_COLUMNS = {RELAYS: ("host", "port"), TRANSPORTS: ("next_hop", "lookup_mx"), POLICIES: ()}


async def create_routing_row(
    ctx: Context,
    routing_table: RoutingTable,
    columns: Mapping[str, Any],
    password: str | None = None,
) -> int:
    """Create a row of a routing table and return its id.

    Raises InvalidInput, LimitReached, or Conflict if the destination has a row already.
    """
    values = _validate_routing_columns(routing_table, columns, {}, password)
    if routing_table is RELAYS:
        values.setdefault("port", DEFAULT_PORT)
    created_at, row_id = ctx.environment.now(), ctx.environment.new_id()
    values |= {"id": row_id, "created_at": created_at}
    if routing_table.secret_column:
        _require_complete_credentials(values.get("username"), password)
        values["secret"] = _encrypt_password(ctx, routing_table, row_id, password)
    table = core_table(routing_table.table)
    async with ctx.write_session(PLATFORM) as session:
        await require_below_row_limit(ctx, routing_table, 1)
        if "destination" in values:
            await _require_destination_free(ctx, routing_table, values["destination"], ())
        await (await session.connection()).execute(insert(table).values(values))
        (row,) = await require_visible_routing_rows(ctx, routing_table, [row_id])
        await ctx.record_change(session, PLATFORM, routing_table.events.created, [row_id])
        entry = NewAuditLogEntry(
            f"{_mutation_prefix(routing_table)}Create",
            routing_table.type_name,
            row_id,
            after=audit_log_values(routing_table, row),
        )
        await audit_log.insert_audit_log_entries(ctx, session, entry)
    return row_id


async def update_routing_rows(
    ctx: Context,
    routing_table: RoutingTable,
    ids: Sequence[int],
    columns: Mapping[str, Any],
    password: str | None = None,
) -> None:
    """Update rows of a routing table, all or none.

    Raises NotFound and the errors of `create_routing_row`. Raises InvalidInput if a stored password
    would be sent to another server than before.
    """
    if not columns and password is None:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    table = core_table(routing_table.table)
    async with ctx.write_session(PLATFORM) as session:
        before = await require_visible_routing_rows(ctx, routing_table, ids)
        connection = await session.connection()
        if "destination" in columns:
            _require_single_row(before)
        for row in before:
            values = _validated_update_of_row(ctx, routing_table, row, columns, password)
            if values.get("destination", column_or_none(row, "destination")) != column_or_none(
                row, "destination"
            ):
                await _require_destination_free(ctx, routing_table, values["destination"], [row.id])
            await connection.execute(update(table).where(table.c.id == row.id).values(values))
        after = await require_visible_routing_rows(ctx, routing_table, ids)
        await ctx.record_change(
            session, PLATFORM, routing_table.events.updated, [row.id for row in before]
        )
        entries = (
            _update_log_entry(routing_table, *pair, password)
            for pair in zip(before, after, strict=True)
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def delete_routing_rows(
    ctx: Context, routing_table: RoutingTable, ids: Sequence[int]
) -> None:
    """Delete rows of a routing table, all or none.

    Domains that used a deleted relay host send directly then. Raises NotFound, and
    ServiceUnavailable if a domain began to use a relay host meanwhile.
    """
    domain_ids = await _domain_ids_using_relay_hosts(ctx, routing_table, ids)
    async with ctx.write_session(PLATFORM, *domain_ids) as session:
        rows = await require_visible_routing_rows(ctx, routing_table, ids)
        table, connection = core_table(routing_table.table), await session.connection()
        if routing_table is RELAYS:
            await _remove_relay_hosts_from_domains(ctx, session, ids, domain_ids)
        await connection.execute(delete(table).where(table.c.id.in_(ids)))
        changes_by_stream = {key: [(EventType.DOMAIN_UPDATED, [key])] for key in domain_ids}
        platform_changes = [(routing_table.events.deleted, [row.id for row in rows])]
        platform_changes += [(EventType.DOMAIN_UPDATED, domain_ids)] if domain_ids else []
        await ctx.record_changes(session, {**changes_by_stream, PLATFORM: platform_changes})
        entries = (
            NewAuditLogEntry(
                f"{_mutation_prefix(routing_table)}Delete",
                routing_table.type_name,
                row.id,
                before=audit_log_values(routing_table, row),
            )
            for row in rows
        )
        await audit_log.insert_audit_log_entries(ctx, session, *entries)


async def _remove_relay_hosts_from_domains(
    ctx: Context, session: AsyncSession, ids: Sequence[int], domain_ids: Sequence[int]
) -> None:
    """Let the locked domains send directly. Raises ServiceUnavailable for other domains."""
    if set(await _domain_ids_using_relay_hosts(ctx, RELAYS, ids)) - set(domain_ids):
        message = "A domain began to use the relay host at the same time: retry."
        raise ServiceUnavailable(message, component="store")
    statement = update(Domain).where(col(Domain.relay_host_id).in_(ids))
    await (await session.connection()).execute(
        statement.values(relay_host_id=None, updated_at=ctx.environment.now())
    )


async def require_relay_host(ctx: Context, relay_host_id: int, *, path: Sequence[str]) -> None:
    """Raise NotFound if there is no such relay host, in the transaction that uses it."""
    table = core_table(RELAYS.table)
    if not await ctx.read(select(table.c.id).where(table.c.id == relay_host_id)):
        raise NotFound(str(relay_host_id), path=path)


async def require_below_row_limit(
    ctx: Context, routing_table: RoutingTable, new_count: int
) -> None:
    """Raise LimitReached if the routing table can't have this number of new rows."""
    (row,) = await ctx.read(
        select(func.count().label("many")).select_from(core_table(routing_table.table))
    )
    if row.many + new_count > routing_table.max_rows:
        raise LimitReached(
            f"At most {routing_table.max_rows} records of this type are allowed.",
            limit=routing_table.max_rows,
            used=row.many,
        )


def audit_log_values(routing_table: RoutingTable, routing_row: ColumnRow) -> dict[str, Any]:
    """Return the values of a row for the audit log."""
    return {
        GRAPHQL_NAMES.get(name, name): getattr(routing_row, name)
        for name in routing_table.logged_columns
    }


def column_or_none(routing_row: ColumnRow, column_name: str) -> Any:
    """Return a column of a row, or None if the row has no such column."""
    return getattr(routing_row, column_name, None)


def _mutation_prefix(routing_table: RoutingTable) -> str:
    return routing_table.type_name[0].lower() + routing_table.type_name[1:]


async def _domain_ids_using_relay_hosts(
    ctx: Context, routing_table: RoutingTable, ids: Sequence[int]
) -> list[int]:
    """Return the domains that use these relay hosts; none for other tables."""
    if routing_table is not RELAYS:
        return []
    statement = select(col(Domain.id)).where(col(Domain.relay_host_id).in_(ids))
    return sorted(row.id for row in await ctx.read(statement))


def _require_single_row(rows: Sequence[ColumnRow]) -> None:
    """Raise Conflict if several rows would get one destination."""
    if len(rows) > 1:
        raise Conflict(
            "Records can't share a destination: change one record at a time.",
            path=["destination"],
            index=1,
        )


async def _require_destination_free(
    ctx: Context, routing_table: RoutingTable, destination: str, except_ids: Collection[int]
) -> None:
    table = core_table(routing_table.table)
    statement = select(table.c.id).where(
        table.c.destination == destination, table.c.id.not_in(except_ids)
    )
    if await ctx.read(statement):
        raise Conflict(DESTINATION_EXISTS_TEXT, path=["destination"])


def _validated_update_of_row(
    ctx: Context,
    routing_table: RoutingTable,
    routing_row: ColumnRow,
    columns: Mapping[str, Any],
    password: str | None,
) -> dict[str, Any]:
    """Return the new columns of one row. Raises errors whose messages name the row."""
    with prefix_error_messages(
        routing_row.host if routing_table is RELAYS else routing_row.destination
    ):
        stored = routing_row._asdict()
        values = _validate_routing_columns(routing_table, columns, stored, password)
        if routing_table.secret_column:
            _require_complete_credentials_of_same_server(routing_table, values, stored, password)
    if "updated_at" in core_table(routing_table.table).c:
        values["updated_at"] = ctx.environment.now()
    if password is not None:
        values["secret"] = _encrypt_password(ctx, routing_table, routing_row.id, password)
    elif "username" in values and values["username"] is None:
        values["secret"] = None
    return values


def _validate_routing_columns(
    routing_table: RoutingTable,
    columns: Mapping[str, Any],
    stored: Mapping[str, Any],
    password: str | None,
) -> dict[str, Any]:
    """Validate the given columns together with the stored ones.

    Raises InvalidInput, or MultipleErrors.
    """
    problems, values = ErrorCollector(), dict(columns)
    if routing_table is RELAYS:
        _validate_and_normalize_relay_host(values, problems)
    elif routing_table is TRANSPORTS:
        _validate_and_normalize_transport(values, stored, problems)
    else:
        _validate_and_normalize_tls_policy(values, stored, problems)
    with problems.collecting():
        if values.get("username") is not None:
            values["username"] = routing_validation.validate_username(values["username"])
    with problems.collecting():
        if password is not None:
            routing_validation.validate_password(password)
    problems.raise_collected()
    return values


def _validate_and_normalize_relay_host(values: dict[str, Any], problems: ErrorCollector) -> None:
    with problems.collecting():
        if values.get("port") is not None:
            routing_validation.validate_port(values["port"])
    with problems.collecting():
        if "host" in values:
            relay = routing_validation.parse_host_and_port(values["host"], path=["host"])
            values["host"] = relay.host
            if relay.port is not None and values.setdefault("port", relay.port) != relay.port:
                message = "The port in `host` differs from `port`."
                raise InvalidInput(
                    message, constraint=ValidationConstraint.EXCLUSIVE, path=["port"]
                )


def _validate_and_normalize_transport(
    values: dict[str, Any], stored: Mapping[str, Any], problems: ErrorCollector
) -> None:
    with problems.collecting():
        if "destination" in values:
            values["destination"] = routing_validation.validate_destination(values["destination"])
    with problems.collecting():
        if "next_hop" in values or "lookup_mx" in values:
            merged = {**stored, **values}
            values["next_hop"] = routing_validation.validate_next_hop(
                merged["next_hop"], lookup_mx=merged["lookup_mx"]
            )


def _validate_and_normalize_tls_policy(
    values: dict[str, Any], stored: Mapping[str, Any], problems: ErrorCollector
) -> None:
    with problems.collecting():
        if "destination" in values:
            values["destination"] = routing_validation.validate_tls_destination(
                values["destination"]
            )
    with problems.collecting():
        if "level" in values or "parameters" in values:
            merged = {**stored, **values}
            level = TlsPolicyLevel(merged["level"])
            values["parameters"] = routing_validation.validate_tls_parameters(
                merged.get("parameters"), level
            )


def _require_complete_credentials(
    username: str | None, password: str | None, *, keeps_password: bool = False
) -> None:
    """Raise InvalidInput unless username and password are both set or both missing."""
    if password is not None and username is None:
        raise InvalidInput(
            "A password requires a username.",
            constraint=ValidationConstraint.REQUIRES,
            path=["username"],
        )
    if username is not None and password is None and not keeps_password:
        raise InvalidInput(
            "A username requires a password.",
            constraint=ValidationConstraint.REQUIRES,
            path=["password"],
        )


def _require_complete_credentials_of_same_server(
    routing_table: RoutingTable,
    values: Mapping[str, Any],
    stored: Mapping[str, Any],
    password: str | None,
) -> None:
    """Raise InvalidInput if the credentials of a changed row are incomplete.

    A stored password must be given again if the server changes.
    """
    username = values.get("username", stored["username"])
    keeps_password = stored[HAS_PASSWORD_COLUMN] and username is not None
    _require_complete_credentials(username, password, keeps_password=keeps_password)
    if not keeps_password or password is not None:
        return
    changes_server = any(
        values.get(column, stored[column]) != stored[column]
        for column in SERVER_COLUMNS[routing_table]
    )
    if changes_server:
        message = "The password is required, since another server would receive the stored one."
        raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=["password"])


def _encrypt_password(
    ctx: Context, routing_table: RoutingTable, row_id: int, password: str | None
) -> str | None:
    if password is None:
        return None
    return ctx.environment.secret_box.encrypt(
        password, CONTEXT_OF_PASSWORD[routing_table.table](row_id)
    )


def _update_log_entry(
    routing_table: RoutingTable, row_before: ColumnRow, row_after: ColumnRow, password: str | None
) -> NewAuditLogEntry:
    before = audit_log_values(routing_table, row_before)
    after = audit_log_values(routing_table, row_after)
    changed_names = [name for name in after if before[name] != after[name]]
    old_values: dict[str, Any] = {name: before[name] for name in changed_names}
    new_values: dict[str, Any] = {name: after[name] for name in changed_names}
    if password is not None:
        new_values["password"] = password  # the audit log hides it
    return NewAuditLogEntry(
        f"{_mutation_prefix(routing_table)}Update",
        routing_table.type_name,
        row_before.id,
        None,
        old_values,
        new_values,
    )
