"""Termination of sessions by sessionTerminate: single ones, all of a pattern, forced or not."""

import asyncio
import contextlib
import socket
from dataclasses import replace
from typing import Any

import orjson
import pytest
from sqlalchemy import select
from sqlmodel import col
from websockets.exceptions import ConnectionClosedError

from models.auth.security_log import SecurityEvent
from models.messages.tables import Message
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.registration import ProcessRegistration
from models.sessions.live_sessions import SessionTermination
from models.submission.tables import Submission
from models.users.roles import Role
from models.users.tables import User
from resolvers.sessions import terminate
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.submission_client import PASSWORD, SHORT_MESSAGE
from tests.support.operations.quarantine_operations import set_options
from tests.support.servers.live_server import CHANGES_SUBSCRIPTION, wait_until
from tests.support.servers.session_server import SESSION_TERMINATE, SESSIONS, SessionServer

RECIPIENT = "ada@example.org"
CLOSING_REPLY = "421 4.3.2 mx.example.org Session closed by the administrator"


async def list_refs(client: GraphQLClient, **session_filter: Any) -> list[dict[str, str]]:
    """Return references to the sessions that the client sees, the newest first."""
    result = await client(SESSIONS, filter=session_filter or None, first=100)
    return [{"id": node["id"]} for node in result["sessions"]["nodes"]]


def counts(payload: Any) -> tuple[int, int]:
    """Return the numbers of ended and of ending sessions. The payload must have no error."""
    assert payload["errors"] == []
    assert payload["unresponsiveNodes"] == []
    return payload["terminatedCount"], payload["pendingCount"]


async def test_only_the_named_session_ends(
    session_server: SessionServer, ada: GraphQLClient
) -> None:
    first = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)
    second = await session_server.live.stream(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(ada.environment.live_sessions) == 2)
    (stream_ref,) = await list_refs(ada, services=["EVENT_STREAM"])
    assert counts(await session_server.terminate(ada, sessions=[stream_ref])) == (1, 0)
    await wait_until(lambda: second.end_frame)
    assert not first.end_frame
    rows = await ada.environment.database.read(select(col(SecurityEvent.action)))
    assert [row.action for row in rows] == ["SESSION_TERMINATED"]
    (row,) = await ada.environment.database.read(select(col(User.sessions_ended_at)))
    assert row.sessions_ended_at is None  # or the other session would end
    (error,) = (await session_server.terminate(ada, sessions=[stream_ref]))["errors"]
    assert error["code"] == "NO_SESSION"
    await first.unsubscribe()


@pytest.mark.parametrize("role", [Role.USER, Role.DOMAIN_ADMIN])
async def test_sessions_of_others_do_not_end(
    session_server: SessionServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    role: Role,
) -> None:
    client = bob
    if role is Role.DOMAIN_ADMIN:
        client = await make_domain_admin(ada.environment, ada.http, "rita")
    over = await make_client(ada.environment, ada.http, "over", role=Role.ADMIN)
    target = over if role is Role.DOMAIN_ADMIN else ada
    follower = await session_server.live.follow(target, CHANGES_SUBSCRIPTION)
    mx = await session_server.open_mx_session()
    await wait_until(lambda: len(ada.environment.live_sessions) == 2)
    refs = await list_refs(root)
    assert len(refs) == 2
    attempts: list[tuple[dict[str, Any], str]] = [
        ({"sessions": refs}, "NO_SESSION"),
        ({"users": {"usernames": [target.user.username]}}, "NOT_FOUND"),
        ({"users": {"patterns": ["*"]}}, "FORBIDDEN" if role is Role.USER else "NO_SESSION"),
        ({"users": {"all": True}}, "FORBIDDEN"),
        ({}, "NO_SESSION"),
    ]
    for input_fields, code in attempts:
        (error,) = (await session_server.terminate(client, **input_fields))["errors"]
        if (target, code) == (over, "NOT_FOUND"):
            assert error["code"] in {"NOT_FOUND", "FORBIDDEN"}
            continue
        assert error["code"] == code, input_fields
    assert not follower.end_frame
    assert (await mx.run_command("NOOP")).startswith("250")
    assert counts(await session_server.terminate(root, sessions=refs)) == (2, 0)
    assert await mx.read_reply() == CLOSING_REPLY
    await mx.close()
    await wait_until(lambda: follower.end_frame)


