"""Delta sync: pages of the change stream, and cursors that match the state read with them."""

import asyncio
from dataclasses import replace
from random import Random
from typing import Any

import httpx

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.event_types import EventType
from models.events.journal import JournalEntry, record_entries_in_existing_streams
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_api_key, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.operations.mailbox_operations import add_mailboxes, append_unread_messages
from tests.support.servers.live_server import NEW_ACCOUNT_EVENT_COUNT, stream_cursor
from tests.support.time_limits import HANG_SECONDS

ADDED_OR_CHANGED = ("MESSAGE_ADDED", "MESSAGE_RECEIVED", "MESSAGE_UPDATED", "MESSAGE_MOVED")
CHANGES_QUERY = """query ($after: Cursor!, $first: Int, $types: [ChangeType!], $user: UserRef) {
  changes(after: $after, first: $first, types: $types, user: $user) { cursor hasMore events {
    __typename type cursor origin user { username }
    ... on MailboxChange { path }
    ... on MessageChange { messageId mailboxId uid flags message { mailbox { path } } }
    ... on UserChange { nodeId node { __typename } }
    ... on ResyncChange { reason } } } }"""
CURSOR_QUERY = "{ viewer { user { cursor } } }"
STATE_QUERY = """{ viewer { user { mailboxes { nodes { id path messageCount unseenCount } }
  messages(first: 200) { nodes { id seen mailbox { id } } } cursor } } }"""


async def load_changes(client: GraphQLClient, after: str, **variables: Any) -> Any:
    return (await client(CHANGES_QUERY, after=after, **variables))["changes"]


async def current_cursor(client: GraphQLClient) -> str:
    return str((await client(CURSOR_QUERY))["viewer"]["user"]["cursor"])


async def error_code(client: GraphQLClient, after: Any, **variables: Any) -> str:
    (error,) = (await client.execute(CHANGES_QUERY, after=after, **variables))["errors"]
    return str(error["extensions"]["code"])


async def test_pages_contain_all_events_in_order(ada: GraphQLClient) -> None:
    position = stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)
    for number in range(5):
        await deliver_to(ada, f"Number {number}")
    events = list[Any]()
    for has_more in (True, True, False):
        batch = await load_changes(ada, position, first=2)
        assert batch["hasMore"] is has_more
        assert batch["events"][-1]["cursor"] == batch["cursor"]
        events += batch["events"]
        position = batch["cursor"]
    assert [event["cursor"] for event in events] == [
        stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + n) for n in range(1, 6)
    ]
    assert {event["type"] for event in events} == {"MESSAGE_RECEIVED"}
    assert await load_changes(ada, position) == {"cursor": position, "hasMore": False, "events": []}
    assert position == await current_cursor(ada)


async def test_kind_filter_still_advances_cursor(ada: GraphQLClient) -> None:
    await deliver_to(ada)
    await add_mailboxes(ada, "Box")
    batch = await load_changes(
        ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT), types=["MAILBOX_CREATED"]
    )
    assert [event["path"] for event in batch["events"]] == ["Box"]
    batch = await load_changes(
        ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT), types=["SUBMISSION_UPDATED"]
    )
    assert (batch["events"], batch["cursor"]) == ([], await current_cursor(ada))


async def test_one_journal_row_can_span_pages(ada: GraphQLClient) -> None:
    for number in range(3):
        await deliver_to(ada, f"Number {number}")
    start = await current_cursor(ada)
    select = {"mailbox": {"path": "INBOX"}}
    await run_mailbox_mutation(
        ada, "messageUpdate", "updatedCount", select=select, set={"seen": True}
    )
    first_page = await load_changes(ada, start, first=2)
    second_page = await load_changes(ada, first_page["cursor"], first=2)
    assert [len(first_page["events"]), len(second_page["events"])] == [2, 1]
    assert {tuple(event["flags"]) for event in first_page["events"] + second_page["events"]} == {
        ("\\Seen",)
    }


async def test_only_events_of_shared_mailboxes_are_visible(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "Old")
    start = await current_cursor(bob)
    await share_mailbox(ada, bob, *READ_RIGHTS)
    await append_unread_messages(ada, "Team", "New")
    await deliver_to(ada, "Private")
    batch = await load_changes(bob, start)
    events_by_type = {event["type"]: event for event in batch["events"]}
    assert events_by_type.keys() == {"MAILBOX_CREATED", "MESSAGE_ADDED"}
    added = events_by_type["MESSAGE_ADDED"]
    assert (added["mailboxId"], added["message"], added["user"]) == (
        mailbox_id,
        {"mailbox": {"path": "Team"}},
        None,
    )
    await share_mailbox(ada, bob)
    await append_unread_messages(ada, "Team", "Unheard")
    (removed,) = (await load_changes(bob, batch["cursor"]))["events"]
    assert removed["type"] == "MAILBOX_DELETED"


