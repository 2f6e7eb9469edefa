"""Groups by SCIM: create, read, replace, PATCH and delete."""

from typing import Any

import pytest

from graph.scim.representation import encode_user_id
from resolvers.scim.groups import MAX_MEMBERS
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.scim.scim_client import (
    GROUP_SCHEMA,
    ScimTestClient,
    make_scim_client,
    patch_body,
    replace_value,
)


@pytest.fixture
async def member_ids(scim: ScimTestClient) -> list[str]:
    """The ids of three users."""
    return [(await scim.create_user(name))["id"] for name in ("anna", "ben", "carla")]


def ids_of_members(group: Any) -> set[str]:
    """The ids of the members of a group."""
    return {member["value"] for member in group.get("members", [])}


async def test_created_group(scim: ScimTestClient, member_ids: list[str]) -> None:
    body = {
        "schemas": [GROUP_SCHEMA],
        "displayName": "Staff",
        "externalId": "g1",
        "members": [{"value": key, "type": "User", "display": "x"} for key in member_ids[:2]],
    }
    response = await scim.request("POST", "/Groups", body)
    group = response.json()
    assert response.status_code == 201
    assert response.headers["location"] == group["meta"]["location"]
    assert response.headers["etag"] == group["meta"]["version"]
    location = "http://test/scim/v2/Users/"
    assert group == {
        "schemas": [GROUP_SCHEMA],
        "id": group["id"],
        "meta": group["meta"],
        "displayName": "Staff",
        "externalId": "g1",
        "members": [
            {"value": key, "$ref": location + key, "type": "User"} for key in member_ids[:2]
        ],
    }
    assert await scim.send("GET", f"/Groups/{group['id']}") == group
    user = await scim.send("GET", f"/Users/{member_ids[0]}")
    assert user["groups"] == [
        {
            "value": group["id"],
            "$ref": group["meta"]["location"],
            "display": "Staff",
            "type": "direct",
        }
    ]


async def test_patch_of_members(scim: ScimTestClient, member_ids: list[str]) -> None:
    anna, ben, carla = member_ids
    group = await scim.create_group("Staff", [anna])
    path = f"/Groups/{group['id']}"
    for operation, expected in (
        ({"op": "add", "path": "members", "value": [{"value": ben}, {"value": anna}]}, {anna, ben}),
        ({"op": "Add", "value": {"members": [{"value": carla}]}}, set(member_ids)),
        ({"op": "add", "value": {f"{GROUP_SCHEMA}:members": [{"value": carla}]}}, set(member_ids)),
        ({"op": "remove", "path": f'members[value eq "{anna}"]'}, {ben, carla}),
        ({"op": "remove", "path": f'members[value eq "{anna}"]'}, {ben, carla}),
        ({"op": "Remove", "path": "members", "value": [{"value": ben}]}, {carla}),
        (
            {"op": "replace", "path": "members", "value": [{"value": anna}, {"value": ben}]},
            {anna, ben},
        ),
        ({"op": "remove", "path": f'members[value ne "{ben}" and type eq "User"]'}, {ben}),
        ({"op": "replace", "value": {"displayName": "People", "externalId": "e"}}, {ben}),
        ({"op": "remove", "path": "members"}, set()),
        ({"op": "remove", "path": "externalId"}, set()),
    ):
        changed = await scim.patch(path, operation)
        assert ids_of_members(changed) == expected, operation
    assert changed["displayName"] == "People"
    assert "externalId" not in changed
    assert changed["meta"]["version"] != group["meta"]["version"]


async def test_replaced_and_deleted_group(scim: ScimTestClient, member_ids: list[str]) -> None:
    group = await scim.create_group("Staff", member_ids)
    path = f"/Groups/{group['id']}"
    body = {"schemas": [GROUP_SCHEMA], "displayName": "Few", "members": [{"value": member_ids[0]}]}
    replaced = await scim.send("PUT", path, body)
    assert (replaced["displayName"], ids_of_members(replaced)) == ("Few", {member_ids[0]})
    await scim.send("DELETE", path, status=204)
    assert await scim.error("GET", path) == (404, None)
    assert "groups" not in await scim.send("GET", f"/Users/{member_ids[0]}")


async def test_entity_tags_of_groups(scim: ScimTestClient) -> None:
    group = await scim.create_group("Staff")
    path, tag = f"/Groups/{group['id']}", group["meta"]["version"]
    assert (await scim.request("GET", path, headers={"If-None-Match": tag})).status_code == 304
    operation = patch_body(replace_value("displayName", "New"))
    response = await scim.request("PATCH", path, operation, headers={"If-Match": tag})
    assert (response.status_code, response.content) == (204, b"")
    changed = await scim.send("GET", path)
    assert changed["meta"]["version"] == response.headers["etag"] != tag
    for method, body in (("PATCH", operation), ("PUT", {"displayName": "x"}), ("DELETE", None)):
        assert await scim.error(method, path, body, headers={"If-Match": tag}) == (412, None)
    unchanged = await scim.patch(path, replace_value("displayName", "New"))
    assert unchanged["meta"] == changed["meta"]


async def test_deleted_user_is_no_member_and_returns_with_the_user(
    scim: ScimTestClient, member_ids: list[str], root: GraphQLClient
) -> None:
    group = await scim.create_group("Staff", member_ids)
    await scim.send("DELETE", f"/Users/{member_ids[0]}", status=204)
    fetched = await scim.send("GET", f"/Groups/{group['id']}")
    assert ids_of_members(fetched) == set(member_ids[1:])
    operation = {"op": "add", "path": "members", "value": [{"value": member_ids[0]}]}
    path = f"/Groups/{group['id']}"
    assert await scim.error("PATCH", path, patch_body(operation)) == (400, "invalidValue")
    restore = """mutation ($user: ID!) { userRestore(input: { user: { id: $user } }) {
      errors { message } } }"""
    assert not (await root(restore, user=member_ids[0]))["userRestore"]["errors"]
    assert ids_of_members(await scim.send("GET", path)) == set(member_ids)


