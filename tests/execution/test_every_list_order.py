"""Every list has orders, and each order has the same rows in its two directions."""

import math
from datetime import datetime
from random import Random
from typing import Any

import pytest
from graphql import GraphQLEnumType, get_named_type

from graph.schema import schema as product_schema
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.lists.list_fields import (
    LISTS_OUTSIDE_THE_DATABASE,
    PARENT_SELECTIONS,
    ListField,
    aliased_field,
    list_fields,
    required_arguments,
)
from tests.support.lists.list_rows import add_administered_domains, add_list_rows
from tests.support.lists.sort_fields import has_ordered_values, sort_field_name
from tests.support.run_scope import RUNS_ALL_TESTS

schema = product_schema._schema  # noqa: SLF001 - the schema that graphql-core executes
MIN_PAGES = 4  # of two rows, of a list in one order; fewer if it has less than ten rows
PAGE_ARGUMENTS = {"first", "after", "last", "before"}
LIST_FIELDS = {field.key: field for field in list_fields(schema) if field.is_connection}
# Lists with one natural order: the tree of the mailboxes, or the order of the search index.
LISTS_WITH_ONE_ORDER = {
    "Query.mailboxes",
    "User.mailboxes",
    "User.sharedMailboxes",
    "Thread.mailboxes",
    "SearchDiagnostics.hits",
}
# Arguments that decide whose items are listed, or that only a search has.
OTHER_ARGUMENTS = {
    "Query.mailboxes": {"users"},
    "Query.messages": {"users", "query"},
    "Query.metrics": {"type"},
    "SearchDiagnostics.hits": {"users"},
}
# These lists depend on the user that a filter selects, or must be of one mailbox.
ORDERS_OF_ONE_MAILBOX = {"DATE", "FROM", "SIZE", "SUBJECT"}
ORDERS_WITH_CONDITIONS = {
    "Query.filters": {"POSITION"},
    "Query.messages": ORDERS_OF_ONE_MAILBOX,
    "SavedSearch.messages": ORDERS_OF_ONE_MAILBOX,
    "Thread.messages": ORDERS_OF_ONE_MAILBOX,
    "User.messages": ORDERS_OF_ONE_MAILBOX,
}
# These lists are sorted by ID, which is in the order of creation. Test rows have other times.
ORDERS_BY_ID = {"Query.connectors": {"CREATED_AT"}, "User.connectors": {"CREATED_AT"}}
# Two groups, each newest first in both directions: only the order of the groups changes.
GROUP_ORDERS = {"SEEN"}
# The administrator who reads these lists adds a row to the first by each read of the second.
UNCOMPARED_LISTS = {"LegalHold.accessLog", *LISTS_OUTSIDE_THE_DATABASE}


def order_enum(list_field: ListField) -> GraphQLEnumType:
    enum = get_named_type(list_field.field.args["orderBy"].type)
    assert isinstance(enum, GraphQLEnumType)
    return enum


def test_every_list_has_pages_one_filter_and_orders() -> None:
    for key, list_field in LIST_FIELDS.items():
        names = set(list_field.field.args)
        assert names >= PAGE_ARGUMENTS, key
        others = names - PAGE_ARGUMENTS - {"filter", "orderBy"}
        assert others == OTHER_ARGUMENTS.get(key, set()), key
        assert ("orderBy" not in names) == (key in LISTS_WITH_ONE_ORDER), key


def test_every_list_of_a_query_has_a_filter() -> None:
    assert [
        key
        for key, list_field in LIST_FIELDS.items()
        if list_field.parent == "Query" and "filter" not in list_field.field.args
    ] == []


def test_each_order_has_both_directions() -> None:
    for key, list_field in LIST_FIELDS.items():
        if "orderBy" not in list_field.field.args:
            continue
        names = set(order_enum(list_field).values) - {"RELEVANCE"}
        keys = {name.rpartition("_")[0] for name in names}
        assert names == {f"{k}_{d}" for k in keys for d in ("ASC", "DESC")}, key


