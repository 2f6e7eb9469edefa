"""The security log: what is written, how it folds, whose doing it was, and what it tells."""

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
from models.events.journal import Change, ChangeKind
from models.runtime.environment import CommittedOptions, Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication, security_log
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, make_key, make_user
from tests.support.accounts.security_events import events, failed, noted, stranger, told
from tests.support.servers.live_server import House, until

# what is written, and how it folds


async def test_equal_events_are_one_row_for_six_hours_from_the_first(
    ada: Client, clock: Clock
) -> None:
    clock.tick(hours=5, minutes=59)  # six hours of the clock end soon: that is no end of ours
    for _ in range(3):
        await noted(ada, failed(ada.user.id))
        clock.tick(hours=2)
    (row,) = await events(ada.world)
    assert (row.count, row.last_at - row.created_at) == (3, timedelta(hours=4))
    await noted(ada, failed(ada.user.id))
    await noted(ada, failed(ada.user.id))
    assert [row.count for row in await events(ada.world)] == [3, 2]


@pytest.mark.parametrize(
    "other",
    [
        {"action": "totp check"}, {"result": "success"}, {"protocol": "IMAP"}, {"target": "phone"},
        {"user_id": None},
    ],
)  # fmt: skip
async def test_what_differs_is_another_row(ada: Client, other: dict[str, Any]) -> None:
    await noted(ada, failed(ada.user.id), replace(failed(ada.user.id), **other))
    assert [row.count for row in await events(ada.world)] == [1, 1]


async def test_a_row_keeps_what_the_last_of_its_events_said(ada: Client, clock: Clock) -> None:
    for name in ("phone", "laptop"):
        ctx = stranger(ada.world, session_id=name)
        await security_log.log_event_separately(ctx, failed(ada.user.id, detail={"client": name}))
        clock.tick(minutes=5)
    (row,) = await events(ada.world)
    assert (row.session_id, row.detail) == ("laptop", {"client": "laptop"})
    assert row.last_at == row.created_at + timedelta(minutes=5)


async def test_failures_from_one_neighbour_of_ipv6_are_one_row_and_successes_are_not(
    ada: Client,
) -> None:
    for n in range(1, 6):
        await noted(ada, failed(ada.user.id), failed(None), ip=f"2001:db8::{n}")
        await noted(ada, NewSecurityEvent("authenticate", ada.user.id), ip=f"2001:db8::{n}")
    found = await events(ada.world)
    assert sorted(row.count for row in found) == [1] * 5 + [5, 5]
    assert {row.ip for row in found if row.count == 5} == {"2001:db8::5"}
    await noted(ada, failed(None), failed(None), ip="192.0.2.1")
    await noted(ada, failed(None), ip="192.0.2.2")
    assert len(await events(ada.world)) == len(found) + 2


async def test_many_failures_at_once_are_counted_one_by_one(ada: Client) -> None:
    await asyncio.gather(*(noted(ada, failed(ada.user.id)) for _ in range(20)))
    (row,) = await events(ada.world)
    assert row.count == 20
    assert await told(ada) == [row.id]


async def test_a_flood_does_not_grow_the_journal(ada: Client, clock: Clock) -> None:
    for _ in range(120):
        await noted(ada, failed(ada.user.id))
        clock.tick(seconds=1)
    (row,) = await events(ada.world)
    assert row.count == 120
    assert await told(ada) == [row.id] * 2  # at the first, and a minute later


async def test_a_failure_that_only_counts_takes_no_lock_of_the_account(
    ada: Client, statements: list[str]
) -> None:
    await noted(ada, failed(ada.user.id))
    del statements[:]
    await noted(ada, failed(ada.user.id))
    assert not [sent for sent in statements if "streams" in sent]
    assert len(statements) == 3  # looked, parted, counted up


async def test_a_unit_that_is_given_up_leaves_no_event(ada: Client) -> None:
    ctx = stranger(ada.world)
    async with ctx.combined_transaction(commit=False), ctx.write_session(ada.user.id) as session:
        assert await security_log.log_event(ctx, session, failed(ada.user.id))
    assert await events(ada.world) == []
    assert await told(ada) == []


