"""Requests to /graphql over HTTP: methods, media types, headers, credentials and errors."""

import json
import logging
from itertools import product
from typing import Any

import httpx
import pytest

from graph.http.admission_control import AdmissionControl, Introspection
from graph.http.graphql_endpoint import EndpointSettings, GraphqlEndpoint
from models.runtime.environment import Environment
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.support.case_loop import each_case
from tests.support.servers.small_schema_client import (
    BAD_INPUT,
    PARSE_FAILED,
    VALIDATION_FAILED,
    environment,
    error_code,
    http,
)
from tests.support.servers.small_schema_server import (
    authenticate_by_header,
    make_schema,
    open_http_client,
)

__all__ = ["environment", "http"]
RESPONSE_MEDIA_TYPE = "application/graphql-response+json"
USER_HEADERS = {"Authorization": "Bearer user"}


async def post_query(http: httpx.AsyncClient, query: str, **members: Any) -> httpx.Response:
    headers = members.pop("headers", {})
    return await http.post("/graphql", json={"query": query, **members}, headers=headers)


async def test_get_and_post_are_answered(http: httpx.AsyncClient) -> None:
    request_body = {"query": "query ($t: String) { echo(text: $t) }", "variables": '{"t": "x"}'}
    assert (await http.get("/graphql", params=request_body)).json()["data"] == {"echo": "x"}
    response = await post_query(http, request_body["query"], variables={"t": "x"})
    assert response.json()["data"] == {"echo": "x"}


async def test_mutation_by_get_is_not_allowed(http: httpx.AsyncClient) -> None:
    cases: list[str] = ["application/json", RESPONSE_MEDIA_TYPE, "text/event-stream", "text/html"]
    for case in each_case(cases):
        with case as accept:
            request_body = {"query": 'mutation { change(text: "x") }'}
            response = await http.get("/graphql", params=request_body, headers={"Accept": accept})
            assert response.status_code == 405
            assert response.headers["allow"] == "POST"
            assert error_code(response) == BAD_INPUT


async def test_other_methods_are_not_allowed(http: httpx.AsyncClient) -> None:
    cases: list[str] = ["PUT", "DELETE", "PATCH", "OPTIONS"]
    for case in each_case(cases):
        with case as method:
            response = await http.request(method, "/graphql")
            assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")
            assert error_code(response) == BAD_INPUT


REQUESTS: dict[str, tuple[dict[str, Any], str | None, int]] = {
    "query": ({"query": "{ hello }"}, None, 200),
    "parse error": ({"query": "{ hello"}, PARSE_FAILED, 400),
    "validation error": ({"query": "{ nothing }"}, VALIDATION_FAILED, 400),
    "unknown operation": ({"query": "query a { hello }", "operationName": "b"}, BAD_INPUT, 400),
    "no operation": ({"query": "fragment a on Query { hello }"}, BAD_INPUT, 400),
    "which operation": ({"query": "query a { hello } query b { hello }"}, BAD_INPUT, 400),
    "variable error": (
        {"query": "query ($n: Int!) { echo(number: $n) }", "variables": {"n": "x"}},
        BAD_INPUT,
        400,
    ),
    "field error": ({"query": '{ refused(kind: "missing") }'}, "NOT_FOUND", 200),
}


MEDIA_TYPES: list[tuple[str, str]] = [
    ("*/*", "application/json"),
    ("application/json", "application/json"),
    (RESPONSE_MEDIA_TYPE, RESPONSE_MEDIA_TYPE),
    (f"{RESPONSE_MEDIA_TYPE}, application/json;q=0.9", RESPONSE_MEDIA_TYPE),
    (f"{RESPONSE_MEDIA_TYPE};q=0.5, application/json", "application/json"),
    (f"{RESPONSE_MEDIA_TYPE};q=0, */*", "application/json"),
    (
        f"{RESPONSE_MEDIA_TYPE}, application/json, text/event-stream, multipart/mixed",
        RESPONSE_MEDIA_TYPE,
    ),
    ("text/event-stream, */*;q=0.1", "application/json"),
    ("image/png", "application/json"),
]


async def test_media_type_and_status_of_response(http: httpx.AsyncClient) -> None:
    for case in each_case(product(MEDIA_TYPES, REQUESTS)):
        with case as ((accept, media), name):
            request_body, expected_code, status = REQUESTS[name]
            response = await http.post("/graphql", json=request_body, headers={"Accept": accept})
            assert response.headers["content-type"] == f"{media}; charset=utf-8"
            assert response.status_code == (status if media == RESPONSE_MEDIA_TYPE else 200)
            assert ("data" in response.json()) == (status == 200)
            assert (
                error_code(response) == expected_code
                if expected_code
                else "errors" not in response.json()
            )


async def test_every_response_has_security_headers(http: httpx.AsyncClient) -> None:
    for response in (
        await post_query(http, "{ hello }"),
        await post_query(http, "{"),
        await http.put("/graphql"),
    ):
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["cache-control"] == "no-store"
        assert len(response.headers["x-request-id"]) == 24


