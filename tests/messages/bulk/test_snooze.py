"""Test snoozing of messages and their return."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import snooze_worker
from models.events.event_types import EventType
from models.messages.tables import Message, Thread
from resolvers.admin import tasks
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_message_ids,
    load_mailbox_path_by_subject,
    run_message_mutation,
    undo_mutation,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.time_limits import HANG_SECONDS

SNOOZED_UNTIL = "2030-01-02T09:00:00Z"
MAILBOX_QUERY = """query ($by: MailboxRef!) { viewer { user { mailbox(by: $by) {
  messageCount unseenCount
  messages { nodes {
    id subject seen receivedAt savedAt snoozedUntil imap { uid } expiresAt } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_mailbox(client: GraphQLClient, path: str = "INBOX") -> Any:
    return (await client(MAILBOX_QUERY, by={"path": path}))["viewer"]["user"]["mailbox"]


async def snooze(
    client: GraphQLClient, uids: str = "1", until: str | None = SNOOZED_UNTIL, **extra: Any
) -> Any:
    set_ = {"snoozedUntil": until, **extra}
    answer = await run_message_mutation(
        client, "messageUpdate", select=inbox_selection(uids), set=set_
    )
    assert answer["errors"] == []
    return answer


async def test_snoozed_message_returns_unread_as_newest(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    before = {
        node["subject"]: node for node in (await load_mailbox(ada_with_mail))["messages"]["nodes"]
    }
    await snooze(ada_with_mail, "1:2", seen=True)
    assert [
        node["subject"] for node in (await load_mailbox(ada_with_mail))["messages"]["nodes"]
    ] == ["c"]
    snoozed_mailbox = await load_mailbox(ada_with_mail, "Snoozed")
    snoozed = snoozed_mailbox["messages"]["nodes"]
    assert [(node["subject"], node["seen"], node["snoozedUntil"]) for node in snoozed] == [
        ("b", True, SNOOZED_UNTIL), ("a", True, SNOOZED_UNTIL),
    ]  # fmt: skip
    assert (snoozed_mailbox["messageCount"], snoozed_mailbox["unseenCount"]) == (2, 0)

    clock.tick(hours=32, minutes=59)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 0
    clock.tick(minutes=1)
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 2
    inbox_messages = (await load_mailbox(ada_with_mail))["messages"]["nodes"]
    assert [node["subject"] for node in inbox_messages] == ["b", "a", "c"]
    for node in inbox_messages[:2]:
        assert (node["seen"], node["snoozedUntil"]) == (False, None)
        assert node["id"] == before[node["subject"]]["id"]
        assert node["receivedAt"] == before[node["subject"]]["receivedAt"]
        assert node["savedAt"] == "2030-01-02T09:00:03Z"
    returned_ids = [global_ids.decode("Message", before[subject]["id"]) for subject in "ab"]
    assert await load_journal_entries(ada_with_mail.environment, ada_with_mail.user.id, last) == [
        (EventType.MESSAGE_MOVED, returned_ids)
    ]
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 0


async def test_new_message_is_listed_before_returned_message(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    await snooze(ada_with_mail)
    clock.tick(days=2)
    await snooze_worker.unsnooze_due_messages(ada_with_mail.environment)
    clock.tick(seconds=1)
    await deliver_to(ada_with_mail, "d")
    nodes = (await load_mailbox(ada_with_mail))["messages"]["nodes"]
    assert [node["subject"] for node in nodes] == ["d", "a", "c", "b"]
    page = """query ($after: String) { viewer { user { mailbox(by: {path: "INBOX"}) {
        messages(first: 2, after: $after) { nodes { subject } pageInfo { endCursor } } } } } }"""
    first = (await ada_with_mail(page))["viewer"]["user"]["mailbox"]["messages"]
    after = first["pageInfo"]["endCursor"]
    rest = (await ada_with_mail(page, after=after))["viewer"]["user"]["mailbox"]["messages"]
    assert [n["subject"] for n in first["nodes"] + rest["nodes"]] == ["d", "a", "c", "b"]


async def test_thread_order_is_unchanged_after_snooze(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await deliver_to(ada, "one")
    thread_id = (await select_rows(ada.environment, "SELECT thread_id FROM messages"))[0][0]
    clock.tick(seconds=1)
    await deliver_to(ada, "two")
    async with ada.environment.database.engine.begin() as connection:
        await connection.execute(update(Message).values(thread_id=thread_id))
        await connection.execute(delete(Thread).where(col(Thread.id) != thread_id))
    await snooze(ada)
    clock.tick(days=2)
    await snooze_worker.unsnooze_due_messages(ada.environment)
    document = (
        "query ($id: ID!) { thread(by: {id: $id}) { messages(first: 1) { nodes { subject } } } }"
    )
    messages = (await ada(document, id=global_ids.encode("Thread", thread_id)))["thread"][
        "messages"
    ]["nodes"]
    assert messages == [{"subject": "one"}]


async def test_snoozed_message_returns_to_its_mailbox_or_inbox(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    a, b, c = await list_message_ids(ada_with_mail)
    for key, path in ((a, "Keep"), (b, "Brief")):
        await run_message_mutation(
            ada_with_mail, "messageMove", select={"ids": [key]}, to={"path": path}
        )
    set_ = {"snoozedUntil": SNOOZED_UNTIL}
    await run_message_mutation(ada_with_mail, "messageUpdate", select={"ids": [a, b, c]}, set=set_)
    assert set((await load_mailbox_path_by_subject(ada_with_mail)).values()) == {"Snoozed"}
    await ada_with_mail(
        """mutation { mailboxDelete(input: {mailboxes: [{path: "Keep"}]}) { errors { code } } }"""
    )
    clock.tick(days=2)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 3
    assert await load_mailbox_path_by_subject(ada_with_mail) == {
        "a": "INBOX",
        "b": "Brief",
        "c": "INBOX",
    }
    (brief,) = (await load_mailbox(ada_with_mail, "Brief"))["messages"]["nodes"]
    assert brief["expiresAt"] == "2030-01-04T00:00:03Z"  # the retention of the mailbox: a day


async def test_clearing_snoozed_until_returns_message_to_its_place(
    ada_with_mail: GraphQLClient,
) -> None:
    before = await load_mailbox(ada_with_mail)
    await snooze(ada_with_mail, "2", seen=True)
    (snoozed,) = (await load_mailbox(ada_with_mail, "Snoozed"))["messages"]["nodes"]
    set_ = {"snoozedUntil": None}
    select = {"ids": [snoozed["id"]]}
    answer = await run_message_mutation(ada_with_mail, "messageUpdate", select=select, set=set_)
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)
    after = await load_mailbox(ada_with_mail)
    assert [n["subject"] for n in after["messages"]["nodes"]] == ["c", "b", "a"]
    assert [n["snoozedUntil"] for n in after["messages"]["nodes"]] == [None] * 3
    assert after["unseenCount"] == before["unseenCount"] - 1
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    # the message is not snoozed any more
    await run_message_mutation(ada_with_mail, "messageUpdate", select=select, set=set_)
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last


async def test_snooze_time_can_be_changed(ada_with_mail: GraphQLClient, clock: ManualClock) -> None:
    await snooze(ada_with_mail)
    new_time = "2030-01-05T09:00:00Z"
    select = {"filter": {"snoozed": True}}
    answer = await run_message_mutation(
        ada_with_mail, "messageUpdate", select=select, set={"snoozedUntil": new_time}
    )
    assert (answer["errors"], answer["updatedCount"]) == ([], 1)
    clock.tick(minutes=5)
    assert (await undo_mutation(ada_with_mail, answer))["restoredCount"] == 1
    await run_message_mutation(
        ada_with_mail, "messageUpdate", select=select, set={"snoozedUntil": new_time}
    )
    clock.tick(days=3)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 0
    clock.tick(days=2)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 1


@pytest.mark.parametrize("name", ["messageMove", "messageDelete"])
async def test_move_or_delete_ends_snooze(
    ada_with_mail: GraphQLClient, clock: ManualClock, name: str
) -> None:
    await snooze(ada_with_mail)
    extra = {"to": {"path": "Keep"}} if name == "messageMove" else {}
    answer = await run_message_mutation(
        ada_with_mail, name, select={"mailbox": {"specialUse": "SNOOZED"}}, **extra
    )
    assert answer["errors"] == []
    clock.tick(minutes=5)
    undone = await undo_mutation(ada_with_mail, answer)
    assert (undone["restoredCount"], (await load_mailbox_path_by_subject(ada_with_mail))["a"]) == (
        1,
        "Snoozed",
    )
    await run_message_mutation(
        ada_with_mail, name, select={"mailbox": {"specialUse": "SNOOZED"}}, **extra
    )
    clock.tick(days=2)
    await snooze_worker.unsnooze_due_messages(ada_with_mail.environment)
    assert (await load_mailbox_path_by_subject(ada_with_mail)).get("a") == (
        "Keep" if extra else None
    )
    assert (
        await select_rows(
            ada_with_mail.environment, "SELECT id FROM messages WHERE snoozed_until IS NOT NULL"
        )
        == []
    )


async def test_deleted_snoozed_message_is_restored_to_inbox(ada_with_mail: GraphQLClient) -> None:
    await snooze(ada_with_mail)
    await run_message_mutation(
        ada_with_mail, "messageDelete", select={"mailbox": {"specialUse": "SNOOZED"}}
    )
    await ada_with_mail(
        """mutation ($ids: [ID!]!) {
             deletedMessageRestore(input: {select: {ids: $ids}}) {
             errors { code } } }""",
        ids=await load_deleted_ids(ada_with_mail),
    )
    assert (await load_mailbox_path_by_subject(ada_with_mail))["a"] == "INBOX"


async def load_deleted_ids(client: GraphQLClient) -> list[str]:
    document = "{ viewer { user { deletedMessages { nodes { id } } } } }"
    nodes = (await client(document))["viewer"]["user"]["deletedMessages"]["nodes"]
    return [node["id"] for node in nodes]


async def test_undo_of_snooze_returns_messages(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    before = await load_mailbox_path_by_subject(ada_with_mail)
    answer = await snooze(ada_with_mail, "1:3", flagged=True)
    undone = await undo_mutation(ada_with_mail, answer)
    assert (undone["restoredCount"], await load_mailbox_path_by_subject(ada_with_mail)) == (
        3,
        before,
    )
    nodes = (await load_mailbox(ada_with_mail))["messages"]["nodes"]
    assert [(n["subject"], n["snoozedUntil"]) for n in nodes] == [(s, None) for s in "cba"]
    clock.tick(days=2)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 0


async def test_task_snoozes_messages(ada_with_mail: GraphQLClient, clock: ManualClock) -> None:
    answer = await run_message_mutation(
        ada_with_mail,
        "messageUpdate",
        select=inbox_selection("1:3"),
        set={"snoozedUntil": SNOOZED_UNTIL},
        **{"async": True},
    )
    assert answer["task"]["state"] == "QUEUED"
    while await tasks.run_next_task(ada_with_mail.environment):
        pass
    assert set((await load_mailbox_path_by_subject(ada_with_mail)).values()) == {"Snoozed"}
    clock.tick(days=2)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 3


@pytest.mark.parametrize(
    ("until", "constraint"),
    [
        ("2029-12-31T23:59:59Z", "MIN"),
        ("2030-01-01T00:00:03Z", "MIN"),
        ("2045-01-01T00:00:00Z", "MAX"),
    ],
)
async def test_snooze_time_out_of_range_is_refused(
    ada_with_mail: GraphQLClient, until: str, constraint: str
) -> None:
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    set_ = {"snoozedUntil": until}
    answer = await run_message_mutation(
        ada_with_mail, "messageUpdate", select=inbox_selection("1"), set=set_
    )
    (error,) = answer["errors"]
    assert (error["path"], error["constraint"]) == (["set", "snoozedUntil"], constraint)
    move = await run_message_mutation(
        ada_with_mail,
        "messageMove",
        select=inbox_selection("1"),
        to={"path": "Keep"},
        set={"snoozedUntil": SNOOZED_UNTIL},
    )
    assert [error["constraint"] for error in move["errors"]] == ["EXCLUSIVE"]
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last


async def test_snoozed_mailbox_gets_another_name_if_name_is_used(
    ada_with_mail: GraphQLClient,
) -> None:
    await mailbox_create.create_mailboxes(client_context(ada_with_mail), NewMailboxes(["Snoozed"]))
    await snooze(ada_with_mail)
    assert (await load_mailbox_path_by_subject(ada_with_mail))["a"] == "Snoozed 2"


async def test_snoozed_messages_are_found_by_search_operators(ada_with_mail: GraphQLClient) -> None:
    await snooze(ada_with_mail, "2")
    document = """query ($query: String!) { messages(query: $query) {
        totalCount nodes { subject } } }"""
    for query, subjects in (("is:snoozed", "b"), ("snoozed:no", "ca"), ("in:snoozed", "b")):
        page = (await ada_with_mail(document, query=query))["messages"]
        assert "".join(node["subject"] for node in page["nodes"]) == subjects
        assert page["totalCount"] == len(subjects)


async def test_snooze_of_one_user_does_not_affect_another(
    ada_with_mail: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    await snooze(ada_with_mail)
    select = {"filter": {"snoozed": True}}
    answer = await run_message_mutation(
        bob, "messageUpdate", select=select, set={"snoozedUntil": None}
    )
    assert answer["updatedCount"] == 0
    assert (await load_mailbox_path_by_subject(ada_with_mail))["a"] == "Snoozed"
    await deliver_to(bob, "z")
    await snooze(bob)
    clock.tick(days=2)
    assert await snooze_worker.unsnooze_due_messages(ada_with_mail.environment) == 2
    assert (
        await load_mailbox_path_by_subject(ada_with_mail),
        await load_mailbox_path_by_subject(bob),
    ) == (
        {"a": "INBOX", "b": "INBOX", "c": "INBOX"},
        {"z": "INBOX"},
    )


async def test_concurrent_workers_return_each_message_once(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    await snooze(ada_with_mail, "1:3")
    clock.tick(days=2)
    last = await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id)
    returned_counts = await asyncio.gather(
        *(snooze_worker.unsnooze_due_messages(ada_with_mail.environment) for _ in range(3))
    )
    assert sum(returned_counts) == 3
    assert await load_stream_position(ada_with_mail.environment, ada_with_mail.user.id) == last + 3


async def test_worker_returns_messages_due_before_its_start(
    ada_with_mail: GraphQLClient, clock: ManualClock
) -> None:
    await snooze(ada_with_mail)
    clock.tick(days=2)
    with ada_with_mail.environment.wakeups.follow([ada_with_mail.user.id]) as wakeup:
        worker = asyncio.create_task(
            snooze_worker.unsnooze_until_worker_stops(ada_with_mail.environment)
        )
        async with asyncio.timeout(HANG_SECONDS):
            await wakeup.wait()
    worker.cancel()
    assert (await load_mailbox_path_by_subject(ada_with_mail))["a"] == "INBOX"
