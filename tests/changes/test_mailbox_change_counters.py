"""Test the counters that the events of mailboxes contain."""

from typing import Any

from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes

COUNTERS_QUERY = """query ($after: Cursor!) { changes(after: $after, first: 1000) { cursor events {
  type ... on MailboxChange { mailboxId path messageCount unseenCount
    mailbox { messageCount unseenCount } }
  ... on MessageChange { mailboxId uid } } } }"""


async def load_changes(client: GraphQLClient, after: str) -> list[Any]:
    events: list[Any] = (await client(COUNTERS_QUERY, after=after))["changes"]["events"]
    return events


async def current_cursor(client: GraphQLClient) -> str:
    return str((await client("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"])


def counters(event: Any) -> tuple[int | None, int | None]:
    return event["messageCount"], event["unseenCount"]


async def test_mailbox_event_has_counters_of_its_mailbox(ada: GraphQLClient) -> None:
    start = await current_cursor(ada)
    await create_mailboxes(ada, "Empty", "Full")
    await append_unread_messages(ada, "Full", "One", "Two")
    empty, full, *added = await load_changes(ada, start)
    assert [event["type"] for event in added] == ["MESSAGE_ADDED"] * 2
    assert {event["mailboxId"] for event in added} == {full["mailboxId"]}
    assert (counters(empty), counters(full)) == ((0, 0), (2, 2))
    assert full["mailbox"] == {"messageCount": 2, "unseenCount": 2}


async def test_event_of_deleted_mailbox_has_no_counters(ada: GraphQLClient) -> None:
    start = await current_cursor(ada)
    await create_mailboxes(ada, "Clients")
    await run_mailbox_mutation(ada, "mailboxDelete", "deletedIds", mailboxes=[{"path": "Clients"}])
    created, deleted = await load_changes(ada, start)
    assert deleted["type"] == "MAILBOX_DELETED"
    for event in (created, deleted):
        assert (counters(event), event["mailbox"]) == ((None, None), None)


async def test_other_user_sees_counters_only_while_mailbox_is_shared(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Old")
    start = await current_cursor(bob)
    await deliver_to(ada)
    assert await load_changes(bob, start) == []
    await share_mailbox(ada, bob, *READ_RIGHTS)
    (shared,) = await load_changes(bob, start)
    assert (shared["type"], counters(shared)) == ("MAILBOX_CREATED", (1, 1))
    await share_mailbox(ada, bob)
    events = await load_changes(bob, start)
    assert [event["type"] for event in events] == ["MAILBOX_CREATED", "MAILBOX_DELETED"]
    assert [counters(event) for event in events] == [(None, None)] * 2


async def test_counters_of_many_events_are_read_with_constant_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(mailbox_count: int) -> int:
        start = await current_cursor(ada)
        await create_mailboxes(ada, *(f"{mailbox_count}-{n}" for n in range(mailbox_count)))
        del statements[:]
        events = await load_changes(ada, start)
        assert [counters(event) for event in events] == [(0, 0)] * mailbox_count
        return len([statement for statement in statements if "api_keys" not in statement])

    await count_statements(2)
    assert await count_statements(3) == await count_statements(40)
