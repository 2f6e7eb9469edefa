"""Tests that the replica of the benchmark equals the database and detects missing events."""

from collections.abc import Sequence
from typing import Any

from bench.change_stream import account_replica
from bench.change_stream.account_replica import AccountReplica, AccountState, EventFields
from bench.change_stream.follow_transports import CHANGES_QUERY, SNAPSHOT_QUERY
from bench.change_stream.random_writers import ARCHIVED_QUERY
from tests.conftest import GraphQLClient, deliver_to

MUTATIONS: list[tuple[str, Any]] = [
    ("mailboxCreate", {"paths": ["A", "B"]}),
    ("messageMove", {"select": {"mailbox": {"path": "INBOX"}, "uids": "1:3"}, "to": {"path": "A"}}),
    ("messageUpdate", {"select": {"mailbox": {"path": "A"}}, "set": {"seen": True}}),
    ("messageCopy", {"select": {"mailbox": {"path": "A"}, "uids": "1"}, "to": {"path": "B"}}),
    ("messageDelete", {"select": {"mailbox": {"path": "A"}, "uids": "1:2"}}),
    ("mailboxRename", {"mailbox": {"path": "A"}, "newPath": "C/D"}),
    ("messageDelete", {"select": {"mailbox": {"path": "B"}}, "permanent": True}),
    (
        "deletedMessageRestore",
        {"select": {"ids": None}},
    ),  # the messages that are archived at that time
    ("mailboxUpdate", {"mailboxes": [{"path": "C"}], "set": {"subscribed": False}}),
    ("mailboxDelete", {"mailboxes": [{"path": "B"}]}),
    ("messageUpdate", {"select": {"mailbox": {"path": "INBOX"}}, "set": {"flagged": True}}),
]


async def create_replica(client: GraphQLClient) -> AccountReplica:
    user = (await client(SNAPSHOT_QUERY))["viewer"]["user"]
    paths = {mailbox["id"]: mailbox["path"] for mailbox in user["mailboxes"]["nodes"]}
    return AccountReplica(
        user["cursor"], paths, exact_from=account_replica.event_number_from_cursor(user["cursor"])
    )


async def run_mutations(
    client: GraphQLClient,
) -> tuple[AccountReplica, list[EventFields], AccountState]:
    """Run the mutations. Return a replica from before them, their events and the stored state."""
    first = await create_replica(client)
    for number in range(4):
        await deliver_to(client, f"Number {number}")
    for name, arguments in MUTATIONS:
        call_input = arguments
        if name == "deletedMessageRestore":
            (account,) = (await client(ARCHIVED_QUERY))["viewer"].values()
            deleted_ids = [message["id"] for message in account["deletedMessages"]["nodes"]]
            call_input = {"select": {"ids": deleted_ids}}
        input_type = f"{name[0].upper()}{name[1:]}Input"
        document = (
            f"mutation ($i: {input_type}!) {{ it: {name}(input: $i) {{ errors {{ code }} }} }}"
        )
        assert (await client(document, i=call_input))["it"]["errors"] == [], name
    batch = (await client(CHANGES_QUERY, after=first.cursor, first=1000))["changes"]
    assert not batch["hasMore"]
    return (
        first,
        batch["events"],
        await account_replica.read_account_state(client.environment.database, client.user.id),
    )


def copy_with_events(replica: AccountReplica, events: Sequence[EventFields]) -> AccountReplica:
    copy = replica.copy_replica()
    for event in events:
        copy.apply_batch([event], event["cursor"])
    return copy


async def test_replica_with_all_events_equals_database(ada: GraphQLClient) -> None:
    first, events, stored_state = await run_mutations(ada)
    kinds = {event["type"] for event in events}
    assert {kind for kind in kinds if kind.startswith("ME")} == {
        *account_replica.ADDING_TYPES,
        *account_replica.REMOVING_TYPES,
        "MESSAGE_MOVED",
        "MESSAGE_UPDATED",
    }
    replica = copy_with_events(first, events)
    assert (
        replica.problems,
        account_replica.differences_by_id(replica.account_state, stored_state),
    ) == ([], {})
    assert await account_replica.find_journal_gaps(ada.environment.database, ada.user.id) == []


async def test_dropped_duplicated_or_late_event_is_detected(ada: GraphQLClient) -> None:
    first, events, _ = await run_mutations(ada)
    for position, event in enumerate(events[:-1]):
        dropped = [*events[:position], *events[position + 1 :]]
        duplicated = [*events[: position + 1], event, *events[position + 1 :]]
        swapped = [*events[:position], events[position + 1], event, *events[position + 2 :]]
        for wrong_events in (dropped, duplicated, swapped):
            assert copy_with_events(first, wrong_events).problems


async def test_dropped_event_is_detected_without_cursor_gap(ada: GraphQLClient) -> None:
    first, events, stored_state = await run_mutations(ada)
    ignored_kinds = {"MAILBOX_UPDATED"}  # the replica keeps nothing of these events
    for position, event in enumerate(events):
        dropped = [*events[:position], *events[position + 1 :]]
        start = account_replica.event_number_from_cursor(first.cursor)
        cursor_prefix = first.cursor.rpartition(".")[0]
        renumbered = [
            {**entry, "cursor": f"{cursor_prefix}.{start + number}"}
            for number, entry in enumerate(dropped, 1)
        ]
        replica = copy_with_events(first, renumbered)
        is_repeated_later = event["type"] == "MESSAGE_UPDATED" and any(
            entry.get("messageId") == event["messageId"] for entry in events[position + 1 :]
        )
        if event["type"] not in ignored_kinds and not is_repeated_later:
            differences = account_replica.differences_by_id(replica.account_state, stored_state)
            assert replica.problems or differences, event
            if differences:
                events_by_id = await account_replica.events_by_object_id(
                    ada.environment.database, ada.user.id, differences
                )
                assert any(
                    event["type"] in text for entry in events_by_id.values() for text in entry
                )


async def test_stored_change_without_event_is_detected(ada: GraphQLClient) -> None:
    first, events, (folders, messages) = await run_mutations(ada)
    replica = copy_with_events(first, events)
    (message_id, (mailbox_id, uid, flags, modseq)), *_ = messages.items()
    changed_messages = {
        **messages,
        message_id: account_replica.MessageState(mailbox_id, uid, (*flags, "\\Seen"), modseq),
    }
    assert list(
        account_replica.differences_by_id(replica.account_state, (folders, changed_messages))
    ) == [message_id]
    path, total, unseen = folders[mailbox_id]
    miscounted = {**folders, mailbox_id: account_replica.MailboxState(path, total, unseen + 1)}
    assert list(
        account_replica.differences_by_id(replica.account_state, (miscounted, messages))
    ) == [mailbox_id]
