"""Lists of open sessions: facts, filters, orders, pages, and who sees which session."""

import os
import socket
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from models.runtime.environment import Environment
from models.store.keyset_pages import Cursor
from models.users.roles import Role
from resolvers.sessions.listing import SessionOrder, SessionSummaryOrder
from tests.conftest import GraphQLClient, ManualClock, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.mail_servers.submission_client import PASSWORD
from tests.support.servers.live_server import (
    CHANGES_SUBSCRIPTION,
    SubscriptionFollower,
    wait_until,
)
from tests.support.servers.session_server import SESSION_SUMMARIES, SESSIONS, SessionServer
from tests.support.stores.recorded_statements import record_sql

CHANGES_OF_ADA = 'subscription { changes(user: {username: "ada"}) { cursor } }'
SERVICES = ("WEBSOCKET", "EVENT_STREAM", "SMTP", "SUBMISSION", "LMTP")


async def list_sessions(client: GraphQLClient, **variables: Any) -> Any:
    return (await client(SESSIONS, **variables))["sessions"]


async def list_summaries(client: GraphQLClient, **variables: Any) -> Any:
    return (await client(SESSION_SUMMARIES, **variables))["sessionSummaries"]


def ids_of(connection: Any) -> list[str]:
    return [node["id"] for node in connection["nodes"]]


async def listed_services(client: GraphQLClient, **session_filter: Any) -> list[str]:
    result = await list_sessions(client, filter=session_filter or None, first=100)
    assert result["totalCount"] == len(result["nodes"])
    return sorted(node["service"] for node in result["nodes"])


async def test_sessions_of_all_services_are_listed(
    session_server: SessionServer, environment: Environment, root: GraphQLClient
) -> None:
    user = await make_user(environment, "ada", password=PASSWORD)
    client = GraphQLClient(root.http, environment, user, root.secret)
    submission = await session_server.open_submission_session()
    assert (await session_server.sign_in_and_return_reply(submission)).startswith("235")
    mx = await session_server.open_mx_session("PROXY TCP4 192.0.2.7 192.0.2.1 4711 25")
    lmtp = await session_server.open_lmtp_session()
    follower = await session_server.live.follow(client, CHANGES_OF_ADA)
    stream = await session_server.live.stream(client, CHANGES_OF_ADA)
    await wait_until(lambda: len(environment.live_sessions) == 5)
    await wait_until(lambda: sum(one.subscription_count for one in environment.live_sessions) == 2)
    result = await list_sessions(root)
    assert (result["totalCount"], result["unresponsiveNodes"]) == (5, [])
    by_service = {node["service"]: node for node in result["nodes"]}
    assert set(by_service) == set(SERVICES)
    for service, node in by_service.items():
        assert (node["node"], node["pid"]) == (socket.gethostname(), os.getpid())
        assert node["ip"] == ("192.0.2.7" if service == "SMTP" else "127.0.0.1")
        assert node["proxied"] is (service == "SMTP")
        assert node["destinationIp"] == "127.0.0.1"
        assert node["subscriptionCount"] == (service in {"WEBSOCKET", "EVENT_STREAM"})
        assert node["lastActiveAt"] >= node["connectedAt"]
    ports = {service: node["destinationPort"] for service, node in by_service.items()}
    assert ports == {
        "WEBSOCKET": session_server.live.port,
        "EVENT_STREAM": session_server.live.port,
        "SMTP": session_server.mx.port,
        "SUBMISSION": session_server.submission.port,
        "LMTP": session_server.lmtp.port,
    }
    # the socket and the stream have a key of the platform
    assert [service for service in SERVICES if by_service[service]["user"]] == ["SUBMISSION"]
    assert by_service["SUBMISSION"]["user"] == {"username": "ada"}
    await assert_summaries_of_two_connections(root)
    for client_of_mail in (mx, lmtp):
        await client_of_mail.close()
    await submission.close()
    await follower.unsubscribe()
    await stream.unsubscribe()
    await wait_until(lambda: not len(environment.live_sessions))
    assert (await list_sessions(root))["nodes"] == []


