"""Conversations: what belongs to one, and what is done to a whole one."""

from dataclasses import replace
from typing import Any

import pytest

from graph.execution.resolver_plans import PLAN_COUNTERS
from graph.types import global_ids
from mail.maintenance import snooze_worker
from mail.storage import thread_assignment
from models.events.journal import ChangeKind
from models.users.roles import Role, Scope
from resolvers.admin import tasks
from tests.conftest import Client, Clock, make_key, raw_message, receive
from tests.support.stores.counter_check import journal, reached, rows

UPDATE = """
mutation ($input: ThreadUpdateInput!) { threadUpdate(input: $input) {
  threads { id muted messageCount unseenCount }
  task { state total } undo { token } journalCursor
  errors { __typename code path index message ... on ValidationError { constraint } } } }
"""
LIST = """
{ viewer { user { messages(first: 50, orderBy: RECEIVED_ASC) { nodes {
  subject flags seen snoozedUntil mailbox { path }
  thread { id subject muted messageCount unseenCount participants { address }
           mailboxes { path } } } } } } }
"""
UNDO = """
mutation ($token: String!) { undo(input: {token: $token}) {
  restoredCount errors { code } } }
"""
pytestmark = pytest.mark.usefixtures("examined")


def mail(name: str, *answers: str, subject: str = "Pond") -> bytes:
    """A message whose id is its name, in answer to others."""
    named = " ".join(f"<{one}@x.example>" for one in answers)
    headers = {"Message_ID": f"<{name}@x.example>", "References": named}
    return raw_message(subject, body=name, From=f"{name}@x.example", **headers)


async def nodes(client: Client) -> list[Any]:
    found: list[Any] = (await client(LIST))["viewer"]["user"]["messages"]["nodes"]
    return found


async def update(client: Client, *keys: str, **given: Any) -> Any:
    return (await client(UPDATE, input={"ids": keys, **given}))["threadUpdate"]


async def thread_of(client: Client, nth: int = 0) -> Any:
    return (await nodes(client))[nth]["thread"]


@pytest.fixture
async def talk(ada: Client, clock: Clock) -> Client:
    """Two conversations, of three messages and of one."""
    for raw in (mail("a"), mail("b", "a"), mail("c", "b"), mail("z", subject="Other")):
        await receive(ada, raw)
        clock.tick(seconds=1)
    return ada


async def test_a_conversation_says_who_where_and_how_many(talk: Client) -> None:
    thread = await thread_of(talk)
    assert thread["participants"] == [{"address": f"{name}@x.example"} for name in "abc"]
    assert thread["mailboxes"] == [{"path": "INBOX"}]
    figures = (thread["messageCount"], thread["unseenCount"], thread["muted"])
    assert figures == (3, 3, False)


async def test_all_messages_of_conversations_are_changed_and_taken_back(talk: Client) -> None:
    one, two = (await thread_of(talk))["id"], (await thread_of(talk, 3))["id"]
    answer = await update(talk, one, two, set={"seen": True, "addFlags": ["work"]}, muted=True)
    assert answer["errors"] == []
    assert [(t["id"], t["muted"], t["unseenCount"]) for t in answer["threads"]] == [
        (one, True, 0), (two, True, 0),
    ]  # fmt: skip
    assert [node["flags"] for node in await nodes(talk)] == [["\\Seen", "work"]] * 4
    done = (await talk(UNDO, token=answer["undo"]["token"]))["undo"]
    assert (done["restoredCount"], done["errors"]) == (4, [])
    assert [node["flags"] for node in await nodes(talk)] == [[]] * 4
    assert [(await thread_of(talk, nth))["muted"] for nth in (0, 3)] == [False, False]


async def test_a_mute_alone_is_told_once_and_taken_back(talk: Client) -> None:
    thread = (await thread_of(talk))["id"]
    last = await reached(talk.world, talk.user.id)
    answer = await update(talk, thread, muted=True)
    await update(talk, thread, muted=True)
    key = global_ids.decode("Thread", thread)
    assert await journal(talk.world, talk.user.id, last) == [(ChangeKind.THREAD_CHANGED, [key])]
    await talk(UNDO, token=answer["undo"]["token"])
    assert (await thread_of(talk))["muted"] is False


