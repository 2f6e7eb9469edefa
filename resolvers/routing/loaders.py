"""Load relay hosts, transports, TLS policies and forwarding hosts. For an ADMIN."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Select, false, func, or_, select, true
from sqlmodel import SQLModel

from mail.routing import password_contexts
from models.errors import InvalidInput, require_all_found
from models.events.event_types import EventType
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.store.columns import ColumnRow, core_table, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import Role
from resolvers.context import BatchFunction, Context
from resolvers.list_orders import CREATED_AT, ListOrder, SortColumn, list_orders, read_ordered_page
from resolvers.pagination import read_by_keys
from resolvers.routing import validation as routing_validation
from resolvers.sql_text import contains_text_sql

HAS_PASSWORD_COLUMN = "has_password"  # noqa: S105 - the name of a boolean column


class RelayHostOrder(StrEnum):
    """The order of a list of relay hosts; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"


class TransportOrder(StrEnum):
    """The order of a list of transports; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    DESTINATION_ASC = "DESTINATION_ASC"
    DESTINATION_DESC = "DESTINATION_DESC"


class TlsPolicyOrder(StrEnum):
    """The order of a list of TLS policies; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    DESTINATION_ASC = "DESTINATION_ASC"
    DESTINATION_DESC = "DESTINATION_DESC"


class ForwardingHostOrder(StrEnum):
    """The order of a list of forwarding hosts; ties by id."""

    CREATED_AT_ASC = "CREATED_AT_ASC"
    CREATED_AT_DESC = "CREATED_AT_DESC"
    HOST_ASC = "HOST_ASC"
    HOST_DESC = "HOST_DESC"


_DESTINATION = {"DESTINATION": SortColumn("destination", str)}
_HOST = {"HOST": SortColumn("host", str)}


class RoutingEvents(NamedTuple):
    """The types of the events of a routing table."""

    created: EventType
    updated: EventType
    deleted: EventType


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """One of the four tables with its names, limit, logged and searched columns, and orders."""

    table: type[SQLModel]
    type_name: str  # of the GraphQL type
    events: RoutingEvents
    logged_columns: tuple[str, ...]  # columns in the audit log
    searched_columns: tuple[str, ...]  # columns that the text of a filter is searched in
    orders: Mapping[Any, ListOrder] = field(compare=False)  # by the values of its enum
    max_rows: int  # rows of the platform
    secret_column: str | None = None  # the column with the encrypted password

    @property
    def cursor_kind(self) -> str:
        """The name of the ordering in cursors of its list."""
        return core_table(self.table).name.replace("_", "-")


RELAYS = RoutingTable(
    RelayHost,
    "RelayHost",
    RoutingEvents(
        EventType.RELAY_HOST_CREATED,
        EventType.RELAY_HOST_UPDATED,
        EventType.RELAY_HOST_DELETED,
    ),
    ("host", "port", "username", "tls", "active"),
    ("host", "username"),
    list_orders(RelayHostOrder),
    1000,
    "secret",
)
TRANSPORTS = RoutingTable(
    Transport,
    "Transport",
    RoutingEvents(
        EventType.TRANSPORT_CREATED,
        EventType.TRANSPORT_UPDATED,
        EventType.TRANSPORT_DELETED,
    ),
    ("destination", "next_hop", "lookup_mx", "username", "active"),
    ("destination", "next_hop", "username"),
    list_orders(TransportOrder, CREATED_AT | _DESTINATION),
    5000,
    "secret",
)
POLICIES = RoutingTable(
    TlsPolicy,
    "TlsPolicy",
    RoutingEvents(
        EventType.TLS_POLICY_CREATED,
        EventType.TLS_POLICY_UPDATED,
        EventType.TLS_POLICY_DELETED,
    ),
    ("destination", "level", "parameters", "active"),
    ("destination",),
    list_orders(TlsPolicyOrder, CREATED_AT | _DESTINATION),
    5000,
)
FORWARDERS = RoutingTable(
    ForwardingHost,
    "ForwardingHost",
    RoutingEvents(
        EventType.FORWARDING_HOST_CREATED,
        EventType.FORWARDING_HOST_UPDATED,
        EventType.FORWARDING_HOST_DELETED,
    ),
    ("host", "source", "filter_spam"),
    ("host", "source"),
    list_orders(ForwardingHostOrder, CREATED_AT | _HOST),
    10_000,
)
CONTEXT_OF_PASSWORD: Mapping[type[SQLModel], Callable[[int], str]] = {
    RelayHost: password_contexts.relay_host_context,
    Transport: password_contexts.transport_context,
}


