"""Documents that are named by their hash: trusted and registered ones, over each transport."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from graph.execution.documents.document_cache import MAX_DOCUMENT_LENGTH
from graph.execution.documents.documents_by_hash import RECHECK_AFTER
from graph.http.graphql_endpoint import EndpointSettings
from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from models.store.database import Database
from resolvers.admin import trusted_documents as documents
from resolvers.admin.trusted_documents import NewTrustedDocument
from tests.conftest import ManualClock
from tests.support.case_loop import each_case
from tests.support.clients.document_requests import (
    BAD_INPUT,
    ECHO_QUERY,
    HELLO_QUERY,
    NOT_FOUND,
    NOT_TRUSTED,
    request_by_apollo_hash,
    request_by_id,
    sha256_hex,
)
from tests.support.servers.small_schema_server import (
    SmallSchemaServer,
    init_connection,
    read_frame,
    run_small_schema_server,
    send_frame,
)
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

RESPONSE_TYPE = "application/graphql-response+json"
TRANSPORTS = ("post", "get", "socket", "events")


def only_error_code(errors: Any) -> str:
    (error,) = errors
    assert error["message"]
    code: str = error["extensions"]["code"]
    return code


@dataclass
class DocumentClient:
    """Sends requests over one transport; returns data or the code of the only error."""

    server: SmallSchemaServer
    http: httpx.AsyncClient
    transport: str = "post"

    def with_transport(self, transport: str) -> "DocumentClient":
        return replace(self, transport=transport)

    async def __call__(self, members: Mapping[str, Any], **headers: str) -> Any:
        if self.transport == "socket":
            return await self._socket(members)
        if self.transport == "events":
            headers["Accept"] = "text/event-stream"
        answer = await self.raw(members, **headers)
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return data_or_error_code(answer.json())
        kind, data, end, *_ = [line for line in answer.text.splitlines() if line]
        assert (kind, end) == ("event: next", "event: complete")
        return data_or_error_code(orjson.loads(data.removeprefix("data: ")))

    async def raw(self, members: Mapping[str, Any], **headers: str) -> httpx.Response:
        if self.transport == "get":
            sent = query_parameters(members)
            return await self.http.get(self.server.url, params=sent, headers=headers)
        return await self.http.post(self.server.url, json=members, headers=headers)

    async def _socket(self, members: Mapping[str, Any]) -> Any:
        async with self.server.connect() as ws:
            await init_connection(ws)
            await send_frame(ws, "subscribe", id="1", payload=members)
            frame = await read_frame(ws)
            if frame["type"] == "error":
                return only_error_code(frame["payload"])
            assert (await read_frame(ws))["type"] == "complete"
            return data_or_error_code(frame["payload"])


def query_parameters(members: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in members.items()
    }


def data_or_error_code(payload: Any) -> Any:
    return only_error_code(payload["errors"]) if "errors" in payload else payload["data"]


async def add_trusted_documents(environment: Environment, *texts: str) -> int:
    return await documents.add_documents_and_count_new(
        root_context(environment), [NewTrustedDocument(text) for text in texts]
    )


StartServer = Callable[..., Awaitable[DocumentClient]]


@pytest.fixture
async def database(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """A SQLite database. See tests/admin/test_trusted_documents.py for PostgreSQL."""
    database = Database(store_fixtures.copy_sqlite_template(sqlite_template, tmp_path))
    yield database
    await database.close()


@pytest.fixture
async def start_server(environment: Environment) -> AsyncIterator[StartServer]:
    """A function that starts a server of this environment."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=HANG_SECONDS))

        async def start_one(*, only_trusted: bool = False) -> DocumentClient:
            find_text = partial(documents.find_document_text, environment)
            endpoint_settings = EndpointSettings(
                find_trusted_text=find_text, only_trusted=only_trusted
            )
            return DocumentClient(
                await stack.enter_async_context(
                    run_small_schema_server(environment, endpoint_settings)
                ),
                http,
            )

        yield start_one


async def test_trusted_document_runs_by_hash_over_every_transport(
    start_server: StartServer, environment: Environment
) -> None:
    await add_trusted_documents(environment, HELLO_QUERY)
    client = await start_server()
    requests = (
        request_by_id(HELLO_QUERY),
        {"documentId": sha256_hex(HELLO_QUERY)},
        request_by_apollo_hash(HELLO_QUERY),
        request_by_id(HELLO_QUERY, query=HELLO_QUERY),
    )
    for transport_client in map(client.with_transport, TRANSPORTS):
        for request in requests:
            assert await transport_client(request) == {"hello": "world"}, (
                transport_client.transport,
                request,
            )
        assert await transport_client(request_by_id(ECHO_QUERY)) == NOT_FOUND
        assert await transport_client(request_by_apollo_hash(ECHO_QUERY)) == NOT_FOUND


