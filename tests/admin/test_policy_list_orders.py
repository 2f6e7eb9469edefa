"""Orders of the lists of routing, rate limits, spam rules, legal holds, settings and key values."""

from typing import Any

import pytest

from graph.schema import schema
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.lists.list_fields import PARENT_SELECTIONS, aliased_field, list_fields
from tests.support.lists.list_rows import ROWS_PER_LIST, add_list_rows

CREATED_AT = {"CREATED_AT": "createdAt"}
# By list: the field that the nodes are sorted by, for each key of the order.
SORT_FIELDS = {
    "Query.relayHosts": CREATED_AT,
    "Query.transports": CREATED_AT | {"DESTINATION": "destination"},
    "Query.tlsPolicies": CREATED_AT | {"DESTINATION": "destination"},
    "Query.forwardingHosts": CREATED_AT | {"HOST": "host"},
    "Query.rateLimits": {"CREATED": "user { id }"},
    "Query.rateLimitHolds": {"HELD_AT": "heldAt"},
    "Query.senderRules": {"PATTERN": "pattern"},
    "Domain.senderRules": {"PATTERN": "pattern"},
    "Query.quarantine": {"CREATED_AT": "createdAt", "SCORE": "score", "SIZE": "size"},
    "User.quarantine": {"CREATED_AT": "createdAt", "SCORE": "score", "SIZE": "size"},
    "Query.legalHolds": CREATED_AT,
    "LegalHold.messages": {"POSITION": "position"},
    "LegalHold.accessLog": {"AT": "at"},
    "Query.keyValues": {"KEY": "key"},
    "Query.settings": {"KEY": "key"},
    "Setting.history": {"AT": "at"},
}
# Lists of what belongs to the caller; the others are of administrators.
OWN_LISTS = {"Query.quarantine", "User.quarantine", "Query.keyValues"}
LIST_FIELDS = {field.key: field for field in list_fields(schema._schema)}  # noqa: SLF001 - the schema that graphql-core executes


def find_page(data: Any) -> Any:
    """Return the page in the response of a document; in a list of objects that of the last."""
    while data and "totalCount" not in data:
        data = data[-1] if isinstance(data, list) else next(iter(data.values()))
    return data


def page_document(key: str, sort_field: str, **arguments: str) -> str:
    """Return the query of a page of a list."""
    selected = f"{{ totalCount edges {{ cursor node {{ value: {sort_field} }} }} }}"
    field = aliased_field(LIST_FIELDS[key], "page", arguments, selected)
    return "{ " + PARENT_SELECTIONS[LIST_FIELDS[key].parent][0].replace("%s", field) + " }"


async def check_order(client: GraphQLClient, key: str, order_key: str) -> None:
    """Check the two directions of a list, and its pages before and after a cursor."""
    sort_field = SORT_FIELDS[key][order_key]
    orders = (f"{order_key}_ASC", f"{order_key}_DESC")
    pages = [
        find_page(await client(page_document(key, sort_field, orderBy=order, first="250")))
        for order in orders
    ]
    ascending, descending = ([edge["node"]["value"] for edge in page["edges"]] for page in pages)
    assert descending == ascending[::-1]
    if not isinstance(ascending[0], dict):
        assert ascending == sorted(ascending)
    for order, other_order, page in zip(orders, orders[::-1], pages, strict=True):
        edges = page["edges"]
        assert page["totalCount"] == len(edges) >= ROWS_PER_LIST
        after, before = (f'"{edges[index]["cursor"]}"' for index in (1, -2))
        for arguments, expected in (
            ({"first": "2", "after": after}, edges[2:4]),
            ({"last": "2", "before": before}, edges[-4:-2]),
        ):
            document = page_document(key, sort_field, orderBy=order, **arguments)
            assert find_page(await client(document))["edges"] == expected
        answer = await client.execute(
            page_document(key, sort_field, orderBy=other_order, first="2", after=after)
        )
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"BAD_CURSOR"}


@pytest.fixture
async def clients_with_data(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> list[GraphQLClient]:
    """Clients of ROOT, of ada and of a user without own rows; every list has rows."""
    await add_list_rows(ada, bob, clock)
    return [root, ada, await make_client(ada.environment, ada.http, "outsider")]


async def test_lists_are_read_in_both_directions_and_by_no_outsider(
    clients_with_data: list[GraphQLClient],
) -> None:
    root, ada, outsider = clients_with_data
    for key, sort_fields in SORT_FIELDS.items():
        for order_key, sort_field in sort_fields.items():
            client = ada if key in OWN_LISTS else root
            await check_order(client, key, order_key)
            for order in (f"{order_key}_ASC", f"{order_key}_DESC"):
                answer = await outsider.execute(
                    page_document(key, sort_field, orderBy=order, first="250")
                )
                page = find_page(answer["data"]) or {"totalCount": 0, "edges": []}
                assert page == {"totalCount": 0, "edges": []}, (key, order)
