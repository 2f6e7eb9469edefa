"""Sign-ins that wait for a second factor."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from models.errors import AuthenticationFailed, Unauthenticated
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.auth import access_tokens, authentication
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, Clock, make_key
from tests.support.accounts import authenticators
from tests.support.accounts.sign_in_environment import (
    MASTER_SCOPES,
    PASSWORD,
    TOKEN_REQUEST,
    SignInEnvironment,
)
from tests.support.clients.http_requests import VIEWER_QUERY, post_document

SIGN_IN = """
mutation ($name: String!, $totp: String, $webauthn: JSON) {
  authenticate(input: {username: $name, password: "correct horse battery", token: true,
      totp: $totp, webauthn: $webauthn}) {
    token expiresAt require2fa
    errors { code path ... on AuthenticationFailedError { require2fa } }
  }
}
"""


async def pending(sign_in_environment: SignInEnvironment, **more: Any) -> tuple[str, Viewer]:
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    secret = await sign_in_environment.create_token("ada", **more)
    return secret, await sign_in_environment.authenticate(secret)


async def test_a_pending_token_is_nobody_yet(sign_in_environment: SignInEnvironment) -> None:
    secret, viewer = await pending(sign_in_environment)
    assert (viewer.role, viewer.user_id, viewer.scopes) == (Role.PUBLIC, 0, frozenset())
    assert viewer.pending_user_id == sign_in_environment.users["ada"]
    assert (await sign_in_environment.load_user_row("ada")).last_login_at is None
    ctx = Context(sign_in_environment.world, viewer)
    assert await access_tokens.revoke_access_tokens(ctx, all=True) == 0
    assert await access_tokens.load_tokens_of_users(ctx, [sign_in_environment.users["ada"]]) != [
        []
    ]  # its own, and no other
    assert await access_tokens.revoke_access_tokens(ctx) == 1
    assert await sign_in_environment.is_refused(secret)


async def test_a_pending_token_ends_after_ten_minutes_however_it_is_used(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret, viewer = await pending(sign_in_environment)
    assert viewer.expires_at == sign_in_environment.clock() + timedelta(minutes=10)
    for _ in range(9):
        sign_in_environment.clock.tick(seconds=66)
        assert (await sign_in_environment.authenticate(secret)).pending_user_id
        await authentication.wait_for_background_tasks(sign_in_environment.world)
    sign_in_environment.clock.tick(seconds=6)
    assert await sign_in_environment.is_refused(secret)


async def test_what_is_proved_makes_it_a_full_one_that_lasts_as_was_asked(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret, viewer = await pending(sign_in_environment, ttl=timedelta(hours=1))
    sign_in_environment.clock.tick(minutes=5)
    ctx = Context(sign_in_environment.world, viewer)
    async with ctx.write_session(sign_in_environment.users["ada"]) as session:
        await authentication.complete_pending_token(ctx, session)
    full = await sign_in_environment.authenticate(secret)
    assert (full.user_id, full.scopes, full.pending_user_id) == (
        sign_in_environment.users["ada"],
        MASTER_SCOPES,
        0,
    )
    assert (
        await sign_in_environment.load_user_row("ada")
    ).last_login_at == sign_in_environment.clock()
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)
    sign_in_environment.clock.tick(minutes=59)
    assert not await sign_in_environment.is_refused(secret)
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    sign_in_environment.clock.tick(hours=1)
    assert await sign_in_environment.is_refused(secret)


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}, {"auth_version": 9}])
async def test_nothing_is_completed_for_who_may_not_sign_in(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    secret, viewer = await pending(sign_in_environment)
    await sign_in_environment.change_user("ada", **change)
    ctx = Context(sign_in_environment.world, viewer)
    with pytest.raises(AuthenticationFailed):
        async with ctx.write_session(sign_in_environment.users["ada"]) as session:
            await authentication.complete_pending_token(ctx, session)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


async def test_who_has_signed_in_completes_nothing(sign_in_environment: SignInEnvironment) -> None:
    ctx = Context(
        sign_in_environment.world,
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada")),
    )
    async with ctx.write_session(sign_in_environment.users["ada"]) as session:
        await authentication.complete_pending_token(ctx, session)
    assert ctx.viewer.user_id


async def test_without_a_token_it_is_only_said_that_a_factor_is_missing(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["TOTP", "WEBAUTHN"])
    done = await sign_in_environment.sign_in("ada")
    assert (done.require2fa, done.token) == (["TOTP", "WEBAUTHN"], None)


async def test_a_factor_that_an_application_checks_is_its_to_check(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["CUSTOM"])
    assert (
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada"))
    ).pending_user_id
    front = Viewer(role=Role.ADMIN, scopes=MASTER_SCOPES, api_key_id=7)
    done = await authentication.authenticate(
        Context(sign_in_environment.world, front), "ada", PASSWORD, TOKEN_REQUEST
    )
    assert done.require2fa == ["CUSTOM"]
    assert done.token
    assert (
        await sign_in_environment.authenticate(done.token)
    ).user_id == sign_in_environment.users["ada"]


async def test_the_second_factor_at_once_and_later(
    world: Environment, http: httpx.AsyncClient, clock: Clock
) -> None:
    boss = Context(world, Viewer(role=Role.ROOT, scopes=MASTER_SCOPES))
    new = NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    user = await creation_create.create_user(boss, new)
    eve = Client(http, world, user, await make_key(world, "eve", user_id=user.id))
    seed, (recovery, *_) = await authenticators.totp_on(eve)

    def code(steps: int) -> str:
        return authenticators.code_of(world, seed, steps)

    clock.tick(minutes=5)
    wrong = (await post_document(http, SIGN_IN, name="eve", totp="000000"))["data"]["authenticate"]
    assert (wrong["token"], wrong["errors"]) == (
        None,
        [{"code": "AUTHENTICATION_FAILED", "path": [], "require2fa": ["TOTP"]}],
    )
    whole = (await post_document(http, SIGN_IN, name="eve", totp=code(0)))["data"]["authenticate"]
    assert (whole["require2fa"], whole["errors"]) == ([], [])
    assert (await post_document(http, VIEWER_QUERY, whole["token"]))["data"]["viewer"][
        "role"
    ] == "USER"
    again = (await post_document(http, SIGN_IN, name="eve", totp=code(0)))["data"]["authenticate"]
    assert again["token"] is None  # a code works once
    by_code = (await post_document(http, SIGN_IN, name="eve", totp=recovery))["data"][
        "authenticate"
    ]
    assert by_code["token"]

    half = (await post_document(http, SIGN_IN, name="eve"))["data"]["authenticate"]
    assert (half["require2fa"], half["expiresAt"]) == (["TOTP"], "2030-01-01T00:15:00Z")
    viewer = (await post_document(http, VIEWER_QUERY, half["token"]))["data"]["viewer"]
    assert (viewer["role"], viewer["user"], viewer["token"]["current"]) == ("PUBLIC", None, True)
    refused = await post_document(http, "{ user { id } }", half["token"])
    assert [error["extensions"]["code"] for error in refused["errors"]] == ["UNAUTHENTICATED"]
    clock.tick(seconds=60)
    check = authenticators.document("totpCheck", "valid")
    proved = await post_document(http, check, half["token"], input={"token": code(0)})
    assert proved["data"]["totpCheck"]["valid"] is True
    assert (await post_document(http, VIEWER_QUERY, half["token"]))["data"]["viewer"][
        "role"
    ] == "USER"


async def test_a_pending_token_fetches_no_bytes(sign_in_environment: SignInEnvironment) -> None:
    _, viewer = await pending(sign_in_environment)
    with pytest.raises(Unauthenticated):
        viewer.require_scope(next(iter(MASTER_SCOPES)))


async def test_right_and_wrong_at_once_open_no_more_than_they_may(
    sign_in_environment: SignInEnvironment,
) -> None:
    """Of many guesses at once no right one is heard behind twelve wrong ones."""
    words = [f"guess {nth}" for nth in range(30)]
    words[15] = PASSWORD
    tries = [sign_in_environment.sign_in("ada", word, ip=None) for word in words]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    failures = sum(isinstance(answer, AuthenticationFailed) for answer in answers)
    opened = [answer for answer in answers if isinstance(answer, authentication.AuthenticatedUser)]
    assert failures <= 12 * (1 + len(opened))
    assert all(isinstance(answer, Exception) or answer in opened for answer in answers)


async def test_a_proof_is_not_needed_where_no_factor_is_on(
    sign_in_environment: SignInEnvironment,
) -> None:
    attempt = SignInRequest(token=True, proof=SecondFactorProof(totp="000000"))
    assert (await sign_in_environment.sign_in("ada", attempt=attempt)).token
