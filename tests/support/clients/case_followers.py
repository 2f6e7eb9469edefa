"""Followers of the subscriptions in `subscription_cases`, and which events they received."""

import asyncio
from itertools import pairwise
from typing import Any

from tests.support.operations.subscription_cases import SubscriptionAccounts, SubscriptionCase
from tests.support.servers.live_server import LiveServer, SubscriptionFollower, wait_until
from tests.support.time_limits import HANG_SECONDS

REPEAT_SECONDS = 0.05  # between events of which a new subscription must get one


def received_labels(case: SubscriptionCase, *followers: SubscriptionFollower) -> list[str]:
    """The labels of the events in all results."""
    return [
        label
        for follower in followers
        for payload in follower.payloads
        if not payload.get("errors")
        for label in case.labels(payload["data"][case.field])
    ]


async def subscribe(
    live_server: LiveServer,
    case: SubscriptionCase,
    accounts: SubscriptionAccounts,
    after: Any = None,
) -> SubscriptionFollower:
    variables = {"after": after} if after else {}
    return await live_server.follow(case.client(accounts), case.document(accounts), **variables)


async def write_until_received(
    case: SubscriptionCase, accounts: SubscriptionAccounts, *followers: SubscriptionFollower
) -> list[str]:
    """Write events until each follower has received one of them; return all labels.

    No event tells that a subscription without `after` has begun.
    """
    written: list[str] = []
    async with asyncio.timeout(HANG_SECONDS):
        while not all(set(written) & set(received_labels(case, each)) for each in followers):
            written.append(await case.write(accounts))
            await asyncio.sleep(REPEAT_SECONDS)
    await wait_until(
        lambda: all(received_labels(case, each)[-1:] == written[-1:] for each in followers)
    )
    return written


def assert_last_received_once(
    case: SubscriptionCase, received: list[str], written: list[str]
) -> None:
    """Check that the last written events were received once and in order.

    Of states, which replace earlier ones, check that the last was received, and none twice.
    """
    if case.has_state:
        assert received[-1] == written[-1]
        assert all(earlier != later for earlier, later in pairwise(received)), received
    else:
        assert received
        assert received == written[-len(received) :]
