"""Who can use SCIM: API keys with the scope SCIM for domains, each within its domains."""

from dataclasses import replace
from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from tests.conftest import GraphQLClient, make_api_key, make_client
from tests.support.case_loop import each_case
from tests.support.scim.scim_client import (
    USER_SCHEMA,
    ScimTestClient,
    make_scim_client,
    patch_body,
    replace_value,
)

PATHS = [
    ("GET", "/ServiceProviderConfig"),
    ("GET", "/Schemas"),
    ("GET", "/ResourceTypes/User"),
    ("GET", "/Users"),
    ("POST", "/Users"),
    ("GET", "/Users/usr_x"),
    ("PUT", "/Users/usr_x"),
    ("PATCH", "/Users/usr_x"),
    ("DELETE", "/Users/usr_x"),
    ("POST", "/Users/.search"),
    ("GET", "/Groups"),
    ("POST", "/Groups"),
    ("PATCH", "/Groups/grp_x"),
    ("POST", "/.search"),
    ("GET", "/Me"),
    ("POST", "/Bulk"),
    ("GET", "/nothing"),
]


async def test_credential_is_required(scim: ScimTestClient) -> None:
    for secret in ("", "mgk_" + "x" * 43):
        client = replace(scim, secret=secret)
        for method, path in PATHS:
            response = await client.request(method, path, {} if method != "GET" else None)
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["status"] == "401"


OTHER_KEYS: list[Any] = [
    {"scopes": [Scope.READ, Scope.SETTINGS, Scope.MAIL]},
    {"domains": []},
    {"domains": [], "role": Role.ROOT, "scopes": [Scope.FULL]},
    {"role": Role.USER},
    {"operations": ["users"]},
    {"active": False},
]


async def test_other_keys_are_refused(
    http: httpx.AsyncClient, environment: Environment, scim: ScimTestClient
) -> None:
    for case in each_case(enumerate(OTHER_KEYS)):
        with case as (number, columns):
            values = {
                "role": Role.ADMIN,
                "scopes": [Scope.SCIM],
                "domains": scim.domain_ids,
                **columns,
            }
            secret = await make_api_key(environment, f"other{number}", **values)
            client = ScimTestClient(http, environment, secret, [])
            # a key for domains with the role USER administers none of them, so it is not valid
            is_invalid = columns in ({"active": False}, {"role": Role.USER})
            status = 401 if is_invalid else 403
            for method, path in PATHS:
                assert await client.error(method, path, {} if method != "GET" else None) == (
                    status,
                    None,
                )


async def test_users_of_every_role_are_refused(
    http: httpx.AsyncClient, environment: Environment, scim: ScimTestClient
) -> None:
    for role in (Role.USER, Role.DOMAIN_ADMIN, Role.ADMIN, Role.ROOT):
        administers = scim.domain_ids if role is Role.DOMAIN_ADMIN else []
        client = await make_client(
            environment, http, role.lower(), role=role, administers=administers
        )
        other = replace(scim, secret=client.secret)
        for method, path in PATHS:
            body: Any = {} if method != "GET" else None
            assert await other.error(method, path, body) == (403, None), (role, path)


async def test_key_of_a_domain_admin_is_limited_to_its_domains(
    http: httpx.AsyncClient,
    environment: Environment,
    scim: ScimTestClient,
    other_scim: ScimTestClient,
) -> None:
    admin = await make_client(
        environment, http, "dan", role=Role.DOMAIN_ADMIN, administers=scim.domain_ids
    )
    client = await make_scim_client(
        http,
        environment,
        *scim.domain_ids,
        *other_scim.domain_ids,
        role=Role.DOMAIN_ADMIN,
        user_id=admin.user.id,
    )
    await client.create_user("alice")
    body = {"schemas": [USER_SCHEMA], "userName": "alice@other.example"}
    assert await client.error("POST", "/Users", body) == (400, "invalidValue")


async def test_key_is_created_by_graphql(
    http: httpx.AsyncClient, root: GraphQLClient, scim: ScimTestClient
) -> None:
    document = """mutation { apiKeyCreate(input: { name: "Directory" role: DOMAIN_ADMIN
      scopes: [SCIM] domains: [{ name: "example.org" }] }) {
      secret errors { message path } } }"""
    payload = (await root(document))["apiKeyCreate"]
    assert payload["errors"] == []
    client = ScimTestClient(http, root.environment, payload["secret"], [])
    created = await client.create_user("alice")
    assert await scim.send("GET", f"/Users/{created['id']}") == created
    graphql = await http.post(
        "/graphql",
        json={"query": "{ users { nodes { id } } }"},
        headers={"Authorization": f"Bearer {payload['secret']}"},
    )
    assert graphql.json()["data"] == {"users": None}