async def test_document_is_registered_by_hash_with_text(start_server: StartServer) -> None:
    client = await start_server()
    for number, transport_client in enumerate(map(client.with_transport, TRANSPORTS)):
        text = f"{{ hello a{number}: hello }}"
        data = {"hello": "world", f"a{number}": "world"}
        assert await transport_client(request_by_apollo_hash(text)) == NOT_FOUND
        assert await transport_client(request_by_apollo_hash(text, query=text)) == data
        for transport in TRANSPORTS:
            assert (
                await transport_client.with_transport(transport)(request_by_apollo_hash(text))
                == data
            )


async def test_hash_is_used_with_variables_and_operation_name(
    start_server: StartServer, environment: Environment
) -> None:
    text = "query A($t: String) { echo(text: $t) } query B { hello }"
    await add_trusted_documents(environment, text)
    client = await start_server()
    for transport_client in map(client.with_transport, TRANSPORTS):
        assert await transport_client(
            request_by_id(text, operationName="A", variables={"t": "x"})
        ) == {"echo": "x"}
        assert await transport_client(request_by_id(text, operationName="B")) == {"hello": "world"}
        assert await transport_client(request_by_id(text)) == BAD_INPUT


async def test_untrusted_documents_are_refused_in_trusted_only_mode(
    start_server: StartServer, environment: Environment
) -> None:
    await add_trusted_documents(environment, HELLO_QUERY)
    client = await start_server(only_trusted=True)
    for transport_client in map(client.with_transport, TRANSPORTS):
        for request in (
            request_by_id(HELLO_QUERY),
            request_by_apollo_hash(HELLO_QUERY, query=HELLO_QUERY),
            {"query": HELLO_QUERY},
        ):
            assert await transport_client(request) == {"hello": "world"}, (
                transport_client.transport,
                request,
            )
        for request in (
            request_by_id(ECHO_QUERY),
            request_by_apollo_hash(ECHO_QUERY, query=ECHO_QUERY),
            {"query": ECHO_QUERY},
        ):
            assert await transport_client(request) == NOT_TRUSTED, (
                transport_client.transport,
                request,
            )
        assert await transport_client(request_by_id(HELLO_QUERY, query=ECHO_QUERY)) == BAD_INPUT
        # the refused request has not registered it
        assert await transport_client(request_by_apollo_hash(ECHO_QUERY)) == NOT_TRUSTED
    schema = "{ __schema { queryType { name } } }"
    for text in (HELLO_QUERY + " ", schema, "{ hello", "#" * (MAX_DOCUMENT_LENGTH + 1)):
        assert await client({"query": text}) == NOT_TRUSTED


async def test_status_code_of_refused_documents(start_server: StartServer) -> None:
    open_client, strict_client = await start_server(), await start_server(only_trusted=True)
    for client, members, code, status in (
        (open_client, request_by_apollo_hash(ECHO_QUERY), NOT_FOUND, 200),
        (open_client, request_by_id(ECHO_QUERY), NOT_FOUND, 400),
        (strict_client, request_by_id(ECHO_QUERY), NOT_TRUSTED, 403),
        (strict_client, {"query": ECHO_QUERY}, NOT_TRUSTED, 403),
    ):
        for accept, expected in ((RESPONSE_TYPE, status), ("application/json", 200)):
            answer = await client.raw(members, Accept=accept)
            assert (answer.status_code, data_or_error_code(answer.json())) == (expected, code)
            assert answer.headers["content-type"] == f"{accept}; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert "data" not in answer.json()
    (error,) = (await open_client.raw(request_by_apollo_hash(ECHO_QUERY))).json()["errors"]
    assert error["message"] == "PersistedQueryNotFound"  # some clients compare this text


async def test_get_by_hash_refuses_mutations_and_returns_no_html(
    start_server: StartServer, environment: Environment
) -> None:
    mutation = 'mutation { change(text: "x") }'
    await add_trusted_documents(environment, mutation, HELLO_QUERY)
    client = (await start_server()).with_transport("get")
    answer = await client.raw(request_by_id(mutation), Accept="text/html, */*")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for request in (request_by_id(HELLO_QUERY), request_by_apollo_hash(HELLO_QUERY)):
        answer = await client.raw(request, Accept="text/html, */*")
        assert answer.json()["data"] == {"hello": "world"}


