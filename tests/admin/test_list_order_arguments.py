"""The argument `orderBy` of lists: both directions, and pages after a cursor of the same order."""

from dataclasses import dataclass
from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.lists.list_rows import ROWS_PER_LIST, add_list_rows

ADA_SELECTION = 'user(by: {username: "ada"}) { %s }'


@dataclass(frozen=True)
class OrderedField:
    """A list field, the selection around it, and the field of a node for each key of its order."""

    field: str
    sort_fields: dict[str, str]
    parent_selection: str = "%s"
    arguments: str = ""

    def document(self, order: str, page_arguments: str) -> str:
        """Return the query of a page."""
        sort_field = self.sort_fields[order.rpartition("_")[0]]
        page = (
            f"{self.field}({self.arguments}orderBy: {order}, {page_arguments}) "
            f"{{ totalCount pageInfo {{ endCursor }} nodes {{ value: {sort_field} }} }}"
        )
        return "{ " + self.parent_selection.replace("%s", page) + " }"


ORDERED_FIELDS = {
    "Query.connectors": OrderedField("connectors", {"USER": "user { id }", "CREATED_AT": "id"}),
    "User.connectors": OrderedField(
        "connectors", {"USER": "id", "CREATED_AT": "id"}, ADA_SELECTION
    ),
    "Connector.runs": OrderedField(
        "runs", {"CREATED": "id"}, ADA_SELECTION % "connectors(first: 1) { nodes { %s } }"
    ),
    "User.sieveScripts": OrderedField("sieveScripts", {"NAME": "name"}, ADA_SELECTION),
    "User.files": OrderedField("files", {"CREATED_AT": "createdAt"}, ADA_SELECTION),
    "User.submissions": OrderedField("submissions", {"CREATED_AT": "createdAt"}, ADA_SELECTION),
    "Query.deliveryTrace": OrderedField(
        "deliveryTrace",
        {"AT": "at"},
        arguments='filter: {sender: "carol@example.com"}, ',
    ),
    "Query.webhooks": OrderedField("webhooks", {"CREATED_AT": "createdAt"}),
    "Webhook.deliveries": OrderedField(
        "deliveries", {"CREATED": "id"}, "webhooks(first: 1) { nodes { %s } }"
    ),
    "Query.certificates": OrderedField("certificates", {"CREATED_AT": "createdAt"}),
}


def find_page(data: Any) -> Any:
    """Return the page in the response of a document."""
    while data and "pageInfo" not in data:
        (data,) = data if isinstance(data, list) else data.values()
    return data


def sort_values(page: Any) -> list[Any]:
    """Return the values that the nodes are sorted by. Global IDs are decoded to numbers."""
    values = [node["value"] for node in page["nodes"]]
    if isinstance(values[0], dict) or "_" in values[0]:
        ids = [value["id"] if isinstance(value, dict) else value for value in values]
        return [
            global_ids.decode(global_ids.type_name_of_global_id(id_), id_, path="by") for id_ in ids
        ]
    return values


async def test_lists_are_read_in_both_directions(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    await add_list_rows(ada, bob, clock)
    outsider = await make_client(ada.environment, ada.http, "outsider")
    for name, ordered in ORDERED_FIELDS.items():
        for key in ordered.sort_fields:
            orders = (f"{key}_ASC", f"{key}_DESC")
            pages = [find_page(await root(ordered.document(o, "first: 250"))) for o in orders]
            ascending = sort_values(pages[0])
            assert pages[0]["totalCount"] == len(ascending) >= ROWS_PER_LIST, (name, key)
            assert ascending == sorted(ascending), (name, key)
            assert pages[1]["nodes"] == pages[0]["nodes"][::-1], (name, key)
            for order, other_order, page in zip(orders, orders[::-1], pages, strict=True):
                start = find_page(await root(ordered.document(order, "first: 2")))
                after = f'first: 250, after: "{start["pageInfo"]["endCursor"]}"'
                rest = find_page(await root(ordered.document(order, after)))
                assert start["nodes"] + rest["nodes"] == page["nodes"], (name, order)
                refused = await root.execute(ordered.document(other_order, after))
                codes = {error["extensions"]["code"] for error in refused["errors"]}
                assert codes == {"BAD_CURSOR"}, (name, other_order)
            answer = await outsider.execute(ordered.document(orders[0], "first: 250"))
            assert not (find_page(answer["data"]) or {}).get("nodes"), name
