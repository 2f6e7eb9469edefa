"""Users that domain administrators create, in which domains and with which fields."""

from typing import Any

import pytest

from graph.types import global_ids
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, make_user
from tests.support.accounts.user_operations import (
    execute_mutation,
    make_admin_of_domain,
    try_create_user,
    try_update_users,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_domain_admin_creates_admin_of_own_domains_only(root: GraphQLClient) -> None:
    await make_user(root.environment, "far")
    await try_create_user(root, address="x@elsewhere.example")
    domain_admin = await make_admin_of_domain(
        root, AdminPermission.IMPERSONATE, AdminPermission.FILTERS
    )
    arguments = {"role": "DOMAIN_ADMIN", "address": "sub@example.org"}
    user, errors = await try_create_user(
        domain_admin,
        **arguments,
        administers=[{"name": "EXAMPLE.org"}],
        adminPermissions=["IMPERSONATE"],
    )
    assert errors == []
    assert (user["administers"]["nodes"], user["adminPermissions"]) == (
        [{"name": "example.org"}], ["IMPERSONATE"],
    )  # fmt: skip
    arguments["address"] = "sub2@example.org"
    for extra, path, code in (
        ({"administers": [{"name": "example.org"}, {"name": "elsewhere.example"}]},
         ["administers", "1"], "NOT_FOUND"),
        ({"administers": [{"name": "nowhere.example"}]}, ["administers", "0"], "NOT_FOUND"),
        ({"adminPermissions": ["IMPERSONATE", "SPAM_POLICY"]}, ["adminPermissions", "1"],
         "FORBIDDEN"),
        ({"role": "ADMIN"}, ["role"], "FORBIDDEN"),
        ({"role": "ROOT"}, ["role"], "FORBIDDEN"),
    ):  # fmt: skip
        user, (error,) = await try_create_user(domain_admin, **{**arguments, **extra})
        assert (user, error["code"], error["path"]) == (None, code, path)
    for name in ("elsewhere.example", "nowhere.example"):  # one exists, the other does not
        _, (error,) = await try_create_user(domain_admin, **arguments, administers=[{"name": name}])
        assert error["message"] == f"Domain not found: {name}."
    _, (error,) = await try_create_user(domain_admin, address="y@elsewhere.example")
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["address"])


def input_path(value: Any) -> list[str]:
    """Return the names on the way to the one member of nested objects."""
    if not isinstance(value, dict):
        return []
    ((name, member),) = value.items()
    return [name, *input_path(member)]


@pytest.mark.parametrize(
    ("arguments", "permission"),
    [
        ({"allowedSenders": ["x@example.org"]}, "ALLOWED_SENDERS"),
        ({"disabledScopes": ["IMAP"]}, "PROTOCOL_ACCESS"),
        ({"webmailAccess": False}, "WEBMAIL_ACCESS"),
        ({"allowLocal": True}, "PROTOCOL_ACCESS"),
        ({"smtpAllowedNetworks": ["192.0.2.0/24"]}, "SUBMISSION_NETWORKS"),
        ({"spam": {"level": 10}}, "SPAM_POLICY"),
        ({"spam": {"junkScore": 7}}, "SPAM_POLICY"),
        ({"quota": None}, "UNLIMITED_QUOTA"),
    ],
)
@pytest.mark.usefixtures("ada")
async def test_domain_admin_sets_some_fields_only_with_permission(
    root: GraphQLClient, arguments: dict[str, Any], permission: str
) -> None:
    admin_without_permission = await make_admin_of_domain(root)
    user, (error,) = await try_create_user(admin_without_permission, **arguments)
    assert (user, error["code"], error["requires"]) == (None, "FORBIDDEN", permission)
    assert error["path"] == input_path(arguments)
    admin_with_permission = await make_admin_of_domain(
        root, AdminPermission(permission), name="able"
    )
    user, errors = await try_create_user(admin_with_permission, **arguments)
    assert errors == []
    _, errors = await try_update_users(
        admin_without_permission, global_ids.decode("User", user["id"]), **arguments
    )
    assert (errors[0]["requires"], errors[0]["path"]) == (
        permission,
        ["set", *input_path(arguments)],
    )
    assert (
        await try_update_users(
            admin_with_permission, global_ids.decode("User", user["id"]), **arguments
        )
    )[1] == []


@pytest.mark.usefixtures("ada")
async def test_domain_admin_whitelists_no_sender_of_other_local_domain(root: GraphQLClient) -> None:
    await try_create_user(root, address="x@elsewhere.example")
    domain_admin = await make_admin_of_domain(root, AdminPermission.ALLOWED_SENDERS)
    for pattern in ("*", "x*", "*e.example", "x@elsewhere.example", "elsewhere.example",
                    "*@ELSEWHERE.example", "news@*"):  # fmt: skip
        user, (error,) = await try_create_user(
            domain_admin, allowedSenders=["ok@example.org", pattern]
        )
        assert (user, error["requires"], error["path"]) == (
            None,
            "ADMIN",
            ["allowedSenders", "1"],
        )
    user, errors = await try_create_user(
        domain_admin, allowedSenders=["*@example.org", "partner.example", "me@gmail.example"]
    )
    assert errors == []
    assert len(user["allowedSenders"]) == 3


@pytest.mark.usefixtures("ada")
async def test_domain_admin_gives_no_username_in_other_local_domain(root: GraphQLClient) -> None:
    await try_create_user(root, address="x@other.example")
    alias = await execute_mutation(
        root,
        "aliasDomainCreate",
        "aliasDomain { id }",
        alias="alias.example",
        domain={"name": "other.example"},
    )
    assert alias["errors"] == []
    domain_admin = await make_admin_of_domain(root)
    user, errors = await try_create_user(domain_admin, username="eve")
    assert errors == []
    user_id = global_ids.decode("User", user["id"])
    for username in ("ceo@other.example", "C.eo@OTHER.example", "ceo@alias.example"):
        new_user, (error,) = await try_create_user(
            domain_admin, username=username, address="ceo@example.org"
        )
        assert (new_user, error["code"], error["requires"], error["path"]) == (
            None, "FORBIDDEN", "ADMIN", ["username"],
        )  # fmt: skip
        _, (error,) = await try_update_users(domain_admin, user_id, username=username)
        assert (error["code"], error["requires"], error["path"]) == (
            "FORBIDDEN", "ADMIN", ["set", "username"],
        )  # fmt: skip
    for username in ("eve@example.org", "eve@not-hosted.example"):
        assert (await try_update_users(domain_admin, user_id, username=username))[1] == []
    assert (await try_update_users(root, user_id, username="ceo@other.example"))[1] == []
    # the administrator can still change the rest, and repeat the name
    assert (
        await try_update_users(domain_admin, user_id, username="ceo@other.example", name="Eve")
    )[1] == []


@pytest.mark.usefixtures("ada")
async def test_list_of_users_reports_each_username_in_other_local_domain(
    root: GraphQLClient,
) -> None:
    await try_create_user(root, address="x@other.example")
    domain_admin = await make_admin_of_domain(root)
    users = [
        {"username": username, "address": address, "passwordDisabled": True}
        for username, address in (
            ("a@other.example", "a@example.org"),
            ("b@example.org", "b@other.example"),
            ("c@example.org", "c@example.org"),
        )
    ]
    payload = await execute_mutation(domain_admin, "usersCreate", users=users)
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [
        ("FORBIDDEN", ["users", "0", "username"]), ("NOT_FOUND", ["users", "1", "address"]),
    ]  # fmt: skip
