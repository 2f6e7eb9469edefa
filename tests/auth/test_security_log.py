"""The security log: entries, folding, actors, retention and live events."""

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.auth.security_log import SECURITY_EVENT_TYPES, SecurityEventAction
from models.events.journal import Change
from models.runtime.environment import CommittedOptions, Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication, security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_user
from tests.support.accounts.security_events import (
    anonymous_context,
    failed_sign_in_event,
    load_journaled_event_ids,
    load_security_events,
    log_events,
)
from tests.support.servers.live_server import LiveServer, wait_until


async def test_equal_events_share_one_row_for_six_hours(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    # A window of six full hours of the day ends soon. It must not split the row.
    clock.tick(hours=5, minutes=59)
    for _ in range(3):
        await log_events(ada, failed_sign_in_event(ada.user.id))
        clock.tick(hours=2)
    (row,) = await load_security_events(ada.environment)
    assert (row.count, row.last_at - row.created_at) == (3, timedelta(hours=4))
    await log_events(ada, failed_sign_in_event(ada.user.id))
    await log_events(ada, failed_sign_in_event(ada.user.id))
    assert [row.count for row in await load_security_events(ada.environment)] == [3, 2]


@pytest.mark.parametrize(
    "changes",
    [
        {"action": "TOTP_CHECKED"}, {"result": "SUCCESS"}, {"protocol": "IMAP"},
        {"target": "phone"}, {"user_id": None},
    ],
)  # fmt: skip
async def test_different_events_have_separate_rows(
    ada: GraphQLClient, changes: dict[str, Any]
) -> None:
    await log_events(
        ada,
        failed_sign_in_event(ada.user.id),
        replace(failed_sign_in_event(ada.user.id), **changes),
    )
    assert [row.count for row in await load_security_events(ada.environment)] == [1, 1]


async def test_row_keeps_values_of_its_last_event(ada: GraphQLClient, clock: ManualClock) -> None:
    for name in ("phone", "laptop"):
        ctx = anonymous_context(ada.environment, session_id=name)
        await security_log.log_event_separately(
            ctx, failed_sign_in_event(ada.user.id, detail={"client": name})
        )
        clock.tick(minutes=5)
    (row,) = await load_security_events(ada.environment)
    assert (row.session_id, row.detail) == ("laptop", {"client": "laptop"})
    assert row.last_at == row.created_at + timedelta(minutes=5)


async def test_only_failures_of_one_ipv6_network_share_a_row(
    ada: GraphQLClient,
) -> None:
    for n in range(1, 6):
        await log_events(
            ada, failed_sign_in_event(ada.user.id), failed_sign_in_event(None), ip=f"2001:db8::{n}"
        )
        await log_events(
            ada,
            NewSecurityEvent(SecurityEventAction.SIGN_IN_ATTEMPTED, ada.user.id),
            ip=f"2001:db8::{n}",
        )
    event_rows = await load_security_events(ada.environment)
    assert sorted(row.count for row in event_rows) == [1] * 5 + [5, 5]
    assert {row.ip for row in event_rows if row.count == 5} == {"2001:db8::5"}
    await log_events(ada, failed_sign_in_event(None), failed_sign_in_event(None), ip="192.0.2.1")
    await log_events(ada, failed_sign_in_event(None), ip="192.0.2.2")
    assert len(await load_security_events(ada.environment)) == len(event_rows) + 2


async def test_concurrent_failures_are_all_counted(ada: GraphQLClient) -> None:
    await asyncio.gather(*(log_events(ada, failed_sign_in_event(ada.user.id)) for _ in range(20)))
    (row,) = await load_security_events(ada.environment)
    assert row.count == 20
    assert await load_journaled_event_ids(ada) == [row.id]


async def test_many_failures_add_few_journal_entries(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for _ in range(120):
        await log_events(ada, failed_sign_in_event(ada.user.id))
        clock.tick(seconds=1)
    (row,) = await load_security_events(ada.environment)
    assert row.count == 120
    # at the first failure and a minute later
    assert await load_journaled_event_ids(ada) == [row.id] * 2


async def test_counted_failure_takes_no_lock_of_the_user(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await log_events(ada, failed_sign_in_event(ada.user.id))
    del statements[:]
    await log_events(ada, failed_sign_in_event(ada.user.id))
    assert not [statement for statement in statements if "streams" in statement]
    assert len(statements) == 3  # select, split, increment


async def test_rolled_back_transaction_leaves_no_event(ada: GraphQLClient) -> None:
    ctx = anonymous_context(ada.environment)
    async with ctx.combined_transaction(commit=False), ctx.write_session(ada.user.id) as session:
        assert await security_log.log_event_and_queue_notice(
            ctx, session, failed_sign_in_event(ada.user.id)
        )
    assert await load_security_events(ada.environment) == []
    assert await load_journaled_event_ids(ada) == []


async def test_many_events_are_written_in_constant_statements(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str]
) -> None:
    users = [await make_user(root.environment, f"u{n}") for n in range(20)]
    viewer = Viewer(ada.user.id, Role.ADMIN, frozenset({Scope.FULL}))
    statement_counts = []
    for batch in (users[:1], users[1:]):
        del statements[:]
        ctx = Context(root.environment, viewer)
        user_ids = [user.id for user in batch]
        async with ctx.write_session(*user_ids) as session:
            new_events = [
                NewSecurityEvent(SecurityEventAction.PASSWORD_CHANGED, user_id)
                for user_id in [*user_ids, user_ids[0]]
            ]
            event_ids = await security_log.insert_security_events_and_queue_notices(
                ctx, session, new_events
            )
            assert event_ids[0] == event_ids[-1]
            assert len(set(event_ids)) == len(batch)
        statement_counts.append(len(statements))
    # the second journaled event needs one statement more
    assert (
        statement_counts[0] == statement_counts[1] or statement_counts[0] < statement_counts[1] < 10
    )
    assert [row.count for row in await load_security_events(root.environment)].count(2) == 2
    assert {row.by for row in await load_security_events(root.environment)} == {"ada"}


async def test_event_of_unknown_user_is_not_written(environment: Environment) -> None:
    await security_log.log_event_separately(
        anonymous_context(environment), failed_sign_in_event(environment.new_id())
    )
    assert await load_security_events(environment) == []


async def test_background_events_are_written_in_few_transactions(
    ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    environment, unknown_user_id = ada.environment, ada.environment.new_id()
    security_log.log_event_in_background(
        anonymous_context(environment), failed_sign_in_event(bob.user.id)
    )
    await authentication.wait_for_background_tasks(environment)
    del statements[:]
    for n in range(30):
        ctx = anonymous_context(environment, f"10.0.{n}.1", origin=f"page {n % 2}", reason="why")
        security_log.log_event_in_background(
            ctx, failed_sign_in_event([None, ada.user.id, bob.user.id][n % 3])
        )
    await authentication.wait_for_background_tasks(environment)
    assert len(statements) < 10
    rows = await load_security_events(environment)
    assert Counter(row.user_id for row in rows) == {None: 10, ada.user.id: 10, bob.user.id: 11}
    assert {row.id for row in rows if row.user_id == ada.user.id} == set(
        await load_journaled_event_ids(ada)
    )
    query = select(col(Change.origin), col(Change.facts)).where(
        col(Change.stream_id) == ada.user.id, col(Change.type).in_(SECURITY_EVENT_TYPES)
    )
    changes = await environment.database.read(query)
    assert {(row.origin, row.facts["reason"]) for row in changes} == {
        ("page 0", "why"),
        ("page 1", "why"),
    }
    security_log.log_event_in_background(
        anonymous_context(environment), failed_sign_in_event(unknown_user_id)
    )
    security_log.log_event_in_background(anonymous_context(environment), failed_sign_in_event(None))
    security_log.log_event_in_background(anonymous_context(environment), failed_sign_in_event(None))
    await authentication.wait_for_background_tasks(environment)
    rows = await load_security_events(environment)
    assert [row.count for row in rows if row.ip == "192.0.2.7"] == [1, 2]
    assert unknown_user_id not in {row.user_id for row in rows}


async def test_events_are_deleted_with_their_user(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await log_events(
        ada,
        failed_sign_in_event(ada.user.id),
        failed_sign_in_event(bob.user.id),
        failed_sign_in_event(None),
    )
    async with ada.environment.write_session() as session:
        await session.exec(delete(User).where(col(User.id) == ada.user.id))
    assert [row.user_id for row in await load_security_events(ada.environment)] == [
        bob.user.id,
        None,
    ]


async def test_log_hides_secrets(ada: GraphQLClient) -> None:
    detail = {"newPassword": "hunter2", "seed": "JBSWY3DP", "tokenId": 7, "name": "phone"}
    await log_events(ada, failed_sign_in_event(ada.user.id, detail=detail))
    (row,) = await load_security_events(ada.environment)
    hidden = {"newPassword": "(hidden)", "seed": "(hidden)"}
    assert row.detail == {**detail, **hidden}


async def load_actor_of_event(
    environment: Environment, viewer: Viewer, event: NewSecurityEvent
) -> str | None:
    await security_log.log_event_separately(Context(environment, viewer), event)
    event_rows = await load_security_events(environment)
    return None if not event_rows else event_rows[-1].by


async def test_event_names_its_actor_if_it_is_not_the_user(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    event = NewSecurityEvent(SecurityEventAction.PASSWORD_CHANGED, ada.user.id)
    await make_api_key(environment, "panel", role=Role.ADMIN)
    query = text("SELECT id FROM api_keys WHERE name = 'panel'")
    async with environment.database.engine.connect() as connection:
        panel_key_id = (await connection.execute(query)).scalar_one()
    expected = {
        Viewer(): None,
        Viewer(ada.user.id, Role.USER): None,
        Viewer(pending_user_id=ada.user.id): None,
        Viewer(bob.user.id, Role.ADMIN): "bob",
        Viewer(ada.user.id, Role.USER, actor_id=bob.user.id): "bob",
        Viewer(bob.user.id, Role.ADMIN, api_key_id=panel_key_id): "bob",
        Viewer(0, Role.ADMIN, api_key_id=panel_key_id): "key panel",
        Viewer(0, Role.ADMIN, api_key_id=77): "key 77",
        Viewer(0, Role.ROOT): "operator",
        Viewer(66, Role.ADMIN): "66",
    }
    for viewer, actor in expected.items():
        clock.tick(hours=7)
        assert await load_actor_of_event(environment, viewer, event) == actor, viewer
    clock.tick(hours=7)
    application_viewer = Viewer(0, Role.ADMIN, api_key_id=panel_key_id)
    assert (
        await load_actor_of_event(
            environment,
            application_viewer,
            NewSecurityEvent(SecurityEventAction.SIGN_IN_ATTEMPTED, ada.user.id),
        )
        is None
    )


async def test_events_are_deleted_after_the_retention_setting(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await log_events(ada, failed_sign_in_event(ada.user.id), failed_sign_in_event(None))
    clock.tick(days=29)
    await log_events(ada, failed_sign_in_event(ada.user.id))
    round_result = await housekeeping.run_housekeeping_round(ada.environment, sweep=False)
    assert (round_result.events, len(await load_security_events(ada.environment))) == (0, 3)
    clock.tick(days=1)
    round_result = await housekeeping.run_housekeeping_round(ada.environment, sweep=False)
    assert (round_result.events, len(await load_security_events(ada.environment))) == (2, 1)


async def test_no_event_is_written_if_retention_is_zero(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await log_events(ada, failed_sign_in_event(ada.user.id))
    ada.environment.use_options_unless_outdated(
        CommittedOptions(
            replace(ada.environment.options, security_log_retention=timedelta(0)), 10**6
        )
    )
    ctx = anonymous_context(ada.environment)
    async with ctx.write_session(ada.user.id) as session:
        assert (
            await security_log.log_event_and_queue_notice(
                ctx, session, NewSecurityEvent(SecurityEventAction.TOTP_ENABLED, ada.user.id)
            )
            == 0
        )
    await log_events(ada, failed_sign_in_event(None))
    assert len(await load_security_events(ada.environment)) == 1
    clock.tick(seconds=1)
    assert (await housekeeping.run_housekeeping_round(ada.environment, sweep=False)).events == 1


EVENT_SUBSCRIPTION = """subscription { changes(types: [SIGN_IN_FAILED, TOTP_ENABLED]) { events {
  type ... on UserChange { nodeId node {
    ... on SecurityEvent { action result ip count } } } } } }"""


async def test_subscribers_get_new_and_counted_events(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    ada_socket = await live_server.follow(ada, EVENT_SUBSCRIPTION)
    bob_socket = await live_server.follow(bob, EVENT_SUBSCRIPTION)
    await wait_until(lambda: live_server.subscriber_count == 2)
    await log_events(ada, failed_sign_in_event(ada.user.id))
    await wait_until(lambda: ada_socket.payloads)
    (first_event,) = ada_socket.events
    fields = {"action": "SIGN_IN_ATTEMPTED", "result": "FAILURE", "ip": "192.0.2.7"}
    assert first_event["node"] == {**fields, "count": 1}
    (row,) = await load_security_events(ada.environment)
    assert first_event["nodeId"] == global_ids.encode("SecurityEvent", row.id)
    clock.tick(seconds=61)
    await log_events(ada, failed_sign_in_event(ada.user.id))
    await wait_until(lambda: len(ada_socket.events) == 2)
    assert ada_socket.events[1]["node"] == {**fields, "count": 2}
    await log_events(bob, NewSecurityEvent(SecurityEventAction.TOTP_ENABLED, bob.user.id))
    await wait_until(lambda: bob_socket.payloads)
    assert [item["node"]["action"] for item in bob_socket.events] == ["TOTP_ENABLED"]
    assert len(ada_socket.events) == 2
    for item in (ada_socket, bob_socket):
        await item.unsubscribe()
