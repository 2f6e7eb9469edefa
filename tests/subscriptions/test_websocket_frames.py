"""graphql-transport-ws frame by frame: what its text demands beside what goes wrong."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from websockets.asyncio.client import ClientConnection

from graph.http.graphql_endpoint import EndpointSettings
from tests.support.servers.small_schema_server import (
    Server,
    a_world,
    closing,
    greet,
    hear,
    say,
    serving,
)

NEW = "graphql-transport-ws"
pytestmark = pytest.mark.asyncio(loop_scope="module")  # one server for all of them


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    folder = tmp_path_factory.mktemp("frames")
    async with a_world(folder) as world, serving(world, EndpointSettings(init_timeout=2)) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def ws(server: Server) -> AsyncIterator[ClientConnection]:
    async with server.connect() as ws:
        await greet(ws)
        yield ws


async def begin(ws: ClientConnection, query: str, id: str = "1", **more: Any) -> None:
    await say(ws, "subscribe", id=id, payload={"query": query, **more})


async def alive(ws: ClientConnection) -> None:
    """Nothing comes before the pong: no frame, no close."""
    await say(ws, "ping")
    assert await hear(ws) == {"type": "pong"}


@pytest.mark.parametrize("offered", [[NEW], ["graphql-ws", NEW], [NEW, "graphql-ws", "mqtt"]])
async def test_the_protocol_is_chosen_from_those_offered(server: Server, offered: Any) -> None:
    async with server.connect(subprotocols=offered) as ws:
        assert ws.subprotocol == NEW
        await greet(ws)


@pytest.mark.parametrize("payload", [None, {}, {"anything": ["else"]}])
async def test_a_greeting_needs_no_payload(server: Server, payload: object) -> None:
    async with server.connect() as ws:
        await say(ws, "connection_init", payload=payload)
        assert await hear(ws) == {"type": "connection_ack"}


@pytest.mark.parametrize("payload", [1, "x", True, [{}]])
async def test_a_greeting_with_another_payload_is_a_bad_frame(
    server: Server, payload: object
) -> None:
    async with server.connect() as ws:
        await say(ws, "connection_init", payload=payload)
        assert await closing(ws) == 4400


async def test_two_greetings_in_one_breath(server: Server) -> None:
    async with server.connect() as ws:
        await say(ws, "connection_init")
        await say(ws, "connection_init")
        assert await closing(ws) == 4429


async def test_pings_and_pongs_need_no_greeting(server: Server) -> None:
    async with server.connect() as ws:
        await say(ws, "pong")
        await say(ws, "ping", payload={"a": 1})
        assert await hear(ws) == {"type": "pong", "payload": {"a": 1}}
        await greet(ws)


async def test_who_is_refused_before_greeting_is_told_why(server: Server) -> None:
    async with server.connect() as ws:
        await begin(ws, "{ hello }")
        assert await closing(ws) == 4401
        assert ws.close_reason == "Unauthorized"


@pytest.mark.parametrize("kind", ["next", "error", "connection_ack", "data", "start"])
async def test_what_only_servers_say_is_a_bad_frame(ws: ClientConnection, kind: str) -> None:
    await say(ws, kind, id="1", payload={})
    assert await closing(ws) == 4400


async def test_an_unknown_member_of_a_frame_does_no_harm(ws: ClientConnection) -> None:
    await say(ws, "subscribe", id="1", payload={"query": "{ hello }", "x": 1}, more={"y": []})
    assert (await hear(ws))["payload"]["data"] == {"hello": "world"}


async def test_optional_members_may_be_null(ws: ClientConnection) -> None:
    await begin(ws, "{ hello }", variables=None, operationName=None, extensions=None)
    assert (await hear(ws))["payload"]["data"] == {"hello": "world"}
    assert await hear(ws) == {"type": "complete", "id": "1"}


async def test_every_frame_of_an_operation_bears_its_id(ws: ClientConnection) -> None:
    for name in "ab":
        await begin(ws, "subscription { count }", name)
    heard: dict[str, list[Any]] = {"a": [], "b": []}
    for _ in range(8):
        frame = await hear(ws)
        heard[frame.pop("id")].append(frame)
    nexts = [{"type": "next", "payload": {"data": {"count": n}}} for n in range(3)]
    assert heard == {"a": [*nexts, {"type": "complete"}], "b": [*nexts, {"type": "complete"}]}


async def test_an_id_can_be_used_again_at_once(ws: ClientConnection) -> None:
    for query in ("{ hello }", "{ nothing }", "subscription { count(to: 0) }", "{ hello"):
        await begin(ws, query)
        while (await hear(ws))["type"] == "next":
            pass
    await alive(ws)


async def test_errors_of_fields_come_with_the_data(ws: ClientConnection) -> None:
    await begin(ws, '{ hello refused(kind: "missing") }')
    payload = (await hear(ws))["payload"]
    assert payload["data"] == {"hello": "world", "refused": None}
    assert payload["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    assert (await hear(ws))["type"] == "complete"


async def test_the_name_chooses_the_operation(ws: ClientConnection) -> None:
    both = 'query a { hello } query b { echo(text: "b") }'
    await begin(ws, both, operationName="b")
    assert (await hear(ws))["payload"]["data"] == {"echo": "b"}
    await hear(ws)
    await begin(ws, both)
    frame = await hear(ws)
    assert frame["type"] == "error"
    assert isinstance(frame["payload"], list)


async def test_completing_what_does_not_run_does_nothing(server: Server) -> None:
    async with server.connect() as ws:
        await say(ws, "complete", id="none")
        await greet(ws)
        await say(ws, "complete", id="none")
        await begin(ws, "{ hello }", "done")
        assert [(await hear(ws))["type"] for _ in range(2)] == ["next", "complete"]
        await say(ws, "complete", id="done")
        await alive(ws)


async def test_completing_ends_the_source_and_is_not_echoed(
    server: Server, ws: ClientConnection
) -> None:
    await begin(ws, "subscription { flood }")
    await hear(ws)
    await say(ws, "complete", id="1")
    await say(ws, "ping")
    while (frame := await hear(ws))["type"] == "next":  # on their way already
        pass
    assert frame == {"type": "pong"}
    assert await server.still() < 1000
    await alive(ws)


async def test_completing_one_leaves_the_others(ws: ClientConnection) -> None:
    for name in "ab":
        await begin(ws, "subscription { quiet }", name)
    await say(ws, "complete", id="a")
    await begin(ws, "subscription { quiet }", "a")
    await alive(ws)
    await begin(ws, "subscription { quiet }", "b")
    assert await closing(ws) == 4409
    assert ws.close_reason == "Subscriber for b already exists"


async def test_operations_do_not_wait_for_each_other(ws: ClientConnection) -> None:
    await begin(ws, "{ slow }", "slow")
    await begin(ws, "{ hello }", "fast")
    assert (await hear(ws))["id"] == "fast"


async def test_a_text_frame_that_is_no_text_closes_the_socket(ws: ClientConnection) -> None:
    ws.transport.write(b"\x81\x82" + bytes(4) + b"\xff\xfe")
    assert await closing(ws) == 1007


async def test_a_frame_in_pieces_is_one(ws: ClientConnection) -> None:
    text = json.dumps({"type": "subscribe", "id": "1", "payload": {"query": "{ hello }"}})
    await ws.send(text[at : at + 7] for at in range(0, len(text), 7))
    assert (await hear(ws))["payload"]["data"] == {"hello": "world"}


async def test_a_frame_beyond_every_limit_closes_the_socket(ws: ClientConnection) -> None:
    await ws.send("x" * (3 << 20))
    assert await closing(ws) == 1009


async def test_a_socket_is_closed_in_good_order(server: Server, ws: ClientConnection) -> None:
    await begin(ws, "subscription { quiet }")
    await ws.close(1000)
    assert ws.close_code == 1000
    async with asyncio.timeout(5):
        while server.endpoint.connection_watch.connections:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)
