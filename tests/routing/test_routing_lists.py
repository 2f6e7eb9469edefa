"""Lists of relay hosts, transports, TLS policies and forwarding hosts: filters and orders."""

from typing import Any, NamedTuple

import pytest
from sqlmodel import SQLModel

from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from tests.conftest import GraphQLClient
from tests.support.lists.list_rows import add_rows

DOMAINS = ("b.example", "größe.example", "a.example")


class RoutingList(NamedTuple):
    """A list: its type and table, the values of its rows, and the rows that a text is found in.

    The first column is the name of a row. `found_by_query` has numbers of rows.
    """

    type_name: str
    table: type[SQLModel]
    columns: dict[str, tuple[str | None, ...]]
    found_by_query: dict[str, list[int]]


ROUTING_LISTS = {
    "relayHosts": RoutingList(
        "RelayHost",
        RelayHost,
        {"host": DOMAINS, "username": (None, "Smart", "b")},
        {"EXAMPLE": [0, 1, 2], "GRÖSSE": [1], "smart": [1], "b": [0, 2], "%": []},
    ),
    "transports": RoutingList(
        "Transport",
        Transport,
        {
            "destination": DOMAINS,
            "next_hop": ("hop.test:25", "hop.test:26", "[::1]:25"),
            "username": (None, "Smart", None),
        },
        {"größe": [1], "HOP.test": [0, 1], "smart": [1], "_": []},
    ),
    "tlsPolicies": RoutingList(
        "TlsPolicy", TlsPolicy, {"destination": DOMAINS}, {"a.EX": [2], "e": [0, 1, 2], "x.": []}
    ),
    "forwardingHosts": RoutingList(
        "ForwardingHost",
        ForwardingHost,
        {
            "host": ("198.51.100.0/24", "192.0.2.1/32", "192.0.3.0/24"),
            "source": ("old.test", "old.test", "192.0.3.0/24"),
        },
        {"OLD": [0, 1], "192.0.": [1, 2], "/24": [0, 2], "%": []},
    ),
}


async def list_names(client: GraphQLClient, field: str, **arguments: Any) -> list[str]:
    """Return the names of the records of a list. Its `totalCount` must be their number."""
    routing_list = ROUTING_LISTS[field]
    document = f"""query ($filter: {routing_list.type_name}Filter,
        $orderBy: {routing_list.type_name}Order! = CREATED_AT_ASC) {{
      page: {field}(filter: $filter, orderBy: $orderBy) {{
        totalCount nodes {{ name: {next(iter(routing_list.columns))} }} }} }}"""
    page = (await client(document, **arguments))["page"]
    assert page["totalCount"] == len(page["nodes"])
    return [node["name"] for node in page["nodes"]]


@pytest.mark.parametrize("field", ROUTING_LISTS)
async def test_list_is_filtered_and_sorted(root: GraphQLClient, field: str) -> None:
    routing_list = ROUTING_LISTS[field]
    name_column, names = next(iter(routing_list.columns.items()))
    columns = {name: values.__getitem__ for name, values in routing_list.columns.items()}
    await add_rows(root.environment, routing_list.table, len(names), **columns)
    assert await list_names(root, field) == list(names)
    assert await list_names(root, field, orderBy="CREATED_AT_DESC") == list(names)[::-1]
    for query, numbers in routing_list.found_by_query.items():
        expected = [names[number] for number in numbers]
        assert await list_names(root, field, filter={"query": query}) == expected, query
    if field != "relayHosts":
        by_name = await list_names(root, field, orderBy=f"{name_column.upper()}_ASC")
        assert by_name == sorted(map(str, names))


@pytest.mark.parametrize("field", ROUTING_LISTS)
async def test_cursor_of_another_filter_and_long_text_are_refused(
    root: GraphQLClient, field: str
) -> None:
    routing_list = ROUTING_LISTS[field]
    await add_rows(root.environment, routing_list.table, 2)
    document = f"""query ($filter: {routing_list.type_name}Filter, $after: String) {{
      page: {field}(filter: $filter, first: 1, after: $after) {{ pageInfo {{ endCursor }} }} }}"""
    after = (await root(document))["page"]["pageInfo"]["endCursor"]
    for query, code in (("1", "BAD_CURSOR"), ("x" * 1001, "BAD_USER_INPUT")):
        cursor = after if code == "BAD_CURSOR" else None
        answer = await root.execute(document, filter={"query": query}, after=cursor)
        assert answer["errors"][0]["extensions"]["code"] == code
