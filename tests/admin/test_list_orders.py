"""Orders of lists: each reads an index, has pages without gaps, and needs one statement."""

from datetime import timedelta
from typing import Any

import pytest

from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.spam.quarantine import QuarantineItem
from models.store.keyset_pages import Cursor, PageRequest
from models.submission.tables import Submission, SubmissionState
from models.users.roles import Role, Scope
from resolvers.addresses.loaders import AddressOrder
from resolvers.admin.audit_log import AuditLogOrder
from resolvers.context import Context
from resolvers.domains.loaders import DomainOrder
from resolvers.filters.loaders import FilterOrder
from resolvers.queue.loaders import QueueEntryOrder
from resolvers.spam.quarantine import QuarantineOrder
from resolvers.throttling.loaders import LoginPenaltyOrder, NetworkBanOrder
from resolvers.users import deleted_listing
from resolvers.users.deleted_listing import DeletedUserConditions, DeletedUserOrder
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.lists.list_orders import ORDERED_LISTS
from tests.support.lists.list_rows import FIRST_TIME, ROWS_PER_LIST, add_rows
from tests.support.operations.filter_operations import add_filter
from tests.support.stores.query_plans import record_query_plans

ORDER_ENUMS = (
    AddressOrder,
    AuditLogOrder,
    DomainOrder,
    FilterOrder,
    LoginPenaltyOrder,
    NetworkBanOrder,
    QuarantineOrder,
    QueueEntryOrder,
)


def platform_context(environment: Environment) -> Context:
    """Return the context of a ROOT who is no user."""
    return Context(environment, Viewer(role=Role.ROOT, user_id=0, scopes=frozenset({Scope.FULL})))


async def test_each_order_reads_its_index_with_one_statement(environment: Environment) -> None:
    for case in each_case(ORDERED_LISTS):
        with case as list_name:
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
                        if environment.database.dialect != "sqlite":
                            continue  # small tables have other plans
                        assert ordered.index_of(order) in plan, (order, plan)
                        if list_name == "filters" and "CREATED_AT" in order:
                            continue  # a user has few filters
                        assert "TEMP B-TREE" not in plan, (order, plan)


async def test_list_of_deleted_users_reads_its_index(environment: Environment) -> None:
    ctx = platform_context(environment)
    with record_query_plans(environment) as plans:
        for order in DeletedUserOrder:
            plan = await plans.explain_select(
                deleted_listing.read_deleted_user_page(
                    ctx, DeletedUserConditions(), PageRequest("x"), {"username"}, order
                ),
                "deleted_users",
            )
            if environment.database.dialect == "sqlite":
                assert "deleted_users_by_age" in plan, plan
                assert "TEMP B-TREE" not in plan, plan


async def test_cursor_with_a_value_of_another_type_is_refused(environment: Environment) -> None:
    for case in each_case(ORDERED_LISTS):
        with case as list_name:
            ordered = ORDERED_LISTS[list_name]
            for order, list_order in ordered.orders.items():
                wrong_value: Any = 7 if list_order.value_type is str else "text"
                page_request = PageRequest("x", cursor=Cursor("x", wrong_value, 1))
                with pytest.raises(InvalidInput) as refusal:
                    await ordered.load_page(
                        platform_context(environment),
                        ordered.conditions,
                        page_request,
                        {"id"},
                        order,
                    )
                assert list(refusal.value.path or ()) == ["after"]


@pytest.mark.parametrize(
    "cursor", [Cursor("x", "text", 1 << 63), Cursor("x", 1 << 63, 1), Cursor("x", 1, -(1 << 64))]
)
def test_cursor_with_a_number_beyond_64_bit_is_refused(cursor: Cursor) -> None:
    with pytest.raises(InvalidInput):
        Cursor.parse(str(cursor), "x", path="after")


