"""GraphQL types and queries of relay hosts, transports, TLS policies and forwarding hosts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.object_views import DerivedField
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    objects_from_rows_with_links,
    selected_columns,
)
from graph.types.scalars import CIDR
from models.routing.tables import TlsPolicyLevel
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from resolvers.routing import loaders as routing_loaders
from resolvers.routing.loaders import FORWARDERS, POLICIES, RELAYS, TRANSPORTS, RoutingTable

ADMIN_GUARD: dict[str, Any] = {"role": Role.ADMIN}
READ_GUARD: dict[str, Any] = {**ADMIN_GUARD, "scope": Scope.READ}


@strawberry.type(
    description="Way out for the mail of domains that name it.", directives=[Auth(**ADMIN_GUARD)]
)
class RelayHost(NodeView):
    host: str = attribute_field("Its name, or its address.")
    port: int = attribute_field("TCP port.")
    username: str | None = attribute_field("Whom we sign in as.")
    has_password: bool = attribute_field("A password is stored; it is never told.")
    tls: bool = attribute_field("Nothing goes there without TLS, and its certificate is checked.")
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")

    load_batch = staticmethod(routing_loaders.load_relay_hosts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("RelayHost")}

    @field("Domains that name it, by name.", "id")
    async def used_by_domains(
        self, info: Info
    ) -> list[Annotated["Domain", strawberry.lazy("graph.domains.types")]]:
        rows = await info.context.load(routing_loaders.load_domains_by_relay_host, self.row.id)
        return await objects_from_rows_with_links(info, Domain, rows)


@strawberry.type(description="Way to a destination.", directives=[Auth(**ADMIN_GUARD)])
class Transport(NodeView):
    destination: str = attribute_field(
        "Domain, .domain for all below it, address, or /regular expression/."
    )
    next_hop: str = attribute_field("host:port, [host]:port, or a domain.")
    lookup_mx: bool = attribute_field("Next hop is a domain, whose mail servers are looked up.")
    username: str | None = attribute_field("Whom we sign in as.")
    has_password: bool = attribute_field("A password is stored; it is never told.")
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")

    load_batch = staticmethod(routing_loaders.load_transports_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Transport")}


@strawberry.type(
    description="How much encryption a destination asks for.", directives=[Auth(**ADMIN_GUARD)]
)
class TlsPolicy(NodeView):
    destination: str = attribute_field(
        "Domain, .domain for all below it, or [host]:port of a next hop."
    )
    level: TlsPolicyLevel = attribute_field("Required level of TLS.")
    parameters: str | None = attribute_field(
        "Names or fingerprints to match, and versions, as in Postfix."
    )
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(routing_loaders.load_tls_policies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("TlsPolicy")}


@strawberry.type(
    description="Where mail is forwarded to us from, and so fails SPF: it is not refused for that.",
    directives=[Auth(**ADMIN_GUARD)],
)
class ForwardingHost(NodeView):
    host: CIDR = attribute_field("Address or network.")
    source: str = attribute_field("Name it came from.")
    filter_spam: bool = attribute_field(
        "Its spam is filtered; false: its mail is never taken for spam."
    )
    created_at: datetime = attribute_field("Creation.")

    load_batch = staticmethod(routing_loaders.load_forwarding_hosts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("ForwardingHost")}


async def _load_page(
    info: Info, record_kind: RoutingTable, record_type: type[NodeView], *page_arguments: Any
) -> Connection[Any]:
    """Load a page of routing records, oldest first.

    `page_arguments` are: first, after, last, before.
    """
    requested_page = page_request(record_kind.cursor_kind, *page_arguments)
    return await connection_of_page(
        info,
        record_type,
        await routing_loaders.read_page(
            info.context, record_kind, requested_page, selected_columns(info, record_type)
        ),
        lambda row: Cursor(record_kind.cursor_kind, row.created_at, row.id),
        lambda: routing_loaders.count_rows(info.context, record_kind),
    )


@strawberry.type
class RoutingQuery:
    @query("All relay hosts, in the order they were made.", **READ_GUARD)
    async def relay_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RelayHost]:
        return await _load_page(info, RELAYS, RelayHost, first, after, last, before)

    @query("All transports, in the order they were made.", **READ_GUARD)
    async def transports(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Transport]:
        return await _load_page(info, TRANSPORTS, Transport, first, after, last, before)

    @query("All TLS policies, in the order they were made.", **READ_GUARD)
    async def tls_policies(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[TlsPolicy]:
        return await _load_page(info, POLICIES, TlsPolicy, first, after, last, before)

    @query("All forwarding hosts, in the order they were made.", **READ_GUARD)
    async def forwarding_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ForwardingHost]:
        return await _load_page(info, FORWARDERS, ForwardingHost, first, after, last, before)