async def test_read_only_key_changes_nothing(
    http: httpx.AsyncClient, environment: Environment, scim: ScimTestClient
) -> None:
    created = await scim.create_user("alice")
    reader = await make_scim_client(http, environment, *scim.domain_ids, read_only=True, name="ro")
    path = f"/Users/{created['id']}"
    assert await reader.send("GET", path) == created
    assert (await reader.send("POST", "/.search", {}))["totalResults"] == 1
    for method, url in (("POST", "/Users"), ("PUT", path), ("PATCH", path), ("DELETE", path)):
        assert await reader.error(method, url, {}) == (403, None)
    assert await scim.send("GET", path) == created


async def test_other_domain_sees_and_changes_nothing(
    scim: ScimTestClient, other_scim: ScimTestClient
) -> None:
    user = await scim.create_user("alice", externalId="x")
    group = await scim.create_group("Staff", [user["id"]])
    other = await other_scim.send("POST", "/Users", {"userName": "eve@other.example"}, status=201)
    for path in ("/Users", "/Groups"):
        page = await other_scim.send("GET", path)
        assert page["totalResults"] == (1 if path == "/Users" else 0)
        assert [item["id"] for item in page["Resources"]] == [other["id"]][: page["totalResults"]]
    for text in (
        f'id eq "{user["id"]}"',
        'userName eq "alice@example.org"',
        'externalId eq "x"',
        'emails.value eq "alice@example.org"',
        f'groups.value eq "{group["id"]}"',
        'groups.display eq "Staff"',
    ):
        assert (await other_scim.send("GET", "/Users", filter=text))["totalResults"] == 0, text
    for text in (f'members.value eq "{user["id"]}"', 'displayName eq "Staff"'):
        assert (await other_scim.send("GET", "/Groups", filter=text))["totalResults"] == 0
    patch = patch_body(replace_value("displayName", "Eve"))
    bodies = {"PUT": {"userName": "x", "displayName": "x"}, "PATCH": patch}
    for path in (f"/Users/{user['id']}", f"/Groups/{group['id']}"):
        for method in ("GET", "PUT", "PATCH", "DELETE"):
            assert await other_scim.error(method, path, bodies.get(method)) == (404, None)
    for value in ([{"value": user["id"]}], [{"value": other["id"]}, {"value": user["id"]}]):
        body = {"displayName": "Mine", "members": value}
        assert await other_scim.error("POST", "/Groups", body) == (400, "invalidValue")
    body = {"userName": "bob@example.org"}
    assert await other_scim.error("POST", "/Users", body) == (400, "invalidValue")
    path = f"/Users/{other['id']}"
    emails = replace_value("emails", [{"value": "new@example.org", "primary": True}])
    assert await other_scim.error("PATCH", path, patch_body(emails)) == (400, "invalidValue")
    assert await scim.send("GET", f"/Users/{user['id']}") == user | {
        "groups": [
            {
                "value": group["id"],
                "$ref": group["meta"]["location"],
                "display": "Staff",
                "type": "direct",
            }
        ]
    }
    assert await scim.send("GET", f"/Groups/{group['id']}") == group
    assert (await scim.send("GET", "/Users"))["totalResults"] == 1


async def test_username_in_other_local_domain_is_refused(
    scim: ScimTestClient, other_scim: ScimTestClient
) -> None:
    assert other_scim.domain_ids
    body = {
        "schemas": [USER_SCHEMA],
        "userName": "ceo@other.example",
        "emails": [{"value": "ceo@example.org", "primary": True}],
    }
    assert await scim.error("POST", "/Users", body) == (403, None)
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    rename = patch_body(replace_value("userName", "ceo@other.example"))
    assert await scim.error("PATCH", path, rename) == (403, None)
    replacement = {**created, "userName": "ceo@other.example"}
    assert await scim.error("PUT", path, replacement) == (403, None)
    assert await scim.send("GET", path) == created


async def test_administrators_of_the_domain_can_not_be_changed(
    http: httpx.AsyncClient, environment: Environment, scim: ScimTestClient
) -> None:
    admin = await make_client(
        environment, http, "dan", role=Role.DOMAIN_ADMIN, administers=scim.domain_ids
    )
    (resource,) = (await scim.send("GET", "/Users"))["Resources"]
    assert resource["roles"] == [{"value": "DOMAIN_ADMIN"}]
    assert resource["userName"] == admin.user.username
    path = f"/Users/{resource['id']}"
    patch = patch_body(replace_value("password", "violet-otter-93-lamp"))
    replacement = {"userName": "dan", "active": False}
    for method, body in (("PUT", replacement), ("PATCH", patch), ("DELETE", None)):
        assert await scim.error(method, path, body) == (403, None)
    assert await scim.send("GET", path) == resource


async def test_rate_limit_has_the_time_to_wait(
    scim: ScimTestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graph.scim.service.READ_POINTS", 200_000)
    for _ in range(2):
        await scim.send("GET", "/Users")
    response = await scim.request("GET", "/Users")
    assert response.status_code == 429
    assert int(response.headers["retry-after"]) >= 1
    assert response.json()["status"] == "429"
