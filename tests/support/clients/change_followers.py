"""Subscriptions to changes, and the events that they receive."""

from typing import Any

import pytest

from models.events.wakeups import FollowerWakeup
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
  ... on UserChange { nodeId node { ... on User { username } ... on Domain { name } } } } }"""
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
    """Open a subscription with a method of the server, and wait until it has started.

    It has started when it has read its position, or has joined a group that has.
    """
    wakeups_before = all_wakeups(client.environment)
    group_count, subscriber_count = len(live.groups), live.subscriber_count
    follower: SubscriptionFollower = await getattr(live, method)(client, query, **variables)

    def has_started() -> bool:
        new_wakeups = all_wakeups(client.environment) - wakeups_before
        if new_wakeups:
            return all(wakeup.started.is_set() for wakeup in new_wakeups)
        return len(live.groups) == group_count and live.subscriber_count > subscriber_count

    await wait_until(lambda: has_started() or follower.end_frame)
    return follower


def all_wakeups(environment: Environment) -> set[FollowerWakeup]:
    """The wake-ups of the followers and workers in this process."""
    return environment.wakeups.follower_wakeups | environment.wakeups.growth_events


async def wait_for_followers(environment: Environment, count: int = 1) -> None:
    """Wait until this number of followers have read the journal and wait for new events.

    After a write, such a follower has also read what was written.
    """
    await wait_until(lambda: idle_follower_count(environment) >= count)


def idle_follower_count(environment: Environment) -> int:
    """The number of followers of single streams that have read all changes."""
    return sum(wakeup.is_idle for wakeup in environment.wakeups.follower_wakeups)