async def test_valid_request_id_is_kept(http: httpx.AsyncClient) -> None:
    cases: list[tuple[str, bool]] = [("a-1_B.c", True), ("a b", False), ("a" * 65, False)]
    for case in each_case(cases):
        with case as (request_id, is_kept):
            response = await post_query(http, "{ hello }", headers={"X-Request-Id": request_id})
            assert (response.headers["x-request-id"] == request_id) == is_kept


async def test_only_browser_request_gets_graphiql_page(http: httpx.AsyncClient) -> None:
    browser_headers = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
    assert "GraphiQL" in (await http.get("/graphql", headers=browser_headers)).text
    assert (await http.get("/graphql", headers={"Accept": "*/*"})).status_code == 400
    response = await http.get("/graphql", params={"query": "{ hello }"}, headers=browser_headers)
    assert response.json()["data"] == {"hello": "world"}


async def test_invalid_credential_refuses_whole_request(http: httpx.AsyncClient) -> None:
    cases: list[str] = ["Bearer wrong", "Basic dXNlcjp4", "user"]
    for case in each_case(cases):
        with case as credential:
            response = await post_query(http, "{ hello }", headers={"Authorization": credential})
            assert (response.status_code, error_code(response)) == (401, "UNAUTHENTICATED")
            assert response.headers["www-authenticate"] == "Bearer"
            assert "data" not in response.json()


async def test_viewer_with_and_without_credential(http: httpx.AsyncClient) -> None:
    response = await post_query(http, "{ whoami }", headers=USER_HEADERS)
    assert response.json()["data"] == {"whoami": "USER 7 127.0.0.1"}
    response = await post_query(http, "{ whoami }")
    assert response.json()["data"] == {"whoami": "PUBLIC 0 127.0.0.1"}


async def test_client_ip_header_needs_platform_key(http: httpx.AsyncClient) -> None:
    ip_header = {"X-Client-IP": "2001:DB8::1"}
    response = await post_query(http, "{ whoami }", headers=ip_header | USER_HEADERS)
    assert response.json()["data"] == {"whoami": "USER 7 127.0.0.1"}
    response = await post_query(http, "{ whoami }", headers=ip_header | {"X-API-Key": "key"})
    assert response.json()["data"] == {"whoami": "ADMIN 0 2001:db8::1"}
    response = await post_query(
        http, "{ whoami }", headers={"X-Client-IP": "here", "X-API-Key": "key"}
    )
    assert response.json()["data"] == {"whoami": "ADMIN 0 127.0.0.1"}


async def test_read_only_key_can_not_run_mutation(http: httpx.AsyncClient) -> None:
    cases: list[tuple[str, int]] = [("*/*", 200), (RESPONSE_MEDIA_TYPE, 403)]
    for case in each_case(cases):
        with case as (accept, status):
            reader_headers = {"Authorization": "Bearer reader", "Accept": accept}
            response = await post_query(
                http, 'mutation { change(text: "x") }', headers=reader_headers
            )
            assert (response.status_code, error_code(response)) == (status, "FORBIDDEN")
            assert "data" not in response.json()
            assert (await post_query(http, "{ hello }", headers=reader_headers)).json()["data"] == {
                "hello": "world"
            }


