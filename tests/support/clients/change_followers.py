"""Subscriptions to changes, and the events that they receive."""

import asyncio
from typing import Any

from tests.conftest import GraphQLClient
from tests.support.servers.live_server import LiveServer, SubscriptionFollower, wait_until

CHANGES_SUBSCRIPTION = """
subscription ($after: Cursor) { changes(after: $after) { events {
  type at cursor ... on MessageChange { message { subject } } ... on MailboxChange { path }
} } }
"""
CHANGE_BATCH_FIELDS = """{ cursor hasMore events { __typename type cursor origin
  ... on MessageChange { uid message { subject } } ... on MailboxChange { path }
  ... on AccountChange { nodeId node { ... on User { username } ... on Domain { name } } } } }"""
DOMAIN_CHANGES_SUBSCRIPTION = f"""subscription ($domain: DomainRef, $after: Cursor) {{
  domainChanges(domain: $domain, after: $after) {CHANGE_BATCH_FIELDS} }}"""


def received_events(follower: SubscriptionFollower) -> list[Any]:
    """The events that a follower has received, of any change field."""
    return [event for batch in follower.results for event in batch["events"]]


async def open_subscription(
    live: LiveServer, method: str, client: GraphQLClient, query: str, **variables: Any
) -> SubscriptionFollower:
    """Open a subscription with a method of the server, and wait until it waits for events."""

    def subscriber_count() -> int:
        return sum(map(len, client.environment.wakeups._events.values()))  # noqa: SLF001

    count_before = subscriber_count()
    follower: SubscriptionFollower = await getattr(live, method)(client, query, **variables)
    await wait_until(lambda: subscriber_count() > count_before or follower.end_frame)
    await asyncio.sleep(0.05)  # until the subscription has read its position in the journal
    return follower
