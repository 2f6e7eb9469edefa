"""Subscriptions to changes, and the events that they receive."""

import asyncio
from typing import Any

import pytest

from models.runtime.environment import Environment
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
USERS_SUBSCRIPTION = f"""subscription ($filter: UserFilter, $after: Cursor) {{
  userChanges(filter: $filter, after: $after) {CHANGE_BATCH_FIELDS} }}"""
EACH_TRANSPORT = pytest.mark.parametrize("transport", ["follow", "stream"])


def received_events(follower: SubscriptionFollower) -> list[Any]:
    """The events that a follower has received, of any change field."""
    return [event for batch in follower.results for event in batch["events"]]


async def open_subscription(
    live: LiveServer, method: str, client: GraphQLClient, query: str, **variables: Any
) -> SubscriptionFollower:
    """Open a subscription with a method of the server, and wait until it waits for events."""

    events_before = wakeup_events(client.environment)
    follower: SubscriptionFollower = await getattr(live, method)(client, query, **variables)

    def is_waiting() -> bool:
        new_events = wakeup_events(client.environment) - events_before
        return bool(new_events) and all(map(has_waiter, new_events))

    await wait_until(lambda: is_waiting() or follower.end_frame)
    return follower


def wakeup_events(environment: Environment) -> set[asyncio.Event]:
    """The events that wake the followers of streams and the workers."""
    return set().union(*environment.wakeups._events.values())  # noqa: SLF001


def has_waiter(event: asyncio.Event) -> bool:
    """True if a task waits for the event: it has read all that was there before."""
    return bool(event._waiters)  # noqa: SLF001


async def wait_for_followers(environment: Environment, count: int = 1) -> None:
    """Wait until this number of followers have read the journal and wait for new events."""
    await wait_until(lambda: sum(map(has_waiter, wakeup_events(environment))) >= count)
