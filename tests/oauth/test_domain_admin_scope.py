"""The scope `domain_admin`: a client acts with all rights of a DOMAIN_ADMIN."""

from html import unescape
from typing import Any

import httpx
import pytest

from graph.oauth.texts.page_texts import ENGLISH
from models.oauth.tables import OauthScope
from models.runtime.environment import Environment
from models.users.roles import Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.address_rows import add_domain
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.oauth.oauth_flow import (
    OauthBrowser,
    TestClient,
    add_client,
    location_parameters,
    set_password,
)

CONSENT_TEXT = "Administer your domains and your account with all your rights"
READ = """{ viewer { role scopes } users { nodes { username } } domains { nodes { name } } }"""
CREATE_ADDRESS = """mutation ($address: String!) {
  addressCreate(input: {address: $address, user: {username: "ada"}}) {
    errors { code } address { address } } }"""


@pytest.fixture
async def domain_admin(
    environment: Environment, http: httpx.AsyncClient, browser: OauthBrowser
) -> GraphQLClient:
    """A DOMAIN_ADMIN of example.org, with a password."""
    del browser
    admin = await make_domain_admin(environment, http, "dan")
    await set_password(environment, admin.user.id)
    return admin


def client_with_token(
    browser: OauthBrowser, user: GraphQLClient, tokens: dict[str, Any]
) -> GraphQLClient:
    return GraphQLClient(browser.http, user.environment, user.user, tokens["access_token"])


async def set_role(admin: GraphQLClient, values: str) -> None:
    payload = await admin(
        f"""mutation {{ userRoleSet(input: {{users: {{usernames: ["dan"]}}, role: {values}}}) {{
        errors {{ code message }} }} }}"""
    )
    assert payload["userRoleSet"]["errors"] == []


async def test_domain_admin_acts_in_own_domains_only(
    browser: OauthBrowser,
    webmail: TestClient,
    domain_admin: GraphQLClient,
) -> None:
    await add_domain(domain_admin.environment, "other.example")
    consent = await browser.sign_in(await browser.open(webmail, scope="domain_admin"), "dan")
    assert CONSENT_TEXT in consent.text
    code = location_parameters(await browser.send(consent, choice="allow"))["code"]
    tokens = (await browser.request_tokens(webmail, code)).json()
    assert tokens["scope"] == "domain_admin"
    client = client_with_token(browser, domain_admin, tokens)
    data = await client(READ)
    assert data["viewer"] == {"role": "DOMAIN_ADMIN", "scopes": ["FULL"]}
    assert {node["username"] for node in data["users"]["nodes"]} == {"ada", "dan"}
    assert data["domains"] == {"nodes": [{"name": "example.org"}]}
    created = (await client(CREATE_ADDRESS, address="new@example.org"))["addressCreate"]
    assert created == {"errors": [], "address": {"address": "new@example.org"}}
    foreign = (await client(CREATE_ADDRESS, address="new@other.example"))["addressCreate"]
    assert (foreign["address"], len(foreign["errors"])) == (None, 1)


async def test_refreshed_token_keeps_the_role_until_the_user_loses_it(
    browser: OauthBrowser,
    webmail: TestClient,
    domain_admin: GraphQLClient,
    admin_client: GraphQLClient,
) -> None:
    scope = "mail_read domain_admin"
    tokens = await browser.get_tokens(webmail, "dan", scope=scope)
    tokens = (await browser.refresh(webmail, tokens["refresh_token"])).json()
    assert tokens["scope"] == scope
    client = client_with_token(browser, domain_admin, tokens)
    assert (await client(READ))["viewer"]["role"] == "DOMAIN_ADMIN"
    await set_role(admin_client, "USER")
    response = await client.execute(READ)
    assert response["data"]["users"] is None
    assert response["data"]["viewer"] == {"role": "USER", "scopes": ["MAIL_READ"]}
    token = tokens["access_token"]
    introspection = await browser.post_as_client("/oauth/introspect", webmail, token=token)
    assert introspection.json()["scope"] == "mail_read"
    refreshed = (await browser.refresh(webmail, tokens["refresh_token"], scope=scope)).json()
    assert refreshed["scope"] == "mail_read"
    await set_role(admin_client, 'DOMAIN_ADMIN, administers: [{name: "example.org"}]')
    refreshed = (await browser.refresh(webmail, refreshed["refresh_token"])).json()
    assert refreshed["scope"] == "mail_read"  # the user must give the scope again


