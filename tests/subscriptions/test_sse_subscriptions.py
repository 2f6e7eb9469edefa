"""Tests of subscriptions as server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http.graphql_endpoint import EndpointSettings
from models.runtime.environment import Environment
from tests.support.case_loop import each_case
from tests.support.servers.small_schema_server import (
    SmallSchemaServer,
    make_environment,
    run_small_schema_server,
)
from tests.support.time_limits import HANG_SECONDS

EVENT_STREAM_HEADERS = {"Accept": "text/event-stream"}
COMPLETE_EVENT = ("complete", None)


@pytest.fixture
async def environment(tmp_path: Path) -> AsyncIterator[Environment]:
    async with make_environment(tmp_path) as environment:
        yield environment


@pytest.fixture
async def server(environment: Environment) -> AsyncIterator[SmallSchemaServer]:
    async with run_small_schema_server(
        environment, EndpointSettings(heartbeat=HANG_SECONDS, credential_check_interval=0.05)
    ) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as client:
        yield client


def open_stream(
    http: httpx.AsyncClient, server: SmallSchemaServer, query: str, **headers: str
) -> AbstractAsyncContextManager[httpx.Response]:
    return http.stream(
        "POST", server.url, json={"query": query}, headers=EVENT_STREAM_HEADERS | headers
    )


async def read_events(response: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Yield the kind and data of each event. A heartbeat has the kind "ping"."""
    kind = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line == ": ping":
            yield "ping", None
        elif name == "event":
            kind = value
        elif line.startswith("data:"):
            yield kind, json.loads(value) if value.strip() else None


async def read_all_events(response: httpx.Response) -> list[tuple[str, Any]]:
    return [event async for event in read_events(response)]


async def test_subscription_by_post(http: httpx.AsyncClient, server: SmallSchemaServer) -> None:
    async with open_stream(http, server, "subscription { count }") as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-store, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["x-request-id"]
        numbers = [("next", {"data": {"count": number}}) for number in range(3)]
        assert await read_all_events(response) == [*numbers, COMPLETE_EVENT]


async def test_subscription_by_get(http: httpx.AsyncClient, server: SmallSchemaServer) -> None:
    parameters = {"query": "subscription ($n: Int!) { count(to: $n) }", "variables": '{"n": 1}'}
    async with http.stream(
        "GET", server.url, params=parameters, headers=EVENT_STREAM_HEADERS
    ) as response:
        assert await read_all_events(response) == [("next", {"data": {"count": 0}}), COMPLETE_EVENT]


async def test_query_and_mutation_are_streams_of_one_event(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    for query, data in (
        ("{ hello }", {"hello": "world"}),
        ('mutation { change(text: "x") }', {"change": "x"}),
    ):
        async with open_stream(http, server, query) as response:
            (kind, result), end = await read_all_events(response)
        assert (kind, result["data"], end) == ("next", data, COMPLETE_EVENT)


async def test_query_of_urql_gets_json_and_subscription_gets_stream(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    accept = (
        "application/graphql-response+json, application/graphql+json, application/json, "
        "text/event-stream, multipart/mixed"
    )
    response = await http.post(server.url, json={"query": "{ hello }"}, headers={"Accept": accept})
    assert response.json()["data"] == {"hello": "world"}
    subscription_headers = {"Accept": "text/event-stream, multipart/mixed"}
    query = {"query": "subscription { count(to: 1) }"}
    async with http.stream(
        "POST", server.url, json=query, headers=subscription_headers
    ) as stream_response:
        assert (await read_all_events(stream_response))[-1] == COMPLETE_EVENT


async def test_error_is_sent_as_event(http: httpx.AsyncClient, server: SmallSchemaServer) -> None:
    cases: list[tuple[str, str]] = [
        ("subscription { count", "GRAPHQL_PARSE_FAILED"),
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription ($n: Int!) { count(to: $n) }", "BAD_USER_INPUT"),
    ]
    for case in each_case(cases):
        with case as (query, code):
            async with open_stream(http, server, query) as response:
                (kind, result), end = await read_all_events(response)
            assert (kind, end) == ("next", COMPLETE_EVENT)
            assert [error["extensions"]["code"] for error in result["errors"]] == [code]
            assert "data" not in result


async def test_invalid_credential_is_unauthenticated_without_stream(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    async with open_stream(
        http, server, "subscription { count }", Authorization="Bearer x"
    ) as response:
        assert response.status_code == 401
        assert json.loads(await response.aread())["errors"][0]["extensions"]["code"]
    assert response.headers["content-type"].startswith("application/json")


async def test_failing_event_source_is_masked(
    http: httpx.AsyncClient, server: SmallSchemaServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_stream(http, server, "subscription { broken }") as response:
        first, (_, last), end = await read_all_events(response)
    assert (first, end) == (("next", {"data": {"broken": 1}}), COMPLETE_EVENT)
    assert last["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert "hunter2" not in json.dumps(last)
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_silent_stream_sends_heartbeats(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    async with (
        run_small_schema_server(environment, EndpointSettings(heartbeat=0.1)) as server,
        open_stream(http, server, "subscription { quiet }") as response,
    ):
        heartbeats = read_events(response)
        assert [await anext(heartbeats) for _ in range(3)] == [("ping", None)] * 3


async def test_each_event_has_new_dataloaders(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    async with open_stream(http, server, "subscription { items { seen } }") as response:
        received = await read_all_events(response)
    times = [result["data"]["items"]["seen"] for kind, result in received if kind == "next"]
    assert times == ["00:00", "01:00", "02:00"]


async def test_stream_ends_when_credential_expires(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    query = "subscription { forever }"
    async with open_stream(http, server, query, Authorization="Bearer brief") as response:
        received = read_events(response)
        assert await anext(received) == ("next", {"data": {"forever": 1}})
        server.clock.tick(minutes=2)
        remaining = [event async for event in received if event[0] != "ping"]
    (kind, last), end = remaining
    assert (kind, end) == ("next", COMPLETE_EVENT)
    assert last["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}


async def test_disconnected_stream_is_removed(
    http: httpx.AsyncClient, server: SmallSchemaServer
) -> None:
    async with open_stream(http, server, "subscription { forever }") as response:
        await anext(read_events(response))
        assert len(server.endpoint.connection_watch.connections) == 1
    async with asyncio.timeout(HANG_SECONDS):
        while server.endpoint.connection_watch.connections:  # noqa: ASYNC110 - the server has no event
            await asyncio.sleep(0.01)


async def test_client_that_does_not_read_stops_event_source(server: SmallSchemaServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"query": "subscription { flood }"}'
    writer.write(
        b"POST /graphql HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    await reader.readline()
    assert await server.wait_until_clock_unread() < 1000
    writer.close()
