"""Tests of the client IP address of a request, and of the callers that can set it."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, make_api_key

FORGED_ADDRESS = "203.0.113.66"
SIGN_IN = """
mutation ($ip: IPAddress, $session: String) {
  authenticate(input: {username: "nobody", password: "wrong",
      options: {clientIp: $ip, sessionId: $session}}) { errors { code } }
}
"""


async def last_security_event(environment: Environment) -> Any:
    await authentication.wait_for_background_tasks(environment)
    rows = await environment.database.read(select(core_table(SecurityEvent)))
    return rows[-1]


@pytest.mark.parametrize("caller", ["nobody", "user", "reader", "admin token"])
@pytest.mark.parametrize("source", ["header", "option"])
async def test_client_ip_of_untrusted_caller_is_ignored(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient, caller: str, source: str
) -> None:
    secret = {"user": ada.secret}.get(caller, "")
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    headers |= {"X-Forwarded-For": FORGED_ADDRESS} if caller == "reader" else {}
    variables: dict[str, Any] = (
        {"ip": FORGED_ADDRESS, "session": "s1"} if source == "option" else {}
    )
    if source == "header":
        headers |= {"X-Client-IP": FORGED_ADDRESS, "X-Client-Session": "s1"}
    body = {"query": SIGN_IN, "variables": variables}
    await http.post("/graphql", json=body, headers=headers)
    event = await last_security_event(environment)
    assert (event.ip, event.session_id) == ("127.0.0.1", None)


@pytest.mark.parametrize("source", ["header", "option"])
async def test_client_ip_of_front_end_is_used(
    environment: Environment, http: httpx.AsyncClient, source: str
) -> None:
    secret = await make_api_key(environment, "front", role=Role.ADMIN, scopes=[Scope.FULL])
    headers = {"Authorization": f"Bearer {secret}"}
    variables: dict[str, Any] = (
        {"ip": FORGED_ADDRESS, "session": "s1"} if source == "option" else {}
    )
    if source == "header":
        headers |= {"X-Client-IP": FORGED_ADDRESS, "X-Client-Session": "s1"}
    await http.post("/graphql", json={"query": SIGN_IN, "variables": variables}, headers=headers)
    event = await last_security_event(environment)
    assert (event.ip, event.session_id) == (FORGED_ADDRESS, "s1")


@pytest.mark.parametrize("invalid_address", ["x", "1.2.3", "9" * 10_000, "192.0.2.1, 192.0.2.2"])
async def test_invalid_client_ip_is_ignored(
    environment: Environment, http: httpx.AsyncClient, invalid_address: str
) -> None:
    secret = await make_api_key(environment, "front", role=Role.ADMIN, scopes=[Scope.FULL])
    headers = {"Authorization": f"Bearer {secret}", "X-Client-IP": invalid_address}
    await http.post("/graphql", json={"query": SIGN_IN}, headers=headers)
    assert (await last_security_event(environment)).ip == "127.0.0.1"