async def test_wrong_credential_is_refused_before_the_document(
    start_server: StartServer, environment: Environment
) -> None:
    await add_trusted_documents(environment, HELLO_QUERY)
    client = await start_server(only_trusted=True)
    for members in (request_by_id(HELLO_QUERY), request_by_id(ECHO_QUERY), {"query": ECHO_QUERY}):
        assert await client(members, Authorization="Bearer wrong") == "UNAUTHENTICATED"


async def test_frame_without_document_closes_the_websocket(start_server: StartServer) -> None:
    client = await start_server()
    cases: list[dict[str, Any]] = [
        {},
        {"documentId": None},
        {"documentId": 1, "query": "{ hello }"},
        {"documentId": ""},
        {"extensions": {}},
        {"extensions": {"persistedQuery": None}},
    ]
    for case in each_case(cases):
        with case as frame:
            async with client.server.connect() as ws:
                await init_connection(ws)
                await send_frame(ws, "subscribe", id="1", payload=frame)
                await ws.wait_closed()
                assert ws.close_code == 4400


async def test_unknown_document_ends_only_its_operation(
    start_server: StartServer, environment: Environment
) -> None:
    count_query = "subscription { count(to: 2) }"
    await add_trusted_documents(environment, count_query)
    client = await start_server()
    async with client.server.connect() as ws:
        await init_connection(ws)
        await send_frame(ws, "subscribe", id="long", payload={"query": "subscription { quiet }"})
        for request, code in (
            (request_by_id(ECHO_QUERY), NOT_FOUND),
            ({"documentId": "x"}, BAD_INPUT),
        ):
            await send_frame(ws, "subscribe", id="1", payload=request)
            frame = await read_frame(ws)
            assert (frame["type"], frame["id"], only_error_code(frame["payload"])) == (
                "error",
                "1",
                code,
            )
        await send_frame(ws, "subscribe", id="1", payload=request_by_id(count_query))
        kinds = [(await read_frame(ws))["type"] for _ in range(3)]
        assert kinds == ["next", "next", "complete"]
        await send_frame(ws, "subscribe", id="long", payload=request_by_id(ECHO_QUERY))
        await ws.wait_closed()
        assert ws.close_code == 4409


async def test_removed_document_is_refused_after_recheck_interval(
    start_server: StartServer, environment: Environment, clock: ManualClock
) -> None:
    await add_trusted_documents(environment, HELLO_QUERY)
    client = await start_server(only_trusted=True)
    assert await client(request_by_id(HELLO_QUERY)) == {"hello": "world"}
    await documents.remove_trusted_documents(
        root_context(environment), [hashlib.sha256(HELLO_QUERY.encode()).digest()]
    )
    clock.tick(seconds=RECHECK_AFTER.total_seconds() - 1)
    assert await client(request_by_id(HELLO_QUERY)) == {"hello": "world"}
    clock.tick(seconds=1)
    for request in (request_by_id(HELLO_QUERY), {"query": HELLO_QUERY}):
        assert await client(request) == NOT_TRUSTED
    await add_trusted_documents(environment, HELLO_QUERY)
    clock.tick(seconds=RECHECK_AFTER.total_seconds())
    assert await client(request_by_id(HELLO_QUERY)) == {"hello": "world"}


async def test_added_document_is_known_at_once(
    start_server: StartServer, environment: Environment
) -> None:
    client = (await start_server(only_trusted=True)).with_transport("get")
    assert await client(request_by_id(HELLO_QUERY)) == NOT_TRUSTED
    await add_trusted_documents(environment, HELLO_QUERY)
    assert await client(request_by_id(HELLO_QUERY)) == {"hello": "world"}


async def test_known_document_needs_no_statement(
    start_server: StartServer, environment: Environment, statements: list[str]
) -> None:
    await add_trusted_documents(environment, HELLO_QUERY)
    client = await start_server(only_trusted=True)
    await client(request_by_id(HELLO_QUERY))
    del statements[:]
    for request in (
        request_by_id(HELLO_QUERY),
        request_by_apollo_hash(HELLO_QUERY),
        {"query": HELLO_QUERY},
    ):
        assert await client(request) == {"hello": "world"}
    assert statements == []
