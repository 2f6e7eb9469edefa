"""Tests of graphql-transport-ws over real sockets."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosedError, InvalidStatus

from graph.http.graphql_endpoint import EndpointSettings
from graph.subscriptions.websocket import WebSocketHandler
from models.runtime.environment import Environment
from resolvers.viewer import Viewer
from tests.support.case_loop import each_case
from tests.support.loop_clock import LoopClock
from tests.support.servers.live_server import wait_until
from tests.support.servers.small_schema_server import (
    SmallSchemaServer,
    init_connection,
    make_environment,
    read_frame,
    run_small_schema_server,
    send_frame,
    wait_for_close_code,
)
from tests.support.time_limits import HANG_SECONDS

BANNED_IP = "203.0.113.7"
USER_HEADERS = {"Authorization": "Bearer user"}


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    async with make_environment(tmp_path) as environment:
        yield environment


@pytest.fixture
async def server(environment: Environment) -> AsyncIterator[SmallSchemaServer]:
    settings = EndpointSettings(
        max_operations_per_socket=4,
        allowed_origins=("https://mail.example.org", "http://localhost:*"),
    )
    async with run_small_schema_server(environment, settings) as server:
        yield server


@pytest.fixture
async def ws(server: SmallSchemaServer) -> AsyncIterator[ClientConnection]:
    """An initialized socket without a credential."""
    async with server.connect() as ws:
        await init_connection(ws)
        yield ws


async def subscribe(ws: ClientConnection, query: str, **members: Any) -> None:
    id_ = members.pop("id", "1")
    await send_frame(ws, "subscribe", id=id_, payload={"query": query, **members})


async def read_results(ws: ClientConnection) -> list[Any]:
    """Return the payloads until the operation ends, and the type of the last frame."""
    frames = [await read_frame(ws)]
    while frames[-1]["type"] == "next":
        frames.append(await read_frame(ws))
    return [*(frame["payload"] for frame in frames[:-1]), frames[-1]["type"]]


async def test_queries_mutations_and_subscriptions(ws: ClientConnection) -> None:
    await subscribe(ws, "query ($t: String) { echo(text: $t) }", variables={"t": "x"})
    result, end = await read_results(ws)
    assert (result["data"], end) == ({"echo": "x"}, "complete")
    await subscribe(ws, 'mutation { change(text: "y") }')
    result, end = await read_results(ws)
    assert (result["data"], end) == ({"change": "y"}, "complete")
    await subscribe(ws, "subscription { count }")
    assert await read_results(ws) == [{"data": {"count": number}} for number in range(3)] + [
        "complete"
    ]


async def test_invalid_frame_closes_socket_with_4400(
    server: SmallSchemaServer, caplog: pytest.LogCaptureFixture
) -> None:
    cases: list[str | bytes] = [
        "",
        "{",
        "1",
        '"x"',
        "null",
        "[]",
        "{}",
        '{"type": 1}',
        '{"type": "nothing"}',
        '{"type": "connection_ack"}',
        '{"type": "ping", "payload": 1}',
        '{"type": "complete"}',
        '{"type": "complete", "id": 1}',
        '{"type": "subscribe"}',
        '{"type": "subscribe", "id": "1"}',
        '{"type": "subscribe", "id": "1", "payload": null}',
        '{"type": "subscribe", "id": "1", "payload": {}}',
        '{"type": "subscribe", "id": "1", "payload": {"query": 1}}',
        '{"type": "subscribe", "id": 1, "payload": {"query": "{ hello }"}}',
        '{"type": "subscribe", "id": "", "payload": {"query": "{ hello }"}}',
        '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "variables": []}}',
        '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "operationName": 1}}',
        '{"type": "subscribe", "id": "1", "payload": {"query": "{ hello }", "extensions": 1}}',
        "[" * 100_000,
        json.dumps({"type": "x" * 500}),
        json.dumps({"type": "complete", "id": "x" * 300}),
        json.dumps({"type": "ping", "payload": {"x": "y" * (1 << 20)}}),
        b'{"type": "ping"}',
    ]
    for case in each_case(cases):
        with case as frame:
            async with server.connect() as ws:
                await init_connection(ws)
                await ws.send(frame)
                assert await wait_for_close_code(ws) == 4400
            assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_connection_init_must_be_an_object(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await send_frame(ws, "connection_init", payload=[])
        assert await wait_for_close_code(ws) == 4400


async def test_socket_without_connection_init_is_closed(environment: Environment) -> None:
    settings = EndpointSettings(init_timeout=0.3)
    async with (
        run_small_schema_server(environment, settings) as server,
        server.connect() as ws,
    ):
        assert await wait_for_close_code(ws) == 4408


async def test_subscribe_before_connection_init_closes_socket(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await subscribe(ws, "{ hello }")
        assert await wait_for_close_code(ws) == 4401


async def test_ban_ends_an_open_websocket_at_its_next_operation(
    server: SmallSchemaServer, environment: Environment, ws: ClientConnection
) -> None:
    (handler,) = server.endpoint.connection_watch.connections
    assert isinstance(handler, WebSocketHandler)
    handler.context.client_ip = BANNED_IP  # loopback is never refused
    now = environment.now()
    environment.refused_networks.set_or_remove_ban(BANNED_IP, now + timedelta(hours=1), now)
    await subscribe(ws, "{ __typename }")
    assert await wait_for_close_code(ws) == 4403
    assert ws.close_reason == "Your network is banned."


async def test_second_connection_init_closes_socket(ws: ClientConnection) -> None:
    await send_frame(ws, "connection_init")
    assert await wait_for_close_code(ws) == 4429


async def test_operation_id_in_use_closes_socket(ws: ClientConnection) -> None:
    for _ in range(2):
        # the close reason has a length limit
        await subscribe(ws, "subscription { quiet }", id="long" * 60)
    assert await wait_for_close_code(ws) == 4409


async def test_operation_id_can_be_reused_after_complete(ws: ClientConnection) -> None:
    await subscribe(ws, "subscription { quiet }")
    await send_frame(ws, "complete", id="1")
    await subscribe(ws, "{ hello }")
    assert (await read_results(ws))[-1] == "complete"


async def test_other_subprotocols_are_refused(server: SmallSchemaServer) -> None:
    cases: list[Any] = [["graphql-ws"], ["something"], None]
    for case in each_case(cases):
        with case as protocols:
            async with server.connect(subprotocols=protocols) as ws:
                assert await wait_for_close_code(ws) == 4406


async def test_pong_returns_payload_of_ping(ws: ClientConnection) -> None:
    await send_frame(ws, "ping", payload={"a": [1]})
    assert await read_frame(ws) == {"type": "pong", "payload": {"a": [1]}}
    await send_frame(ws, "ping")
    assert await read_frame(ws) == {"type": "pong"}
    await send_frame(ws, "pong", payload={})
    await send_frame(ws, "ping")
    assert await read_frame(ws) == {"type": "pong"}


async def test_invalid_document_ends_only_its_operation(ws: ClientConnection) -> None:
    await subscribe(ws, "subscription { quiet }", id="other")
    cases: list[tuple[object, str]] = [
        ({"query": "{ hello"}, "GRAPHQL_PARSE_FAILED"),
        ({"query": ""}, "BAD_USER_INPUT"),
        ({"query": "{ nothing }"}, "GRAPHQL_VALIDATION_FAILED"),
        ({"query": "query a { hello }", "operationName": "b"}, "BAD_USER_INPUT"),
        ({"query": "subscription { count(to: $x) }"}, "GRAPHQL_VALIDATION_FAILED"),
        (
            {"query": "subscription ($n: Int!) { count(to: $n) }", "variables": {"n": "x"}},
            "BAD_USER_INPUT",
        ),
    ]
    for case in each_case(cases):
        with case as (payload, code):
            await send_frame(ws, "subscribe", id="1", payload=payload)
            frame = await read_frame(ws)
            assert (frame["type"], frame["id"]) == ("error", "1")
            assert [error["extensions"]["code"] for error in frame["payload"]] == [code]
            await subscribe(ws, "{ hello }")
            assert (await read_results(ws))[-1] == "complete"


async def test_variable_error_has_its_code(ws: ClientConnection) -> None:
    await subscribe(ws, "query ($n: Int!) { echo(number: $n) }")
    (error,) = (await read_results(ws))[0]["errors"]
    assert error["extensions"] == {"code": "BAD_USER_INPUT"}


async def test_failing_event_source_is_masked(
    ws: ClientConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await subscribe(ws, "subscription { broken }")
    first, last, end = await read_results(ws)
    assert (first, end) == ({"data": {"broken": 1}}, "complete")
    (error,) = last["errors"]
    assert error["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert len(error["extensions"]["requestId"]) == 24
    assert "hunter2" not in json.dumps(last)
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_query_by_socket_ends_at_deadline(environment: Environment) -> None:
    async with (
        run_small_schema_server(environment, EndpointSettings(), deadline=0.3) as server,
        server.connect() as ws,
    ):
        await init_connection(ws)
        await subscribe(ws, "{ slow }")
        (error,) = (await read_frame(ws))["payload"]
    assert error["extensions"] == {"code": "DEADLINE_EXCEEDED"}


async def test_subscription_has_no_deadline(environment: Environment) -> None:
    loop_clock = LoopClock()
    async with (
        run_small_schema_server(environment, EndpointSettings(), deadline=HANG_SECONDS) as server,
        server.connect() as ws,
    ):
        await init_connection(ws)
        await subscribe(ws, "subscription { forever }")
        assert (await read_frame(ws))["payload"] == {"data": {"forever": 1}}
        loop_clock.advance(HANG_SECONDS + 1)
        await send_frame(ws, "ping")
        assert await read_frame(ws) == {"type": "pong"}


async def test_each_event_has_new_dataloaders(ws: ClientConnection) -> None:
    await subscribe(ws, "subscription { items { seen } }")
    *events, _end = await read_results(ws)
    times = [event["data"]["items"]["seen"] for event in events]
    assert times == ["00:00", "01:00", "02:00"]


async def test_no_event_is_sent_after_socket_error(
    ws: ClientConnection, caplog: pytest.LogCaptureFixture
) -> None:
    await subscribe(ws, "subscription { flood }")
    await read_frame(ws)
    await ws.send("{}")
    with pytest.raises(ConnectionClosedError):
        await read_until_closed(ws)
    assert ws.close_code == 4400
    assert not caplog.records


async def read_until_closed(ws: ClientConnection) -> None:
    while await read_frame(ws):
        pass


async def test_aborted_connection_is_not_logged(
    server: SmallSchemaServer, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        ws = await open_with_subscriptions(server, "user")
        await subscribe(ws, "subscription { flood }", id="3")
        await read_frame(ws)
        ws.transport.abort()
    await wait_until(lambda: not server.endpoint.connection_watch.connections)
    assert not caplog.records


async def test_concurrent_operations_of_socket_are_limited(ws: ClientConnection) -> None:
    for number in range(4):
        await subscribe(ws, "subscription { quiet }", id=str(number))
    await subscribe(ws, "{ hello }", id="more")
    frame = await read_frame(ws)
    assert (frame["type"], frame["id"]) == ("error", "more")
    assert frame["payload"][0]["extensions"]["code"] == "RATE_LIMITED"
    await send_frame(ws, "complete", id="0")
    await subscribe(ws, "{ hello }", id="more")
    assert (await read_results(ws))[-1] == "complete"


async def test_connection_init_payload_signs_in(server: SmallSchemaServer) -> None:
    cases: list[dict[str, str]] = [
        {"Authorization": "Bearer user"},
        {"authorization": "Bearer user"},
        {"token": "user"},
        {"X-API-Key": "key"},
        {"x-api-key": "key"},
    ]
    for case in each_case(cases):
        with case as payload:
            async with server.connect() as ws:
                await init_connection(ws, payload)
                await subscribe(ws, "{ whoami }")
                (result, _) = await read_results(ws)
                expected = "ADMIN 0" if "key" in payload.values() else "USER 7"
                assert result["data"]["whoami"].startswith(expected)


async def test_handshake_headers_sign_in(server: SmallSchemaServer) -> None:
    async with server.connect(additional_headers=USER_HEADERS) as ws:
        await init_connection(ws)
        await subscribe(ws, "{ whoami }")
        (result, _) = await read_results(ws)
        assert result["data"]["whoami"].startswith("USER 7")


async def test_invalid_credential_closes_socket(server: SmallSchemaServer) -> None:
    cases: list[object] = [
        {"Authorization": "Bearer wrong"},
        {"token": "wrong"},
        {"Authorization": 7},
    ]
    for case in each_case(cases):
        with case as payload:
            async with server.connect() as ws:
                await send_frame(ws, "connection_init", payload=payload)
                assert await wait_for_close_code(ws) == 4403


async def test_internal_error_at_sign_in_is_logged_and_closes_socket(
    server: SmallSchemaServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.connect() as ws:
        await send_frame(ws, "connection_init", payload={"token": "broken"})
        assert await wait_for_close_code(ws) == 1011
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_origin_that_is_not_allowed_is_refused(server: SmallSchemaServer) -> None:
    cases: list[str] = [
        "https://evil.example",
        "null",
        "https://mail.example.org.evil.example",
        "http://localhost.evil.example:80",
        "https://localhost:1",
    ]
    for case in each_case(cases):
        with case as origin:
            with pytest.raises(InvalidStatus) as error:
                await server.connect(additional_headers={"Origin": origin})
            assert error.value.response.status_code == 403


async def test_allowed_origin_can_open_socket(server: SmallSchemaServer) -> None:
    cases: list[str] = ["https://mail.example.org", "http://localhost:5173"]
    for case in each_case(cases):
        with case as origin:
            origin_header = {"Origin": origin}
            async with server.connect(additional_headers=origin_header) as ws:
                await init_connection(ws)


async def test_own_origin_can_open_socket(server: SmallSchemaServer) -> None:
    origin_header = {"Origin": f"http://127.0.0.1:{server.port}"}
    async with server.connect(additional_headers=origin_header) as ws:
        await init_connection(ws)


async def assert_ends_unauthenticated(ws: ClientConnection) -> None:
    """Assert that both operations end, and then the socket."""
    for _ in range(2):
        frame = await read_frame(ws)
        assert frame["type"] == "error"
        assert frame["payload"][0]["extensions"] == {"code": "UNAUTHENTICATED"}
    assert await wait_for_close_code(ws) == 4403


async def open_with_subscriptions(server: SmallSchemaServer, token: str) -> ClientConnection:
    ws = await server.connect()
    await init_connection(ws, {"token": token})
    for id_ in "12":
        await subscribe(ws, "subscription { quiet }", id=id_)
    await send_frame(ws, "ping")
    assert (await read_frame(ws))["type"] == "pong"
    return ws


async def test_socket_is_closed_when_credential_expires(environment: Environment) -> None:
    async with run_small_schema_server(
        environment, EndpointSettings(credential_check_interval=0.05)
    ) as server:
        expiring_socket = await open_with_subscriptions(server, "brief")
        other_socket = await open_with_subscriptions(server, "user")
        server.clock.tick(seconds=59)
        await server.endpoint.connection_watch.disconnect_ended_and_kicked()
        assert expiring_socket.close_code is None
        server.clock.tick(seconds=1)
        await assert_ends_unauthenticated(expiring_socket)
        assert other_socket.close_code is None
        await other_socket.close()


async def test_no_operation_starts_with_expired_credential(environment: Environment) -> None:
    async with run_small_schema_server(environment, EndpointSettings()) as server:
        ws = await open_with_subscriptions(server, "brief")
        server.clock.tick(minutes=2)
        await subscribe(ws, "{ hello }", id="3")
        await assert_ends_unauthenticated(ws)


async def test_revoked_credential_closes_its_sockets(environment: Environment) -> None:
    revoked: set[int | None] = set()
    checked_tokens: list[int | None] = []

    async def is_ended(viewer: Viewer) -> bool:
        checked_tokens.append(viewer.token_id)
        return viewer.token_id in revoked

    async with run_small_schema_server(
        environment, EndpointSettings(has_credential_ended=is_ended)
    ) as server:
        first_socket, second_socket, other_socket = [
            await open_with_subscriptions(server, token) for token in ("user", "user", "other")
        ]
        anonymous_socket = await server.connect()
        await init_connection(anonymous_socket)
        await server.endpoint.connection_watch.disconnect_ended_and_kicked()
        # once per token, and never for anonymous sockets
        assert sorted(checked_tokens, key=str) == [1, 2]
        revoked.add(1)
        await server.endpoint.connection_watch.disconnect_ended_and_kicked()
        await assert_ends_unauthenticated(first_socket)
        await assert_ends_unauthenticated(second_socket)
        assert other_socket.close_code is None
        await server.endpoint.connection_watch.disconnect_viewers(
            lambda viewer: viewer.user_id == 8
        )
        await assert_ends_unauthenticated(other_socket)
        await anonymous_socket.close()


async def test_credential_check_survives_database_outage(
    environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_ended(_viewer: Viewer) -> bool:
        if not caplog.records:
            raise ConnectionError("no store")
        return True

    async with run_small_schema_server(
        environment, EndpointSettings(has_credential_ended=is_ended, credential_check_interval=0.05)
    ) as server:
        await assert_ends_unauthenticated(await open_with_subscriptions(server, "user"))
    assert len(caplog.records) == 1


async def test_peer_that_does_not_read_does_not_delay_disconnect(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.subscriptions.websocket.DISCONNECT_SECONDS", 0.1)
    document = "subscription { flood }"
    async with (
        run_small_schema_server(environment, EndpointSettings()) as server,
        server.open_unread_websocket(document),
    ):
        assert await server.wait_until_clock_unread() < 1000
        async with asyncio.timeout(HANG_SECONDS):
            await server.endpoint.connection_watch.disconnect_viewers(lambda _viewer: True)


async def test_aborted_socket_is_removed(server: SmallSchemaServer) -> None:
    (await open_with_subscriptions(server, "user")).transport.abort()
    assert len(server.endpoint.connection_watch.connections) == 1
    await wait_until(lambda: not server.endpoint.connection_watch.connections)