async def test_pattern_of_all_ends_the_sessions_of_all_managed_users(
    session_server: SessionServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    top = await make_client(ada.environment, ada.http, "top", role=Role.ROOT)
    admin = await make_client(ada.environment, ada.http, "over", role=Role.ADMIN)
    followers = [
        await session_server.live.follow(client, CHANGES_SUBSCRIPTION)
        for client in (ada, ada, bob, top)
    ]
    mx = await session_server.open_mx_session()
    await wait_until(lambda: len(ada.environment.live_sessions) == 5)
    payload = await session_server.terminate(admin, users={"patterns": ["*"]})
    assert counts(payload) == (3, 0)
    assert payload["usernames"] == ["ada", "ada", "bob"]
    await wait_until(lambda: all(follower.end_frame for follower in followers[:3]))
    assert not followers[3].end_frame  # of a ROOT
    assert (await mx.run_command("NOOP")).startswith("250")  # without a user
    await followers[3].unsubscribe()
    await mx.close()


async def test_selection_of_all_is_not_limited_to_the_users_of_one_mutation(
    session_server: SessionServer, environment: Environment, ada: GraphQLClient
) -> None:
    admin = await make_client(environment, ada.http, "over", role=Role.ADMIN)
    set_options(environment, bulk_max_items=1)
    follower = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(environment.live_sessions) == 1)
    assert counts(await session_server.terminate(admin, users={"all": True})) == (1, 0)
    await wait_until(lambda: follower.end_frame)


async def test_invalid_input_ends_nothing(
    session_server: SessionServer, ada: GraphQLClient
) -> None:
    follower = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(ada.environment.live_sessions) == 1)
    refs = await list_refs(ada)
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"sessions": refs, "users": {"usernames": ["ada"]}}, "users", "EXCLUSIVE"),
        ({"sessions": refs, "revokeTokens": True}, "revokeTokens", "EXCLUSIVE"),
        ({"sessions": [{"id": "usr_1"}]}, "sessions", "ID"),
        ({"reason": "x\r\n250 OK"}, "reason", "LENGTH"),
        ({"options": {"idempotencyKey": "once"}}, "options", "UNSUPPORTED"),
    ]
    document = SESSION_TERMINATE.replace(
        "code message", "code ... on ValidationError { constraint }"
    )
    for input_fields, path, constraint in cases:
        async with session_server.client_of(ada) as client:
            result = await client(document, input=input_fields)
        (error,) = result["sessionTerminate"]["errors"]
        assert (error["path"][0], error["constraint"]) == (path, constraint)
    too_many = await session_server.terminate(ada, sessions=refs * 2000)
    assert [error["code"] for error in too_many["errors"]] == ["LIMIT_REACHED"]
    (error,) = (await session_server.terminate(ada, sessions=[]))["errors"]
    assert error["code"] == "VALIDATION"
    assert not follower.end_frame
    await follower.unsubscribe()


@pytest.mark.parametrize("answers", [True, False])
async def test_sessions_end_later_only_if_a_process_does_not_answer(
    session_server: SessionServer,
    environment: Environment,
    root: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
    answers: bool,
) -> None:
    monkeypatch.setattr(terminate, "USERS_PER_TRANSACTION", 2)
    clients = [await make_client(environment, root.http, f"user{number}") for number in range(3)]
    followers = [await session_server.live.follow(one, CHANGES_SUBSCRIPTION) for one in clients]
    await wait_until(lambda: len(environment.live_sessions) == 3)
    if not answers:
        silent = ProcessRegistration(name="silent", answers_requests=True)
        await leases.ensure_process_registered(replace(environment, process=silent))
    usernames = [one.user.username for one in clients]
    payload = await session_server.terminate(root, users={"usernames": usernames})
    assert (payload["terminatedCount"], payload["errors"]) == (3, [])
    assert payload["unresponsiveNodes"] == ([] if answers else [socket.gethostname()])
    rows = await environment.database.read(
        select(col(User.sessions_ended_at)).where(col(User.username).in_(usernames))
    )
    assert [row.sessions_ended_at is None for row in rows] == [answers] * 3
    events = await environment.database.read(select(col(SecurityEvent.user_id)))
    assert sorted(row.user_id for row in events) == sorted(one.user.id for one in clients)
    await wait_until(lambda: all(follower.end_frame for follower in followers))