async def list_names(client: GraphQLClient, field: str, order: str, **page: Any) -> Any:
    """Return the page info and the names of the nodes of a page."""
    document = f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
      page: {field}(orderBy: {order}, first: $first, after: $after, last: $last, before: $before) {{
        nodes {{ id }}
        pageInfo {{ hasNextPage hasPreviousPage startCursor endCursor }} }} }}"""
    answer = (await client(document, **page))["page"]
    return answer["pageInfo"], [node["id"] for node in answer["nodes"]]


async def add_queue_entries_and_quarantined_messages(client: GraphQLClient) -> None:
    """Add rows of which some have the same size, score and time."""
    columns: dict[str, Any] = {
        "user_id": client.user.id,
        "blob_id": 1,
        "created_at": lambda n: FIRST_TIME + timedelta(minutes=n // 2),
        "size": lambda n: 100 - n // 2,
    }
    await add_rows(
        client.environment,
        Submission,
        tenant_id=client.user.id,
        queue_id=lambda n: f"q{n}",
        state=SubmissionState.QUEUED,
        **columns,
    )
    expires_at = FIRST_TIME + timedelta(days=99)
    await add_rows(
        client.environment,
        QuarantineItem,
        score=lambda n: n % 3 + 0.5,
        expires_at=expires_at,
        **columns,
    )


async def test_pages_of_each_order_have_no_gaps(root: GraphQLClient, ada: GraphQLClient) -> None:
    await add_queue_entries_and_quarantined_messages(ada)
    for number in range(5):
        await add_filter(ada, {}, {"seen": True}, name=str(number))
        created = await root(
            """mutation ($address: String!, $user: UserRef!) {
              addressCreate(input: {address: $address, user: $user}) { errors { message } } }""",
            address=f"n{number}@d{number}.example",
            user={"username": "ada"},
        )
        assert created["addressCreate"]["errors"] == []
    cases: list[str] = ["domains", "addresses", "auditLog", "filters", "queue", "quarantine"]
    for case in each_case(cases):
        with case as field:
            for order in ORDERED_LISTS[field].orders:
                if field == "filters" and "POSITION" in order:
                    continue
                _, expected = await list_names(root, field, order, first=250)
                assert len(expected) >= 5
                forward: list[str] = []
                info: Any = {"hasNextPage": True, "endCursor": None}
                while info["hasNextPage"]:
                    info, ids = await list_names(
                        root, field, order, first=2, after=info["endCursor"]
                    )
                    forward += ids
                backward: list[str] = []
                info = {"hasPreviousPage": True, "startCursor": None}
                while info["hasPreviousPage"]:
                    info, ids = await list_names(
                        root, field, order, last=2, before=info["startCursor"]
                    )
                    backward = ids + backward
                assert forward == backward == expected
                if order.endswith("_DESC"):
                    _, ascending = await list_names(
                        root, field, order.replace("_DESC", "_ASC"), first=250
                    )
                    assert ascending == expected[::-1]


async def test_queue_and_quarantine_are_sorted_by_the_values_of_their_orders(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await add_queue_entries_and_quarantined_messages(ada)
    document = """query ($queue: QueueEntryOrder!, $quarantine: QuarantineOrder!) {
      queue(orderBy: $queue) { nodes { arrivedAt size } }
      quarantine(orderBy: $quarantine) { nodes { createdAt size score } } }"""
    sort_fields = {
        "queue": {"ARRIVED_AT": "arrivedAt", "SIZE": "size"},
        "quarantine": {"CREATED_AT": "createdAt", "SIZE": "size", "SCORE": "score"},
    }
    for field, field_by_key in sort_fields.items():
        for key, sort_field in field_by_key.items():
            for direction in ("ASC", "DESC"):
                orders = {"queue": "ARRIVED_AT_ASC", "quarantine": "CREATED_AT_ASC"}
                variables = {**orders, field: f"{key}_{direction}"}
                nodes = (await root(document, **variables))[field]["nodes"]
                values = [node[sort_field] for node in nodes]
                assert len(values) == ROWS_PER_LIST
                assert values == sorted(values, reverse=direction == "DESC")
    answer = await bob.execute(document, queue="SIZE_ASC", quarantine="SIZE_ASC")
    assert answer["data"] == {"queue": {"nodes": []}, "quarantine": {"nodes": []}}


async def test_filters_of_all_users_have_no_order_by_position(root: GraphQLClient) -> None:
    answer = await root.execute("{ filters(orderBy: POSITION_ASC) { nodes { id } } }")
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    assert "filter.user" in answer["errors"][0]["message"]


def test_each_order_has_both_directions() -> None:
    for enum in ORDER_ENUMS:
        names = {order.value for order in enum}
        keys = {name.rpartition("_")[0] for name in names}
        assert names == {f"{key}_{direction}" for key in keys for direction in ("ASC", "DESC")}


async def test_lists_of_one_request_keep_their_own_orders(ada: GraphQLClient) -> None:
    for number in range(5):
        await add_filter(ada, {}, {"seen": True}, name=str(number), position=number * 3 % 5)
    page_of_order = "filters(first: 3, orderBy: {}) {{ nodes {{ id name }} }}"
    orders = ("POSITION_DESC", "CREATED_AT_ASC", "CREATED_AT_DESC", "POSITION_ASC")
    together = " ".join(f"list{n}: {page_of_order.format(o)}" for n, o in enumerate(orders))
    answer = (await ada(f"{{ viewer {{ user {{ {together} }} }} }}"))["viewer"]["user"]
    for number, order in enumerate(orders):
        alone = await ada(f"{{ viewer {{ user {{ {page_of_order.format(order)} }} }} }}")
        assert answer[f"list{number}"] == alone["viewer"]["user"]["filters"]
