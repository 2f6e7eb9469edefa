"""Malformed and refused requests by SCIM: a typed error, and no change."""

from typing import Any

from tests.support.case_loop import each_case
from tests.support.scim.scim_client import (
    USER_SCHEMA,
    ScimTestClient,
    patch_body,
    replace_value,
)

# for each case: the attributes, and status and scimType of the response
WRONG_ATTRIBUTES: list[tuple[dict[str, Any], tuple[Any, ...]]] = [
    ({"userName": None}, (400, "invalidValue")),
    ({"userName": ""}, (400, "invalidValue")),
    ({"userName": 7}, (400, "invalidValue")),
    ({"userName": "a b@example.org"}, (400, "invalidValue")),
    ({"userName": "x" * 200}, (400, "invalidValue")),
    ({"userName": "*@example.org"}, (400, "invalidValue")),
    ({"userName": "ali\u0000ce"}, (400, "invalidValue")),
    ({"active": "perhaps"}, (400, "invalidValue")),
    ({"displayName": "x" * 1000}, (400, "invalidValue")),
    ({"displayName": ["x"]}, (400, "invalidValue")),
    ({"name": "Alice"}, (400, "invalidValue")),
    ({"name": {"familyName": "x" * 257}}, (400, "invalidValue")),
    ({"name": {"familyName": "a\u0000"}}, (400, "invalidValue")),
    ({"externalId": "x" * 257}, (400, "invalidValue")),
    ({"externalId": "\ud800"}, (400, "invalidSyntax")),
    ({"emails": []}, (201, None)),
    ({"emails": "alice@example.org"}, (400, "invalidValue")),
    ({"emails": [{"value": "not an address"}]}, (400, "invalidValue")),
    ({"emails": [{"type": "work"}]}, (400, "invalidValue")),
    ({"emails": [{"value": "alice@nowhere.example"}]}, (400, "invalidValue")),
    ({"emails": [{"value": "a+b@example.org"}]}, (400, "invalidValue")),
    ({"emails": [{"value": "a@example.org", "type": "x" * 65}]}, (400, "invalidValue")),
    (
        {
            "emails": [
                {"value": "a@example.org", "primary": True},
                {"value": "b@example.org", "primary": True},
            ]
        },
        (400, "invalidValue"),
    ),
    (
        {"emails": [{"value": f"a{number}@example.org"} for number in range(101)]},
        (400, "invalidValue"),
    ),
    ({"preferredLanguage": "not a language"}, (400, "invalidValue")),
    ({"password": "123"}, (400, "invalidValue")),
]


async def test_wrong_attribute_is_refused(scim: ScimTestClient) -> None:
    for case in each_case(WRONG_ATTRIBUTES):
        with case as (attributes, expected):
            body = {"schemas": [USER_SCHEMA], "userName": "alice@example.org", **attributes}
            response = await scim.request("POST", "/Users", body)
            error = response.json()
            assert (response.status_code, error.get("scimType")) == expected, error
            listed = await scim.send("GET", "/Users")
            assert listed["totalResults"] == (1 if expected[0] == 201 else 0)
            for user in listed["Resources"]:
                await scim.request("DELETE", f"/Users/{user['id']}")
            assert "123" not in error.get("detail", "")


