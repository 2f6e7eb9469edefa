"""Lists of the domains of a user, of the viewer and of a relay host.

The GraphQL type is an argument, since the module of `Domain` imports those of its users.
"""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.fields import Info
from graph.types.row_mapping import NodeView, selected_columns
from models.store.columns import ColumnRow
from models.store.keyset_pages import Page, ordering_name
from resolvers.context import BatchFunction
from resolvers.domains import domain_lists
from resolvers.domains.domain_lists import DomainListPageKey
from resolvers.domains.loaders import LIST_ORDERS, DomainConditions, DomainOrder
from resolvers.list_orders import OwnerPageKey

DomainView = TypeVar("DomainView", bound=NodeView)
OwnedPageKey = TypeVar("OwnedPageKey", bound=OwnerPageKey)
ListView = TypeVar("ListView", bound=NodeView)


class DomainConditionsInput(Protocol):
    """The input with the filter of a list of domains. The types of its module import this one."""

    async def resolve_conditions_or_match_nothing(self, info: Info) -> DomainConditions:
        """Convert the filter. An unknown user selects no domain."""


@dataclass(frozen=True, slots=True)
class DomainListRequest(Generic[DomainView]):
    """The arguments of a list of domains, and the GraphQL type of its items."""

    view: type[DomainView]
    filter: DomainConditionsInput | None
    order: DomainOrder
    page_arguments: PageArguments

    async def to_page_key(self, info: Info, list_name: str, owner_id: int) -> DomainListPageKey:
        """Convert the arguments. Raises InvalidInput if a cursor is of another list."""
        conditions = (
            await self.filter.resolve_conditions_or_match_nothing(info) if self.filter else None
        )
        list_ordering = ordering_name(f"{list_name}-{self.order}", conditions)
        requested_page = page_request(list_ordering, *self.page_arguments)
        columns = selected_columns(info, self.view)
        return DomainListPageKey(
            owner_id, requested_page, LIST_ORDERS[self.order], columns, conditions
        )


async def load_administered_domain_page(
    info: Info, request: DomainListRequest[DomainView], user_id: int
) -> Connection[DomainView]:
    """Load a page of the domains that a user administers."""
    return await load_connection_of_owned_rows(
        info,
        request.view,
        await request.to_page_key(info, "administered-domains", user_id),
        domain_lists.load_pages_by_admin,
        domain_lists.count_domains_by_admin,
    )


async def load_relay_host_domain_page(
    info: Info, request: DomainListRequest[DomainView], relay_host_id: int
) -> Connection[DomainView]:
    """Load a page of the domains that have a relay host."""
    return await load_connection_of_owned_rows(
        info,
        request.view,
        await request.to_page_key(info, "relay-host-domains", relay_host_id),
        domain_lists.load_pages_by_relay_host,
        domain_lists.count_domains_by_relay_host,
    )


async def load_viewer_domain_page(
    info: Info, request: DomainListRequest[DomainView]
) -> Connection[DomainView]:
    """Load a page of the domains that the viewer administers."""
    return await load_connection_of_owned_rows(
        info,
        request.view,
        await request.to_page_key(info, "viewer-domains", 0),
        domain_lists.load_pages_of_viewer,
        domain_lists.count_domains_of_viewer,
    )


async def load_connection_of_owned_rows(
    info: Info,
    view: type[ListView],
    page_key: OwnedPageKey,
    load_pages: BatchFunction[OwnedPageKey, Page[ColumnRow]],
    count_rows: BatchFunction[OwnedPageKey, int],
) -> Connection[ListView]:
    """Load a page of the rows of one owner, such as the users of a domain."""
    ordering = page_key.page_request.ordering
    return await connection_of_page(
        info,
        view,
        await info.context.load(load_pages, page_key),
        lambda row: page_key.order.cursor_of_row(row, ordering),
        lambda: info.context.load(count_rows, page_key),
    )
