"""Where a request says it comes from, and who is believed."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select

from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from tests.conftest import Client, make_key

FORGED = "203.0.113.66"
TRY = """
mutation ($ip: IPAddress, $session: String) {
  authenticate(input: {username: "nobody", password: "wrong",
      options: {clientIp: $ip, sessionId: $session}}) { errors { code } }
}
"""


async def logged(world: Environment) -> Any:
    await authentication.wait_for_background_tasks(world)
    rows = await world.database.read(select(core_table(SecurityEvent)))
    return rows[-1]


@pytest.mark.parametrize("by", ["nobody", "user", "reader", "admin token"])
@pytest.mark.parametrize("way", ["header", "option"])
async def test_a_forged_address_is_heard_of_nobody_but_a_front_end(
    world: Environment, http: httpx.AsyncClient, ada: Client, by: str, way: str
) -> None:
    secret = {"user": ada.secret}.get(by, "")
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    headers |= {"X-Forwarded-For": FORGED} if by == "reader" else {}
    variables: dict[str, Any] = {"ip": FORGED, "session": "s1"} if way == "option" else {}
    if way == "header":
        headers |= {"X-Client-IP": FORGED, "X-Client-Session": "s1"}
    body = {"query": TRY, "variables": variables}
    await http.post("/graphql", json=body, headers=headers)
    event = await logged(world)
    assert (event.ip, event.session_id) == ("127.0.0.1", None)


@pytest.mark.parametrize("way", ["header", "option"])
async def test_a_front_end_is_believed(
    world: Environment, http: httpx.AsyncClient, way: str
) -> None:
    secret = await make_key(world, "front", role=Role.ADMIN, scopes=[Scope.MASTER])
    headers = {"Authorization": f"Bearer {secret}"}
    variables: dict[str, Any] = {"ip": FORGED, "session": "s1"} if way == "option" else {}
    if way == "header":
        headers |= {"X-Client-IP": FORGED, "X-Client-Session": "s1"}
    await http.post("/graphql", json={"query": TRY, "variables": variables}, headers=headers)
    event = await logged(world)
    assert (event.ip, event.session_id) == (FORGED, "s1")


@pytest.mark.parametrize("odd", ["x", "1.2.3", "9" * 10_000, "192.0.2.1, 192.0.2.2"])
async def test_what_is_no_address_is_not_believed_of_anybody(
    world: Environment, http: httpx.AsyncClient, odd: str
) -> None:
    secret = await make_key(world, "front", role=Role.ADMIN, scopes=[Scope.MASTER])
    headers = {"Authorization": f"Bearer {secret}", "X-Client-IP": odd}
    await http.post("/graphql", json={"query": TRY}, headers=headers)
    assert (await logged(world)).ip == "127.0.0.1"
