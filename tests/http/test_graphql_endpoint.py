"""/graphql over HTTP."""

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http.admission_control import AdmissionControl, Introspection
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from models.runtime.environment import Environment
from resolvers.context import Context, Viewer
from tests.support.servers.small_schema_server import (
    Server,
    a_world,
    client_of,
    make_schema,
    page,
    serving,
    sign_in,
)

RESPONSE = "application/graphql-response+json"
PARSE, VALIDATION, INPUT = (
    "GRAPHQL_PARSE_FAILED",
    "GRAPHQL_VALIDATION_FAILED",
    "BAD_USER_INPUT",
)
USER = {"Authorization": "Bearer user"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Environment]:
    async with a_world(tmp_path) as world:
        yield world


@pytest.fixture
async def http(world: Environment) -> AsyncIterator[httpx.AsyncClient]:
    endpoint = GraphqlEndpoint(
        make_schema(deadline=0.2), world, sign_in, EndpointSettings(page=page)
    )
    async with client_of(endpoint) as client:
        yield client


@pytest.fixture
async def server(world: Environment) -> AsyncIterator[Server]:
    async with serving(world, EndpointSettings(receive_timeout=0.3)) as server:
        yield server


async def ask(http: httpx.AsyncClient, query: str, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    return await http.post("/graphql", json={"query": query, **more}, headers=headers)


def code(answer: httpx.Response) -> str:
    """The code of the one error."""
    (error,) = answer.json()["errors"]
    assert error["message"]
    found: str = error["extensions"]["code"]
    return found


async def test_get_and_post_are_answered_at_graphql_itself(http: httpx.AsyncClient) -> None:
    question = {"query": "query ($t: String) { echo(text: $t) }", "variables": '{"t": "x"}'}
    assert (await http.get("/graphql", params=question)).json()["data"] == {"echo": "x"}
    answer = await ask(http, question["query"], variables={"t": "x"})
    assert answer.json()["data"] == {"echo": "x"}


@pytest.mark.parametrize("accept", ["application/json", RESPONSE, "text/event-stream", "text/html"])
async def test_a_mutation_by_get_is_405(http: httpx.AsyncClient, accept: str) -> None:
    question = {"query": 'mutation { change(text: "x") }'}
    answer = await http.get("/graphql", params=question, headers={"Accept": accept})
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"
    assert code(answer) == INPUT


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS"])
async def test_other_methods_are_405(http: httpx.AsyncClient, method: str) -> None:
    answer = await http.request(method, "/graphql")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
    assert code(answer) == INPUT


QUESTIONS: dict[str, tuple[dict[str, Any], str | None, int]] = {
    "query": ({"query": "{ hello }"}, None, 200),
    "parse error": ({"query": "{ hello"}, PARSE, 400),
    "validation error": ({"query": "{ nothing }"}, VALIDATION, 400),
    "unknown operation": ({"query": "query a { hello }", "operationName": "b"}, INPUT, 400),
    "no operation": ({"query": "fragment a on Query { hello }"}, INPUT, 400),
    "which operation": ({"query": "query a { hello } query b { hello }"}, INPUT, 400),
    "variable error": (
        {"query": "query ($n: Int!) { echo(number: $n) }", "variables": {"n": "x"}},
        INPUT,
        400,
    ),
    "field error": ({"query": '{ refused(kind: "missing") }'}, "NOT_FOUND", 200),
}


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("*/*", "application/json"),
        ("application/json", "application/json"),
        (RESPONSE, RESPONSE),
        (f"{RESPONSE}, application/json;q=0.9", RESPONSE),
        (f"{RESPONSE};q=0.5, application/json", "application/json"),
        (f"{RESPONSE};q=0, */*", "application/json"),
        (f"{RESPONSE}, application/json, text/event-stream, multipart/mixed", RESPONSE),
        ("text/event-stream, */*;q=0.1", "application/json"),
        ("image/png", "application/json"),
    ],
)
@pytest.mark.parametrize("name", QUESTIONS)
async def test_media_types_and_statuses(
    http: httpx.AsyncClient, name: str, accept: str, media: str
) -> None:
    question, found, status = QUESTIONS[name]
    answer = await http.post("/graphql", json=question, headers={"Accept": accept})
    assert answer.headers["content-type"] == f"{media}; charset=utf-8"
    assert answer.status_code == (status if media == RESPONSE else 200)
    assert ("data" in answer.json()) == (status == 200)
    assert code(answer) == found if found else "errors" not in answer.json()


