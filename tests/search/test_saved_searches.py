"""Test saved searches: set, list, counts and subscription."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to
from tests.support.case_loop import each_case
from tests.support.clients.change_followers import wait_for_followers
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.stores.counter_check import load_journal_entries, load_stream_position
from tests.support.time_limits import HANG_SECONDS

SAVED_SEARCH_FIELDS = "{ id name query filter messageCount unseenCount }"
ERROR_FIELDS = "errors { __typename code path message ... on ValidationError { constraint } }"
SAVED_SEARCH_CREATE = f"""mutation ($input: SavedSearchCreateInput!) {{
  savedSearchCreate(input: $input) {{ savedSearch {SAVED_SEARCH_FIELDS} {ERROR_FIELDS} }} }}"""
SAVED_SEARCH_UPDATE = f"""mutation ($input: SavedSearchUpdateInput!) {{
  savedSearchUpdate(input: $input) {{ savedSearches {SAVED_SEARCH_FIELDS} {ERROR_FIELDS} }} }}"""
SAVED_SEARCH_DELETE = f"""mutation ($input: SavedSearchDeleteInput!) {{
  savedSearchDelete(input: $input) {{ deletedIds {ERROR_FIELDS} }} }}"""
SAVED_SEARCHES_QUERY = """{ viewer { user { savedSearches {
  id name query filter messageCount unseenCount
  messages(first: 2) { nodes { subject } totalCount pageInfo { endCursor } } } } } }"""
SAVED_SEARCH_MESSAGES = """query ($id: ID!, $after: String) { node(id: $id) { ... on SavedSearch {
  messages(first: 2, after: $after, orderBy: RECEIVED_AT_ASC) {
    nodes { subject } pageInfo { endCursor hasNextPage } } } } }"""
SUBSCRIPTION = """subscription ($id: ID!) { savedSearchCounters(savedSearch: {id: $id}) {
  name messageCount unseenCount } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def create_saved_search(client: GraphQLClient, name: str, **fields: Any) -> Any:
    variables = {"input": {"name": name, **fields}}
    return (await client(SAVED_SEARCH_CREATE, **variables))["savedSearchCreate"]


async def update_saved_search(client: GraphQLClient, ref: dict[str, str], **fields: Any) -> Any:
    variables = {"input": {"savedSearches": [ref], "set": fields}}
    return (await client(SAVED_SEARCH_UPDATE, **variables))["savedSearchUpdate"]


async def delete_saved_search(client: GraphQLClient, ref: dict[str, str]) -> Any:
    variables = {"input": {"savedSearches": [ref]}}
    return (await client(SAVED_SEARCH_DELETE, **variables))["savedSearchDelete"]


async def load_saved_searches(client: GraphQLClient) -> list[Any]:
    searches: list[Any] = (await client(SAVED_SEARCHES_QUERY))["viewer"]["user"]["savedSearches"]
    return searches


async def test_saved_search_is_created_changed_and_deleted(ada_with_mail: GraphQLClient) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    saved = (await create_saved_search(ada_with_mail, "Unread", query="is:unread in:inbox"))[
        "savedSearch"
    ]
    assert saved["filter"] == {"seen": False, "mailbox": {"specialUse": "INBOX"}}
    assert (saved["query"], saved["messageCount"], saved["unseenCount"]) == (
        "is:unseen in:inbox",
        3,
        3,
    )
    (error,) = (await create_saved_search(ada_with_mail, " unread ", query="x"))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["name"])
    renamed = await update_saved_search(ada_with_mail, {"name": "UNREAD"}, name=" unread ")
    assert renamed["errors"] == []
    (changed,) = await load_saved_searches(ada_with_mail)
    assert (changed["id"], changed["name"]) == (saved["id"], "unread")
    assert changed["filter"] == saved["filter"]
    combined = await update_saved_search(
        ada_with_mail, {"id": saved["id"]}, query="a", filter={"flagged": True}
    )
    assert combined["savedSearches"][0]["filter"] == {"and": [{"query": "a"}, {"flagged": True}]}
    deleted = await delete_saved_search(ada_with_mail, {"name": "UNREAD"})
    assert deleted == {"deletedIds": [saved["id"]], "errors": []}
    assert await load_saved_searches(ada_with_mail) == []
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            ada_with_mail.environment, ada_with_mail.user.id, last
        )
    ]
    assert kinds == [
        EventType.SAVED_SEARCH_CREATED,
        *[EventType.SAVED_SEARCH_UPDATED] * 2,
        EventType.SAVED_SEARCH_DELETED,
    ]
    (error,) = (await delete_saved_search(ada_with_mail, {"name": "unread"}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["savedSearches", "0"])
    (error,) = (await update_saved_search(ada_with_mail, {"id": saved["id"]}, name="x"))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["savedSearches", "0", "id"])