async def test_many_events_cost_as_many_statements_as_one(
    ada: Client, root: Client, statements: list[str]
) -> None:
    people = [await make_user(root.world, f"u{n}") for n in range(20)]
    viewer = Viewer(ada.user.id, Role.ADMIN, frozenset({Scope.MASTER}))
    costs = []
    for some in (people[:1], people[1:]):
        del statements[:]
        ctx = Context(root.world, viewer)
        keys = [user.id for user in some]
        async with ctx.write_session(*keys) as session:
            given = [NewSecurityEvent("password change", key) for key in [*keys, keys[0]]]
            made = await security_log.log_events(ctx, session, given)
            assert made[0] == made[-1]
            assert len(set(made)) == len(some)
        costs.append(len(statements))
    assert costs[0] == costs[1] or costs[0] < costs[1] < 10  # two events told make a statement more
    assert [row.count for row in await events(root.world)].count(2) == 2
    assert {row.by for row in await events(root.world)} == {"ada"}


async def test_of_an_account_that_is_gone_nothing_is_written(world: Environment) -> None:
    await security_log.log_event_separately(stranger(world), failed(world.new_id()))
    assert await events(world) == []


async def test_a_flood_is_written_in_few_units_and_loses_nothing(
    ada: Client, bob: Client, statements: list[str]
) -> None:
    world, gone = ada.world, ada.world.new_id()
    security_log.log_event_in_background(stranger(world), failed(bob.user.id))
    await authentication.wait_for_background_tasks(world)
    del statements[:]
    for n in range(30):
        ctx = stranger(world, f"10.0.{n}.1", origin=f"page {n % 2}", reason="why")
        security_log.log_event_in_background(ctx, failed([None, ada.user.id, bob.user.id][n % 3]))
    await authentication.wait_for_background_tasks(world)
    assert len(statements) < 10
    rows = await events(world)
    assert Counter(row.user_id for row in rows) == {None: 10, ada.user.id: 10, bob.user.id: 11}
    assert {row.id for row in rows if row.user_id == ada.user.id} == set(await told(ada))
    asked = select(col(Change.origin), col(Change.facts)).where(
        col(Change.stream_id) == ada.user.id, col(Change.kind) == ChangeKind.SECURITY_EVENT
    )
    changes = await world.database.read(asked)
    assert {(row.origin, row.facts["reason"]) for row in changes} == {
        ("page 0", "why"),
        ("page 1", "why"),
    }
    security_log.log_event_in_background(stranger(world), failed(gone))
    security_log.log_event_in_background(stranger(world), failed(None))
    security_log.log_event_in_background(stranger(world), failed(None))
    await authentication.wait_for_background_tasks(world)
    rows = await events(world)
    assert [row.count for row in rows if row.ip == "192.0.2.7"] == [1, 2]
    assert gone not in {row.user_id for row in rows}


async def test_events_go_with_their_account(ada: Client, bob: Client) -> None:
    await noted(ada, failed(ada.user.id), failed(bob.user.id), failed(None))
    async with ada.world.write_session() as session:
        await session.exec(delete(User).where(col(User.id) == ada.user.id))
    assert [row.user_id for row in await events(ada.world)] == [bob.user.id, None]


async def test_no_secret_comes_into_the_log(ada: Client) -> None:
    detail = {"newPassword": "hunter2", "seed": "JBSWY3DP", "tokenId": 7, "name": "phone"}
    await noted(ada, failed(ada.user.id, detail=detail))
    (row,) = await events(ada.world)
    hidden = {"newPassword": "(hidden)", "seed": "(hidden)"}
    assert row.detail == {**detail, **hidden}


# whose doing it was


async def by(world: Environment, viewer: Viewer, what: NewSecurityEvent) -> str | None:
    await security_log.log_event_separately(Context(world, viewer), what)
    found = await events(world)
    return None if not found else found[-1].by


