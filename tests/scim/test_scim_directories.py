"""The requests that Microsoft Entra ID, Okta and JumpCloud document or send.

Entra ID: "Tutorial: Develop and plan provisioning for a SCIM endpoint" and "Known issues and
resolutions with SCIM 2.0 protocol compliance" at https://learn.microsoft.com.
Okta: https://developer.okta.com/docs/api/openapi/okta-scim/guides/scim-20
"""

from typing import Any
from uuid import uuid4

from tests.support.case_loop import each_case
from tests.support.scim.scim_client import (
    GROUP_SCHEMA,
    PATCH_SCHEMA,
    USER_SCHEMA,
    ScimTestClient,
)

ENTERPRISE = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
OLD_GROUP_SCHEMA = "http://schemas.microsoft.com/2006/11/ResourceManagement/ADSCIM/2.0/Group"
OKTA_HEADERS = {
    "Content-Type": "application/scim+json; charset=utf-8",
    "Accept": "application/scim+json",
    "User-Agent": "Okta SCIM Client 1.0.0",
}
WORK_EMAIL = 'emails[type eq "work"].value'


def entra_user(name: str) -> dict[str, Any]:
    """The body by which Entra ID creates a user."""
    return {
        "schemas": [USER_SCHEMA, ENTERPRISE],
        "externalId": f"external-{name}",
        "userName": f"{name}@example.org",
        "active": True,
        "emails": [{"primary": True, "type": "work", "value": f"{name}@example.org"}],
        "meta": {"resourceType": "User"},
        "name": {"formatted": "Ada King", "familyName": "King", "givenName": "Ada"},
        "roles": [],
    }


def patch_of(*operations: dict[str, Any]) -> dict[str, Any]:
    """The body of a PATCH, with the schemas last as Entra ID sends it."""
    return {"Operations": list(operations), "schemas": [PATCH_SCHEMA]}


async def test_entra_test_connection_finds_nobody(scim: ScimTestClient) -> None:
    """The flag is part of the Tenant URL, and Entra ID adds it to each request."""
    flags: list[dict[str, Any]] = [{}, {"aadOptscim062020": ""}]
    for params in flags:
        page = await scim.send("GET", "/Users", filter=f'userName eq "{uuid4()}"', **params)
        assert page == {
            "schemas": ["urn:ietf:params:scim:api:messages:2.0:ListResponse"],
            "totalResults": 0,
            "startIndex": 1,
            "itemsPerPage": 0,
            "Resources": [],
        }


async def test_entra_creates_a_user_and_finds_it(scim: ScimTestClient) -> None:
    body = entra_user("ada")
    created = await scim.send("POST", "/Users", body, status=201)
    assert {name: created[name] for name in ("externalId", "userName", "name", "active")} == {
        name: body[name] for name in ("externalId", "userName", "name", "active")
    }
    assert created["emails"] == body["emails"]
    assert await scim.send("GET", f"/Users/{created['id']}") == created
    for text in (
        'userName eq "ada@example.org"',
        'externalId eq "external-ada"',
        f'{WORK_EMAIL} eq "ada@example.org"',
        f'id eq "{created["id"]}" and userName eq "ada@example.org"',
    ):
        assert (await scim.send("GET", "/Users", filter=text))["Resources"] == [created], text
    reference = f'id eq "{created["id"]}" and manager eq "usr_x"'
    page = await scim.send("GET", "/Users", filter=reference, attributes="id")
    assert page["totalResults"] == 0
    assert await scim.error("POST", "/Users", body) == (409, "uniqueness")


# for each case: the operation, and whether the user is active afterwards
ENTRA_OPERATIONS: list[tuple[dict[str, Any], bool]] = [
    ({"op": "Replace", "path": "active", "value": "False"}, False),
    ({"op": "Replace", "path": "active", "value": False}, False),
    ({"op": "replace", "path": "active", "value": False}, False),
    ({"op": "Replace", "path": "active", "value": "True"}, True),
    ({"op": "Add", "path": "active", "value": "True"}, True),
]


async def test_entra_disables_and_restores_a_user(scim: ScimTestClient) -> None:
    for case in each_case(enumerate(ENTRA_OPERATIONS)):
        with case as (number, (operation, is_active)):
            created = await scim.send(
                "POST", "/Users", entra_user(f"ada{number}") | {"active": not is_active}, status=201
            )
            path = f"/Users/{created['id']}"
            changed = await scim.send("PATCH", path, patch_of(operation))
            assert changed["active"] is is_active
            found = await scim.send(
                "GET", "/Users", filter=f'userName eq "ada{number}@example.org"'
            )
            assert found["Resources"] == [changed]  # also while it is disabled


