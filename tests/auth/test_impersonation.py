"""Administrators who act as users."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from models.admin.admin_log import AdminLogEntry
from models.auth.security_log import SecurityEvent
from models.errors import Conflict, Forbidden, InvalidInput, NotFound
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import authentication
from resolvers.context import Context, Viewer
from tests.conftest import Client, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import (
    MASTER_SCOPES,
    SignInEnvironment,
    add_other_domain,
    create_act_as_token,
    make_admin_context,
    make_domain_admin_context,
)
from tests.support.clients.http_requests import post_document

ACT = """
mutation ($user: UserRef!, $ttl: Duration) {
  actAs(input: {user: $user, ttl: $ttl, options: {reason: "ticket 7"}}) {
    token expiresAt scope user { username } errors { code path }
  }
}
"""
WHO = "{ viewer { role scopes actingFor { username } user { username } } }"


async def test_who_acts_has_the_mail_and_no_credentials(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret = await create_act_as_token(
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
        viewer.require_scope(Scope.MASTER)


async def test_it_ends_on_time_however_it_is_used(sign_in_environment: SignInEnvironment) -> None:
    secret = await create_act_as_token(
        sign_in_environment, await make_admin_context(sign_in_environment)
    )
    for _ in range(5):
        sign_in_environment.clock.tick(minutes=5)
        assert not await sign_in_environment.is_refused(secret)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    sign_in_environment.clock.tick(minutes=5)
    assert await sign_in_environment.is_refused(secret)


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=59), timedelta(hours=4, seconds=1), -timedelta(days=1)],
)
async def test_it_lasts_a_minute_to_four_hours(
    sign_in_environment: SignInEnvironment, ttl: timedelta
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await create_act_as_token(
            sign_in_environment, await make_admin_context(sign_in_environment), ttl=ttl
        )
    assert refusal.value.path == ["ttl"]


@pytest.mark.parametrize(
    "change", [{"disabled": True}, {"suspended": True}, {"role": Role.USER}, {"role": "lost"}]
)
async def test_it_ends_with_the_administrator(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    lost = change == {"role": "lost"}
    ctx = (
        await make_domain_admin_context(sign_in_environment, "rex")
        if lost
        else await make_admin_context(sign_in_environment)
    )
    secret = await create_act_as_token(sign_in_environment, ctx)
    viewer = await sign_in_environment.authenticate(secret)
    if lost:
        async with sign_in_environment.world.write_session() as session:
            mine = col(DomainAdmin.user_id) == sign_in_environment.users["rex"]
            await session.exec(delete(DomainAdmin).where(mine))
        authentication.drop_credentials(sign_in_environment.world, sign_in_environment.users["rex"])
    else:
        await sign_in_environment.change_user("rex", **change)
        authentication.drop_credentials(sign_in_environment.world, sign_in_environment.users["rex"])
    assert await sign_in_environment.is_refused(secret)
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)


async def test_it_ends_with_the_permission_and_with_the_user(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    dora = await make_domain_admin_context(sign_in_environment)
    secret = await create_act_as_token(sign_in_environment, dora)
    assert not await sign_in_environment.is_refused(secret)
    await sign_in_environment.change_user("dora", admin_permissions=[])
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)
    other = await create_act_as_token(
        sign_in_environment, await make_admin_context(sign_in_environment)
    )
    await sign_in_environment.change_user("ada", auth_version=7)
    assert await sign_in_environment.is_refused(other)


async def test_nobody_acts_as_whom_they_do_not_manage(
    sign_in_environment: SignInEnvironment,
) -> None:
    dora, other = (
        await make_domain_admin_context(sign_in_environment),
        await add_other_domain(sign_in_environment),
    )
    await sign_in_environment.add_user("oscar", domain_id=other)
    await sign_in_environment.add_user(
        "rita", role=Role.DOMAIN_ADMIN, domain_id=sign_in_environment.domain_id
    )
    await sign_in_environment.add_user("root", role=Role.ROOT)
    await sign_in_environment.add_user(
        "gone", domain_id=sign_in_environment.domain_id, disabled=True
    )
    for ctx, name, kind in (
        (dora, "oscar", NotFound),
        (dora, "ada", NotFound),
        (dora, "rita", Forbidden),
        (dora, "dora", InvalidInput),
        (dora, "gone", Conflict),
        (await make_admin_context(sign_in_environment), "root", Forbidden),
    ):
        with pytest.raises(kind):
            await create_act_as_token(sign_in_environment, ctx, name)
    of_domain = Viewer(role=Role.DOMAIN_ADMIN, scopes=MASTER_SCOPES, api_key_id=7)
    with pytest.raises(Forbidden):
        await create_act_as_token(
            sign_in_environment, Context(sign_in_environment.world, of_domain)
        )


async def test_it_is_written_to_the_users_own_log_and_the_administrative_one(
    world: Environment, http: httpx.AsyncClient, ada: Client
) -> None:
    boss = await make_client(world, http, "boss", role=Role.ADMIN)
    done = (await boss(ACT, user={"username": "ada"}, ttl="PT1H"))["actAs"]
    assert (done["errors"], done["user"]) == ([], {"username": "ada"})
    assert done["expiresAt"] == "2030-01-01T01:00:00Z"
    (event,) = await world.database.read(select(core_table(SecurityEvent)))
    assert (event.user_id, event.action) == (ada.user.id, "act as")
    assert (event.by, event.by_id) == ("boss", boss.user.id)
    assert event.detail["reason"] == "ticket 7"
    table = core_table(AdminLogEntry)
    asked = select(table).where(table.c.mutation == "actAs")
    (entry,) = await world.database.read(asked)
    assert (entry.mutation, entry.target_id, entry.reason) == ("actAs", ada.user.id, "ticket 7")
    assert done["token"] not in repr((event, entry))
    viewer = (await post_document(http, WHO, done["token"]))["data"]["viewer"]
    assert viewer["actingFor"] == viewer["user"] == {"username": "ada"}
    assert viewer["scopes"] == ["MAIL", "READ", "SETTINGS", "SUBMIT"]
    assert (await boss(WHO))["viewer"]["actingFor"] is None
    for refused in (
        'mutation { apiKeyCreate(input: {name: "x"}) { errors { code } } }',
        "mutation { tokenRevoke(input: {all: true}) { errors { code } } }",
        "mutation { totpSetup(input: {}) { errors { code } } }",
        'mutation { appPasswordCreate(input: {description: "x"}) { errors { code } } }',
        'mutation { actAs(input: {user: {username: "bob"}}) { errors { code } } }',
    ):
        (payload,) = (await post_document(http, refused, done["token"]))["data"].values()
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"], refused


async def test_a_domain_admin_needs_the_permission(
    world: Environment, http: httpx.AsyncClient, ada: Client
) -> None:
    bare = await make_domain_admin(world, http, "bare")
    full = await make_domain_admin(world, http, "full", [AdminPermission.LOGIN_AS])
    user = {"username": "ada"}
    assert [e["code"] for e in (await bare(ACT, user=user))["actAs"]["errors"]] == ["FORBIDDEN"]
    assert (await ada(ACT, user=user))["actAs"]["errors"][0]["code"] == "FORBIDDEN"
    assert (await full(ACT, user=user))["actAs"]["errors"] == []
