"""Connections that are ended on request, and memories that are flushed."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.security_log import SecurityEvent
from models.errors import ServiceUnavailable
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role
from models.users.tables import User
from resolvers.auth import authentication, sessions
from resolvers.auth.credential_cache import cache_of_database
from resolvers.context import Context
from resolvers.users.selection import UserSelector
from tests.conftest import Client, Clock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import SignInEnvironment
from tests.support.servers.live_server import PLAIN, House, until

KICK = """
mutation ($input: SessionKickInput!) {
  sessionKick(input: $input) { kicked results errors { __typename code message path } }
}
"""
FLUSH = """
mutation ($input: AuthCacheFlushInput!) {
  authCacheFlush(input: $input) { entries errors { code } }
}
"""


async def kick(client: Client, **given: Any) -> Any:
    return (await client(KICK, input=given))["sessionKick"]


async def test_ones_own_connections_end_with_the_reason(
    live: House, ada: Client, bob: Client
) -> None:
    socket, stream = await live.follow(ada, PLAIN), await live.stream(ada, PLAIN)
    other = await live.follow(bob, PLAIN)
    await until(lambda: len(live.endpoint.connection_watch.connections) == 3)
    tried = await kick_by(live, ada, reason="Bye", options={"validateOnly": True})
    assert (tried["kicked"], tried["errors"]) == (2, [])
    assert len(live.endpoint.connection_watch.connections) == 3
    done = await kick_by(live, ada, reason="Moving to a new server")
    assert (done["kicked"], done["results"], done["errors"]) == (2, ["ada", "ada"], [])
    await until(lambda: socket.over and stream.over)
    assert socket.over["payload"][0]["message"] == "Moving to a new server"
    assert socket.ws
    await until(lambda: socket.ws and socket.ws.close_code)
    assert (socket.ws.close_code, socket.ws.close_reason) == (4403, "Moving to a new server")
    assert stream.got[-1]["errors"][0]["message"] == "Moving to a new server"
    assert not other.over
    await other.leave()


async def kick_by(live: House, client: Client, **given: Any) -> Any:
    """Over the server that has the connections: `Client` speaks to an app of its own."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}", timeout=30) as http:
        there = Client(http, client.world, client.user, client.secret)
        return await kick(there, **given)


async def test_nobody_ends_connections_of_those_they_do_not_manage(
    live: House, world: Environment, http: httpx.AsyncClient, ada: Client, bob: Client
) -> None:
    boss = await make_client(world, http, "boss", role=Role.ADMIN)
    rita = await make_domain_admin(world, http, "rita", domains=())
    mine = await live.follow(ada, PLAIN)
    await until(lambda: live.endpoint.connection_watch.connections)
    them = {"usernames": ["ada"]}
    for client in (bob, rita):
        done = await kick_by(live, client, users=them)
        assert [error["code"] for error in done["errors"]] == ["NOT_FOUND"]
    (error,) = (await kick_by(live, bob, users={"all": True}))["errors"]
    assert error["code"] == "FORBIDDEN"
    assert not mine.over
    assert (await kick_by(live, boss, users=them))["kicked"] == 1
    await until(lambda: mine.over)


async def test_a_purge_waits_until_nobody_is_connected(
    live: House, ada: Client, root: Client
) -> None:
    purge = """mutation ($input: UserPurgeInput!) { userPurge(input: $input) {
        purged errors { code ... on InUseError { sessions } } } }"""
    socket = await live.follow(ada, PLAIN)
    await until(lambda: live.endpoint.connection_watch.connections)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}", timeout=30) as http:
        there = Client(http, root.world, root.user, root.secret)
        given = {"users": {"usernames": ["ada"]}}
        refused = (await there(purge, input=given))["userPurge"]
        assert refused == {"purged": [], "errors": [{"code": "IN_USE", "sessions": 1}]}
        assert await ada("{ viewer { user { username } } }")
        await kick(there, **given)
        await until(lambda: socket.over)
        await until(lambda: not live.endpoint.connection_watch.connections)
        done = (await there(purge, input=given))["userPurge"]
    assert (len(done["purged"]), done["errors"]) == (1, [])


