"""Plans of ordered lists of large tables: each order reads its index and sorts nothing."""

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind
from models.admin.audit_log import AuditLogEntry
from models.auth.credentials import AccessToken, Throttle
from models.domains.tables import Domain, DomainAlias
from models.filters.tables import Filter
from models.resources.tables import Resource
from models.routing.tables import RelayHost
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from models.store.columns import ColumnRow
from models.store.keyset_pages import Cursor, Page, PageRequest
from models.submission.tables import Submission, SubmissionState
from models.throttling.tables import NetworkBan
from models.users.roles import Role, Scope
from resolvers.auth import access_tokens
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.context import Context
from resolvers.domains import domain_lists
from resolvers.domains import listing as domain_listing
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.domain_lists import DomainListPageKey
from resolvers.domains.listing import DomainAddressOrder, DomainPageKey
from resolvers.domains.loaders import DomainOrder
from resolvers.filters.loaders import FilterListConditions
from resolvers.list_orders import ListOrder, OwnerPageKey
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.lists.list_orders import ORDERED_LISTS
from tests.support.lists.list_rows import FIRST_TIME, add_rows
from tests.support.stores.query_plans import QueryPlanRecorder, record_query_plans

ROW_COUNT = 6000  # of each list: many more than a page has


@pytest.fixture
async def plans(ada: GraphQLClient) -> AsyncIterator[QueryPlanRecorder]:
    """Fill the tables of all ordered lists, and record plans."""
    environment, user_id = ada.environment, ada.user.id
    domain_id = (await add_rows(environment, Domain, 1, name="owner.example"))[0]
    resource_domain_id = (await add_rows(environment, Domain, 1, name="rooms.example"))[0]
    relay_host_id = (await add_rows(environment, RelayHost, 1))[0]
    later: dict[str, Any] = {"created_at": lambda n: FIRST_TIME + timedelta(seconds=n)}
    await add_rows(
        environment,
        Domain,
        ROW_COUNT,
        name=lambda n: f"d{n:05}.example",
        user_count=lambda n: n % 100,
        relay_host_id=lambda n: None if n % 20 else relay_host_id,
        **later,
    )
    await add_rows(
        environment,
        Address,
        ROW_COUNT,
        local=lambda n: f"a{n:05}",
        display_address=lambda n: f"a{n:05}@owner.example",
        domain_id=domain_id,
        user_id=user_id,
        **later,
    )
    local = {"local": lambda n: f"a{n:05}"}
    await add_rows(environment, BccRule, ROW_COUNT, domain_id=domain_id, **local, **later)
    await add_rows(environment, RecipientRewrite, ROW_COUNT, domain="x.example", **local, **later)
    alias = {"alias": lambda n: f"a{n:05}.example"}
    await add_rows(environment, DomainAlias, ROW_COUNT, domain_id=domain_id, **alias, **later)
    address_ids = await add_rows(
        environment,
        Address,
        ROW_COUNT,
        local=lambda n: f"r{n:05}",
        domain_id=resource_domain_id,
        kind=AddressKind.RESOURCE,
    )
    await add_rows(
        environment,
        Resource,
        ROW_COUNT,
        domain_id=resource_domain_id,
        address_id=address_ids.__getitem__,
        folded_name=lambda n: f"r{n % 100}",
        **later,
    )
    at = {"at": lambda n: FIRST_TIME + timedelta(seconds=n)}
    await add_rows(environment, AuditLogEntry, ROW_COUNT, **at)
    network = {
        "network": lambda n: f"n{n}",
        "first_ip": lambda n: f"{n:032x}",
        "last_ip": lambda n: f"{n:032x}",
    }
    far_end = lambda n: FIRST_TIME + timedelta(days=9, seconds=n)  # noqa: E731 - a column
    started = {"started_at": lambda n: FIRST_TIME + timedelta(seconds=n)}
    await add_rows(environment, NetworkBan, ROW_COUNT, ends_at=far_end, **started, **network)
    waiting = {"wait_since": lambda n: FIRST_TIME + timedelta(seconds=n)}
    await add_rows(environment, Throttle, ROW_COUNT, until=far_end, **waiting, **network)
    await add_rows(environment, Filter, ROW_COUNT, position=lambda n: n, user_id=user_id, **later)
    await add_rows(
        environment,
        Submission,
        ROW_COUNT,
        tenant_id=user_id,
        user_id=user_id,
        blob_id=1,
        queue_id=lambda n: f"s{n}",
        state=SubmissionState.QUEUED,
        **later,
    )
    await add_rows(
        environment, QuarantineItem, ROW_COUNT, user_id=user_id, domain_id=domain_id, **later
    )
    await add_rows(
        environment,
        AccessToken,
        ROW_COUNT,
        auth_version=ada.user.auth_version,
        expires_at=FIRST_TIME + timedelta(days=999),
        user_id=user_id,
        **later,
    )
    async with environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    with record_query_plans(environment) as recorder:
        yield recorder


