"""Administrators who act as users."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from models.admin.audit_log import AuditLogEntry
from models.auth.security_log import SecurityEvent
from models.errors import Conflict, Forbidden, InvalidInput, NotFound
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import (
    FULL_SCOPES,
    SignInEnvironment,
    add_other_domain,
    create_impersonation_token,
    make_admin_context,
    make_domain_admin_context,
)
from tests.support.clients.http_requests import post_document

IMPERSONATION = """
mutation ($user: UserRef!, $ttl: Duration) {
  userImpersonate(input: {user: $user, ttl: $ttl, options: {reason: "ticket 7"}}) {
    token expiresAt scopes user { username } errors { code path }
  }
}
"""
VIEWER_QUERY = "{ viewer { role scopes impersonating { username } user { username } } }"


async def test_impersonation_token_has_all_scopes_except_master(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret = await create_impersonation_token(
        sign_in_environment, await make_admin_context(sign_in_environment)
    )
    viewer = await sign_in_environment.authenticate(secret)
    assert (viewer.user_id, viewer.actor_id) == (
        sign_in_environment.users["ada"],
        sign_in_environment.users["rex"],
    )
    assert viewer.role is Role.USER
    for scope in (Scope.READ, Scope.MAIL, Scope.MAIL_READ, Scope.SUBMIT, Scope.SETTINGS):
        viewer.require_scope(scope)
    with pytest.raises(Forbidden):
        viewer.require_scope(Scope.FULL)


async def test_impersonation_token_expires_on_time_despite_use(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret = await create_impersonation_token(
        sign_in_environment, await make_admin_context(sign_in_environment)
    )
    for _ in range(5):
        sign_in_environment.clock.tick(minutes=5)
        assert not await sign_in_environment.is_refused(secret)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    sign_in_environment.clock.tick(minutes=5)
    assert await sign_in_environment.is_refused(secret)


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=59), timedelta(hours=4, seconds=1), -timedelta(days=1)],
)
async def test_impersonation_ttl_out_of_range_is_refused(
    sign_in_environment: SignInEnvironment, ttl: timedelta
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await create_impersonation_token(
            sign_in_environment, await make_admin_context(sign_in_environment), ttl=ttl
        )
    assert refusal.value.path == ["ttl"]


@pytest.mark.parametrize(
    "change", [{"active": False}, {"suspended": True}, {"role": Role.USER}, {"role": "lost"}]
)
async def test_impersonation_token_ends_with_rights_of_the_admin(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    loses_domain = change == {"role": "lost"}
    ctx = (
        await make_domain_admin_context(sign_in_environment, "rex")
        if loses_domain
        else await make_admin_context(sign_in_environment)
    )
    secret = await create_impersonation_token(sign_in_environment, ctx)
    viewer = await sign_in_environment.authenticate(secret)
    if loses_domain:
        async with sign_in_environment.environment.write_session() as session:
            is_rex = col(DomainAdmin.user_id) == sign_in_environment.users["rex"]
            await session.exec(delete(DomainAdmin).where(is_rex))
        authentication.drop_cached_credentials(
            sign_in_environment.environment, sign_in_environment.users["rex"]
        )
    else:
        await sign_in_environment.change_user("rex", **change)
        authentication.drop_cached_credentials(
            sign_in_environment.environment, sign_in_environment.users["rex"]
        )
    assert await sign_in_environment.is_refused(secret)
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )


async def test_impersonation_token_ends_with_permission_or_user_change(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    admin_context = await make_domain_admin_context(sign_in_environment)
    secret = await create_impersonation_token(sign_in_environment, admin_context)
    assert not await sign_in_environment.is_refused(secret)
    await sign_in_environment.change_user("dora", admin_permissions=[])
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)
    admin_secret = await create_impersonation_token(
        sign_in_environment, await make_admin_context(sign_in_environment)
    )
    await sign_in_environment.change_user("ada", auth_version=7)
    assert await sign_in_environment.is_refused(admin_secret)


async def test_impersonation_needs_rights_over_the_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    admin_context = await make_domain_admin_context(sign_in_environment)
    other_domain_id = await add_other_domain(sign_in_environment)
    await sign_in_environment.add_user("oscar", domain_id=other_domain_id)
    await sign_in_environment.add_user(
        "rita", role=Role.DOMAIN_ADMIN, domain_id=sign_in_environment.domain_id
    )
    await sign_in_environment.add_user("root", role=Role.ROOT)
    await sign_in_environment.add_user(
        "gone", domain_id=sign_in_environment.domain_id, active=False
    )
    for ctx, name, error_class in (
        (admin_context, "oscar", NotFound),
        (admin_context, "ada", NotFound),
        (admin_context, "rita", Forbidden),
        (admin_context, "dora", InvalidInput),
        (admin_context, "gone", Conflict),
        (await make_admin_context(sign_in_environment), "root", Forbidden),
    ):
        with pytest.raises(error_class):
            await create_impersonation_token(sign_in_environment, ctx, name)
    key_viewer = Viewer(role=Role.DOMAIN_ADMIN, scopes=FULL_SCOPES, api_key_id=7)
    with pytest.raises(Forbidden):
        await create_impersonation_token(
            sign_in_environment, Context(sign_in_environment.environment, key_viewer)
        )


async def test_lifetime_of_zero_is_refused(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    user = {"username": ada.user.username}
    payload = (await admin(IMPERSONATION, user=user, ttl="PT0S"))["userImpersonate"]
    assert (payload["token"], payload["errors"]) == (
        None,
        [{"code": "VALIDATION", "path": ["ttl"]}],
    )


async def test_impersonation_is_in_security_log_and_audit_log(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    admin = await make_client(environment, http, "boss", role=Role.ADMIN)
    impersonation_payload = (await admin(IMPERSONATION, user={"username": "ada"}, ttl="PT1H"))[
        "userImpersonate"
    ]
    assert impersonation_payload["scopes"] == ["READ", "MAIL", "SUBMIT", "SETTINGS"]
    assert (impersonation_payload["errors"], impersonation_payload["user"]) == (
        [],
        {"username": "ada"},
    )
    assert impersonation_payload["expiresAt"] == "2030-01-01T01:00:00Z"
    (event,) = await environment.database.read(select(core_table(SecurityEvent)))
    assert (event.user_id, event.action) == (ada.user.id, "IMPERSONATION_STARTED")
    assert (event.by, event.by_id) == ("boss", admin.user.id)
    assert event.detail["reason"] == "ticket 7"
    table = core_table(AuditLogEntry)
    query = select(table).where(table.c.mutation == "userImpersonate")
    (entry,) = await environment.database.read(query)
    assert (entry.mutation, entry.target_id, entry.reason) == (
        "userImpersonate",
        ada.user.id,
        "ticket 7",
    )
    assert impersonation_payload["token"] not in repr((event, entry))
    viewer = (await post_document(http, VIEWER_QUERY, impersonation_payload["token"]))["data"][
        "viewer"
    ]
    assert viewer["impersonating"] == viewer["user"] == {"username": "ada"}
    assert viewer["scopes"] == ["MAIL", "READ", "SETTINGS", "SUBMIT"]
    assert (await admin(VIEWER_QUERY))["viewer"]["impersonating"] is None
    for document in (
        'mutation { apiKeyCreate(input: {name: "x"}) { errors { code } } }',
        "mutation { accessTokenRevoke(input: {all: true}) { errors { code } } }",
        "mutation { totpSetup(input: {}) { errors { code } } }",
        'mutation { appPasswordCreate(input: {description: "x"}) { errors { code } } }',
        'mutation { userImpersonate(input: {user: {username: "bob"}}) { errors { code } } }',
    ):
        (payload,) = (await post_document(http, document, impersonation_payload["token"]))[
            "data"
        ].values()
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"], document


async def test_domain_admin_needs_permission_to_impersonate(
    environment: Environment, http: httpx.AsyncClient, ada: GraphQLClient
) -> None:
    admin_without_permission = await make_domain_admin(environment, http, "bare")
    admin_with_permission = await make_domain_admin(
        environment, http, "full", [AdminPermission.IMPERSONATE]
    )
    user = {"username": "ada"}
    assert [
        e["code"]
        for e in (await admin_without_permission(IMPERSONATION, user=user))["userImpersonate"][
            "errors"
        ]
    ] == ["FORBIDDEN"]
    assert (await ada(IMPERSONATION, user=user))["userImpersonate"]["errors"][0][
        "code"
    ] == "FORBIDDEN"
    assert (await admin_with_permission(IMPERSONATION, user=user))["userImpersonate"][
        "errors"
    ] == []
