"""What the list of messages answers, for tests of its order, pages and filters."""

from typing import Any

from tests.conftest import Client

PAGE = """
query ($filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_DESC,
       $first: Int, $after: String, $last: Int, $before: String) {
  viewer { user { messages(filter: $filter, orderBy: $orderBy, first: $first, after: $after,
                           last: $last, before: $before) {
    nodes { id subject } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  } } }
}
"""


async def page(client: Client, **ask: Any) -> Any:
    return (await client(PAGE, **ask))["viewer"]["user"]["messages"]


async def found(client: Client, **condition: Any) -> list[str]:
    """The subjects of all that a filter finds, in the order of the alphabet."""
    answer = await page(client, filter=condition or None, first=250)
    assert answer["totalCount"] == len(answer["nodes"])
    return sorted(node["subject"] for node in answer["nodes"])


def subjects(answer: Any) -> str:
    return "".join(node["subject"] for node in answer["nodes"])
