"""Load relay hosts, transports, TLS policies and forwarding hosts. For an ADMIN."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, Select, false, func, select, true
from sqlmodel import SQLModel, col

from mail.routing import password_contexts
from models.domains.tables import Domain
from models.errors import InvalidInput, require_all_found
from models.events.event_types import EventType
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.context import BatchFunction, Context
from resolvers.domains import loaders as domain_loaders
from resolvers.pagination import PageScan, read_all_by_keys, read_by_keys
from resolvers.routing import validation as routing_validation

HAS_PASSWORD_COLUMN = "has_password"  # noqa: S105 - the name of a boolean column


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """One of the four tables with its names, limit and logged columns."""

    table: type[SQLModel]
    type_name: str  # of the GraphQL type
    event_type: EventType
    logged_columns: tuple[str, ...]  # columns in the admin log
    max_rows: int  # rows of the platform
    secret_column: str | None = None  # the column with the encrypted password

    @property
    def cursor_kind(self) -> str:
        """The name of the ordering in cursors of its list."""
        return core_table(self.table).name.replace("_", "-")


RELAYS = RoutingTable(
    RelayHost,
    "RelayHost",
    EventType.RELAY_HOST_CHANGED,
    ("host", "port", "username", "tls", "active"),
    1000,
    "secret",
)
TRANSPORTS = RoutingTable(
    Transport,
    "Transport",
    EventType.TRANSPORT_CHANGED,
    ("destination", "next_hop", "lookup_mx", "username", "active"),
    5000,
    "secret",
)
POLICIES = RoutingTable(
    TlsPolicy,
    "TlsPolicy",
    EventType.TLS_POLICY_CHANGED,
    ("destination", "level", "parameters", "active"),
    5000,
)
FORWARDERS = RoutingTable(
    ForwardingHost,
    "ForwardingHost",
    EventType.FORWARDING_HOST_CHANGED,
    ("host", "source", "filter_spam"),
    10_000,
)
CONTEXT_OF_PASSWORD: Mapping[type[SQLModel], Callable[[int], str]] = {
    RelayHost: password_contexts.relay_host_context,
    Transport: password_contexts.transport_context,
}


def _is_visible_route(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def select_rows(
    ctx: Context, routing_table: RoutingTable, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the visible rows. Instead of a password only whether there is one."""
    table = core_table(routing_table.table)
    requested_names = (
        {*table.c.keys()} if column_names is None else {"id", "created_at", *column_names}
    )
    columns: list[Any] = select_columns(
        routing_table.table, requested_names - {HAS_PASSWORD_COLUMN, routing_table.secret_column}
    )
    if routing_table.secret_column and (
        column_names is None or HAS_PASSWORD_COLUMN in requested_names
    ):
        columns.append(table.c[routing_table.secret_column].is_not(None).label(HAS_PASSWORD_COLUMN))
    return select(*columns).where(_is_visible_route(ctx))


async def _load_rows_by_id(
    routing_table: RoutingTable, ctx: Context, ids: list[int]
) -> list[ColumnRow | None]:
    return await read_by_keys(
        ctx, select_rows(ctx, routing_table), core_table(routing_table.table).c.id, ids
    )


load_relay_hosts_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, RELAYS)
load_transports_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, TRANSPORTS)
load_tls_policies_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, POLICIES)
load_forwarding_hosts_by_id: BatchFunction[int, ColumnRow | None] = partial(
    _load_rows_by_id, FORWARDERS
)


async def read_page(
    ctx: Context, routing_table: RoutingTable, page_request: PageRequest, columns: Collection[str]
) -> Page[ColumnRow]:
    """Read a page of all rows of a routing table, the oldest first."""
    table = core_table(routing_table.table)
    sort_key = (table.c.created_at, table.c.id)
    return await pagination.read_page(
        ctx,
        PageScan(
            select_rows(ctx, routing_table, columns), page_request, sort_key, is_descending=False
        ),
    )


async def count_rows(ctx: Context, routing_table: RoutingTable) -> int:
    """Count the rows of a routing table."""
    statement = select(func.count().label("many")).select_from(core_table(routing_table.table))
    (row,) = await ctx.read(statement.where(_is_visible_route(ctx)))
    return int(row.many)


async def load_visible_rows(
    ctx: Context, routing_table: RoutingTable, ids: Sequence[int]
) -> list[ColumnRow]:
    """Load rows of a routing table in the order of the ids, each once.

    Raises NotFound if one is not visible and InvalidInput if none is given.
    """
    rows_found = await read_by_keys(
        ctx, select_rows(ctx, routing_table), core_table(routing_table.table).c.id, list(ids)
    )
    rows = {row.id: row for row in rows_found if row}
    require_all_found(ids, rows)
    if not rows:
        raise InvalidInput(
            "At least one reference is required",
            constraint=ValidationConstraint.REQUIRED,
            path=["ids"],
        )
    return list(rows.values())


async def load_ids_by_destination(
    routing_table: RoutingTable, ctx: Context, destinations: Sequence[str]
) -> dict[str, int]:
    """Load the ids of transports or TLS policies by destination, with one statement.

    A destination that is invalid or has no row is missing in the result.
    """
    validate = (
        routing_validation.validate_destination
        if routing_table is TRANSPORTS
        else routing_validation.validate_tls_destination
    )
    stored_forms: dict[str, str] = {}
    for destination in destinations:
        with suppress(InvalidInput):
            stored_forms[destination] = validate(destination)
    table = core_table(routing_table.table)
    statement = select(table.c.id, table.c.destination).where(
        table.c.destination.in_(stored_forms.values()), _is_visible_route(ctx)
    )
    ids = {row.destination: int(row.id) for row in await ctx.read(statement)}
    return {text: ids[form] for text, form in stored_forms.items() if form in ids}


async def load_domains_by_relay_host(
    ctx: Context, relay_host_ids: list[int]
) -> list[list[ColumnRow]]:
    """Load the domains that send through these relay hosts, ordered by name, with one statement."""
    statement = (
        select(*select_columns(Domain))
        .where(domain_loaders.is_administered_domain(ctx))
        .order_by(col(Domain.name))
    )
    return await read_all_by_keys(ctx, statement, col(Domain.relay_host_id), relay_host_ids)
