"""Who can change which fields of users: users, domain administrators and scopes."""

from typing import Any

import pytest
from graphql import GraphQLInputObjectType

from graph.types import global_ids
from models.users.roles import AdminPermission, Role, Scope
from tests.conftest import GraphQLClient, make_api_key, make_client
from tests.support.accounts.legacy_password_hashes import LEGACY_HASHES
from tests.support.accounts.user_operations import (
    NEW_PASSWORD,
    UPDATE_USERS_MUTATION,
    execute_mutation,
    load_user_row,
    make_admin_of_domain,
    try_create_user,
    try_update_users,
    user_global_id,
)
from tests.support.schema.printed_schema import SDL

pytestmark = pytest.mark.usefixtures("verify_consistency")
OWN_FIELDS: dict[str, Any] = {
    "name": "N",
    "language": "fr",
    "retention": "P2D",
    "metadata": {"x": 1},
    "openpgpPublicKey": None,
    "encryptMessages": False,
    "spam": {"level": 20, "junkScore": 5, "rejectScore": 6},
    "quarantineNotification": "WEEKLY",
    "requireInboundTls": True,
    "requireOutboundTls": True,
    "uploadSentMessages": True,
    "forwardTo": ["x@far.example"],
    "encryptForwarded": False,
    "subaddressAction": "SUBJECT",
}
ADMIN_FIELDS: dict[str, Any] = {
    "username": "other",
    "passwordChangeRequired": True,
    "active": False,
    "suspended": True,
    "tags": ["t"],
    "privateMetadata": {"y": 1},
    "allowedSenders": ["*"],
    "disabledScopes": ["IMAP"],
    "quota": 7,
    "limits": {"receivedPerHour": None, "recipientsPerDay": None, "forwardsPerDay": None},
    "smtpAllowedNetworks": ["192.0.2.0/24"],
    "webmailAccess": False,
    "allowLocal": True,
}


async def test_user_changes_only_permitted_own_fields(ada: GraphQLClient) -> None:
    for name, value in OWN_FIELDS.items():
        assert (await try_update_users(ada, **{name: value}))[1] == [], name
    row_before = await load_user_row(ada.environment, ada)
    for name, value in ADMIN_FIELDS.items():
        users, (error,) = await try_update_users(ada, name="X", **{name: value})
        assert (users, error["code"], error["requires"]) == ([], "FORBIDDEN", "DOMAIN_ADMIN"), name
        assert error["path"][:2] == ["set", name]
    for name in ("inheritQuota", "inheritLimits"):
        _, (error,) = await try_update_users(ada, **{name: True})
        assert (error["requires"], error["path"]) == ("DOMAIN_ADMIN", ["set", name])
    _, (error,) = await try_update_users(ada, password=LEGACY_HASHES[0][1], hashedPassword=True)
    assert error["requires"] == "DOMAIN_ADMIN"
    assert await load_user_row(ada.environment, ada) == row_before
    assert (
        await execute_mutation(
            ada, "userPermissionsSet", users={"usernames": ["ada"]}, permissions=[]
        )
    )["errors"][0]["requires"]


async def test_all_patch_fields_are_covered_by_these_tests(root: GraphQLClient) -> None:
    response = await root('{ __type(name: "UserPatch") { inputFields { name } } }')
    field_names = {field["name"] for field in response["__type"]["inputFields"]}
    password_fields = {
        "password",
        "passwordDisabled",
        "hashedPassword",
        "allowUnsafe",
        "inheritQuota",
        "inheritLimits",
    }
    assert field_names == {*OWN_FIELDS, *ADMIN_FIELDS, *password_fields}


