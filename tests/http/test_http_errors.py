"""Error responses of the routes besides GraphQL: one request ID, one log line, one metric."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from sqlalchemy import text

from graph.execution.telemetry import HTTP_RESPONSES
from models.runtime.environment import Environment
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import set_public_url

BEARER = {"Authorization": f"Bearer mgk_{'x' * 43}"}
AUTHORIZE = "/oauth/authorize?client_id=x&response_type=code"


@asynccontextmanager
async def missing_table(environment: Environment, name: str) -> AsyncIterator[None]:
    """Rename a table, so that each statement on it fails."""
    async with environment.write_session() as session:
        await (await session.connection()).execute(text(f"ALTER TABLE {name} RENAME TO moved"))
    try:
        yield
    finally:
        async with environment.write_session() as session:
            await (await session.connection()).execute(text(f"ALTER TABLE moved RENAME TO {name}"))


async def test_unexpected_error_is_masked_and_logged_once(
    http: httpx.AsyncClient, environment: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    set_public_url(environment)
    cases: list[tuple[str, str, str]] = [
        ("rest", "/rest/route", "api_keys"),
        ("scim", "/scim/v2/Users", "api_keys"),
        ("oauth", AUTHORIZE, "oauth_clients"),
        ("oauth", "/oauth/jwks", "oauth_signing_keys"),
        ("autoconfig", "/mail/config-v1.1.xml?emailaddress=a@example.org", "domains"),
    ]
    for case in each_case(cases):
        with case as (endpoint, path, table):
            caplog.clear()
            count_before = HTTP_RESPONSES.value(endpoint, "500")
            async with missing_table(environment, table):
                response = await http.get(path, headers=BEARER | {"X-Request-Id": "r1"})
            assert response.status_code == 500, response.text
            assert response.headers["x-request-id"] == "r1"
            assert table not in response.text
            (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
            assert record.exc_info
            assert vars(record)["request_id"] == "r1"
            assert HTTP_RESPONSES.value(endpoint, "500") == count_before + 1


async def test_refusal_has_request_id_and_security_headers(
    http: httpx.AsyncClient, environment: Environment
) -> None:
    set_public_url(environment)
    cases: list[str] = ["/rest/route", "/scim/v2/Users", AUTHORIZE, "/oauth/userinfo"]
    for case in each_case(cases):
        with case as path:
            response = await http.get(path, headers=BEARER)
            assert response.status_code in (400, 401)
            assert len(response.headers["x-request-id"]) == 24
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["x-frame-options"] == "DENY"
            policies = response.headers.get_list("referrer-policy")
            assert policies == (["same-origin"] if path == AUTHORIZE else ["no-referrer"])
