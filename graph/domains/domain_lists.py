"""Lists of the domains of a user, of the viewer and of a relay host.

The GraphQL type is an argument, since the module of `Domain` imports those of its users.
"""

from typing import TypeVar

from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.fields import Info
from graph.types.row_mapping import NodeView, selected_columns
from models.store.columns import ColumnRow
from models.store.keyset_pages import Page
from resolvers.context import BatchFunction
from resolvers.domains import domain_lists
from resolvers.domains.loaders import LIST_ORDERS, DomainOrder
from resolvers.list_orders import OwnerPageKey

DomainView = TypeVar("DomainView", bound=NodeView)
ListView = TypeVar("ListView", bound=NodeView)


async def load_administered_domain_page(
    info: Info,
    view: type[DomainView],
    user_id: int,
    order_by: DomainOrder,
    page_arguments: PageArguments,
) -> Connection[DomainView]:
    """Load a page of the domains that a user administers."""
    requested_page = page_request(f"administered-domains-{order_by}", *page_arguments)
    key = OwnerPageKey(user_id, requested_page, LIST_ORDERS[order_by], selected_columns(info, view))
    return await load_connection_of_owned_rows(
        info, view, key, domain_lists.load_pages_by_admin, domain_lists.count_domains_by_admin
    )


async def load_relay_host_domain_page(
    info: Info,
    view: type[DomainView],
    relay_host_id: int,
    order_by: DomainOrder,
    page_arguments: PageArguments,
) -> Connection[DomainView]:
    """Load a page of the domains that have a relay host."""
    requested_page = page_request(f"relay-host-domains-{order_by}", *page_arguments)
    key = OwnerPageKey(
        relay_host_id, requested_page, LIST_ORDERS[order_by], selected_columns(info, view)
    )
    return await load_connection_of_owned_rows(
        info,
        view,
        key,
        domain_lists.load_pages_by_relay_host,
        domain_lists.count_domains_by_relay_host,
    )


async def load_viewer_domain_page(
    info: Info, view: type[DomainView], order_by: DomainOrder, page_arguments: PageArguments
) -> Connection[DomainView]:
    """Load a page of the domains that the viewer administers."""
    requested_page = page_request(f"viewer-domains-{order_by}", *page_arguments)
    key = OwnerPageKey(0, requested_page, LIST_ORDERS[order_by], selected_columns(info, view))
    return await load_connection_of_owned_rows(
        info, view, key, domain_lists.load_pages_of_viewer, domain_lists.count_domains_of_viewer
    )


async def load_connection_of_owned_rows(
    info: Info,
    view: type[ListView],
    page_key: OwnerPageKey,
    load_pages: BatchFunction[OwnerPageKey, Page[ColumnRow]],
    count_rows: BatchFunction[OwnerPageKey, int],
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