async def test_user_without_permission_cannot_change_field(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    payload = await execute_mutation(
        root, "userPermissionsSet", users={"ids": [user_global_id(ada)]}, permissions=[]
    )
    assert payload["errors"] == []
    _, (error,) = await try_update_users(ada, spam={"level": 1})
    assert (error["requires"], error["path"]) == ("SPAM_POLICY", ["set", "spam", "level"])


async def test_settings_scope_changes_only_own_settings(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    async def make_scoped_client(target: GraphQLClient, scope: Scope) -> GraphQLClient:
        name = f"{target.user.username}{scope}"
        secret = await make_api_key(
            root.environment, name, user_id=target.user.id, role=target.user.role, scopes=[scope]
        )
        return GraphQLClient(root.http, root.environment, target.user, secret)

    admin = await make_client(root.environment, root.http, "boss", role=Role.ADMIN)
    settings_client = await make_scoped_client(admin, Scope.SETTINGS)
    assert (await try_update_users(settings_client, name="B"))[1] == []
    for target, patch in (
        (ada, {"name": "X"}),
        (admin, {"quota": None}),
        (admin, {"password": NEW_PASSWORD}),
    ):
        _, (error,) = await try_update_users(settings_client, target, **patch)
        assert error["requires"] == "FULL"
    _, (error,) = await try_update_users(await make_scoped_client(admin, Scope.MAIL), name="B")
    assert error["requires"] == "SETTINGS"


async def test_update_of_unmanaged_users_changes_nothing(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    far_user, _ = await try_create_user(root, address="x@elsewhere.example", tags=["t"])
    far_user_id = global_ids.decode("User", far_user["id"])
    domain_admin = await make_admin_of_domain(root, *AdminPermission)
    rows_before = (
        await load_user_row(root.environment, far_user_id),
        await load_user_row(root.environment, bob),
    )
    for client, target in (
        (ada, bob.user.id),
        (ada, far_user_id),
        (ada, 12345),
        (domain_admin, far_user_id),
        (domain_admin, 12345),
    ):
        users, (error,) = await try_update_users(client, target, name="X")
        assert users == []
        reference = global_ids.encode("User", target)
        assert (error["code"], error["message"], error["path"]) == (
            "NOT_FOUND",
            f"User not found: {reference}.",
            ["users", "ids", "0"],
        )
    for selection in ({"usernames": ["x@elsewhere.example"]}, {"usernames": ["nobody"]}):
        response = await domain_admin(
            UPDATE_USERS_MUTATION, input={"users": selection, "set": {"name": "X"}}
        )
        assert response["userUpdate"]["errors"][0]["code"] == "NOT_FOUND"
    response = await domain_admin(
        UPDATE_USERS_MUTATION,
        input={"users": {"domains": [{"name": "elsewhere.example"}]}, "set": {"name": "X"}},
    )
    assert response["userUpdate"]["errors"][0]["path"] == ["users", "domains", "0"]
    for unmatched_selection in ({"patterns": ["x*"]}, {"tags": ["t"]}):
        response = await domain_admin(
            UPDATE_USERS_MUTATION, input={"users": unmatched_selection, "set": {"name": "X"}}
        )
        assert response["userUpdate"] == {"users": [], "errors": []}
    response = await domain_admin(
        UPDATE_USERS_MUTATION, input={"users": {"all": True}, "set": {"name": "X"}}
    )
    assert response["userUpdate"]["errors"][0]["requires"] == "ADMIN"
    assert (
        await load_user_row(root.environment, far_user_id),
        await load_user_row(root.environment, bob),
    ) == rows_before


async def test_domain_admin_updates_users_but_no_admins(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_admin_of_domain(root, *AdminPermission)
    patch = {**ADMIN_FIELDS, "allowedSenders": ["x@example.org"], "quota": None, "active": True}
    (user,), errors = await try_update_users(domain_admin, ada, **patch)
    assert (errors, user["username"], user["limits"]["quota"]["limit"]) == ([], "other", None)
    assert (await try_update_users(domain_admin, ada, password=NEW_PASSWORD))[1] == []
    for role in (Role.DOMAIN_ADMIN, Role.ADMIN, Role.ROOT):
        higher_user = await make_client(root.environment, root.http, f"o{role.lower()}", role=role)
        for refused_patch in ({"name": "X"}, {"password": NEW_PASSWORD}, {"active": False}):
            users, (error,) = await try_update_users(domain_admin, higher_user, **refused_patch)
            assert (users, error["code"], error["requires"]) == ([], "FORBIDDEN", role)
    admin = await make_client(root.environment, root.http, "admin2", role=Role.ADMIN)
    _, (error,) = await try_update_users(admin, higher_user, password=NEW_PASSWORD)  # of role ROOT
    assert error["requires"] == "ROOT"
    _, (error,) = await try_update_users(domain_admin, ada, allowedSenders=["*"])
    assert (error["requires"], error["path"]) == ("ADMIN", ["set", "allowedSenders", "0"])


@pytest.mark.usefixtures("ada")
async def test_domain_admin_of_other_domain_is_a_plain_user_at_home(root: GraphQLClient) -> None:
    await try_create_user(root, address="x@elsewhere.example")
    domain_admin = await make_admin_of_domain(root, *AdminPermission, domain="elsewhere.example")
    assert (await try_update_users(domain_admin, name="Me"))[1] == []
    for name, value in ADMIN_FIELDS.items():
        _, (error,) = await try_update_users(domain_admin, **{name: value})
        assert error["requires"] == "ADMIN", name


def input_field_names(type_name: str) -> set[str]:
    input_type = SDL.type_map[type_name]
    assert isinstance(input_type, GraphQLInputObjectType)
    return set(input_type.fields)


async def test_create_and_update_require_the_same_permissions(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_admin_of_domain(root)
    values = {**OWN_FIELDS, **ADMIN_FIELDS}
    shared_names = input_field_names("UserPatch") & input_field_names("UserCreateInput")
    names = sorted(shared_names & values.keys())
    assert shared_names - {*names} == {"allowUnsafe", "hashedPassword", "password",
                                       "passwordDisabled"}  # fmt: skip
    dry_run = {"options": {"validateOnly": True}}
    for name in names:
        _, created = await try_create_user(domain_admin, **{name: values[name]}, **dry_run)
        _, updated = await try_update_users(domain_admin, ada, **{name: values[name]}, **dry_run)
        required = [
            [(error["code"], error["requires"]) for error in errors if error["code"] == "FORBIDDEN"]
            for errors in (created, updated)
        ]
        assert required[0] == required[1], name
