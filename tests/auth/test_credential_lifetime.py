"""Tokens and keys: whose they are, and how they end."""

import asyncio
import contextvars
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from models.auth.credentials import AccessToken
from models.errors import (
    Forbidden,
    Invalid,
    NotFound,
    Unauthenticated,
)
from models.store.columns import table_of
from models.users.roles import Role, Scope
from resolvers.auth import access_tokens, api_keys, authentication
from resolvers.auth.api_keys import NewKey
from resolvers.context import Context, Viewer
from tests.auth.conftest import MASTER, Town, count, signed_in


async def test_nothing_shown_is_nobody(town: Town) -> None:
    for headers in ({}, {"authorization": ""}, {"accept": "*/*"}):
        assert await authentication.sign_in(town.world, headers, {}, ip=None) == Viewer()


async def test_a_token_is_its_user(town: Town) -> None:
    await town.change("ada", role=Role.ADMIN)
    token = await town.token("ada")
    viewer = await town.viewer(token)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (town.users["ada"], Role.ADMIN, MASTER)
    assert viewer.ends_at == town.clock() + town.world.options.token_life
    for headers, params in (
        ({"x-access-token": token}, None),
        ({}, {"Authorization": f"Bearer {token}"}),
        ({}, {"authorization": f"bearer {token}"}),
        ({}, {"token": token}),
    ):
        assert await authentication.sign_in(town.world, headers, params, ip=None) == viewer


async def test_the_store_keeps_no_secret(town: Town) -> None:
    token = await town.token("ada")
    (row,) = await town.world.database.read(select(table_of(AccessToken)))
    assert token[4:] not in repr(row)
    assert len(row.digest) == 64


async def test_what_is_wrong_is_refused_without_asking_the_store(
    town: Town, statements: list[str]
) -> None:
    token = await town.token("ada")
    del statements[:]
    for headers in (
        {"authorization": token},
        {"authorization": f"Basic {token}"},
        {"authorization": "Bearer"},
        {"authorization": f"Bearer mgx_{token[4:]}"},
        {"authorization": f"Bearer {token}x"},
        {"authorization": "Bearer \ud800"},
        {"x-api-key": token},
    ):
        with pytest.raises(Unauthenticated):
            await authentication.sign_in(town.world, headers, ip=None)
    for params in ({"token": 7}, {"Authorization": [token]}, {"X-API-Key": "no"}):
        with pytest.raises(Unauthenticated):
            await authentication.sign_in(town.world, {}, params, ip=None)
    assert statements == []
    assert await town.refused("mgt_" + "A" * 43)  # this one might be one
    assert len(statements) == 1


async def test_token_is_read_from_the_store_once_a_minute(
    town: Town, statements: list[str]
) -> None:
    token = await town.token("ada")
    del statements[:]
    for _ in range(3):
        await town.viewer(token)
    assert len(statements) == 1
    town.clock.tick(seconds=59)
    await town.viewer(token)
    assert len(statements) == 1
    town.clock.tick(seconds=1)
    await town.viewer(token)
    assert len(statements) == 2


async def test_an_unused_token_ends_and_a_used_one_slides_up_to_its_life(town: Town) -> None:
    idle, used = await town.token("ada"), await town.token("ada")
    for _ in range(17):  # 170 days
        town.clock.tick(days=10)
        await town.viewer(used)
        await authentication.settle(town.world)
    assert await town.refused(idle)
    town.clock.tick(days=9, hours=23)
    await town.viewer(used)
    town.clock.tick(hours=1)
    assert await town.refused(used)


async def test_a_short_token_slides_too(town: Town) -> None:
    token = await town.token("ada", ttl=timedelta(minutes=1))
    for _ in range(5):
        town.clock.tick(seconds=40)
        assert not await town.refused(token)
        await authentication.settle(town.world)
    town.clock.tick(seconds=60)
    assert await town.refused(token)


async def test_a_credential_ends_on_time_even_while_remembered(town: Town) -> None:
    until = town.clock() + timedelta(seconds=60)
    _, secret = await api_keys.create_key(town.by("ada"), NewKey("k", expires_at=until))
    town.clock.tick(seconds=58)
    assert not await town.refused(secret)
    town.clock.tick(seconds=2)
    assert await town.refused(secret)


async def test_use_is_noted_once_an_hour(town: Town, statements: list[str]) -> None:
    token = await town.token("ada")
    await authentication.settle(town.world)
    del statements[:]
    for _ in range(4):
        town.clock.tick(minutes=30)
        await town.viewer(token)
        await authentication.settle(town.world)
    assert [statement.startswith("UPDATE") for statement in statements].count(True) == 2


