"""Access tokens and API keys: the user they belong to, and how they end."""

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
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.auth import access_tokens, authentication
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from resolvers.context import Context
from resolvers.list_orders import OwnerPageKey
from resolvers.viewer import Viewer
from tests.support.accounts.sign_in_environment import (
    FULL_SCOPES,
    SignInEnvironment,
    sign_in_by_token,
)
from tests.support.stores.recorded_statements import record_sql
from tests.support.stores.row_counts import count_rows

TOKEN_ORDER = access_tokens.LIST_ORDERS[AccessTokenOrder.CREATED_AT_DESC]


async def test_request_without_credential_is_anonymous(
    sign_in_environment: SignInEnvironment,
) -> None:
    for headers in ({}, {"authorization": ""}, {"accept": "*/*"}):
        assert (
            await authentication.authenticate_request(
                sign_in_environment.environment, headers, {}, ip=None
            )
            == Viewer()
        )


async def test_token_authenticates_its_user(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    token = await sign_in_environment.create_token("ada")
    viewer = await sign_in_environment.authenticate(token)
    assert (viewer.user_id, viewer.role, viewer.scopes) == (
        sign_in_environment.users["ada"],
        Role.ADMIN,
        FULL_SCOPES,
    )
    assert (
        viewer.expires_at
        == sign_in_environment.clock() + sign_in_environment.environment.options.tokens_max_age
    )
    for headers, params in (
        ({"x-access-token": token}, None),
        ({}, {"Authorization": f"Bearer {token}"}),
        ({}, {"authorization": f"bearer {token}"}),
        ({}, {"token": token}),
    ):
        assert (
            await authentication.authenticate_request(
                sign_in_environment.environment, headers, params, ip=None
            )
            == viewer
        )


async def test_token_is_not_stored_as_text(sign_in_environment: SignInEnvironment) -> None:
    token = await sign_in_environment.create_token("ada")
    (row,) = await sign_in_environment.environment.database.read(select(core_table(AccessToken)))
    assert token[4:] not in repr(row)
    assert len(row.digest) == 64


async def test_malformed_credential_is_refused_without_a_statement(
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
            await authentication.authenticate_request(
                sign_in_environment.environment, headers, ip=None
            )
    for params in ({"token": 7}, {"Authorization": [token]}, {"X-API-Key": "no"}):
        with pytest.raises(Unauthenticated):
            await authentication.authenticate_request(
                sign_in_environment.environment, {}, params, ip=None
            )
    assert statements == []
    assert await sign_in_environment.is_refused("mgt_" + "A" * 43)  # a well-formed token
    assert len(statements) == 1


async def test_token_is_read_from_the_database_once_a_minute(
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


async def test_use_extends_token_up_to_its_maximum_lifetime(
    sign_in_environment: SignInEnvironment,
) -> None:
    idle_token = await sign_in_environment.create_token("ada")
    used_token = await sign_in_environment.create_token("ada")
    for _ in range(17):  # 170 days
        sign_in_environment.clock.tick(days=10)
        await sign_in_environment.authenticate(used_token)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    assert await sign_in_environment.is_refused(idle_token)
    sign_in_environment.clock.tick(days=9, hours=23)
    await sign_in_environment.authenticate(used_token)
    sign_in_environment.clock.tick(hours=1)
    assert await sign_in_environment.is_refused(used_token)


async def test_use_extends_token_with_short_ttl(sign_in_environment: SignInEnvironment) -> None:
    token = await sign_in_environment.create_token("ada", ttl=timedelta(minutes=1))
    for _ in range(5):
        sign_in_environment.clock.tick(seconds=40)
        assert not await sign_in_environment.is_refused(token)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    sign_in_environment.clock.tick(seconds=60)
    assert await sign_in_environment.is_refused(token)


async def test_cached_credential_expires_on_time(
    sign_in_environment: SignInEnvironment,
) -> None:
    expires_at = sign_in_environment.clock() + timedelta(seconds=60)
    _, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("k", expires_at=expires_at)
    )
    sign_in_environment.clock.tick(seconds=58)
    assert not await sign_in_environment.is_refused(secret)
    sign_in_environment.clock.tick(seconds=2)
    assert await sign_in_environment.is_refused(secret)


async def test_use_is_recorded_once_an_hour(
    sign_in_environment: SignInEnvironment,
) -> None:
    token = await sign_in_environment.create_token("ada")
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    statements = record_sql(sign_in_environment.environment.database, with_background=True)
    for _ in range(4):
        sign_in_environment.clock.tick(minutes=30)
        await sign_in_environment.authenticate(token)
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    assert [statement.startswith("UPDATE") for statement in statements].count(True) == 2


@pytest.mark.parametrize(
    "ttl", [timedelta(seconds=59), timedelta(0), timedelta(days=181), -timedelta(days=1)]
)
async def test_token_ttl_out_of_range_is_refused(
    sign_in_environment: SignInEnvironment, ttl: timedelta
) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await sign_in_environment.create_token("ada", ttl=ttl)
    assert refusal.value.path == ["tokenTtl"]


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}, {"auth_version": 2}])
async def test_change_by_other_process_ends_token_within_five_seconds(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    token = await sign_in_environment.create_token("ada")
    await sign_in_environment.authenticate(token)
    await sign_in_environment.change_user("ada", **change)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(token)


async def test_change_by_same_process_ends_token_at_once(
    sign_in_environment: SignInEnvironment,
) -> None:
    token = await sign_in_environment.create_token("ada")
    await sign_in_environment.authenticate(token)
    await sign_in_environment.change_user("ada", auth_version=2)
    authentication.drop_cached_credentials(
        sign_in_environment.environment, sign_in_environment.users["ada"]
    )
    assert await sign_in_environment.is_refused(token)


async def test_bootstrap_key_has_role_root(sign_in_environment: SignInEnvironment) -> None:
    viewer = await sign_in_environment.authenticate("let me in", bootstrap="let me in")
    assert viewer == Viewer(role=Role.ROOT, scopes=FULL_SCOPES)
    for key, bootstrap in (("let me", "let me in"), ("", ""), ("let me in", ""), ("x", None)):
        with pytest.raises(Unauthenticated):
            await sign_in_environment.authenticate(key, bootstrap=bootstrap)


async def test_revoke_ends_the_current_token(sign_in_environment: SignInEnvironment) -> None:
    (ctx, current_token), (_, other_token) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx) == 1
    assert await sign_in_environment.is_refused(current_token)
    assert not await sign_in_environment.is_refused(other_token)
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx) == 0