async def test_invalid_and_unknown_cursors_have_different_errors(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await deliver_to(ada)
    for invalid_cursor in (
        "x",
        "1",
        "1.5",
        "2.1.1",
        f"1.{ada.user.id}.-1",
        "1." + "9" * 40,
        "1.0.1" * 99,
    ):
        assert await error_code(ada, invalid_cursor) == "BAD_CURSOR"
    assert await error_code(ada, stream_cursor(bob, 0)) == "BAD_CURSOR"
    batch = await load_changes(ada, stream_cursor(ada, 10**6))
    (event,) = batch["events"]
    assert (event["type"], event["reason"]) == ("RESYNC", "CURSOR_UNKNOWN")
    assert batch["cursor"] == await current_cursor(ada)
    # the stream of another user in the cursor is ignored
    combined_cursor = f"{stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT)}.{bob.user.id}.0"
    assert [event["type"] for event in (await load_changes(ada, combined_cursor))["events"]] == [
        "MESSAGE_RECEIVED"
    ]
    assert (await load_changes(ada, combined_cursor))["cursor"] == await current_cursor(ada)
    for first in (0, -1, 1001):
        assert (
            await error_code(ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT), first=first)
            == "BAD_PAGINATION"
        )


async def test_cursor_beyond_event_limit_gets_resync(ada: GraphQLClient) -> None:
    for number in range(4):
        await deliver_to(ada, f"Number {number}")
    small_journal_environment = replace(
        ada.environment, options=replace(ada.environment.options, journal_max_events=2)
    )
    assert (
        await housekeeping.run_housekeeping_round(small_journal_environment)
    ).changes == 4  # one row has all mailboxes of a new account
    (event,) = (await load_changes(ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 1)))["events"]
    assert (event["type"], event["reason"]) == ("RESYNC", "CURSOR_EXPIRED")
    assert event["cursor"] == await current_cursor(ada)
    assert (
        len((await load_changes(ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 2)))["events"])
        == 2
    )


async def test_cursor_older_than_retention_gets_resync(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for number in range(3):
        await deliver_to(ada, f"Number {number}")
    clock.tick(days=31)
    await deliver_to(ada, "New")
    assert (await housekeeping.run_housekeeping_round(ada.environment)).changes
    (event,) = (await load_changes(ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 1)))["events"]
    assert (event["type"], event["reason"]) == ("RESYNC", "CURSOR_EXPIRED")
    assert event["cursor"] == await current_cursor(ada)
    assert [
        e["type"]
        for e in (await load_changes(ada, stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + 3)))[
            "events"
        ]
    ] == ["MESSAGE_RECEIVED"]