async def test_new_mail_of_a_muted_conversation_arrives_read(talk: Client) -> None:
    await update(talk, (await thread_of(talk))["id"], muted=True)
    await receive(talk, mail("d", "c"))
    await receive(talk, mail("y", "z", subject="Other"))
    found = {node["flags"] == ["\\Seen"]: node["subject"] for node in (await nodes(talk))[4:]}
    assert found == {True: "Pond", False: "Other"}
    thread = await thread_of(talk)
    assert (thread["messageCount"], thread["unseenCount"]) == (4, 3)


async def test_a_conversation_is_snoozed_and_comes_back_whole(talk: Client, clock: Clock) -> None:
    thread = (await thread_of(talk))["id"]
    until = "2030-01-02T00:00:00Z"
    answer = await update(talk, thread, set={"snoozedUntil": until})
    assert answer["errors"] == []
    assert [node["mailbox"]["path"] for node in await nodes(talk)] == [*["Snoozed"] * 3, "INBOX"]
    clock.tick(days=2)
    await snooze_worker.return_due_messages(talk.world)
    assert [node["subject"] for node in await nodes(talk)] == ["Other", "Pond", "Pond", "Pond"]


async def test_what_is_much_is_done_by_a_task(talk: Client) -> None:
    thread = (await thread_of(talk))["id"]
    options = talk.world.options
    object.__setattr__(talk.world, "options", replace(options, bulk=2))
    answer = await update(talk, thread, set={"flagged": True}, muted=True)
    assert (answer["task"], answer["undo"]) == ({"state": "QUEUED", "total": 3}, None)
    assert answer["threads"][0]["muted"] is True
    while await tasks.run_next_task(talk.world):
        pass
    assert [node["flags"] for node in (await nodes(talk))[:3]] == [["\\Flagged"]] * 3


@pytest.mark.parametrize(
    ("given", "path", "constraint"),
    [
        ({}, ["set"], "required"),
        ({"set": {}}, ["set"], "required"),
        ({"ids": [], "muted": True}, ["ids"], "range"),
        ({"set": {"addFlags": ["a b"]}}, ["set", "addFlags"], "pattern"),
        ({"set": {"snoozedUntil": "2029-01-01T00:00:00Z"}}, ["set", "snoozedUntil"], "min"),
    ],
)
async def test_a_wrong_change_is_refused_whole(
    talk: Client, given: dict[str, Any], path: list[str], constraint: str
) -> None:
    thread = (await thread_of(talk))["id"]
    last = await reached(talk.world, talk.user.id)
    answer = (await talk(UPDATE, input={"ids": [thread], **given}))["threadUpdate"]
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(path, constraint)]
    assert await reached(talk.world, talk.user.id) == last


async def test_a_conversation_may_be_named_twice_but_not_too_often(talk: Client) -> None:
    thread = (await thread_of(talk))["id"]
    answer = await update(talk, thread, thread, muted=True)
    assert ([one["id"] for one in answer["threads"]], answer["errors"]) == ([thread], [])
    many = await update(talk, *[thread] * 251, muted=False)
    assert [(e["path"], e["constraint"]) for e in many["errors"]] == [(["ids"], "range")]
    assert (await thread_of(talk))["muted"] is True


async def test_another_user_sees_and_changes_nothing(talk: Client, bob: Client) -> None:
    mine, theirs = (await thread_of(talk))["id"], global_ids.encode("Thread", 1)
    await receive(bob, mail("q"))
    own = (await thread_of(bob))["id"]
    last = await reached(talk.world, talk.user.id)
    for key in (mine, theirs):
        answer = await update(bob, own, key, muted=True, set={"seen": True})
        assert [(e["code"], e["path"], e["index"]) for e in answer["errors"]] == [
            ("NOT_FOUND", ["ids"], 1)
        ]
    assert (await thread_of(bob))["muted"] is False
    assert await reached(talk.world, talk.user.id) == last
    assert (await bob("query ($id: ID!) { node(id: $id) { id } }", id=mine))["node"] is None


