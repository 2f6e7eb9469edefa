"""Resetting usage counters: selection, events and permissions."""

from typing import Any

import pytest
from sqlalchemy import insert, select, update
from sqlmodel import col

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Change
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role
from models.users.tables import Usage, UsageKind, User
from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.quota_accounts import (
    load_limit_events,
    load_recipient_refusal,
    set_user_limits,
    try_send_message,
)
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
    user_global_id,
)
from tests.support.case_loop import each_case
from tests.support.stores.counter_check import (
    assert_store_consistent,
    load_stream_position,
    select_rows,
)

USERS_WITH_USAGE = """users { username limits { recipientsPerDay { used resetsAt }
  receivedPerHour { used resetsAt } } }"""
UNUSED = {"used": 0, "resetsAt": None}


async def reset_usage(
    client: GraphQLClient, *targets: GraphQLClient | int, **arguments: Any
) -> tuple[Any, list[Any]]:
    users = {"ids": [user_global_id(target) for target in targets]}
    payload = await execute_mutation(
        client, "userUsageReset", USERS_WITH_USAGE, **{"users": users, **arguments}
    )
    return payload["users"], payload["errors"]


async def load_counters(environment: Environment) -> Any:
    """Return all usage counters by user."""
    sent = await select_rows(environment, "SELECT user_id, kind, used FROM usages ORDER BY user_id")
    received = await select_rows(
        environment, "SELECT id, received, received_until FROM users ORDER BY id"
    )
    return sent, received


async def use_up_limits(client: GraphQLClient) -> GraphQLClient:
    """Use up both limits of the client, and check the limit events."""
    await set_user_limits(client, recipients_per_day=2, received_per_hour=1)
    await deliver_to(client, "Hello")
    await try_send_message(client, "a@example.net", "b@example.net")
    assert await load_recipient_refusal(client) == "RateLimited"
    assert await try_send_message(client, "c@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(client.environment)
    assert len(await load_limit_events(client)) == 4
    return client


@pytest.fixture
async def busy(ada: GraphQLClient) -> GraphQLClient:
    return await use_up_limits(ada)


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [(None, (0, 0)), (["RECIPIENTS", "RECEIVED"], (0, 0)), (["RECIPIENTS"], (0, 1)),
     (["RECEIVED", "RECEIVED"], (2, 0))],
)  # fmt: skip
async def test_user_usage_reset_resets_the_selected_counters(
    busy: GraphQLClient, root: GraphQLClient, kinds: list[str] | None, expected: tuple[int, int]
) -> None:
    arguments = {} if kinds is None else {"kinds": kinds}
    ((user,), errors) = await reset_usage(root, busy, **arguments)
    limits = user["limits"]
    assert (errors, (limits["recipientsPerDay"]["used"], limits["receivedPerHour"]["used"])) == (
        [],
        expected,
    )
    assert [limits[name] == UNUSED for name in ("recipientsPerDay", "receivedPerHour")] == [
        n == 0 for n in expected
    ]
    assert (await load_recipient_refusal(busy) is None) is (expected[1] == 0)
    assert (await try_send_message(busy, "c@example.net") == []) is (expected[0] == 0)
    await wait_for_background_tasks(busy.environment)


async def test_limit_reached_after_a_reset_is_reported_again(
    busy: GraphQLClient, root: GraphQLClient
) -> None:
    await reset_usage(root, busy)
    await deliver_to(busy, "Again")
    await try_send_message(busy, "a@example.net", "b@example.net")
    await load_recipient_refusal(busy)
    await try_send_message(busy, "c@example.net")
    await wait_for_background_tasks(busy.environment)
    assert len(await load_limit_events(busy)) == 8


async def test_changed_limit_reports_refusals_again(
    busy: GraphQLClient, root: GraphQLClient
) -> None:
    arguments: Any = {
        "users": {"ids": [user_global_id(busy)]},
        "set": {"limits": {"receivedPerHour": 2, "recipientsPerDay": 1}},
    }
    assert (await execute_mutation(root, "userUpdate", **arguments))["errors"] == []
    await deliver_to(busy, "Again")
    await deliver_to(busy, "And again")
    await try_send_message(busy, "a@example.net")
    assert (await load_recipient_refusal(busy), await try_send_message(busy, "b@example.net")) == (
        "RateLimited", ["RATE_LIMITED"]
    )  # fmt: skip
    await wait_for_background_tasks(busy.environment)
    assert [
        (limit, refused) for limit, _, _, _, refused in (await load_limit_events(busy))[4:]
    ] == [("RECEIVED", False), ("RECIPIENTS", False), ("RECEIVED", True), ("RECIPIENTS", True)]


async def test_reset_is_journaled_for_user_and_domain_and_logged(
    busy: GraphQLClient, root: GraphQLClient
) -> None:
    environment, domain = busy.environment, busy.user.domain_id or 0
    positions = {
        key: await load_stream_position(environment, key)
        for key in (busy.user.id, domain, PLATFORM)
    }
    options = {"reason": "a campaign"}
    assert (await reset_usage(root, busy, options=options))[1] == []
    table = core_table(Change)
    for stream, position in positions.items():
        query = table.select().where(table.c.stream_id == stream, table.c.last > position)
        changes = [
            (row.type, row.ids, row.facts["changed"], row.facts["reason"])
            for row in await environment.database.read(query)
        ]
        expected = [(EventType.USER_UPDATED, [busy.user.id], [["limits"]], "a campaign")]
        assert changes == (expected if stream else [])
    document = """{ auditLog(filter: {mutation: "userUsageReset"}) { nodes {
      mutation reason before after
      target { ... on User { username } } } } }"""
    (entry,) = (await root(document))["auditLog"]["nodes"]
    assert entry == {
        "mutation": "userUsageReset",
        "reason": "a campaign",
        "before": {"limits": {"recipients": 2, "received": 1}},
        "after": {"limits": {"recipients": 0, "received": 0}},
        "target": {"username": "ada"},
    }
    # A reset that changes nothing is not journaled.
    position = await load_stream_position(environment, busy.user.id)
    assert (await reset_usage(root, busy))[1] == []
    assert await load_stream_position(environment, busy.user.id) == position


