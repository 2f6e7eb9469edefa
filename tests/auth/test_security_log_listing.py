"""The security log as it is read: in pages, by whom, and off which index."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlmodel import col

from graph.types import global_ids
from models.auth.security_log import SecurityEvent
from models.domains.tables import Domain
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import security_log
from resolvers.auth.security_log import NewSecurityEvent, SecurityEventFilter, SecurityEventPage
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, make_client, make_key, make_user
from tests.support.accounts.security_events import events, failed, noted
from tests.support.stores.query_plans import Plans, explained

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


async def mine(client: Client, **filter: Any) -> list[Any]:
    page = (await client(MINE, filter=filter or None))["viewer"]["user"]["authLog"]
    assert page["totalCount"] == len(page["nodes"])
    return list(page["nodes"])


@pytest.fixture
async def chief(ada: Client, root: Client) -> Client:
    """Who administers example.org."""
    return await administrator(root, "chief", ada.user.domain_id or 0)


async def administrator(root: Client, name: str, *domains: int) -> Client:
    made = await make_client(root.world, root.http, name, role=Role.DOMAIN_ADMIN)
    async with root.world.write_session() as session:
        for key in domains:
            session.add(DomainAdmin(user_id=made.user.id, domain_id=key))
    return made


# reading


async def test_a_user_reads_the_own_log_newest_first_in_pages(ada: Client, clock: Clock) -> None:
    for n in range(5):
        await noted(ada, NewSecurityEvent(f"step {n}", ada.user.id))
        clock.tick(seconds=1)
    seen, at = [], None
    while True:
        page = (await ada(MINE, first=2, after=at))["viewer"]["user"]["authLog"]
        seen += [node["action"] for node in page["nodes"]]
        at = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
        await noted(ada, NewSecurityEvent(f"meanwhile {at}", ada.user.id))
        clock.tick(seconds=1)
    assert seen == [f"step {n}" for n in (4, 3, 2, 1, 0)]
    assert len(await events(ada.world)) == 7


async def test_pages_go_backwards_too(ada: Client, root: Client, clock: Clock) -> None:
    for n in range(5):
        await noted(ada, NewSecurityEvent(f"step {n}", ada.user.id))
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
        ("2001:db8::7", NewSecurityEvent("authenticate", ada.user.id, protocol="API")),
        ("::ffff:198.51.100.9", NewSecurityEvent("totp enable", ada.user.id, result="suspended")),
        (None, NewSecurityEvent("password change", ada.user.id)),
    ]
    for ip, what in given:
        await noted(ada, what, ip=ip)
        clock.tick(minutes=1)
    at = [(start + timedelta(minutes=n)).isoformat() for n in range(6)]
    expected: list[tuple[dict[str, Any], str]] = [
        ({"since": at[0]}, "01234"),
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
    answer = await ada.raw(MINE, filter=filter or None)
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
    async with root.world.write_session() as session:
        at = root.world.now()
        session.add(Domain(id=7, name="far.example", created_at=at, updated_at=at))
        await session.flush()
        session.add(DomainAdmin(user_id=other.user.id, domain_id=7))
    await noted(ada, failed(ada.user.id), failed(None))
    (own, _) = await events(ada.world)
    key = global_ids.encode("AuthEvent", own.id)
    for client, seen in ((ada, True), (chief, True), (root, True), (bob, False), (other, False)):
        assert (await client(NODE, id=key))["node"] == (
            {"__typename": "AuthEvent", "action": "authenticate"} if seen else None
        )
    user = {"id": global_ids.encode("User", ada.user.id)}
    for client, many in ((root, 2), (chief, 1), (other, 0)):
        page = (await client(LIST))["authLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (many, many)
        page = (await client(LIST, user=user))["authLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (min(many, 1), min(many, 1))
        narrow = {"ip": "192.0.2.7", "result": "fail"}
        assert (await client(LIST, filter=narrow or None))["authLog"]["totalCount"] == many
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
        answer = await reader.raw(document, id=global_ids.encode("AuthEvent", row.id))
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
                "id": ada.world.new_id(),
                "user_id": ada.user.id if n % 50 == 0 else (bob.user.id, None)[n % 2],
                "fold": str(n),
                "action": "totp enable" if n % 500 == 0 else "authenticate",
                "result": "fail" if n % 4 else "success",
                "protocol": ("API", "IMAP")[n % 2],
                "ip": ip,
                "ip_key": security_log.ip_key(ip),
                "count": 1,
                "created_at": start + timedelta(seconds=30 * n),
                "last_at": start,
            }
        )
    async with ada.world.database.engine.begin() as connection:
        for begin in range(0, MANY, 1000):
            await connection.execute(insert(SecurityEvent), rows[begin : begin + 1000])
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
        "created_at": SecurityEventFilter(),
        "action": SecurityEventFilter(action="totp enable"),
        "ip_key": SecurityEventFilter(ip="10.3.7.9"),
        "ip_key ": SecurityEventFilter(network="10.3.7.0/29"),
        "created_at ": SecurityEventFilter(since=day, before=day + timedelta(hours=1)),
        "created_at  ": SecurityEventFilter(result="fail"),
        "created_at   ": SecurityEventFilter(protocol="IMAP"),
    }
    viewer = Viewer(0, Role.ADMIN, frozenset({Scope.MASTER}))
    for name, where in wheres.items():
        for user_id in (None, full.user.id):
            ctx = Context(full.world, viewer)
            asked = SecurityEventPage(PageRequest("x"), frozenset({"action"}), where, user_id)
            found = await plans.of(security_log.load_event_pages(ctx, [asked]), "auth_events")
            assert "Seq Scan" not in found, (name, found)
            assert "ix_auth_events" in found, (name, found)
            if user_id is None:
                assert f"ix_auth_events_{name.strip()}" in found, (name, found)
            if where in (SecurityEventFilter(), wheres["action"]) and user_id is None:
                assert "sort" not in found.lower().replace("cursor", ""), found
                assert "B-TREE" not in found, found


async def test_a_users_page_is_read_off_the_index(full: Client, plans: Plans) -> None:
    viewer = Viewer(full.user.id, Role.USER, frozenset({Scope.MASTER}))
    asked = SecurityEventPage(
        PageRequest("x"), frozenset({"action"}), SecurityEventFilter(), full.user.id
    )
    ctx = Context(full.world, viewer)
    found = await plans.of(security_log.load_event_pages(ctx, [asked]), "auth_events")
    assert "ix_auth_events_user_id" in found, found
    assert "B-TREE" not in found, found
    assert "Sort" not in found, found


async def test_a_count_of_failures_of_one_account(full: Client) -> None:
    many = select(func.count().label("many")).where(
        col(SecurityEvent.user_id) == full.user.id, col(SecurityEvent.result) == "fail"
    )
    (row,) = await full.world.database.read(many)
    assert (await full(MINE, filter={"result": "fail"}, first=1))["viewer"]["user"]["authLog"][
        "totalCount"
    ] == row.many
