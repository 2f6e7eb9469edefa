"""Subscriptions as server-sent events."""

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
from tests.support.servers.small_schema_server import Server, a_world, serving

EVENTS = {"Accept": "text/event-stream"}
COMPLETE = ("complete", None)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Environment]:
    async with a_world(tmp_path) as world:
        yield world


@pytest.fixture
async def server(world: Environment) -> AsyncIterator[Server]:
    async with serving(
        world, EndpointSettings(heartbeat=0.1, credential_check_interval=0.05)
    ) as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=30) as client:
        yield client


def stream(
    http: httpx.AsyncClient, server: Server, query: str, **headers: str
) -> AbstractAsyncContextManager[httpx.Response]:
    return http.stream("POST", server.url, json={"query": query}, headers=EVENTS | headers)


async def events(answer: httpx.Response) -> AsyncIterator[tuple[str, Any]]:
    """Kinds and contents; a heartbeat is a "ping"."""
    kind = ""
    async for line in answer.aiter_lines():
        name, _, value = line.partition(": ")
        if line == ": ping":
            yield "ping", None
        elif name == "event":
            kind = value
        elif line.startswith("data:"):
            yield kind, json.loads(value) if value.strip() else None


async def all_events(answer: httpx.Response) -> list[tuple[str, Any]]:
    return [event async for event in events(answer)]


async def test_a_subscription_by_post(http: httpx.AsyncClient, server: Server) -> None:
    async with stream(http, server, "subscription { count }") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
        assert answer.headers["x-request-id"]
        numbers = [("next", {"data": {"count": number}}) for number in range(3)]
        assert await all_events(answer) == [*numbers, COMPLETE]


async def test_a_subscription_by_get(http: httpx.AsyncClient, server: Server) -> None:
    parameters = {"query": "subscription ($n: Int!) { count(to: $n) }", "variables": '{"n": 1}'}
    async with http.stream("GET", server.url, params=parameters, headers=EVENTS) as answer:
        assert await all_events(answer) == [("next", {"data": {"count": 0}}), COMPLETE]


async def test_a_query_and_a_mutation_are_streams_of_one(
    http: httpx.AsyncClient, server: Server
) -> None:
    for query, data in (
        ("{ hello }", {"hello": "world"}),
        ('mutation { change(text: "x") }', {"change": "x"}),
    ):
        async with stream(http, server, query) as answer:
            (kind, result), end = await all_events(answer)
        assert (kind, result["data"], end) == ("next", data, COMPLETE)


async def test_urql_gets_json(http: httpx.AsyncClient, server: Server) -> None:
    accept = (
        "application/graphql-response+json, application/graphql+json, application/json, "
        "text/event-stream, multipart/mixed"
    )
    answer = await http.post(server.url, json={"query": "{ hello }"}, headers={"Accept": accept})
    assert answer.json()["data"] == {"hello": "world"}
    urql_subscribes = {"Accept": "text/event-stream, multipart/mixed"}
    query = {"query": "subscription { count(to: 1) }"}
    async with http.stream("POST", server.url, json=query, headers=urql_subscribes) as streamed:
        assert (await all_events(streamed))[-1] == COMPLETE


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("subscription { count", "GRAPHQL_PARSE_FAILED"),
        ("subscription { nothing }", "GRAPHQL_VALIDATION_FAILED"),
        ("subscription ($n: Int!) { count(to: $n) }", "BAD_USER_INPUT"),
    ],
)
async def test_errors_come_as_an_event(
    http: httpx.AsyncClient, server: Server, query: str, code: str
) -> None:
    async with stream(http, server, query) as answer:
        (kind, result), end = await all_events(answer)
    assert (kind, end) == ("next", COMPLETE)
    assert [error["extensions"]["code"] for error in result["errors"]] == [code]
    assert "data" not in result


async def test_a_wrong_credential_is_401_and_no_stream(
    http: httpx.AsyncClient, server: Server
) -> None:
    async with stream(http, server, "subscription { count }", Authorization="Bearer x") as answer:
        assert answer.status_code == 401
        assert json.loads(await answer.aread())["errors"][0]["extensions"]["code"]
    assert answer.headers["content-type"].startswith("application/json")


async def test_a_source_that_breaks_is_masked(
    http: httpx.AsyncClient, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with stream(http, server, "subscription { broken }") as answer:
        first, (_, last), end = await all_events(answer)
    assert (first, end) == (("next", {"data": {"broken": 1}}), COMPLETE)
    assert last["errors"][0]["extensions"]["code"] == "INTERNAL_SERVER_ERROR"
    assert "hunter2" not in json.dumps(last)
    assert len([record for record in caplog.records if record.exc_info]) == 1


async def test_silence_has_a_heart(http: httpx.AsyncClient, server: Server) -> None:
    async with stream(http, server, "subscription { quiet }") as answer:
        beats = events(answer)
        assert [await anext(beats) for _ in range(3)] == [("ping", None)] * 3


async def test_each_event_loads_afresh(http: httpx.AsyncClient, server: Server) -> None:
    async with stream(http, server, "subscription { items { seen } }") as answer:
        found = await all_events(answer)
    seen = [result["data"]["items"]["seen"] for kind, result in found if kind == "next"]
    assert seen == ["00:00", "01:00", "02:00"]


async def test_a_stream_ends_with_its_credential(http: httpx.AsyncClient, server: Server) -> None:
    query = "subscription { forever }"
    async with stream(http, server, query, Authorization="Bearer brief") as answer:
        heard = events(answer)
        assert await anext(heard) == ("next", {"data": {"forever": 1}})
        server.clock.tick(minutes=2)
        rest = [event async for event in heard if event[0] != "ping"]
    (kind, last), end = rest
    assert (kind, end) == ("next", COMPLETE)
    assert last["errors"][0]["extensions"] == {"code": "UNAUTHENTICATED"}


async def test_who_hangs_up_is_forgotten(http: httpx.AsyncClient, server: Server) -> None:
    async with stream(http, server, "subscription { forever }") as answer:
        await anext(events(answer))
        assert len(server.endpoint.connection_watch.connections) == 1
    async with asyncio.timeout(5):
        while server.endpoint.connection_watch.connections:  # noqa: ASYNC110 - the server rings no bell
            await asyncio.sleep(0.01)


async def test_who_does_not_read_stops_the_source(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    body = b'{"query": "subscription { flood }"}'
    writer.write(
        b"POST /graphql HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )
    await reader.readline()
    assert await server.still() < 1000
    writer.close()
