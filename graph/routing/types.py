"""GraphQL types and queries of relay hosts, transports, TLS policies and forwarding hosts."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.object_views import Made
from graph.types.row_mapping import Shape, columns, identified, listed
from graph.types.scalars import CIDR
from models.routing.tables import TlsPolicyLevel
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from resolvers.routing import loaders as routing_loaders
from resolvers.routing.loaders import FORWARDERS, POLICIES, RELAYS, TRANSPORTS, Sort

ADMIN: dict[str, Any] = {"role": Role.ADMIN}
READS: dict[str, Any] = {**ADMIN, "scope": Scope.READ}


@strawberry.type(
    description="Way out for the mail of domains that name it.", directives=[Auth(**ADMIN)]
)
class RelayHost(Shape):
    host: str = leaf("Its name, or its address.")
    port: int = leaf("TCP port.")
    username: str | None = leaf("Whom we sign in as.")
    has_password: bool = leaf("A password is stored; it is never told.")
    tls: bool = leaf("Nothing goes there without TLS, and its certificate is checked.")
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(routing_loaders.relay_hosts)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("RelayHost")}

    @field("Domains that name it, by name.", "id")
    async def used_by_domains(
        self, info: Info
    ) -> list[Annotated["Domain", strawberry.lazy("graph.domains.types")]]:
        rows = await info.context.load(routing_loaders.used_by, self.row.id)
        return await listed(info, Domain, rows)


@strawberry.type(description="Way to a destination.", directives=[Auth(**ADMIN)])
class Transport(Shape):
    destination: str = leaf("Domain, .domain for all below it, address, or /regular expression/.")
    next_hop: str = leaf("host:port, [host]:port, or a domain.")
    lookup_mx: bool = leaf("Next hop is a domain, whose mail servers are looked up.")
    username: str | None = leaf("Whom we sign in as.")
    has_password: bool = leaf("A password is stored; it is never told.")
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(routing_loaders.transports)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Transport")}


@strawberry.type(
    description="How much encryption a destination asks for.", directives=[Auth(**ADMIN)]
)
class TlsPolicy(Shape):
    destination: str = leaf("Domain, .domain for all below it, or [host]:port of a next hop.")
    policy: TlsPolicyLevel = leaf("How much.")
    parameters: str | None = leaf("Names or fingerprints to match, and versions, as in Postfix.")
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(routing_loaders.tls_policies)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("TlsPolicy")}


@strawberry.type(
    description="Where mail is forwarded to us from, and so fails SPF: it is not refused for that.",
    directives=[Auth(**ADMIN)],
)
class ForwardingHost(Shape):
    host: CIDR = leaf("Address or network.")
    source: str = leaf("Name it came from.")
    filter_spam: bool = leaf("Its spam is filtered; false: its mail is never taken for spam.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(routing_loaders.forwarding_hosts)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("ForwardingHost")}


async def _page(info: Info, sort: Sort, shape: type[Shape], *asked: Any) -> Connection[Any]:
    """Load a page of routing records, oldest first.

    `page_arguments` are: first, after, last, before.
    """
    requested_page = page_asked(sort.ordering, *asked)
    return await connected(
        info,
        shape,
        await routing_loaders.page(info.context, sort, requested_page, columns(info, shape)),
        lambda row: Cursor(sort.ordering, row.created_at, row.id),
        lambda: routing_loaders.count(info.context, sort),
    )


@strawberry.type
class RoutingQuery:
    @query("All relay hosts, in the order they were made.", **READS)
    async def relay_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[RelayHost]:
        return await _page(info, RELAYS, RelayHost, first, after, last, before)

    @query("All transports, in the order they were made.", **READS)
    async def transports(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Transport]:
        return await _page(info, TRANSPORTS, Transport, first, after, last, before)

    @query("All TLS policies, in the order they were made.", **READS)
    async def tls_policies(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[TlsPolicy]:
        return await _page(info, POLICIES, TlsPolicy, first, after, last, before)

    @query("All forwarding hosts, in the order they were made.", **READS)
    async def forwarding_hosts(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ForwardingHost]:
        return await _page(info, FORWARDERS, ForwardingHost, first, after, last, before)
