"""Tests of the client IP address of a request, and of the callers that can set it."""

from itertools import product
from typing import Any

import httpx
from sqlalchemy import delete, select

from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, make_api_key
from tests.support.case_loop import each_case

FORGED_ADDRESS = "203.0.113.66"
SIGN_IN = """
mutation ($ip: IPAddress, $session: String) {
  authenticate(input: {username: "nobody", password: "wrong",
      options: {clientIp: $ip, sessionId: $session}}) { errors { code } }
}
"""


async def take_security_event(environment: Environment) -> Any:
    """Return the only security event and delete it, since equal events share a row."""
    await authentication.wait_for_background_tasks(environment)
    (event,) = await environment.database.read(select(core_table(SecurityEvent)))
    async with environment.write_session() as session:
        await (await session.connection()).execute(delete(core_table(SecurityEvent)))
    return event


async def sign_in_with_client_ip(
    http: httpx.AsyncClient, source: str, headers: dict[str, str]
) -> None:
    """Fail to sign in with an IP address and a session in headers or in options."""
    variables: dict[str, Any] = {}
    if source == "header":
        headers = headers | {"X-Client-IP": FORGED_ADDRESS, "X-Client-Session": "s1"}
    else:
        variables = {"ip": FORGED_ADDRESS, "session": "s1"}
    await http.post("/graphql", json={"query": SIGN_IN, "variables": variables}, headers=headers)


async def test_client_ip_of_untrusted_caller_is_ignored(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    callers: dict[str, dict[str, str]] = {
        "nobody": {},
        "user": {"Authorization": f"Bearer {ada.secret}"},
        "proxy": {"X-Forwarded-For": FORGED_ADDRESS},
    }
    for case in each_case(product(("header", "option"), callers)):
        with case as (source, caller):
            await sign_in_with_client_ip(http, source, callers[caller])
            event = await take_security_event(environment)
            assert (event.ip, event.session_id) == ("127.0.0.1", None)


async def test_client_ip_of_front_end_is_used(
    environment: Environment, http: httpx.AsyncClient
) -> None:
    secret = await make_api_key(environment, "front", role=Role.ADMIN, scopes=[Scope.FULL])
    for case in each_case(("header", "option")):
        with case as source:
            await sign_in_with_client_ip(http, source, {"Authorization": f"Bearer {secret}"})
            event = await take_security_event(environment)
            assert (event.ip, event.session_id) == (FORGED_ADDRESS, "s1")


async def test_invalid_client_ip_is_ignored(
    environment: Environment, http: httpx.AsyncClient
) -> None:
    secret = await make_api_key(environment, "front", role=Role.ADMIN, scopes=[Scope.FULL])
    cases: list[str] = ["x", "1.2.3", "9" * 10_000, "192.0.2.1, 192.0.2.2"]
    for case in each_case(cases):
        with case as invalid_address:
            headers = {"Authorization": f"Bearer {secret}", "X-Client-IP": invalid_address}
            await http.post("/graphql", json={"query": SIGN_IN}, headers=headers)
            assert (await take_security_event(environment)).ip == "127.0.0.1"
