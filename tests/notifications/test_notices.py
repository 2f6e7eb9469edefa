"""The notifications subscription: new mail, limits, sign-ins and bounces of the viewer."""

from pathlib import Path
from typing import Any

import pytest

from graph.types import global_ids
from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from tests.conftest import GraphQLClient, client_context
from tests.support.clients.change_followers import open_subscription
from tests.support.operations.push_receivers import deliver_to_mailbox
from tests.support.servers.live_server import (
    LiveServer,
    SubscriptionFollower,
    record_journal_entry,
    run_live_server,
    stream_cursor,
    wait_until,
)

NOTIFICATIONS_SUBSCRIPTION = """subscription ($after: Cursor) {
  notifications(after: $after) { type title text at cursor hasMore message { id subject } } }"""
CURSOR_QUERY = "{ viewer { user { cursor } } }"


@pytest.fixture
async def live_server(environment: Environment, tmp_path: Path) -> Any:
    async with run_live_server(environment, tmp_path) as live_server:
        yield live_server


def received_notifications(follower: SubscriptionFollower) -> list[Any]:
    for payload in follower.payloads:
        assert not payload.get("errors"), payload
    return [payload["data"]["notifications"] for payload in follower.payloads]


async def current_cursor(client: GraphQLClient) -> str:
    return str((await client(CURSOR_QUERY))["viewer"]["user"]["cursor"])


@pytest.mark.parametrize("transport", ["follow", "stream"])
async def test_new_mail_notifies_only_its_owner(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, transport: str
) -> None:
    ada_follower = await open_subscription(live_server, transport, ada, NOTIFICATIONS_SUBSCRIPTION)
    bob_follower = await open_subscription(live_server, transport, bob, NOTIFICATIONS_SUBSCRIPTION)
    await deliver_to_mailbox(ada, "Spam", mailbox_path="Junk")
    message = await deliver_to_mailbox(ada, "Hello")
    await wait_until(lambda: ada_follower.payloads)
    (notification,) = received_notifications(ada_follower)
    message_id = global_ids.encode("Message", message.message_id)
    assert (notification["type"], notification["title"], notification["text"]) == (
        "MESSAGE_RECEIVED",
        "Carol",
        "Hello",
    )
    assert (notification["message"], notification["hasMore"]) == (
        {"id": message_id, "subject": "Hello"},
        False,
    )
    await deliver_to_mailbox(bob, "His")
    await wait_until(lambda: bob_follower.payloads)
    assert [notification["text"] for notification in received_notifications(bob_follower)] == [
        "His"
    ]
    assert len(ada_follower.payloads) == 1
    if transport == "stream":
        assert ada_follower.event_ids == [notification["cursor"]]
    for follower in (ada_follower, bob_follower):
        await follower.unsubscribe()


async def test_subscription_continues_after_cursor_without_gaps(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    start = await current_cursor(ada)
    for n in range(3):
        await deliver_to_mailbox(ada, f"No. {n}")
    follower = await live_server.follow(ada, NOTIFICATIONS_SUBSCRIPTION, after=start)
    await wait_until(lambda: len(follower.payloads) == 3)
    notifications = received_notifications(follower)
    assert [(notification["text"], notification["hasMore"]) for notification in notifications] == [
        ("No. 0", True), ("No. 1", True), ("No. 2", False),
    ]  # fmt: skip
    await follower.unsubscribe()
    second_follower = await live_server.follow(
        ada, NOTIFICATIONS_SUBSCRIPTION, after=received_notifications(follower)[0]["cursor"]
    )
    await wait_until(lambda: len(second_follower.payloads) == 2)
    assert [notification["text"] for notification in received_notifications(second_follower)] == [
        "No. 1",
        "No. 2",
    ]
    await second_follower.unsubscribe()
    resync_follower = await live_server.follow(
        ada, NOTIFICATIONS_SUBSCRIPTION, after=stream_cursor(ada, 10_000)
    )
    await wait_until(lambda: resync_follower.payloads)
    assert [notification["type"] for notification in received_notifications(resync_follower)] == [
        "RESYNC"
    ]
    await resync_follower.unsubscribe()


async def test_cursor_of_another_user_is_refused(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    follower = await live_server.follow(
        ada, NOTIFICATIONS_SUBSCRIPTION, after=stream_cursor(bob, 1)
    )
    await wait_until(lambda: follower.payloads or follower.end_frame)
    assert "BAD_CURSOR" in str(follower.payloads or follower.end_frame)
    await follower.unsubscribe()


async def test_limits_sign_ins_and_bounces_are_notified(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    start = await current_cursor(ada)
    limit_facts = {
        "limitKind": "STORAGE", "level": "WARNING", "used": 81, "limit": 100, "refused": False,
        "resetsAt": None,
    }  # fmt: skip
    user_id = ada.user.id
    await record_journal_entry(ada, EventType.LIMIT_REACHED, [user_id], **limit_facts)
    await record_journal_entry(
        ada,
        EventType.LIMIT_REACHED,
        [user_id],
        **{**limit_facts, "level": "FULL", "refused": True},
    )
    for action, result in (
        (SecurityEventAction.SIGN_IN_ATTEMPTED, SecurityEventResult.SUCCESS),
        (SecurityEventAction.SIGN_IN_ATTEMPTED, SecurityEventResult.FAILURE),
        (SecurityEventAction.TOTP_SECRET_CREATED, SecurityEventResult.SUCCESS),
        (SecurityEventAction.PASSWORD_CHANGED, SecurityEventResult.SUCCESS),
    ):
        await security_log.log_event_separately(
            client_context(ada),
            NewSecurityEvent(action, user_id, result, protocol=AuthProtocol.IMAP),
        )
    await record_journal_entry(ada, EventType.SUBMISSION_SENT, [7], state="SENT")
    await record_journal_entry(ada, EventType.SUBMISSION_BOUNCED, [7], state="FAILED")
    follower = await live_server.follow(ada, NOTIFICATIONS_SUBSCRIPTION, after=start)
    await wait_until(lambda: len(follower.payloads) == 6)
    assert [
        (notification["type"], notification["title"])
        for notification in received_notifications(follower)
    ] == [
        ("LIMIT_REACHED", "Storage: 81 % used"),
        ("LIMIT_REACHED", "Storage: limit reached"),
        ("SIGN_IN_SUCCEEDED", "New sign-in"),
        ("SIGN_IN_FAILED", "A sign-in failed"),
        ("PASSWORD_CHANGED", "The password was changed"),
        ("SUBMISSION_BOUNCED", "A message could not be sent"),
    ]
    assert received_notifications(follower)[2]["text"] == "IMAP"
    await follower.unsubscribe()


async def test_notifications_are_loaded_with_constant_statements(
    live_server: LiveServer, ada: GraphQLClient, statements: list[str]
) -> None:
    text = NOTIFICATIONS_SUBSCRIPTION.replace("message { id subject }", "")

    async def count_statements(message_count: int) -> int:
        start = await current_cursor(ada)
        for n in range(message_count):
            await deliver_to_mailbox(ada, f"{message_count} {n}")
        del statements[:]
        follower = await live_server.follow(ada, text, after=start)
        await wait_until(lambda: len(follower.payloads) == message_count)
        await follower.unsubscribe()
        return len([statement for statement in statements if "FROM messages" in statement])

    assert await count_statements(1) == await count_statements(20) == 1
