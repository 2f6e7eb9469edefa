"""Reading the security log: pages, filters, permissions and indexes."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlmodel import col

from graph.types import global_ids
from models.auth.security_log import (
    AuthProtocol,
    SecurityEvent,
    SecurityEventAction,
    SecurityEventResult,
)
from models.domains.tables import Domain
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import security_event_pages, sortable_ips
from resolvers.auth.security_event_pages import (
    SecurityEventFilter,
    SecurityEventOrder,
    SecurityEventPageKey,
)
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client, make_user
from tests.support.accounts.security_events import (
    failed_sign_in_event,
    load_security_events,
    log_events,
)
from tests.support.case_loop import each_case
from tests.support.stores.query_plans import QueryPlanRecorder, record_query_plans

FIVE_ACTIONS = list(SecurityEventAction)[:5]
NEWEST_FIRST = security_event_pages.LIST_ORDERS[SecurityEventOrder.CREATED_AT_DESC]
SECURITY_LOG_QUERY = """query ($filter: SecurityLogFilter, $first: Int, $after: String,
    $last: Int, $before: String) {
  securityLog(filter: $filter, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount nodes { id action result ip protocol sessionId by detail count createdAt lastAt
      user { username } }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
OWN_SECURITY_LOG_QUERY = """query ($filter: SecurityLogFilter, $first: Int, $after: String) {
  viewer { user { securityLog(filter: $filter, first: $first, after: $after) {
    totalCount nodes { id action result ip count } pageInfo { hasNextPage endCursor } } } } }"""


async def load_own_events(client: GraphQLClient, **filter: Any) -> list[Any]:
    page = (await client(OWN_SECURITY_LOG_QUERY, filter=filter or None))["viewer"]["user"][
        "securityLog"
    ]
    assert page["totalCount"] == len(page["nodes"])
    return list(page["nodes"])


@pytest.fixture
async def domain_admin(ada: GraphQLClient, root: GraphQLClient) -> GraphQLClient:
    """The administrator of example.org."""
    return await create_domain_admin(root, "chief", ada.user.domain_id or 0)


async def create_domain_admin(root: GraphQLClient, name: str, *domain_ids: int) -> GraphQLClient:
    client = await make_client(root.environment, root.http, name, role=Role.DOMAIN_ADMIN)
    async with root.environment.write_session() as session:
        for domain_id in domain_ids:
            session.add(DomainAdmin(user_id=client.user.id, domain_id=domain_id))
    return client


async def test_user_reads_own_log_newest_first_in_pages(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(5):
        await log_events(ada, NewSecurityEvent(FIVE_ACTIONS[n], ada.user.id))
        clock.tick(seconds=1)
    actions, cursor, page_count = [], None, 0
    while True:
        page_count += 1
        page = (await ada(OWN_SECURITY_LOG_QUERY, first=2, after=cursor))["viewer"]["user"][
            "securityLog"
        ]
        actions += [node["action"] for node in page["nodes"]]
        cursor = page["pageInfo"]["endCursor"]
        if not page["pageInfo"]["hasNextPage"]:
            break
        meanwhile = (
            SecurityEventAction.PASSWORD_RESET
            if page_count == 1
            else SecurityEventAction.PASSWORD_CHANGED
        )
        await log_events(ada, NewSecurityEvent(meanwhile, ada.user.id))
        clock.tick(seconds=1)
    assert actions == FIVE_ACTIONS[::-1]
    assert len(await load_security_events(ada.environment)) == 7


async def test_pages_can_be_read_backwards(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    for n in range(5):
        await log_events(ada, NewSecurityEvent(FIVE_ACTIONS[n], ada.user.id))
        clock.tick(seconds=n % 2)  # some events have equal times
    all_ids = [node["id"] for node in (await root(SECURITY_LOG_QUERY))["securityLog"]["nodes"]]
    last_page = (await root(SECURITY_LOG_QUERY, last=2))["securityLog"]
    assert [node["id"] for node in last_page["nodes"]] == all_ids[3:]
    previous_page = (
        await root(SECURITY_LOG_QUERY, last=9, before=last_page["pageInfo"]["startCursor"])
    )["securityLog"]
    assert [node["id"] for node in previous_page["nodes"]] == all_ids[:3]


async def test_each_filter_limits_the_log(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    start = clock()
    new_events = [
        ("192.0.2.7", failed_sign_in_event(ada.user.id)),
        ("192.0.3.7", failed_sign_in_event(ada.user.id, protocol=AuthProtocol.IMAP)),
        (
            "2001:db8::7",
            NewSecurityEvent(
                SecurityEventAction.SIGN_IN_ATTEMPTED, ada.user.id, protocol=AuthProtocol.API
            ),
        ),
        (
            "::ffff:198.51.100.9",
            NewSecurityEvent(
                SecurityEventAction.TOTP_ENABLED, ada.user.id, result=SecurityEventResult.SUSPENDED
            ),
        ),
        (None, NewSecurityEvent(SecurityEventAction.PASSWORD_CHANGED, ada.user.id)),
    ]
    for ip, event in new_events:
        await log_events(ada, event, ip=ip)
        clock.tick(minutes=1)
    times = [(start + timedelta(minutes=n)).isoformat() for n in range(6)]
    expected: list[tuple[dict[str, Any], str]] = [
        ({"since": times[0]}, "01234"),
        ({"action": "SIGN_IN_ATTEMPTED"}, "012"),
        ({"action": "SESSION_TERMINATED"}, ""),
        ({"result": "FAILURE"}, "01"),
        ({"result": "SUSPENDED"}, "3"),
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
        ({"since": times[2]}, "234"),
        ({"before": times[2]}, "01"),
        ({"since": times[1], "before": times[4], "action": "SIGN_IN_ATTEMPTED"}, "12"),
        ({"network": "::/0", "result": "FAILURE", "protocol": "IMAP"}, "1"),
    ]
    event_ids = [node["id"] for node in await load_own_events(ada)][::-1]
    for given_filter, numbers in expected:
        expected_ids = [event_ids[int(n)] for n in numbers]
        assert [node["id"] for node in await load_own_events(ada, **given_filter)][
            ::-1
        ] == expected_ids, given_filter
        page = (await root(SECURITY_LOG_QUERY, filter=given_filter))["securityLog"]
        assert [node["id"] for node in page["nodes"]][::-1] == expected_ids, given_filter
        assert page["totalCount"] == len(expected_ids)


INVALID_FILTERS: list[dict[str, str]] = [
    {"ip": "192.0.2.0/24"}, {"ip": "x"}, {"network": "192.0.2.0/33"}, {"network": ""},
    {"since": "yesterday"}, {"action": "a\0b"}, {"protocol": "x" * 10_000},
    {"action": "a" * 129}, {"result": "\x07"},
]  # fmt: skip


async def test_invalid_log_filter_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_FILTERS):
        with case as invalid_filter:
            response = await ada.execute(OWN_SECURITY_LOG_QUERY, filter=invalid_filter)
            assert response["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_cursor_of_other_filter_is_refused(
    root: GraphQLClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    await log_events(ada, failed_sign_in_event(ada.user.id))
    clock.tick(hours=7)
    await log_events(ada, failed_sign_in_event(ada.user.id))
    cursor = (await root(SECURITY_LOG_QUERY, first=1))["securityLog"]["pageInfo"]["endCursor"]
    response = await root.execute(SECURITY_LOG_QUERY, after=cursor, filter={"result": "FAILURE"})
    assert response["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


NODE_QUERY = "query ($id: ID!) { node(id: $id) { __typename ... on SecurityEvent { action } } }"


async def test_only_admins_read_events_of_other_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, domain_admin: GraphQLClient
) -> None:
    other_admin = await create_domain_admin(root, "other")
    async with root.environment.write_session() as session:
        now = root.environment.now()
        session.add(Domain(id=7, name="far.example", created_at=now, updated_at=now))
        await session.flush()
        session.add(DomainAdmin(user_id=other_admin.user.id, domain_id=7))
    await log_events(ada, failed_sign_in_event(ada.user.id), failed_sign_in_event(None))
    (own, _) = await load_security_events(ada.environment)
    event_id = global_ids.encode("SecurityEvent", own.id)
    for client, is_visible in (
        (ada, True),
        (domain_admin, True),
        (root, True),
        (bob, False),
        (other_admin, False),
    ):
        assert (await client(NODE_QUERY, id=event_id))["node"] == (
            {"__typename": "SecurityEvent", "action": "SIGN_IN_ATTEMPTED"} if is_visible else None
        )
    user = {"id": global_ids.encode("User", ada.user.id)}
    for client, expected_count in ((root, 2), (domain_admin, 1), (other_admin, 0)):
        page = (await client(SECURITY_LOG_QUERY))["securityLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (expected_count, expected_count)
        page = (await client(SECURITY_LOG_QUERY, filter={"user": user}))["securityLog"]
        assert (len(page["nodes"]), page["totalCount"]) == (
            min(expected_count, 1),
            min(expected_count, 1),
        )
        combined_filter = {"ip": "192.0.2.7", "result": "FAILURE"}
        assert (await client(SECURITY_LOG_QUERY, filter=combined_filter or None))["securityLog"][
            "totalCount"
        ] == expected_count
    assert (await root(SECURITY_LOG_QUERY, filter={"user": {"username": "nobody"}}))["securityLog"][
        "totalCount"
    ] == 0
    for client in (ada, bob):
        response = await client.execute(SECURITY_LOG_QUERY)
        assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert await load_own_events(bob) == []


async def test_credential_with_scope_mail_does_not_read_the_log(ada: GraphQLClient) -> None:
    await log_events(ada, failed_sign_in_event(ada.user.id))
    (row,) = await load_security_events(ada.environment)
    scopes = [Scope.MAIL]
    secret = await make_api_key(
        ada.environment, "mail", user_id=ada.user.id, role=Role.USER, scopes=scopes
    )
    reader = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    for document in (OWN_SECURITY_LOG_QUERY, NODE_QUERY):
        response = await reader.execute(document, id=global_ids.encode("SecurityEvent", row.id))
        assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_logs_of_many_users_load_in_constant_statements(
    root: GraphQLClient, ada: GraphQLClient, statements: list[str]
) -> None:
    document = """{ users(first: 50) { nodes { securityLog(first: 2, filter: {result: FAILURE}) {
        totalCount nodes { action user { username } } } } } }"""

    async def count_statements() -> int:
        del statements[:]
        await root(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    await log_events(ada, failed_sign_in_event(ada.user.id))
    statement_counts = [await count_statements()]
    for n in range(20):
        await log_events(ada, failed_sign_in_event((await make_user(root.environment, f"n{n}")).id))
    statement_counts += [await count_statements(), await count_statements()]
    assert len(set(statement_counts)) == 1


EVENT_COUNT = 10_000


@pytest.fixture
async def full_log(ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """A log with many events, most of them of other users."""
    start, rows = clock() - timedelta(days=20), []
    for n in range(EVENT_COUNT):
        ip = f"10.{n % 7}.{n % 251}.{n % 241}"
        rows.append(
            {
                "id": ada.environment.new_id(),
                "user_id": ada.user.id if n % 50 == 0 else (bob.user.id, None)[n % 2],
                "fold": str(n),
                "action": "TOTP_ENABLED" if n % 500 == 0 else "SIGN_IN_ATTEMPTED",
                "result": "FAILURE" if n % 4 else "SUCCESS",
                "protocol": ("API", "IMAP")[n % 2],
                "ip": ip,
                "ip_key": sortable_ips.sortable_ip_hex(ip),
                "count": 1,
                "created_at": start + timedelta(seconds=30 * n),
                "last_at": start,
            }
        )
    async with ada.environment.database.engine.begin() as connection:
        for begin in range(0, EVENT_COUNT, 1000):
            await connection.execute(insert(SecurityEvent), rows[begin : begin + 1000])
        if ada.environment.database.dialect == "postgresql":
            await connection.execute(text("ANALYZE security_events"))
    return ada


@pytest.fixture
def plans(full_log: GraphQLClient) -> Iterator[QueryPlanRecorder]:
    with record_query_plans(full_log.environment) as recorder:
        yield recorder


async def check_page_of_one_user(full_log: GraphQLClient, plans: QueryPlanRecorder) -> None:
    """Check that the page of a user is read by an index in the order of the page."""
    viewer = Viewer(full_log.user.id, Role.USER, frozenset({Scope.FULL}))
    page_key = SecurityEventPageKey(
        PageRequest("x"),
        NEWEST_FIRST,
        frozenset({"action"}),
        SecurityEventFilter(),
        full_log.user.id,
    )
    ctx = Context(full_log.environment, viewer)
    plan = await plans.explain_select(
        security_event_pages.load_visible_event_pages(ctx, [page_key]), "security_events"
    )
    assert "ix_security_events_user_id" in plan, plan
    assert "B-TREE" not in plan, plan
    assert "Sort" not in plan, plan


async def test_pages_and_filters_use_an_index(
    full_log: GraphQLClient, plans: QueryPlanRecorder
) -> None:
    await check_page_of_one_user(full_log, plans)
    day = datetime(2029, 12, 20, tzinfo=UTC)
    filters = {
        "created_at": SecurityEventFilter(),
        "action": SecurityEventFilter(action=SecurityEventAction.TOTP_ENABLED),
        "ip_key": SecurityEventFilter(ip="10.3.7.9"),
        "ip_key ": SecurityEventFilter(network="10.3.7.0/29"),
        "created_at ": SecurityEventFilter(since=day, before=day + timedelta(hours=1)),
        "created_at  ": SecurityEventFilter(result=SecurityEventResult.FAILURE),
        "created_at   ": SecurityEventFilter(protocol=AuthProtocol.IMAP),
    }
    viewer = Viewer(0, Role.ADMIN, frozenset({Scope.FULL}))
    for name, log_filter in filters.items():
        for user_id in (None, full_log.user.id):
            ctx = Context(full_log.environment, viewer)
            page_key = SecurityEventPageKey(
                PageRequest("x"), NEWEST_FIRST, frozenset({"action"}), log_filter, user_id
            )
            plan = await plans.explain_select(
                security_event_pages.load_visible_event_pages(ctx, [page_key]), "security_events"
            )
            assert "Seq Scan" not in plan, (name, plan)
            assert "ix_security_events" in plan, (name, plan)
            if user_id is None:
                assert f"ix_security_events_{name.strip()}" in plan, (name, plan)
            if log_filter in (SecurityEventFilter(), filters["action"]) and user_id is None:
                assert "sort" not in plan.lower().replace("cursor", ""), plan
                assert "B-TREE" not in plan, plan


async def test_total_count_counts_filtered_events_of_user(full_log: GraphQLClient) -> None:
    query = select(func.count().label("many")).where(
        col(SecurityEvent.user_id) == full_log.user.id, col(SecurityEvent.result) == "FAILURE"
    )
    (row,) = await full_log.environment.database.read(query)
    assert (await full_log(OWN_SECURITY_LOG_QUERY, filter={"result": "FAILURE"}, first=1))[
        "viewer"
    ]["user"]["securityLog"]["totalCount"] == row.many