@pytest.mark.parametrize(
    ("body", "status"),
    [
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
            b'{"query": "query '
            + b"a" * 300
            + b'{hello}", "operationName": "'
            + b"a" * 300
            + b'"}',
            400,
        ),
        (b'{"query": "{ hello }", "extensions": 7}', 400),
        (b'{"query": "{ hello }", "variables": null, "extensions": {"x": [1, {}]}}', 200),
        (b'{"query": "{ hello }", "variables": {"a": "' + b"[" * 5000 + b'"}}', 200),
    ],
)
async def test_a_malformed_body_is_the_clients_mistake(
    http: httpx.AsyncClient, body: bytes, status: int
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = await http.post("/graphql", content=body, headers=headers)
    assert answer.status_code == status
    if status == 200:
        assert answer.json()["data"] == {"hello": "world"}
    else:
        assert code(answer) == INPUT


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=x"},
        {"Content-Type": "application/jsonp"},
        {"Content-Type": ""},
        {"Content-Type": "application/json; charset=latin-1"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_only_plain_json_is_taken(http: httpx.AsyncClient, headers: dict[str, str]) -> None:
    body = b'{"query": "{ hello }"}'
    answer = await http.post("/graphql", content=body, headers=headers)
    assert (answer.status_code, code(answer)) == (415, INPUT)


async def test_json_says_its_charset_or_not(http: httpx.AsyncClient) -> None:
    for kind in (
        "application/json",
        "Application/JSON; charset=UTF-8",
        'application/json;charset="utf-8"',
    ):
        answer = await http.post(
            "/graphql", content=b'{"query": "{ hello }"}', headers={"Content-Type": kind}
        )
        assert answer.json()["data"] == {"hello": "world"}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"query": ""},
        {"query": "{ hello }", "variables": "{"},
        {"query": "{ hello }", "variables": "[]"},
        {"query": "{ hello }", "extensions": "1"},
        {"query": "{ hello }", "variables": "[" * 3000},
    ],
)
async def test_malformed_parameters_are_the_clients_mistake(
    http: httpx.AsyncClient, parameters: dict[str, str]
) -> None:
    answer = await http.get("/graphql", params=parameters)
    assert (answer.status_code, code(answer)) == (400, INPUT)


async def test_a_body_of_a_mebibyte_is_taken_and_one_byte_more_is_not(
    http: httpx.AsyncClient,
) -> None:
    body = b'{"query": "{ hello }", "variables": {"a": ""}}'
    full = body.replace(b'""', b'"' + b"x" * ((1 << 20) - len(body)) + b'"')
    headers = {"Content-Type": "application/json"}
    answer = await http.post("/graphql", content=full, headers=headers)
    assert answer.json()["data"] == {"hello": "world"}
    answer = await http.post("/graphql", content=full + b" ", headers=headers)
    assert (answer.status_code, code(answer)) == (413, "TOO_LARGE")


HEAD = b"POST /graphql HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


async def test_a_large_body_is_refused_before_it_comes(server: Server) -> None:
    answer = await server.raw(HEAD + b"Content-Length: 9999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"<still open>" not in answer


async def test_a_body_without_a_length_is_counted(server: Server) -> None:
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 17)
    assert answer.startswith(b"HTTP/1.1 413 ")


async def test_a_body_that_trickles_in_is_given_up(server: Server) -> None:
    answer = await server.raw(HEAD + b'Content-Length: 100\r\n\r\n{"query":')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"DEADLINE_EXCEEDED" in answer
    assert b"<still open>" not in answer


