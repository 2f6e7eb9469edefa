"""What is there more than once, and folders that are empty behind a deletion."""

from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.events.journal import ChangeKind
from resolvers.admin import tasks
from resolvers.mailboxes.loaders import NewMailboxes, create_mailboxes
from resolvers.messages.bulk import bulk_changes
from tests.conftest import Client, Clock, context, few_of, raw_message, receive
from tests.support.operations.bulk_operations import call, inbox, nodes, of, take_back
from tests.support.stores.counter_check import journal, reached

ALL: dict[str, Any] = {"all": True}
HERE: dict[str, Any] = {"mailbox": {"path": "INBOX"}}
PATHS = "{ viewer { user { mailboxes { path } } } }"
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def doubled(ada: Client, clock: Clock) -> Client:
    """INBOX has a, a, b, a, and one with the Message-ID of b; Keep has one a; two have no id."""
    await create_mailboxes(context(ada), NewMailboxes(["Keep"]))
    other = raw_message("c", Message_ID="<b@example.com>")
    b = raw_message("b", Message_ID="<b@example.com>")
    bare = [b"Subject: d\r\n\r\nx\r\n", b"Subject: e\r\n\r\nx\r\n"]
    letters = (raw_message("a"), raw_message("a"), b, raw_message("a"), other, *bare)
    for nth, raw in enumerate(letters):
        await receive(ada, raw, sender=f"from{nth}@example.com")
        clock.tick(seconds=1)
    await call(ada, "messageCopy", select=inbox("1"), to={"path": "Keep"})
    return ada


async def there(client: Client) -> list[tuple[str, str, int]]:
    found = [(n["mailbox"]["path"], n["subject"], n["uid"]) for n in await nodes(client)]
    return sorted(found)


async def paths(client: Client) -> list[str]:
    boxes = (await client(PATHS))["viewer"]["user"]["mailboxes"]
    return [box["path"] for box in boxes]


async def test_of_equal_messages_the_oldest_of_a_folder_stays(doubled: Client) -> None:
    before = await there(doubled)
    last = await reached(doubled.world, doubled.user.id)
    answer = await call(doubled, "messageDeduplicate", select=ALL)
    assert (answer["errors"], answer["deletedCount"], answer["deletedMailboxes"]) == ([], 2, [])
    kinds = [kind for kind, _ in await journal(doubled.world, doubled.user.id, last)]
    assert kinds == [ChangeKind.MESSAGE_ARCHIVED]
    after = [("INBOX", "a", 1), ("INBOX", "b", 3), ("INBOX", "c", 5), ("INBOX", "d", 6),
             ("INBOX", "e", 7), ("Keep", "a", 1)]  # fmt: skip
    assert await there(doubled) == after
    again = await call(doubled, "messageDeduplicate", select=ALL)
    assert (again["deletedCount"], again["undo"]) == (0, None)
    assert await take_back(doubled, answer) == {"restoredCount": 2, "errors": []}
    assert [one[:2] for one in await there(doubled)] == [one[:2] for one in before]


async def test_the_same_message_id_is_enough_where_that_is_said(doubled: Client) -> None:
    answer = await call(doubled, "messageDeduplicate", select=HERE, byMessageId=True)
    assert (answer["errors"], answer["deletedCount"]) == ([], 3)
    assert [one[1] for one in await there(doubled)] == ["a", "b", "d", "e", "a"]


async def test_only_what_is_selected_is_compared(doubled: Client, bob: Client) -> None:
    for uids, many in (("1,3", 0), ("2,4", 1)):
        answer = await call(doubled, "messageDeduplicate", select=inbox(uids))
        assert (answer["errors"], answer["deletedCount"]) == ([], many)
    keys = [node["id"] for node in await nodes(doubled)]
    answer = await call(doubled, "messageDeduplicate", select={"ids": keys})
    assert (answer["errors"], answer["deletedCount"]) == ([], 1)
    unknown = {"ids": [*keys[:1], global_ids.encode("Message", 7)]}
    for client, index in ((doubled, 1), (bob, 0)):
        answer = await call(client, "messageDeduplicate", select=unknown)
        assert [(e["code"], e["path"], e["index"]) for e in answer["errors"]] == [
            ("NOT_FOUND", ["select", "ids"], index)
        ]


