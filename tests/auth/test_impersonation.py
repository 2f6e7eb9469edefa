"""Administrators who act as users."""

from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from models.admin.admin_log import AdminLogEntry
from models.auth.security_log import AuthEvent
from models.errors import Conflict, Forbidden, Invalid, NotFound
from models.runtime.environment import World
from models.store.columns import table_of
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import act_as, authentication
from resolvers.context import Context, Viewer
from tests.auth.conftest import MASTER, Town
from tests.auth.test_api_key_restrictions import another_domain, charged
from tests.auth.test_http_credentials import sent
from tests.conftest import Client, make_client
from tests.support.accounts.domain_admins import make_domain_admin

ACT = """
mutation ($user: UserRef!, $ttl: Duration) {
  actAs(input: {user: $user, ttl: $ttl, options: {reason: "ticket 7"}}) {
    token expiresAt scope user { username } errors { code path }
  }
}
"""
WHO = "{ viewer { role scopes actingFor { username } user { username } } }"


async def acted(town: Town, ctx: Context, name: str = "ada", **more: Any) -> str:
    done = await act_as.act_as(ctx, town.users[name], **more)
    assert done.token
    return done.token


async def admin(town: Town) -> Context:
    await town.user("rex", role=Role.ADMIN)
    return Context(town.world, await town.viewer(await town.token("rex")))


async def test_who_acts_has_the_mail_and_no_credentials(town: Town) -> None:
    secret = await acted(town, await admin(town))
    viewer = await town.viewer(secret)
    assert (viewer.user_id, viewer.actor_id) == (town.users["ada"], town.users["rex"])
    assert viewer.role is Role.USER
    for scope in (Scope.READ, Scope.MAIL, Scope.MAIL_READ, Scope.SUBMIT, Scope.SETTINGS):
        viewer.require_scope(scope)
    with pytest.raises(Forbidden):
        viewer.require_scope(Scope.MASTER)


async def test_it_ends_on_time_however_it_is_used(town: Town) -> None:
    secret = await acted(town, await admin(town))
    for _ in range(5):
        town.clock.tick(minutes=5)
        assert not await town.refused(secret)
        await authentication.settle(town.world)
    town.clock.tick(minutes=5)
    assert await town.refused(secret)


@pytest.mark.parametrize(
    "ttl",
    [timedelta(0), timedelta(seconds=59), timedelta(hours=4, seconds=1), -timedelta(days=1)],
)
async def test_it_lasts_a_minute_to_four_hours(town: Town, ttl: timedelta) -> None:
    with pytest.raises(Invalid) as refusal:
        await acted(town, await admin(town), ttl=ttl)
    assert refusal.value.path == ["ttl"]


@pytest.mark.parametrize(
    "change", [{"disabled": True}, {"suspended": True}, {"role": Role.USER}, {"role": "lost"}]
)
async def test_it_ends_with_the_administrator(town: Town, change: dict[str, Any]) -> None:
    await town.change("ada", domain_id=town.domain_id)
    lost = change == {"role": "lost"}
    ctx = await charged(town, "rex") if lost else await admin(town)
    secret = await acted(town, ctx)
    viewer = await town.viewer(secret)
    if lost:
        async with town.world.write() as session:
            mine = col(DomainAdmin.user_id) == town.users["rex"]
            await session.exec(delete(DomainAdmin).where(mine))
        authentication.forget(town.world, town.users["rex"])
    else:
        await town.change("rex", **change)
        authentication.forget(town.world, town.users["rex"])
    assert await town.refused(secret)
    assert await authentication.ended(town.world, viewer)


async def test_it_ends_with_the_permission_and_with_the_user(town: Town) -> None:
    await town.change("ada", domain_id=town.domain_id)
    dora = await charged(town)
    secret = await acted(town, dora)
    assert not await town.refused(secret)
    await town.change("dora", admin_permissions=[])
    town.clock.tick(seconds=5)
    assert await town.refused(secret)
    other = await acted(town, await admin(town))
    await town.change("ada", auth_version=7)
    assert await town.refused(other)


async def test_nobody_acts_as_whom_they_do_not_manage(town: Town) -> None:
    dora, other = await charged(town), await another_domain(town)
    await town.user("oscar", domain_id=other)
    await town.user("rita", role=Role.DOMAIN_ADMIN, domain_id=town.domain_id)
    await town.user("root", role=Role.ROOT)
    await town.user("gone", domain_id=town.domain_id, disabled=True)
    for ctx, name, kind in (
        (dora, "oscar", NotFound),
        (dora, "ada", NotFound),
        (dora, "rita", Forbidden),
        (dora, "dora", Invalid),
        (dora, "gone", Conflict),
        (await admin(town), "root", Forbidden),
    ):
        with pytest.raises(kind):
            await acted(town, ctx, name)
    of_domain = Viewer(role=Role.DOMAIN_ADMIN, scopes=MASTER, api_key_id=7)
    with pytest.raises(Forbidden):
        await acted(town, Context(town.world, of_domain))


async def test_it_is_written_to_the_users_own_log_and_the_administrative_one(
    world: World, http: httpx.AsyncClient, ada: Client
) -> None:
    boss = await make_client(world, http, "boss", role=Role.ADMIN)
    done = (await boss(ACT, user={"username": "ada"}, ttl="PT1H"))["actAs"]
    assert (done["errors"], done["user"]) == ([], {"username": "ada"})
    assert done["expiresAt"] == "2030-01-01T01:00:00Z"
    (event,) = await world.database.read(select(table_of(AuthEvent)))
    assert (event.user_id, event.action) == (ada.user.id, "act as")
    assert (event.by, event.by_id) == ("boss", boss.user.id)
    assert event.detail["reason"] == "ticket 7"
    table = table_of(AdminLogEntry)
    asked = select(table).where(table.c.mutation == "actAs")
    (entry,) = await world.database.read(asked)
    assert (entry.mutation, entry.target_id, entry.reason) == ("actAs", ada.user.id, "ticket 7")
    assert done["token"] not in repr((event, entry))
    viewer = (await sent(http, WHO, done["token"]))["data"]["viewer"]
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
        (payload,) = (await sent(http, refused, done["token"]))["data"].values()
        assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"], refused


async def test_a_domain_admin_needs_the_permission(
    world: World, http: httpx.AsyncClient, ada: Client
) -> None:
    bare = await make_domain_admin(world, http, "bare")
    full = await make_domain_admin(world, http, "full", [AdminPermission.LOGIN_AS])
    user = {"username": "ada"}
    assert [e["code"] for e in (await bare(ACT, user=user))["actAs"]["errors"]] == ["FORBIDDEN"]
    assert (await ada(ACT, user=user))["actAs"]["errors"][0]["code"] == "FORBIDDEN"
    assert (await full(ACT, user=user))["actAs"]["errors"] == []