async def test_reset_of_expired_counters_is_not_journaled(
    busy: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    clock.tick(days=1)
    position = await load_stream_position(busy.environment, busy.user.id)
    ((user,), errors) = await reset_usage(root, busy)
    assert (user["limits"], errors) == (
        {"recipientsPerDay": UNUSED, "receivedPerHour": UNUSED},
        [],
    )
    assert await load_stream_position(busy.environment, busy.user.id) == position


async def test_reset_of_many_users_runs_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    environment = root.environment
    user_ids = [(await make_user(environment, f"n{number}")).id for number in range(21)]
    window_end = environment.now().replace(hour=1)

    async def insert_usages() -> None:
        async with environment.write_session() as session:
            connection = await session.connection()
            values = {"kind": UsageKind.RECIPIENTS, "used": 7, "until": window_end}
            await connection.execute(
                insert(Usage), [{"user_id": user_id, **values} for user_id in user_ids]
            )
            selected = update(User).where(col(User.id).in_(user_ids[::2]))
            await connection.execute(selected.values(received=3, received_until=window_end))

    async def count_statements(selected: list[int]) -> int:
        del statements[:]
        users, errors = await reset_usage(root, *selected)
        assert (len(users), errors) == (len(selected), [])
        return len([statement for statement in statements if "api_keys" not in statement])

    await insert_usages()
    count_for_one = await count_statements(user_ids[:1])
    count_for_many = await count_statements(user_ids[1:])
    # one statement for users with both counters, and one for users with one
    assert count_for_many <= count_for_one + 1
    assert (await load_counters(environment))[0] == []
    received_rows = await select_rows(environment, "SELECT count(*) FROM users WHERE received > 0")
    assert received_rows == [(0,)]


async def test_invalid_user_usage_reset_is_refused(
    busy: GraphQLClient, root: GraphQLClient
) -> None:
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({"kinds": []}, "VALIDATION", ["kinds"]),
        ({"users": {"ids": [global_ids.encode("User", 7)]}}, "NOT_FOUND", ["users", "ids", "0"]),
        ({"users": {"usernames": ["ada", "nobody"]}}, "NOT_FOUND", ["users", "usernames", "1"]),
        ({"users": {}}, "VALIDATION", ["users"]),
    ]
    for case in each_case(cases):
        with case as (arguments, code, path):
            counters_before = await load_counters(busy.environment)
            users, errors = await reset_usage(root, busy, **arguments)
            assert (users, [(error["code"], error["path"]) for error in errors]) == (
                [],
                [(code, path)],
            )
            assert await load_counters(busy.environment) == counters_before


async def test_user_usage_reset_needs_domain_admin_with_permission(
    busy: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    counters_before = await load_counters(busy.environment)

    async def try_reset(client: GraphQLClient, *targets: GraphQLClient) -> list[str | None]:
        """Return the required rights, or the error codes."""
        _, errors = await reset_usage(client, *targets)
        return [error.get("requires", error["code"]) for error in errors]

    assert await try_reset(bob, busy) == ["DOMAIN_ADMIN"]
    assert await try_reset(busy, busy) == ["DOMAIN_ADMIN"]  # users can't reset their own counters
    admin_without_permission = await make_admin_of_domain(
        root, AdminPermission.SPAM_POLICY, name="bare"
    )
    assert await try_reset(admin_without_permission, busy) == ["RATE_LIMITS"]
    await try_create_user(root, username="x", address="x@afar.example")
    other_admin = await make_admin_of_domain(
        root, AdminPermission.RATE_LIMITS, domain="afar.example", name="far"
    )
    assert await try_reset(other_admin, busy) == ["NOT_FOUND"]
    await use_up_limits(other_admin)  # lives in example.org and administers another domain
    assert await try_reset(other_admin, other_admin) == ["ADMIN"]
    admin = await make_client(root.environment, root.http, "boss", role=Role.ADMIN)
    domain_admin = await make_domain_admin(
        root.environment, root.http, "near", [AdminPermission.RATE_LIMITS]
    )
    assert await try_reset(domain_admin, busy, admin) == ["ADMIN"]
    counters_after = await load_counters(busy.environment)
    own_ids = {busy.user.id}
    assert [row for part in counters_after for row in part if row[0] in own_ids] == [
        row for part in counters_before for row in part if row[0] in own_ids
    ]
    assert await try_reset(domain_admin, busy) == []
    query = select(col(User.received), col(User.received_until)).where(col(User.id) == busy.user.id)
    assert [tuple(row) for row in await busy.environment.database.read(query)] == [(0, None)]
    assert await try_reset(admin, admin, other_admin) == []
    await assert_store_consistent(busy.environment)
