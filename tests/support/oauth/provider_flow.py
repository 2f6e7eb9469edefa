"""Sign-ins at an identity provider through the pages of the server."""

import re
from html import unescape
from typing import Any, Protocol
from urllib.parse import urlsplit

import httpx
from sqlalchemy import insert
from sqlmodel import col, select

from models.domains.tables import Domain
from models.identity_providers import IdentityProvider
from models.runtime.environment import Environment
from resolvers.identity_providers.provider_records import secret_purpose
from tests.support.oauth.oauth_flow import (
    USER_SCOPES,
    OauthBrowser,
    TestClient,
    location_parameters,
)

PROVIDER_LINK = re.compile(r'<a href="([^"]+)"')
CLIENT_ID = "merganser"
CLIENT_SECRET = "secret-of-the-client-with-forty-characters"  # noqa: S105 - of a test


class SigningProvider(Protocol):
    """A provider that can sign in an account at an authorization URL."""

    async def sign_in(self, authorization_url: str, account: str) -> str:
        """Return the URL of the redirect to the server."""


async def add_provider(
    environment: Environment, issuer: str, domain: str = "example.org", **columns: Any
) -> int:
    """Add the row of the provider of a domain, and return its id."""
    (row,) = await environment.database.read(select(col(Domain.id)).where(Domain.name == domain))
    row_id = environment.new_id()
    secret = environment.secret_box.encrypt(CLIENT_SECRET, secret_purpose(row_id))
    values = {
        "id": row_id,
        "domain_id": row.id,
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "client_secret": secret,
        "scopes": ["openid", "email", "offline_access"],
        "username_claim": "email",
        "groups_claim": "groups",
        "admin_groups": [],
        "user_creation_allowed": False,
        "password_sign_in_allowed": True,
        "created_at": environment.now(),
        **columns,
    }
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(IdentityProvider).values(values))
    return row_id


def provider_url(page: httpx.Response) -> str:
    """Return the URL of the provider on the page that sends a browser there."""
    assert page.status_code == 200, page.text
    match = PROVIDER_LINK.search(page.text)
    assert match is not None, page.text
    url = unescape(match[1])
    assert page.headers["refresh"] == f"0; url={url}"
    return url


async def open_provider(
    browser: OauthBrowser,
    client: TestClient,
    address: str = "ada@example.org",
    **parameters: str | None,
) -> str:
    """Choose the organization on the sign-in page, and return the URL of the provider."""
    page = await browser.open(client, **parameters)
    return provider_url(await browser.send(page, username=address, choice="organization"))


async def come_back(browser: OauthBrowser, callback_url: str) -> httpx.Response:
    """Open the URL that the provider redirects to."""
    parts = urlsplit(callback_url)
    return await browser.http.get(f"{parts.path}?{parts.query}")


async def sign_in_at_provider(
    browser: OauthBrowser,
    client: TestClient,
    provider: SigningProvider,
    account: str = "ada",
    address: str = "ada@example.org",
) -> httpx.Response:
    """Sign in at the provider, and return the next page."""
    url = await open_provider(browser, client, address)
    return await come_back(browser, await provider.sign_in(url, account))


async def tokens_by_provider(
    browser: OauthBrowser,
    client: TestClient,
    provider: SigningProvider,
    account: str = "ada",
    *,
    scope: str = USER_SCOPES,
) -> dict[str, Any]:
    """Sign in at the provider, allow access, and return the tokens."""
    url = await open_provider(browser, client, scope=scope)
    consent = await come_back(browser, await provider.sign_in(url, account))
    assert consent.status_code == 200, consent.text
    code = location_parameters(await browser.send(consent, choice="allow"))["code"]
    response = await browser.request_tokens(client, code)
    assert response.status_code == 200, response.text
    tokens: dict[str, Any] = response.json()
    return tokens
