"""Test saved searches: set, list, counts and subscription."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

SAVED_SEARCH_SET = """
mutation ($input: SavedSearchSetInput!) { savedSearchSet(input: $input) {
  savedSearches { id name query filter total unseen }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
SAVED_SEARCHES_QUERY = """{ viewer { user { savedSearches { id name query filter total unseen
  messages(first: 2) { nodes { subject } totalCount pageInfo { endCursor } } } } } }"""
SAVED_SEARCH_MESSAGES = """query ($id: ID!, $after: String) { node(id: $id) { ... on SavedSearch {
  messages(first: 2, after: $after, orderBy: RECEIVED_ASC) {
    nodes { subject } pageInfo { endCursor hasNextPage } } } } }"""
SUBSCRIPTION = "subscription ($id: ID!) { savedSearch(id: $id) { name total unseen } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def set_saved_search(client: GraphQLClient, name: str, **fields: Any) -> Any:
    return (await client(SAVED_SEARCH_SET, input={"name": name, **fields}))["savedSearchSet"]


async def load_saved_searches(client: GraphQLClient) -> list[Any]:
    searches: list[Any] = (await client(SAVED_SEARCHES_QUERY))["viewer"]["user"]["savedSearches"]
    return searches


async def test_saved_search_is_created_changed_and_deleted(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    (saved,) = (await set_saved_search(ada_with_mail, "Unread", query="is:unread in:inbox"))[
        "savedSearches"
    ]
    assert saved["filter"] == {"seen": False, "mailbox": {"specialUse": "INBOX"}}
    assert (saved["query"], saved["total"], saved["unseen"]) == ("is:unseen in:inbox", 3, 3)
    assert (await set_saved_search(ada_with_mail, " unread ", filter=saved["filter"]))[
        "errors"
    ] == []
    (changed,) = await load_saved_searches(ada_with_mail)
    assert (changed["id"], changed["name"]) == (saved["id"], "unread")
    combined = await set_saved_search(ada_with_mail, "unread", query="a", filter={"flagged": True})
    assert combined["savedSearches"][0]["filter"] == {"and": [{"query": "a"}, {"flagged": True}]}
    assert (await set_saved_search(ada_with_mail, "UNREAD", delete=True))["savedSearches"] == []
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            ada_with_mail.environment, ada_with_mail.user.id, last
        )
    ]
    assert kinds == [ChangeKind.SAVED_SEARCH_CHANGED] * 4
    (error,) = (await set_saved_search(ada_with_mail, "unread", delete=True))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["name"])


