"""Everything that ends access tokens ends OAuth tokens; revocation; introspection."""

from typing import Any

import pytest
from sqlalchemy import delete, update
from sqlmodel import col

from models.auth.credentials import AccessToken
from models.oauth.tables import OauthClient
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock
from tests.support.oauth.oauth_flow import (
    OauthBrowser,
    TestClient,
    add_client,
    set_password,
)


async def has_ended(
    browser: OauthBrowser, client: TestClient, tokens: dict[str, Any], clock: ManualClock
) -> bool:
    """True if access token and refresh token of a client are refused within a second."""
    clock.tick(seconds=1)
    is_accepted = await browser.is_accepted(tokens["access_token"])
    refreshed = await browser.refresh(client, tokens["refresh_token"])
    return not is_accepted and refreshed.status_code in (400, 401)


async def execute(environment: Environment, statement: Any) -> None:
    async with environment.write_session() as session:
        await (await session.connection()).execute(statement)


@pytest.mark.parametrize(
    "changes",
    [{"suspended": True}, {"active": False}, {"auth_version": 7}],
    ids=["suspended", "inactive", "new password"],
)
async def test_tokens_end_with_the_sign_ins_of_the_user(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    clock: ManualClock,
    changes: dict[str, Any],
) -> None:
    tokens = await browser.get_tokens(webmail)
    assert await browser.is_accepted(tokens["access_token"])
    statement = update(User).where(col(User.id) == ada.user.id).values(changes)
    await execute(ada.environment, statement)
    assert await has_ended(browser, webmail, tokens, clock)


async def test_user_who_may_not_get_tokens_any_more_gets_no_new_ones(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail)
    smtp_tokens = await browser.get_tokens(webmail, scope="smtp")
    statement = update(User).where(col(User.id) == ada.user.id).values(webmail_access=False)
    await execute(ada.environment, statement)
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 400
    assert (await browser.refresh(webmail, smtp_tokens["refresh_token"])).status_code == 200


@pytest.mark.parametrize(
    "document",
    [
        "mutation { accessTokenRevoke(input: {all: true}) { revokedCount } }",
        'mutation { userUpdate(input: {set: {password: "another good pass phrase"}, '
        'existingPassword: "correct horse battery staple"}) { errors { code message } } }',
    ],
    ids=["accessTokenRevoke", "password"],
)
async def test_tokens_end_with_a_mutation_of_the_user(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    clock: ManualClock,
    document: str,
) -> None:
    tokens = await browser.get_tokens(webmail)
    assert await browser.is_accepted(tokens["access_token"])
    await ada(document)
    assert await has_ended(browser, webmail, tokens, clock)


async def test_tokens_end_with_their_sessions(
    browser: OauthBrowser, webmail: TestClient, root: GraphQLClient, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    await root(
        'mutation { sessionTerminate(input: {users: {usernames: ["ada"]}, revokeTokens: true}) '
        "{ errors { code } } }"
    )
    assert await has_ended(browser, webmail, tokens, clock)


async def test_refresh_token_ends_with_the_sessions_after_its_access_token(
    browser: OauthBrowser, webmail: TestClient, root: GraphQLClient, environment: Environment
) -> None:
    tokens = await browser.get_tokens(webmail)
    is_of_client = col(AccessToken.oauth_grant_id).is_not(None)
    await execute(environment, delete(AccessToken).where(is_of_client))  # as housekeeping does
    payload = await root(
        'mutation { sessionTerminate(input: {users: {usernames: ["ada"]}, revokeTokens: true}) '
        "{ errors { code } } }"
    )
    assert payload["sessionTerminate"]["errors"] == []
    refreshed = await browser.refresh(webmail, tokens["refresh_token"])
    assert refreshed.status_code == 400


async def test_tokens_end_with_the_account(
    browser: OauthBrowser, webmail: TestClient, root: GraphQLClient, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    await root(
        'mutation { userDelete(input: {users: {usernames: ["ada"]}}) { errors { code message } } }'
    )
    assert await has_ended(browser, webmail, tokens, clock)


async def test_tokens_end_with_the_row_of_their_client(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    assert await browser.is_accepted(tokens["access_token"])
    await execute(environment, delete(OauthClient))
    assert await has_ended(browser, webmail, tokens, clock)


async def test_revoked_access_token_ends_alone(browser: OauthBrowser, webmail: TestClient) -> None:
    tokens = await browser.get_tokens(webmail)
    token = tokens["access_token"]
    assert await browser.is_accepted(token)
    for _ in range(2):  # an unknown token is no error (RFC 7009, section 2.2)
        response = await browser.post_as_client("/oauth/revoke", webmail, token=token)
        assert (response.status_code, response.json()) == (200, {})
    assert not await browser.is_accepted(token)
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200


async def test_revoked_refresh_token_ends_its_family(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    response = await browser.post_as_client("/oauth/revoke", webmail, token=tokens["refresh_token"])
    assert response.status_code == 200
    assert await has_ended(browser, webmail, tokens, clock)


async def test_tokens_of_another_client_can_not_be_revoked_or_seen(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    other = await add_client(environment, "Other")
    tokens = await browser.get_tokens(webmail)
    for name in ("access_token", "refresh_token"):
        token = tokens[name]
        revocation = await browser.post_as_client("/oauth/revoke", other, token=token)
        assert revocation.json() == {"error": "invalid_grant"}
        introspection = await browser.post_as_client("/oauth/introspect", other, token=token)
        assert introspection.json() == {"active": False}
    assert await browser.is_accepted(tokens["access_token"])


async def test_introspection_describes_a_token_of_the_client(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock, environment: Environment
) -> None:
    tokens = await browser.get_tokens(webmail, scope="openid mail")
    answer = await browser.post_as_client(
        "/oauth/introspect", webmail, token=tokens["access_token"]
    )
    body = answer.json()
    assert (body["active"], body["client_id"]) == (True, webmail.client_id)
    assert (body["scope"], body["token_type"]) == ("openid mail", "Bearer")
    assert body["exp"] - body["iat"] == 3600
    clock.tick(hours=1)
    for token in (tokens["access_token"], "mgt_" + "x" * 43, "", "x" * 2000):
        answer = await browser.post_as_client("/oauth/introspect", webmail, token=token or "-")
        assert answer.json() == {"active": False}
    public = await add_client(environment, "Phone", is_public=True)
    answer = await browser.post_as_client("/oauth/introspect", public, token="x" * 9)
    assert answer.json()["error"] == "invalid_client"


async def test_userinfo_requires_a_token_with_openid(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail, scope="mail")
    for credentials, status in (
        (f"Bearer {tokens['access_token']}", 403),
        (f"Bearer {ada.secret}", 401),  # no OAuth token
        ("Bearer mgt_" + "x" * 43, 401),
        ("Bearer " + "x" * 5000, 401),
        ("Basic YTpi", 401),
        ("", 401),
    ):
        response = await browser.http.get("/oauth/userinfo", headers={"Authorization": credentials})
        assert response.status_code == status
        assert response.headers["www-authenticate"].startswith("Bearer")


async def test_refresh_tokens_of_other_users_remain(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await set_password(bob.environment, bob.user.id)
    tokens = await browser.get_tokens(webmail, "bob")
    await ada("mutation { accessTokenRevoke(input: {all: true}) { revokedCount } }")
    assert await browser.is_accepted(tokens["access_token"])
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200
