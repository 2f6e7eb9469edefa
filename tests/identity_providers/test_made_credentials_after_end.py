"""Credentials that a DOMAIN_ADMIN has made for other users, after the provider has ended it."""

from dataclasses import replace
from typing import Any

import pytest

from models.errors import Unauthenticated
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from resolvers.auth import authentication
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import basic_auth_header
from tests.support.identity_providers.scripted_provider import ScriptedProvider
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient
from tests.support.oauth.provider_flow import add_provider, tokens_by_provider

LOGOUT_URL = "/oauth/backchannel-logout/example.org"
FOR_BOB = {
    "token": 'userImpersonate(input: {user: {username: "bob"}}) { token errors { message } }',
    "key": 'apiKeyCreate(input: {name: "made", user: {username: "bob"}})'
    " { secret errors { message } }",
    "password": 'appPasswordCreate(input: {description: "made", user: {username: "bob"}})'
    " { password errors { message } }",
}


@pytest.fixture
async def chief(environment: Environment, http: Any, bob: GraphQLClient) -> GraphQLClient:
    """A DOMAIN_ADMIN with all permissions."""
    assert bob.user.id
    return await make_domain_admin(environment, http, "chief", list(AdminPermission))


async def make_credentials(chief: GraphQLClient) -> dict[str, str]:
    """Create a credential for Bob in each way, and return the secrets."""
    secrets = {}
    for name, mutation in FOR_BOB.items():
        (payload,) = (await chief(f"mutation {{ {mutation} }}")).values()
        assert payload.pop("errors") == []
        (secrets[name],) = payload.values()
    return secrets


async def is_accepted(bob: GraphQLClient, secret: str) -> bool:
    """True if the server accepts a credential of Bob."""
    if secret.startswith("mg"):
        client = replace(bob, secret=secret)
        response = await client.execute("{ viewer { user { username } } }")
        return bool((response.get("data") or {}).get("viewer"))
    try:
        headers = basic_auth_header("bob", secret)
        return bool((await authentication.authenticate_request(bob.environment, headers)).user_id)
    except Unauthenticated:
        return False


async def test_credentials_for_others_end_with_their_maker(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    chief: GraphQLClient,
    bob: GraphQLClient,
) -> None:
    await add_provider(chief.environment, provider.issuer)
    provider.claims |= {"sub": "chief-1", "email": "chief@example.org"}
    await tokens_by_provider(browser, webmail, provider)
    secrets = await make_credentials(chief)
    before = {name: await is_accepted(bob, secret) for name, secret in secrets.items()}
    assert before == dict.fromkeys(secrets, True)
    form = {"logout_token": provider.logout_token()}
    assert (await browser.http.post(LOGOUT_URL, data=form)).status_code == 200
    after = {name: await is_accepted(bob, secret) for name, secret in secrets.items()}
    assert after == dict.fromkeys(secrets, False)