def require_index_order(environment: Environment, plan: str, table: str, index: str) -> None:
    """Require that a plan reads this index in its order, without a sort or a whole scan."""
    if environment.database.dialect == "postgresql":
        index = {
            "sqlite_autoindex_domains": "uq_domains_name",
            "sqlite_autoindex_domain_aliases": "uq_domain_aliases_alias",
        }.get(index, index)
        # a unique name needs no sort by id: an incremental sort of groups of one row does it
        assert not re.search(r"(^|->)\s*Sort  \(", plan, re.MULTILINE), plan
        assert f"Seq Scan on {table}" not in plan, plan
    assert index in plan, plan
    assert "TEMP B-TREE" not in plan, plan


def page_requests(cursor: Cursor) -> tuple[PageRequest, ...]:
    """Pages from both ends of a list, and from both sides of a cursor."""
    return (
        PageRequest("x"),
        PageRequest("x", is_backward=True),
        PageRequest("x", cursor=cursor),
        PageRequest("x", 5, cursor, is_backward=True),
    )


async def test_orders_of_large_lists_read_their_indexes(
    plans: QueryPlanRecorder, ada: GraphQLClient
) -> None:
    await check_lists_of_all_owners(plans, ada)
    await check_lists_of_one_owner(plans, ada)


async def check_lists_of_all_owners(plans: QueryPlanRecorder, ada: GraphQLClient) -> None:
    """Require that each order of each large list reads its index."""
    environment = plans.environment
    ctx = Context(environment, Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL})))
    for list_name, ordered in ORDERED_LISTS.items():
        if not ordered.is_large:
            continue
        conditions = ordered.conditions
        if list_name == "filters":
            conditions = FilterListConditions(user_id=ada.user.id)
        for order, list_order in ordered.orders.items():
            page = await ordered.load_page(ctx, conditions, PageRequest("x", 250), {"id"}, order)
            assert len(page.rows) == 250, (list_name, order)
            cursor = list_order.cursor_of_row(page.rows[-1], "x")
            for page_request in page_requests(cursor):
                plan = await plans.explain_select(
                    ordered.load_page(ctx, conditions, page_request, {"id"}, order), ordered.table
                )
                require_index_order(environment, plan, ordered.table, ordered.index_of(order))


@dataclass(frozen=True)
class OwnedList:
    """A list of the rows of one owner, in one order."""

    load_pages: Callable[[Context, list[Any]], Awaitable[list[Page[ColumnRow]]]]
    key_type: type[OwnerPageKey]
    owner_id: int
    order: ListOrder

    def load_page(
        self, ctx: Context, page_request: PageRequest
    ) -> Awaitable[list[Page[ColumnRow]]]:
        return self.load_pages(ctx, [self.key_type(self.owner_id, page_request, self.order)])


async def check_lists_of_one_owner(plans: QueryPlanRecorder, ada: GraphQLClient) -> None:
    """Require that lists of a relay host, a user and a domain read their indexes."""
    environment = plans.environment
    root = Context(environment, Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL})))
    own = Context(
        environment, Viewer(role=Role.USER, user_id=ada.user.id, scopes=frozenset({Scope.FULL}))
    )
    (relay_host,) = await environment.database.read(select(col(RelayHost.id)))
    (domain,) = await environment.database.read(
        select(col(Domain.id)).where(col(Domain.name) == "owner.example")
    )
    by_name = domain_loaders.LIST_ORDERS[DomainOrder.NAME_ASC]
    by_age = access_tokens.LIST_ORDERS[AccessTokenOrder.CREATED_AT_DESC]
    by_address = domain_listing.ADDRESS_LIST_ORDERS[DomainAddressOrder.LOCAL_PART_DESC]
    domains_of_host = OwnedList(
        domain_lists.load_pages_by_relay_host, DomainListPageKey, relay_host.id, by_name
    )
    own_tokens = OwnedList(access_tokens.load_own_token_pages, OwnerPageKey, ada.user.id, by_age)
    addresses = OwnedList(
        domain_listing.load_address_pages_by_domain, DomainPageKey, domain.id, by_address
    )
    for ctx, owned, table, index in (
        (root, domains_of_host, "domains", "domains_by_relay_host"),
        (own, own_tokens, "access_tokens", "access_tokens_of_user"),
        (root, addresses, "addresses", "ix_addresses_domain_id_local"),
    ):
        (page,) = await owned.load_page(ctx, PageRequest("x", 250))
        assert len(page.rows) == 250
        for page_request in page_requests(owned.order.cursor_of_row(page.rows[-1], "x")):
            plan = await plans.explain_select(owned.load_page(ctx, page_request), table)
            require_index_order(environment, plan, table, index)
