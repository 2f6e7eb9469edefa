"""Who can see and change the application passwords of a user."""

from collections.abc import Sequence
from typing import Any

import pytest
from sqlmodel import col

from models.admin.audit_log import AuditLogEntry
from models.auth.application_passwords import ApplicationPassword
from models.errors import Forbidden, NotFound, RequestError
from models.store.columns import ColumnRow
from models.store.keyset_pages import PageRequest
from models.users.roles import AdminPermission, Role, UserPermission
from resolvers.auth import app_password_pages, app_passwords
from resolvers.auth.app_password_pages import AppPasswordOrder, AppPasswordPageKey
from resolvers.auth.app_password_validation import AppPasswordChanges, NewAppPassword
from resolvers.context import Context
from tests.conftest import GraphQLClient, client_context, make_client
from tests.support.accounts.app_password_operations import create_app_password
from tests.support.accounts.two_factor_operations import (
    load_all_rows,
    load_domain_admin_context,
    mutation_error_codes,
    run_auth_mutation,
)


async def list_for(ctx: Context, user_id: int) -> Sequence[ColumnRow]:
    """Return the application passwords of a user that the viewer of a context sees."""
    newest_first = app_password_pages.LIST_ORDERS[AppPasswordOrder.CREATED_AT_DESC]
    page_key = AppPasswordPageKey(user_id, PageRequest("x"), newest_first)
    (page,) = await app_password_pages.load_visible_app_password_pages(ctx, [page_key])
    assert await app_password_pages.count_app_passwords(ctx, [page_key]) == [len(page.rows)]
    return page.rows