async def test_group_filters_and_selected_attributes(
    scim: ScimTestClient, member_ids: list[str]
) -> None:
    staff = await scim.create_group("Staff", member_ids[:2])
    await scim.create_group("Guests", member_ids[2:])
    for text, names in (
        ('displayName eq "STAFF"', ["Staff"]),
        (f'members.value eq "{member_ids[2]}"', ["Guests"]),
        (f'members[value eq "{member_ids[0]}"] and displayName sw "s"', ["Staff"]),
        (f'id eq "{staff["id"]}"', ["Staff"]),
        ("externalId pr", []),
        ("not (members pr)", []),
    ):
        page = await scim.send("GET", "/Groups", filter=text)
        assert [item["displayName"] for item in page["Resources"]] == names, text
    page = await scim.send("GET", "/Groups", sortBy="displayName", excludedAttributes="members")
    assert [item["displayName"] for item in page["Resources"]] == ["Guests", "Staff"]
    assert all("members" not in item for item in page["Resources"])
    only = await scim.send("GET", f"/Groups/{staff['id']}", attributes="members.value")
    assert only["members"] == [{"value": key} for key in member_ids[:2]]
    assert "displayName" not in only


async def test_group_of_several_domains_shows_visible_members_only(
    scim: ScimTestClient, other_scim: ScimTestClient
) -> None:
    both = await make_scim_client(
        scim.http, scim.environment, *scim.domain_ids, *other_scim.domain_ids
    )
    first = await both.create_user("anna")
    second = await both.send("POST", "/Users", {"userName": "ben@other.example"}, status=201)
    group = await both.create_group("All", [first["id"], second["id"]])
    assert len(group["members"]) == 2
    path = f"/Groups/{group['id']}"
    assert ids_of_members(await scim.send("GET", path)) == {first["id"]}
    assert await other_scim.error("GET", path) == (404, None)
    # a replacement by a key of one domain keeps the members of the other
    await scim.send("PUT", path, {"displayName": "All", "members": []})
    assert ids_of_members(await both.send("GET", path)) == {second["id"]}


WRONG_PATCHES: list[tuple[dict[str, Any], str]] = [
    ({"op": "move", "path": "displayName", "value": "x"}, "invalidValue"),
    ({"op": "add", "value": ["x"]}, "invalidValue"),
    ({"op": "remove"}, "noTarget"),
    ({"op": "replace", "path": "members[", "value": []}, "invalidPath"),
    ({"op": "replace", "path": "owner", "value": "x"}, "invalidPath"),
    ({"op": "replace", "path": "roles", "value": "x"}, "invalidPath"),
    ({"op": "replace", "path": "id", "value": "x"}, "mutability"),
    ({"op": "remove", "path": "displayName"}, "mutability"),
    ({"op": "replace", "path": "displayName", "value": ""}, "mutability"),
    ({"op": "replace", "path": "displayName", "value": 7}, "invalidValue"),
    ({"op": "replace", "path": "displayName", "value": "x" * 257}, "invalidValue"),
    ({"op": "replace", "path": 7, "value": "x"}, "invalidPath"),
    ({"op": "add", "path": "members", "value": ["usr_x"]}, "invalidValue"),
    ({"op": "add", "path": "members", "value": [{"value": "usr_x"}]}, "invalidValue"),
    ({"op": "add", "path": "members", "value": [{"value": 5}]}, "invalidValue"),
    (
        {"op": "add", "path": "members", "value": [{"value": "x", "type": "Group"}]},
        "invalidValue",
    ),
    ({"op": "replace", "path": 'members[value eq "x"].value', "value": "y"}, "noTarget"),
    ({"op": "remove", "path": 'members[display co "x"]'}, "invalidPath"),
    (
        {"op": "remove", "path": "members[" + "not (" * 900 + "value pr" + ")" * 900 + "]"},
        "invalidPath",
    ),
    ({"op": "add", "path": "members.value", "value": "x"}, "invalidPath"),
]


async def test_wrong_group_patch_is_refused(scim: ScimTestClient) -> None:
    group = await scim.create_group("Staff")
    path = f"/Groups/{group['id']}"
    for case in each_case(WRONG_PATCHES):
        with case as (operation, scim_type):
            body = patch_body(replace_value("displayName", "Changed"), operation)
            assert await scim.error("PATCH", path, body) == (400, scim_type)
            assert await scim.send("GET", path) == group


async def test_size_limits_of_groups(scim: ScimTestClient) -> None:
    group = await scim.create_group("Staff")
    path = f"/Groups/{group['id']}"
    operations = [replace_value("displayName", "x")] * 1001
    assert await scim.error("PATCH", path, patch_body(*operations)) == (400, "invalidSyntax")
    await scim.patch(path, *operations[:1000])

    members = [{"value": encode_user_id(number + 1)} for number in range(MAX_MEMBERS + 1)]
    body = {"displayName": "Many", "members": members}
    assert await scim.error("POST", "/Groups", body) == (400, "invalidValue")
    for name in (None, "", " ", 7, "x" * 257):
        assert await scim.error("POST", "/Groups", {"displayName": name}) == (400, "invalidValue")
