"""Keys without an account, and the bootstrap key, act for users; logs name the key."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.app import create_app
from models.admin.admin_log import AdminLogEntry
from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.auth.credential_cache import drop_credentials
from tests.conftest import Client, Clock, make_client, make_key
from tests.support.schema.access_matrix import BOOTSTRAP_KEY

ACT = """mutation ($name: String!) { actAs(input: {user: {username: $name}}) {
  token errors { code message path } } }"""
ME = "{ viewer { role actingFor { username } user { username } } }"


@pytest.fixture
async def server(world: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(world, spool_folder=tmp_path, bootstrap_key=BOOTSTRAP_KEY)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


async def logged_by(world: Environment) -> tuple[list[str], list[str | None]]:
    """Who the logs say has acted: that of administrators, and the user's own."""
    admin = select(col(AdminLogEntry.actor)).where(col(AdminLogEntry.mutation) == "actAs")
    own = select(col(SecurityEvent.by)).where(col(SecurityEvent.action) == "act as")
    read = world.database.read
    return [row.actor for row in await read(admin)], [row.by for row in await read(own)]


@pytest.mark.parametrize(
    ("name", "role"), [("panel", Role.ROOT), ("panel", Role.ADMIN), (None, Role.ROOT)]
)
async def test_a_key_acts_for_a_user_and_is_named(
    server: httpx.AsyncClient, ada: Client, name: str | None, role: Role, clock: Clock
) -> None:
    world = ada.world
    secret = await make_key(world, name, role=role) if name else BOOTSTRAP_KEY
    key = replace(ada, http=server, secret=secret)
    done = (await key(ACT, name="ada"))["actAs"]
    assert done["errors"] == []
    acting = replace(key, secret=done["token"])
    ada_ = {"username": "ada"}
    assert (await acting(ME))["viewer"] == {"role": "USER", "actingFor": ada_, "user": ada_}
    called = f"key {name}" if name else "operator"
    assert await logged_by(world) == ([called], [called])
    (error,) = (await acting(ACT, name="ada"))["actAs"]["errors"]
    assert error["code"] == "FORBIDDEN"
    clock.tick(minutes=31)
    assert "errors" in await acting.raw(ME)


async def test_a_token_ends_with_the_key_that_acts(ada: Client, over: Client) -> None:
    world = ada.world
    key = replace(ada, secret=await make_key(world, "panel", role=Role.ROOT))
    acting = replace(ada, secret=(await key(ACT, name="ada"))["actAs"]["token"])
    assert (await acting(ME))["viewer"]["role"] == "USER"
    async with world.write_session() as session:
        this = update(ApiKey).where(col(ApiKey.name) == "panel").values(active=False)
        await (await session.connection()).execute(this)
    drop_credentials(world, ada.user.id)
    assert "errors" in await acting.raw(ME)
    assert over.user.id


async def test_a_key_acts_for_nobody_above_it(
    ada: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    await make_client(world, http, "top", role=Role.ROOT)
    key = replace(ada, secret=await make_key(world, "panel", role=Role.ADMIN))
    (error,) = (await key(ACT, name="top"))["actAs"]["errors"]
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["user"])
