"""Roles, administered domains and permissions of users, and who can set them."""

from collections.abc import Sequence
from typing import Any

import pytest

from models.users.roles import AdminPermission, Role, UserPermission
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.accounts.user_operations import (
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_update_users,
    user_global_id,
)
from tests.support.case_loop import each_case
from tests.support.stores.counter_check import select_rows

ROLE_FIELDS = "users { username role adminPermissions administers { nodes { name } } }"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def set_role(
    client: GraphQLClient, *targets: GraphQLClient, **arguments: Any
) -> tuple[list[Any], list[Any]]:
    users = {"ids": [user_global_id(target) for target in targets]}
    payload = await execute_mutation(client, "userRoleSet", ROLE_FIELDS, users=users, **arguments)
    return payload["users"], payload["errors"]


async def load_domain_node_id(root: GraphQLClient, name: str) -> str:
    response = await root("{ users { nodes { domain { id name } } } }")
    return str(
        {node["domain"]["name"]: node["domain"]["id"] for node in response["users"]["nodes"]}[name]
    )


async def test_role_set_sets_and_clears_domains_and_permissions(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await try_create_user(root, address="x@elsewhere.example")
    other_domain_id = await load_domain_node_id(root, "elsewhere.example")
    (user,), errors = await set_role(
        root, ada, role="DOMAIN_ADMIN", adminPermissions=["IMPERSONATE", "FILTERS", "IMPERSONATE"],
        administers=[{"name": "Example.ORG"}, {"id": other_domain_id}, {"name": "example.org"}],
    )  # fmt: skip
    assert errors == []
    assert user == {
        "username": "ada",
        "role": "DOMAIN_ADMIN",
        "adminPermissions": ["FILTERS", "IMPERSONATE"],
        "administers": {"nodes": [{"name": "elsewhere.example"}, {"name": "example.org"}]},
    }
    (user,), _ = await set_role(root, ada, administers=[{"id": other_domain_id}])
    assert user["adminPermissions"] == ["FILTERS", "IMPERSONATE"]
    assert user["administers"]["nodes"] == [{"name": "elsewhere.example"}]
    (first, second), errors = await set_role(root, ada, bob, role="USER")
    assert errors == []
    assert [first["role"], second["role"]] == ["USER", "USER"]
    assert (first["adminPermissions"], first["administers"]["nodes"]) == ([], [])
    assert await select_rows(root.environment, "SELECT * FROM domain_admins") == []
    log_rows = await select_rows(
        root.environment, "SELECT before, after FROM audit_log WHERE mutation = 'userRoleSet'"
    )
    assert len(log_rows) == 3  # the role of bob did not change
    assert "administers" in str(log_rows[1])


async def test_new_role_applies_at_once(root: GraphQLClient, ada: GraphQLClient) -> None:
    admin = await make_client(root.environment, root.http, "boss", role=Role.ADMIN)
    assert "errors" not in await admin.execute("{ users { totalCount } }")
    await set_role(root, admin, role="USER")
    response = await admin.execute("{ users { totalCount } }")
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await admin("{ viewer { role } }"))["viewer"]["role"] == "USER"
    _, (error,) = await try_update_users(admin, ada, name="X")
    assert error["code"] == "NOT_FOUND"


async def test_invalid_role_change_is_refused(root: GraphQLClient, ada: GraphQLClient) -> None:
    admin = await make_client(root.environment, root.http, "admin2", role=Role.ADMIN)
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({}, "VALIDATION", ["role"]),
        ({"role": "PUBLIC"}, "VALIDATION", ["role"]),
        ({"role": "USER", "adminPermissions": ["IMPERSONATE"]}, "VALIDATION", ["adminPermissions"]),
        ({"administers": [{"name": "example.org"}]}, "VALIDATION", ["administers"]),
        ({"role": "DOMAIN_ADMIN", "administers": [{"name": "none.example"}]}, "NOT_FOUND",
         ["administers", "0"]),
        ({"role": "ROOT"}, "FORBIDDEN", ["role"]),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (arguments, code, path):
            row_before = await load_user_row(root.environment, ada)
            users, (error,) = await set_role(admin, ada, **arguments)
            assert (users, error["code"], error["path"]) == ([], code, path)
            assert await load_user_row(root.environment, ada) == row_before