async def test_a_task_never_takes_the_last_of_its_kind(
    doubled: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(3):
        await receive(doubled, raw_message("a"), sender=f"{n}@example.com")
    answer = await call(few_of(doubled, tmp_path), "messageDeduplicate", select=HERE)
    assert (answer["task"]["kind"], answer["task"]["total"]) == ("MESSAGE_DEDUPLICATE", 5)
    await call(doubled, "messageDelete", select=inbox("1"), permanent=True)
    monkeypatch.setattr(bulk_changes, "MESSAGES_PER_STEP", 2)
    assert await tasks.run_next_task(doubled.world)
    assert [one for one in await there(doubled) if one[:2] == ("INBOX", "a")] == [("INBOX", "a", 2)]


async def test_an_administrator_clears_up_for_many(
    doubled: Client, bob: Client, root: Client
) -> None:
    for n in range(2):
        await receive(bob, raw_message("a"), sender=f"{n}@example.com")
    select = {**ALL, "users": of(doubled, bob)}
    answer = await call(root, "messageDeduplicate", select=select)
    assert (answer["errors"], answer["deletedCount"]) == ([], 3)
    assert len(await there(bob)) == 1


# folders that are empty then


async def test_a_folder_goes_with_the_last_of_its_messages(doubled: Client) -> None:
    await create_mailboxes(context(doubled), NewMailboxes(["A/B/C"]))
    for path in ("A/B", "A/B/C", "Sent"):
        await call(doubled, "messageCopy", select=inbox("1"), to={"path": path})
    before = await paths(doubled)
    keep = global_ids.encode("Mailbox", (await doubled.box("Keep")).id)
    for path, permanent, gone in (("Keep", True, [keep]), ("A/B", False, []), ("Sent", True, [])):
        select = {"mailbox": {"path": path}}
        given = {"select": select, "permanent": permanent, "deleteEmptyMailbox": True}
        answer = await call(doubled, "messageDelete", **given)
        assert (answer["errors"], answer["deletedMailboxes"]) == ([], gone)
    assert await paths(doubled) == [path for path in before if path != "Keep"]
    last = await reached(doubled.world, doubled.user.id)
    given = {"select": {"filter": {"not": {"mailbox": {"path": "INBOX"}}}}}
    answer = await call(doubled, "messageDelete", **given, deleteEmptyMailbox=True)
    assert len(answer["deletedMailboxes"]) == 1
    assert await paths(doubled) == [path for path in before if path not in ("Keep", "A/B/C")]
    kinds = [kind for kind, _ in await journal(doubled.world, doubled.user.id, last)]
    assert kinds == [ChangeKind.MESSAGE_ARCHIVED, ChangeKind.MAILBOX_DELETED]
    empty = {"select": {"mailbox": {"path": "A/B"}}, "deleteEmptyMailbox": True}
    assert len((await call(doubled, "messageDelete", **empty))["deletedMailboxes"]) == 1
    assert await take_back(doubled, answer) == {"restoredCount": 1, "errors": []}
    assert len([one for one in await there(doubled) if one[0] == "INBOX"]) == 8


async def test_a_folder_with_something_left_stays(doubled: Client) -> None:
    await call(doubled, "messageCopy", select=inbox("3"), to={"path": "Keep"})
    select = {"mailbox": {"path": "Keep"}, "uids": "1"}
    answer = await call(doubled, "messageDelete", select=select, deleteEmptyMailbox=True)
    assert (answer["deletedCount"], answer["deletedMailboxes"]) == (1, [])
    assert "Keep" in await paths(doubled)


async def test_a_task_deletes_the_folders_it_has_emptied(doubled: Client, tmp_path: Path) -> None:
    await call(doubled, "messageMove", select=inbox("1:*"), to={"path": "Keep"})
    client, select = few_of(doubled, tmp_path), {"mailbox": {"path": "Keep"}}
    given = {"select": select, "permanent": True, "deleteEmptyMailbox": True}
    assert (await call(client, "messageDelete", **given))["task"]["total"] == 8
    assert await tasks.run_next_task(doubled.world)
    assert "Keep" not in await paths(doubled)
    await create_mailboxes(context(doubled), NewMailboxes(["Keep"]))
    answer = await call(client, "messageDelete", **given, **{"async": True})
    assert answer["task"]["total"] == 0
    assert await tasks.run_next_task(doubled.world)
    assert "Keep" not in await paths(doubled)