WRONG_PATCHES: list[tuple[dict[str, Any], str]] = [
    (replace_value("roles", [{"value": "ROOT"}]), "mutability"),
    (replace_value('roles[value eq "USER"].value', "ROOT"), "mutability"),
    ({"op": "add", "value": {"roles": [{"value": "ROOT"}]}}, "mutability"),
    (replace_value(f"{USER_SCHEMA}:roles", []), "mutability"),
    (replace_value("entitlements", [{"value": "x"}]), "mutability"),
    (replace_value("groups", []), "mutability"),
    (replace_value("id", "usr_x"), "mutability"),
    (replace_value("meta.version", "x"), "mutability"),
    (replace_value("role", "ROOT"), "invalidPath"),
    (replace_value("permissions", ["CONNECTORS"]), "invalidPath"),
    (replace_value("adminPermissions", ["IMPERSONATE"]), "invalidPath"),
    (replace_value("administers", ["example.org"]), "invalidPath"),
    ({"op": "add", "value": {"permissions": ["CONNECTORS"]}}, "invalidPath"),
    (replace_value("urn:example:other:1.0:User:x", 1), "invalidPath"),
    (replace_value("hashedPassword", "$argon2id$x"), "invalidPath"),
    (replace_value("password", "123"), "invalidValue"),
    (replace_value("password", {"value": "x"}), "invalidValue"),
    (replace_value("password.value", "x"), "invalidPath"),
    (replace_value("", "x"), "invalidValue"),
    (replace_value("emails[", "x"), "invalidPath"),
    (replace_value('emails[type eq "work"', "x"), "invalidPath"),
    (replace_value('emails[type co "zz"].value', "x@example.org"), "noTarget"),
    (replace_value("emails", []), "mutability"),
    ({"op": "remove", "path": "emails"}, "mutability"),
    ({"op": "remove", "path": 'emails[type eq "work"]'}, "mutability"),
    ({"op": "remove", "path": 'emails[type eq "work"].value'}, "mutability"),
    ({"op": "remove", "path": "userName"}, "mutability"),
    ({"op": "remove", "path": "active"}, "mutability"),
    ({"op": "remove"}, "noTarget"),
    ({"op": "add", "path": "displayName"}, "invalidValue"),
    ({"op": "explode", "path": "displayName", "value": "x"}, "invalidValue"),
    ({"path": "displayName", "value": "x"}, "invalidValue"),
    ({"op": "replace", "path": ["displayName"], "value": "x"}, "invalidValue"),
    (replace_value("active", "perhaps"), "invalidValue"),
    (replace_value("displayName", {"a": 1}), "invalidValue"),
    (replace_value("emails[" + " or ".join(["value pr"] * 99) + "]", "x"), "invalidPath"),
    (
        replace_value("emails[" + "not (" * 900 + "value pr" + ")" * 900 + "]", []),
        "invalidPath",
    ),
]