async def test_saved_search_is_not_renamed_to_a_used_name(ada: GraphQLClient) -> None:
    for name in ("a", "b"):
        await create_saved_search(ada, name, query="x")
    (error,) = (await update_saved_search(ada, {"name": "a"}, name="B"))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["set", "name"])
    refs = [{"name": "a"}, {"name": "b"}]
    variables = {"input": {"savedSearches": refs, "set": {"name": "c"}}}
    (error,) = (await ada(SAVED_SEARCH_UPDATE, **variables))["savedSearchUpdate"]["errors"]
    assert (error["constraint"], error["path"]) == ("EXCLUSIVE", ["set", "name"])
    assert [search["name"] for search in await load_saved_searches(ada)] == ["a", "b"]


async def test_saved_search_counts_current_messages(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    saved = (await create_saved_search(ada_with_mail, "Days", query="after:30d"))["savedSearch"]
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1"), set={"seen": True}
    )
    (search,) = await load_saved_searches(ada_with_mail)
    assert (search["messageCount"], search["unseenCount"], search["messages"]["totalCount"]) == (
        3,
        2,
        3,
    )
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
    assert (search["messageCount"], search["unseenCount"]) == (1, 1)


INVALID_SAVED_SEARCHES: list[tuple[dict[str, Any], list[str], str]] = [
    ({}, ["filter"], "REQUIRED"),
    ({"filter": {}}, ["filter"], "REQUIRED"),
    ({"name": " ", "query": "a"}, ["name"], "REQUIRED"),
    ({"name": "n" * 129, "query": "a"}, ["name"], "LENGTH"),
    ({"query": "(a"}, ["query"], "SYNTAX"),
    ({"query": 'a from:"x'}, ["query"], "SYNTAX"),
    ({"query": "a from:"}, ["query"], "SYNTAX"),
    ({"query": "OR a"}, ["query"], "SYNTAX"),
    ({"query": "in:Nowhere"}, ["query"], "MAILBOX"),
    ({"filter": {"mailbox": {"path": "No"}}}, ["filter"], "MAILBOX"),
    ({"query": "a", "filter": {"mailbox": {"path": "No"}}}, ["filter"], "MAILBOX"),
    ({"query": "in:No", "filter": {"seen": True}}, ["query"], "MAILBOX"),
    ({"query": "text:a"}, ["query"], "UNSUPPORTED"),
    ({"filter": {"not": {"header": {"name": "X"}}}}, ["filter", "header"], "UNSUPPORTED"),
    ({"filter": {"emailIds": ["x"]}}, ["filter", "emailIds", "0"], "PATTERN"),
    ({"filter": {"uids": "1"}}, ["filter", "uids"], "REQUIRED"),
]


async def test_invalid_saved_search_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_SAVED_SEARCHES):
        with case as (arguments, path, constraint):
            answer = await create_saved_search(ada, **{"name": "x", **arguments})
            assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
            assert await load_saved_searches(ada) == []


async def test_update_error_names_the_search_with_the_unknown_mailbox(ada: GraphQLClient) -> None:
    await create_saved_search(ada, "a", query="x")
    unknown_mailbox = {"mailbox": {"path": "No"}}
    for search, path in (
        ({"query": "in:No"}, ["set", "query"]),
        ({"query": "x", "filter": unknown_mailbox}, ["set", "filter"]),
    ):
        (error,) = (await update_saved_search(ada, {"name": "a"}, **search))["errors"]
        assert (error["path"], error["constraint"]) == (path, "MAILBOX")


async def test_saved_search_count_and_size_are_limited(
    ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_searches, "MAX_SAVED_SEARCHES", 2)
    for name in ("a", "b"):
        assert (await create_saved_search(ada, name, query="x"))["errors"] == []
    (error,) = (await create_saved_search(ada, "c", query="x"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["name"])
    large_filter = [{"subject": "x" * 900}] * 20
    (error,) = (await update_saved_search(ada, {"name": "a"}, filter={"or": large_filter}))[
        "errors"
    ]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["set", "filter"])