async def test_whose_doing_it_was_is_told_where_it_was_not_the_users(
    ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    change = NewSecurityEvent("password change", ada.user.id)
    await make_key(world, "panel", role=Role.ADMIN)
    asked = text("SELECT id FROM api_keys WHERE name = 'panel'")
    async with world.database.engine.connect() as connection:
        panel = (await connection.execute(asked)).scalar_one()
    expected = {
        Viewer(): None,
        Viewer(ada.user.id, Role.USER): None,
        Viewer(pending_user_id=ada.user.id): None,
        Viewer(bob.user.id, Role.ADMIN): "bob",
        Viewer(ada.user.id, Role.USER, actor_id=bob.user.id): "bob",
        Viewer(bob.user.id, Role.ADMIN, api_key_id=panel): "bob",
        Viewer(0, Role.ADMIN, api_key_id=panel): "key panel",
        Viewer(0, Role.ADMIN, api_key_id=77): "key 77",
        Viewer(0, Role.ROOT): "operator",
        Viewer(66, Role.ADMIN): "66",
    }
    for viewer, name in expected.items():
        clock.tick(hours=7)
        assert await by(world, viewer, change) == name, viewer
    clock.tick(hours=7)
    front = Viewer(0, Role.ADMIN, api_key_id=panel)
    assert await by(world, front, NewSecurityEvent("authenticate", ada.user.id)) is None


# retention


async def test_events_are_kept_for_as_long_as_the_setting_says(ada: Client, clock: Clock) -> None:
    await noted(ada, failed(ada.user.id), failed(None))
    clock.tick(days=29)
    await noted(ada, failed(ada.user.id))
    done = await housekeeping.run_round(ada.world, sweep=False)
    assert (done.events, len(await events(ada.world))) == (0, 3)
    clock.tick(days=1)
    done = await housekeeping.run_round(ada.world, sweep=False)
    assert (done.events, len(await events(ada.world))) == (2, 1)


async def test_nothing_is_written_where_nothing_is_kept(ada: Client, clock: Clock) -> None:
    await noted(ada, failed(ada.user.id))
    ada.world.apply_options(
        CommittedOptions(replace(ada.world.options, authlog_for=timedelta(0)), 10**6)
    )
    ctx = stranger(ada.world)
    async with ctx.write_session(ada.user.id) as session:
        assert (
            await security_log.log_event(ctx, session, NewSecurityEvent("totp enable", ada.user.id))
            == 0
        )
    await noted(ada, failed(None))
    assert len(await events(ada.world)) == 1
    clock.tick(seconds=1)
    assert (await housekeeping.run_round(ada.world, sweep=False)).events == 1


# live
FOLLOW = """subscription { changes(kinds: [SECURITY_EVENT]) { events { kind
  ... on AccountChange { nodeId node { ... on AuthEvent { action result ip count } } } } } }"""


async def test_followers_see_events_at_once_and_when_they_count_on(
    live: House, ada: Client, bob: Client, clock: Clock
) -> None:
    ours, theirs = await live.follow(ada, FOLLOW), await live.follow(bob, FOLLOW)
    await until(lambda: live.seats == 2)
    await noted(ada, failed(ada.user.id))
    await until(lambda: ours.got)
    (seen,) = ours.events
    facts = {"action": "authenticate", "result": "fail", "ip": "192.0.2.7"}
    assert seen["node"] == {**facts, "count": 1}
    (row,) = await events(ada.world)
    assert seen["nodeId"] == global_ids.encode("AuthEvent", row.id)
    clock.tick(seconds=61)
    await noted(ada, failed(ada.user.id))
    await until(lambda: len(ours.events) == 2)
    assert ours.events[1]["node"] == {**facts, "count": 2}
    await noted(bob, NewSecurityEvent("totp enable", bob.user.id))
    await until(lambda: theirs.got)
    assert [one["node"]["action"] for one in theirs.events] == ["totp enable"]
    assert len(ours.events) == 2
    for one in (ours, theirs):
        await one.leave()