async def assert_summaries_of_two_connections(root: GraphQLClient) -> None:
    result = await list_summaries(root)
    assert result["totalCount"] == 5
    assert [(node["user"], node["connectionCount"]) for node in result["nodes"]] == [
        (None, 1),
        (None, 1),
        (None, 1),
        (None, 1),
        ({"username": "ada"}, 1),
    ]
    for node in result["nodes"]:
        assert node["pids"] == [os.getpid()]
        assert node["ips"] == ["192.0.2.7" if node["service"] == "SMTP" else "127.0.0.1"]


async def test_summaries_count_sessions_by_user_and_service(
    session_server: SessionServer, ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    followers = [
        await session_server.live.follow(client, CHANGES_SUBSCRIPTION)
        for client in (ada, ada, ada, bob)
    ]
    followers.append(await session_server.live.stream(ada, CHANGES_SUBSCRIPTION))
    await wait_until(lambda: len(ada.environment.live_sessions) == 5)
    first_page = await list_summaries(root, first=2)
    assert first_page["pageInfo"]["hasNextPage"]
    assert first_page["totalCount"] == 3
    second_page = await list_summaries(root, first=2, after=first_page["pageInfo"]["endCursor"])
    nodes = [*first_page["nodes"], *second_page["nodes"]]
    assert [
        (node["user"]["username"], node["service"], node["connectionCount"]) for node in nodes
    ] == [("ada", "EVENT_STREAM", 1), ("ada", "WEBSOCKET", 3), ("bob", "WEBSOCKET", 1)]
    assert (await list_summaries(root, last=1))["nodes"] == nodes[-1:]
    reversed_page = await list_summaries(root, order="USER_DESC", first=2)
    assert reversed_page["nodes"] == nodes[:0:-1]
    after = reversed_page["pageInfo"]["endCursor"]
    assert (await list_summaries(root, order="USER_DESC", after=after))["nodes"] == nodes[:1]
    own = await list_summaries(bob)
    assert [node["user"]["username"] for node in own["nodes"]] == ["bob"]
    for follower in followers:
        await follower.unsubscribe()


async def test_filters_of_sessions(
    session_server: SessionServer, ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    live = session_server.live
    followers = [
        await live.follow(ada, CHANGES_SUBSCRIPTION),
        await live.stream(bob, CHANGES_SUBSCRIPTION),
    ]
    mx = [
        await session_server.open_mx_session(f"PROXY TCP{version} {ip} {ip} 4711 25")
        for version, ip in ((4, "192.0.2.7"), (4, "192.0.2.200"), (6, "2001:db8::7"))
    ]
    await wait_until(lambda: len(ada.environment.live_sessions) == 5)
    cases: list[tuple[dict[str, Any], list[str]]] = [
        ({}, ["EVENT_STREAM", "SMTP", "SMTP", "SMTP", "WEBSOCKET"]),
        ({"proxied": True}, ["SMTP", "SMTP", "SMTP"]),
        ({"proxied": False}, ["EVENT_STREAM", "WEBSOCKET"]),
        ({"services": ["WEBSOCKET", "LMTP"]}, ["WEBSOCKET"]),
        ({"services": []}, []),
        ({"network": "192.0.2.0/25"}, ["SMTP"]),
        ({"network": "192.0.2.0/24"}, ["SMTP", "SMTP"]),
        ({"network": "2001:db8::/32"}, ["SMTP"]),
        ({"network": "127.0.0.1/32", "services": ["EVENT_STREAM"]}, ["EVENT_STREAM"]),
        ({"users": {"usernames": ["ada"]}}, ["WEBSOCKET"]),
        ({"users": {"patterns": ["b*"]}}, ["EVENT_STREAM"]),
        ({"users": {"patterns": ["*"]}}, ["EVENT_STREAM", "WEBSOCKET"]),
        ({"users": {"all": True}}, ["EVENT_STREAM", "WEBSOCKET"]),
        ({"users": {"domains": [{"name": "example.org"}]}}, ["EVENT_STREAM", "WEBSOCKET"]),
        ({"users": {"patterns": ["b*"]}, "services": ["WEBSOCKET"]}, []),
    ]
    for session_filter, services in cases:
        assert await listed_services(root, **session_filter) == services, session_filter
    for client in mx:
        await client.close()
    for follower in followers:
        await follower.unsubscribe()


async def test_invalid_filter_is_a_typed_error(root: GraphQLClient) -> None:
    cases: list[tuple[Any, str]] = [
        ({"network": "192.0.2.0/99"}, "BAD_USER_INPUT"),
        ({"users": {"usernames": ["nobody"]}}, "NOT_FOUND"),
        ({"users": {"usernames": ["ada"] * 5000}}, "LIMIT_REACHED"),
        ({"users": {"patterns": ["x" * 5000]}}, "BAD_USER_INPUT"),
        ({"users": {"ids": ["usr_0"]}}, "BAD_ID"),
    ]
    for case in each_case(cases):
        with case as (session_filter, code):
            for document in (SESSIONS, SESSION_SUMMARIES):
                (error,) = (await root.execute(document, filter=session_filter))["errors"]
                assert error["extensions"]["code"] == code


async def test_pages_of_sessions_in_both_orders(
    session_server: SessionServer, ada: GraphQLClient, clock: ManualClock
) -> None:
    followers = []
    for count in range(1, 8):
        followers.append(await session_server.live.follow(ada, CHANGES_SUBSCRIPTION))
        await wait_until(lambda count=count: len(ada.environment.live_sessions) == count)
        if count != 3:  # two sessions have the same time
            clock.tick(seconds=1)
    result = await list_sessions(ada, first=100)
    newest_first, times = ids_of(result), [node["connectedAt"] for node in result["nodes"]]
    assert times == sorted(times, reverse=True)
    for order, expected in (
        ("CONNECTED_AT_DESC", newest_first),
        ("CONNECTED_AT_ASC", newest_first[::-1]),
    ):
        for count_name, cursor, info, next_name in (
            ("first", "after", "endCursor", "hasNextPage"),
            ("last", "before", "startCursor", "hasPreviousPage"),
        ):
            found: list[str] = []
            variables: dict[str, Any] = {}
            while True:
                page = await list_sessions(ada, orderBy=order, **{count_name: 3}, **variables)
                assert page["totalCount"] == 7
                ids = ids_of(page)
                found = [*found, *ids] if count_name == "first" else [*ids, *found]
                if not page["pageInfo"][next_name]:
                    break
                variables = {cursor: page["pageInfo"][info]}
            assert found == expected
    cursor = (await list_sessions(ada, first=1))["pageInfo"]["endCursor"]
    for other in ({"orderBy": "CONNECTED_AT_ASC"}, {"filter": {"proxied": False}}):
        (error,) = (await ada.execute(SESSIONS, first=1, after=cursor, **other))["errors"]
        assert error["extensions"]["code"] == "BAD_CURSOR", error
    ordering = f"sessions-{SessionOrder.CONNECTED_AT_DESC}"
    forged = Cursor(ordering, clock(), 1 << 64)
    (error,) = (await ada.execute(SESSIONS, after=str(forged)))["errors"]
    assert error["extensions"]["code"] == "BAD_CURSOR", error
    for follower in followers:
        await follower.unsubscribe()


async def test_summaries_are_counted_without_a_second_look(
    session_server: SessionServer, ada: GraphQLClient, root: GraphQLClient
) -> None:
    followers = [await session_server.live.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(2)]
    await wait_until(lambda: len(ada.environment.live_sessions) == len(followers))
    statements = record_sql(ada.environment.database)
    assert (await list_summaries(root))["totalCount"] == 1
    assert len([text for text in statements if "server_processes" in text]) == 1


async def test_forged_cursor_of_summaries_is_refused(ada: GraphQLClient) -> None:
    ordering = f"session-summaries-{SessionSummaryOrder.USER_ASC}"
    forged = Cursor(ordering, 1 << 64, 1)
    (error,) = (await ada.execute(SESSION_SUMMARIES, after=str(forged)))["errors"]
    assert error["extensions"]["code"] == "BAD_CURSOR", error


async def test_who_sees_which_sessions(
    session_server: SessionServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
) -> None:
    environment = ada.environment
    top = await make_client(environment, ada.http, "top", role=Role.ROOT)
    rita = await make_domain_admin(environment, ada.http, "rita")
    outsider = await make_domain_admin(environment, ada.http, "otto", domains=())
    sessions = [
        await session_server.live.follow(client, CHANGES_SUBSCRIPTION)
        for client in (ada, bob, top, admin_client, rita, outsider)
    ]
    mx = await session_server.open_mx_session()
    await wait_until(lambda: len(environment.live_sessions) == 7)
    everybody = {"ada", "bob", "top", "over", "rita", "otto"}
    visible: list[tuple[GraphQLClient, set[str | None]]] = [
        (ada, {"ada"}),
        (bob, {"bob"}),
        (outsider, {"otto"}),
        (rita, {"ada", "bob", "rita"}),
        (admin_client, {*everybody, None}),
        (root, {*everybody, None}),
    ]
    for client, names in visible:
        nodes = (await list_sessions(client, first=100))["nodes"]
        assert {node["user"] and node["user"]["username"] for node in nodes} == names
        summaries = (await list_summaries(client, first=100))["nodes"]
        assert {node["user"] and node["user"]["username"] for node in summaries} == names
    await assert_nodes_are_visible_alike(ada, bob, root)
    (error,) = (await bob.execute(SESSIONS, filter={"users": {"usernames": ["ada"]}}))["errors"]
    assert error["extensions"]["code"] == "NOT_FOUND"
    for users in ({"all": True}, {"patterns": ["a*"]}):
        (error,) = (await bob.execute(SESSIONS, filter={"users": users}))["errors"]
        assert error["extensions"]["code"] == "FORBIDDEN"
    await mx.close()
    for follower in sessions:
        await follower.unsubscribe()


async def assert_nodes_are_visible_alike(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    document = "query ($id: ID!) { node(id: $id) { id ... on Session { service } } }"
    (session,) = (await list_sessions(ada))["nodes"]
    for client in (ada, root):
        node = (await client(document, id=session["id"]))["node"]
        assert node == {"id": session["id"], "service": "WEBSOCKET"}
    assert (await bob(document, id=session["id"]))["node"] is None


def _has_sessions(client: GraphQLClient, count: int) -> bool:
    return len(client.environment.live_sessions) == count


async def test_number_of_statements_is_constant(
    session_server: SessionServer, ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    counts, followers = [], list[SubscriptionFollower]()
    for clients in ([ada], [*[ada] * 9, *[bob] * 10]):
        followers += [
            await session_server.live.follow(client, CHANGES_SUBSCRIPTION) for client in clients
        ]
        await wait_until(partial(_has_sessions, ada, len(followers)))
        await list_sessions(root)
        statements = record_sql(ada.environment.database)
        assert (await list_sessions(root, first=100))["totalCount"] == len(followers)
        # without those of the subscriptions
        tables = ("FROM users", "FROM server_processes")
        counts.append([sum(table in one for one in statements) for table in tables])
    assert counts == [[1, 1], [1, 1]]
    for follower in followers:
        await follower.unsubscribe()


async def test_last_activity_is_the_time_of_the_last_command(
    session_server: SessionServer, clock: ManualClock, root: GraphQLClient
) -> None:
    client = await session_server.open_lmtp_session()
    clock.tick(hours=1)
    await client.run_command("NOOP")
    (session,) = (await list_sessions(root))["nodes"]
    idle_seconds = clock() - datetime.fromisoformat(session["lastActiveAt"])
    assert idle_seconds < timedelta(minutes=30)
    assert session["connectedAt"].startswith("2030-01-01T00:00:00")
    await client.close()
