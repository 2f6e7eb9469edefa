"""The route of a user for load balancers, and the map file of HAProxy."""

from typing import Any

import httpx
import pytest

from models.cluster.nodes import AdministrativeNodeState
from models.runtime.environment import Environment
from resolvers.cluster import routes
from tests.conftest import GraphQLClient
from tests.support.operations.platform.cluster_operations import (
    insert_node,
    load_affinity,
    pin_users,
    set_node_values,
)
from tests.support.stores.recorded_statements import record_sql

PATH = "/rest/route"
SMTP = {"Auth-Protocol": "smtp", "Auth-Method": "none"}


@pytest.fixture
async def nodes(environment: Environment) -> list[str]:
    """Two nodes that are UP, by IP address."""
    hosts = ["192.0.2.11", "2001:db8::12"]
    for host in hosts:
        await insert_node(environment, host, smtp_port=25, submission_port=587)
    return hosts


async def get_route(
    client: GraphQLClient, headers: Any = None, **parameters: str
) -> httpx.Response:
    """Request the route of a user with the key of the client."""
    sent = {"Authorization": f"Bearer {client.secret}", **(headers or {})}
    return await client.http.get(PATH, params=parameters, headers=sent)


async def test_route_follows_hash_and_pin(
    root: GraphQLClient, admin_client: GraphQLClient, ada: GraphQLClient, nodes: list[str]
) -> None:
    assert ada.user.username == "ada"
    host = (await load_affinity(root, "ada"))["node"]["host"]
    response = await get_route(admin_client, user="ada")
    assert response.json() == {"host": host, "port": 8025, "pinned": False}
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Auth-Status"] == "OK"
    assert (response.headers["Auth-Server"], response.headers["Auth-Port"]) == (host, "8025")
    other = next(name for name in nodes if name != host)
    await pin_users(root, other, "ada")
    response = await get_route(admin_client, user="ADA")
    assert response.json() == {"host": other, "port": 8025, "pinned": True}


@pytest.mark.usefixtures("ada", "nodes")
async def test_nodes_are_read_at_most_twice_a_second(
    root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_NODES_AGE", 3600.0)
    await get_route(root, user="ada")
    statements = record_sql(root.environment.database)
    for _ in range(5):
        assert (await get_route(root, user="ada")).status_code == 200
    assert not [text for text in statements if "FROM cluster_nodes" in text]
    monkeypatch.setattr(routes, "MAX_NODES_AGE", 0.0)
    await get_route(root, user="ada")
    assert len([text for text in statements if "FROM cluster_nodes" in text]) == 1


@pytest.mark.usefixtures("ada", "nodes")
async def test_nginx_sends_the_user_in_headers(root: GraphQLClient) -> None:
    host = (await load_affinity(root, "ada"))["node"]["host"]
    for headers, port in (
        ({"Auth-Protocol": "smtp", "Auth-Method": "plain", "Auth-User": "ada"}, "587"),
        ({**SMTP, "Auth-SMTP-To": "RCPT TO:<ada@example.org>"}, "25"),
    ):
        response = await get_route(root, headers)
        assert response.status_code == 200
        assert response.headers["Auth-Port"] == port
        if "Auth-User" in headers:
            assert response.headers["Auth-Server"] == host


@pytest.mark.usefixtures("nodes")
async def test_unknown_names_are_mapped_as_known_ones(root: GraphQLClient) -> None:
    response = await get_route(root, user="nobody@example.net")
    assert response.status_code == 200
    assert response.json() == (await get_route(root, user="nobody@example.net")).json()


@pytest.mark.usefixtures("nodes")
async def test_missing_listener_is_a_temporary_failure_for_nginx(root: GraphQLClient) -> None:
    response = await get_route(root, {"Auth-Protocol": "imap", "Auth-User": "ada"})
    assert (response.status_code, response.headers["Auth-Error-Code"]) == (200, "451 4.3.2")
    assert "Auth-Server" not in response.headers


async def test_no_usable_node_is_unavailable(root: GraphQLClient, environment: Environment) -> None:
    await insert_node(environment, "192.0.2.11")
    down = AdministrativeNodeState.DOWN
    await set_node_values(environment, "192.0.2.11", state=down)
    response = await get_route(root, user="ada")
    assert response.status_code == 503
    nginx = await get_route(root, {**SMTP, "Auth-SMTP-To": "RCPT TO:<ada@example.org>"})
    assert nginx.status_code == 200
    assert nginx.headers["Auth-Status"] != "OK"


@pytest.mark.usefixtures("nodes")
async def test_only_administrators_get_routes(ada: GraphQLClient, root: GraphQLClient) -> None:
    assert (await get_route(ada, user="ada")).status_code == 403
    assert (await ada.http.get(PATH, params={"user": "ada"})).status_code == 401
    headers = {"Authorization": f"Bearer {root.secret}"}
    assert (await root.http.post(PATH, headers=headers)).status_code == 405


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize(
    "name", ["", "x" * 5000, "a\x00b", "\ud800".encode("utf-8", "replace"), "*"]
)
async def test_bad_names_have_no_internal_error(root: GraphQLClient, name: Any) -> None:
    response = await get_route(root, user=name)
    assert response.status_code == (400 if name == "" else 200)
