"""Waiting for the end of sessions and tasks by sessionDrain."""

import asyncio
from typing import Any

import orjson
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.admin.tasks import Task, TaskKind, TaskState
from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, make_user
from tests.support.mail_servers.submission_client import PASSWORD
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, wait_until
from tests.support.servers.session_server import SESSION_DRAIN, SessionServer

ADA: dict[str, Any] = {"usernames": ["ada"]}
DONE = {"users": [{"username": "ada"}], "errors": []}


@pytest.mark.usefixtures("ada")
async def test_drain_returns_at_once_without_sessions(
    session_server: SessionServer, root: GraphQLClient
) -> None:
    assert await session_server.drain(root, users=ADA) == DONE


async def test_drain_waits_for_the_end_of_sessions(
    session_server: SessionServer,
    ada: GraphQLClient,
    root: GraphQLClient,
    statements: list[str],
) -> None:
    followers = [await session_server.live.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(2)]
    await wait_until(lambda: len(ada.environment.live_sessions) == 2)
    for options in ({}, {"validateOnly": True}):
        payload = await session_server.drain(root, users=ADA, timeout="PT0S", options=options)
        assert payload["errors"] == [
            {
                "__typename": "SessionsOpenError",
                "code": "IN_USE",
                "path": ["users"],
                "sessions": 2,
                "tasks": 0,
            }
        ]
    del statements[:]
    waiting = asyncio.create_task(session_server.drain(root, users=ADA, timeout="PT1M"))
    await wait_until(lambda: any("task_count" in statement for statement in statements))
    later = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)  # is accepted
    await wait_until(lambda: len(ada.environment.live_sessions) == 3)
    for follower in (*followers, later):
        assert not follower.end_frame
        assert not waiting.done()
        await follower.unsubscribe()
    assert await waiting == DONE


async def test_drain_with_terminate_ends_and_refuses_sessions(
    session_server: SessionServer, environment: Environment, root: GraphQLClient, bob: GraphQLClient
) -> None:
    user = await make_user(environment, "ada", password=PASSWORD)
    await add_running_task(environment, user.id)
    submission = await session_server.open_submission_session()
    assert (await session_server.sign_in_and_return_reply(submission)).startswith("235")
    waiting = asyncio.create_task(
        session_server.drain(root, users=ADA, timeout="PT1M", terminate=True)
    )
    assert (await submission.read_reply()).startswith("421 4.3.2")
    refused = await session_server.open_submission_session()
    assert (await session_server.sign_in_and_return_reply(refused)).startswith("454 4.7.0")
    follower = await session_server.live.follow(bob, CHANGES_SUBSCRIPTION)  # another user
    assert not waiting.done()  # for the task
    async with environment.write_session() as session:
        await session.exec(update(Task).values(state=TaskState.SUCCEEDED))
    assert await waiting == DONE
    assert (await session_server.sign_in_and_return_reply(refused)).startswith("235")
    events = await environment.database.read(
        select(col(SecurityEvent.action), col(SecurityEvent.user_id)).where(
            col(SecurityEvent.action) == "SESSION_TERMINATED"
        )
    )
    assert [tuple(event) for event in events] == [("SESSION_TERMINATED", user.id)]
    for client in (submission, refused):
        await client.close()
    await follower.unsubscribe()


async def test_sockets_and_streams_are_refused_while_users_drain(
    session_server: SessionServer, ada: GraphQLClient
) -> None:
    registry = ada.environment.live_sessions
    registry.refuse_or_accept_new_sessions([ada.user.id], 60)
    async with session_server.client_of(ada) as client:
        response = await client.http.post(
            "/graphql",
            json={"query": CHANGES_SUBSCRIPTION},
            headers={**ada.headers, "Accept": "text/event-stream"},
        )
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        path = f"/rest/users/{global_ids.encode('User', ada.user.id)}/updates"
        response = await client.http.get(path, headers=ada.headers)
        assert response.status_code == 503
        assert (await client("{ viewer { user { username } } }"))["viewer"]
    with pytest.raises(Exception, match="No sessions of this user are accepted now"):
        await session_server.live.open_websocket(ada)
    registry.refuse_or_accept_new_sessions([ada.user.id], 0)
    await (await session_server.live.open_websocket(ada)).close()


async def test_calling_session_is_neither_counted_nor_ended(
    session_server: SessionServer, admin_client: GraphQLClient
) -> None:
    caller = await session_server.live.open_websocket(admin_client)
    users = {"usernames": ["over"]}
    variables = {"input": {"users": users, "terminate": True, "timeout": "PT10S"}}
    payload = {"query": SESSION_DRAIN, "variables": variables}
    await caller.send(orjson.dumps({"id": "1", "type": "subscribe", "payload": payload}).decode())
    frame = orjson.loads(await caller.recv())
    assert frame["payload"]["data"]["sessionDrain"] == {
        "users": [{"username": "over"}],
        "errors": [],
    }
    await caller.close()


@pytest.mark.usefixtures("ada")
async def test_drain_needs_an_administrator_and_a_valid_timeout(
    session_server: SessionServer, bob: GraphQLClient, root: GraphQLClient
) -> None:
    (error,) = (await session_server.drain(bob, users=ADA))["errors"]
    assert error["code"] == "FORBIDDEN"
    (error,) = (await session_server.drain(root, users=ADA, timeout="PT11M"))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["timeout"])
    (error,) = (await session_server.drain(root, users={"usernames": ["nobody"]}))["errors"]
    assert error["code"] == "NOT_FOUND"


async def add_running_task(environment: Environment, user_id: int) -> None:
    now = environment.now()
    async with environment.write_session(user_id) as session:
        session.add(
            Task(
                id=environment.new_id(),
                user_id=user_id,
                kind=TaskKind.USER_EXPORT,
                state=TaskState.RUNNING,
                not_before=now,
                created_at=now,
            )
        )
