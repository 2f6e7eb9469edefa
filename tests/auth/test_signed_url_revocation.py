"""Signed addresses: they die with what made them."""

from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from models.auth.application_passwords import AppPassword
from models.auth.credentials import ApiKey
from models.errors import Unauthenticated
from models.users.tables import User
from resolvers.auth import access_tokens, api_keys, authentication
from resolvers.auth.api_keys import NewKey
from resolvers.context import Context, Viewer
from resolvers.files import signed_urls
from tests.auth.conftest import PASSWORD, Town
from tests.auth.test_basic_auth import signed
from tests.auth.test_credential_scopes import PROGRAM, program

PATH = "/rest/x"


def address(town: Town, by: Viewer) -> dict[str, str]:
    made = signed_urls.sign(town.world, PATH, town.users["ada"], by, now=town.clock())
    return dict(part.split("=", 1) for part in made.partition("?")[2].split("&"))


async def dead(town: Town, query: dict[str, str]) -> bool:
    try:
        viewer = await signed_urls.viewer(town.world, PATH, query)
    except Unauthenticated:
        return True
    assert (viewer.user_id, viewer.read_only) == (town.users["ada"], True)
    return False


async def test_with_a_token(town: Town) -> None:
    viewer = await town.viewer(await town.token("ada"))
    query = address(town, viewer)
    assert not await dead(town, query)
    await access_tokens.revoke(Context(town.world, viewer))
    assert await dead(town, query)


async def test_with_a_key(town: Town) -> None:
    row, secret = await api_keys.create_key(town.by("ada"), NewKey("k"))
    query = address(town, await town.viewer(secret))
    assert not await dead(town, query)
    async with town.world.write() as session:
        await session.exec(update(ApiKey).where(col(ApiKey.id) == row.id).values(active=False))
    assert await dead(town, query)


async def test_with_a_programs_password_and_with_the_accounts(town: Town) -> None:
    await program(town, ["MAIL"])
    by_program = address(town, await signed(town, PROGRAM))
    by_password = address(town, await signed(town, PASSWORD))
    assert not await dead(town, by_program)
    assert not await dead(town, by_password)
    await town.change("ada", auth_version=2)
    assert await dead(town, by_password)
    assert not await dead(town, by_program)
    async with town.world.write() as session:
        await session.exec(delete(AppPassword))
    assert await dead(town, by_program)


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}, {"auth_version": 2}])
async def test_with_the_account(town: Town, change: dict[str, Any]) -> None:
    query = address(town, await town.viewer(await town.token("ada")))
    await town.change("ada", **change)
    assert await dead(town, query)


async def test_with_the_administrator_who_acts(town: Town) -> None:
    from models.users.roles import Role
    from tests.auth.test_impersonation import acted, admin

    query = address(town, await town.viewer(await acted(town, await admin(town))))
    assert not await dead(town, query)
    async with town.world.write() as session:
        boss = col(User.id) == town.users["rex"]
        await session.exec(update(User).where(boss).values(role=Role.USER))
    assert await dead(town, query)


@pytest.mark.parametrize("by", ["", "t", "b", "t0", "x7", "t7", "v1", "k9223372036854775808", "é"])
async def test_nobody_names_another_credential(town: Town, by: str) -> None:
    query = address(town, await town.viewer(await town.token("ada")))
    assert await dead(town, {**query, "by": by})
    await authentication.settle(town.world)
