"""Roles and what is delegated: given by those above, and never above their own."""

from collections.abc import Sequence
from typing import Any

import pytest

from models.users.roles import AdminPermission, Role, UserPermission
from tests.conftest import Client, make_client, make_user
from tests.support.accounts.user_operations import change, chief, create, id_of, row_of, run
from tests.support.stores.counter_check import rows

FIELDS = "users { username role adminPermissions administers { name } }"
pytestmark = pytest.mark.usefixtures("examined")


async def set_role(client: Client, *who: Client, **given: Any) -> tuple[list[Any], list[Any]]:
    users = {"ids": [id_of(one) for one in who]}
    answer = await run(client, "userRoleSet", FIELDS, users=users, **given)
    return answer["users"], answer["errors"]


async def domain_id(root: Client, name: str) -> str:
    answer = await root("{ users { nodes { domain { id name } } } }")
    return str({o["domain"]["name"]: o["domain"]["id"] for o in answer["users"]["nodes"]}[name])


async def test_a_role_with_its_domains_and_permissions_is_given_and_taken(
    root: Client, ada: Client, bob: Client
) -> None:
    await create(root, address="x@elsewhere.example")
    far = await domain_id(root, "elsewhere.example")
    (user,), errors = await set_role(
        root, ada, role="DOMAIN_ADMIN", adminPermissions=["LOGIN_AS", "FILTERS", "LOGIN_AS"],
        administers=[{"name": "Example.ORG"}, {"id": far}, {"name": "example.org"}],
    )  # fmt: skip
    assert errors == []
    assert user == {
        "username": "ada",
        "role": "DOMAIN_ADMIN",
        "adminPermissions": ["FILTERS", "LOGIN_AS"],
        "administers": [{"name": "elsewhere.example"}, {"name": "example.org"}],
    }
    (user,), _ = await set_role(root, ada, administers=[{"id": far}])
    assert user["adminPermissions"] == ["FILTERS", "LOGIN_AS"]
    assert user["administers"] == [{"name": "elsewhere.example"}]
    (one, two), errors = await set_role(root, ada, bob, role="USER")
    assert errors == []
    assert [one["role"], two["role"]] == ["USER", "USER"]
    assert (one["adminPermissions"], one["administers"]) == ([], [])
    assert await rows(root.world, "SELECT * FROM domain_admins") == []
    found = await rows(
        root.world, "SELECT before, after FROM admin_log WHERE mutation = 'userRoleSet'"
    )
    assert len(found) == 3  # bob was a USER before
    assert "administers" in str(found[1])


async def test_a_new_role_holds_at_once(root: Client, ada: Client) -> None:
    key = await make_client(root.world, root.http, "boss", role=Role.ADMIN)
    assert "errors" not in await key.raw("{ users { totalCount } }")
    await set_role(root, key, role="USER")
    answer = await key.raw("{ users { totalCount } }")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await key("{ viewer { role } }"))["viewer"]["role"] == "USER"
    _, (error,) = await change(key, ada, name="X")
    assert error["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({}, "VALIDATION", ["role"]),
        ({"role": "PUBLIC"}, "VALIDATION", ["role"]),
        ({"role": "USER", "adminPermissions": ["LOGIN_AS"]}, "VALIDATION", ["adminPermissions"]),
        ({"administers": [{"name": "example.org"}]}, "VALIDATION", ["administers"]),
        ({"role": "DOMAIN_ADMIN", "administers": [{"name": "none.example"}]}, "NOT_FOUND",
         ["administers"]),
        ({"role": "ROOT"}, "FORBIDDEN", ["role"]),
    ],
)  # fmt: skip
async def test_what_cannot_be_is_refused(
    root: Client, ada: Client, given: dict[str, Any], code: str, path: list[str]
) -> None:
    admin = await make_client(root.world, root.http, "admin2", role=Role.ADMIN)
    before = await row_of(root.world, ada)
    users, (error,) = await set_role(admin, ada, **given)
    assert (users, error["code"], error["path"]) == ([], code, path)
    assert await row_of(root.world, ada) == before


async def test_nobody_climbs(root: Client, ada: Client) -> None:
    boss = await chief(root, *AdminPermission)
    admin = await make_client(root.world, root.http, "admin2", role=Role.ADMIN)
    top = await make_client(root.world, root.http, "top", role=Role.ROOT)
    for client, role in ((ada, "DOMAIN_ADMIN"), (boss, "ADMIN"), (boss, "DOMAIN_ADMIN")):
        users, (error,) = await set_role(client, client, role=role)
        assert (users, error["requires"]) == ([], "ADMIN")
    for given in ({"role": "ROOT"}, {"role": "USER"}):
        users, (error,) = await set_role(admin, top, **given)
        assert (users, error["requires"]) == ([], "ROOT")
    users, (error,) = await set_role(admin, admin, role="ROOT")
    assert (users, error["requires"]) == ([], "ROOT")
    assert (await set_role(root, top, role="ADMIN"))[1] == []
    assert (await set_role(admin, top, role="USER"))[1] == []


async def test_permissions_of_users_are_replaced(root: Client, ada: Client, bob: Client) -> None:
    boss = await chief(root)
    both = {"ids": [id_of(ada), id_of(bob)]}
    fields = "users { permissions }"

    async def give(client: Client, given: Sequence[str], **users: Any) -> Any:
        return await run(client, "userPermissionsSet", fields, users=users, permissions=given)

    answer = await give(boss, ["SPAM_SCORE", "APP_PASSWDS", "SPAM_SCORE"], **both)
    assert answer == {"users": [{"permissions": ["APP_PASSWDS", "SPAM_SCORE"]}] * 2, "errors": []}
    every = sorted(UserPermission)
    assert (await give(boss, every, ids=[id_of(ada)]))["users"] == [{"permissions": every}]
    await create(root, address="x@elsewhere.example")
    assert (await give(root, [], domains=["elsewhere.example"]))["users"] == [{"permissions": []}]
    answer = await give(boss, every, domains=["elsewhere.example"])
    assert answer == {"users": [], "errors": []}
    assert (await give(ada, every, ids=[id_of(ada)]))["errors"][0]["requires"] == "DOMAIN_ADMIN"


@pytest.mark.usefixtures("ada")
async def test_charges_of_others_are_seen_within_ones_own(root: Client) -> None:
    await create(root, address="x@elsewhere.example")
    boss = await chief(root)
    other = await chief(root, domain="elsewhere.example", name="other")
    document = "query ($by: UserRef) { user(by: $by) { administers { name } } }"
    seen = await boss(document, by={"username": "other"})  # who lives in example.org
    assert seen["user"]["administers"] == []
    assert (await other(document))["user"]["administers"] == [{"name": "elsewhere.example"}]
    seen = await root(document, by={"username": "other"})
    assert seen["user"]["administers"] == [{"name": "elsewhere.example"}]


MANY = """{ users(first: 50) { nodes { username permissions spam { level } keyInfo { name }
  administers { name } adminPermissions retention } } }"""


async def test_many_with_charges_cost_no_more_statements(
    root: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await root(MANY)
        return len([one for one in statements if "api_keys" not in one])

    await make_user(root.world, "first")
    few = await cost()
    for nth in range(10):
        await chief(root, AdminPermission.FILTERS, name=f"c{nth}")
    assert [await cost(), await cost()] == [few, few]