async def test_entra_changes_several_attributes(scim: ScimTestClient) -> None:
    created = await scim.send("POST", "/Users", entra_user("ada"), status=201)
    path = f"/Users/{created['id']}"
    changed = await scim.send(
        "PATCH",
        path,
        patch_of(
            {"op": "Replace", "path": "displayName", "value": "Pvlo"},
            {"op": "Replace", "path": WORK_EMAIL, "value": "countess@example.org"},
            {"op": "Replace", "path": "name.givenName", "value": "Gtfd"},
            {"op": "Replace", "path": "name.familyName", "value": "Pkqf"},
            {"op": "Replace", "path": "externalId", "value": "Eqpj"},
            {"op": "Replace", "path": f"{ENTERPRISE}:employeeNumber", "value": "Eqpj"},
            {"op": "Add", "path": "nickName", "value": "Babs"},
            {"op": "Add", "path": "manager", "value": [{"$ref": "http://x/y", "value": "y"}]},
            {"op": "Add", "path": 'addresses[type eq "other"].Formatted', "value": "Street 1"},
        ),
    )
    assert (changed["displayName"], changed["externalId"]) == ("Pvlo", "Eqpj")
    assert changed["name"] == {"formatted": "Ada King", "familyName": "Pkqf", "givenName": "Gtfd"}
    assert changed["emails"] == [{"value": "countess@example.org", "type": "work", "primary": True}]
    # with the flag aadOptscim062020
    changed = await scim.send(
        "PATCH",
        path,
        patch_of(
            {"op": "replace", "path": WORK_EMAIL, "value": "ada@example.org"},
            {
                "op": "replace",
                "value": {
                    "displayName": "Bjfe",
                    "name.givenName": "Kkom",
                    "name.familyName": "Unua",
                    f"{ENTERPRISE}:employeeNumber": "Aklq",
                },
            },
        ),
        aadOptscim062020="",
    )
    assert changed["displayName"] == "Bjfe"
    assert changed["name"] == {"formatted": "Ada King", "familyName": "Unua", "givenName": "Kkom"}
    assert changed["emails"][0]["value"] == "ada@example.org"


async def test_entra_renames_and_deletes_a_user(scim: ScimTestClient) -> None:
    created = await scim.send("POST", "/Users", entra_user("ada"), status=201)
    path = f"/Users/{created['id']}"
    rename = {"op": "Replace", "path": "userName", "value": "countess@example.org"}
    assert (await scim.send("PATCH", path, patch_of(rename)))["userName"] == "countess@example.org"
    await scim.send("DELETE", path, status=204)
    assert await scim.error("GET", path) == (404, None)


async def test_entra_groups(scim: ScimTestClient) -> None:
    users = [
        (await scim.send("POST", "/Users", entra_user(name), status=201))["id"]
        for name in ("ada", "bert")
    ]
    body = {
        "schemas": [GROUP_SCHEMA, OLD_GROUP_SCHEMA],
        "externalId": "8aa1a0c0-c4c3-4bc0-b4a5-2ef676900159",
        "displayName": "Engineers",
        "meta": {"resourceType": "Group"},
    }
    group = await scim.send("POST", "/Groups", body, status=201)
    path = f"/Groups/{group['id']}"
    assert await scim.send("GET", path, excludedAttributes="members") == group
    page = await scim.send(
        "GET", "/Groups", excludedAttributes="members", filter='displayName eq "Engineers"'
    )
    assert page["Resources"] == [group]
    for operation, members in (
        ({"op": "Add", "path": "members", "value": [{"$ref": None, "value": users[0]}]}, {0}),
        ({"op": "Add", "path": "members", "value": [{"value": key} for key in users]}, {0, 1}),
        ({"op": "Remove", "path": "members", "value": [{"$ref": None, "value": users[0]}]}, {1}),
        ({"op": "Replace", "path": "displayName", "value": "Developers"}, {1}),
        ({"op": "remove", "path": f'members[value eq "{users[1]}"]'}, set()),
    ):
        response = await scim.request("PATCH", path, patch_of(operation))
        assert (response.status_code, response.content) == (204, b""), operation
        for number, user_id in enumerate(users):
            text = f'id eq "{group["id"]}" and members eq "{user_id}"'
            page = await scim.send("GET", "/Groups", filter=text, attributes="id")
            assert page["totalResults"] == (number in members), operation
    assert (await scim.send("GET", path))["displayName"] == "Developers"
    await scim.send("DELETE", path, status=204)


def okta_user(**changes: Any) -> dict[str, Any]:
    """The body by which Okta creates a user."""
    return {
        "schemas": [USER_SCHEMA],
        "userName": "test.user@example.org",
        "name": {"givenName": "Test", "familyName": "User"},
        "emails": [{"primary": True, "value": "test.user@example.org", "type": "work"}],
        "displayName": "Test User",
        "locale": "en-US",
        "externalId": "00ujl29u0le5T6Aj10h7",
        "groups": [],
        "password": "1mz050nq",
        "active": True,
        **changes,
    }