async def test_wrong_patch_is_refused(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    for case in each_case(WRONG_PATCHES):
        with case as (operation, scim_type):
            body = patch_body(replace_value("externalId", "changed"), operation)
            response = await scim.request("PATCH", path, body)
            assert (response.status_code, response.json().get("scimType")) == (400, scim_type), (
                response.text
            )
            assert await scim.send("GET", path) == created


async def test_standard_attributes_that_are_not_stored_are_ignored(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    enterprise = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:User"
    patched = await scim.patch(
        f"/Users/{created['id']}",
        {"op": "add", "path": "title", "value": "Engineer"},
        {"op": "add", "path": f"{enterprise}:department", "value": "R&D"},
        {"op": "add", "path": f"{enterprise}:manager", "value": "usr_x"},
        {"op": "add", "path": 'phoneNumbers[type eq "work"].value', "value": "+1"},
        {"op": "add", "path": 'addresses[type eq "work"].formatted', "value": "Street 1"},
        {"op": "add", "value": {"nickName": "Al", f"{enterprise}:employeeNumber": "7"}},
    )
    assert patched == created


# for each case: the body, and the scimType of the response
MALFORMED_BODIES: list[tuple[bytes, str]] = [
    (b"", "invalidSyntax"),
    (b"{", "invalidSyntax"),
    (b"[]", "invalidSyntax"),
    (b'"text"', "invalidSyntax"),
    (b"\xff\xfe", "invalidSyntax"),
    (b"[" * 100_000, "invalidSyntax"),
    (b'{"a":' * 5000 + b"1" + b"}" * 5000, "invalidSyntax"),
]


async def test_malformed_body_is_refused(scim: ScimTestClient) -> None:
    for case in each_case(MALFORMED_BODIES):
        with case as (content, expected):
            for method, path in (("POST", "/Users"), ("POST", "/Groups"), ("POST", "/.search")):
                response = await scim.http.request(
                    method,
                    f"/scim/v2{path}",
                    content=content,
                    headers={"Authorization": f"Bearer {scim.secret}"},
                )
                assert (response.status_code, response.json().get("scimType")) == (400, expected)


async def test_limits_of_requests(scim: ScimTestClient) -> None:
    created = await scim.create_user("alice")
    path = f"/Users/{created['id']}"
    body = {"userName": "bob@example.org", "title": "x" * (1 << 20)}
    assert await scim.error("POST", "/Users", body) == (413, None)
    operations = [replace_value("title", "x")] * 1001
    assert await scim.error("PATCH", path, patch_body(*operations)) == (400, "invalidSyntax")
    await scim.patch(path, *operations[:1000])
    email_operation = replace_value('emails[type eq "work"].type', "home")
    many_operations = patch_body(*[email_operation] * 101)
    assert await scim.error("PATCH", path, many_operations) == (400, "tooMany")
    entries = [{"value": f"a{number}@example.org"} for number in range(101)]
    for operation in (
        {"op": "add", "path": "emails", "value": entries},
        {"op": "add", "value": {"emails": entries}},
    ):
        assert await scim.error("PATCH", path, patch_body(operation)) == (400, "invalidValue")
    wrong_operations: list[Any] = [None, [], {}, ["x"], "x"]
    for value in wrong_operations:
        patch = {"Operations": value}
        assert await scim.error("PATCH", path, patch) == (400, "invalidSyntax")
    response = await scim.request("POST", "/Users", {}, headers={"Content-Type": "text/plain"})
    assert response.status_code == 415
    assert await scim.error("GET", "/Users", filter="x" * 40_000) == (414, None)


# for each case: the parameters, and the scimType of the response
WRONG_PARAMETERS: list[tuple[dict[str, str], str]] = [
    ({"startIndex": "x"}, "invalidValue"),
    ({"count": "1.5"}, "invalidValue"),
    ({"sortOrder": "sideways"}, "invalidValue"),
    ({"count": "9" * 100}, "invalidValue"),
    ({"sortBy": "password"}, "invalidPath"),
    ({"sortBy": "name"}, "invalidPath"),
    ({"sortBy": "nothing"}, "invalidPath"),
    ({"attributes": "name", "excludedAttributes": "emails"}, "invalidValue"),
    ({"attributes": "na me"}, "invalidPath"),
]


async def test_wrong_parameter_is_refused(scim: ScimTestClient) -> None:
    await scim.create_user("alice")
    for case in each_case(WRONG_PARAMETERS):
        with case as (parameters, scim_type):
            assert await scim.error("GET", "/Users", **parameters) == (400, scim_type)


async def test_unknown_paths_and_methods(scim: ScimTestClient) -> None:
    for path in ("/nothing", "/Users/usr_x", "/Users/grp_x", "/Groups/usr_x", "/Schemas/x"):
        assert await scim.error("GET", path) == (404, None)
    for path in ("/Me", "/Bulk"):
        for method in ("GET", "POST"):
            assert await scim.error(method, path, {}) == (501, None)
    for method, path in (("DELETE", "/Users"), ("POST", "/Schemas"), ("GET", "/.search")):
        response = await scim.request(method, path)
        assert response.status_code == 405
        assert response.headers["allow"]
    assert await scim.error("GET", "/Schemas", filter="id pr") == (403, None)


async def test_discovery(scim: ScimTestClient) -> None:
    config = await scim.send("GET", "/ServiceProviderConfig")
    supported = {name: item["supported"] for name, item in config.items() if "supported" in item}
    assert supported == {
        "patch": True,
        "bulk": False,
        "filter": True,
        "changePassword": True,
        "sort": True,
        "etag": True,
    }
    assert config["filter"]["maxResults"] == 250
    types = (await scim.send("GET", "/ResourceTypes"))["Resources"]
    assert [(item["id"], item["endpoint"]) for item in types] == [
        ("User", "/Users"),
        ("Group", "/Groups"),
    ]
    schemas = (await scim.send("GET", "/Schemas"))["Resources"]
    for schema in schemas:
        assert await scim.send("GET", f"/Schemas/{schema['id']}") == schema
    attributes = {item["name"]: item for item in schemas[0]["attributes"]}
    assert attributes["password"]["mutability"] == "writeOnly"
    assert attributes["password"]["returned"] == "never"
    assert attributes["roles"]["mutability"] == attributes["groups"]["mutability"] == "readOnly"