@pytest.fixture
async def clients_with_data(
    admin_client: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> list[GraphQLClient]:
    """Clients of an administrator, a user and a DOMAIN_ADMIN; every list has rows."""
    chief = await make_domain_admin(ada.environment, ada.http, "chief")
    await add_list_rows(ada, bob, clock)
    await add_administered_domains(chief)
    return [admin_client, ada, chief]


def pages_of(value: Any) -> list[Any]:
    """Return every value under the alias `page` of a response, in order."""
    if isinstance(value, list):
        return [page for item in value for page in pages_of(item)]
    if not isinstance(value, dict):
        return []
    if "page" in value:
        return [value["page"]]
    return [page for item in value.values() for page in pages_of(item)]


async def read_edges(
    client: GraphQLClient,
    parent_selection: str,
    list_field: ListField,
    after: str | None = None,
    **arguments: str,
) -> list[Any] | None:
    """Return the cursors and nodes of the first list; None if the client may not read it.

    The cursor is a variable, so that the server prepares one document for all pages of a list.
    """
    node_type, order = list_field.node_type, arguments["orderBy"]
    value = f"value: {sort_field_name(order)}" if has_ordered_values(node_type, order) else ""
    node = f"{{ {'id' if 'id' in node_type.fields else '__typename'} {value} }}"
    literals = required_arguments(schema, list_field, Random(1)) | arguments  # noqa: S311 - not used for secrets
    selected = f"{{ edges {{ cursor node {node} }} }}"
    field = aliased_field(list_field, "page", literals | {"after": "$after"}, selected)
    cursor_type = list_field.field.args["after"].type
    document = f"query ($after: {cursor_type}) {{ {parent_selection.replace('%s', field)} }}"
    answer = await client.execute(document, after=after)
    pages = [page for page in pages_of(answer.get("data")) if page]
    if answer.get("errors") or not pages:
        return None
    edges: list[Any] = max((page["edges"] for page in pages), key=len)
    return edges


def comparable(value: Any) -> float:
    """Return a number or a time as a number. Null is the lowest."""
    if value is None:
        return -math.inf
    return datetime.fromisoformat(value).timestamp() if isinstance(value, str) else float(value)


def rotations(rows: list[Any]) -> list[list[Any]]:
    """Return the rows in their order, beginning with each of them."""
    return [rows[index:] + rows[:index] for index in range(max(len(rows), 1))]


def page_positions(row_count: int) -> range:
    """Return the positions of the rows after which a page of two rows is read."""
    positions = range(0, row_count - 2, 2)
    if RUNS_ALL_TESTS:
        return positions
    return positions[:: max(1, len(positions) // MIN_PAGES)]


async def check_orders(
    client: GraphQLClient, parent_selection: str, list_field: ListField
) -> int | None:
    """Compare the two directions of each order, and its pages of two; return the row count.

    The values of the field that an order is named after are sorted, if they are numbers or times.
    """
    row_count = None
    for name in set(order_enum(list_field).values) - {"RELEVANCE"}:
        key = name.rpartition("_")[0]
        if key in ORDERS_WITH_CONDITIONS.get(list_field.key, ()):
            continue
        rows: dict[str, list[Any]] = {}
        for order in (f"{key}_ASC", f"{key}_DESC"):
            edges = await read_edges(
                client, parent_selection, list_field, orderBy=order, first="250"
            )
            if edges is None:
                return row_count
            rows[order] = [edge["node"] for edge in edges]
            for index in page_positions(len(edges)):
                cursor = edges[index]["cursor"]
                page = await read_edges(
                    client, parent_selection, list_field, cursor, orderBy=order, first="2"
                )
                assert page == edges[index + 1 : index + 3], (list_field.key, order)
        ascending, descending = rows[f"{key}_ASC"], rows[f"{key}_DESC"]
        if key in GROUP_ORDERS:
            assert descending in rotations(ascending), (list_field.key, key)
        else:
            assert ascending == descending[::-1], (list_field.key, key)
        values = [comparable(node["value"]) for node in rows[f"{key}_ASC"] if "value" in node]
        is_sorted = values == sorted(values) or key in ORDERS_BY_ID.get(list_field.key, ())
        assert is_sorted, (list_field.key, key)
        row_count = len(rows[f"{key}_ASC"])
    return row_count


async def test_each_order_returns_the_same_rows_in_both_directions(
    clients_with_data: list[GraphQLClient],
) -> None:
    for key, list_field in LIST_FIELDS.items():
        if "orderBy" not in list_field.field.args or key in UNCOMPARED_LISTS:
            continue
        counts = [
            await check_orders(client, parent_selection, list_field)
            for client in clients_with_data
            for parent_selection in PARENT_SELECTIONS[list_field.parent][:1]
        ]
        assert max(count or 0 for count in counts) >= 3, (key, counts)