async def test_a_credential_for_reading_changes_none(talk: Client) -> None:
    thread = (await thread_of(talk))["id"]
    secret = await make_key(
        talk.world, "eyes", user_id=talk.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    reader = Client(talk.http, talk.world, talk.user, secret)
    answer = await update(reader, thread, muted=True)
    assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN"]


# what belongs together


async def test_a_late_parent_makes_one_conversation_of_two(ada: Client, clock: Clock) -> None:
    await receive(ada, mail("root"))
    clock.tick(seconds=1)
    await receive(ada, mail("leaf", "middle"))
    one, two = await thread_of(ada, 0), await thread_of(ada, 1)
    assert one["id"] != two["id"]
    await update(ada, two["id"], muted=True)
    clock.tick(seconds=1)
    last = await reached(ada.world, ada.user.id)
    await receive(ada, mail("middle", "root"))
    found = await nodes(ada)
    assert {node["thread"]["id"] for node in found} == {one["id"]}
    assert (found[0]["thread"]["messageCount"], found[0]["thread"]["muted"]) == (3, True)
    assert [node["seen"] for node in found] == [False, False, True]  # it came to a muted one
    kinds = await journal(ada.world, ada.user.id, last)
    keys = [global_ids.decode("Thread", one["id"]), global_ids.decode("Thread", two["id"])]
    assert [kind for kind, _ in kinds] == [ChangeKind.MESSAGE_ADDED, ChangeKind.THREAD_CHANGED]
    assert kinds[1][1] == keys
    await receive(ada, mail("more", "leaf"))
    assert {node["thread"]["id"] for node in await nodes(ada)} == {one["id"]}
    assert (await ada("query ($id: ID!) { thread(id: $id) { id } }", id=two["id"])) == {
        "thread": None
    }


async def test_a_large_conversation_is_not_merged(
    ada: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread_assignment, "MAX_MERGED_MESSAGES", 2)
    for raw in (mail("a"), mail("b", "a"), mail("leaf", "middle")):
        await receive(ada, raw)
    await receive(ada, mail("middle", "a"))
    assert len({node["thread"]["id"] for node in await nodes(ada)}) == 2


async def test_conversations_of_two_accounts_stay_apart(ada: Client, bob: Client) -> None:
    for client in (ada, bob):
        await receive(client, mail("root"))
        await receive(client, mail("leaf", "middle"))
    await receive(ada, mail("middle", "root"))
    assert len({node["thread"]["id"] for node in await nodes(ada)}) == 1
    assert len({node["thread"]["id"] for node in await nodes(bob)}) == 2


async def test_another_subject_is_another_conversation(ada: Client) -> None:
    await receive(ada, mail("a"))
    await receive(ada, mail("b", "a", subject="Re: [list] Pond"))
    await receive(ada, mail("c", "a", subject="AW: Fwd: Pond"))
    await receive(ada, mail("d", "a", subject="Something else"))
    assert sorted(await rows(ada.world, "SELECT count(*) FROM messages GROUP BY thread_id")) == [
        (1,), (3,),
    ]  # fmt: skip


KEYS = "{ viewer { user { messages(first: 50) { nodes { id threadId %s } } } } }"


async def test_the_id_of_a_conversation_is_read_with_the_message(
    talk: Client, statements: list[str]
) -> None:
    whole = await nodes(talk)
    PLAN_COUNTERS.fell.clear()
    for document in (KEYS % "", KEYS % "thread { __typename id }"):
        for _ in range(3):  # read anew, then compiled, then by its plan
            del statements[:]
            page = (await talk(document))["viewer"]["user"]["messages"]["nodes"]
            assert len([sent for sent in statements if "FROM messages" in sent]) == 1
            assert not any("threads" in sent for sent in statements)
            assert [one["threadId"] for one in page[::-1]] == [one["thread"]["id"] for one in whole]
            for one in page:
                found = {"__typename": "Thread", "id": one["threadId"]}
                assert one.get("thread", found) == found
    assert not PLAN_COUNTERS.fell