@dataclass(frozen=True, slots=True)
class RoutingListing:
    """A list of the rows of a routing table, all or those that contain a text."""

    routing_table: RoutingTable
    query: str | None = None


def _is_visible_route(ctx: Context) -> ColumnElement[bool]:
    return true() if ctx.viewer.role.includes(Role.ADMIN) else false()


def select_visible_routing_rows(
    ctx: Context, routing_table: RoutingTable, column_names: Collection[str] | None = None
) -> Select[*tuple[Any, ...]]:
    """Select the visible rows. Instead of a password only whether there is one."""
    table = core_table(routing_table.table)
    requested_names = {*table.c.keys()} if column_names is None else {"id", *column_names}
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
        ctx,
        select_visible_routing_rows(ctx, routing_table),
        core_table(routing_table.table).c.id,
        ids,
    )


load_relay_hosts_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, RELAYS)
load_transports_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, TRANSPORTS)
load_tls_policies_by_id: BatchFunction[int, ColumnRow | None] = partial(_load_rows_by_id, POLICIES)
load_forwarding_hosts_by_id: BatchFunction[int, ColumnRow | None] = partial(
    _load_rows_by_id, FORWARDERS
)


async def read_visible_routing_page(
    ctx: Context,
    listing: RoutingListing,
    page_request: PageRequest,
    columns: Collection[str],
    order: StrEnum,
) -> Page[ColumnRow]:
    """Read a page of rows of a routing table. Raises InvalidInput for a cursor of another order."""
    routing_table = listing.routing_table
    list_order = routing_table.orders[order]
    statement = select_visible_routing_rows(ctx, routing_table, {list_order.column, *columns})
    return await read_ordered_page(
        ctx,
        statement.where(_contains_query(listing)),
        routing_table.table,
        page_request,
        list_order,
    )


async def count_visible_routing_rows(ctx: Context, listing: RoutingListing) -> int:
    """Count the rows of a list of routing records."""
    table = core_table(listing.routing_table.table)
    statement = select(func.count().label("many")).select_from(table)
    (row,) = await ctx.read(statement.where(_is_visible_route(ctx), _contains_query(listing)))
    return int(row.many)


def _contains_query(listing: RoutingListing) -> ColumnElement[bool]:
    """Return the WHERE clause for rows with the text in a searched column; all without a text."""
    if not listing.query:
        return true()
    columns = core_table(listing.routing_table.table).c
    names = listing.routing_table.searched_columns
    return or_(*(contains_text_sql(columns[name], listing.query) for name in names))


async def require_visible_routing_rows(
    ctx: Context, routing_table: RoutingTable, ids: Sequence[int]
) -> list[ColumnRow]:
    """Load rows of a routing table in the order of the ids, each once.

    Raises NotFound if one is not visible.
    """
    rows_found = await read_by_keys(
        ctx,
        select_visible_routing_rows(ctx, routing_table),
        core_table(routing_table.table).c.id,
        list(ids),
    )
    rows = {row.id: row for row in rows_found if row}
    require_all_found(ids, rows)
    return list(rows.values())


async def load_visible_ids_by_destination(
    routing_table: RoutingTable, ctx: Context, destinations: Sequence[str]
) -> dict[str, int]:
    """Load the ids of transports or TLS policies by destination, with one statement.

    A destination that is invalid or has no row is missing in the result.
    """
    stored_forms: dict[str, str] = {}
    for destination in destinations:
        with suppress(InvalidInput):
            stored_forms[destination] = (
                routing_validation.validate_destination(destination)
                if routing_table is TRANSPORTS
                else routing_validation.validate_tls_destination(destination)
            )
    table = core_table(routing_table.table)
    statement = select(table.c.id, table.c.destination).where(
        table.c.destination.in_(stored_forms.values()), _is_visible_route(ctx)
    )
    ids = {row.destination: int(row.id) for row in await ctx.read(statement)}
    return {text: ids[form] for text, form in stored_forms.items() if form in ids}
