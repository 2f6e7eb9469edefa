"""Orders of lists: each reads an index, has pages without gaps, and needs one statement."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor, PageRequest
from models.users.roles import Role
from resolvers.addresses import loaders as address_loaders
from resolvers.addresses.loaders import AddressConditions, AddressOrder
from resolvers.admin import audit_log
from resolvers.admin.audit_log import AuditLogConditions, AuditLogOrder
from resolvers.context import Context, Viewer
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainConditions, DomainOrder
from resolvers.filters import loaders as filter_loaders
from resolvers.filters.loaders import FilterListConditions, FilterOrder
from resolvers.list_orders import ListOrder
from resolvers.queue import loaders as queue_loaders
from resolvers.queue.loaders import QueueEntryConditions, QueueEntryOrder
from resolvers.spam import quarantine
from resolvers.spam.quarantine import QuarantineConditions, QuarantineOrder
from resolvers.users import deleted_listing
from resolvers.users.deleted_listing import DeletedUserConditions
from resolvers.users.selection import UserSelector
from tests.conftest import GraphQLClient
from tests.support.operations.filter_operations import add_filter
from tests.support.stores.query_plans import record_query_plans

LoadPage = Callable[..., Awaitable[Any]]


@dataclass(frozen=True)
class OrderedList:
    """A list with orders: how it is read, and the index of each order."""

    load_page: LoadPage
    conditions: Any
    table: str
    orders: dict[Any, ListOrder]
    indexes: dict[str, str]  # by the key of the order

    def index_of(self, order: StrEnum) -> str:
        return self.indexes[order.rpartition("_")[0]]


ORDERED_LISTS = {
    "domains": OrderedList(
        domain_loaders.read_domain_page,
        DomainConditions(),
        "domains",
        domain_loaders.LIST_ORDERS,
        {
            "NAME": "sqlite_autoindex_domains",
            "CREATED": "domains_by_age",
            "USER_COUNT": "domains_by_user_count",
        },
    ),
    "addresses": OrderedList(
        address_loaders.read_address_page,
        AddressConditions(),
        "addresses",
        address_loaders.LIST_ORDERS,
        {"ADDRESS": "addresses_by_local", "CREATED": "addresses_by_age"},
    ),
    "auditLog": OrderedList(
        audit_log.read_entry_page,
        AuditLogConditions(),
        "audit_log",
        audit_log.LIST_ORDERS,
        {"CREATED": "ix_audit_log_at"},
    ),
    "filters": OrderedList(
        filter_loaders.load_page_of_all_users,
        FilterListConditions(user_id=7),
        "filters",
        filter_loaders.LIST_ORDERS,
        {"POSITION": "ix_filters_position", "CREATED": "ix_filters"},
    ),
    "queue": OrderedList(
        queue_loaders.read_entry_page,
        QueueEntryConditions(user_selection=UserSelector()),
        "submissions",
        queue_loaders.LIST_ORDERS,
        {"CREATED": "submissions_waiting", "SIZE": "submissions_waiting_by_size"},
    ),
    "quarantine": OrderedList(
        quarantine.read_item_page,
        QuarantineConditions(user_selector=UserSelector()),
        "quarantine_items",
        quarantine.LIST_ORDERS,
        {
            "RECEIVED": "quarantine_by_age",
            "SCORE": "quarantine_by_score",
            "SIZE": "quarantine_by_size",
        },
    ),
}
ORDER_ENUMS = (
    AddressOrder,
    AuditLogOrder,
    DomainOrder,
    FilterOrder,
    QuarantineOrder,
    QueueEntryOrder,
)


def platform_context(environment: Environment) -> Context:
    """Return the context of a ROOT who is no user."""
    return Context(environment, Viewer(role=Role.ROOT, user_id=0))


@pytest.mark.parametrize("list_name", ORDERED_LISTS)
async def test_each_order_reads_its_index_with_one_statement(
    environment: Environment, list_name: str
) -> None:
    ordered = ORDERED_LISTS[list_name]
    ctx = platform_context(environment)
    with record_query_plans(environment) as plans:
        for order, list_order in ordered.orders.items():
            values: dict[type, Any] = {str: "m", int: 5, float: 0.5}
            sort_value = values.get(list_order.value_type, environment.now())
            cursor = Cursor("x", sort_value, 1)
            for page_request in (
                PageRequest("x"),
                PageRequest("x", is_backward=True),
                PageRequest("x", cursor=cursor),
                PageRequest("x", 5, cursor, is_backward=True),
            ):
                plan = await plans.explain_select(
                    ordered.load_page(ctx, ordered.conditions, page_request, {"id"}, order),
                    ordered.table,
                )
                if environment.database.dialect == "sqlite":  # small tables have other plans
                    assert ordered.index_of(order) in plan, (order, plan)
                    if list_name != "filters" or "CREATED" not in order:  # a user has few filters
                        assert "TEMP B-TREE" not in plan, (order, plan)


async def test_list_of_deleted_users_reads_its_index(environment: Environment) -> None:
    ctx = platform_context(environment)
    with record_query_plans(environment) as plans:
        plan = await plans.explain_select(
            deleted_listing.read_deleted_user_page(
                ctx, DeletedUserConditions(), PageRequest("x"), {"username"}
            ),
            "deleted_users",
        )
    if environment.database.dialect == "sqlite":
        assert "deleted_users_by_age" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


@pytest.mark.parametrize("list_name", ORDERED_LISTS)
async def test_cursor_with_a_value_of_another_type_is_refused(
    environment: Environment, list_name: str
) -> None:
    ordered = ORDERED_LISTS[list_name]
    for order, list_order in ordered.orders.items():
        wrong_value: Any = 7 if list_order.value_type is str else "text"
        page_request = PageRequest("x", cursor=Cursor("x", wrong_value, 1))
        with pytest.raises(InvalidInput) as refusal:
            await ordered.load_page(
                platform_context(environment), ordered.conditions, page_request, {"id"}, order
            )
        assert list(refusal.value.path or ()) == ["after"]


async def list_names(client: GraphQLClient, field: str, order: str, **page: Any) -> Any:
    """Return the page info and the names of the nodes of a page."""
    document = f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
      page: {field}(orderBy: {order}, first: $first, after: $after, last: $last, before: $before) {{
        nodes {{ id }}
        pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"""
    answer = (await client(document, **page))["page"]
    return answer["pageInfo"], [node["id"] for node in answer["nodes"]]


