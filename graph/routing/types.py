"""GraphQL types and queries of relay hosts, transports, TLS policies and forwarding hosts."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.domain_lists import DomainListRequest, load_relay_host_domain_page
from graph.domains.filters import DomainFilter
from graph.domains.types import Domain
from graph.types.connections import (
    Connection,
    PageArguments,
    connection_of_page,
    page_request,
)
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    selected_columns,
)
from graph.types.scalars import CIDR
from models.routing.tables import TlsPolicyLevel
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.domains.loaders import DomainOrder
from resolvers.routing import loaders as routing_loaders
from resolvers.routing.loaders import (
    FORWARDERS,
    POLICIES,
    RELAYS,
    TRANSPORTS,
    ForwardingHostOrder,
    RelayHostOrder,
    RoutingListing,
    RoutingTable,
    TlsPolicyOrder,
    TransportOrder,
)

ADMIN_GUARD: dict[str, Any] = {"role": Role.ADMIN}
READ_GUARD: dict[str, Any] = {**ADMIN_GUARD, "scope": Scope.READ}


@strawberry.type(
    description=(
        "Relay host (smarthost): a server that gets the outgoing mail of the domains that use it, "
        "and sends it on. The envelope sender decides the domain."
    ),
    directives=[Auth(**ADMIN_GUARD)],
)
class RelayHost(NodeView):
    host: str = attribute_field("Host name or IP address of the relay host, without brackets.")
    port: int = attribute_field("TCP port of the relay host.")
    username: str | None = attribute_field(
        "Username to authenticate with at the relay host (SMTP AUTH). Null: no authentication."
    )
    has_password: bool = attribute_field(
        "True if a password is stored. The password is never returned."
    )
    tls: bool = attribute_field(
        "True if TLS with a verified certificate is required. If false, TLS is opportunistic and "
        "the certificate is not verified; but with a username, or on port 465, TLS with a verified "
        "certificate is required too. A TLS policy for the relay host changes these rules. The "
        "level ENCRYPT requires TLS, and without a username removes the check of the certificate. "
        "Stricter levels decide how the certificate is checked. The levels NONE and MAY do not "
        "remove required TLS."
    )
    active: bool = attribute_field(
        "True if the relay host is used. If false, the mail of its domains is sent "
        "by the default route."
    )
    created_at: datetime = attribute_field("Time when the relay host was created.")

    load_batch = staticmethod(routing_loaders.load_relay_hosts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("RelayHost")}

    @field("Domains whose `relayHost` is this one, active or not.", "id")
    async def used_by_domains(
        self,
        info: Info,
        filter: DomainFilter | None = UNSET,
        order_by: DomainOrder = DomainOrder.NAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Annotated["Domain", strawberry.lazy("graph.domains.types")]]:
        request = DomainListRequest(
            Domain, filter or None, order_by, PageArguments(first, after, last, before)
        )
        return await load_relay_host_domain_page(info, request, self.row.id)


@strawberry.type(
    description=(
        "Next hop for outgoing mail to a destination. It has precedence over the relay host of the "
        "sender's domain. With a username, or on port 465 without `lookupMx`, TLS with a verified "
        "certificate is required. Otherwise TLS is opportunistic, unless a TLS policy, or with "
        "`lookupMx` DANE or MTA-STS, requires more."
    ),
    directives=[Auth(**ADMIN_GUARD)],
)
class Transport(NodeView):
    destination: str = attribute_field(
        "Recipients that the transport is for: a domain, .domain for all its subdomains, an "
        "address, or a /regular expression/ that is found in the recipient's address in lower "
        "case. Of several active transports that match, the first one in this order is used: "
        "address, domain, nearest parent domain, oldest regular expression."
    )
    next_hop: str = attribute_field(
        "Server that receives the mail, as host:port. Port 465 uses implicit TLS. An IPv6 address "
        "is in brackets, as in `[2001:db8::1]:25`. Brackets around another host have no effect. "
        "With `lookupMx`: domain whose MX hosts receive the mail, as domain or domain:port, "
        "without implicit TLS. Without a port it is port 25."
    )
    lookup_mx: bool = attribute_field(
        "True if mail of the transport goes to the MX hosts of the next hop, which is a domain. If "
        "false, it goes to the next hop itself."
    )
    username: str | None = attribute_field(
        "Username to authenticate with at the next hop (SMTP AUTH). Null: no authentication."
    )
    has_password: bool = attribute_field(
        "True if a password is stored. The password is never returned."
    )
    active: bool = attribute_field("True if the transport is used for mail to its destination.")
    created_at: datetime = attribute_field("Time when the transport was created.")

    load_batch = staticmethod(routing_loaders.load_transports_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Transport")}


@strawberry.type(
    description=(
        "TLS level and certificate check for outgoing mail to a destination. Of several active "
        "policies that match, the most specific one applies."
    ),
    directives=[Auth(**ADMIN_GUARD)],
)
class TlsPolicy(NodeView):
    destination: str = attribute_field(
        "Destination that the policy is for: a recipient domain, .domain for all its subdomains, "
        "or a relay host or next hop of a transport as [host] or [host]:port. A domain also "
        "selects a relay host or next hop with this name."
    )
    level: TlsPolicyLevel = attribute_field(
        "TLS level and certificate check that the server requires when it sends mail to the "
        "destination."
    )
    parameters: str | None = attribute_field(
        "Parameters `match` (certificate names or fingerprints) and `protocols` (TLS versions) of "
        "the policy, in the syntax of Postfix, in alphabetical order. Null: none."
    )
    active: bool = attribute_field("True if the TLS policy is applied.")
    created_at: datetime = attribute_field("Time when the TLS policy was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last change of the TLS policy. Null: never changed."
    )

    load_batch = staticmethod(routing_loaders.load_tls_policies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("TlsPolicy")}


@strawberry.type(
    description=(
        "IP address or network that forwards mail to this platform, so that SPF fails. Mail from a "
        "forwarding host is not refused or deferred because of SPF, DMARC or greylisting. For an "
        "address in several of them, the narrowest network counts."
    ),
    directives=[Auth(**ADMIN_GUARD)],
)
class ForwardingHost(NodeView):
    host: CIDR = attribute_field("IP address or network of the forwarding host.")
    source: str = attribute_field(
        "Name (in Unicode), address or network that the forwarding host was created from, or last "
        "changed by `forwardingHostCreate`."
    )
    filter_spam: bool = attribute_field(
        "True if mail from the host passes through the spam filter. If false, it skips "
        "the spam filter, but not the virus scanner and the sender rules."
    )
    created_at: datetime = attribute_field("Time when the forwarding host was created.")

    load_batch = staticmethod(routing_loaders.load_forwarding_hosts_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("ForwardingHost")}


@strawberry.input(description="Conditions on relay hosts.")
class RelayHostFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only relay hosts with this text in the host or the username (case and accents "
        "are ignored). At most 1,000 characters.",
        default=UNSET,
    )


@strawberry.input(description="Conditions on transports.")
class TransportFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only transports with this text in the destination, the next hop or the username "
        "(case and accents are ignored). At most 1,000 characters.",
        default=UNSET,
    )


@strawberry.input(description="Conditions on TLS policies.")
class TlsPolicyFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only TLS policies with this text in the destination (case and accents are "
        "ignored). At most 1,000 characters.",
        default=UNSET,
    )


@strawberry.input(description="Conditions on forwarding hosts.")
class ForwardingHostFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only forwarding hosts with this text in `host` or `source` (case and accents are "
        "ignored). At most 1,000 characters. A network is not found by an address in it.",
        default=UNSET,
    )


RoutingFilter = RelayHostFilter | TransportFilter | TlsPolicyFilter | ForwardingHostFilter


async def _load_routing_records_page(
    info: Info,
    record_kind: RoutingTable,
    record_type: type[NodeView],
    routing_filter: RoutingFilter | None,
    order_by: StrEnum,
    page_arguments: PageArguments,
) -> Connection[Any]:
    """Load a page of routing records."""
    search_text = (routing_filter.query or None) if routing_filter else None
    listing = RoutingListing(record_kind, search_text)
    list_order = record_kind.orders[order_by]
    list_ordering = ordering_name(f"{record_kind.cursor_kind}-{order_by}", search_text)
    return await connection_of_page(
        info,
        record_type,
        await routing_loaders.read_visible_routing_page(
            info.context,
            listing,
            page_request(list_ordering, *page_arguments),
            selected_columns(info, record_type),
            order_by,
        ),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: routing_loaders.count_visible_routing_rows(info.context, listing),
    )


@strawberry.type
class RoutingQuery:
    @query("Returns the relay hosts of the platform, active or not.", **READ_GUARD)
    async def relay_hosts(
        self,
        info: Info,
        filter: RelayHostFilter | None = UNSET,
        order_by: RelayHostOrder = RelayHostOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RelayHost]:
        page_arguments = PageArguments(first, after, last, before)
        return await _load_routing_records_page(
            info, RELAYS, RelayHost, filter, order_by, page_arguments
        )

    @query("Returns the transports of the platform, active or not.", **READ_GUARD)
    async def transports(
        self,
        info: Info,
        filter: TransportFilter | None = UNSET,
        order_by: TransportOrder = TransportOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Transport]:
        page_arguments = PageArguments(first, after, last, before)
        return await _load_routing_records_page(
            info, TRANSPORTS, Transport, filter, order_by, page_arguments
        )

    @query("Returns the TLS policies of the platform, active or not.", **READ_GUARD)
    async def tls_policies(
        self,
        info: Info,
        filter: TlsPolicyFilter | None = UNSET,
        order_by: TlsPolicyOrder = TlsPolicyOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[TlsPolicy]:
        page_arguments = PageArguments(first, after, last, before)
        return await _load_routing_records_page(
            info, POLICIES, TlsPolicy, filter, order_by, page_arguments
        )

    @query("Returns the forwarding hosts of the platform.", **READ_GUARD)
    async def forwarding_hosts(
        self,
        info: Info,
        filter: ForwardingHostFilter | None = UNSET,
        order_by: ForwardingHostOrder = ForwardingHostOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ForwardingHost]:
        page_arguments = PageArguments(first, after, last, before)
        return await _load_routing_records_page(
            info, FORWARDERS, ForwardingHost, filter, order_by, page_arguments
        )
