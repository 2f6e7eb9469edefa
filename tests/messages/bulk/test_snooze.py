"""Mail that is put off, and comes back."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import snooze_worker
from models.events.journal import ChangeKind
from models.messages.tables import Message, Thread
from resolvers.admin import tasks
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, Clock, context, receive
from tests.support.operations.bulk_operations import call, inbox, keys, places, take_back
from tests.support.stores.counter_check import journal, reached, rows

NINE = "2030-01-02T09:00:00Z"
LIST = """query ($by: MailboxRef!) { viewer { user { mailbox(by: $by) { total unseen
  messages { nodes { id subject seen receivedAt savedAt snoozedUntil uid expires } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def folder(client: Client, path: str = "INBOX") -> Any:
    return (await client(LIST, by={"path": path}))["viewer"]["user"]["mailbox"]


async def snooze(client: Client, uids: str = "1", until: str | None = NINE, **more: Any) -> Any:
    set_ = {"snoozedUntil": until, **more}
    answer = await call(client, "messageUpdate", select=inbox(uids), set=set_)
    assert answer["errors"] == []
    return answer


async def test_what_is_snoozed_is_out_of_sight_and_comes_back_on_top_unread(
    post: Client, clock: Clock
) -> None:
    before = {node["subject"]: node for node in (await folder(post))["messages"]["nodes"]}
    await snooze(post, "1:2", seen=True)
    assert [node["subject"] for node in (await folder(post))["messages"]["nodes"]] == ["c"]
    away = await folder(post, "Snoozed")
    assert [(n["subject"], n["seen"], n["snoozedUntil"]) for n in away["messages"]["nodes"]] == [
        ("b", True, NINE), ("a", True, NINE),
    ]  # fmt: skip
    assert (away["total"], away["unseen"]) == (2, 0)

    clock.tick(hours=32, minutes=59)
    assert await snooze_worker.return_due_messages(post.world) == 0
    clock.tick(minutes=1)
    last = await reached(post.world, post.user.id)
    assert await snooze_worker.return_due_messages(post.world) == 2
    back = (await folder(post))["messages"]["nodes"]
    assert [node["subject"] for node in back] == ["b", "a", "c"]
    for node in back[:2]:
        assert (node["seen"], node["snoozedUntil"]) == (False, None)
        assert node["id"] == before[node["subject"]]["id"]
        assert node["receivedAt"] == before[node["subject"]]["receivedAt"]
        assert node["savedAt"] == "2030-01-02T09:00:03Z"
    listed = [global_ids.decode("Message", before[subject]["id"]) for subject in "ab"]
    assert await journal(post.world, post.user.id, last) == [(ChangeKind.MESSAGE_MOVED, listed)]
    assert await snooze_worker.return_due_messages(post.world) == 0


async def test_new_mail_stands_before_what_came_back_earlier(post: Client, clock: Clock) -> None:
    await snooze(post)
    clock.tick(days=2)
    await snooze_worker.return_due_messages(post.world)
    clock.tick(seconds=1)
    await receive(post, "d")
    nodes = (await folder(post))["messages"]["nodes"]
    assert [node["subject"] for node in nodes] == ["d", "a", "c", "b"]
    page = """query ($after: String) { viewer { user { mailbox(by: {path: "INBOX"}) {
        messages(first: 2, after: $after) { nodes { subject } pageInfo { endCursor } } } } } }"""
    first = (await post(page))["viewer"]["user"]["mailbox"]["messages"]
    after = first["pageInfo"]["endCursor"]
    rest = (await post(page, after=after))["viewer"]["user"]["mailbox"]["messages"]
    assert [n["subject"] for n in first["nodes"] + rest["nodes"]] == ["d", "a", "c", "b"]


async def test_a_conversation_keeps_its_order(ada: Client, clock: Clock) -> None:
    await receive(ada, "one")
    thread = (await rows(ada.world, "SELECT thread_id FROM messages"))[0][0]
    clock.tick(seconds=1)
    await receive(ada, "two")
    async with ada.world.database.engine.begin() as connection:
        await connection.execute(update(Message).values(thread_id=thread))
        await connection.execute(delete(Thread).where(col(Thread.id) != thread))
    await snooze(ada)
    clock.tick(days=2)
    await snooze_worker.return_due_messages(ada.world)
    document = "query ($id: ID!) { thread(id: $id) { messages(first: 1) { nodes { subject } } } }"
    found = (await ada(document, id=global_ids.encode("Thread", thread)))["thread"]["messages"][
        "nodes"
    ]
    assert found == [{"subject": "one"}]


async def test_it_goes_back_to_where_it_was_or_to_inbox(post: Client, clock: Clock) -> None:
    a, b, c = await keys(post)
    for key, path in ((a, "Keep"), (b, "Brief")):
        await call(post, "messageMove", select={"ids": [key]}, to={"path": path})
    set_ = {"snoozedUntil": NINE}
    await call(post, "messageUpdate", select={"ids": [a, b, c]}, set=set_)
    assert set((await places(post)).values()) == {"Snoozed"}
    await post(
        """mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { errors { code } } }"""
    )
    clock.tick(days=2)
    assert await snooze_worker.return_due_messages(post.world) == 3
    assert await places(post) == {"a": "INBOX", "b": "Brief", "c": "INBOX"}
    (brief,) = (await folder(post, "Brief"))["messages"]["nodes"]
    assert brief["expires"] == "2030-01-04T00:00:03Z"  # a day, as the folder says


async def test_null_brings_it_back_as_if_it_never_had_been(post: Client) -> None:
    before = await folder(post)
    await snooze(post, "2", seen=True)
    (away,) = (await folder(post, "Snoozed"))["messages"]["nodes"]
    set_ = {"snoozedUntil": None}
    select = {"ids": [away["id"]]}
    answer = await call(post, "messageUpdate", select=select, set=set_)
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)
    after = await folder(post)
    assert [n["subject"] for n in after["messages"]["nodes"]] == ["c", "b", "a"]
    assert [n["snoozedUntil"] for n in after["messages"]["nodes"]] == [None] * 3
    assert after["unseen"] == before["unseen"] - 1
    last = await reached(post.world, post.user.id)
    await call(post, "messageUpdate", select=select, set=set_)  # it is not snoozed any more
    assert await reached(post.world, post.user.id) == last


async def test_the_time_can_be_changed(post: Client, clock: Clock) -> None:
    await snooze(post)
    later = "2030-01-05T09:00:00Z"
    select = {"filter": {"snoozed": True}}
    answer = await call(post, "messageUpdate", select=select, set={"snoozedUntil": later})
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)
    clock.tick(minutes=5)
    assert (await take_back(post, answer))["restoredCount"] == 1
    await call(post, "messageUpdate", select=select, set={"snoozedUntil": later})
    clock.tick(days=3)
    assert await snooze_worker.return_due_messages(post.world) == 0
    clock.tick(days=2)
    assert await snooze_worker.return_due_messages(post.world) == 1


@pytest.mark.parametrize("name", ["messageMove", "messageDelete"])
async def test_who_moves_or_deletes_it_ends_it(post: Client, clock: Clock, name: str) -> None:
    await snooze(post)
    more = {"to": {"path": "Keep"}} if name == "messageMove" else {}
    answer = await call(post, name, select={"mailbox": {"specialUse": "SNOOZED"}}, **more)
    assert answer["errors"] == []
    clock.tick(minutes=5)
    undone = await take_back(post, answer)
    assert (undone["restoredCount"], (await places(post))["a"]) == (1, "Snoozed")
    await call(post, name, select={"mailbox": {"specialUse": "SNOOZED"}}, **more)
    clock.tick(days=2)
    await snooze_worker.return_due_messages(post.world)
    assert (await places(post)).get("a") == ("Keep" if more else None)
    assert await rows(post.world, "SELECT id FROM messages WHERE snoozed_until IS NOT NULL") == []


async def test_what_was_snoozed_and_deleted_is_restored_to_inbox(post: Client) -> None:
    await snooze(post)
    await call(post, "messageDelete", select={"mailbox": {"specialUse": "SNOOZED"}})
    await post(
        """mutation ($ids: [ID!]!) { archivedMessageRestore(input: {ids: $ids}) {
             errors { code } } }""",
        ids=await _archived(post),
    )
    assert (await places(post))["a"] == "INBOX"


async def _archived(client: Client) -> list[str]:
    document = "{ viewer { user { archivedMessages { nodes { id } } } } }"
    nodes = (await client(document))["viewer"]["user"]["archivedMessages"]["nodes"]
    return [node["id"] for node in nodes]


async def test_an_undo_brings_it_back(post: Client, clock: Clock) -> None:
    before = await places(post)
    answer = await snooze(post, "1:3", flagged=True)
    undone = await take_back(post, answer)
    assert (undone["restoredCount"], await places(post)) == (3, before)
    nodes = (await folder(post))["messages"]["nodes"]
    assert [(n["subject"], n["snoozedUntil"]) for n in nodes] == [(s, None) for s in "cba"]
    clock.tick(days=2)
    assert await snooze_worker.return_due_messages(post.world) == 0


async def test_many_are_snoozed_by_a_task(post: Client, clock: Clock) -> None:
    answer = await call(
        post, "messageUpdate", select=inbox("1:3"), set={"snoozedUntil": NINE}, **{"async": True}
    )
    assert answer["task"]["state"] == "QUEUED"
    while await tasks.run_next_task(post.world):
        pass
    assert set((await places(post)).values()) == {"Snoozed"}
    clock.tick(days=2)
    assert await snooze_worker.return_due_messages(post.world) == 3


@pytest.mark.parametrize(
    ("until", "constraint"),
    [
        ("2029-12-31T23:59:59Z", "min"),
        ("2030-01-01T00:00:03Z", "min"),
        ("2045-01-01T00:00:00Z", "max"),
    ],
)
async def test_a_time_that_is_none_is_refused(post: Client, until: str, constraint: str) -> None:
    last = await reached(post.world, post.user.id)
    set_ = {"snoozedUntil": until}
    answer = await call(post, "messageUpdate", select=inbox("1"), set=set_)
    (error,) = answer["errors"]
    assert (error["path"], error["constraint"]) == (["set", "snoozedUntil"], constraint)
    move = await call(
        post, "messageMove", select=inbox("1"), to={"path": "Keep"}, set={"snoozedUntil": NINE}
    )
    assert [error["constraint"] for error in move["errors"]] == ["exclusive"]
    assert await reached(post.world, post.user.id) == last


async def test_the_folder_takes_another_name_where_its_own_is_taken(post: Client) -> None:
    await mailbox_loaders.create_mailboxes(context(post), NewMailboxes(["Snoozed"]))
    await snooze(post)
    assert (await places(post))["a"] == "Snoozed 2"


async def test_snoozed_mail_is_found_by_filter_and_by_words(post: Client) -> None:
    await snooze(post, "2")
    document = """query ($query: String!) { messages(query: $query) {
        totalCount nodes { subject } } }"""
    for query, found in (("is:snoozed", "b"), ("snoozed:no", "ca"), ("in:snoozed", "b")):
        page = (await post(document, query=query))["messages"]
        assert "".join(node["subject"] for node in page["nodes"]) == found
        assert page["totalCount"] == len(found)


async def test_another_user_sees_and_wakes_nothing(post: Client, bob: Client, clock: Clock) -> None:
    await snooze(post)
    select = {"filter": {"snoozed": True}}
    answer = await call(bob, "messageUpdate", select=select, set={"snoozedUntil": None})
    assert answer["updatedCount"] == 0
    assert (await places(post))["a"] == "Snoozed"
    await receive(bob, "z")
    await snooze(bob)
    clock.tick(days=2)
    assert await snooze_worker.return_due_messages(post.world) == 2
    assert (await places(post), await places(bob)) == (
        {"a": "INBOX", "b": "INBOX", "c": "INBOX"}, {"z": "INBOX"},
    )  # fmt: skip


async def test_two_workers_bring_each_back_once(post: Client, clock: Clock) -> None:
    await snooze(post, "1:3")
    clock.tick(days=2)
    last = await reached(post.world, post.user.id)
    done = await asyncio.gather(*(snooze_worker.return_due_messages(post.world) for _ in range(3)))
    assert sum(done) == 3
    assert await reached(post.world, post.user.id) == last + 3


async def test_the_worker_brings_back_what_came_due_while_none_ran(
    post: Client, clock: Clock
) -> None:
    await snooze(post)
    clock.tick(days=2)
    with post.world.wakeups.follow([post.user.id]) as bell:
        worker = asyncio.create_task(snooze_worker.run_forever(post.world))
        async with asyncio.timeout(5):
            await bell.wait()
    worker.cancel()
    assert (await places(post))["a"] == "INBOX"
