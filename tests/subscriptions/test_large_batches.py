"""Batches of changes whose result exceeds the limit of a response."""

from typing import Any

from graph.execution.response_size import MAX_RESPONSE_BYTES
from models.events.event_types import EventType
from tests.conftest import GraphQLClient
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.clients.change_followers import EACH_TRANSPORT
from tests.support.servers.live_server import (
    NEW_ACCOUNT_EVENT_COUNT,
    LiveServer,
    SubscriptionFollower,
    record_journal_entry,
    stream_cursor,
    wait_until,
)

CHANGES = """subscription ($after: Cursor) { changes(after: $after) { cursor hasMore events {
  cursor type ... on MailboxChange { path } } } }"""
MEBIBYTE = 1 << 20
EVENTS_PER_ENTRY = 8


def paths(follower: SubscriptionFollower) -> list[str]:
    """The last character of the path of each received event."""
    batches = [(payload.get("data") or {}).get("changes") for payload in follower.payloads]
    return [event["path"][-1] for batch in batches if batch for event in batch["events"]]


async def create_end(client: GraphQLClient) -> None:
    """Create a mailbox, which is the last event."""
    await run_mailbox_mutation(client, "mailboxCreate", paths=["End"])


@EACH_TRANSPORT
async def test_batch_above_the_limit_comes_in_parts(
    live_server: LiveServer, ada: GraphQLClient, transport: str
) -> None:
    for number in range(5):  # 40 MiB, of which one result can have 32 MiB
        path = "x" * MEBIBYTE + str(number)
        await record_journal_entry(
            ada, EventType.MAILBOX_UPDATED, [1] * EVENTS_PER_ENTRY, path=path
        )
    await create_end(ada)
    start = stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
    expected = [character for character in "01234" for _ in range(EVENTS_PER_ENTRY)] + ["d"]
    follower = await getattr(live_server, transport)(ada, CHANGES, after=start)
    await wait_until(lambda: len(paths(follower)) == len(expected))
    assert paths(follower) == expected
    assert [batch["hasMore"] for batch in follower.batches] == [True, False]
    cursors = [batch["cursor"] for batch in follower.batches]
    assert cursors == [batch["events"][-1]["cursor"] for batch in follower.batches]
    if transport == "stream":
        assert follower.event_ids == cursors
    resumed = await getattr(live_server, transport)(ada, CHANGES, after=cursors[0])
    await wait_until(lambda: resumed.payloads)
    assert paths(resumed) == paths(follower)[len(follower.batches[0]["events"]) :]
    for each in (follower, resumed):
        await each.unsubscribe()


async def test_result_without_its_event_does_not_move_the_last_event_id(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    start = stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
    large_path = "x" * (MAX_RESPONSE_BYTES + 1)
    await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1], path=large_path)
    follower = await live_server.stream(ada, CHANGES, last_event_id=start)
    await wait_until(lambda: follower.payloads)
    assert error_codes(follower) == ["RESPONSE_TOO_LARGE"]
    assert follower.last_event_id == start
    resumed = await live_server.stream(ada, CHANGES, last_event_id=start)
    await wait_until(lambda: resumed.payloads)
    assert error_codes(resumed) == ["RESPONSE_TOO_LARGE"]  # the client learns of it again
    await create_end(ada)
    for each in (follower, resumed):
        await wait_until(lambda each=each: paths(each))
        assert paths(each) == ["d"]
        assert each.last_event_id == each.payloads[-1]["data"]["changes"]["cursor"]
        await each.unsubscribe()


async def test_large_event_in_a_batch_is_the_only_one_that_is_missing(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    large_path = "x" * (MAX_RESPONSE_BYTES + 1)
    await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1] * 3, path="a")
    await record_journal_entry(ada, EventType.MAILBOX_UPDATED, [1], path=large_path)
    await create_end(ada)
    start = stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
    follower = await live_server.stream(ada, CHANGES, after=start)
    await wait_until(lambda: "d" in paths(follower))
    assert paths(follower) == ["a"] * 3 + ["d"]
    assert error_codes(follower) == ["RESPONSE_TOO_LARGE"]
    await follower.unsubscribe()


def error_codes(follower: SubscriptionFollower) -> list[Any]:
    """The codes of the errors in all results."""
    errors = [error for payload in follower.payloads for error in payload.get("errors") or ()]
    return [error["extensions"]["code"] for error in errors]
