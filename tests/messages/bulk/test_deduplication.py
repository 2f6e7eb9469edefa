"""Test messageDeduplicate, and the deletion of mailboxes that a delete empties."""

from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from resolvers.admin import tasks
from resolvers.mailboxes.create import NewMailboxes, create_mailboxes
from resolvers.messages.bulk import bulk_tasks
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    client_with_small_bulk_limit,
    deliver_to,
    raw_message,
)
from tests.support.operations.bulk_operations import (
    inbox_selection,
    list_messages,
    run_message_mutation,
    undo_mutation,
    user_selection,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

ALL_MESSAGES: dict[str, Any] = {"all": True}
INBOX_MESSAGES: dict[str, Any] = {"mailbox": {"path": "INBOX"}}
MAILBOX_PATHS_QUERY = "{ viewer { user { mailboxes { nodes { path } } } } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def user_with_duplicates(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """A user with duplicates.

    INBOX has a, a, b, a and a message with the Message-ID of b. Keep has one a. Two messages have
    no Message-ID.
    """
    await create_mailboxes(client_context(ada), NewMailboxes(["Keep"]))
    same_message_id = raw_message("c", Message_ID="<b@example.com>")
    b = raw_message("b", Message_ID="<b@example.com>")
    without_message_id = [b"Subject: d\r\n\r\nx\r\n", b"Subject: e\r\n\r\nx\r\n"]
    raw_messages = (
        raw_message("a"),
        raw_message("a"),
        b,
        raw_message("a"),
        same_message_id,
        *without_message_id,
    )
    for nth, raw in enumerate(raw_messages):
        await deliver_to(ada, raw, sender=f"from{nth}@example.com")
        clock.tick(seconds=1)
    await run_message_mutation(ada, "messageCopy", select=inbox_selection("1"), to={"path": "Keep"})
    return ada


async def load_positions(client: GraphQLClient) -> list[tuple[str, str, int]]:
    positions = [
        (n["mailbox"]["path"], n["subject"], n["imap"]["uid"]) for n in await list_messages(client)
    ]
    return sorted(positions)


async def load_mailbox_paths(client: GraphQLClient) -> list[str]:
    mailboxes = (await client(MAILBOX_PATHS_QUERY))["viewer"]["user"]["mailboxes"]["nodes"]
    return [mailbox["path"] for mailbox in mailboxes]


async def test_deduplicate_keeps_oldest_message_of_each_mailbox(
    user_with_duplicates: GraphQLClient,
) -> None:
    before = await load_positions(user_with_duplicates)
    last = await load_stream_position(
        user_with_duplicates.environment, user_with_duplicates.user.id
    )
    answer = await run_message_mutation(
        user_with_duplicates, "messageDeduplicate", select=ALL_MESSAGES
    )
    assert (answer["errors"], answer["deletedCount"], answer["deletedMailboxIds"]) == ([], 2, [])
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            user_with_duplicates.environment, user_with_duplicates.user.id, last
        )
    ]
    assert kinds == [EventType.MESSAGE_DELETED]
    after = [("INBOX", "a", 1), ("INBOX", "b", 3), ("INBOX", "c", 5), ("INBOX", "d", 6),
             ("INBOX", "e", 7), ("Keep", "a", 1)]  # fmt: skip
    assert await load_positions(user_with_duplicates) == after
    repeated = await run_message_mutation(
        user_with_duplicates, "messageDeduplicate", select=ALL_MESSAGES
    )
    assert (repeated["deletedCount"], repeated["undo"]) == (0, None)
    assert await undo_mutation(user_with_duplicates, answer) == {"restoredCount": 2, "errors": []}
    assert [position[:2] for position in await load_positions(user_with_duplicates)] == [
        position[:2] for position in before
    ]


async def test_deduplicate_by_message_id_ignores_content(
    user_with_duplicates: GraphQLClient,
) -> None:
    answer = await run_message_mutation(
        user_with_duplicates, "messageDeduplicate", select=INBOX_MESSAGES, byMessageIdHeader=True
    )
    assert (answer["errors"], answer["deletedCount"]) == ([], 3)
    assert [position[1] for position in await load_positions(user_with_duplicates)] == [
        "a",
        "b",
        "d",
        "e",
        "a",
    ]


async def test_deduplicate_compares_only_selected_messages(
    user_with_duplicates: GraphQLClient, bob: GraphQLClient
) -> None:
    for uids, deleted_count in (("1,3", 0), ("2,4", 1)):
        answer = await run_message_mutation(
            user_with_duplicates, "messageDeduplicate", select=inbox_selection(uids)
        )
        assert (answer["errors"], answer["deletedCount"]) == ([], deleted_count)
    keys = [node["id"] for node in await list_messages(user_with_duplicates)]
    answer = await run_message_mutation(
        user_with_duplicates, "messageDeduplicate", select={"ids": keys}
    )
    assert (answer["errors"], answer["deletedCount"]) == ([], 1)
    unknown = {"ids": [*keys[:1], global_ids.encode("Message", 7)]}
    for client, index in ((user_with_duplicates, 1), (bob, 0)):
        answer = await run_message_mutation(client, "messageDeduplicate", select=unknown)
        assert [(e["code"], field_path(e), item_index(e)) for e in answer["errors"]] == [
            ("NOT_FOUND", ["select", "ids"], index)
        ]


async def test_deduplicate_task_keeps_last_copy(
    user_with_duplicates: GraphQLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        await deliver_to(user_with_duplicates, raw_message("a"), sender=f"{n}@example.com")
    answer = await run_message_mutation(
        client_with_small_bulk_limit(user_with_duplicates, tmp_path),
        "messageDeduplicate",
        select=INBOX_MESSAGES,
    )
    assert (answer["task"]["kind"], answer["task"]["totalCount"]) == ("MESSAGE_DEDUPLICATE", 5)
    await run_message_mutation(
        user_with_duplicates, "messageDelete", select=inbox_selection("1"), permanent=True
    )
    monkeypatch.setattr(bulk_tasks, "MESSAGES_PER_STEP", 2)
    assert await tasks.run_next_task(user_with_duplicates.environment)
    assert [
        position
        for position in await load_positions(user_with_duplicates)
        if position[:2] == ("INBOX", "a")
    ] == [("INBOX", "a", 2)]


async def test_admin_deduplicates_mail_of_several_users(
    user_with_duplicates: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    for n in range(2):
        await deliver_to(bob, raw_message("a"), sender=f"{n}@example.com")
    select = {**ALL_MESSAGES, "users": user_selection(user_with_duplicates, bob)}
    answer = await run_message_mutation(root, "messageDeduplicate", select=select)
    assert (answer["errors"], answer["deletedCount"]) == ([], 3)
    assert len(await load_positions(bob)) == 1


async def test_delete_empty_mailbox_removes_emptied_mailbox(
    user_with_duplicates: GraphQLClient,
) -> None:
    await create_mailboxes(client_context(user_with_duplicates), NewMailboxes(["A/B/C"]))
    for path in ("A/B", "A/B/C", "Sent"):
        await run_message_mutation(
            user_with_duplicates, "messageCopy", select=inbox_selection("1"), to={"path": path}
        )
    before = await load_mailbox_paths(user_with_duplicates)
    keep_id = global_ids.encode("Mailbox", (await user_with_duplicates.load_mailbox("Keep")).id)
    for path, permanent, deleted_mailboxes in (
        ("Keep", True, [keep_id]),
        ("A/B", False, []),
        ("Sent", True, []),
    ):
        select = {"mailbox": {"path": path}}
        arguments = {"select": select, "permanent": permanent, "deleteEmptyMailbox": True}
        answer = await run_message_mutation(user_with_duplicates, "messageDelete", **arguments)
        assert (answer["errors"], answer["deletedMailboxIds"]) == ([], deleted_mailboxes)
    assert await load_mailbox_paths(user_with_duplicates) == [
        path for path in before if path != "Keep"
    ]
    last = await load_stream_position(
        user_with_duplicates.environment, user_with_duplicates.user.id
    )
    arguments = {"select": {"filter": {"not": {"mailbox": {"path": "INBOX"}}}}}
    answer = await run_message_mutation(
        user_with_duplicates, "messageDelete", **arguments, deleteEmptyMailbox=True
    )
    assert len(answer["deletedMailboxIds"]) == 1
    assert await load_mailbox_paths(user_with_duplicates) == [
        path for path in before if path not in ("Keep", "A/B/C")
    ]
    kinds = [
        kind
        for kind, _ in await load_journal_entries(
            user_with_duplicates.environment, user_with_duplicates.user.id, last
        )
    ]
    assert kinds == [EventType.MESSAGE_DELETED, EventType.MAILBOX_DELETED]
    empty = {"select": {"mailbox": {"path": "A/B"}}, "deleteEmptyMailbox": True}
    assert (
        len(
            (await run_message_mutation(user_with_duplicates, "messageDelete", **empty))[
                "deletedMailboxIds"
            ]
        )
        == 1
    )
    assert await undo_mutation(user_with_duplicates, answer) == {"restoredCount": 1, "errors": []}
    assert (
        len(
            [
                position
                for position in await load_positions(user_with_duplicates)
                if position[0] == "INBOX"
            ]
        )
        == 8
    )


async def test_delete_empty_mailbox_keeps_mailbox_with_messages(
    user_with_duplicates: GraphQLClient,
) -> None:
    await run_message_mutation(
        user_with_duplicates, "messageCopy", select=inbox_selection("3"), to={"path": "Keep"}
    )
    select = {"mailbox": {"path": "Keep"}, "uids": "1"}
    answer = await run_message_mutation(
        user_with_duplicates, "messageDelete", select=select, deleteEmptyMailbox=True
    )
    assert (answer["deletedCount"], answer["deletedMailboxIds"]) == (1, [])
    assert "Keep" in await load_mailbox_paths(user_with_duplicates)


async def test_delete_task_removes_mailboxes_it_emptied(
    user_with_duplicates: GraphQLClient, tmp_path: Path
) -> None:
    await run_message_mutation(
        user_with_duplicates, "messageMove", select=inbox_selection("1:*"), to={"path": "Keep"}
    )
    client = client_with_small_bulk_limit(user_with_duplicates, tmp_path)
    select = {"mailbox": {"path": "Keep"}}
    arguments = {"select": select, "permanent": True, "deleteEmptyMailbox": True}
    assert (await run_message_mutation(client, "messageDelete", **arguments))["task"][
        "totalCount"
    ] == 8
    assert await tasks.run_next_task(user_with_duplicates.environment)
    assert "Keep" not in await load_mailbox_paths(user_with_duplicates)
    await create_mailboxes(client_context(user_with_duplicates), NewMailboxes(["Keep"]))
    answer = await run_message_mutation(client, "messageDelete", **arguments, **{"async": True})
    assert answer["task"]["totalCount"] == 0
    assert await tasks.run_next_task(user_with_duplicates.environment)
    assert "Keep" not in await load_mailbox_paths(user_with_duplicates)