async def test_role_above_the_own_role_is_refused(root: GraphQLClient, ada: GraphQLClient) -> None:
    domain_admin = await make_admin_of_domain(root, *AdminPermission)
    admin = await make_client(root.environment, root.http, "admin2", role=Role.ADMIN)
    root_user = await make_client(root.environment, root.http, "top", role=Role.ROOT)
    for client, role in (
        (ada, "DOMAIN_ADMIN"),
        (domain_admin, "ADMIN"),
        (domain_admin, "DOMAIN_ADMIN"),
    ):
        users, (error,) = await set_role(client, client, role=role)
        assert (users, error["requires"]) == ([], "ADMIN")
    for arguments in ({"role": "ROOT"}, {"role": "USER"}):
        users, (error,) = await set_role(admin, root_user, **arguments)
        assert (users, error["requires"]) == ([], "ROOT")
    users, (error,) = await set_role(admin, admin, role="ROOT")
    assert (users, error["requires"]) == ([], "ROOT")
    assert (await set_role(root, root_user, role="ADMIN"))[1] == []
    assert (await set_role(admin, root_user, role="USER"))[1] == []


async def test_user_permissions_are_replaced(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    domain_admin = await make_admin_of_domain(root)
    both_users = {"ids": [user_global_id(ada), user_global_id(bob)]}
    fields = "users { permissions }"

    async def set_permissions(
        client: GraphQLClient, permissions: Sequence[str], **users: Any
    ) -> Any:
        return await execute_mutation(
            client, "userPermissionsSet", fields, users=users, permissions=permissions
        )

    payload = await set_permissions(
        domain_admin, ["SPAM_POLICY", "APP_PASSWORDS", "SPAM_POLICY"], **both_users
    )
    assert payload == {
        "users": [{"permissions": ["APP_PASSWORDS", "SPAM_POLICY"]}] * 2,
        "errors": [],
    }
    all_permissions = sorted(UserPermission)
    assert (await set_permissions(domain_admin, all_permissions, ids=[user_global_id(ada)]))[
        "users"
    ] == [{"permissions": all_permissions}]
    await try_create_user(root, address="x@elsewhere.example")
    assert (await set_permissions(root, [], domains=[{"name": "elsewhere.example"}]))["users"] == [
        {"permissions": []}
    ]
    payload = await set_permissions(
        domain_admin, all_permissions, domains=[{"name": "elsewhere.example"}]
    )
    assert (payload["users"], payload["errors"][0]["code"]) == ([], "FORBIDDEN")
    assert (await set_permissions(ada, all_permissions, ids=[user_global_id(ada)]))["errors"][0][
        "requires"
    ] == "DOMAIN_ADMIN"


@pytest.mark.usefixtures("ada")
async def test_administered_domains_are_visible_within_own_domains(root: GraphQLClient) -> None:
    await try_create_user(root, address="x@elsewhere.example")
    domain_admin = await make_admin_of_domain(root)
    other_admin = await make_admin_of_domain(root, domain="elsewhere.example", name="other")
    document = "query ($by: UserRef) { user(by: $by) { administers { nodes { name } } } }"
    response = await domain_admin(document, by={"username": "other"})  # who lives in example.org
    assert response["user"]["administers"]["nodes"] == []
    response = await other_admin(document)
    assert response["user"]["administers"]["nodes"] == [{"name": "elsewhere.example"}]
    response = await root(document, by={"username": "other"})
    assert response["user"]["administers"]["nodes"] == [{"name": "elsewhere.example"}]


USERS_QUERY = """{ users(first: 50) { nodes { username permissions spam { level }
    openpgpKey { name }
  administers { nodes { name } } adminPermissions retention } } }"""


async def test_roles_of_many_users_load_in_constant_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await root(USERS_QUERY)
        return len([statement for statement in statements if "api_keys" not in statement])

    await make_user(root.environment, "first")
    count_before = await count_statements()
    for number in range(10):
        await make_admin_of_domain(root, AdminPermission.FILTERS, name=f"c{number}")
    assert [await count_statements(), await count_statements()] == [count_before, count_before]
