"""Documents that are named by their hash: over each transport, trusted and registered ones."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import pytest
from graphql import build_schema
from hypothesis import given, settings
from hypothesis import strategies as some

from graph.execution.documents.cost_limits import OperationLimits
from graph.execution.documents.document_cache import (
    MAX_CACHED_LENGTH,
    MAX_DOCUMENT_LENGTH,
    DocumentCache,
    PreparedDocument,
)
from graph.execution.documents.documents_by_hash import (
    RECHECK_AFTER,
    DocumentsByHash,
    UnknownDocumentRejected,
    parse_document_hash,
)
from graph.http.graphql_endpoint import EndpointSettings
from graph.http.graphql_request import GraphqlRequest, RequestRejected
from merganser.server.environment_factory import root_context
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import Role
from resolvers.admin import trusted_documents as documents
from resolvers.admin.trusted_documents import NewTrustedDocument
from resolvers.context import Context, Viewer
from tests.conftest import Clock
from tests.support.servers.small_schema_server import Server, greet, hear, say, serving
from tests.support.stores import store_fixtures

HELLO, OTHER = "query Hello { hello }", "query Other { echo }"
RESPONSE = "application/graphql-response+json"
NOT_FOUND, NOT_TRUSTED, INPUT = (
    "PERSISTED_QUERY_NOT_FOUND",
    "DOCUMENT_NOT_TRUSTED",
    "BAD_USER_INPUT",
)
TRANSPORTS = ("post", "get", "socket", "events")
USER, STRANGER = Viewer(7, Role.USER), Viewer()


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def by_id(text: str, **more: Any) -> dict[str, Any]:
    return {"documentId": f"sha256:{sha(text)}", **more}


def by_apollo(text: str, **more: Any) -> dict[str, Any]:
    named = {"version": 1, "sha256Hash": sha(text)}
    return {"extensions": {"persistedQuery": named}, **more}


def code_of(errors: Any) -> str:
    (error,) = errors
    assert error["message"]
    found: str = error["extensions"]["code"]
    return found


@dataclass
class Asker:
    """Asks a server over one transport; answers with data, or with the code of the one error."""

    server: Server
    http: httpx.AsyncClient
    transport: str = "post"

    def over(self, transport: str) -> "Asker":
        return replace(self, transport=transport)

    async def __call__(self, members: Mapping[str, Any], **headers: str) -> Any:
        if self.transport == "socket":
            return await self._socket(members)
        if self.transport == "events":
            headers["Accept"] = "text/event-stream"
        answer = await self.raw(members, **headers)
        if not answer.headers["content-type"].startswith("text/event-stream"):
            return told(answer.json())
        kind, data, end, *_ = [line for line in answer.text.splitlines() if line]
        assert (kind, end) == ("event: next", "event: complete")
        return told(orjson.loads(data.removeprefix("data: ")))

    async def raw(self, members: Mapping[str, Any], **headers: str) -> httpx.Response:
        if self.transport == "get":
            sent = parameters(members)
            return await self.http.get(self.server.url, params=sent, headers=headers)
        return await self.http.post(self.server.url, json=members, headers=headers)

    async def _socket(self, members: Mapping[str, Any]) -> Any:
        async with self.server.connect() as ws:
            await greet(ws)
            await say(ws, "subscribe", id="1", payload=members)
            frame = await hear(ws)
            if frame["type"] == "error":
                return code_of(frame["payload"])
            assert (await hear(ws))["type"] == "complete"
            return told(frame["payload"])


def parameters(members: Mapping[str, Any]) -> dict[str, str]:
    return {
        name: value if isinstance(value, str) else orjson.dumps(value).decode()
        for name, value in members.items()
    }


def told(payload: Any) -> Any:
    return code_of(payload["errors"]) if "errors" in payload else payload["data"]


async def trust(world: Environment, *texts: str) -> int:
    return await documents.add_documents(
        root_context(world), [NewTrustedDocument(text) for text in texts]
    )


Start = Callable[..., Awaitable[Asker]]


@pytest.fixture
async def database(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Database]:
    """The table is tried on each store in test_trusted.py."""
    database = Database(store_fixtures.copied(sqlite_template, tmp_path))
    yield database
    await database.close()


@pytest.fixture
async def start(world: Environment) -> AsyncIterator[Start]:
    """Starts a server of this world."""
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))

        async def started(*, only_trusted: bool = False) -> Asker:
            find = partial(documents.find_document_text, world)
            how = EndpointSettings(find_trusted_text=find, only_trusted=only_trusted)
            return Asker(await stack.enter_async_context(serving(world, how)), http)

        yield started


async def test_a_trusted_document_runs_by_its_hash_over_every_transport(
    start: Start, world: Environment
) -> None:
    await trust(world, HELLO)
    started = await start()
    forms = by_id(HELLO), {"documentId": sha(HELLO)}, by_apollo(HELLO), by_id(HELLO, query=HELLO)
    for ask in map(started.over, TRANSPORTS):
        for form in forms:
            assert await ask(form) == {"hello": "world"}, (ask.transport, form)
        assert await ask(by_id(OTHER)) == NOT_FOUND
        assert await ask(by_apollo(OTHER)) == NOT_FOUND


async def test_a_client_registers_by_sending_hash_and_text_together(start: Start) -> None:
    started = await start()
    for number, ask in enumerate(map(started.over, TRANSPORTS)):
        text = f"{{ hello a{number}: hello }}"
        data = {"hello": "world", f"a{number}": "world"}
        assert await ask(by_apollo(text)) == NOT_FOUND
        assert await ask(by_apollo(text, query=text)) == data
        for later in TRANSPORTS:
            assert await ask.over(later)(by_apollo(text)) == data


async def test_variables_and_operation_names_go_with_a_hash(
    start: Start, world: Environment
) -> None:
    text = "query A($t: String) { echo(text: $t) } query B { hello }"
    await trust(world, text)
    started = await start()
    for ask in map(started.over, TRANSPORTS):
        assert await ask(by_id(text, operationName="A", variables={"t": "x"})) == {"echo": "x"}
        assert await ask(by_id(text, operationName="B")) == {"hello": "world"}
        assert await ask(by_id(text)) == INPUT


async def test_where_only_trusted_documents_run_others_are_refused(
    start: Start, world: Environment
) -> None:
    await trust(world, HELLO)
    started = await start(only_trusted=True)
    for ask in map(started.over, TRANSPORTS):
        for form in (by_id(HELLO), by_apollo(HELLO, query=HELLO), {"query": HELLO}):
            assert await ask(form) == {"hello": "world"}, (ask.transport, form)
        for form in (by_id(OTHER), by_apollo(OTHER, query=OTHER), {"query": OTHER}):
            assert await ask(form) == NOT_TRUSTED, (ask.transport, form)
        assert await ask(by_id(HELLO, query=OTHER)) == INPUT
        assert await ask(by_apollo(OTHER)) == NOT_TRUSTED  # sending it has not registered it
    schema = "{ __schema { queryType { name } } }"
    for text in (HELLO + " ", schema, "{ hello", "#" * (MAX_DOCUMENT_LENGTH + 1)):
        assert await started({"query": text}) == NOT_TRUSTED


async def test_statuses_say_what_was_refused(start: Start) -> None:
    any_, strict = await start(), await start(only_trusted=True)
    for ask, members, code, status in (
        (any_, by_apollo(OTHER), NOT_FOUND, 200),
        (any_, by_id(OTHER), NOT_FOUND, 400),
        (strict, by_id(OTHER), NOT_TRUSTED, 403),
        (strict, {"query": OTHER}, NOT_TRUSTED, 403),
    ):
        for accept, expected in ((RESPONSE, status), ("application/json", 200)):
            answer = await ask.raw(members, Accept=accept)
            assert (answer.status_code, told(answer.json())) == (expected, code)
            assert answer.headers["content-type"] == f"{accept}; charset=utf-8"
            assert answer.headers["cache-control"] == "no-store"
            assert "data" not in answer.json()
    (error,) = (await any_.raw(by_apollo(OTHER))).json()["errors"]
    assert error["message"] == "PersistedQueryNotFound"  # what some clients look at


async def test_by_get_a_mutation_stays_forbidden_and_a_page_is_no_answer(
    start: Start, world: Environment
) -> None:
    change = 'mutation { change(text: "x") }'
    await trust(world, change, HELLO)
    get = (await start()).over("get")
    answer = await get.raw(by_id(change), Accept="text/html, */*")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    for form in (by_id(HELLO), by_apollo(HELLO)):
        answer = await get.raw(form, Accept="text/html, */*")
        assert answer.json()["data"] == {"hello": "world"}


async def test_a_wrong_credential_comes_first(start: Start, world: Environment) -> None:
    await trust(world, HELLO)
    ask = await start(only_trusted=True)
    for members in (by_id(HELLO), by_id(OTHER), {"query": OTHER}):
        assert await ask(members, Authorization="Bearer wrong") == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "members",
    [
        {"documentId": "abc"},
        {"documentId": "sha256:"},
        {"documentId": "sha256:" + "A" * 64},
        {"documentId": "md5:" + "0" * 32},
        {"documentId": "x-mine:" + "0" * 64},
        {"documentId": "sha256:sha256:" + "0" * 64},
        {"documentId": " " + "0" * 64},
        {"documentId": "0" * 64 + "\n"},
        {"extensions": {"persistedQuery": {}}},
        {"extensions": {"persistedQuery": []}},
        {"extensions": {"persistedQuery": True}},
        {"extensions": {"persistedQuery": {"version": 2, "sha256Hash": "0" * 64}}},
        {"extensions": {"persistedQuery": {"version": True, "sha256Hash": "0" * 64}}},
        {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 63}}},
        {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": 0}}},
        {**by_id(HELLO), **by_apollo(OTHER)},
        by_id(OTHER, query=HELLO),
        by_apollo(OTHER, query=HELLO),
    ],
)
async def test_a_name_that_is_wrong_is_the_clients_mistake(members: dict[str, Any]) -> None:
    question = GraphqlRequest(
        members.get("query", ""),
        extensions=members.get("extensions"),
        document_id=members.get("documentId"),
    )
    for only_trusted in (False, True):
        with pytest.raises(RequestRejected) as refused:
            await persisted({}, only_trusted=only_trusted).resolve_document(question, asker())
        assert (refused.value.status, refused.value.code) == (400, INPUT)


@settings(max_examples=50)
@given(some.text() | some.from_regex(r"\A(sha256:)?[0-9a-f]{64}\Z"))
def test_a_made_up_name_is_a_hash_or_refused(text: str) -> None:
    try:
        found = parse_document_hash(GraphqlRequest("", document_id=text))
    except RequestRejected:
        return
    assert found
    assert found.digest.hex() == text.removeprefix("sha256:")


@pytest.mark.parametrize(
    "frame",
    [
        {},
        {"documentId": None},
        {"documentId": 1, "query": "{ hello }"},
        {"documentId": ""},
        {"extensions": {}},
        {"extensions": {"persistedQuery": None}},
    ],
)
async def test_a_frame_without_a_document_closes_the_socket(
    start: Start, frame: dict[str, Any]
) -> None:
    ask = await start()
    async with ask.server.connect() as ws:
        await greet(ws)
        await say(ws, "subscribe", id="1", payload=frame)
        await ws.wait_closed()
        assert ws.close_code == 4400


async def test_an_unknown_document_ends_its_operation_only(
    start: Start, world: Environment
) -> None:
    count = "subscription { count(to: 2) }"
    await trust(world, count)
    ask = await start()
    async with ask.server.connect() as ws:
        await greet(ws)
        await say(ws, "subscribe", id="long", payload={"query": "subscription { quiet }"})
        for form, code in ((by_id(OTHER), NOT_FOUND), ({"documentId": "x"}, INPUT)):
            await say(ws, "subscribe", id="1", payload=form)
            frame = await hear(ws)
            assert (frame["type"], frame["id"], code_of(frame["payload"])) == ("error", "1", code)
        await say(ws, "subscribe", id="1", payload=by_id(count))
        kinds = [(await hear(ws))["type"] for _ in range(3)]
        assert kinds == ["next", "next", "complete"]
        await say(ws, "subscribe", id="long", payload=by_id(OTHER))
        await ws.wait_closed()
        assert ws.close_code == 4409


async def test_a_removed_document_is_forgotten_after_a_while(
    start: Start, world: Environment, clock: Clock
) -> None:
    await trust(world, HELLO)
    ask = await start(only_trusted=True)
    assert await ask(by_id(HELLO)) == {"hello": "world"}
    await documents.remove_documents(root_context(world), [hashlib.sha256(HELLO.encode()).digest()])
    clock.tick(seconds=RECHECK_AFTER.total_seconds() - 1)
    assert await ask(by_id(HELLO)) == {"hello": "world"}
    clock.tick(seconds=1)
    for form in (by_id(HELLO), {"query": HELLO}):
        assert await ask(form) == NOT_TRUSTED
    await trust(world, HELLO)
    clock.tick(seconds=RECHECK_AFTER.total_seconds())
    assert await ask(by_id(HELLO)) == {"hello": "world"}


async def test_an_added_document_is_known_at_once(start: Start, world: Environment) -> None:
    ask = (await start(only_trusted=True)).over("get")
    assert await ask(by_id(HELLO)) == NOT_TRUSTED
    await trust(world, HELLO)
    assert await ask(by_id(HELLO)) == {"hello": "world"}


async def test_a_document_that_is_known_costs_no_statement(
    start: Start, world: Environment, statements: list[str]
) -> None:
    await trust(world, HELLO)
    ask = await start(only_trusted=True)
    await ask(by_id(HELLO))
    del statements[:]
    for form in (by_id(HELLO), by_apollo(HELLO), {"query": HELLO}):
        assert await ask(form) == {"hello": "world"}
    assert statements == []


SCHEMA = build_schema("type Query { hello: String other(a: Int): String }")


def persisted(texts: dict[str, str], *, only_trusted: bool = False) -> DocumentsByHash:
    """Over a store with these texts, by the digits of their hashes; it counts what it is asked."""

    async def find(wanted: bytes) -> str | None:
        return texts.get(wanted.hex())

    documents = DocumentCache(SCHEMA, OperationLimits())

    def read(_context: Context, text: str, name: str | None) -> PreparedDocument:
        return documents.find_or_read(text, name)

    return DocumentsByHash(read, find, Clock(), only_trusted=only_trusted)


def asker(viewer: Viewer = USER) -> Context:
    return Context(cast("Environment", None), viewer)  # nothing is read from the world


async def send(to: DocumentsByHash, text: str, viewer: Viewer = USER) -> None:
    await to.resolve_document(GraphqlRequest(text, document_id=sha(text)), asker(viewer))


async def known(to: DocumentsByHash, text: str) -> bool:
    try:
        found = await to.resolve_document(GraphqlRequest("", document_id=sha(text)), asker())
    except UnknownDocumentRejected:
        return False
    return found.document_text == text


async def test_only_a_document_that_is_valid_is_registered() -> None:
    to = persisted({})
    for text in (
        "{ hello",
        "{ nothing }",
        "{ hello }" + " " * MAX_CACHED_LENGTH,
        "x" * (MAX_DOCUMENT_LENGTH + 1),
    ):
        await send(to, text)
        assert not await known(to, text)
    await send(to, "{ hello }")
    assert await known(to, "{ hello }")


async def test_a_flood_of_registrations_displaces_no_trusted_document() -> None:
    to = persisted({sha(HELLO): HELLO})
    assert await known(to, HELLO)
    to.registered.max_entries = 50  # of 1,000, which would take a second
    for number in range(100):
        await send(to, f"{{ other(a: {number}) }}")
    assert (len(to.registered), len(to.trusted)) == (50, 1)
    assert not await known(to, "{ other(a: 0) }")
    assert await known(to, "{ other(a: 99) }")
    assert to.trusted.get(hashlib.sha256(HELLO.encode()).digest())


async def test_what_strangers_register_displaces_nobody_elses() -> None:
    to = persisted({})
    await send(to, "{ hello }")
    for number in range(150):
        await send(to, f"{{ other(a: {number}) }}", STRANGER)
    assert (len(to.registered_by_anonymous), len(to.registered)) == (100, 1)
    assert await known(to, "{ hello }")
    assert await known(to, "{ other(a: 149) }")


async def test_registered_documents_are_bounded_in_bytes() -> None:
    to = persisted({})
    for number in range(100):
        await send(to, f"{{ other(a: {number}) }}" + "#" * 30_000, STRANGER)
    assert to.registered_by_anonymous.used_bytes <= 1 << 20
    assert len(to.registered_by_anonymous) < 40


async def test_hashes_that_are_made_up_are_not_kept() -> None:
    to = persisted({})
    for number in range(1_000):
        assert not await known(to, str(number))
    assert (len(to.trusted), len(to.registered), len(to.registered_by_anonymous)) == (0, 0, 0)
