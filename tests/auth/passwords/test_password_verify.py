"""`passwordVerify`: a password is checked without an access token."""

from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.authenticators import enable_totp, totp_code
from tests.support.accounts.sign_in_environment import PASSWORD
from tests.support.case_loop import each_case
from tests.support.clients.http_requests import post_document

VERIFY_MUTATION = """
mutation ($input: PasswordVerifyInput!) {
  passwordVerify(input: $input) {
    user { username } requiredTwoFactorMethods passwordChangeRequired
    errors { code path ... on ForbiddenError { requires } }
  }
}
"""
SIGN_IN = (
    "mutation ($input: AuthenticateInput!) { authenticate(input: $input) { errors { code } } }"
)
ACCEPTED = {
    "user": {"username": "eve"},
    "requiredTwoFactorMethods": [],
    "passwordChangeRequired": False,
    "errors": [],
}
ALL_SCOPES = ["FULL", "IMAP", "POP3", "SMTP", "SIEVE", "MAIL", "MAIL_READ", "SUBMIT"]


@pytest.fixture
async def eve(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    """A client of a user with a password."""
    return await make_client(environment, http, "eve", password=PASSWORD)


async def verify(http: httpx.AsyncClient, scope: str, password: str = PASSWORD, **more: Any) -> Any:
    given = {"username": "eve@example.org", "password": password, "scope": scope, **more}
    response = await post_document(http, VERIFY_MUTATION, input=given)
    assert "errors" not in response, response
    return response["data"]["passwordVerify"]


async def load_sign_in_events(environment: Environment) -> list[Any]:
    await authentication.wait_for_background_tasks(environment)
    query = select(core_table(SecurityEvent)).where(
        col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED
    )
    return list(await environment.database.read(query.order_by(col(SecurityEvent.id))))


async def test_right_password_is_accepted_without_a_token(eve: GraphQLClient) -> None:
    for case in each_case(ALL_SCOPES):
        with case as scope:
            assert await verify(eve.http, scope) == ACCEPTED
            assert await eve.environment.database.read(select(core_table(AccessToken))) == []


async def test_wrong_password_and_unknown_user_have_equal_responses(eve: GraphQLClient) -> None:
    wrong = await verify(eve.http, "IMAP", "wrong")
    assert wrong == await verify(eve.http, "IMAP", username="nobody")
    assert (wrong["user"], wrong["errors"][0]["code"]) == (None, "AUTHENTICATION_FAILED")


async def test_failures_of_both_mutations_count_together(eve: GraphQLClient) -> None:
    wrong = {"username": "eve", "password": "wrong"}
    for _ in range(6):
        await verify(eve.http, "IMAP", "wrong")
        await post_document(eve.http, SIGN_IN, input=wrong)
    refused = await verify(eve.http, "IMAP")
    assert [error["code"] for error in refused["errors"]] == ["RATE_LIMITED"]
    response = await post_document(eve.http, SIGN_IN, input={**wrong, "password": PASSWORD})
    (error,) = response["data"]["authenticate"]["errors"]
    assert error["code"] == "RATE_LIMITED"


async def test_security_log_has_scope_and_protocol(eve: GraphQLClient) -> None:
    await verify(eve.http, "IMAP", protocol="IMAP")
    (event,) = await load_sign_in_events(eve.environment)
    assert (event.user_id, event.result, event.protocol) == (eve.user.id, "SUCCESS", "IMAP")
    assert event.detail == {"scope": "IMAP", "source": "master"}


async def test_protocols_refuse_the_password_of_a_user_with_second_factor(
    eve: GraphQLClient,
) -> None:
    await enable_totp(eve)
    (error,) = (await verify(eve.http, "IMAP"))["errors"]
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "an application password")


async def test_full_scope_reports_and_takes_the_second_factor(eve: GraphQLClient) -> None:
    secret, _ = await enable_totp(eve)
    assert (await verify(eve.http, "FULL"))["requiredTwoFactorMethods"] == ["TOTP"]
    (error,) = (await verify(eve.http, "FULL", totp="000000"))["errors"]
    assert (error["code"], error["path"]) == ("AUTHENTICATION_FAILED", ["totp"])
    code = totp_code(eve.environment, secret, 1)
    assert await verify(eve.http, "FULL", totp=code) == ACCEPTED


async def test_mutation_refuses_idempotency_key(eve: GraphQLClient) -> None:
    payload = await verify(eve.http, "IMAP", options={"idempotencyKey": "k"})
    assert [error["path"] for error in payload["errors"]] == [["options", "idempotencyKey"]]