async def test_a_caller_who_hangs_up_in_the_middle_disturbs_nobody(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.raw(HEAD + b'Content-Length: 100\r\n\r\n{"query":', seconds=0.05)
    async with httpx.AsyncClient(timeout=30) as http:
        assert (await http.post(server.url, json={"query": "{ hello }"})).status_code == 200
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_headers_that_every_answer_has(http: httpx.AsyncClient) -> None:
    for answer in (await ask(http, "{ hello }"), await ask(http, "{"), await http.put("/graphql")):
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert len(answer.headers["x-request-id"]) == 24


@pytest.mark.parametrize(("sent", "kept"), [("a-1_B.c", True), ("a b", False), ("a" * 65, False)])
async def test_a_plain_request_id_is_kept(http: httpx.AsyncClient, sent: str, kept: bool) -> None:
    answer = await ask(http, "{ hello }", headers={"X-Request-Id": sent})
    assert (answer.headers["x-request-id"] == sent) == kept


async def test_a_browser_gets_the_page_and_nobody_else(http: httpx.AsyncClient) -> None:
    browser = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert "GraphiQL" in (await http.get("/graphql", headers=browser)).text
    assert (await http.get("/graphql", headers={"Accept": "*/*"})).status_code == 400
    answer = await http.get("/graphql", params={"query": "{ hello }"}, headers=browser)
    assert answer.json()["data"] == {"hello": "world"}


@pytest.mark.parametrize("shown", ["Bearer wrong", "Basic dXNlcjp4", "user"])
async def test_a_wrong_credential_ends_the_whole_request(
    http: httpx.AsyncClient, shown: str
) -> None:
    answer = await ask(http, "{ hello }", headers={"Authorization": shown})
    assert (answer.status_code, code(answer)) == (401, "UNAUTHENTICATED")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "data" not in answer.json()


async def test_a_right_credential_and_none(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "{ whoami }", headers=USER)
    assert answer.json()["data"] == {"whoami": "USER 7 127.0.0.1"}
    answer = await ask(http, "{ whoami }")
    assert answer.json()["data"] == {"whoami": "PUBLIC 0 127.0.0.1"}


async def test_only_keys_are_believed_who_they_speak_for(http: httpx.AsyncClient) -> None:
    said = {"X-Client-IP": "2001:DB8::1"}
    answer = await ask(http, "{ whoami }", headers=said | USER)
    assert answer.json()["data"] == {"whoami": "USER 7 127.0.0.1"}
    answer = await ask(http, "{ whoami }", headers=said | {"X-API-Key": "key"})
    assert answer.json()["data"] == {"whoami": "ADMIN 0 2001:db8::1"}
    answer = await ask(http, "{ whoami }", headers={"X-Client-IP": "here", "X-API-Key": "key"})
    assert answer.json()["data"] == {"whoami": "ADMIN 0 127.0.0.1"}


@pytest.mark.parametrize(("accept", "status"), [("*/*", 200), (RESPONSE, 403)])
async def test_a_reading_key_changes_nothing(
    http: httpx.AsyncClient, accept: str, status: int
) -> None:
    reader = {"Authorization": "Bearer reader", "Accept": accept}
    answer = await ask(http, 'mutation { change(text: "x") }', headers=reader)
    assert (answer.status_code, code(answer)) == (status, "FORBIDDEN")
    assert "data" not in answer.json()
    assert (await ask(http, "{ hello }", headers=reader)).json()["data"] == {"hello": "world"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("unauthenticated", "UNAUTHENTICATED"),
        ("forbidden", "FORBIDDEN"),
        ("missing", "NOT_FOUND"),
        ("id", "BAD_ID"),
        ("cursor", "BAD_CURSOR"),
        ("page", "BAD_PAGINATION"),
        ("pattern", "BAD_USER_INPUT"),
        ("conflict", "CONFLICT"),
        ("limited", "RATE_LIMITED"),
    ],
)
async def test_a_refused_field_has_the_code_of_its_refusal(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, kind: str, expected: str
) -> None:
    answer = await ask(http, f'{{ hello refused(kind: "{kind}") }}')
    assert code(answer) == expected
    assert answer.json()["data"] == {"hello": "world", "refused": None}
    assert answer.json()["errors"][0]["path"] == ["refused"]
    assert answer.json()["errors"][0]["locations"] == [{"line": 1, "column": 9}]
    assert not caplog.records


async def test_a_limited_caller_hears_how_long_to_wait(http: httpx.AsyncClient) -> None:
    answer = await ask(http, '{ refused(kind: "limited") }')
    assert answer.json()["errors"][0]["extensions"]["retryAfterSeconds"] == 7


@pytest.mark.parametrize("query", ["{ broken }", "{ huge }", "{ a: broken b: broken c: broken }"])
async def test_a_bug_is_masked_and_logged_once(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, query: str
) -> None:
    answer = await ask(http, query, headers={"X-Request-Id": "r1"})
    for error in answer.json()["errors"]:
        assert error["message"] == "Something broke on our side."
        assert error["extensions"] == {"code": "INTERNAL_SERVER_ERROR", "requestId": "r1"}
    assert "hunter2" not in answer.text
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.exc_info
    assert vars(record)["request_id"] == "r1"
    assert query not in caplog.text


