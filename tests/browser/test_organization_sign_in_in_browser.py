"""Tests of the sign-in at an organization in a browser, with a real identity provider."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.clients.browser_driver import start_browser
from tests.support.identity_providers.oidc_provider_server import OidcProvider, run_oidc_provider
from tests.support.oauth.pages_in_browser import (
    OauthApplication,
    OauthPage,
    new_oauth_page,
    open_profile,
    run_application,
    run_oauth_server,
)
from tests.support.servers.merganser_server import MerganserProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")  # the loop of the browser
WITH_AND_WITHOUT_SCRIPTS = pytest.mark.parametrize(
    "profile", [{}, {"java_script_enabled": False}], ids=["scripts", "no scripts"]
)
SECRET = "s" * 40
ADA = {"email": "ada@example.org", "email_verified": True, "name": "Ada"}
EVE = {"email": "eve@elsewhere.example", "email_verified": True, "name": "Eve"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MerganserProcess]:
    with run_oauth_server(tmp_path_factory.mktemp("organization"), "ada") as server:
        yield server


@pytest.fixture(scope="module")
def provider(
    server: MerganserProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OidcProvider]:
    callback = f"{server.extra_settings['PUBLIC_URL']}/oauth/callback/example.org"
    with run_oidc_provider(
        tmp_path_factory.mktemp("provider"),
        client_id="merganser",
        client_secret=SECRET,
        redirect_uris=[callback],
        accounts={"ada-1": ADA, "eve-1": EVE},
    ) as provider:
        yield provider


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with start_browser() as browser:
        yield browser


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def application(
    server: MerganserProcess, provider: OidcProvider
) -> AsyncIterator[OauthApplication]:
    async with server.open_client("root") as root:
        payload = await root.run_mutation(
            "identityProviderSet",
            {
                "domain": {"name": "example.org"},
                "issuer": provider.issuer,
                "clientId": "merganser",
                "clientSecret": SECRET,
            },
            "domain { identityProvider { issuer } }",
        )
        assert payload["domain"]["identityProvider"] == {"issuer": provider.issuer}
    async with run_application(server) as application:
        yield application


async def choose_organization(tab: OauthPage, address: str) -> None:
    """Enter an address, and go on to the provider of its domain."""
    await tab.page.get_by_label("Username or email address").fill(address)
    await tab.press("Sign in with your organization")


async def sign_in_at_provider(tab: OauthPage, account: str) -> None:
    """Fill in the forms of the provider."""
    await tab.page.locator("input[name=login]").fill(account)
    await tab.page.locator("input[name=password]").fill("any")
    await tab.page.locator("button[type=submit]").click()
    await tab.page.get_by_role("button", name="Continue").click()


@WITH_AND_WITHOUT_SCRIPTS
async def test_user_signs_in_at_the_organization(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, application)
        await tab.open()
        await choose_organization(tab, "ada")
        await tab.wait_for_alert("Enter your complete email address")
        await choose_organization(tab, "ada@example.org")
        await sign_in_at_provider(tab, "ada-1")
        await tab.page.get_by_text("You are signed in as ada.").wait_for()
        assert (await tab.allow_and_get_tokens())["access_token"]
        assert tab.faults == []


@WITH_AND_WITHOUT_SCRIPTS
async def test_account_of_another_domain_is_explained(
    browser: Browser, application: OauthApplication, profile: dict[str, Any]
) -> None:
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, application)
        await tab.open()
        await choose_organization(tab, "eve@example.org")
        await sign_in_at_provider(tab, "eve-1")
        await tab.wait_for_alert("There is no account for you here.")
        assert tab.faults == []
