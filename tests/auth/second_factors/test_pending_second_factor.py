"""Sign-ins that wait for a second factor."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from models.errors import AuthenticationFailed, SecondFactorRequired
from models.runtime.environment import Environment
from models.store.keyset_pages import PageRequest
from models.users.roles import Role
from resolvers.auth import access_tokens, authentication
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from resolvers.auth.sign_in import SignInRequest
from resolvers.context import Context
from resolvers.list_orders import OwnerPageKey
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, make_api_key
from tests.support.accounts import authenticators
from tests.support.accounts.access_tokens import make_access_token
from tests.support.accounts.sign_in_environment import (
    FULL_SCOPES,
    PASSWORD,
    TOKEN_REQUEST,
    SignInEnvironment,
)
from tests.support.clients.http_requests import VIEWER_QUERY, post_document

TOKEN_ORDER = access_tokens.LIST_ORDERS[AccessTokenOrder.CREATED_AT_DESC]

SIGN_IN = """
mutation ($name: String!, $totp: String, $webauthn: JSON) {
  authenticate(input: {username: $name, password: "correct horse battery",
      totp: $totp, webauthn: $webauthn}) {
    token expiresAt requiredTwoFactorMethods
    errors { code path ... on AuthenticationFailedError { requiredTwoFactorMethods } }
  }
}
"""


async def make_pending_token(
    sign_in_environment: SignInEnvironment, **extra: Any
) -> tuple[str, Viewer]:
    await sign_in_environment.change_user("ada", second_factors=["TOTP"])
    secret = await sign_in_environment.create_token("ada", **extra)
    return secret, await sign_in_environment.authenticate(secret)


async def test_pending_token_has_no_user_and_no_role(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret, viewer = await make_pending_token(sign_in_environment)
    assert (viewer.role, viewer.user_id, viewer.scopes) == (Role.PUBLIC, 0, frozenset())
    assert viewer.pending_user_id == sign_in_environment.users["ada"]
    assert (await sign_in_environment.load_user_row("ada")).last_login_at is None
    ctx = Context(sign_in_environment.environment, viewer)
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx, all=True) == 0
    page_key = OwnerPageKey(sign_in_environment.users["ada"], PageRequest("x"), TOKEN_ORDER)
    assert await access_tokens.count_own_tokens(ctx, [page_key]) == [1]
    assert await access_tokens.revoke_own_access_tokens_and_count(ctx) == 1
    assert await sign_in_environment.is_refused(secret)


async def test_pending_token_expires_after_ten_minutes_despite_use(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret, viewer = await make_pending_token(sign_in_environment)
    assert viewer.expires_at == sign_in_environment.clock() + timedelta(minutes=10)
    for _ in range(9):
        sign_in_environment.clock.tick(seconds=66)
        assert (await sign_in_environment.authenticate(secret)).pending_user_id
        await authentication.wait_for_background_tasks(sign_in_environment.environment)
    sign_in_environment.clock.tick(seconds=6)
    assert await sign_in_environment.is_refused(secret)


async def test_completed_token_has_requested_lifetime(
    sign_in_environment: SignInEnvironment,
) -> None:
    secret, viewer = await make_pending_token(sign_in_environment, ttl=timedelta(hours=1))
    sign_in_environment.clock.tick(minutes=5)
    ctx = Context(sign_in_environment.environment, viewer)
    async with ctx.write_session(sign_in_environment.users["ada"]) as session:
        await authentication.complete_pending_token_and_log(ctx, session)
    completed_viewer = await sign_in_environment.authenticate(secret)
    assert (
        completed_viewer.user_id,
        completed_viewer.scopes,
        completed_viewer.pending_user_id,
    ) == (
        sign_in_environment.users["ada"],
        FULL_SCOPES,
        0,
    )
    assert (
        await sign_in_environment.load_user_row("ada")
    ).last_login_at == sign_in_environment.clock()
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    sign_in_environment.clock.tick(minutes=59)
    assert not await sign_in_environment.is_refused(secret)
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    sign_in_environment.clock.tick(hours=1)
    assert await sign_in_environment.is_refused(secret)


@pytest.mark.parametrize("change", [{"active": False}, {"suspended": True}, {"auth_version": 9}])
async def test_pending_token_of_blocked_user_is_not_completed(
    sign_in_environment: SignInEnvironment, change: dict[str, Any]
) -> None:
    secret, viewer = await make_pending_token(sign_in_environment)
    await sign_in_environment.change_user("ada", **change)
    ctx = Context(sign_in_environment.environment, viewer)
    with pytest.raises(AuthenticationFailed):
        async with ctx.write_session(sign_in_environment.users["ada"]) as session:
            await authentication.complete_pending_token_and_log(ctx, session)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


async def test_completing_a_full_token_changes_nothing(
    sign_in_environment: SignInEnvironment,
) -> None:
    ctx = Context(
        sign_in_environment.environment,
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada")),
    )
    async with ctx.write_session(sign_in_environment.users["ada"]) as session:
        await authentication.complete_pending_token_and_log(ctx, session)
    assert ctx.viewer.user_id


async def test_sign_in_without_token_only_reports_missing_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["TOTP", "WEBAUTHN"])
    authenticated = await sign_in_environment.sign_in("ada")
    assert (authenticated.required_two_factor_methods, authenticated.token) == (
        ["TOTP", "WEBAUTHN"],
        None,
    )


async def test_application_key_signs_in_without_external_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.change_user("ada", second_factors=["EXTERNAL"])
    assert (
        await sign_in_environment.authenticate(await sign_in_environment.create_token("ada"))
    ).pending_user_id
    application_viewer = Viewer(role=Role.ADMIN, scopes=FULL_SCOPES, api_key_id=7)
    authenticated = await authentication.authenticate_user_by_password(
        Context(sign_in_environment.environment, application_viewer), "ada", PASSWORD, TOKEN_REQUEST
    )
    assert authenticated.required_two_factor_methods == ["EXTERNAL"]
    assert authenticated.token
    assert (
        await sign_in_environment.authenticate(authenticated.token)
    ).user_id == sign_in_environment.users["ada"]


async def test_second_factor_in_the_sign_in_request_or_later(
    environment: Environment, http: httpx.AsyncClient, clock: ManualClock
) -> None:
    root_context = Context(environment, Viewer(role=Role.ROOT, scopes=FULL_SCOPES))
    new_user = NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    user = await creation_create.create_user(root_context, new_user)
    eve = GraphQLClient(
        http, environment, user, await make_api_key(environment, "eve", user_id=user.id)
    )
    totp_secret, (recovery_code, *_) = await authenticators.enable_totp(eve)

    def code(steps: int) -> str:
        return authenticators.totp_code(environment, totp_secret, steps)

    clock.tick(minutes=5)
    wrong_code_payload = (await post_document(http, SIGN_IN, name="eve", totp="000000"))["data"][
        "authenticate"
    ]
    assert (wrong_code_payload["token"], wrong_code_payload["errors"]) == (
        None,
        [{"code": "AUTHENTICATION_FAILED", "path": ["totp"], "requiredTwoFactorMethods": ["TOTP"]}],
    )
    complete_payload = (await post_document(http, SIGN_IN, name="eve", totp=code(0)))["data"][
        "authenticate"
    ]
    assert (complete_payload["requiredTwoFactorMethods"], complete_payload["errors"]) == ([], [])
    assert (await post_document(http, VIEWER_QUERY, complete_payload["token"]))["data"]["viewer"][
        "role"
    ] == "USER"
    repeated_payload = (await post_document(http, SIGN_IN, name="eve", totp=code(0)))["data"][
        "authenticate"
    ]
    assert repeated_payload["token"] is None  # a code works once
    recovery_payload = (await post_document(http, SIGN_IN, name="eve", totp=recovery_code))["data"][
        "authenticate"
    ]
    assert recovery_payload["token"]

    pending_payload = (await post_document(http, SIGN_IN, name="eve"))["data"]["authenticate"]
    assert (pending_payload["requiredTwoFactorMethods"], pending_payload["expiresAt"]) == (
        ["TOTP"],
        "2030-01-01T00:15:00Z",
    )
    viewer = (await post_document(http, VIEWER_QUERY, pending_payload["token"]))["data"]["viewer"]
    assert (viewer["role"], viewer["user"], viewer["token"]["current"]) == ("PUBLIC", None, True)
    assert viewer["token"]["expiresAt"] == pending_payload["expiresAt"]
    refused_response = await post_document(http, "{ user { id } }", pending_payload["token"])
    assert [error["extensions"]["code"] for error in refused_response["errors"]] == [
        "SECOND_FACTOR_REQUIRED"
    ]
    clock.tick(seconds=60)
    check_document = authenticators.mutation_document("totpVerify", "valid")
    check_response = await post_document(
        http, check_document, pending_payload["token"], input={"token": code(0)}
    )
    assert check_response["data"]["totpVerify"]["valid"] is True
    assert (await post_document(http, VIEWER_QUERY, pending_payload["token"]))["data"]["viewer"][
        "role"
    ] == "USER"


async def test_pending_token_has_no_scope(sign_in_environment: SignInEnvironment) -> None:
    _, viewer = await make_pending_token(sign_in_environment)
    with pytest.raises(SecondFactorRequired):
        viewer.require_scope(next(iter(FULL_SCOPES)))


async def test_refusals_of_pending_token_name_the_second_factor(
    http: httpx.AsyncClient, ada: GraphQLClient, environment: Environment
) -> None:
    secret = await make_access_token(environment, ada.user, pending=True)
    mutation = (
        'mutation { labelCreate(input: {keyword: "work", name: "Work"}) { errors { code } } }'
    )
    for document in ("{ user { id } }", mutation):
        (error,) = (await post_document(http, document, secret))["errors"]
        assert error["extensions"] == {"code": "SECOND_FACTOR_REQUIRED"}
        assert "totpVerify" in error["message"]
    headers = {"Authorization": f"Bearer {secret}"}
    upload = await http.post("/rest/uploads", headers=headers, content=b"x")
    assert upload.status_code == 401
    assert upload.headers["www-authenticate"] == "Bearer"
    assert upload.json()["errors"][0]["extensions"]["code"] == "SECOND_FACTOR_REQUIRED"


async def test_concurrent_guesses_end_after_twelve_failures(
    sign_in_environment: SignInEnvironment,
) -> None:
    """The correct password is not accepted after twelve wrong ones."""
    passwords = [f"guess {number}" for number in range(30)]
    passwords[15] = PASSWORD
    attempts = [sign_in_environment.sign_in("ada", password, ip=None) for password in passwords]
    answers = await asyncio.gather(*attempts, return_exceptions=True)
    failures = sum(isinstance(answer, AuthenticationFailed) for answer in answers)
    successes = [
        answer for answer in answers if isinstance(answer, authentication.AuthenticatedUser)
    ]
    assert failures <= 12 * (1 + len(successes))
    assert all(isinstance(answer, Exception) or answer in successes for answer in answers)


async def test_second_factor_proof_is_ignored_without_a_factor(
    sign_in_environment: SignInEnvironment,
) -> None:
    attempt = SignInRequest(token=True, proof=SecondFactorProof(totp="000000"))
    assert (await sign_in_environment.sign_in("ada", attempt=attempt)).token
