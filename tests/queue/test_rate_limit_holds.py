"""Rate limit holds: who is held, by which limit, and reset."""

import pytest

from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.quota_accounts import try_send_message
from tests.support.operations.quarantine_operations import set_options
from tests.support.queue.rate_limit_operations import (
    HOLDS,
    UNLIMITED,
    domains_input,
    list_holds,
    reset_rate,
    send_until_refused,
    set_rate_limit,
    users_input,
)
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_rate_limit_holds_show_user_and_source(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    environment = root.environment
    await set_rate_limit(root, 1, **users_input(ada))
    await set_rate_limit(root, 3, "DAY", **domains_input("example.org"))
    await send_until_refused(ada)
    assert await list_holds(root) == [("ada", "USER", None)]
    clock.tick(seconds=5)
    await send_until_refused(bob)
    assert await list_holds(root) == [("bob", "DOMAIN", "example.org"), ("ada", "USER", None)]
    assert await list_holds(root, orderBy="HELD_AT_ASC") == (await list_holds(root))[::-1]
    (node, _) = (await root(HOLDS))["rateLimitHolds"]["nodes"]
    assert [node[name] for name in ("messages", "per", "heldAt", "resetsAt")] == [
        3, "DAY", "2030-01-01T00:00:05Z", "2030-01-02T00:00:00Z"
    ]  # fmt: skip
    assert await list_holds(root, filter=users_input(ada)) == [("ada", "USER", None)]
    clock.tick(hours=1)
    assert await list_holds(root) == [("bob", "DOMAIN", "example.org")]
    set_options(environment, limits_send_rate_platform="1/DAY")
    await set_rate_limit(root, None, **domains_input("example.org"))
    assert await list_holds(root) == []
    await send_until_refused(ada)
    assert await list_holds(root) == [("ada", "PLATFORM", None)]
    page = (await root(HOLDS, first=0))["rateLimitHolds"]
    assert (page["nodes"], page["totalCount"]) == ([], 1)


async def test_reset_ends_the_hold(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    set_options(root.environment, limits_send_rate_platform="5/DAY")
    await set_rate_limit(root, 1, **users_input(ada, bob))
    await send_until_refused(ada)
    await send_until_refused(bob)
    ((limit,), errors) = await reset_rate(root, **users_input(ada))
    assert (limit["used"], limit["resetsAt"], errors) == (0, None, [])
    assert await list_holds(root) == [("bob", "USER", None)]
    assert await try_send_message(ada, "a@example.net") == []
    await set_rate_limit(root, UNLIMITED, **users_input(ada, bob))
    await set_rate_limit(root, 1, "DAY", **domains_input("example.org"))
    await send_until_refused(ada)
    assert await list_holds(root) == [("ada", "DOMAIN", "example.org")]
    assert (await reset_rate(root, **domains_input("example.org")))[1] == []
    assert await list_holds(root) == []
    await set_rate_limit(root, None, **domains_input("example.org"))
    await send_until_refused(ada)
    assert await list_holds(root) == [("ada", "PLATFORM", None)]
    assert await reset_rate(root, includePlatform=True) == ([], [])
    assert await try_send_message(ada, "a@example.net") == []
    assert await select_rows(root.environment, "SELECT used FROM rate_windows WHERE id = 0") == [
        (1,)
    ]