@pytest.mark.parametrize("is_forced", [False, True])
async def test_submitted_message_is_received_first_unless_forced(
    session_server: SessionServer, environment: Environment, root: GraphQLClient, is_forced: bool
) -> None:
    await make_user(environment, "ada", password=PASSWORD)
    idle, sending = [await session_server.open_submission_session() for _ in range(2)]
    for client in (idle, sending):
        assert (await session_server.sign_in_and_return_reply(client)).startswith("235")
    await sending.start_data("carol@example.net", sender=RECIPIENT)
    users = {"usernames": ["ada"]}
    payload = await session_server.terminate(root, users=users, force=is_forced)
    assert counts(payload) == ((2, 0) if is_forced else (1, 1))
    assert await idle.read_reply() == CLOSING_REPLY
    if not is_forced:
        again = await session_server.terminate(root, users=users)
        assert counts(again) == (0, 1)
        sending.send_bytes(SHORT_MESSAGE + b".\r\n")
        assert (await sending.read_reply()).startswith("250 2.0.0")
    assert await sending.read_reply() == CLOSING_REPLY
    assert await sending.read_until_closed() == b""
    submissions = await environment.database.read(select(col(Submission.id)))
    assert len(submissions) == (0 if is_forced else 1)
    await wait_until(lambda: not len(environment.live_sessions))
    await idle.close()
    await sending.close()


@pytest.mark.usefixtures("ada")
async def test_force_ends_a_session_that_waits_for_its_message(
    session_server: SessionServer, environment: Environment, root: GraphQLClient
) -> None:
    lmtp = await session_server.open_lmtp_session()
    await lmtp.start_data(RECIPIENT)
    refs = await list_refs(root)
    assert counts(await session_server.terminate(root, sessions=refs)) == (0, 1)
    forced = await session_server.terminate(root, sessions=refs, force=True, reason="Gedränge")
    assert counts(forced) == (1, 0)
    assert await lmtp.read_reply() == "421 4.3.2 mx.example.org Gedr?nge"
    messages = await environment.database.read(select(col(Message.id)))
    assert not messages
    await lmtp.close()


async def test_forced_end_comes_after_the_reply_of_a_running_delivery(
    session_server: SessionServer,
    environment: Environment,
    ada: GraphQLClient,
    root: GraphQLClient,
) -> None:
    lmtp = await session_server.open_lmtp_session()
    await lmtp.start_data(RECIPIENT)
    refs = await list_refs(root)
    async with environment.write_session(ada.user.id) as blocking:  # the delivery waits
        await blocking.flush()
        lmtp.send_bytes(SHORT_MESSAGE + b".\r\n")
        await wait_until(lambda: session_server.lmtp._deliveries)  # noqa: SLF001 - no event tells it
        payload = await session_server.terminate(root, sessions=refs, force=True)
        assert counts(payload) == (0, 1)
    assert (await lmtp.read_reply()).startswith("250")
    assert await lmtp.read_reply() == CLOSING_REPLY
    assert len(await environment.database.read(select(col(Message.id)))) == 1
    await lmtp.close()