async def test_okta_verifies_the_connection_and_imports(scim: ScimTestClient) -> None:
    page = await scim.send("GET", "/Users", startIndex=1, count=2, headers=OKTA_HEADERS)
    assert page["Resources"] == []
    page = await scim.send("GET", "/Groups", startIndex=1, count=100, headers=OKTA_HEADERS)
    assert page["Resources"] == []
    created = [(await scim.create_user(f"u{number}"))["id"] for number in range(5)]
    imported = []
    for start in (1, 3, 5):
        page = await scim.send("GET", "/Users", startIndex=start, count=2, headers=OKTA_HEADERS)
        assert (page["totalResults"], page["startIndex"]) == (5, start)
        imported += [item["id"] for item in page["Resources"]]
    assert imported == created


async def test_okta_creates_updates_and_deactivates_a_user(scim: ScimTestClient) -> None:
    probe: dict[str, Any] = {
        "filter": 'userName eq "test.user@example.org"',
        "startIndex": 1,
        "count": 100,
    }
    assert (await scim.send("GET", "/Users", **probe))["totalResults"] == 0
    created = await scim.send("POST", "/Users", okta_user(), status=201, headers=OKTA_HEADERS)
    assert (await scim.send("GET", "/Users", **probe))["Resources"] == [created]
    assert await scim.error("POST", "/Users", okta_user()) == (409, "uniqueness")
    path = f"/Users/{created['id']}"
    fetched = await scim.send("GET", path, headers=OKTA_HEADERS)
    body = fetched | {
        "name": {"givenName": "Another", "middleName": "Excited", "familyName": "User"},
        "groups": [],
        "meta": {"resourceType": "User"},
    }
    updated = await scim.send("PUT", path, body, headers=OKTA_HEADERS)
    assert updated["name"] == body["name"]
    assert updated["externalId"] == created["externalId"]
    # an integration of the catalog sends PATCH, one of the wizard PUT
    deactivate = patch_of({"op": "replace", "value": {"active": False}})
    assert (await scim.send("PATCH", path, deactivate))["active"] is False
    reactivated = await scim.send("PUT", path, body | {"active": True})
    assert reactivated["active"] is True
    assert (await scim.send("PUT", path, body | {"active": False}))["active"] is False
    sync_password = patch_of({"op": "replace", "value": {"password": "violet-otter-93-lamp"}})
    assert "password" not in await scim.send("PATCH", path, sync_password)


async def test_okta_groups(scim: ScimTestClient) -> None:
    users = [(await scim.create_user(name))["id"] for name in ("ada", "bert")]
    body: dict[str, Any] = {"schemas": [GROUP_SCHEMA], "displayName": "Test SCIMv2", "members": []}
    group = await scim.send("POST", "/Groups", body, status=201, headers=OKTA_HEADERS)
    path = f"/Groups/{group['id']}"
    rename = {"op": "replace", "value": {"id": group["id"], "displayName": "Renamed"}}
    changed = await scim.patch(path, rename)
    assert (changed["id"], changed["displayName"]) == (group["id"], "Renamed")
    entries = [{"value": key, "display": "test.user@okta.local"} for key in users]
    await scim.patch(path, {"op": "replace", "path": "members", "value": entries[:1]})
    changed = await scim.patch(
        path,
        {"op": "remove", "path": f'members[value eq "{users[0]}"]'},
        {"op": "add", "path": "members", "value": entries[1:]},
    )
    assert [member["value"] for member in changed["members"]] == users[1:]
    body = {"schemas": [GROUP_SCHEMA], "id": group["id"], "displayName": "All", "members": entries}
    changed = await scim.send("PUT", path, body, headers=OKTA_HEADERS)
    assert [member["value"] for member in changed["members"]] == users
    await scim.send("DELETE", path, status=204)


async def test_jumpcloud_verifies_the_connection_with_a_test_user_and_group(
    scim: ScimTestClient,
) -> None:
    """It creates both, changes the members without a filter in the path, and deletes both."""
    user = await scim.create_user("jumpcloud.test", displayName="Test")
    group = await scim.create_group("JumpCloud test group")
    members = [{"value": user["id"]}]
    for verb, count in (("add", 1), ("remove", 0)):
        operation = {"op": verb, "path": "members", "value": members}
        changed = await scim.patch(f"/Groups/{group['id']}", operation)
        assert len(changed.get("members", [])) == count
    await scim.send("DELETE", f"/Groups/{group['id']}", status=204)
    await scim.send("DELETE", f"/Users/{user['id']}", status=204)