async def test_field_error_has_code_path_and_location(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    cases: list[tuple[str, str]] = [
        ("unauthenticated", "UNAUTHENTICATED"),
        ("forbidden", "FORBIDDEN"),
        ("missing", "NOT_FOUND"),
        ("id", "BAD_ID"),
        ("cursor", "BAD_CURSOR"),
        ("page", "BAD_PAGINATION"),
        ("pattern", "BAD_USER_INPUT"),
        ("conflict", "CONFLICT"),
        ("limited", "RATE_LIMITED"),
    ]
    for case in each_case(cases):
        with case as (kind, expected):
            response = await post_query(http, f'{{ hello refused(kind: "{kind}") }}')
            assert error_code(response) == expected
            assert response.json()["data"] == {"hello": "world", "refused": None}
            assert response.json()["errors"][0]["path"] == ["refused"]
            assert response.json()["errors"][0]["locations"] == [{"line": 1, "column": 9}]
            assert not caplog.records


async def test_rate_limited_error_has_retry_time(http: httpx.AsyncClient) -> None:
    response = await post_query(http, '{ refused(kind: "limited") }')
    assert response.json()["errors"][0]["extensions"]["retryAfterSeconds"] == 7


async def test_internal_error_is_masked_and_logged_once(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    cases: list[str] = ["{ broken }", "{ huge }", "{ a: broken b: broken c: broken }"]
    for case in each_case(cases):
        with case as query:
            caplog.clear()
            response = await post_query(http, query, headers={"X-Request-Id": "r1"})
            for error in response.json()["errors"]:
                assert error["message"] == "Internal error."
                assert error["extensions"] == {"code": "INTERNAL_SERVER_ERROR", "requestId": "r1"}
            assert "hunter2" not in response.text
            (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert record.exc_info
            assert vars(record)["request_id"] == "r1"
            assert query not in caplog.text


async def test_internal_error_outside_fields_is_masked(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    response = await post_query(http, "{ hello }", headers={"Authorization": "Bearer broken"})
    assert (response.status_code, error_code(response)) == (500, "INTERNAL_SERVER_ERROR")
    assert (
        response.json()["errors"][0]["extensions"]["requestId"] == response.headers["x-request-id"]
    )
    assert "hunter2" not in response.text
    assert len(caplog.records) == 1


async def test_value_refused_by_type_is_bad_input(
    http: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    cases: list[tuple[str, object]] = [
        ("query ($e: Even!) { even(value: $e) }", {"e": 3}),
        ("query ($n: Int) { echo(number: $n) }", {"n": None}),
        ("query ($n: Int!) { echo(number: $n) }", {}),
        ("query ($y: Boolean!) { hello @include(if: $y) }", {"y": 3}),
    ]
    for case in each_case(cases):
        with case as (query, variables):
            assert error_code(await post_query(http, query, variables=variables)) == BAD_INPUT
            assert not caplog.records


async def test_suggestions_are_only_for_signed_in_users(http: httpx.AsyncClient) -> None:
    for query in ("{ helo }", '{ echo(tex: "x") }', "{ ... on Qery { hello } }"):
        (anonymous_error,) = (await post_query(http, query)).json()["errors"]
        (user_error,) = (await post_query(http, query, headers=USER_HEADERS)).json()["errors"]
        assert user_error["message"].startswith(anonymous_error["message"])
        assert "Did you mean" not in anonymous_error["message"]
        assert "Did you mean" in user_error["message"]


async def test_operation_ends_at_deadline(environment: Environment) -> None:
    endpoint = GraphqlEndpoint(make_schema(deadline=0.2), environment, authenticate_by_header)
    async with open_http_client(endpoint) as http:
        response = await post_query(http, "{ slow }", headers={"Accept": RESPONSE_MEDIA_TYPE})
    assert (response.status_code, error_code(response)) == (200, "DEADLINE_EXCEEDED")
    assert response.json()["data"] is None


async def test_subscription_without_event_stream_is_refused(http: httpx.AsyncClient) -> None:
    response = await post_query(http, "subscription { count }")
    assert (response.status_code, error_code(response)) == (400, BAD_INPUT)


async def test_unknown_persisted_query_is_reported_for_apollo(http: httpx.AsyncClient) -> None:
    persisted = {"extensions": {"persistedQuery": {"version": 1, "sha256Hash": "0" * 64}}}
    response = await http.post("/graphql", json=persisted)
    assert (response.status_code, error_code(response)) == (200, "PERSISTED_QUERY_NOT_FOUND")
    assert response.json()["errors"][0]["message"] == "PersistedQueryNotFound"


async def test_lone_surrogate_is_serialized(http: httpx.AsyncClient) -> None:
    response = await post_query(http, "{ odd }")
    assert json.loads(response.content)["data"] == {"odd": "half a pair: \ud83d"}


async def test_each_operation_has_new_dataloaders(environment: Environment) -> None:
    schema, context = make_schema(), Context(environment, Viewer())
    clock: Any = environment.clock.read
    results = []
    for _ in range(2):
        results.append((await schema.execute("{ item { seen } }", None, context)).data)
        clock.tick(hours=1)
    assert results == [{"item": {"seen": "00:00"}}, {"item": {"seen": "01:00"}}]


@pytest.mark.parametrize(
    ("setting", "anonymous_code", "user_code"),
    [
        ("open", None, None),
        ("signed-in", "UNAUTHENTICATED", None),
        ("off", "FORBIDDEN", "FORBIDDEN"),
    ],
)
async def test_introspection_and_suggestions_follow_setting(
    environment: Environment,
    setting: Introspection,
    anonymous_code: str | None,
    user_code: str | None,
) -> None:
    """Callers without introspection get no suggestions on any transport."""
    settings = EndpointSettings(guards=AdmissionControl(introspection=setting))
    async with open_http_client(
        GraphqlEndpoint(make_schema(), environment, authenticate_by_header, settings)
    ) as http:
        for query in (
            "{ __schema { queryType { name } } }",
            '{ a: __type(name: "Item") { name } }',
        ):
            for headers, expected_code in (({}, anonymous_code), (USER_HEADERS, user_code)):
                response = await post_query(http, query, headers=headers)
                assert (
                    error_code(response) if expected_code else response.json().get("errors")
                ) == expected_code
        assert "errors" not in (await post_query(http, "{ __typename }")).json()
        has_suggestion = (
            "Did you mean" in (await post_query(http, "{ helo }", headers=USER_HEADERS)).text
        )
        assert has_suggestion is (user_code is None)
        events = await post_query(
            http, "{ helo }", headers={**USER_HEADERS, "Accept": "text/event-stream"}
        )
        assert ("Did you mean" in events.text) is (user_code is None)