@pytest.mark.parametrize("is_forced", [False, True])
async def test_running_mutation_ends_first_unless_forced(
    session_server: SessionServer, environment: Environment, ada: GraphQLClient, is_forced: bool
) -> None:
    websocket = await session_server.live.open_websocket(ada)
    other = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(environment.live_sessions) == 2)
    document = 'mutation { mailboxCreate(input: {paths: ["Kept"]}) { errors { code } } }'
    async with environment.write_session(ada.user.id) as blocking:  # the mutation waits
        await blocking.flush()
        frame = {"id": "1", "type": "subscribe", "payload": {"query": document}}
        await websocket.send(orjson.dumps(frame).decode())
        await wait_until(lambda: _has_operation(session_server))
        termination = asyncio.create_task(
            session_server.terminate(ada, sessions=await list_refs(ada), force=is_forced)
        )
        await wait_until(lambda: other.end_frame)
    payload = await termination
    assert payload["terminatedCount"] + payload["pendingCount"] == 2
    frames = []
    with contextlib.suppress(ConnectionClosedError):
        while True:
            frames.append(orjson.loads(await websocket.recv()))
    assert websocket.close_code == 4403
    (frame,) = [frame for frame in frames if frame["type"] != "complete"]
    if is_forced:
        assert frame["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    else:
        assert frame["payload"]["data"] == {"mailboxCreate": {"errors": []}}


@pytest.mark.parametrize("asks_to_reconnect", [False, True])
async def test_new_operation_of_an_ending_websocket_gets_no_error_if_client_repeats_it(
    session_server: SessionServer,
    environment: Environment,
    ada: GraphQLClient,
    asks_to_reconnect: bool,
) -> None:
    websocket = await session_server.live.open_websocket(ada)

    async def subscribe(operation_id: str, document: str) -> None:
        frame = {"id": operation_id, "type": "subscribe", "payload": {"query": document}}
        await websocket.send(orjson.dumps(frame).decode())

    await wait_until(lambda: len(environment.live_sessions) == 1)
    (session,) = environment.live_sessions
    async with environment.write_session(ada.user.id) as blocking:  # the mutation waits
        await blocking.flush()
        await subscribe(
            "running", 'mutation { mailboxCreate(input: {paths: ["Kept"]}) { errors { code } } }'
        )
        await wait_until(lambda: _has_operation(session_server))
        session.terminate(SessionTermination("Restart", asks_to_reconnect=asks_to_reconnect))
        await wait_until(lambda: vars(session)["_end_reason"])
        await subscribe("new", "{ viewer { role } }")
        await websocket.send('{"type": "ping"}')
        frames = [orjson.loads(await websocket.recv())]
        while frames[-1]["type"] != "pong":
            frames.append(orjson.loads(await websocket.recv()))
    errors = [frame["payload"][0] for frame in frames[:-1]]
    assert [error["extensions"]["code"] for error in errors] == (
        [] if asks_to_reconnect else ["UNAUTHENTICATED"]
    )
    with contextlib.suppress(ConnectionClosedError):
        while True:
            frames.append(orjson.loads(await websocket.recv()))
    assert websocket.close_code == (1012 if asks_to_reconnect else 4403)
    assert [frame["id"] for frame in frames if frame["type"] == "next"] == ["running"]


@pytest.mark.parametrize("is_forced", [False, True])
async def test_running_mutation_of_an_event_stream_ends_first_unless_forced(
    session_server: SessionServer, environment: Environment, ada: GraphQLClient, is_forced: bool
) -> None:
    document = 'mutation { mailboxCreate(input: {paths: ["Kept"]}) { errors { code } } }'
    async with environment.write_session(ada.user.id) as blocking:  # the mutation waits
        await blocking.flush()
        stream = await session_server.live.stream(ada, document)
        await wait_until(lambda: len(environment.live_sessions) == 1)
        (session,) = environment.live_sessions
        assert session.subscription_count == 0
        session.terminate(SessionTermination(is_forced=is_forced))
        if is_forced:
            await wait_until(lambda: stream.end_frame)
    await wait_until(lambda: stream.end_frame == "complete")
    (result,) = stream.payloads
    if is_forced:
        assert result["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    else:
        assert result["data"] == {"mailboxCreate": {"errors": []}}


async def test_event_stream_that_ends_sessions_is_no_target_before_its_result(
    session_server: SessionServer, environment: Environment, ada: GraphQLClient
) -> None:
    follower = await session_server.live.follow(ada, CHANGES_SUBSCRIPTION)
    await wait_until(lambda: len(environment.live_sessions) == 1)
    stream = await session_server.live.stream(ada, SESSION_TERMINATE, input={"force": True})
    await wait_until(lambda: stream.end_frame == "complete")
    (result,) = stream.payloads
    assert counts(result["data"]["sessionTerminate"]) == (1, 1)
    await wait_until(lambda: follower.end_frame)


def _has_operation(server: SessionServer) -> bool:
    """True if a WebSocket runs an operation that is no subscription."""
    return any(
        operation.subscriber.observer is None
        for connection in server.live.endpoint.connection_watch.connections
        for operation in getattr(connection, "operations", {}).values()
    )
