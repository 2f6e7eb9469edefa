"""The authorization code flow: from the request of a client to its tokens."""

import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from sqlalchemy import select

from graph.types import global_ids
from models.oauth.tables import (
    OauthAuthorizationCode,
    OauthClient,
    OauthGrant,
    OauthRefreshToken,
    OauthSigningKey,
)
from models.runtime.environment import Environment
from models.store.columns import core_table
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, ManualClock
from tests.support.oauth.oauth_flow import (
    ISSUER,
    OauthBrowser,
    TestClient,
    add_client,
    location_parameters,
)


async def load_rows(environment: Environment, table: Any) -> list[Any]:
    return list(await environment.database.read(select(core_table(table))))


async def test_client_gets_tokens_for_the_scopes_of_the_consent(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    page = await browser.open(webmail, scope="openid email profile mail unknown")
    assert "Webmail" in page.text
    consent = await browser.sign_in(page, "ada")
    assert "Read, change and delete your mail" in consent.text
    answer = await browser.send(consent, choice="allow")
    parameters = location_parameters(answer)
    assert answer.headers["location"].startswith(webmail.redirect_uri + "?")
    assert (parameters["state"], parameters["iss"]) == ("state 1", ISSUER)
    response = await browser.request_tokens(webmail, parameters["code"])
    tokens = response.json()
    assert response.headers["cache-control"] == "no-store"
    assert (tokens["token_type"], tokens["expires_in"]) == ("Bearer", 3600)
    assert tokens["scope"] == "openid profile email mail"
    assert await browser.is_accepted(tokens["access_token"])
    keys = (await browser.http.get("/oauth/jwks")).json()
    id_token = jwt.decode(tokens["id_token"], KeySet.import_key_set(keys), ["ES256"])
    claims = id_token.claims
    now = int(ada.environment.now().timestamp())
    assert (claims["iss"], claims["aud"]) == (ISSUER, webmail.client_id)
    assert claims["sub"] == global_ids.encode("User", ada.user.id)
    assert (claims["iat"], claims["exp"], claims["auth_time"]) == (now, now + 3600, now)
    assert (claims["nonce"], claims["email"]) == ("nonce-1", "ada@example.org")
    assert claims["preferred_username"] == "ada"
    assert "at_hash" in claims
    userinfo = await browser.http.get(
        "/oauth/userinfo", headers={"Authorization": f"Bearer {tokens['access_token']}"}
    )
    assert userinfo.json() == {
        "sub": claims["sub"],
        "preferred_username": "ada",
        "email": "ada@example.org",
        "email_verified": True,
    }


async def test_public_client_gets_tokens_without_a_secret(
    browser: OauthBrowser, environment: Environment
) -> None:
    client = await add_client(environment, "Phone", is_public=True)
    assert await browser.is_accepted((await browser.get_tokens(client))["access_token"])


async def test_codes_tokens_and_secrets_are_stored_as_digests(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    code = await browser.authorize(webmail)
    tokens = (await browser.request_tokens(webmail, code)).json()
    tables = OauthAuthorizationCode, OauthClient, OauthGrant, OauthRefreshToken, OauthSigningKey
    stored = repr([await load_rows(environment, table) for table in tables])
    for secret in (code, tokens["access_token"], tokens["refresh_token"], webmail.secret):
        assert secret is not None
        assert secret not in stored
    (key,) = await load_rows(environment, OauthSigningKey)
    assert "d" not in key.public_key
    assert '"d"' not in key.private_key  # it is encrypted


async def test_no_code_token_or_password_is_logged(
    browser: OauthBrowser, webmail: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    code = await browser.authorize(webmail)
    tokens = (await browser.request_tokens(webmail, code)).json()
    await browser.refresh(webmail, tokens["refresh_token"])
    logged = caplog.text + json.dumps([str(vars(record)) for record in caplog.records])
    for secret in (code, tokens["access_token"], tokens["refresh_token"], "battery staple"):
        assert secret not in logged


async def test_use_of_client_and_grant_is_recorded(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, clock: ManualClock
) -> None:
    await browser.get_tokens(webmail)
    await authentication.wait_for_background_tasks(environment)
    (client,) = await load_rows(environment, OauthClient)
    (grant,) = await load_rows(environment, OauthGrant)
    assert client.last_used_at == grant.last_used_at == clock()


async def test_second_consent_adds_scopes_to_the_grant(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    await browser.authorize(webmail, scope="mail_read")
    await browser.authorize(webmail, scope="openid smtp")
    (grant,) = await load_rows(environment, OauthGrant)
    assert grant.scopes == ["openid", "mail_read", "smtp"]


async def test_exchange_of_a_code_needs_few_statements(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, statements: Any
) -> None:
    await browser.get_tokens(webmail)  # creates the signing key, records the use of the client
    await authentication.wait_for_background_tasks(environment)
    code = await browser.authorize(webmail)
    statements.clear()
    assert "id_token" in (await browser.request_tokens(webmail, code)).json()
    assert len(statements) <= 8


async def test_denial_is_sent_to_the_client(browser: OauthBrowser, webmail: TestClient) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    parameters = location_parameters(await browser.send(consent, choice="deny"))
    assert parameters == {"error": "access_denied", "state": "state 1", "iss": ISSUER}


async def test_discovery_documents_name_all_endpoints(browser: OauthBrowser) -> None:
    for path in ("oauth-authorization-server", "openid-configuration"):
        response = await browser.http.get(f"/.well-known/{path}")
        document = response.json()
        assert document["issuer"] == ISSUER
        assert document["code_challenge_methods_supported"] == ["S256"]
        for name, url in document.items():
            if name.endswith("_endpoint") or name == "jwks_uri":
                status = (await browser.http.get(url)).status_code
                assert status in (200, 400, 401, 405), name
