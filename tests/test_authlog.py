"""The security log: who reads what of it, what it folds, and what it tells."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, func, insert, select, text
from sqlmodel import col

from graph import ids
from mail import housekeeping
from models.authlog import AuthEvent
from models.columns import picked
from models.domains import Domain
from models.journal import Change, ChangeKind
from models.pages import Ask
from models.roles import Role, Scope
from models.users import DomainAdmin, User
from models.world import Adopted, World
from resolvers import auth, authlog
from resolvers.authlog import Event, Events, EventWhere
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, make_client, make_key, make_user
from tests.explained import Plans, explained
from tests.live import House, until

LIST = """query ($user: UserRef, $filter: AuthLogFilter, $first: Int, $after: String, $last: Int,
    $before: String) {
  authLog(user: $user, filter: $filter, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount nodes { id action result ip protocol sessionId by detail count createdAt lastAt
      user { username } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
MINE = """query ($filter: AuthLogFilter, $first: Int, $after: String) {
  viewer { user { authLog(filter: $filter, first: $first, after: $after) {
    totalCount nodes { id action result ip count } pageInfo { hasNextPage endCursor } } } } }"""


def stranger(world: World, ip: str | None = "192.0.2.7", **more: Any) -> Context:
    return Context(world, Viewer(), client_ip=ip, **more)


def failed(user_id: int | None, **more: Any) -> Event:
    return Event("authenticate", user_id, **{"result": "fail", "protocol": "API", **more})


async def events(world: World) -> list[Any]:
    asked = select(*picked(AuthEvent)).order_by(col(AuthEvent.created_at), col(AuthEvent.id))
    return list(await world.database.read(asked))


async def told(client: Client) -> list[int]:
    """The rows that the journal of an account has told of, one for each time."""
    asked = select(col(Change.ids)).where(
        col(Change.stream_id) == client.user.id, col(Change.kind) == ChangeKind.SECURITY_EVENT
    )
    rows = await client.world.database.read(asked.order_by(col(Change.last)))
    return [key for row in rows for key in row.ids]


async def mine(client: Client, **filter: Any) -> list[Any]:
    page = (await client(MINE, filter=filter))["viewer"]["user"]["authLog"]
    assert page["totalCount"] == len(page["nodes"])
    return list(page["nodes"])


async def noted(client: Client, *given: Event, ip: str | None = "192.0.2.7") -> None:
    for each in given:
        await authlog.noted(stranger(client.world, ip), each)


@pytest.fixture
async def chief(ada: Client, root: Client) -> Client:
    """Who administers example.org."""
    return await administrator(root, "chief", ada.user.domain_id or 0)


async def administrator(root: Client, name: str, *domains: int) -> Client:
    made = await make_client(root.world, root.http, name, role=Role.DOMAIN_ADMIN)
    async with root.world.write() as session:
        for key in domains:
            session.add(DomainAdmin(user_id=made.user.id, domain_id=key))
    return made


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
        await authlog.noted(ctx, failed(ada.user.id, detail={"client": name}))
        clock.tick(minutes=5)
    (row,) = await events(ada.world)
    assert (row.session_id, row.detail) == ("laptop", {"client": "laptop"})
    assert row.last_at == row.created_at + timedelta(minutes=5)


async def test_failures_from_one_neighbour_of_ipv6_are_one_row_and_successes_are_not(
    ada: Client,
) -> None:
    for n in range(1, 6):
        await noted(ada, failed(ada.user.id), failed(None), ip=f"2001:db8::{n}")
        await noted(ada, Event("authenticate", ada.user.id), ip=f"2001:db8::{n}")
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
    async with ctx.together(keep=False), ctx.write(ada.user.id) as session:
        assert await authlog.note(ctx, session, failed(ada.user.id))
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
        async with ctx.write(*keys) as session:
            given = [Event("password change", key) for key in [*keys, keys[0]]]
            made = await authlog.note_all(ctx, session, given)
            assert made[0] == made[-1]
            assert len(set(made)) == len(some)
        costs.append(len(statements))
    assert costs[0] == costs[1] or costs[0] < costs[1] < 10  # two events told make a statement more
    assert [row.count for row in await events(root.world)].count(2) == 2
    assert {row.by for row in await events(root.world)} == {"ada"}


async def test_of_an_account_that_is_gone_nothing_is_written(world: World) -> None:
    await authlog.noted(stranger(world), failed(world.key()))
    assert await events(world) == []


async def test_a_flood_is_written_in_few_units_and_loses_nothing(
    ada: Client, bob: Client, statements: list[str]
) -> None:
    world, gone = ada.world, ada.world.key()
    authlog.behind(stranger(world), failed(bob.user.id))
    await auth.settle(world)
    del statements[:]
    for n in range(30):
        ctx = stranger(world, f"10.0.{n}.1", origin=f"page {n % 2}", reason="why")
        authlog.behind(ctx, failed([None, ada.user.id, bob.user.id][n % 3]))
    await auth.settle(world)
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
    authlog.behind(stranger(world), failed(gone))
    authlog.behind(stranger(world), failed(None))
    authlog.behind(stranger(world), failed(None))
    await auth.settle(world)
    rows = await events(world)
    assert [row.count for row in rows if row.ip == "192.0.2.7"] == [1, 2]
    assert gone not in {row.user_id for row in rows}


async def test_events_go_with_their_account(ada: Client, bob: Client) -> None:
    await noted(ada, failed(ada.user.id), failed(bob.user.id), failed(None))
    async with ada.world.write() as session:
        await session.exec(delete(User).where(col(User.id) == ada.user.id))
    assert [row.user_id for row in await events(ada.world)] == [bob.user.id, None]


async def test_no_secret_comes_into_the_log(ada: Client) -> None:
    detail = {"newPassword": "hunter2", "seed": "JBSWY3DP", "tokenId": 7, "name": "phone"}
    await noted(ada, failed(ada.user.id, detail=detail))
    (row,) = await events(ada.world)
    hidden = {"newPassword": "(hidden)", "seed": "(hidden)"}
    assert row.detail == {**detail, **hidden}


# whose doing it was


async def by(world: World, viewer: Viewer, what: Event) -> str | None:
    await authlog.noted(Context(world, viewer), what)
    found = await events(world)
    return None if not found else found[-1].by


async def test_whose_doing_it_was_is_told_where_it_was_not_the_users(
    ada: Client, bob: Client, world: World, clock: Clock
) -> None:
    change = Event("password change", ada.user.id)
    await make_key(world, "panel", role=Role.ADMIN)
    asked = text("SELECT id FROM api_keys WHERE name = 'panel'")
    async with world.database.engine.connect() as connection:
        panel = (await connection.execute(asked)).scalar_one()
    expected = {
        Viewer(): None,
        Viewer(ada.user.id, Role.USER): None,
        Viewer(pending_for=ada.user.id): None,
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
    assert await by(world, front, Event("authenticate", ada.user.id)) is None


# reading


async def test_a_user_reads_the_own_log_newest_first_in_pages(ada: Client, clock: Clock) -> None:
    for n in range(5):
        await noted(ada, Event(f"step {n}", ada.user.id))
        clock.tick(seconds=1)
    seen, at = [], None
    while True:
        page = (await ada(MINE, first=2, after=at))["viewer"]["user"]["authLog"]
        seen += [node["action"] for node in page["nodes"]]
        at = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
        await noted(ada, Event(f"meanwhile {at}", ada.user.id))
        clock.tick(seconds=1)
    assert seen == [f"step {n}" for n in (4, 3, 2, 1, 0)]
    assert len(await events(ada.world)) == 7


async def test_pages_go_backwards_too(ada: Client, root: Client, clock: Clock) -> None:
    for n in range(5):
        await noted(ada, Event(f"step {n}", ada.user.id))
        clock.tick(seconds=n % 2)  # some at one moment
    whole = [node["id"] for node in (await root(LIST))["authLog"]["nodes"]]
    last = (await root(LIST, last=2))["authLog"]
    assert [node["id"] for node in last["nodes"]] == whole[3:]
    before = (await root(LIST, last=9, before=last["pageInfo"]["startCursor"]))["authLog"]
    assert [node["id"] for node in before["nodes"]] == whole[:3]


async def test_every_condition_narrows(ada: Client, root: Client, clock: Clock) -> None:
    start = clock()
    given = [
        ("192.0.2.7", failed(ada.user.id)),
        ("192.0.3.7", failed(ada.user.id, protocol="IMAP")),
        ("2001:db8::7", Event("authenticate", ada.user.id, protocol="API")),
        ("::ffff:198.51.100.9", Event("totp enable", ada.user.id, result="suspended")),
        (None, Event("password change", ada.user.id)),
    ]
    for ip, what in given:
        await noted(ada, what, ip=ip)
        clock.tick(minutes=1)
    at = [(start + timedelta(minutes=n)).isoformat() for n in range(6)]
    expected: list[tuple[dict[str, Any], str]] = [
        ({}, "01234"),
        ({"action": "authenticate"}, "012"),
        ({"action": "auth"}, ""),
        ({"result": "fail"}, "01"),
        ({"result": "suspended"}, "3"),
        ({"protocol": "API"}, "02"),
        ({"ip": "192.0.2.7"}, "0"),
        ({"ip": "2001:0db8:0:0::7"}, "2"),
        ({"ip": "198.51.100.9"}, "3"),
        ({"ip": "192.0.2.8"}, ""),
        ({"network": "192.0.2.0/24"}, "0"),
        ({"network": "192.0.2.99/23"}, "01"),
        ({"network": "0.0.0.0/0"}, "013"),
        ({"network": "192.0.3.7"}, "1"),
        ({"network": "::/0"}, "0123"),
        ({"network": "2001:db8::/32"}, "2"),
        ({"since": at[2]}, "234"),
        ({"before": at[2]}, "01"),
        ({"since": at[1], "before": at[4], "action": "authenticate"}, "12"),
        ({"network": "::/0", "result": "fail", "protocol": "IMAP"}, "1"),
    ]
    every = [node["id"] for node in await mine(ada)][::-1]
    for given_filter, numbers in expected:
        wanted = [every[int(n)] for n in numbers]
        assert [node["id"] for node in await mine(ada, **given_filter)][::-1] == wanted, (
            given_filter
        )
        page = (await root(LIST, filter=given_filter))["authLog"]
        assert [node["id"] for node in page["nodes"]][::-1] == wanted, given_filter
        assert page["totalCount"] == len(wanted)


@pytest.mark.parametrize(
    "filter",
    [
        {"ip": "192.0.2.0/24"}, {"ip": "x"}, {"network": "192.0.2.0/33"}, {"network": ""},
        {"since": "yesterday"}, {"action": "a\0b"}, {"protocol": "x" * 10_000},
        {"action": "a" * 129}, {"result": "\x07"},
    ],
)  # fmt: skip
async def test_a_condition_that_is_none_is_refused(ada: Client, filter: dict[str, str]) -> None:
    answer = await ada.raw(MINE, filter=filter)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_a_cursor_belongs_to_its_filter(root: Client, ada: Client, clock: Clock) -> None:
    await noted(ada, failed(ada.user.id))
    clock.tick(hours=7)
    await noted(ada, failed(ada.user.id))
    cursor = (await root(LIST, first=1))["authLog"]["pageInfo"]["endCursor"]
    answer = await root.raw(LIST, after=cursor, filter={"result": "fail"})
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


# who sees what

NODE = "query ($id: ID!) { node(id: $id) { __typename ... on AuthEvent { action } } }"


async def test_nobody_reads_of_others_but_administrators(
    ada: Client, bob: Client, root: Client, chief: Client
) -> None:
    other = await administrator(root, "other")
    async with root.world.write() as session:
        at = root.world.now()
        session.add(Domain(id=7, name="far.example", created_at=at, updated_at=at))
        await session.flush()
        session.add(DomainAdmin(user_id=other.user.id, domain_id=7))
    await noted(ada, failed(ada.user.id), failed(None))
    (own, _) = await events(ada.world)
    key = ids.encode("AuthEvent", own.id)
    for client, seen in ((ada, True), (chief, True), (root, True), (bob, False), (other, False)):
        assert (await client(NODE, id=key))["node"] == (
            {"__typename": "AuthEvent", "action": "authenticate"} if seen else None
        )
    user = {"id": ids.encode("User", ada.user.id)}
    for client, many in ((root, 2), (chief, 1), (other, 0)):
        page = (await client(LIST))["authLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (many, many)
        page = (await client(LIST, user=user))["authLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (min(many, 1), min(many, 1))
        narrow = {"ip": "192.0.2.7", "result": "fail"}
        assert (await client(LIST, filter=narrow))["authLog"]["totalCount"] == many
    assert (await root(LIST, user={"username": "nobody"}))["authLog"]["totalCount"] == 0
    for client in (ada, bob):
        answer = await client.raw(LIST)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert await mine(bob) == []


async def test_a_credential_for_mail_reads_no_security_log(ada: Client) -> None:
    await noted(ada, failed(ada.user.id))
    (row,) = await events(ada.world)
    scopes = [Scope.MAIL]
    secret = await make_key(ada.world, "mail", user_id=ada.user.id, role=Role.USER, scopes=scopes)
    reader = Client(ada.http, ada.world, ada.user, secret)
    for document in (MINE, NODE):
        answer = await reader.raw(document, id=ids.encode("AuthEvent", row.id))
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_many_people_cost_no_more_statements_than_one(
    root: Client, ada: Client, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { authLog(first: 2, filter: {result: "fail"}) {
        totalCount nodes { action user { username } } } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    await noted(ada, failed(ada.user.id))
    costs = [await cost()]
    for n in range(20):
        await noted(ada, failed((await make_user(root.world, f"n{n}")).id))
    costs += [await cost(), await cost()]
    assert len(set(costs)) == 1


# retention


async def test_events_are_kept_for_as_long_as_the_setting_says(ada: Client, clock: Clock) -> None:
    await noted(ada, failed(ada.user.id), failed(None))
    clock.tick(days=29)
    await noted(ada, failed(ada.user.id))
    done = await housekeeping.tidy(ada.world, sweep=False)
    assert (done.events, len(await events(ada.world))) == (0, 3)
    clock.tick(days=1)
    done = await housekeeping.tidy(ada.world, sweep=False)
    assert (done.events, len(await events(ada.world))) == (2, 1)


async def test_nothing_is_written_where_nothing_is_kept(ada: Client, clock: Clock) -> None:
    await noted(ada, failed(ada.user.id))
    ada.world.adopt(Adopted(replace(ada.world.options, authlog_for=timedelta(0)), 10**6))
    ctx = stranger(ada.world)
    async with ctx.write(ada.user.id) as session:
        assert await authlog.note(ctx, session, Event("totp enable", ada.user.id)) == 0
    await noted(ada, failed(None))
    assert len(await events(ada.world)) == 1
    clock.tick(seconds=1)
    assert (await housekeeping.tidy(ada.world, sweep=False)).events == 1


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
    assert seen["nodeId"] == ids.encode("AuthEvent", row.id)
    clock.tick(seconds=61)
    await noted(ada, failed(ada.user.id))
    await until(lambda: len(ours.events) == 2)
    assert ours.events[1]["node"] == {**facts, "count": 2}
    await noted(bob, Event("totp enable", bob.user.id))
    await until(lambda: theirs.got)
    assert [one["node"]["action"] for one in theirs.events] == ["totp enable"]
    assert len(ours.events) == 2
    for one in (ours, theirs):
        await one.leave()


# how it is found

MANY = 50_000


@pytest.fixture
async def full(ada: Client, bob: Client, clock: Clock) -> Client:
    """A log with many events, most of them of others."""
    start, rows = clock() - timedelta(days=20), []
    for n in range(MANY):
        ip = f"10.{n % 7}.{n % 251}.{n % 241}"
        rows.append(
            {
                "id": ada.world.key(),
                "user_id": ada.user.id if n % 50 == 0 else (bob.user.id, None)[n % 2],
                "fold": str(n),
                "action": "totp enable" if n % 500 == 0 else "authenticate",
                "result": "fail" if n % 4 else "success",
                "protocol": ("API", "IMAP")[n % 2],
                "ip": ip,
                "ip_key": authlog.ip_key(ip),
                "count": 1,
                "created_at": start + timedelta(seconds=30 * n),
                "last_at": start,
            }
        )
    async with ada.world.database.engine.begin() as connection:
        for begin in range(0, MANY, 1000):
            await connection.execute(insert(AuthEvent), rows[begin : begin + 1000])
        if ada.world.database.dialect == "postgresql":
            await connection.execute(text("ANALYZE auth_events"))
    return ada


@pytest.fixture
def plans(full: Client) -> Iterator[Plans]:
    with explained(full.world) as made:
        yield made


async def test_every_filter_is_answered_by_an_index(full: Client, plans: Plans) -> None:
    day = datetime(2029, 12, 20, tzinfo=UTC)
    wheres = {
        "created_at": EventWhere(),
        "action": EventWhere(action="totp enable"),
        "ip_key": EventWhere(ip="10.3.7.9"),
        "ip_key ": EventWhere(network="10.3.7.0/29"),
        "created_at ": EventWhere(since=day, before=day + timedelta(hours=1)),
        "created_at  ": EventWhere(result="fail"),
        "created_at   ": EventWhere(protocol="IMAP"),
    }
    viewer = Viewer(0, Role.ADMIN, frozenset({Scope.MASTER}))
    for name, where in wheres.items():
        for user_id in (None, full.user.id):
            ctx = Context(full.world, viewer)
            asked = Events(Ask("x"), frozenset({"action"}), where, user_id)
            found = await plans.of(authlog.pages(ctx, [asked]), "auth_events")
            assert "Seq Scan" not in found, (name, found)
            assert "ix_auth_events" in found, (name, found)
            if user_id is None:
                assert f"ix_auth_events_{name.strip()}" in found, (name, found)
            if where in (EventWhere(), wheres["action"]) and user_id is None:
                assert "sort" not in found.lower().replace("cursor", ""), found
                assert "B-TREE" not in found, found


async def test_a_users_page_is_read_off_the_index(full: Client, plans: Plans) -> None:
    viewer = Viewer(full.user.id, Role.USER, frozenset({Scope.MASTER}))
    asked = Events(Ask("x"), frozenset({"action"}), EventWhere(), full.user.id)
    ctx = Context(full.world, viewer)
    found = await plans.of(authlog.pages(ctx, [asked]), "auth_events")
    assert "ix_auth_events_user_id" in found, found
    assert "B-TREE" not in found, found
    assert "Sort" not in found, found


async def test_a_count_of_failures_of_one_account(full: Client) -> None:
    many = select(func.count().label("many")).where(
        col(AuthEvent.user_id) == full.user.id, col(AuthEvent.result) == "fail"
    )
    (row,) = await full.world.database.read(many)
    assert (await full(MINE, filter={"result": "fail"}, first=1))["viewer"]["user"]["authLog"][
        "totalCount"
    ] == row.many