async def test_saved_search_of_another_user_is_hidden(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    ada_search = (await create_saved_search(ada_with_mail, "Mine", query="ALL is:unread"))[
        "savedSearch"
    ]
    assert (await load_saved_searches(bob)) == []
    assert (await bob(SAVED_SEARCH_MESSAGES, id=ada_search["id"]))["node"] is None
    for ref in ({"name": "Mine"}, {"id": ada_search["id"]}):
        for answer in (
            await delete_saved_search(bob, ref),
            await update_saved_search(bob, ref, name="x"),
        ):
            (error,) = answer["errors"]
            assert (error["code"], error["path"][:2]) == ("NOT_FOUND", ["savedSearches", "0"])
    await deliver_to(bob, "z")
    bob_search = (await create_saved_search(bob, "Mine", query="ALL is:unread"))["savedSearch"]
    assert (bob_search["messageCount"], ada_search["messageCount"]) == (1, 3)
    document = '{ user(by: {username: "ada"}) { savedSearches { name } } }'
    assert (await root(document))["user"] == {"savedSearches": []}


async def test_saved_search_statement_count_is_independent_of_count(
    ada_with_mail: GraphQLClient, statements: list[str]
) -> None:
    document = "{ viewer { user { savedSearches { name query messageCount unseenCount } } } }"

    async def count_statements() -> int:
        del statements[:]
        await ada_with_mail(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await create_saved_search(ada_with_mail, "k0", query="is:unread")  # counted by mailboxes
    await create_saved_search(ada_with_mail, "k1", query="is:unread larger:1")
    expected = await count_statements()
    for n in range(2, 20):
        await create_saved_search(ada_with_mail, f"k{n}", query=f"is:unread larger:{n}")
    assert [await count_statements(), await count_statements()] == [expected, expected]


async def test_subscription_sends_counts_at_start_and_on_change(
    ada_with_mail: GraphQLClient, live_server: LiveServer
) -> None:
    saved = (await create_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearch"]
    subscription = await live_server.follow(ada_with_mail, SUBSCRIPTION, id=saved["id"])
    received = subscription.payloads
    await wait_until(lambda: len(received) == 1)
    assert received[0]["data"]["savedSearchCounters"] == {
        "name": "Unread",
        "messageCount": 3,
        "unseenCount": 3,
    }
    await deliver_to(ada_with_mail, "d")
    await wait_until(lambda: len(received) == 2)
    assert received[1]["data"]["savedSearchCounters"]["messageCount"] == 4
    await update_saved_search(ada_with_mail, {"name": "Unread"}, query="is:unread is:flagged")
    await wait_until(lambda: len(received) == 3)
    assert received[2]["data"]["savedSearchCounters"]["messageCount"] == 0
    await delete_saved_search(ada_with_mail, {"name": "Unread"})
    await wait_until(lambda: subscription.end_frame is not None)
    assert subscription.end_frame["type"] == "complete"
    await subscription.unsubscribe()


async def test_rapid_changes_are_counted_once(
    ada_with_mail: GraphQLClient, statements: list[str]
) -> None:
    saved = (await create_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearch"]
    search_id = global_ids.decode("SavedSearch", saved["id"])
    window = timedelta(seconds=2)
    updates = saved_searches.follow_saved_search(
        client_context(ada_with_mail),
        search_id,
        lambda _: MessageConditions(seen=False, larger=0),  # not counted by mailboxes
        window,
    )
    async with asyncio.timeout(HANG_SECONDS):
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
        await wait_for_followers(ada_with_mail.environment)  # after the interval between counts
        del statements[:]
        await ada_with_mail(
            'mutation { keyValueSet(input: {key: "a", value: "b"}) { errors { code } } }'
        )
        await wait_for_followers(ada_with_mail.environment)
        assert not [statement for statement in statements if "FROM messages" in statement]
        pending.cancel()


async def test_subscription_to_foreign_saved_search_is_refused(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, live_server: LiveServer
) -> None:
    saved = (await create_saved_search(ada_with_mail, "Unread", query="is:unread"))["savedSearch"]
    assert await live_server.follow_until_refused(bob, SUBSCRIPTION, id=saved["id"]) == "NOT_FOUND"


async def test_update_without_new_values_is_refused(ada: GraphQLClient) -> None:
    await create_saved_search(ada, "unread", query="is:unread")
    answer = await update_saved_search(ada, {"name": "unread"})
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("VALIDATION", ["set"])]
