"""Searches that are kept: set, found, counted, and followed."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.search import saved_searches
from tests.conftest import Client, Clock, context, receive
from tests.support.operations.bulk_operations import call, inbox
from tests.support.servers.live_server import House, until
from tests.support.stores.counter_check import journal, reached

SET = """
mutation ($input: SavedSearchSetInput!) { savedSearchSet(input: $input) {
  savedSearches { id name query filter total unseen }
  errors { __typename code path message ... on ValidationError { constraint } } } }
"""
LIST = """{ viewer { user { savedSearches { id name query filter total unseen
  messages(first: 2) { nodes { subject } totalCount pageInfo { endCursor } } } } } }"""
ONE = """query ($id: ID!, $after: String) { node(id: $id) { ... on SavedSearch {
  messages(first: 2, after: $after, orderBy: RECEIVED_ASC) {
    nodes { subject } pageInfo { endCursor hasNextPage } } } } }"""
FOLLOW = "subscription ($id: ID!) { savedSearch(id: $id) { name total unseen } }"
pytestmark = pytest.mark.usefixtures("examined")


async def put(client: Client, name: str, **given: Any) -> Any:
    return (await client(SET, input={"name": name, **given}))["savedSearchSet"]


async def listed(client: Client) -> list[Any]:
    found: list[Any] = (await client(LIST))["viewer"]["user"]["savedSearches"]
    return found


async def test_a_search_is_kept_changed_and_kept_no_longer(post: Client) -> None:
    last = await reached(post.world, post.user.id)
    (made,) = (await put(post, "Unread", query="is:unread in:inbox"))["savedSearches"]
    assert made["filter"] == {"seen": False, "mailbox": {"specialUse": "INBOX"}}
    assert (made["query"], made["total"], made["unseen"]) == ("is:unseen in:inbox", 3, 3)
    assert (await put(post, " unread ", filter=made["filter"]))["errors"] == []
    (again,) = await listed(post)
    assert (again["id"], again["name"]) == (made["id"], "unread")
    both = await put(post, "unread", query="a", filter={"flagged": True})
    assert both["savedSearches"][0]["filter"] == {"and": [{"query": "a"}, {"flagged": True}]}
    assert (await put(post, "UNREAD", delete=True))["savedSearches"] == []
    kinds = [kind for kind, _ in await journal(post.world, post.user.id, last)]
    assert kinds == [ChangeKind.SAVED_SEARCH_CHANGED] * 4
    (error,) = (await put(post, "unread", delete=True))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["name"])


async def test_it_finds_and_counts_what_there_is_now(post: Client, clock: Clock) -> None:
    (made,) = (await put(post, "Days", query="after:30d"))["savedSearches"]
    await call(post, "messageUpdate", select=inbox("1"), set={"seen": True})
    (found,) = await listed(post)
    assert (found["total"], found["unseen"], found["messages"]["totalCount"]) == (3, 2, 3)
    assert [node["subject"] for node in found["messages"]["nodes"]] == ["c", "b"]
    page = (await post(ONE, id=made["id"]))["node"]["messages"]
    rest = (await post(ONE, id=made["id"], after=page["pageInfo"]["endCursor"]))["node"]
    names = [node["subject"] for node in page["nodes"] + rest["messages"]["nodes"]]
    assert (names, rest["messages"]["pageInfo"]["hasNextPage"]) == (["a", "b", "c"], False)
    clock.tick(days=31)
    await receive(post, "d")
    (found,) = await listed(post)
    assert (found["total"], found["unseen"]) == (1, 1)


@pytest.mark.parametrize(
    ("given", "path", "constraint"),
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
        ({"filter": {"guids": ["x"]}}, ["filter", "guids"], "pattern"),
        ({"filter": {"uids": "1"}}, ["filter", "uids"], "required"),
        ({"query": "a", "delete": True}, ["delete"], "exclusive"),
    ],
)
async def test_what_cannot_be_asked_is_not_kept(
    ada: Client, given: dict[str, Any], path: list[str], constraint: str
) -> None:
    answer = (await ada(SET, input={"name": "x", **given}))["savedSearchSet"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert await listed(ada) == []


async def test_an_account_keeps_so_many_and_so_much(
    ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saved_searches, "MAX_SAVED_SEARCHES", 2)
    for name in ("a", "b", "A"):
        assert (await put(ada, name, query="x"))["errors"] == []
    (error,) = (await put(ada, "c", query="x"))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["name"])
    some = [{"subject": "x" * 900}] * 20
    (error,) = (await put(ada, "a", filter={"or": some}))["errors"]
    assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["filter"])


async def test_another_user_sees_and_changes_nothing(
    post: Client, bob: Client, root: Client
) -> None:
    (mine,) = (await put(post, "Mine", query="ALL is:unread"))["savedSearches"]
    assert (await listed(bob)) == []
    assert (await bob(ONE, id=mine["id"]))["node"] is None
    (error,) = (await put(bob, "Mine", delete=True))["errors"]
    assert error["code"] == "NOT_FOUND"
    await receive(bob, "z")
    (theirs,) = (await put(bob, "Mine", query="ALL is:unread"))["savedSearches"]
    assert (theirs["total"], mine["total"]) == (1, 3)
    document = '{ user(by: {username: "ada"}) { savedSearches { name } } }'
    assert (await root(document))["user"] == {"savedSearches": []}


async def test_many_searches_cost_no_more_statements_than_one(
    post: Client, statements: list[str]
) -> None:
    document = "{ viewer { user { savedSearches { name query total unseen } } } }"

    async def cost() -> int:
        del statements[:]
        await post(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    await put(post, "k0", query="is:unread")
    few = await cost()
    for n in range(1, 20):
        await put(post, f"k{n}", query=f"is:unread larger:{n}")
    assert [await cost(), await cost()] == [few, few]


# followed


async def test_counts_are_told_at_once_and_when_they_change(post: Client, live: House) -> None:
    (made,) = (await put(post, "Unread", query="is:unread"))["savedSearches"]
    follower = await live.follow(post, FOLLOW, id=made["id"])
    got = follower.got
    await until(lambda: len(got) == 1)
    assert got[0]["data"]["savedSearch"] == {"name": "Unread", "total": 3, "unseen": 3}
    await receive(post, "d")
    await until(lambda: len(got) == 2)
    assert got[1]["data"]["savedSearch"]["total"] == 4
    await put(post, "Unread", query="is:unread is:flagged")
    await until(lambda: len(got) == 3)
    assert got[2]["data"]["savedSearch"]["total"] == 0
    await put(post, "Unread", delete=True)
    await until(lambda: follower.over is not None)
    assert follower.over["type"] == "complete"
    await follower.leave()


async def test_many_changes_are_counted_once(post: Client, statements: list[str]) -> None:
    (made,) = (await put(post, "Unread", query="is:unread"))["savedSearches"]
    key = global_ids.decode("SavedSearch", made["id"])
    window = timedelta(seconds=2)
    found = saved_searches.follow_saved_search(
        context(post), key, lambda _: MessageConditions(seen=False), window
    )
    async with asyncio.timeout(20):
        _, now = await anext(found)
        assert now == (3, 3)
        coming = asyncio.ensure_future(anext(found))
        del statements[:]
        for n in range(3):
            await receive(post, f"n{n}")
        _, now = await coming
        assert now == (6, 6)
        counts = [s for s in statements if "count(" in s and "FROM messages" in s]
        assert len(counts) == 1
        waiting = asyncio.ensure_future(anext(found))
        await asyncio.sleep(2.2)  # it is not counting, and not resting
        del statements[:]
        await post('mutation { keyValueSet(input: {key: "a", value: "b"}) { errors { code } } }')
        await asyncio.sleep(0.1)
        assert not [s for s in statements if "FROM messages" in s]
        waiting.cancel()


async def test_nobody_follows_what_is_not_theirs(post: Client, bob: Client, live: House) -> None:
    (made,) = (await put(post, "Unread", query="is:unread"))["savedSearches"]
    assert await live.refused(bob, FOLLOW, id=made["id"]) == "NOT_FOUND"