@pytest.mark.parametrize("field", ["domains", "addresses", "auditLog", "filters"])
async def test_pages_of_each_order_have_no_gaps(
    root: GraphQLClient, ada: GraphQLClient, field: str
) -> None:
    for number in range(5):
        await add_filter(ada, {}, {"seen": True}, name=str(number))
        created = await root(
            """mutation ($address: String!, $user: UserRef!) {
              addressCreate(input: {address: $address, user: $user}) { errors { message } } }""",
            address=f"n{number}@d{number}.example",
            user={"username": "ada"},
        )
        assert created["addressCreate"]["errors"] == []
    for order in ORDERED_LISTS[field].orders:
        if field == "filters" and "POSITION" in order:
            continue
        _, expected = await list_names(root, field, order, first=250)
        assert len(expected) >= 5
        forward: list[str] = []
        info: Any = {"hasNextPage": True, "endCursor": None}
        while info["hasNextPage"]:
            info, ids = await list_names(root, field, order, first=2, after=info["endCursor"])
            forward += ids
        backward: list[str] = []
        info = {"hasPreviousPage": True, "startCursor": None}
        while info["hasPreviousPage"]:
            info, ids = await list_names(root, field, order, last=2, before=info["startCursor"])
            backward = ids + backward
        assert forward == backward == expected
        if order.endswith("_DESC"):
            _, ascending = await list_names(root, field, order.replace("_DESC", "_ASC"), first=250)
            assert ascending == expected[::-1]


async def test_filters_of_all_users_have_no_order_by_position(root: GraphQLClient) -> None:
    answer = await root.execute("{ filters(orderBy: POSITION_ASC) { nodes { id } } }")
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    assert "filter.user" in answer["errors"][0]["message"]


def test_each_order_has_both_directions() -> None:
    for enum in ORDER_ENUMS:
        names = {order.value for order in enum}
        keys = {name.rpartition("_")[0] for name in names}
        assert names == {f"{key}_{direction}" for key in keys for direction in ("ASC", "DESC")}