async def test_saved_search_counts_current_messages(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    (saved,) = (await set_saved_search(ada_with_mail, "Days", query="after:30d"))["savedSearches"]
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1"), set={"seen": True}
    )
    (search,) = await load_saved_searches(ada_with_mail)
    assert (search["total"], search["unseen"], search["messages"]["totalCount"]) == (3, 2, 3)
    assert [node["subject"] for node in search["messages"]["nodes"]] == ["c", "b"]
    page = (await ada_with_mail(SAVED_SEARCH_MESSAGES, id=saved["id"]))["node"]["messages"]
    rest = (
        await ada_with_mail(
            SAVED_SEARCH_MESSAGES, id=saved["id"], after=page["pageInfo"]["endCursor"]
        )
    )["node"]
    subjects = [node["subject"] for node in page["nodes"] + rest["messages"]["nodes"]]
    assert (subjects, rest["messages"]["pageInfo"]["hasNextPage"]) == (["a", "b", "c"], False)
    clock.tick(days=31)
    await deliver_to(ada_with_mail, "d")
    (search,) = await load_saved_searches(ada_with_mail)
    assert (search["total"], search["unseen"]) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "path", "constraint"),
    [
        ({}, ["filter"], "required"),
        ({"filter": {}}, ["filter"], "required"),
        ({"name": " ", "query": "a"}, ["name"], "required"),
        ({"name": "n" * 129, "query": "a"}, ["name"], "length"),
        ({"query": "(a"}, ["query"], "syntax"),
        ({"query": 'a from:"x'}, ["query"], "syntax"),
        ({"query": "a from:"}, ["query"], "syntax"),
        ({"query": "OR a"}, ["query"], "syntax"),
        ({"query": "in:Nowhere"}, ["query"], "mailbox"),
        ({"query": "text:a"}, ["filter", "text"], "unsupported"),
        ({"filter": {"not": {"header": {"name": "X"}}}}, ["filter", "header"], "unsupported"),
        ({"filter": {"emailIds": ["x"]}}, ["filter", "emailIds"], "pattern"),
        ({"filter": {"uids": "1"}}, ["filter", "uids"], "required"),
        ({"query": "a", "delete": True}, ["delete"], "exclusive"),
    ],
)
async def test_invalid_saved_search_is_refused(
    ada: GraphQLClient, arguments: dict[str, Any], path: list[str], constraint: str
) -> None:
    answer = (await ada(SAVED_SEARCH_SET, input={"name": "x", **arguments}))["savedSearchSet"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert await load_saved_searches(ada) == []


async def test_saved_search_count_and_size_are_limited(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_searches, "MAX_SAVED_SEARCHES", 2)
    for name in ("a", "b", "A"):
        assert (await set_saved_search(ada, name, query="x"))["errors"] == []
    (error,) = (await set_saved_search(ada, "c", query="x"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["name"])
    large_filter = [{"subject": "x" * 900}] * 20
    (error,) = (await set_saved_search(ada, "a", filter={"or": large_filter}))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["filter"])


async def test_saved_search_of_another_user_is_hidden(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    (ada_search,) = (await set_saved_search(ada_with_mail, "Mine", query="ALL is:unread"))[
        "savedSearches"
    ]
    assert (await load_saved_searches(bob)) == []
    assert (await bob(SAVED_SEARCH_MESSAGES, id=ada_search["id"]))["node"] is None
    (error,) = (await set_saved_search(bob, "Mine", delete=True))["errors"]
    assert error["code"] == "NOT_FOUND"
    await deliver_to(bob, "z")
    (bob_search,) = (await set_saved_search(bob, "Mine", query="ALL is:unread"))["savedSearches"]
    assert (bob_search["total"], ada_search["total"]) == (1, 3)
    document = '{ user(by: {username: "ada"}) { savedSearches { name } } }'
    assert (await root(document))["user"] == {"savedSearches": []}


async def test_saved_search_statement_count_is_independent_of_count(
    ada_with_mail: GraphQLClient, statements: list[str]
) -> None:
    document = "{ viewer { user { savedSearches { name query total unseen } } } }"

    async def count_statements() -> int:
        del statements[:]
        await ada_with_mail(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await set_saved_search(ada_with_mail, "k0", query="is:unread")
    expected = await count_statements()
    for n in range(1, 20):
        await set_saved_search(ada_with_mail, f"k{n}", query=f"is:unread larger:{n}")
    assert [await count_statements(), await count_statements()] == [expected, expected]


async def test_subscription_sends_counts_at_start_and_on_change(
    ada_with_mail: GraphQLClient, live_server: LiveServer
) -> None:
    (saved,) = (await set_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearches"]
    subscription = await live_server.follow(ada_with_mail, SUBSCRIPTION, id=saved["id"])
    received = subscription.payloads
    await wait_until(lambda: len(received) == 1)
    assert received[0]["data"]["savedSearch"] == {"name": "Unread", "total": 3, "unseen": 3}
    await deliver_to(ada_with_mail, "d")
    await wait_until(lambda: len(received) == 2)
    assert received[1]["data"]["savedSearch"]["total"] == 4
    await set_saved_search(ada_with_mail, "Unread", query="is:unread is:flagged")
    await wait_until(lambda: len(received) == 3)
    assert received[2]["data"]["savedSearch"]["total"] == 0
    await set_saved_search(ada_with_mail, "Unread", delete=True)
    await wait_until(lambda: subscription.end_frame is not None)
    assert subscription.end_frame["type"] == "complete"
    await subscription.unsubscribe()


async def test_rapid_changes_are_counted_once(
    ada_with_mail: GraphQLClient, statements: list[str]
) -> None:
    (saved,) = (await set_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearches"]
    search_id = global_ids.decode("SavedSearch", saved["id"])
    window = timedelta(seconds=2)
    updates = saved_searches.follow_saved_search(
        client_context(ada_with_mail), search_id, lambda _: MessageConditions(seen=False), window
    )
    async with asyncio.timeout(20):
        _, counts = await anext(updates)
        assert counts == (3, 3)
        next_update = asyncio.ensure_future(anext(updates))
        del statements[:]
        for n in range(3):
            await deliver_to(ada_with_mail, f"n{n}")
        _, counts = await next_update
        assert counts == (6, 6)
        count_queries = [
            statement
            for statement in statements
            if "count(" in statement and "FROM messages" in statement
        ]
        assert len(count_queries) == 1
        pending = asyncio.ensure_future(anext(updates))
        await asyncio.sleep(2.2)  # longer than the interval between counts
        del statements[:]
        await ada_with_mail(
            'mutation { keyValueSet(input: {key: "a", value: "b"}) { errors { code } } }'
        )
        await asyncio.sleep(0.1)
        assert not [statement for statement in statements if "FROM messages" in statement]
        pending.cancel()


async def test_subscription_to_foreign_saved_search_is_refused(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, live_server: LiveServer
) -> None:
    (saved,) = (await set_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearches"]
    assert await live_server.follow_until_refused(bob, SUBSCRIPTION, id=saved["id"]) == "NOT_FOUND"
