"""Test lists of messages with a keyword, which a table of keywords answers."""

from typing import Any

import pytest
from sqlalchemy import text

from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.accounts.large_account import copy_message
from tests.support.operations.bulk_operations import (
    inbox_selection,
    run_message_mutation,
    undo_mutation,
)
from tests.support.stores.counter_check import assert_counters_match

LISTS = """query ($f: MessageFilter!) {
  messages(filter: $f) { totalCount nodes { subject } }
  viewer { user { inbox: mailbox(by: {path: "INBOX"}) {
    messages(filter: $f) { totalCount nodes { subject } } } } } }"""


async def find_in_account_and_inbox(
    client: GraphQLClient, **conditions: Any
) -> tuple[list[str], list[str]]:
    """Return the subjects of the messages with these conditions, newest first."""
    answer = await client(LISTS, f=conditions)
    lists = answer["messages"], answer["viewer"]["user"]["inbox"]["messages"]
    for found in lists:
        assert found["totalCount"] == len(found["nodes"])
    account, inbox = ([node["subject"] for node in found["nodes"]] for found in lists)
    return account, inbox


async def change(client: GraphQLClient, name: str, **arguments: Any) -> Any:
    """Change messages, and check the rows of keywords."""
    answer = await run_message_mutation(client, name, **arguments)
    assert answer["errors"] == []
    await assert_counters_match(client.environment)
    return answer


async def test_lists_follow_every_change_of_keywords(ada: GraphQLClient) -> None:
    await create_mailboxes(client_context(ada), NewMailboxes(["Work"]))
    for subject in ("one", "two", "three"):
        await deliver_to(ada, subject)
    assert await find_in_account_and_inbox(ada, keyword="blue") == ([], [])
    added = {"addFlags": ["Blue", "$Forwarded"]}
    await change(ada, "messageUpdate", select=inbox_selection("1:2"), set=added)
    for conditions in ({"keyword": "BLUE"}, {"query": "keyword:blue"}, {"forwarded": True}):
        assert await find_in_account_and_inbox(ada, **conditions) == (["two", "one"],) * 2
    assert await find_in_account_and_inbox(ada, keyword="blue", subject="two") == (["two"],) * 2
    assert await find_in_account_and_inbox(ada, forwarded=False) == (["three"],) * 2
    assert await find_in_account_and_inbox(ada, keyword="blu") == ([], [])

    await change(ada, "messageMove", select=inbox_selection("1"), to={"path": "Work"})
    assert await find_in_account_and_inbox(ada, keyword="blue") == (["two", "one"], ["two"])
    await change(ada, "messageCopy", select=inbox_selection("2"), to={"path": "Work"})
    assert await find_in_account_and_inbox(ada, keyword="blue") == (["two", "two", "one"], ["two"])
    deletion = await change(ada, "messageDelete", select=inbox_selection("2"))
    assert await find_in_account_and_inbox(ada, keyword="blue") == (["two", "one"], [])
    await undo_mutation(ada, deletion)
    await assert_counters_match(ada.environment)
    account, inbox = await find_in_account_and_inbox(ada, keyword="blue")
    assert (sorted(account), inbox) == (["one", "two", "two"], ["two"])
    removed = {"removeFlags": ["BLUE"]}
    await change(ada, "messageUpdate", select={"all": True}, set=removed)
    assert await find_in_account_and_inbox(ada, keyword="blue") == ([], [])


async def test_selection_by_keyword_changes_all_of_them(ada: GraphQLClient) -> None:
    for subject in ("one", "two", "three"):
        await deliver_to(ada, subject)
    added = {"addFlags": ["Blue"]}
    await change(ada, "messageUpdate", select=inbox_selection("1:2"), set=added)
    selection = {"filter": {"keyword": "blue"}}
    answer = await change(ada, "messageUpdate", select=selection, set={"flagged": True})
    assert answer["updatedCount"] == 2
    assert await find_in_account_and_inbox(ada, flagged=True) == (["two", "one"],) * 2


@pytest.mark.parametrize("order", ["RECEIVED_AT_DESC", "RECEIVED_AT_ASC"])
async def test_pages_of_a_keyword_are_in_order(ada: GraphQLClient, order: str) -> None:
    await deliver_to(ada, "Hello duck")
    await copy_message(ada, 300, base=1 << 40)
    async with ada.environment.database.engine.begin() as connection:
        await connection.execute(
            text("UPDATE messages SET keywords = '[\"Blue\"]' WHERE uid % 3 = 0")
        )
    page_query = """query ($after: String, $order: MessageOrder!) {
      messages(filter: {keyword: "blue"}, first: 30, after: $after, orderBy: $order) {
        totalCount nodes { imap { uid } receivedAt } pageInfo { hasNextPage endCursor } } }"""
    times, cursor = list[str](), None
    while True:
        page = (await ada(page_query, after=cursor, order=order))["messages"]
        assert page["totalCount"] == 100
        times += [node["receivedAt"] for node in page["nodes"]]
        cursor = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert len(times) == 100
    assert times == sorted(times, reverse=order == "RECEIVED_AT_DESC")
