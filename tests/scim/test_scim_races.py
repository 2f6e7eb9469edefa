"""Simultaneous SCIM requests: no change is lost, and a name exists once."""

import asyncio

from tests.support.scim.scim_client import ScimTestClient, patch_body, replace_value


async def test_simultaneous_patches_lose_no_change(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    await asyncio.gather(
        scim.patch(path, replace_value("externalId", "x")),
        scim.patch(path, replace_value("name.familyName", "Ng")),
        scim.patch(path, replace_value("preferredLanguage", "de")),
        scim.patch(path, {"op": "add", "path": "emails", "value": [{"value": "b@example.org"}]}),
        scim.patch(path, {"op": "add", "path": "emails", "value": [{"value": "c@example.org"}]}),
    )
    user = await scim.send("GET", path)
    assert user["externalId"] == "x"
    assert user["name"] == {"familyName": "Ng"}
    assert user["preferredLanguage"] == "de"
    assert {email["value"] for email in user["emails"]} == {
        "alice@example.org",
        "b@example.org",
        "c@example.org",
    }


async def test_simultaneous_members_are_all_added(scim: ScimTestClient) -> None:
    users = [(await scim.create_user(f"u{number}"))["id"] for number in range(5)]
    group = await scim.create_group("Staff")
    path = f"/Groups/{group['id']}"
    await asyncio.gather(
        *(
            scim.patch(path, {"op": "add", "path": "members", "value": [{"value": key}]})
            for key in users
        )
    )
    members = (await scim.send("GET", path))["members"]
    assert {member["value"] for member in members} == set(users)


async def test_one_of_two_requests_with_the_same_version_wins(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    group = await scim.create_group("Staff")
    for resource, path, status in ((created, "/Users", 200), (group, "/Groups", 204)):
        responses = await asyncio.gather(
            *(
                scim.request(
                    "PATCH",
                    f"{path}/{resource['id']}",
                    patch_body(replace_value("displayName", name)),
                    headers={"If-Match": resource["meta"]["version"]},
                )
                for name in ("A", "B", "C")
            )
        )
        assert sorted(response.status_code for response in responses) == [status, 412, 412]


async def test_same_user_is_created_once(scim: ScimTestClient) -> None:
    body = {"userName": "alice@example.org"}
    responses = await asyncio.gather(*(scim.request("POST", "/Users", body) for _ in range(4)))
    assert sorted(response.status_code for response in responses) == [201, 409, 409, 409]
    assert (await scim.send("GET", "/Users"))["totalResults"] == 1


async def test_patch_of_a_user_that_is_deleted_at_the_same_time(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    patched, deleted = await asyncio.gather(
        scim.request("PATCH", path, patch_body(replace_value("externalId", "x"))),
        scim.request("DELETE", path),
    )
    assert deleted.status_code == 204
    assert patched.status_code in (200, 404)
    assert await scim.error("GET", path) == (404, None)