@pytest.mark.parametrize(
    "ttl", [timedelta(seconds=59), timedelta(0), timedelta(days=181), -timedelta(days=1)]
)
async def test_a_token_lasts_a_minute_to_half_a_year(town: Town, ttl: timedelta) -> None:
    with pytest.raises(Invalid) as refusal:
        await town.token("ada", ttl=ttl)
    assert refusal.value.path == ["tokenTtl"]


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}, {"auth_version": 2}])
async def test_changes_of_another_process_end_tokens_in_five_seconds(
    town: Town, change: dict[str, Any]
) -> None:
    token = await town.token("ada")
    await town.viewer(token)
    await town.change("ada", **change)
    town.clock.tick(seconds=5)
    assert await town.refused(token)


async def test_what_this_process_ends_is_ended_at_once(town: Town) -> None:
    token = await town.token("ada")
    await town.viewer(token)
    await town.change("ada", auth_version=2)
    authentication.forget(town.world, town.users["ada"])
    assert await town.refused(token)


async def test_the_bootstrap_key_is_root(town: Town) -> None:
    viewer = await town.viewer("let me in", bootstrap="let me in")
    assert viewer == Viewer(role=Role.ROOT, scopes=MASTER)
    for key, bootstrap in (("let me", "let me in"), ("", ""), ("let me in", ""), ("x", None)):
        with pytest.raises(Unauthenticated):
            await town.viewer(key, bootstrap=bootstrap)


async def test_revoking_ends_the_token_of_the_call(town: Town) -> None:
    (ctx, mine), (_, other) = await signed_in(town, "ada"), await signed_in(town, "ada")
    assert await access_tokens.revoke(ctx) == 1
    assert await town.refused(mine)
    assert not await town.refused(other)
    assert await access_tokens.revoke(ctx) == 0


async def test_without_a_token_nothing_is_revoked(town: Town) -> None:
    await town.token("ada")
    for viewer in (Viewer(), Viewer(role=Role.ROOT, scopes=MASTER)):
        for all_ in (True, False):
            assert await access_tokens.revoke(Context(town.world, viewer), all=all_) == 0
    assert await count(town, AccessToken) == 1


async def test_all_tokens_of_the_viewer_end_and_no_others(town: Town) -> None:
    await town.user("bob")
    (ctx, first), (_, second) = await signed_in(town, "ada"), await signed_in(town, "ada")
    _, bobs = await signed_in(town, "bob")
    assert await access_tokens.revoke(ctx, all=True) == 2
    assert [await town.refused(token) for token in (first, second, bobs)] == [True, True, False]


async def test_another_users_token_looks_like_none(town: Town) -> None:
    await town.user("bob")
    (ctx, _), (_, mine) = await signed_in(town, "ada"), await signed_in(town, "ada")
    (bob, bobs) = await signed_in(town, "bob")
    assert bob.viewer.token_id
    (newest, current) = (await access_tokens.tokens_of(ctx, [ctx.viewer.user_id]))[0]
    assert (newest.current, current.current) == (False, True)
    with pytest.raises(NotFound) as refusal:
        await access_tokens.revoke(ctx, [newest.id, bob.viewer.token_id])
    assert refusal.value.index == 1
    assert not await town.refused(mine)  # all or none
    assert not await town.refused(bobs)
    assert await access_tokens.tokens_of(ctx, [bob.viewer.user_id]) == [[]]
    assert await access_tokens.tokens_by_ids(ctx, [bob.viewer.token_id]) == [None]
    assert await access_tokens.revoke(ctx, [newest.id]) == 1


async def test_a_narrow_credential_ends_no_other(town: Town) -> None:
    await town.token("ada")
    with pytest.raises(Forbidden):
        await access_tokens.revoke(town.by("ada", scopes=frozenset({Scope.MAIL})), all=True)


async def test_a_token_revoked_in_a_unit_is_not_remembered_before_its_end(town: Town) -> None:
    ctx, token = await signed_in(town, "ada")
    async with ctx.together():
        await access_tokens.revoke(ctx)
        others = contextvars.Context()  # outside the transaction nothing has happened yet
        asked = asyncio.get_running_loop().create_task(town.refused(token), context=others)
        assert not await asked
    assert await town.refused(token)


async def test_open_sockets_learn_that_their_credential_has_ended(town: Town) -> None:
    ctx, _ = await signed_in(town, "ada")
    viewer = ctx.viewer
    assert not await authentication.ended(town.world, viewer)
    town.clock.tick(days=13)
    assert not await authentication.ended(town.world, viewer)  # and this was a use
    await authentication.settle(town.world)
    town.clock.tick(days=13)
    assert not await authentication.ended(town.world, viewer)
    await town.change("ada", role=Role.ADMIN)
    assert await authentication.ended(town.world, viewer)
    assert not await authentication.ended(town.world, Viewer())
