"""Sign-in at real identity providers: oidc-provider from npm, and Glewlwyd from Debian."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.app import create_app
from models.identity_providers import IdentityLink
from models.runtime.environment import Environment
from resolvers.identity_providers.account_checks import (
    check_account_and_end_access_if_ended,
    reserve_links_due_for_check,
)
from tests.conftest import GraphQLClient, ManualClock
from tests.support.identity_providers.glewlwyd_server import run_glewlwyd
from tests.support.identity_providers.oidc_provider_server import run_oidc_provider
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, add_client, set_public_url
from tests.support.oauth.provider_flow import (
    CLIENT_ID,
    CLIENT_SECRET,
    add_provider,
    come_back,
    open_provider,
    tokens_by_provider,
)
from tests.support.servers.http_server import run_http_server

ADA = {
    "email": "ada@example.org",
    "email_verified": True,
    "preferred_username": "ada",
    "name": "Ada",
    "groups": ["staff", "mail-admins"],
}
CALLBACK_PATH = "/oauth/callback/example.org"
LOGOUT_PATH = "/oauth/backchannel-logout/example.org"


@pytest.fixture
async def browser(
    environment: Environment, ada: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[OauthBrowser]:
    """A browser of a server on a port, which providers can send logout tokens to."""
    del ada
    clock.time = datetime.now(UTC)  # the clock of the providers
    app = create_app(environment, spool_folder=tmp_path / "spool")
    async with run_http_server(app) as port:
        url = f"http://127.0.0.1:{port}"
        set_public_url(environment, url, identity_providers_allow_private_networks=True)
        async with httpx.AsyncClient(base_url=url, timeout=60) as http:
            yield OauthBrowser(http, {"Origin": url})
        await app.end_subscriptions()


@pytest.fixture
async def webmail(browser: OauthBrowser, environment: Environment) -> TestClient:
    """A confidential client with all scopes."""
    del browser
    return await add_client(environment)


async def test_user_signs_in_and_out_at_oidc_provider(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, tmp_path: Path
) -> None:
    url = str(browser.http.base_url)
    with run_oidc_provider(
        tmp_path / "provider",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[url + CALLBACK_PATH],
        accounts={"ada-1": ADA},
        backchannel_logout_uri=url + LOGOUT_PATH,
    ) as provider:
        await add_provider(
            environment,
            provider.issuer,
            scopes=["openid", "email", "profile"],
            admin_groups=["mail-admins"],
        )
        tokens = await tokens_by_provider(browser, webmail, provider, "ada-1")
        assert await browser.is_accepted(tokens["access_token"])
        url = await open_provider(browser, webmail, prompt="login", max_age="0")
        recent = await come_back(browser, await provider.sign_in(url, "ada-1"))
        assert recent.status_code == 200
        (link,) = await environment.database.read(select(col(IdentityLink.is_admin_by_group)))
        assert link.is_admin_by_group
        canceled = await come_back(
            browser, await provider.cancel_sign_in(await open_provider(browser, webmail))
        )
        assert canceled.status_code == 403
        await provider.rotate_keys(publish_old=False)
        second = await tokens_by_provider(browser, webmail, provider, "ada-1")
        deliveries = await provider.end_session("ada-1")
        assert {delivery.status for delivery in deliveries} == {200}
        for ended in (tokens, second):
            assert not await browser.is_accepted(ended["access_token"])


async def test_check_at_oidc_provider_ends_a_deleted_account(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, tmp_path: Path
) -> None:
    with run_oidc_provider(
        tmp_path / "provider",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[str(browser.http.base_url) + CALLBACK_PATH],
        accounts={"ada-1": ADA},
        always_issues_refresh_tokens=True,
    ) as provider:
        await add_provider(environment, provider.issuer, scopes=["openid", "email"])
        tokens = await tokens_by_provider(browser, webmail, provider, "ada-1")
        await check_at_once(environment)
        assert await browser.is_accepted(tokens["access_token"])
        await provider.delete_account("ada-1")
        await check_at_once(environment)
        assert not await browser.is_accepted(tokens["access_token"])


async def check_at_once(environment: Environment) -> None:
    """Check the only account as if an hour had passed."""
    async with environment.write_session() as session:
        due = update(IdentityLink).values(check_due_at=environment.now())
        await (await session.connection()).execute(due)
    (link,) = await reserve_links_due_for_check(environment)
    await check_account_and_end_access_if_ended(environment, link)


async def test_user_signs_in_at_glewlwyd(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, tmp_path: Path
) -> None:
    with run_glewlwyd(
        tmp_path / "provider",
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        redirect_uris=[str(browser.http.base_url) + CALLBACK_PATH],
        accounts={"ada": {"email": "ada@example.org", "email_verified": True, "name": "Ada"}},
    ) as provider:
        await add_provider(environment, provider.issuer, scopes=["openid", "email"])
        tokens = await tokens_by_provider(browser, webmail, provider, "ada")
        assert await browser.is_accepted(tokens["access_token"])