@pytest.mark.parametrize("role", [Role.USER, Role.ADMIN, Role.ROOT])
async def test_users_of_other_roles_cannot_give_the_scope(
    browser: OauthBrowser,
    webmail: TestClient,
    environment: Environment,
    http: httpx.AsyncClient,
    role: Role,
) -> None:
    user = await make_client(environment, http, "sam", role=role)
    await set_password(environment, user.user.id)
    page = await browser.open(webmail, scope="mail_read domain_admin")
    consent = await browser.sign_in(page, "sam")
    assert consent.status_code == 200
    assert CONSENT_TEXT not in consent.text
    tokens = await browser.get_tokens(webmail, "sam", scope="mail_read domain_admin")
    assert tokens["scope"] == "mail_read"
    data = await client_with_token(browser, user, tokens)("{ viewer { role scopes } }")
    assert data["viewer"] == {"role": "USER", "scopes": ["MAIL_READ"]}
    refused = await browser.sign_in(await browser.open(webmail, scope="domain_admin"), "sam")
    assert refused.status_code == 403
    assert ENGLISH.access_not_allowed in unescape(refused.text)


async def test_client_without_the_scope_does_not_get_it(
    browser: OauthBrowser, domain_admin: GraphQLClient
) -> None:
    scopes = [scope for scope in OauthScope if scope is not OauthScope.DOMAIN_ADMIN]
    client = await add_client(domain_admin.environment, "Mail", scopes=scopes)
    tokens = await browser.get_tokens(client, "dan", scope="mail_read domain_admin")
    assert tokens["scope"] == "mail_read"


async def test_role_given_after_the_consent_page_adds_no_scope(
    browser: OauthBrowser, webmail: TestClient, domain_admin: GraphQLClient, root: GraphQLClient
) -> None:
    del domain_admin
    await set_role(root, "USER")
    page = await browser.open(webmail, scope="mail_read domain_admin")
    consent = await browser.sign_in(page, "dan")
    await set_role(root, 'DOMAIN_ADMIN, administers: [{name: "example.org"}]')
    code = location_parameters(await browser.send(consent, choice="allow"))["code"]
    assert (await browser.request_tokens(webmail, code)).json()["scope"] == "mail_read"


async def test_scope_given_to_the_client_after_the_consent_page_is_not_granted(
    browser: OauthBrowser, domain_admin: GraphQLClient, root: GraphQLClient
) -> None:
    client = await add_client(domain_admin.environment, "Mail", scopes=[OauthScope.MAIL_READ])
    page = await browser.open(client, scope="mail_read domain_admin")
    consent = await browser.sign_in(page, "dan")
    payload = await root(
        f"""mutation {{ oauthClientUpdate(input: {{oauthClients: [{{clientId:
        "{client.client_id}"}}], set: {{scopes: [MAIL_READ, DOMAIN_ADMIN]}}}}) {{
        errors {{ code message }} }} }}"""
    )
    assert payload["oauthClientUpdate"]["errors"] == []
    code = location_parameters(await browser.send(consent, choice="allow"))["code"]
    assert (await browser.request_tokens(client, code)).json()["scope"] == "mail_read"


async def test_role_lost_before_the_exchange_of_the_code_ends_the_scope(
    browser: OauthBrowser, webmail: TestClient, domain_admin: GraphQLClient, root: GraphQLClient
) -> None:
    del domain_admin
    code = await browser.authorize(webmail, "dan", scope="mail_read domain_admin")
    only_admin_code = await browser.authorize(webmail, "dan", scope="domain_admin")
    await set_role(root, "USER")
    assert (await browser.request_tokens(webmail, code)).json()["scope"] == "mail_read"
    refused = await browser.request_tokens(webmail, only_admin_code)
    assert (refused.status_code, refused.json()["error"]) == (400, "invalid_grant")
