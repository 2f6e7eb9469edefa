"""Users by SCIM: create, read, replace, PATCH and delete."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.addresses.tables import Address
from models.admin.audit_log import AuditLogEntry
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import Change
from models.scim import ScimUser
from models.users.tables import DeletedUser, User
from tests.conftest import GraphQLClient, ManualClock
from tests.support.oauth.oauth_flow import set_public_url
from tests.support.scim.scim_client import (
    USER_SCHEMA,
    ScimTestClient,
    make_scim_client,
    patch_body,
    replace_value,
)
from tests.support.servers.live_server import LiveServer
from tests.support.time_limits import HANG_SECONDS

SIGN_IN = """mutation ($name: String!, $password: String!) {
  authenticate(input: { username: $name, password: $password }) {
    token errors { message } } }"""
USER = """query ($name: EmailAddress!) { user(by: { address: $name }) {
  id username name language active suspended addresses { nodes { address main } } } }"""

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_graphql_user(root: GraphQLClient, address: str) -> Any:
    """The user as GraphQL shows it."""
    return (await root(USER, name=address))["user"]


async def test_created_user_has_all_attributes(scim: ScimTestClient, root: GraphQLClient) -> None:
    created = await scim.create_user(
        "alice",
        externalId="00u1",
        name={"givenName": "Alice", "familyName": "Ng"},
        preferredLanguage="de",
        title="ignored",
        roles=[{"value": "ROOT"}],
        emails=[
            {"value": "a.ng@example.org", "type": "other"},
            {"value": "alice@example.org", "type": "work", "primary": True},
            {"value": "alice@private.example", "type": "home"},
        ],
    )
    user = await load_graphql_user(root, "alice@example.org")
    location = f"http://test/scim/v2/Users/{user['id']}"
    assert created.pop("meta").items() >= {"resourceType": "User", "location": location}.items()
    assert created == {
        "schemas": [USER_SCHEMA],
        "id": user["id"],
        "externalId": "00u1",
        "userName": "alice@example.org",
        "name": {"givenName": "Alice", "familyName": "Ng"},
        "displayName": "Alice Ng",
        "emails": [
            {"value": "alice@example.org", "type": "work", "primary": True},
            {"value": "a.ng@example.org", "type": "other"},
        ],
        "active": True,
        "preferredLanguage": "de",
        "roles": [{"value": "USER"}],
    }
    assert (user["name"], user["language"], user["suspended"]) == ("Alice Ng", "de", False)


async def test_created_response_has_location_and_entity_tag(scim: ScimTestClient) -> None:
    body = {"schemas": [USER_SCHEMA], "userName": "alice"}
    response = await scim.request("POST", "/Users", body)
    resource = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == resource["meta"]["location"]
    assert response.headers["etag"] == resource["meta"]["version"]
    assert resource["userName"] == "alice"
    assert resource["emails"] == [{"value": "alice@example.org", "type": "work", "primary": True}]


async def test_urls_begin_with_the_public_url(scim: ScimTestClient) -> None:
    set_public_url(scim.environment, "https://mail.example.org")
    created = await scim.create_user("alice")
    url = f"https://mail.example.org/scim/v2/Users/{created['id']}"
    assert created["meta"]["location"] == url
    response = await scim.request("POST", "/Users", {"userName": "bob@example.org"})
    assert response.headers["location"].startswith("https://mail.example.org/scim/v2/Users/")


async def test_password_is_set_and_never_returned(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("alice", password="violet-otter-93-lamp")  # noqa: S106
    assert "password" not in created
    signed_in = await root(SIGN_IN, name="alice@example.org", password="violet-otter-93-lamp")  # noqa: S106
    assert signed_in["authenticate"]["token"]
    path = f"/Users/{created['id']}"
    patched = await scim.patch(path, replace_value("password", "amber-heron-51-desk"))
    assert "password" not in patched
    for password, is_valid in (("violet-otter-93-lamp", False), ("amber-heron-51-desk", True)):
        payload = await root(SIGN_IN, name="alice@example.org", password=password)
        assert bool(payload["authenticate"]["token"]) is is_valid
    fetched = await scim.send("GET", path, attributes="password,userName")
    assert set(fetched) == {"schemas", "id", "userName"}


async def test_user_without_password_can_not_sign_in(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    await scim.create_user("alice")
    payload = await root(SIGN_IN, name="alice@example.org", password="anything-at-all-77")  # noqa: S106
    assert payload["authenticate"]["errors"]


async def test_replace_removes_absent_attributes(scim: ScimTestClient, root: GraphQLClient) -> None:
    created = await scim.create_user(
        "alice", externalId="x", preferredLanguage="de", displayName="Alice", active=False
    )
    body = {
        "schemas": [USER_SCHEMA],
        "id": "usr_ignored",
        "userName": "ALICIA@example.org",
        "name": {"formatted": "Dr. Alicia Ng"},
        "roles": [{"value": "ADMIN"}],
    }
    replaced = await scim.send("PUT", f"/Users/{created['id']}", body)
    assert replaced["id"] == created["id"]
    assert replaced["userName"] == "alicia@example.org"
    assert replaced["displayName"] == "Dr. Alicia Ng"
    assert replaced["emails"] == created["emails"]
    assert replaced["active"] is False
    assert not {"externalId", "preferredLanguage"} & replaced.keys()
    user = await load_graphql_user(root, "alice@example.org")
    assert (user["username"], user["language"]) == ("alicia@example.org", None)


async def test_suspension_ends_access_and_can_be_lifted(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("alice", password="violet-otter-93-lamp")  # noqa: S106
    variables = {"name": "alice@example.org", "password": "violet-otter-93-lamp"}
    token = (await root(SIGN_IN, **variables))["authenticate"]["token"]
    path = f"/Users/{created['id']}"
    suspended = await scim.patch(path, {"op": "Replace", "value": {"active": "False"}})
    assert suspended["active"] is False
    assert (await load_graphql_user(root, "alice@example.org"))["suspended"] is True
    response = await root.http.post(
        "/graphql",
        json={"query": "{ viewer { role } }"},
        headers={"Authorization": f"Bearer {token}"},
    )
    assert response.json()["errors"]
    assert (await root(SIGN_IN, **variables))["authenticate"]["errors"]
    assert (await scim.patch(path, replace_value("active", value=True)))["active"] is True
    assert (await root(SIGN_IN, **variables))["authenticate"]["token"]


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_end_of_a_user_closes_open_connections(
    scim: ScimTestClient, root: GraphQLClient, live_server: LiveServer, method: str
) -> None:
    live_server.endpoint.connection_watch.check_interval = 3600  # only the event can close them
    created = await scim.create_user("alice", password="violet-otter-93-lamp")  # noqa: S106
    variables = {"name": "alice@example.org", "password": "violet-otter-93-lamp"}
    token = (await root(SIGN_IN, **variables))["authenticate"]["token"]
    socket = await live_server.open_websocket(secret=token)
    body = patch_body(replace_value("active", value=False)) if method == "PATCH" else None
    assert (await scim.request(method, f"/Users/{created['id']}", body)).is_success
    async with asyncio.timeout(HANG_SECONDS):
        await socket.wait_closed()
    assert socket.close_code == 4403


async def test_suspension_ends_application_passwords_and_api_keys(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    alice, bob = [await scim.create_user(name) for name in ("alice", "bob")]
    create = """mutation ($id: ID!) {
      appPasswordCreate(input: { user: { id: $id } description: "phone" scopes: [MAIL]
        options: { reason: "test" } }) { password errors { message } }
      apiKeyCreate(input: { user: { id: $id } name: "script" scopes: [MAIL]
        expiresAt: "2030-01-01T01:00:00Z" options: { reason: "test" } }) {
        secret errors { message } } }"""
    credentials = (
        "query ($id: ID!) { user(by: { id: $id }) { appPasswords { nodes { description } } } }"
    )
    keys = {}
    for user in (alice, bob):
        created = await root(create, id=user["id"])
        assert created["appPasswordCreate"]["password"], created
        keys[user["id"]] = created["apiKeyCreate"]["secret"]
    path = f"/Users/{alice['id']}"
    assert (await scim.patch(path, replace_value("active", value=False)))["active"] is False
    assert (await scim.patch(path, replace_value("active", value=True)))["active"] is True
    for user, names in ((alice, []), (bob, [{"description": "phone"}])):
        shown = await root(credentials, id=user["id"])
        assert shown["user"]["appPasswords"]["nodes"] == names
        response = await root.http.post(
            "/graphql",
            json={"query": "{ viewer { role } }"},
            headers={"Authorization": f"Bearer {keys[user['id']]}"},
        )
        assert ("errors" in response.json()) is (names == [])


async def test_suspension_by_an_administrator_stays(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("alice")
    suspend = """mutation ($id: ID!) { userUpdate(input: {
      users: { refs: [{ id: $id }] } set: { suspended: true } }) { errors { message } } }"""
    suspend = suspend.replace("refs: [{ id: $id }]", "ids: [$id]")
    assert not (await root(suspend, id=created["id"]))["userUpdate"]["errors"]
    path = f"/Users/{created['id']}"
    assert (await scim.patch(path, replace_value("active", value=True)))["active"] is False
    # nor one that an administrator lifted and set again, after SCIM had suspended the account
    lift = suspend.replace("suspended: true", "suspended: false")
    await root(lift, id=created["id"])
    assert (await scim.patch(path, replace_value("active", value=False)))["active"] is False
    for change in (lift, suspend):
        assert not (await root(change, id=created["id"]))["userUpdate"]["errors"]
    assert (await scim.patch(path, replace_value("active", value=True)))["active"] is False
    body = {"schemas": [USER_SCHEMA], "userName": "alice@example.org", "active": True}
    assert (await scim.send("PUT", path, body))["active"] is False


async def test_primary_email_is_the_main_address(scim: ScimTestClient, root: GraphQLClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    added = await scim.patch(
        path, {"op": "add", "path": 'emails[type eq "home"].value', "value": "ali@example.org"}
    )
    assert added["emails"][1] == {"value": "ali@example.org", "type": "home"}
    renamed = await scim.patch(
        path, replace_value('emails[type eq "work"].value', "alicia@example.org")
    )
    assert [email["value"] for email in renamed["emails"]] == [
        "alicia@example.org",
        "ali@example.org",
    ]
    user = await load_graphql_user(root, "alicia@example.org")
    # mail to the former main address still arrives
    assert {(item["address"], item["main"]) for item in user["addresses"]["nodes"]} == {
        ("alicia@example.org", True),
        ("alice@example.org", False),
        ("ali@example.org", False),
    }
    removed = await scim.patch(path, {"op": "remove", "path": 'emails[type eq "home"]'})
    assert [email["value"] for email in removed["emails"]] == ["alicia@example.org"]
    assert await root(USER, name="ali@example.org") == {"user": None}
    back = await scim.patch(
        path, replace_value("emails", [{"value": "alice@example.org", "primary": True}])
    )
    assert back["emails"] == [{"value": "alice@example.org", "type": "work", "primary": True}]


async def test_addresses_that_scim_has_not_set_stay(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("alice")
    create = """mutation ($user: ID!) { addressCreate(input: {
      address: "alias@example.org", user: { id: $user } }) { errors { message } } }"""
    assert not (await root(create, user=created["id"]))["addressCreate"]["errors"]
    path = f"/Users/{created['id']}"
    emails = [{"value": "alice@example.org"}, {"value": "alias@example.org", "type": "other"}]
    shown = await scim.patch(path, replace_value("emails", emails))
    assert len(shown["emails"]) == 2
    shown = await scim.patch(path, replace_value("emails", emails[:1]))
    assert len(shown["emails"]) == 1
    assert (await load_graphql_user(root, "alias@example.org"))["id"] == created["id"]


async def test_user_moves_between_the_domains_of_the_key(
    scim: ScimTestClient, other_scim: ScimTestClient
) -> None:
    domain_ids = [*scim.domain_ids, *other_scim.domain_ids]
    both = await make_scim_client(scim.http, scim.environment, *domain_ids)
    created = await both.create_user("alice")
    path = f"/Users/{created['id']}"
    emails = [{"value": "alice@other.example", "primary": True}]
    assert (await scim.error("PATCH", path, patch_body(replace_value("emails", emails))))[0] == 400
    await both.patch(path, replace_value("emails", emails))
    assert await scim.error("GET", path) == (404, None)
    assert (await other_scim.send("GET", path))["emails"][0]["value"] == "alice@other.example"


async def test_delete_starts_the_grace_period(
    scim: ScimTestClient, root: GraphQLClient, clock: ManualClock
) -> None:
    created = await scim.create_user("alice", externalId="x")
    path = f"/Users/{created['id']}"
    await scim.send("DELETE", path, status=204)
    assert await scim.error("GET", path) == (404, None)
    assert await scim.error("DELETE", path) == (404, None)
    assert await scim.error("PATCH", path, patch_body(replace_value("active", value=True))) == (
        404,
        None,
    )
    statement = select(col(DeletedUser.purge_at))
    (row,) = await scim.environment.database.read(statement)
    assert row.purge_at == clock() + timedelta(days=30)
    restore = """mutation ($user: ID!) { userRestore(input: { user: { id: $user } }) {
      errors { message } } }"""
    assert not (await root(restore, user=created["id"]))["userRestore"]["errors"]
    assert (await scim.send("GET", path))["externalId"] == "x"
    await scim.send("DELETE", path, status=204)
    await scim.create_user("alice")  # the name is free at once


async def test_entity_tags(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path, tag = f"/Users/{created['id']}", created["meta"]["version"]
    for value in (tag, f'"x", {tag}', "*"):
        response = await scim.request("GET", path, headers={"If-None-Match": value})
        assert (response.status_code, response.headers["etag"]) == (304, tag)
        assert not response.content
    operation = patch_body(replace_value("displayName", "Alice"))
    changed = await scim.send("PATCH", path, operation, headers={"If-Match": tag})
    assert changed["meta"]["version"] != tag
    replacement = {"schemas": [USER_SCHEMA], "userName": "alice@example.org"}
    bodies: dict[str, Any] = {"PATCH": operation, "PUT": replacement, "DELETE": None}
    for method, body in bodies.items():
        assert await scim.error(method, path, body, headers={"If-Match": tag}) == (412, None)
    response = await scim.request("GET", path, headers={"If-None-Match": tag})
    assert response.status_code == 200
    new_tag = response.headers["etag"]
    await scim.send("DELETE", path, status=204, headers={"If-Match": new_tag})


async def test_change_by_graphql_changes_the_entity_tag(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("alice")
    update_name = """mutation ($id: ID!) { userUpdate(input: { users: { ids: [$id] }
      set: { name: "Alice" } }) { errors { message } } }"""
    await root(update_name, id=created["id"])
    headers = {"If-Match": created["meta"]["version"]}
    operation = patch_body(replace_value("active", value=False))
    path = f"/Users/{created['id']}"
    assert await scim.error("PATCH", path, operation, headers=headers) == (412, None)
    fetched = await scim.send("GET", path)
    assert (fetched["displayName"], fetched["active"]) == ("Alice", True)


async def test_selected_attributes(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice", name={"familyName": "Ng", "givenName": "Alice"})
    path = f"/Users/{created['id']}"
    selected = await scim.send("GET", path, attributes="name.familyName,emails")
    assert set(selected) == {"schemas", "id", "userName", "name", "emails"}
    assert selected["name"] == {"familyName": "Ng"}
    rest = await scim.send("GET", path, excludedAttributes="name,emails.type,roles")
    assert "name" not in rest
    assert rest["emails"] == [{"value": "alice@example.org", "primary": True}]
    assert rest["displayName"] == "Alice Ng"
    body = {"userName": "bob@example.org", "displayName": "Bob"}
    response = await scim.send("POST", "/Users", body, status=201, attributes="displayName")
    assert set(response) == {"schemas", "id", "userName", "displayName"}
    for method, change in (
        ("PUT", {"userName": "alice@example.org"}),
        ("PATCH", patch_body({"op": "add", "value": {"displayName": "Al"}})),
    ):
        response = await scim.send(method, path, change, attributes="displayName,active")
        assert set(response) == {"schemas", "id", "userName", "active"} | (
            {"displayName"} if method == "PATCH" else set()
        )


async def test_existing_names_and_addresses_are_not_unique(scim: ScimTestClient) -> None:
    await scim.create_user("alice")
    bob = await scim.create_user("bob")
    body: dict[str, Any] = {"schemas": [USER_SCHEMA], "userName": "alice@example.org"}
    assert await scim.error("POST", "/Users", body) == (409, "uniqueness")
    body = {"userName": "other", "emails": [{"value": "ALICE@example.org"}]}
    assert await scim.error("POST", "/Users", body) == (409, "uniqueness")
    path = f"/Users/{bob['id']}"
    for operation in (
        replace_value("userName", "alice@example.org"),
        replace_value("emails", [{"value": "alice@example.org"}]),
        {"op": "add", "path": "emails", "value": [{"value": "alice@example.org"}]},
    ):
        assert await scim.error("PATCH", path, patch_body(operation)) == (409, "uniqueness")
    assert await scim.send("GET", path) == bob


async def test_limits_of_the_domain_apply(scim: ScimTestClient) -> None:
    async with scim.environment.write_session() as session:
        await (await session.connection()).execute(update(Domain).values(max_users=1))
    await scim.create_user("alice")
    body = {"schemas": [USER_SCHEMA], "userName": "bob@example.org"}
    assert await scim.error("POST", "/Users", body) == (400, "invalidValue")


async def test_changes_are_in_the_audit_log(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice", externalId="x")
    path = f"/Users/{created['id']}"
    await scim.patch(path, replace_value("displayName", "Al"), replace_value("externalId", "y"))
    group = await scim.create_group("staff", [created["id"]])
    await scim.send("DELETE", f"/Groups/{group['id']}", status=204)
    await scim.send("DELETE", path, status=204)
    statement = select(col(AuditLogEntry.mutation), col(AuditLogEntry.domain_id))
    rows = await scim.environment.database.read(statement.order_by(col(AuditLogEntry.id)))
    assert [row.mutation for row in rows] == [
        "userCreate",
        "userUpdate",
        "scimUserUpdate",
        "scimGroupCreate",
        "scimGroupDelete",
        "userDelete",
    ]
    assert {row.domain_id for row in rows} == set(scim.domain_ids)


async def test_changes_are_in_the_journal(scim: ScimTestClient) -> None:
    """They have the events that `userCreate`, `userUpdate` and `userDelete` record."""
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    await scim.patch(path, replace_value("displayName", "Al"))
    await scim.send("DELETE", path, status=204)
    rows = await scim.environment.database.read(select(col(Change.type)).distinct())
    expected = {EventType.USER_CREATED, EventType.USER_UPDATED, EventType.USER_DELETED}
    assert expected <= {row.type for row in rows}


async def test_refused_change_changes_nothing(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    body = patch_body(
        replace_value("displayName", "Alice"),
        replace_value("externalId", "new"),
        {"op": "add", "path": "emails", "value": [{"value": "ali@example.org"}]},
        replace_value("preferredLanguage", "not a language"),
    )
    assert await scim.error("PATCH", path, body) == (400, "invalidValue")
    assert await scim.send("GET", path) == created
    body = {"userName": "bob@example.org", "externalId": "x" * 257}
    assert await scim.error("POST", "/Users", body) == (400, "invalidValue")
    database = scim.environment.database
    assert len(await database.read(select(col(User.id)))) == 1
    assert len(await database.read(select(col(Address.id)))) == 1
    assert len(await database.read(select(col(ScimUser.user_id)))) == 1


async def test_accounts_of_no_directory_are_not_changed(
    scim: ScimTestClient, root: GraphQLClient
) -> None:
    created = await scim.create_user("printer")
    await root(
        "mutation ($id: ID!) { userUpdate(input: {users: {ids: [$id]}, set: {allowLocal: true}}) "
        "{ errors { message } } }",
        id=created["id"],
    )
    url = f"/Users/{created['id']}"
    for response in (
        await scim.request("PATCH", url, patch_body(replace_value("active", value=False))),
        await scim.request("DELETE", url),
    ):
        assert response.status_code == 403
        assert "allowLocal" in response.json()["detail"]
    user = await load_graphql_user(root, "printer@example.org")
    assert (user["active"], user["suspended"]) == (True, False)