async def test_app_password_of_other_user_is_hidden_and_unchangeable(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    ada_password_id = (await create_app_password(ada))["appPassword"]["id"]
    bob_password_id = (await create_app_password(bob))["appPassword"]["id"]
    user = {"username": "ada"}
    node = "query ($id: ID!) { node(id: $id) { id } }"
    assert (await bob(node, id=ada_password_id))["node"] is None
    assert await mutation_error_codes(bob, "appPasswordCreate", user=user, description="x") == [
        "NOT_FOUND"
    ]
    for name, extra in (
        ("appPasswordUpdate", {"set": {"active": False}}),
        ("appPasswordDelete", {}),
    ):
        payload = await run_auth_mutation(
            bob, name, appPasswords=[{"id": bob_password_id}, {"id": ada_password_id}], **extra
        )
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [
            ("NOT_FOUND", ["appPasswords", "1"])
        ]
    assert all(row.active for row in await load_all_rows(ada.environment, ApplicationPassword))
    assert (
        await mutation_error_codes(
            root,
            "appPasswordUpdate",
            appPasswords=[{"id": bob_password_id}, {"id": ada_password_id}],
            set={"active": False},
        )
        == []
    )
    assert not any(row.active for row in await load_all_rows(ada.environment, ApplicationPassword))
    logged_mutations = {row.mutation for row in await load_all_rows(ada.environment, AuditLogEntry)}
    assert logged_mutations == {"appPasswordUpdate", "userCreate"}


async def test_domain_admin_needs_app_password_permission(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    new_phone = NewAppPassword("Phone")
    row = (await app_passwords.create_app_password(client_context(ada), None, new_phone)).row
    admin_without_permission = await load_domain_admin_context(bob)
    admin_with_permission = await load_domain_admin_context(bob, AdminPermission.APP_PASSWORDS)
    other_admin = await load_domain_admin_context(
        bob, AdminPermission.APP_PASSWORDS, domain="elsewhere.example"
    )
    new_password, deactivation = NewAppPassword("x"), AppPasswordChanges(active=False)
    with pytest.raises(Forbidden) as refusal:
        await app_passwords.create_app_password(admin_without_permission, ada.user.id, new_password)
    assert refusal.value.requires == AdminPermission.APP_PASSWORDS
    for ctx in (admin_without_permission, other_admin):
        assert await list_for(ctx, ada.user.id) == []
        assert await app_passwords.load_visible_app_passwords_by_id(ctx, [row.id]) == [None]
        with pytest.raises(NotFound):
            await app_passwords.update_app_passwords(ctx, [row.id], deactivation)
        with pytest.raises(NotFound):
            await app_passwords.delete_app_passwords(ctx, [row.id])
    with pytest.raises(NotFound):
        await app_passwords.create_app_password(other_admin, ada.user.id, new_password)
    # for the own user
    await app_passwords.create_app_password(admin_without_permission, None, new_password)
    await app_passwords.create_app_password(admin_with_permission, ada.user.id, new_password)
    assert len(await list_for(admin_with_permission, ada.user.id)) == 2
    await app_passwords.update_app_passwords(admin_with_permission, [row.id], deactivation)
    admin = await make_client(ada.environment, ada.http, "boss", role=Role.ADMIN)
    admin_row = (
        await app_passwords.create_app_password(client_context(admin), None, new_password)
    ).row
    for operation in (
        app_passwords.update_app_passwords(admin_with_permission, [admin_row.id], deactivation),
        app_passwords.create_app_password(admin_with_permission, admin.user.id, new_password),
    ):
        with pytest.raises(RequestError):
            await operation


async def test_scopes_are_limited_only_for_passwords_of_an_administrator(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    own = (await create_app_password(ada, scopes=["IMAP"]))["appPassword"]["id"]
    of_admin = (
        await run_auth_mutation(
            admin_client,
            "appPasswordCreate",
            "appPassword { id }",
            user={"username": "ada"},
            description="Help",
            scopes=["MAIL_READ"],
        )
    )["appPassword"]["id"]
    update: dict[str, Any] = {"appPasswords": [{"id": own}, {"id": of_admin}]}
    fields = "appPasswords { id scopes } errors { code path }"
    payload = await run_auth_mutation(
        ada, "appPasswordUpdate", fields, **update, set={"scopes": ["ALL"]}
    )
    assert {row["id"]: row["scopes"] for row in payload["appPasswords"]} == {
        own: ["ALL"],
        of_admin: ["MAIL", "MAIL_READ", "SUBMIT"],
    }
    refused = await run_auth_mutation(
        ada, "appPasswordUpdate", fields, **update, set={"scopes": ["IMAP"]}
    )
    assert [(error["code"], error["path"]) for error in refused["errors"]] == [
        ("FORBIDDEN", ["set", "scopes"])
    ]
    rows = await load_all_rows(ada.environment, ApplicationPassword)
    assert [row.scopes for row in rows] == [["ALL"], ["MAIL", "MAIL_READ", "SUBMIT"]]
    await run_auth_mutation(
        admin_client, "appPasswordUpdate", **update, set={"scopes": ["ALL"], "active": False}
    )
    entries = [
        row.after
        for row in await load_all_rows(ada.environment, AuditLogEntry)
        if row.mutation == "appPasswordUpdate"
    ]
    assert [entry["scopes"] for entry in entries] == [["ALL"], ["MAIL", "MAIL_READ", "SUBMIT"]]


async def test_user_needs_app_password_permission(ada: GraphQLClient) -> None:
    from sqlalchemy import update

    from models.users.tables import User
    from resolvers.auth import authentication

    other_permissions = [
        permission.value
        for permission in UserPermission
        if permission is not UserPermission.APP_PASSWORDS
    ]
    async with ada.environment.write_session() as session:
        is_ada = col(User.id) == ada.user.id
        await session.exec(update(User).where(is_ada).values(permissions=other_permissions))
    authentication.drop_cached_credentials(ada.environment, ada.user.id)
    assert await mutation_error_codes(ada, "appPasswordCreate", description="x") == ["FORBIDDEN"]
    assert await mutation_error_codes(ada, "appPasswordDelete", appPasswords=[]) == ["FORBIDDEN"]


async def test_app_password_of_unknown_user_is_not_found(root: GraphQLClient) -> None:
    arguments = {"user": {"username": "nobody"}, "description": "x"}
    assert await mutation_error_codes(root, "appPasswordCreate", **arguments) == ["NOT_FOUND"]