async def test_a_bug_outside_of_fields_is_masked_too(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await ask(http, "{ hello }", headers={"Authorization": "Bearer broken"})
    assert (answer.status_code, code(answer)) == (500, "INTERNAL_SERVER_ERROR")
    assert answer.json()["errors"][0]["extensions"]["requestId"] == answer.headers["x-request-id"]
    assert "hunter2" not in answer.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("query", "variables"),
    [
        ("query ($e: Even!) { even(value: $e) }", {"e": 3}),
        ("query ($n: Int) { echo(number: $n) }", {"n": None}),
        ("query ($n: Int!) { echo(number: $n) }", {}),
        ("query ($y: Boolean!) { hello @include(if: $y) }", {"y": 3}),
    ],
)
async def test_what_a_type_refuses_is_the_clients_mistake(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture, query: str, variables: object
) -> None:
    assert code(await ask(http, query, variables=variables)) == INPUT
    assert not caplog.records


async def test_suggestions_are_for_those_who_signed_in(http: httpx.AsyncClient) -> None:
    for query in ("{ helo }", '{ echo(tex: "x") }', "{ ... on Qery { hello } }"):
        (stranger,) = (await ask(http, query)).json()["errors"]
        (user,) = (await ask(http, query, headers=USER)).json()["errors"]
        assert user["message"].startswith(stranger["message"])
        assert "Did you mean" not in stranger["message"]
        assert "Did you mean" in user["message"]


async def test_an_operation_ends_at_its_deadline(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "{ slow }", headers={"Accept": RESPONSE})
    assert (answer.status_code, code(answer)) == (200, "DEADLINE_EXCEEDED")
    assert answer.json()["data"] is None


async def test_a_subscription_is_not_for_plain_http(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "subscription { count }")
    assert (answer.status_code, code(answer)) == (400, INPUT)


async def test_apollo_hears_that_no_document_is_persisted(http: httpx.AsyncClient) -> None:
    persisted = {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}
    answer = await http.post("/graphql", json=persisted)
    assert (answer.status_code, code(answer)) == (200, "PERSISTED_QUERY_NOT_FOUND")
    assert answer.json()["errors"][0]["message"] == "PersistedQueryNotFound"


async def test_half_a_surrogate_pair_is_no_bug(http: httpx.AsyncClient) -> None:
    answer = await ask(http, "{ odd }")
    assert json.loads(answer.content)["data"] == {"odd": "half a pair: \ud83d"}


async def test_each_operation_loads_afresh(world: Environment) -> None:
    schema, context = make_schema(), Context(world, Viewer())
    clock: Any = world.clock.read
    seen = []
    for _ in range(2):
        seen.append((await schema.execute("{ item { seen } }", None, context)).data)
        clock.tick(hours=1)
    assert seen == [{"item": {"seen": "00:00"}}, {"item": {"seen": "01:00"}}]


@pytest.mark.parametrize(
    ("who", "stranger", "user"),
    [
        ("open", None, None),
        ("signed-in", "UNAUTHENTICATED", None),
        ("off", "FORBIDDEN", "FORBIDDEN"),
    ],
)
async def test_the_schema_is_shown_to_whom_it_may_be(
    world: Environment, who: Introspection, stranger: str | None, user: str | None
) -> None:
    """Whoever may not look at it gets no suggestions either, on any road."""
    settings = EndpointSettings(guards=AdmissionControl(introspection=who))
    async with client_of(GraphqlEndpoint(make_schema(), world, sign_in, settings)) as http:
        for query in (
            "{ __schema { queryType { name } } }",
            '{ a: __type(name: "Item") { name } }',
        ):
            for headers, refused in (({}, stranger), (USER, user)):
                answer = await ask(http, query, headers=headers)
                assert (code(answer) if refused else answer.json().get("errors")) == refused
        assert "errors" not in (await ask(http, "{ __typename }")).json()
        shown = "Did you mean" in (await ask(http, "{ helo }", headers=USER)).text
        assert shown is (user is None)
        events = await ask(http, "{ helo }", headers={**USER, "Accept": "text/event-stream"})
        assert ("Did you mean" in events.text) is (user is None)
