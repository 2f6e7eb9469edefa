"""Bodies of requests to /graphql: JSON, parameters, content types, size and time limits."""

import logging
from collections.abc import AsyncIterator

import httpx
import pytest

from graph.http.graphql_endpoint import EndpointSettings
from models.runtime.environment import Environment
from tests.support.case_loop import each_case
from tests.support.servers.small_schema_client import BAD_INPUT, environment, error_code, http
from tests.support.servers.small_schema_server import SmallSchemaServer, run_small_schema_server
from tests.support.time_limits import HANG_SECONDS

__all__ = ["environment", "http"]


@pytest.fixture
async def server(environment: Environment) -> AsyncIterator[SmallSchemaServer]:
    async with run_small_schema_server(environment, EndpointSettings(receive_timeout=3)) as server:
        yield server


MALFORMED_BODIES: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"1", 400),
    (b'"x"', 400),
    (b"null", 400),
    (b"[]", 400),
    (b'[{"query": "{ hello }"}]', 400),
    (b"{", 400),
    (b'{"query": "\xff"}', 400),
    (b"[" * 100_000, 400),
    (b'{"query": "{ hello }", "variables": {"a": ' + b"[" * 70 + b"]" * 70 + b"}}", 400),
    (b'{"query": "{ hello }", "variables": {"a": ' + b"[" * 2000 + b"]" * 2000 + b"}}", 400),
    (b"{}", 400),
    (b'{"query": null}', 400),
    (b'{"query": ""}', 400),
    (b'{"query": 1}', 400),
    (b'{"query": "{ hello }", "variables": []}', 400),
    (b'{"query": "{ hello }", "variables": "{}"}', 400),
    (b'{"query": "{ hello }", "operationName": {}}', 400),
    (
        b'{"query": "query ' + b"a" * 300 + b'{hello}", "operationName": "' + b"a" * 300 + b'"}',
        400,
    ),
    (b'{"query": "{ hello }", "extensions": 7}', 400),
    (b'{"query": "{ hello }", "variables": null, "extensions": {"x": [1, {}]}}', 200),
    (b'{"query": "{ hello }", "variables": {"a": "' + b"[" * 5000 + b'"}}', 200),
]


async def test_malformed_body_is_bad_input(http: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    for case in each_case(MALFORMED_BODIES):
        with case as (body, status):
            response = await http.post("/graphql", content=body, headers=headers)
            assert response.status_code == status
            if status == 200:
                assert response.json()["data"] == {"hello": "world"}
            else:
                assert error_code(response) == BAD_INPUT


async def test_other_content_types_are_refused(http: httpx.AsyncClient) -> None:
    cases: list[dict[str, str]] = [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": ""},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ]
    for case in each_case(cases):
        with case as headers:
            body = b'{"query": "{ hello }"}'
            response = await http.post("/graphql", content=body, headers=headers)
            assert (response.status_code, error_code(response)) == (415, BAD_INPUT)


async def test_json_with_or_without_charset_is_accepted(http: httpx.AsyncClient) -> None:
    for content_type in (
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
    ):
        response = await http.post(
            "/graphql", content=b'{"query": "{ hello }"}', headers={"Content-Type": content_type}
        )
        assert response.json()["data"] == {"hello": "world"}


async def test_malformed_parameters_are_bad_input(http: httpx.AsyncClient) -> None:
    cases: list[dict[str, str]] = [
        {},
        {"query": ""},
        {"query": "{ hello }", "variables": "{"},
        {"query": "{ hello }", "variables": "[]"},
        {"query": "{ hello }", "extensions": "1"},
        {"query": "{ hello }", "variables": "[" * 3000},
    ]
    for case in each_case(cases):
        with case as parameters:
            response = await http.get("/graphql", params=parameters)
            assert (response.status_code, error_code(response)) == (400, BAD_INPUT)


async def test_body_size_limit_is_one_mebibyte(
    http: httpx.AsyncClient,
) -> None:
    body = b'{"query": "{ hello }", "variables": {"a": ""}}'
    largest_body = body.replace(b'""', b'"' + b"x" * ((1 << 20) - len(body)) + b'"')
    headers = {"Content-Type": "application/json"}
    response = await http.post("/graphql", content=largest_body, headers=headers)
    assert response.json()["data"] == {"hello": "world"}
    response = await http.post("/graphql", content=largest_body + b" ", headers=headers)
    assert (response.status_code, error_code(response)) == (413, "TOO_LARGE")


REQUEST_HEAD = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_large_content_length_is_refused_before_body(server: SmallSchemaServer) -> None:
    response = await server.exchange_bytes(REQUEST_HEAD + b"Content-Length: 9999999999\r\n\r\n")
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"<still open>" not in response


async def test_chunked_body_above_limit_is_refused(server: SmallSchemaServer) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    response = await server.exchange_bytes(
        REQUEST_HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17
    )
    assert response.startswith(b"HTTP/1.1 413 ")


async def test_incomplete_body_is_refused_after_timeout(server: SmallSchemaServer) -> None:
    response = await server.exchange_bytes(REQUEST_HEAD + b'Content-Length: 100\r\n\r\n{"query":')
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b"DEADLINE_EXCEEDED" in response
    assert b"<still open>" not in response


async def test_disconnect_during_body_is_not_logged(
    server: SmallSchemaServer, caplog: pytest.LogCaptureFixture
) -> None:
    await server.exchange_bytes(
        REQUEST_HEAD + b'Content-Length: 100\r\n\r\n{"query":', seconds=0.05
    )
    async with httpx.AsyncClient(timeout=HANG_SECONDS) as http:
        assert (await http.post(server.url, json={"query": "{ hello }"})).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
