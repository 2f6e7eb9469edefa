"""Searching messages by text."""

from typing import Any

from tests.conftest import GraphQLClient

SEARCH_QUERY = """
query ($users: UserSelection, $query: String, $filter: MessageFilter, $first: Int,
       $after: String, $last: Int, $before: String, $orderBy: MessageOrder! = RECEIVED_AT_DESC) {
  messages(users: $users, query: $query, filter: $filter, orderBy: $orderBy, first: $first,
           after: $after, last: $last, before: $before) {
    nodes { subject snippet marked: snippet(marked: true) } totalCount
    pageInfo { startCursor endCursor hasNextPage hasPreviousPage } } }
"""


async def search_subjects(client: GraphQLClient, query: str, **variables: Any) -> list[str]:
    """Search messages and return their subjects."""
    messages = (await client(SEARCH_QUERY, query=query, **variables))["messages"]
    assert messages["totalCount"] == len(messages["nodes"])
    return [node["subject"] for node in messages["nodes"]]