async def test_a_client_reset_ends_connections(live: House, ada: Client) -> None:
    socket = await live.follow(ada, PLAIN)
    await until(lambda: live.endpoint.connection_watch.connections)
    document = "mutation { clientStateReset(input: {}) { errors { code } } }"
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{live.port}", timeout=30) as http:
        done = await Client(http, ada.world, ada.user, ada.secret)(document)
    assert done["clientStateReset"]["errors"] == []
    await until(lambda: socket.over)


async def test_nobody_there_is_said(live: House, ada: Client) -> None:
    (error,) = (await kick_by(live, ada))["errors"]
    assert (error["__typename"], error["code"]) == ("UnavailableError", "NO_SESSION")
    (row,) = await ada.world.database.read(select(col(User.kicked_at)))
    assert row.kicked_at is None


@pytest.mark.parametrize("reason", ["x" * 121, "x" * 10_000, "a\nb"])
async def test_a_reason_is_short_and_of_letters(ada: Client, reason: str) -> None:
    (error,) = (await kick(ada, reason=reason))["errors"]
    assert error["path"] == ["reason"]


async def test_tokens_end_along_where_it_is_asked(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob")
    mine, bobs = (
        await sign_in_environment.create_token("ada"),
        await sign_in_environment.create_token("bob"),
    )
    ctx = Context(sign_in_environment.world, await sign_in_environment.authenticate(mine))
    alone = {"connected": lambda _: False}
    with pytest.raises(ServiceUnavailable):
        await sessions.end_sessions(ctx, UserSelector(), revoke_tokens=False, **alone)
    assert not await sign_in_environment.is_refused(mine)
    await sessions.end_sessions(ctx, UserSelector(), revoke_tokens=False, connected=lambda _: True)
    assert not await sign_in_environment.is_refused(mine)
    await sessions.end_sessions(ctx, UserSelector(), revoke_tokens=True, **alone)
    assert (
        await sign_in_environment.is_refused(mine),
        await sign_in_environment.is_refused(bobs),
    ) == (True, False)


async def test_connections_of_another_process_end_at_its_next_look(
    live: House, ada: Client, clock: Clock
) -> None:
    old = await live.follow(ada, PLAIN)
    await until(lambda: len(live.endpoint.connection_watch.connections) == 1)
    clock.tick(seconds=1)
    async with ada.world.write_session() as session:
        mine = col(User.id) == ada.user.id
        await session.exec(update(User).where(mine).values(kicked_at=clock()))
    clock.tick(seconds=1)
    fresh = await live.follow(ada, PLAIN)
    await until(lambda: len(live.endpoint.connection_watch.connections) == 2)
    await live.endpoint.connection_watch.check_credentials()
    await until(lambda: old.over)
    assert not fresh.over
    await fresh.leave()


async def test_a_kick_is_in_the_users_log(live: House, ada: Client, root: Client) -> None:
    follower = await live.follow(ada, PLAIN)
    await until(lambda: live.endpoint.connection_watch.connections)
    await kick_by(live, root, users={"usernames": ["ada"]})
    rows = await ada.world.database.read(select(core_table(SecurityEvent)))
    assert [(row.action, row.user_id, bool(row.by)) for row in rows] == [
        ("session kick", ada.user.id, True)
    ]
    await until(lambda: follower.over)


async def test_what_is_remembered_is_flushed(ada: Client, bob: Client, root: Client) -> None:
    for client in (ada, bob, root):
        await client("{ viewer { role } }")
    assert len(cache_of_database(ada.world.database).credentials) == 3
    done = await root(FLUSH, input={"users": {"usernames": ["ada"]}})
    assert done["authCacheFlush"] == {"entries": 1, "errors": []}
    done = await root(FLUSH, input={})
    assert done["authCacheFlush"] == {"entries": 2, "errors": []}
    for client in (ada, bob):
        (error,) = (await client(FLUSH, input={}))["authCacheFlush"]["errors"]
        assert error["code"] == "FORBIDDEN"
    await authentication.wait_for_background_tasks(ada.world)
