"""Tests of graphql-transport-ws frame by frame: protocol rules and error cases."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from graph.http.graphql_endpoint import EndpointSettings
from tests.support.case_loop import each_case
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

SUBPROTOCOL = "graphql-transport-ws"
pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all tests


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SmallSchemaServer]:
    folder = tmp_path_factory.mktemp("frames")
    async with (
        make_environment(folder) as environment,
        run_small_schema_server(environment, EndpointSettings()) as server,
    ):
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def ws(server: SmallSchemaServer) -> AsyncIterator[ClientConnection]:
    async with server.connect() as ws:
        await init_connection(ws)
        yield ws


async def subscribe(
    ws: ClientConnection, query: str, operation_id: str = "1", **members: Any
) -> None:
    await send_frame(ws, "subscribe", id=operation_id, payload={"query": query, **members})


async def assert_is_alive(ws: ClientConnection) -> None:
    """Assert that the next frame is a pong."""
    await send_frame(ws, "ping")
    assert await read_frame(ws) == {"type": "pong"}


async def test_subprotocol_is_selected_from_offered_ones(server: SmallSchemaServer) -> None:
    cases: list[Any] = [
        [SUBPROTOCOL],
        ["graphql-ws", SUBPROTOCOL],
        [SUBPROTOCOL, "graphql-ws", "mqtt"],
    ]
    for case in each_case(cases):
        with case as offered:
            async with server.connect(subprotocols=offered) as ws:
                assert ws.subprotocol == SUBPROTOCOL
                await init_connection(ws)


async def test_connection_init_needs_no_payload(server: SmallSchemaServer) -> None:
    cases: list[object] = [None, {}, {"anything": ["else"]}]
    for case in each_case(cases):
        with case as payload:
            async with server.connect() as ws:
                await send_frame(ws, "connection_init", payload=payload)
                assert await read_frame(ws) == {"type": "connection_ack"}


async def test_connection_init_payload_must_be_an_object(server: SmallSchemaServer) -> None:
    cases: list[object] = [1, "x", True, [{}]]
    for case in each_case(cases):
        with case as payload:
            async with server.connect() as ws:
                await send_frame(ws, "connection_init", payload=payload)
                assert await wait_for_close_code(ws) == 4400


async def test_second_connection_init_closes_socket(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await send_frame(ws, "connection_init")
        await send_frame(ws, "connection_init")
        assert await wait_for_close_code(ws) == 4429


async def test_ping_and_pong_need_no_connection_init(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await send_frame(ws, "pong")
        await send_frame(ws, "ping", payload={"a": 1})
        assert await read_frame(ws) == {"type": "pong", "payload": {"a": 1}}
        await init_connection(ws)


async def test_subscribe_before_connection_init_has_close_reason(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await subscribe(ws, "{ hello }")
        assert await wait_for_close_code(ws) == 4401
        assert ws.close_reason == "Unauthorized"


async def test_frame_type_of_server_closes_socket(server: SmallSchemaServer) -> None:
    cases: list[str] = ["next", "error", "connection_ack", "data", "start"]
    for case in each_case(cases):
        with case as kind:
            async with server.connect() as ws:
                await init_connection(ws)
                await send_frame(ws, kind, id="1", payload={})
                assert await wait_for_close_code(ws) == 4400


async def test_unknown_member_of_frame_is_ignored(ws: ClientConnection) -> None:
    await send_frame(
        ws, "subscribe", id="1", payload={"query": "{ hello }", "x": 1}, more={"y": []}
    )
    assert (await read_frame(ws))["payload"]["data"] == {"hello": "world"}


async def test_optional_members_can_be_null(ws: ClientConnection) -> None:
    await subscribe(ws, "{ hello }", variables=None, operationName=None, extensions=None)
    assert (await read_frame(ws))["payload"]["data"] == {"hello": "world"}
    assert await read_frame(ws) == {"type": "complete", "id": "1"}


async def test_every_frame_of_an_operation_has_its_id(ws: ClientConnection) -> None:
    for name in "ab":
        await subscribe(ws, "subscription { count }", name)
    frames_by_id: dict[str, list[Any]] = {"a": [], "b": []}
    for _ in range(8):
        frame = await read_frame(ws)
        frames_by_id[frame.pop("id")].append(frame)
    next_frames = [{"type": "next", "payload": {"data": {"count": number}}} for number in range(3)]
    assert frames_by_id == {
        "a": [*next_frames, {"type": "complete"}],
        "b": [*next_frames, {"type": "complete"}],
    }


async def test_operation_id_can_be_reused_after_completion(ws: ClientConnection) -> None:
    for query in ("{ hello }", "{ nothing }", "subscription { count(to: 0) }", "{ hello"):
        await subscribe(ws, query)
        while (await read_frame(ws))["type"] == "next":
            pass
    await assert_is_alive(ws)


async def test_field_errors_are_sent_with_data(ws: ClientConnection) -> None:
    await subscribe(ws, '{ hello refused(kind: "missing") }')
    payload = (await read_frame(ws))["payload"]
    assert payload["data"] == {"hello": "world", "refused": None}
    assert payload["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    assert (await read_frame(ws))["type"] == "complete"


async def test_operation_name_selects_operation(ws: ClientConnection) -> None:
    document = 'query a { hello } query b { echo(text: "b") }'
    await subscribe(ws, document, operationName="b")
    assert (await read_frame(ws))["payload"]["data"] == {"echo": "b"}
    await read_frame(ws)
    await subscribe(ws, document)
    frame = await read_frame(ws)
    assert frame["type"] == "error"
    assert isinstance(frame["payload"], list)


async def test_complete_of_unknown_operation_is_ignored(server: SmallSchemaServer) -> None:
    async with server.connect() as ws:
        await send_frame(ws, "complete", id="none")
        await init_connection(ws)
        await send_frame(ws, "complete", id="none")
        await subscribe(ws, "{ hello }", "done")
        assert [(await read_frame(ws))["type"] for _ in range(2)] == ["next", "complete"]
        await send_frame(ws, "complete", id="done")
        await assert_is_alive(ws)


async def test_complete_stops_event_source_and_is_not_echoed(
    server: SmallSchemaServer, ws: ClientConnection
) -> None:
    await subscribe(ws, "subscription { flood }")
    await read_frame(ws)
    await send_frame(ws, "complete", id="1")
    await send_frame(ws, "ping")
    while (frame := await read_frame(ws))["type"] == "next":  # frames in transit
        pass
    assert frame == {"type": "pong"}
    assert await server.wait_until_clock_unread() < 1000
    await assert_is_alive(ws)


async def test_complete_ends_only_its_operation(ws: ClientConnection) -> None:
    for name in "ab":
        await subscribe(ws, "subscription { quiet }", name)
    await send_frame(ws, "complete", id="a")
    await subscribe(ws, "subscription { quiet }", "a")
    await assert_is_alive(ws)
    await subscribe(ws, "subscription { quiet }", "b")
    assert await wait_for_close_code(ws) == 4409
    assert ws.close_reason == "Subscriber for b already exists"


async def test_operations_run_concurrently(ws: ClientConnection) -> None:
    await subscribe(ws, "{ slow }", "slow")
    await subscribe(ws, "{ hello }", "fast")
    assert (await read_frame(ws))["id"] == "fast"


async def test_text_frame_with_invalid_utf8_closes_socket(ws: ClientConnection) -> None:
    ws.transport.write(b"\x81\x82" + bytes(4) + b"\xff\xfe")
    assert await wait_for_close_code(ws) == 1007


async def test_fragmented_frame_is_reassembled(ws: ClientConnection) -> None:
    text = json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "{ hello }"}})
    await ws.send(text[offset : offset + 7] for offset in range(0, len(text), 7))
    assert (await read_frame(ws))["payload"]["data"] == {"hello": "world"}


async def test_frame_above_size_limit_closes_socket(ws: ClientConnection) -> None:
    await ws.send("x" * (3 << 20))
    assert await wait_for_close_code(ws) == 1009


async def test_normal_close_removes_connection(
    server: SmallSchemaServer, ws: ClientConnection
) -> None:
    await subscribe(ws, "subscription { quiet }")
    await ws.close(1000)
    assert ws.close_code == 1000
    async with asyncio.timeout(HANG_SECONDS):
        while server.endpoint.connection_watch.connections:  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.01)
