"""Ending connections with sessionTerminate, and flushing the credential cache."""

from dataclasses import replace
from typing import Any

import httpx
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.credential_cache import cache_of_database
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, LiveServer, wait_until

SESSION_TERMINATE = """
mutation ($input: SessionTerminateInput!) {
  sessionTerminate(input: $input) {
    terminatedCount usernames errors { __typename code message path } }
}
"""
AUTH_CACHE_FLUSH = """
mutation ($input: AuthCacheFlushInput!) {
  authCacheFlush(input: $input) { flushedCount errors { code } }
}
"""


async def kick_sessions(client: GraphQLClient, **arguments: Any) -> Any:
    return (await client(SESSION_TERMINATE, input=arguments))["sessionTerminate"]


async def test_own_connections_end_with_the_reason(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    stream = await live_server.stream(ada, CHANGES_SUBSCRIPTION)
    other_socket = await live_server.follow(bob, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(live_server.endpoint.connection_watch.connections) == 3)
    validated = await kick_on_live_server(
        live_server, ada, reason="Bye", options={"validateOnly": True}
    )
    assert (validated["terminatedCount"], validated["errors"]) == (2, [])
    assert len(live_server.endpoint.connection_watch.connections) == 3
    payload = await kick_on_live_server(live_server, ada, reason="Moving to a new server")
    assert (payload["terminatedCount"], payload["usernames"], payload["errors"]) == (
        2,
        ["ada", "ada"],
        [],
    )
    await wait_until(lambda: socket.end_frame and stream.end_frame)
    assert socket.end_frame["payload"][0]["message"] == "Moving to a new server"
    assert socket.ws
    await wait_until(lambda: socket.ws and socket.ws.close_code)
    assert (socket.ws.close_code, socket.ws.close_reason) == (4403, "Moving to a new server")
    assert stream.payloads[-1]["errors"][0]["message"] == "Moving to a new server"
    assert not other_socket.end_frame
    await other_socket.unsubscribe()


async def kick_on_live_server(
    live_server: LiveServer, client: GraphQLClient, **arguments: Any
) -> Any:
    """Kick on the server that has the connections. `Client` uses an application of its own."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{live_server.port}", timeout=120
    ) as http:
        live_client = GraphQLClient(http, client.environment, client.user, client.secret)
        return await kick_sessions(live_client, **arguments)


async def test_kick_needs_rights_over_the_user(
    live_server: LiveServer,
    environment: Environment,
    http: httpx.AsyncClient,
    ada: GraphQLClient,
    bob: GraphQLClient,
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    admin_without_domains = await make_domain_admin(environment, http, "rita", domains=())
    ada_socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.endpoint.connection_watch.connections)
    ada_selector = {"usernames": ["ada"]}
    for client in (bob, admin_without_domains):
        payload = await kick_on_live_server(live_server, client, users=ada_selector)
        assert [error["code"] for error in payload["errors"]] == ["NOT_FOUND"]
    (error,) = (await kick_on_live_server(live_server, bob, users={"all": True}))["errors"]
    assert error["code"] == "FORBIDDEN"
    assert not ada_socket.end_frame
    assert (await kick_on_live_server(live_server, admin, users=ada_selector))[
        "terminatedCount"
    ] == 1
    await wait_until(lambda: ada_socket.end_frame)


async def test_purge_is_refused_while_user_is_connected(
    live_server: LiveServer, ada: GraphQLClient, root: GraphQLClient
) -> None:
    purge_mutation = """mutation ($input: UserPurgeInput!) { userPurge(input: $input) {
        purgedIds errors { code ... on SessionsOpenError { sessions } } } }"""
    socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.endpoint.connection_watch.connections)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{live_server.port}", timeout=120
    ) as http:
        live_client = GraphQLClient(http, root.environment, root.user, root.secret)
        arguments = {"users": {"usernames": ["ada"]}}
        refused_payload = (await live_client(purge_mutation, input=arguments))["userPurge"]
        assert refused_payload == {"purgedIds": [], "errors": [{"code": "IN_USE", "sessions": 1}]}
        assert await ada("{ viewer { user { username } } }")
        await kick_sessions(live_client, **arguments)
        await wait_until(lambda: socket.end_frame)
        await wait_until(lambda: not live_server.endpoint.connection_watch.connections)
        payload = (await live_client(purge_mutation, input=arguments))["userPurge"]
    assert (len(payload["purgedIds"]), payload["errors"]) == (1, [])


async def test_user_sync_reset_ends_connections(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.endpoint.connection_watch.connections)
    document = "mutation { userSyncReset(input: {}) { errors { code } } }"
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{live_server.port}", timeout=120
    ) as http:
        response = await GraphQLClient(http, ada.environment, ada.user, ada.secret)(document)
    assert response["userSyncReset"]["errors"] == []
    await wait_until(lambda: socket.end_frame)


async def test_kick_without_connections_is_an_error(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    (error,) = (await kick_on_live_server(live_server, ada))["errors"]
    assert (error["__typename"], error["code"]) == ("UnavailableError", "NO_SESSION")
    (row,) = await ada.environment.database.read(select(col(User.sessions_ended_at)))
    assert row.sessions_ended_at is None


async def test_invalid_kick_reason_is_refused(ada: GraphQLClient) -> None:
    cases: list[str] = ["x" * 121, "x" * 10_000, "a\nb"]
    for case in each_case(cases):
        with case as reason:
            (error,) = (await kick_sessions(ada, reason=reason))["errors"]
            assert error["path"] == ["reason"]


async def test_kick_revokes_tokens_if_requested(ada: GraphQLClient, bob: GraphQLClient) -> None:
    environment = ada.environment
    ada_client = replace(ada, secret=await make_access_token(environment, ada.user))
    bob_client = replace(bob, secret=await make_access_token(environment, bob.user))
    document = "{ viewer { user { username } } }"
    (error,) = (await kick_sessions(ada_client))["errors"]
    assert error["code"] == "NO_SESSION"
    assert await ada_client(document)
    assert (await kick_sessions(ada_client, revokeTokens=True))["errors"] == []
    refused = await ada_client.execute(document)
    assert refused["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    assert await bob_client(document)


async def test_kick_by_other_process_ends_only_older_connections(
    live_server: LiveServer, ada: GraphQLClient, clock: ManualClock
) -> None:
    old_socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(live_server.endpoint.connection_watch.connections) == 1)
    clock.tick(seconds=1)
    async with ada.environment.write_session() as session:
        is_ada = col(User.id) == ada.user.id
        await session.exec(update(User).where(is_ada).values(sessions_ended_at=clock()))
    clock.tick(seconds=1)
    new_socket = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(live_server.endpoint.connection_watch.connections) == 2)
    await live_server.endpoint.connection_watch.disconnect_ended_and_kicked()
    await wait_until(lambda: old_socket.end_frame)
    assert not new_socket.end_frame
    await new_socket.unsubscribe()


async def test_kick_is_in_the_security_log(
    live_server: LiveServer, ada: GraphQLClient, root: GraphQLClient
) -> None:
    follower = await live_server.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: live_server.endpoint.connection_watch.connections)
    await kick_on_live_server(live_server, root, users={"usernames": ["ada"]})
    rows = await ada.environment.database.read(select(core_table(SecurityEvent)))
    assert [(row.action, row.user_id, bool(row.by)) for row in rows] == [
        ("SESSION_TERMINATED", ada.user.id, True)
    ]
    await wait_until(lambda: follower.end_frame)


async def test_cached_credentials_are_flushed(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    for client in (ada, bob, root):
        await client("{ viewer { role } }")
    assert len(cache_of_database(ada.environment.database).credentials) == 3
    response = await root(AUTH_CACHE_FLUSH, input={"users": {"usernames": ["ada"]}})
    assert response["authCacheFlush"] == {"flushedCount": 1, "errors": []}
    response = await root(AUTH_CACHE_FLUSH, input={})
    assert response["authCacheFlush"] == {"flushedCount": 2, "errors": []}
    for client in (ada, bob):
        (error,) = (await client(AUTH_CACHE_FLUSH, input={}))["authCacheFlush"]["errors"]
        assert error["code"] == "FORBIDDEN"
    await authentication.wait_for_background_tasks(ada.environment)