async def record_changes(client: GraphQLClient, count: int) -> str:
    """Record this number of changes and return the cursor before them."""
    start, environment, owner = await current_cursor(client), client.environment, client.user.id

    def write(connection: Any) -> None:
        for _ in range(count // 500):
            entry = JournalEntry(EventType.THREAD_UPDATED, [owner] * 500)
            record_entries_in_existing_streams(connection, {owner: [entry]}, at=environment.now())

    async with environment.write_session(owner) as session:
        await (await session.connection()).run_sync(write)
    return start


async def test_query_can_read_more_events_than_subscription(
    ada: GraphQLClient, statements: list[str]
) -> None:
    position = await record_changes(ada, 11_000)
    query = """query ($after: Cursor!) { changes(after: $after, first: 1000) { cursor hasMore
      events { type cursor } } }"""
    event_count, statement_counts = 0, list[int]()
    while True:
        del statements[:]
        batch = (await ada(query, after=position))["changes"]
        statement_counts.append(
            len([statement for statement in statements if "changes" in statement])
        )
        event_count, position = event_count + len(batch["events"]), batch["cursor"]
        if not batch["hasMore"]:
            break
    assert event_count == 11_000
    assert set(statement_counts) == {1}


async def test_event_objects_are_loaded_with_constant_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(event_count: int) -> int:
        start = await current_cursor(ada)
        for number in range(event_count):
            await deliver_to(ada, f"{start} {number}")
        del statements[:]
        assert len((await load_changes(ada, start))["events"]) == event_count
        return len([statement for statement in statements if "api_keys" not in statement])

    await count_statements(2)
    assert await count_statements(2) == await count_statements(20)


async def test_admin_can_read_changes_of_another_account(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    user_ref = {"username": "ada"}
    state = await admin_client(
        "query ($u: UserRef) { user(by: $u) { mailboxes { nodes { path } } cursor } }", u=user_ref
    )
    start = state["user"]["cursor"]
    await deliver_to(ada, "Hello")
    await run_mailbox_mutation(
        ada, "mailboxCreate", paths=["Box"], options={"idempotencyKey": "secret"}
    )
    batch = await load_changes(admin_client, start, user=user_ref)
    added, created = batch["events"]
    assert (added["type"], added["user"]) == ("MESSAGE_RECEIVED", {"username": "ada"})
    assert (created["path"], created["origin"]) == ("Box", None)
    assert [event["origin"] for event in (await load_changes(ada, start))["events"]] == [
        None,
        "secret",
    ]
    assert (await load_changes(admin_client, batch["cursor"], user=user_ref))["events"] == []
    assert (
        await error_code(admin_client, await current_cursor(admin_client), user=user_ref)
        == "BAD_CURSOR"
    )


async def test_reading_changes_needs_permission_to_impersonation_user(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    user_ref, start = {"id": global_ids.encode("User", ada.user.id)}, await current_cursor(ada)
    assert await error_code(bob, start, user=user_ref) == "NOT_FOUND"
    admin_without_permission = await make_domain_admin(environment, http, "weak")
    assert await error_code(admin_without_permission, start, user=user_ref) == "FORBIDDEN"
    admin_with_permission = await make_domain_admin(
        environment, http, "strong", [AdminPermission.IMPERSONATE]
    )
    assert (await load_changes(admin_with_permission, start, user=user_ref))["events"] == []
    admin_ref = {"username": "over"}
    assert (
        await error_code(admin_with_permission, await current_cursor(admin_client), user=admin_ref)
        == "NOT_FOUND"
    )
    root_client = await make_client(environment, http, "chief", role=Role.ROOT)
    assert (
        await error_code(
            admin_client, await current_cursor(root_client), user={"username": "chief"}
        )
        == "NOT_FOUND"
    )
    own_ref = {"username": "ada"}
    assert (await load_changes(ada, start, user=own_ref))["events"] == []


async def test_key_without_user_must_name_user(
    ada: GraphQLClient, environment: Environment
) -> None:
    secret = await make_api_key(environment, "nobody", role=Role.ADMIN, scopes=[Scope.FULL])
    key_client = GraphQLClient(ada.http, environment, ada.user, secret)
    start = await current_cursor(ada)
    assert await error_code(key_client, start) == "FORBIDDEN"
    assert (await load_changes(key_client, start, user={"username": "ada"}))["events"] == []


async def change_messages_until(client: GraphQLClient, seed: int, stop: asyncio.Event) -> None:
    """Deliver, move, flag and delete messages until the event is set."""
    random, number, arguments = Random(seed), 0, dict[str, Any]()  # noqa: S311 - no secret
    while not stop.is_set():
        number += 1
        message_ids = [
            message["id"]
            for message in (
                await client("""{ viewer { user { messages(first: 50) {
            nodes { id } } } } }""")
            )["viewer"]["user"]["messages"]["nodes"]
        ]
        match random.choice(("add", "add", "flag", "move", "delete")):
            case "flag" if message_ids:
                arguments = {"set": {"seen": random.random() < 0.5}}
                name = "messageUpdate"
            case "move" if message_ids:
                arguments = {"to": {"path": random.choice(("Box", "INBOX"))}}
                name = "messageMove"
            case "delete" if len(message_ids) > 5:
                arguments, name = {}, "messageDelete"
            case _:
                await deliver_to(client, f"{seed} {number}")
                continue
        await run_mailbox_mutation(
            client, name, "journalCursor", select={"ids": [random.choice(message_ids)]}, **arguments
        )


def messages_by_id(data: Any) -> dict[str, Any]:
    user = data["viewer"]["user"]
    return {
        message["id"]: (message["mailbox"]["id"], message["seen"])
        for message in user["messages"]["nodes"]
    }


async def test_state_matches_its_cursor_during_concurrent_writes(ada: GraphQLClient) -> None:
    await add_mailboxes(ada, "Box")
    stop = asyncio.Event()
    writers = [asyncio.create_task(change_messages_until(ada, seed, stop)) for seed in range(3)]
    snapshots = list[tuple[dict[str, Any], str]]()
    with ada.environment.wakeups.follow([ada.user.id]) as wakeup:
        async with asyncio.timeout(HANG_SECONDS):
            for _ in range(15):
                wakeup.clear()
                data = await ada(STATE_QUERY)
                snapshots.append((messages_by_id(data), data["viewer"]["user"]["cursor"]))
                await wakeup.wait()  # for a write
    stop.set()
    await asyncio.gather(*writers)
    last = messages_by_id(await ada(STATE_QUERY))
    assert len({snapshot_cursor for _, snapshot_cursor in snapshots}) > 5
    for replica, snapshot_cursor in snapshots:
        for event in (await load_changes(ada, snapshot_cursor, first=1000))["events"]:
            if event["type"] in ADDED_OR_CHANGED:
                replica[event["messageId"]] = event["mailboxId"], "\\Seen" in event["flags"]
            elif event["type"] in ("MESSAGE_DELETED", "MESSAGE_PURGED"):
                replica.pop(event["messageId"], None)
        assert replica == last


async def test_cursor_is_read_before_state(ada: GraphQLClient, statements: list[str]) -> None:
    await ada(STATE_QUERY)
    del statements[:]
    await ada(STATE_QUERY)
    order = [
        index
        for name in ("FROM streams", "FROM mailboxes", "FROM messages")
        for index, statement in enumerate(statements)
        if name in statement
    ]
    assert order == sorted(order)
    assert len(order) == 3
