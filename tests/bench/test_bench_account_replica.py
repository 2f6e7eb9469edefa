"""The replica of the proof: it is what the store is, and sees each event that it did not hear."""

from collections.abc import Sequence
from typing import Any

from bench.change_stream import account_replica
from bench.change_stream.account_replica import AccountReplica, AccountState, EventFields
from bench.change_stream.follow_transports import CHANGES_QUERY, SNAPSHOT_QUERY
from bench.change_stream.random_writers import ARCHIVED_QUERY
from tests.conftest import Client, receive

CALLS: list[tuple[str, Any]] = [
    ("mailboxCreate", {"paths": ["A", "B"]}),
    ("messageMove", {"select": {"mailbox": {"path": "INBOX"}, "uids": "1:3"}, "to": {"path": "A"}}),
    ("messageUpdate", {"select": {"mailbox": {"path": "A"}}, "set": {"seen": True}}),
    ("messageCopy", {"select": {"mailbox": {"path": "A"}, "uids": "1"}, "to": {"path": "B"}}),
    ("messageDelete", {"select": {"mailbox": {"path": "A"}, "uids": "1:2"}}),
    ("mailboxRename", {"mailbox": {"path": "A"}, "newPath": "C/D"}),
    ("messageDelete", {"select": {"mailbox": {"path": "B"}}, "permanent": True}),
    ("archivedMessageRestore", {"ids": None}),  # those that are there then
    ("mailboxUpdate", {"mailboxes": [{"path": "C"}], "set": {"subscribed": False}}),
    ("mailboxDelete", {"mailboxes": [{"path": "B"}]}),
    ("messageUpdate", {"select": {"mailbox": {"path": "INBOX"}}, "set": {"flagged": True}}),
]


async def began(client: Client) -> AccountReplica:
    user = (await client(SNAPSHOT_QUERY))["viewer"]["user"]
    paths = {one["id"]: one["path"] for one in user["mailboxes"]}
    return AccountReplica(
        user["cursor"], paths, exact_from=account_replica.event_number_from_cursor(user["cursor"])
    )


async def played(client: Client) -> tuple[AccountReplica, list[EventFields], AccountState]:
    """A replica from before, all that has happened since, and what is stored now."""
    first = await began(client)
    for number in range(4):
        await receive(client, f"Number {number}")
    for name, plain in CALLS:
        given = plain
        if "ids" in plain:
            (one,) = (await client(ARCHIVED_QUERY))["viewer"].values()
            given = {"ids": [each["id"] for each in one["archivedMessages"]["nodes"]]}
        kind = f"{name[0].upper()}{name[1:]}Input"
        document = f"mutation ($i: {kind}!) {{ it: {name}(input: $i) {{ errors {{ code }} }} }}"
        assert (await client(document, i=given))["it"]["errors"] == [], name
    batch = (await client(CHANGES_QUERY, after=first.cursor, first=1000))["changes"]
    assert not batch["hasMore"]
    return (
        first,
        batch["events"],
        await account_replica.read_account_state(client.world.database, client.user.id),
    )


def hear(first: AccountReplica, events: Sequence[EventFields]) -> AccountReplica:
    held = first.copy_replica()
    for event in events:
        held.apply_batch([event], event["cursor"])
    return held


async def test_what_is_heard_is_what_is_stored(ada: Client) -> None:
    first, events, truth = await played(ada)
    kinds = {event["kind"] for event in events}
    assert {kind for kind in kinds if kind.startswith("ME")} == {
        *account_replica.ADDING_KINDS,
        *account_replica.REMOVING_KINDS,
        "MESSAGE_MOVED",
        "MESSAGE_UPDATED",
    }
    held = hear(first, events)
    assert (held.problems, account_replica.differences_by_id(held.account_state, truth)) == ([], {})
    assert await account_replica.find_journal_gaps(ada.world.database, ada.user.id) == []


async def test_an_event_that_is_dropped_doubled_or_late_is_found(ada: Client) -> None:
    first, events, _ = await played(ada)
    for place, event in enumerate(events[:-1]):
        dropped = [*events[:place], *events[place + 1 :]]
        doubled = [*events[: place + 1], event, *events[place + 1 :]]
        late = [*events[:place], events[place + 1], event, *events[place + 2 :]]
        for wrong in (dropped, doubled, late):
            assert hear(first, wrong).problems


async def test_also_where_their_numbers_would_not_tell(ada: Client) -> None:
    first, events, truth = await played(ada)
    silent = {"MAILBOX_UPDATED"}  # it tells of nothing that a replica keeps
    for place, event in enumerate(events):
        dropped = [*events[:place], *events[place + 1 :]]
        start = account_replica.event_number_from_cursor(first.cursor)
        stem = first.cursor.rpartition(".")[0]
        closed = [{**one, "cursor": f"{stem}.{start + nth}"} for nth, one in enumerate(dropped, 1)]
        held = hear(first, closed)
        told_again = event["kind"] == "MESSAGE_UPDATED" and any(
            one.get("messageId") == event["messageId"] for one in events[place + 1 :]
        )
        if event["kind"] not in silent and not told_again:
            found = account_replica.differences_by_id(held.account_state, truth)
            assert held.problems or found, event
            if found:
                concerned = await account_replica.events_by_object_id(
                    ada.world.database, ada.user.id, found
                )
                assert any(event["kind"] in text for one in concerned.values() for text in one)


async def test_a_change_of_the_store_that_nobody_tells_is_found(ada: Client) -> None:
    first, events, (folders, letters) = await played(ada)
    held = hear(first, events)
    (key, (box, uid, flags, modseq)), *_ = letters.items()
    other = {**letters, key: account_replica.MessageState(box, uid, (*flags, "\\Seen"), modseq)}
    assert list(account_replica.differences_by_id(held.account_state, (folders, other))) == [key]
    path, total, unseen = folders[box]
    miscounted = {**folders, box: account_replica.MailboxState(path, total, unseen + 1)}
    assert list(account_replica.differences_by_id(held.account_state, (miscounted, letters))) == [
        box
    ]
