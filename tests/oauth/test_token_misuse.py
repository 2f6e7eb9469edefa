"""Codes and refresh tokens that are used twice, late, by another client or without verifier."""

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.oauth.tables import OauthClient
from models.runtime.environment import Environment
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import (
    OauthBrowser,
    TestClient,
    add_client,
    set_password,
)


def error_of(response: httpx.Response) -> Any:
    """The error code of a response that refuses a request."""
    assert response.status_code in (400, 401), response.text
    assert "access_token" not in response.text
    return response.json()["error"]


async def replay_count(environment: Environment) -> int:
    await authentication.wait_for_background_tasks(environment)
    is_replay = col(SecurityEvent.action) == SecurityEventAction.OAUTH_TOKEN_REPLAYED
    return len(await environment.database.read(select(col(SecurityEvent.id)).where(is_replay)))


async def test_code_used_twice_ends_its_tokens(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    other_tokens = await browser.get_tokens(webmail)
    code = await browser.authorize(webmail)
    tokens = (await browser.request_tokens(webmail, code)).json()
    assert error_of(await browser.request_tokens(webmail, code)) == "invalid_grant"
    assert not await browser.is_accepted(tokens["access_token"])
    assert error_of(await browser.refresh(webmail, tokens["refresh_token"])) == "invalid_grant"
    assert await replay_count(environment) == 1
    assert await browser.is_accepted(other_tokens["access_token"])  # of another code
    assert (await browser.refresh(webmail, other_tokens["refresh_token"])).status_code == 200


async def test_late_code_is_refused(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock
) -> None:
    code = await browser.authorize(webmail)
    clock.tick(seconds=59)
    assert (await browser.request_tokens(webmail, code)).status_code == 200
    code = await browser.authorize(webmail)
    clock.tick(seconds=60)
    assert error_of(await browser.request_tokens(webmail, code)) == "invalid_grant"


async def test_code_of_another_client_is_refused_and_remains_valid(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    other = await add_client(environment, "Other")
    code = await browser.authorize(webmail)
    assert error_of(await browser.request_tokens(other, code)) == "invalid_grant"
    assert (await browser.request_tokens(webmail, code)).status_code == 200


# for each case: the changed parameters, and the error
WRONG_TOKEN_REQUESTS: list[tuple[dict[str, str | None], str]] = [
    ({"code_verifier": None}, "invalid_request"),
    ({"code_verifier": "w" * 43}, "invalid_grant"),
    ({"code_verifier": "v" * 42}, "invalid_request"),
    ({"redirect_uri": None}, "invalid_grant"),
    ({"redirect_uri": "https://app.example.com/callback/"}, "invalid_grant"),
    ({"code": "mgo_" + "x" * 43}, "invalid_grant"),
    ({"code": None}, "invalid_request"),
    ({"code": "x" * 2000}, "invalid_grant"),
    ({"grant_type": "password"}, "unsupported_grant_type"),
    ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
    ({"grant_type": None}, "unsupported_grant_type"),
]


async def test_wrong_token_request_is_refused(browser: OauthBrowser, webmail: TestClient) -> None:
    for case in each_case(WRONG_TOKEN_REQUESTS):
        with case as (changes, error):
            code = await browser.authorize(webmail)
            values = {"code": code, **changes}
            response = await browser.request_tokens(webmail, values.pop("code"), **values)  # type: ignore[arg-type]
            assert error_of(response) == error


async def test_wrong_client_authentication_is_refused(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    public = await add_client(environment, "Phone", is_public=True)
    code = await browser.authorize(webmail)
    for attempt in (
        TestClient(0, webmail.client_id, "mgs_" + "w" * 43),
        TestClient(0, webmail.client_id, None),  # without its secret
        TestClient(0, "unknown", "mgs_" + "w" * 43),
        TestClient(0, public.client_id, "mgs_" + "w" * 43),
        TestClient(0, "x" * 1000, None),
    ):
        assert error_of(await browser.request_tokens(attempt, code)) == "invalid_client"
    assert (await browser.request_tokens(webmail, code)).status_code == 200


async def test_two_methods_of_client_authentication_are_refused(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    code = await browser.authorize(webmail)
    response = await browser.request_tokens(
        webmail, code, client_id=webmail.client_id, client_secret=webmail.secret
    )
    assert error_of(response) == "invalid_request"


async def test_refresh_token_rotates(browser: OauthBrowser, webmail: TestClient) -> None:
    tokens = await browser.get_tokens(webmail, scope="mail submit")
    response = await browser.refresh(webmail, tokens["refresh_token"])
    new_tokens = response.json()
    assert new_tokens["refresh_token"] != tokens["refresh_token"]
    assert new_tokens["scope"] == "mail submit"
    assert await browser.is_accepted(new_tokens["access_token"])


async def test_reuse_of_a_refresh_token_ends_the_family(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    first = await browser.get_tokens(webmail)
    second = (await browser.refresh(webmail, first["refresh_token"])).json()
    third = (await browser.refresh(webmail, second["refresh_token"])).json()
    assert error_of(await browser.refresh(webmail, first["refresh_token"])) == "invalid_grant"
    for tokens in (first, second, third):
        assert not await browser.is_accepted(tokens["access_token"])
        assert error_of(await browser.refresh(webmail, tokens["refresh_token"])) == "invalid_grant"
    assert await replay_count(environment) == 1


async def test_one_of_two_uses_at_the_same_moment_succeeds(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    tokens = await browser.get_tokens(webmail)
    responses = await asyncio.gather(
        *(browser.refresh(webmail, tokens["refresh_token"]) for _ in range(2))
    )
    assert sorted(response.status_code for response in responses) == [200, 400]
    code = await browser.authorize(webmail)
    responses = await asyncio.gather(*(browser.request_tokens(webmail, code) for _ in range(2)))
    assert sorted(response.status_code for response in responses) == [200, 400]


async def test_refresh_token_of_another_client_is_refused_and_remains_valid(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    other = await add_client(environment, "Other")
    tokens = await browser.get_tokens(webmail)
    assert error_of(await browser.refresh(other, tokens["refresh_token"])) == "invalid_grant"
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200


async def test_refresh_token_expires_if_unused(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock
) -> None:
    tokens = await browser.get_tokens(webmail)
    for _ in range(2):
        clock.tick(days=29)
        tokens = (await browser.refresh(webmail, tokens["refresh_token"])).json()
    clock.tick(days=30)
    assert error_of(await browser.refresh(webmail, tokens["refresh_token"])) == "invalid_grant"


async def test_refresh_can_narrow_scopes_but_not_widen_them(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    tokens = await browser.get_tokens(webmail, scope="mail smtp")
    wide = await browser.refresh(webmail, tokens["refresh_token"], scope="mail smtp settings")
    assert error_of(wide) == "invalid_scope"
    narrow = (await browser.refresh(webmail, tokens["refresh_token"], scope="smtp")).json()
    assert narrow["scope"] == "smtp"
    again = (await browser.refresh(webmail, narrow["refresh_token"])).json()
    assert again["scope"] == "mail smtp"


async def test_refresh_gives_only_scopes_that_the_client_still_has(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    tokens = await browser.get_tokens(webmail, scope="mail smtp")
    async with environment.write_session() as session:
        statement = update(OauthClient).values(scopes=["smtp"])
        await (await session.connection()).execute(statement)
    assert (await browser.refresh(webmail, tokens["refresh_token"])).json()["scope"] == "smtp"


async def test_access_token_expires_and_use_does_not_extend_it(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock, environment: Environment
) -> None:
    tokens = await browser.get_tokens(webmail)
    for minutes in (30, 29):
        clock.tick(minutes=minutes)
        assert await browser.is_accepted(tokens["access_token"])
        await authentication.wait_for_background_tasks(environment)
    clock.tick(minutes=1)
    assert not await browser.is_accepted(tokens["access_token"])


async def test_access_tokens_are_bearer_tokens(browser: OauthBrowser, webmail: TestClient) -> None:
    """The server binds no token to a key, and publishes nothing else."""
    document = (await browser.http.get("/.well-known/oauth-authorization-server")).json()
    assert not [name for name in document if "dpop" in name or "certificate_bound" in name]
    tokens = await browser.get_tokens(webmail)
    assert tokens["token_type"] == "Bearer"  # noqa: S105 - a name
    query = {"access_token": tokens["access_token"]}  # in a URL, a token would be in logs
    response = await browser.http.post(
        "/graphql", params=query, json={"query": "{ viewer { user { username } } }"}
    )
    assert '"ada"' not in response.text
    assert (await browser.http.get("/oauth/userinfo", params=query)).status_code == 401


@pytest.mark.parametrize("scope", ["smtp imap", "openid profile email"])
async def test_token_without_a_scope_for_http_opens_no_graphql(
    browser: OauthBrowser, webmail: TestClient, scope: str
) -> None:
    tokens = await browser.get_tokens(webmail, scope=scope)
    assert not await browser.is_accepted(tokens["access_token"])


async def test_token_has_only_the_rights_of_its_scopes_and_of_a_user(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    tokens = await browser.get_tokens(webmail, scope="mail_read")
    client = GraphQLClient(browser.http, ada.environment, ada.user, tokens["access_token"])
    payload = await client(
        'mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } mailboxes { path } } }'
    )
    assert payload["mailboxCreate"] == {"errors": [{"code": "FORBIDDEN"}], "mailboxes": []}


async def test_token_of_an_administrator_has_no_rights_of_administrators(
    browser: OauthBrowser, webmail: TestClient, admin_client: GraphQLClient
) -> None:
    await set_password(admin_client.environment, admin_client.user.id)
    tokens = await browser.get_tokens(webmail, admin_client.user.username)
    client = GraphQLClient(
        browser.http, admin_client.environment, admin_client.user, tokens["access_token"]
    )
    assert await client("{ viewer { user { username } } }")
    response = await client.execute("{ users { nodes { id } } }")
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
