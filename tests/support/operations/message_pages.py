"""Pages of the list of messages, and the messages that a filter finds."""

from typing import Any

from tests.conftest import GraphQLClient

MESSAGE_PAGE_QUERY = """
query ($filter: MessageFilter, $orderBy: MessageOrder! = RECEIVED_AT_DESC,
       $first: Int, $after: String, $last: Int, $before: String) {
  viewer { user { messages(filter: $filter, orderBy: $orderBy, first: $first, after: $after,
                           last: $last, before: $before) {
    nodes { id subject } totalCount
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor }
  } } }
}
"""


async def load_message_page(client: GraphQLClient, **variables: Any) -> Any:
    """Read a page of messages."""
    return (await client(MESSAGE_PAGE_QUERY, **variables))["viewer"]["user"]["messages"]


async def find_subjects(client: GraphQLClient, **filter_fields: Any) -> list[str]:
    """Return the subjects of all messages that a filter finds, sorted."""
    messages = await load_message_page(client, filter=filter_fields or None, first=250)
    assert messages["totalCount"] == len(messages["nodes"])
    return sorted(node["subject"] for node in messages["nodes"])


def joined_subjects(messages: Any) -> str:
    """The subjects of a page, joined to one text."""
    return "".join(node["subject"] for node in messages["nodes"])
