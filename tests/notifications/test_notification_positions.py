"""Positions of followers of notifications, while the account has many other events."""

from typing import Any

import pytest

from models.events.event_types import EventType
from resolvers.notifications.live_notifications import EVENTS_PER_POSITION_UPDATE
from tests.conftest import GraphQLClient
from tests.support.clients.change_followers import open_subscription
from tests.support.operations.push_receivers import deliver_to_mailbox
from tests.support.servers.live_server import (
    LiveServer,
    SubscriptionFollower,
    record_journal_entry,
    stream_cursor,
    wait_until,
)

NOTIFICATIONS = """subscription ($after: Cursor) {
  notifications(after: $after) { type text cursor hasMore } }"""
OTHER_EVENTS = 11_000  # more than a client can be behind (`subscriptions.maxLagEvents`)
EVENTS_PER_ENTRY = 1000


def texts(follower: SubscriptionFollower) -> list[Any]:
    """The subject of each notification of a message; the type of others."""
    return [
        notification["text"] if notification["type"] == "MESSAGE_RECEIVED" else notification["type"]
        for notification in follower.results
    ]


async def record_other_events(client: GraphQLClient) -> int:
    """Record events that cause no notification; return the last position."""
    last_position = 0
    for _ in range(OTHER_EVENTS // EVENTS_PER_ENTRY):
        last_position = await record_journal_entry(
            client, EventType.TASK_UPDATED, [1] * EVENTS_PER_ENTRY
        )
    return last_position


@pytest.mark.parametrize("is_started_by_notification", [True, False])
async def test_event_stream_resumes_after_many_other_events(
    live_server: LiveServer, ada: GraphQLClient, is_started_by_notification: bool
) -> None:
    follower = await open_subscription(live_server, "stream", ada, NOTIFICATIONS)
    if is_started_by_notification:
        await deliver_to_mailbox(ada, "First")
        await wait_until(lambda: follower.payloads)
    last_position = await record_other_events(ada)
    await wait_until(lambda: follower.last_event_id == stream_cursor(ada, last_position))
    (group,) = live_server.groups
    assert group.positions == {ada.user.id: last_position}
    assert [member.delivered_positions for member in group.members] == [group.positions]
    await follower.unsubscribe()
    await deliver_to_mailbox(ada, "Missed")
    resumed = await live_server.stream(ada, NOTIFICATIONS, last_event_id=follower.last_event_id)
    await wait_until(lambda: resumed.payloads)
    assert texts(follower) + texts(resumed) == ["First"] * is_started_by_notification + ["Missed"]
    await resumed.unsubscribe()


@pytest.mark.parametrize("transport", ["follow", "stream"])
async def test_cursor_of_the_last_notification_stays_valid(
    live_server: LiveServer, ada: GraphQLClient, transport: str
) -> None:
    follower = await open_subscription(live_server, transport, ada, NOTIFICATIONS)
    await deliver_to_mailbox(ada, "First")
    await wait_until(lambda: follower.payloads)
    await record_other_events(ada)
    await follower.unsubscribe()
    after = follower.results[0]["cursor"]
    resumed = await getattr(live_server, transport)(ada, NOTIFICATIONS, after=after)
    await deliver_to_mailbox(ada, "Second")
    await wait_until(lambda: resumed.payloads)
    assert texts(resumed) == ["Second"]
    await record_other_events(ada)
    await resumed.unsubscribe()
    missing = await getattr(live_server, transport)(ada, NOTIFICATIONS, after=after)
    await wait_until(lambda: missing.payloads)
    assert texts(missing) == ["RESYNC"]  # a notification was missed more than 10,000 events ago
    await missing.unsubscribe()


async def test_positions_are_not_sent_for_each_other_event(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    follower = await open_subscription(live_server, "stream", ada, NOTIFICATIONS)
    assert follower.id_count == 1  # of the start
    update_count = 3
    for _ in range(EVENTS_PER_POSITION_UPDATE * update_count // 10):
        await record_journal_entry(ada, EventType.TASK_UPDATED, [1] * 10)
    await deliver_to_mailbox(ada, "Last")
    await wait_until(lambda: follower.payloads)
    assert texts(follower) == ["Last"]
    assert follower.id_count <= update_count + 3  # of the start, the first event and the message
    await follower.unsubscribe()
