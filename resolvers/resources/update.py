"""Update and delete resources, one or many."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.errors import ErrorCollector, InvalidInput, prefix_error_messages
from models.events.event_types import EventType
from models.resources.tables import BookingPolicy, Resource
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.text_folding import fold_text
from models.validation_constraints import ValidationConstraint
from resolvers.addresses.events import AddressChangeDetails, journal_address_changes
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.resources.events import (
    LOGGED_COLUMNS,
    journal_resource_changes,
    logged_resource_values,
)
from resolvers.resources.loaders import require_administered_resources
from resolvers.resources.validation import validate_booking_limit, validate_resource_name
from resolvers.users.delete import update_domain_counters
from resolvers.users.validation import schema_name

PATCH_PATH = ("set",)
_REQUIRED_COLUMNS = ("kind", "booking_policy", "active")


async def update_resources(
    ctx: Context, ids: Sequence[int], columns: Mapping[str, Any]
) -> list[int]:
    """Update resources, all or none, and return their ids in the order of the references.

    The address stays as it is. Another policy than LIMITED clears the booking limit. Raises
    InvalidInput, or NotFound if the viewer does not administer a resource.
    """
    columns = _validated_columns(columns)
    rows_before = await require_administered_resources(ctx, ids)
    now = ctx.environment.now()
    async with ctx.write_session(*{row.domain_id for row in rows_before}) as session:
        rows = await require_administered_resources(ctx, [row.id for row in rows_before])
        connection, table = await session.connection(), core_table(Resource)
        entries, changed_rows = [], []
        for row in rows:
            values = _validated_new_values(row, columns)
            changed_names = [name for name in LOGGED_COLUMNS if name in values
                             and getattr(row, name) != values[name]]  # fmt: skip
            if not changed_names:
                continue
            changed_rows.append(row)
            values["updated_at"] = now
            await connection.execute(update(table).where(table.c.id == row.id).values(values))
            after = {schema_name(name): values[name] for name in changed_names}
            entries.append(
                NewAuditLogEntry(
                    "resourceUpdate",
                    "Resource",
                    row.id,
                    row.domain_id,
                    logged_resource_values(row, changed_names),
                    after,
                )
            )
        if "active" in columns:
            await _set_addresses_active(ctx, session, changed_rows, is_active=columns["active"])
        if changed_rows:
            await journal_resource_changes(ctx, session, EventType.RESOURCE_UPDATED, changed_rows)
            await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return [row.id for row in rows_before]


async def delete_resources(ctx: Context, ids: Sequence[int]) -> list[int]:
    """Delete resources with their addresses and bookings, all or none; return their ids.

    Organizers are not notified. Raises InvalidInput, or NotFound if the viewer does not
    administer a resource.
    """
    rows_before = await require_administered_resources(ctx, ids)
    async with ctx.write_session(*{row.domain_id for row in rows_before}) as session:
        rows = await require_administered_resources(ctx, [row.id for row in rows_before])
        addresses = await _load_addresses(ctx, rows)
        connection = await session.connection()
        await connection.execute(
            delete(Address).where(col(Address.id).in_([row.address_id for row in rows]))
        )
        address_rows = list(addresses.values())
        await update_domain_counters(
            ctx, session, [], [row._asdict() for row in address_rows], sign=-1
        )
        await journal_address_changes(
            ctx, session, address_rows, AddressChangeDetails(EventType.ADDRESS_DELETED)
        )
        await journal_resource_changes(ctx, session, EventType.RESOURCE_DELETED, rows)
        entries = [
            NewAuditLogEntry(
                "resourceDelete",
                "Resource",
                row.id,
                row.domain_id,
                {
                    "address": addresses[row.address_id].display_address,
                    **logged_resource_values(row),
                },
            )
            for row in rows
        ]
        await audit_log.insert_audit_log_entries(ctx, session, *entries)
    return [row.id for row in rows_before]


def _validated_columns(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the columns to change, normalized. Raises InvalidInput with all problems."""
    if not columns:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=PATCH_PATH,
        )
    problems, values = ErrorCollector(), dict(columns)
    with problems.collecting():
        if "name" in values:
            values["name"] = validate_resource_name(values["name"], [*PATCH_PATH, "name"])
            values["folded_name"] = fold_text(values["name"])
    for name in _REQUIRED_COLUMNS:
        with problems.collecting():
            if name in values and values[name] is None:
                raise InvalidInput(
                    "The value must not be null.",
                    constraint=ValidationConstraint.REQUIRED,
                    path=[*PATCH_PATH, schema_name(name)],
                )
    problems.raise_collected()
    return values


def _validated_new_values(resource_row: ColumnRow, columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new values of a resource. Raises InvalidInput if the limit doesn't fit."""
    values = dict(columns)
    policy = values.get("booking_policy", resource_row.booking_policy)
    if policy is not BookingPolicy.LIMITED and "booking_limit" not in values:
        values["booking_limit"] = None
    limit = values.get("booking_limit", resource_row.booking_limit)
    with prefix_error_messages(resource_row.name):
        validate_booking_limit(policy, limit, [*PATCH_PATH, "bookingLimit"])
    return values


async def _load_addresses(ctx: Context, resources: Sequence[ColumnRow]) -> dict[int, ColumnRow]:
    """Load the addresses of resources by id."""
    statement = select(*select_columns(Address)).where(
        col(Address.id).in_([row.address_id for row in resources])
    )
    return {row.id: row for row in await ctx.read(statement)}


async def _set_addresses_active(
    ctx: Context, session: Any, resources: Sequence[ColumnRow], *, is_active: bool
) -> None:
    """Let the addresses of resources accept or refuse mail, and record the change."""
    addresses = [
        row for row in (await _load_addresses(ctx, resources)).values() if row.active != is_active
    ]
    if not addresses:
        return
    table = core_table(Address)
    statement = update(table).where(table.c.id.in_([row.id for row in addresses]))
    connection = await session.connection()
    await connection.execute(statement.values(active=is_active, updated_at=ctx.environment.now()))
    await journal_address_changes(ctx, session, addresses, AddressChangeDetails())
