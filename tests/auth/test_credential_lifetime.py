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
    InvalidInput,
    NotFound,
    Unauthenticated,
)
from models.store.columns import core_table
from models.users.roles import Role, Scope
from resolvers.auth import access_tokens, api_keys, authentication
from resolvers.auth.api_keys import NewApiKey
from resolvers.context import Context, Viewer
from tests.support.accounts.sign_in_environment import (
    MASTER_SCOPES,
    SignInEnvironment,
    sign_in_by_token,
)
from tests.support.stores.row_counts import row_count


async def test_nothing_shown_is_nobody(sign_in_environment: SignInEnvironment) -> None:
    for headers in ({}, {"authorization": ""}, {"accept": "*/*"}):
        assert (
            await authentication.authenticate_request(
                sign_in_environment.world, headers, {}, ip=None
            )
            == Viewer()
        )


async def test_a_token_is_its_user(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    token = await sign_in_environment.create_token("ada")
    viewer = await sign_in_environment.authenticate(token)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (
        sign_in_environment.users["ada"],
        Role.ADMIN,
        MASTER_SCOPES,
    )
    assert (
        viewer.expires_at
        == sign_in_environment.clock() + sign_in_environment.world.options.token_life
    )
    for headers, params in (
        ({"x-access-token": token}, None),
        ({}, {"Authorization": f"Bearer {token}"}),
        ({}, {"authorization": f"bearer {token}"}),
        ({}, {"token": token}),
    ):
        assert (
            await authentication.authenticate_request(
                sign_in_environment.world, headers, params, ip=None
            )
            == viewer
        )


async def test_the_store_keeps_no_secret(sign_in_environment: SignInEnvironment) -> None:
    token = await sign_in_environment.create_token("ada")
    (row,) = await sign_in_environment.world.database.read(select(core_table(AccessToken)))
    assert token[4:] not in repr(row)
    assert len(row.digest) == 64


async def test_what_is_wrong_is_refused_without_asking_the_store(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    token = await sign_in_environment.create_token("ada")
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
            await authentication.authenticate_request(sign_in_environment.world, headers, ip=None)
    for params in ({"token": 7}, {"Authorization": [token]}, {"X-API-Key": "no"}):
        with pytest.raises(Unauthenticated):
            await authentication.authenticate_request(
                sign_in_environment.world, {}, params, ip=None
            )
    assert statements == []
    assert await sign_in_environment.is_refused("mgt_" + "A" * 43)  # this one might be one
    assert len(statements) == 1


async def test_token_is_read_from_the_store_once_a_minute(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    token = await sign_in_environment.create_token("ada")
    del statements[:]
    for _ in range(3):
        await sign_in_environment.authenticate(token)
    assert len(statements) == 1
    sign_in_environment.clock.tick(seconds=59)
    await sign_in_environment.authenticate(token)
    assert len(statements) == 1
    sign_in_environment.clock.tick(seconds=1)
    await sign_in_environment.authenticate(token)
    assert len(statements) == 2


async def test_an_unused_token_ends_and_a_used_one_slides_up_to_its_life(
    sign_in_environment: SignInEnvironment,
) -> None:
    idle, used = (
        await sign_in_environment.create_token("ada"),
        await sign_in_environment.create_token("ada"),
    )
    for _ in range(17):  # 170 days
        sign_in_environment.clock.tick(days=10)
        await sign_in_environment.authenticate(used)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    assert await sign_in_environment.is_refused(idle)
    sign_in_environment.clock.tick(days=9, hours=23)
    await sign_in_environment.authenticate(used)
    sign_in_environment.clock.tick(hours=1)
    assert await sign_in_environment.is_refused(used)


async def test_a_short_token_slides_too(sign_in_environment: SignInEnvironment) -> None:
    token = await sign_in_environment.create_token("ada", ttl=timedelta(minutes=1))
    for _ in range(5):
        sign_in_environment.clock.tick(seconds=40)
        assert not await sign_in_environment.is_refused(token)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    sign_in_environment.clock.tick(seconds=60)
    assert await sign_in_environment.is_refused(token)


async def test_a_credential_ends_on_time_even_while_remembered(
    sign_in_environment: SignInEnvironment,
) -> None:
    until = sign_in_environment.clock() + timedelta(seconds=60)
    _, secret = await api_keys.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k", expires_at=until)
    )
    sign_in_environment.clock.tick(seconds=58)
    assert not await sign_in_environment.is_refused(secret)
    sign_in_environment.clock.tick(seconds=2)
    assert await sign_in_environment.is_refused(secret)


async def test_use_is_noted_once_an_hour(
    sign_in_environment: SignInEnvironment, statements: list[str]
) -> None:
    token = await sign_in_environment.create_token("ada")
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    del statements[:]
    for _ in range(4):
        sign_in_environment.clock.tick(minutes=30)
        await sign_in_environment.authenticate(token)
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    assert [statement.startswith("UPDATE") for statement in statements].count(True) == 2


@pytest.mark.parametrize(
    "ttl", [timedelta(seconds=59), timedelta(0), timedelta(days=181), -timedelta(days=1)]
)
async def test_a_token_lasts_a_minute_to_half_a_year(
    sign_in_environment: SignInEnvironment, ttl: timedelta
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await sign_in_environment.create_token("ada", ttl=ttl)
    assert refusal.value.path == ["tokenTtl"]


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}, {"auth_version": 2}])
async def test_changes_of_another_process_end_tokens_in_five_seconds(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    token = await sign_in_environment.create_token("ada")
    await sign_in_environment.authenticate(token)
    await sign_in_environment.change_user("ada", **change)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(token)


async def test_what_this_process_ends_is_ended_at_once(
    sign_in_environment: SignInEnvironment,
) -> None:
    token = await sign_in_environment.create_token("ada")
    await sign_in_environment.authenticate(token)
    await sign_in_environment.change_user("ada", auth_version=2)
    authentication.drop_credentials(sign_in_environment.world, sign_in_environment.users["ada"])
    assert await sign_in_environment.is_refused(token)


async def test_the_bootstrap_key_is_root(sign_in_environment: SignInEnvironment) -> None:
    viewer = await sign_in_environment.authenticate("let me in", bootstrap="let me in")
    assert viewer == Viewer(role=Role.ROOT, scopes=MASTER_SCOPES)
    for key, bootstrap in (("let me", "let me in"), ("", ""), ("let me in", ""), ("x", None)):
        with pytest.raises(Unauthenticated):
            await sign_in_environment.authenticate(key, bootstrap=bootstrap)


async def test_revoking_ends_the_token_of_the_call(sign_in_environment: SignInEnvironment) -> None:
    (ctx, mine), (_, other) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    assert await access_tokens.revoke_access_tokens(ctx) == 1
    assert await sign_in_environment.is_refused(mine)
    assert not await sign_in_environment.is_refused(other)
    assert await access_tokens.revoke_access_tokens(ctx) == 0


async def test_without_a_token_nothing_is_revoked(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.create_token("ada")
    for viewer in (Viewer(), Viewer(role=Role.ROOT, scopes=MASTER_SCOPES)):
        for all_ in (True, False):
            assert (
                await access_tokens.revoke_access_tokens(
                    Context(sign_in_environment.world, viewer), all=all_
                )
                == 0
            )
    assert await row_count(sign_in_environment.world, AccessToken) == 1


async def test_all_tokens_of_the_viewer_end_and_no_others(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob")
    (ctx, first), (_, second) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    _, bobs = await sign_in_by_token(sign_in_environment, "bob")
    assert await access_tokens.revoke_access_tokens(ctx, all=True) == 2
    assert [await sign_in_environment.is_refused(token) for token in (first, second, bobs)] == [
        True,
        True,
        False,
    ]


async def test_another_users_token_looks_like_none(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob")
    (ctx, _), (_, mine) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    (bob, bobs) = await sign_in_by_token(sign_in_environment, "bob")
    assert bob.viewer.token_id
    (newest, current) = (await access_tokens.load_tokens_of_users(ctx, [ctx.viewer.user_id]))[0]
    assert (newest.current, current.current) == (False, True)
    with pytest.raises(NotFound) as refusal:
        await access_tokens.revoke_access_tokens(ctx, [newest.id, bob.viewer.token_id])
    assert refusal.value.index == 1
    assert not await sign_in_environment.is_refused(mine)  # all or none
    assert not await sign_in_environment.is_refused(bobs)
    assert await access_tokens.load_tokens_of_users(ctx, [bob.viewer.user_id]) == [[]]
    assert await access_tokens.load_tokens_by_id(ctx, [bob.viewer.token_id]) == [None]
    assert await access_tokens.revoke_access_tokens(ctx, [newest.id]) == 1


async def test_a_narrow_credential_ends_no_other(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.create_token("ada")
    with pytest.raises(Forbidden):
        await access_tokens.revoke_access_tokens(
            sign_in_environment.user_context("ada", scopes=frozenset({Scope.MAIL})), all=True
        )


async def test_a_token_revoked_in_a_unit_is_not_remembered_before_its_end(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx, token = await sign_in_by_token(sign_in_environment, "ada")
    async with ctx.combined_transaction():
        await access_tokens.revoke_access_tokens(ctx)
        others = contextvars.Context()  # outside the transaction nothing has happened yet
        asked = asyncio.get_running_loop().create_task(
            sign_in_environment.is_refused(token), context=others
        )
        assert not await asked
    assert await sign_in_environment.is_refused(token)


async def test_open_sockets_learn_that_their_credential_has_ended(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx, _ = await sign_in_by_token(sign_in_environment, "ada")
    viewer = ctx.viewer
    assert not await authentication.has_credential_ended(sign_in_environment.world, viewer)
    sign_in_environment.clock.tick(days=13)
    assert not await authentication.has_credential_ended(
        sign_in_environment.world, viewer
    )  # and this was a use
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    sign_in_environment.clock.tick(days=13)
    assert not await authentication.has_credential_ended(sign_in_environment.world, viewer)
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)
    assert not await authentication.has_credential_ended(sign_in_environment.world, Viewer())