async def test_revoke_without_token_revokes_nothing(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.create_token("ada")
    for viewer in (Viewer(), Viewer(role=Role.ROOT, scopes=FULL_SCOPES)):
        for revokes_all in (True, False):
            assert (
                await access_tokens.revoke_own_access_tokens_and_count(
                    Context(sign_in_environment.environment, viewer), all=revokes_all
                )
                == 0
            )
    assert await count_rows(sign_in_environment.environment, AccessToken) == 1


async def test_revoke_all_ends_only_tokens_of_the_viewer(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("bob")
    (ctx, first_token), (_, second_token) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    _, bob_token = await sign_in_by_token(sign_in_environment, "bob")
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx, all=True) == 2
    assert [
        await sign_in_environment.is_refused(token)
        for token in (first_token, second_token, bob_token)
    ] == [
        True,
        True,
        False,
    ]


async def test_token_of_other_user_is_not_found(sign_in_environment: SignInEnvironment) -> None:
    await sign_in_environment.add_user("bob")
    (ctx, _), (_, own_token) = (
        await sign_in_by_token(sign_in_environment, "ada"),
        await sign_in_by_token(sign_in_environment, "ada"),
    )
    (bob_context, bob_token) = await sign_in_by_token(sign_in_environment, "bob")
    assert bob_context.viewer.token_id
    (page,) = await access_tokens.load_own_token_pages(
        ctx, [OwnerPageKey(ctx.viewer.user_id, PageRequest("x"), TOKEN_ORDER)]
    )
    (newest, current) = page.rows
    assert (newest.current, current.current) == (False, True)
    with pytest.raises(NotFound) as refusal:
        await access_tokens.revoke_own_access_tokens_and_count(
            ctx, [newest.id, bob_context.viewer.token_id]
        )
    assert refusal.value.index == 1
    assert not await sign_in_environment.is_refused(own_token)  # all or nothing
    assert not await sign_in_environment.is_refused(bob_token)
    bobs_key = OwnerPageKey(bob_context.viewer.user_id, PageRequest("x"), TOKEN_ORDER)
    assert [page.rows for page in await access_tokens.load_own_token_pages(ctx, [bobs_key])] == [[]]
    assert await access_tokens.count_own_tokens(ctx, [bobs_key]) == [0]
    assert await access_tokens.load_own_tokens_by_id(ctx, [bob_context.viewer.token_id]) == [None]
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx, [newest.id]) == 1


async def test_credential_without_scope_master_revokes_no_token(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.create_token("ada")
    with pytest.raises(Forbidden):
        await access_tokens.revoke_own_access_tokens_and_count(
            sign_in_environment.user_context("ada", scopes=frozenset({Scope.MAIL})), all=True
        )


async def test_revoked_token_stays_valid_until_the_transaction_commits(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx, token = await sign_in_by_token(sign_in_environment, "ada")
    async with ctx.combined_transaction():
        await access_tokens.revoke_own_access_tokens_and_count(ctx)
        outer_context = contextvars.Context()  # outside of the transaction
        refusal_task = asyncio.get_running_loop().create_task(
            sign_in_environment.is_refused(token), context=outer_context
        )
        assert not await refusal_task
    assert await sign_in_environment.is_refused(token)


async def test_role_change_ends_credential_of_open_connection(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx, _ = await sign_in_by_token(sign_in_environment, "ada")
    viewer = ctx.viewer
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    sign_in_environment.clock.tick(days=13)
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )  # the check counts as a use
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    sign_in_environment.clock.tick(days=13)
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    await sign_in_environment.change_user("ada", role=Role.ADMIN)
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    assert not await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, Viewer()
    )
