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
    description="A server that sends the mail of the domains that have it as their relay "
    "host (smarthost).",
    directives=[Auth(**ADMIN_GUARD)],
)
class RelayHost(NodeView):
    host: str = attribute_field("Host name or IP address of the relay host.")
    port: int = attribute_field("TCP port of the relay host.")
    username: str | None = attribute_field(
        "User name to authenticate with (SMTP AUTH). Null: no authentication."
    )
    has_password: bool = attribute_field("True if a password is stored. It is never returned.")
    tls: bool = attribute_field(
        "True if TLS with a verified certificate is required. If false, TLS is "
        "opportunistic; with a user name it is always required."
    )
    active: bool = attribute_field(
        "True if the relay host is used. If false, the mail of its domains is sent "
        "by the default route."
    )
    created_at: datetime = attribute_field("Time when the relay host was created.")

    load_batch = staticmethod(routing_loaders.load_relay_hosts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("RelayHost")}

    @field("Domains that have the relay host, in alphabetical order.", "id")
    async def used_by_domains(
        self, info: Info
    ) -> list[Annotated["Domain", strawberry.lazy("graph.domains.types")]]:
        rows = await info.context.load(routing_loaders.load_domains_by_relay_host, self.row.id)
        return await objects_from_rows_with_links(info, Domain, rows)


@strawberry.type(
    description="The next hop for mail to a destination.", directives=[Auth(**ADMIN_GUARD)]
)
class Transport(NodeView):
    destination: str = attribute_field(
        "Recipients that the transport is for: a domain, .domain for all its "
        "subdomains, an address, or a /regular expression/."
    )
    next_hop: str = attribute_field(
        "Server that receives the mail: host:port or [host]:port. With lookupMx: a domain."
    )
    lookup_mx: bool = attribute_field(
        "True if mail goes to the MX hosts of the next hop, which is a domain."
    )
    username: str | None = attribute_field(
        "User name to authenticate with (SMTP AUTH). Null: no authentication."
    )
    has_password: bool = attribute_field("True if a password is stored. It is never returned.")
    active: bool = attribute_field("True if the transport is used for mail to its destination.")
    created_at: datetime = attribute_field("Time when the transport was created.")

    load_batch = staticmethod(routing_loaders.load_transports_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Transport")}


@strawberry.type(
    description="TLS level and certificate check for mail to a destination.",
    directives=[Auth(**ADMIN_GUARD)],
)
class TlsPolicy(NodeView):
    destination: str = attribute_field(
        "Destination that the policy is for: a domain, .domain for all its "
        "subdomains, or a next hop as [host] or [host]:port."
    )
    level: TlsPolicyLevel = attribute_field("Required level of TLS.")
    parameters: str | None = attribute_field(
        "TLS versions, and certificate names or fingerprints, in the syntax of Postfix. Null: none."
    )
    active: bool = attribute_field("True if the TLS policy is applied.")
    created_at: datetime = attribute_field("Time when the TLS policy was created.")
    updated_at: datetime | None = attribute_field("Time of the last change. Null: never changed.")

    load_batch = staticmethod(routing_loaders.load_tls_policies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("TlsPolicy")}


@strawberry.type(
    description="An address or network that forwards mail to this platform, so that SPF "
    "fails. Mail from a forwarding host is not refused for SPF and DMARC.",
    directives=[Auth(**ADMIN_GUARD)],
)
class ForwardingHost(NodeView):
    host: CIDR = attribute_field("IP address or network of the forwarding host.")
    source: str = attribute_field(
        "Name, address or network that the forwarding host was created from."
    )
    filter_spam: bool = attribute_field(
        "True if mail from the host passes through the spam filter. If false, it skips the filter."
    )
    created_at: datetime = attribute_field("Time when the forwarding host was created.")

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
    @query("Returns all relay hosts. Oldest first.", **READ_GUARD)
    async def relay_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RelayHost]:
        return await _load_page(info, RELAYS, RelayHost, first, after, last, before)

    @query("Returns all transports. Oldest first.", **READ_GUARD)
    async def transports(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Transport]:
        return await _load_page(info, TRANSPORTS, Transport, first, after, last, before)

    @query("Returns all TLS policies. Oldest first.", **READ_GUARD)
    async def tls_policies(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[TlsPolicy]:
        return await _load_page(info, POLICIES, TlsPolicy, first, after, last, before)

    @query("Returns all forwarding hosts. Oldest first.", **READ_GUARD)
    async def forwarding_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ForwardingHost]:
        return await _load_page(info, FORWARDERS, ForwardingHost, first, after, last, before)
