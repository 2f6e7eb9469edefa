"""Tests of the sign-in at an organization in a browser, with a real identity provider."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser
from starlette.responses import Response

from bench.servers.ports import HOST, free_port
from tests.support.clients.browser_driver import picture_folder
from tests.support.identity_providers.oidc_provider_server import OidcProvider, run_oidc_provider
from tests.support.identity_providers.scripted_provider import (
    ProviderEndpoint,
    ScriptedProvider,
    run_scripted_provider,
)
from tests.support.oauth.pages_in_browser import (
    PICTURE_PROFILE,
    OauthApplication,
    OauthPage,
    create_client,
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
async def application(
    server: MerganserProcess, provider: OidcProvider
) -> AsyncIterator[OauthApplication]:
    await set_provider(server, "example.org", provider.issuer)
    async with run_application(server) as application:
        yield application


async def set_provider(
    server: MerganserProcess, domain: str, issuer: str, *, creates_users: bool = False
) -> None:
    """Set the provider of a domain."""
    async with server.open_client("root") as root:
        payload = await root.run_mutation(
            "identityProviderSet",
            {
                "domain": {"name": domain},
                "issuer": issuer,
                "clientId": "merganser",
                "clientSecret": SECRET,
                "userCreationAllowed": creates_users,
            },
            "domain { identityProvider { issuer } }",
        )
    assert payload["domain"]["identityProvider"] == {"issuer": issuer}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def unreachable_domain(server: MerganserProcess) -> str:
    """A domain with a provider that can't be reached."""
    async with server.open_client("root") as root:
        await root.run_mutation("domainCreate", {"name": "down.example"})
    await set_provider(server, "down.example", f"http://{HOST}:{free_port()}")
    return "down.example"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scripted(server: MerganserProcess) -> AsyncIterator[ScriptedProvider]:
    """The provider of the domain scripted.example."""
    async with server.open_client("root") as root:
        await root.run_mutation("domainCreate", {"name": "scripted.example"})
    async with run_scripted_provider() as scripted:
        scripted.claims |= {"sub": "bob-1", "email": "bob@scripted.example", "name": "Bob"}
        await set_provider(server, "scripted.example", scripted.issuer, creates_users=True)
        yield scripted


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


async def sign_in_again(tab: OauthPage) -> None:
    """Follow the link of an error page to the sign-in page."""
    await tab.wait_for_title("This does not work")
    await tab.page.get_by_role("link", name="Sign in", exact=True).click()
    await tab.wait_for_title("Sign in")


@WITH_AND_WITHOUT_SCRIPTS
async def test_unreachable_provider_is_explained_and_the_password_is_a_way_out(
    browser: Browser,
    application: OauthApplication,
    unreachable_domain: str,
    profile: dict[str, Any],
) -> None:
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, application)
        await tab.open(state="of the application")
        await choose_organization(tab, f"dora@{unreachable_domain}")
        await tab.wait_for_alert(
            "The sign-in at your organization failed: discovery: The connection failed. "
            "Ask your administrator."
        )
        await sign_in_again(tab)
        await tab.sign_in("ada")
        await tab.wait_for_title("Allow access?")
        await tab.press("Allow")
        parameters = await tab.wait_for_callback()
        assert parameters["state"] == "of the application"
        assert (await application.request_tokens(parameters["code"])).status_code == 200
        assert tab.faults == []


@WITH_AND_WITHOUT_SCRIPTS
async def test_failure_after_the_return_from_the_provider_is_explained_until_it_works(
    browser: Browser,
    application: OauthApplication,
    scripted: ScriptedProvider,
    profile: dict[str, Any],
) -> None:
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, application)
        await tab.open()
        await choose_organization(tab, "bob@scripted.example")
        await come_back_from_provider(tab, scripted, Response(status_code=503))
        await tab.wait_for_alert("token: the provider answered with status 503 and without JSON.")
        await sign_in_again(tab)
        await choose_organization(tab, "bob@scripted.example")
        await come_back_from_provider(tab, scripted, None)
        assert (await tab.allow_and_get_tokens())["access_token"]
        assert tab.faults == []


async def come_back_from_provider(
    tab: OauthPage, provider: ScriptedProvider, token_response: Response | None
) -> None:
    """Follow the redirect of the provider, whose token endpoint sends a response of the test."""
    provider.responses.clear()
    if token_response is not None:
        provider.responses[ProviderEndpoint.TOKEN] = token_response
    await tab.page.wait_for_url(f"{provider.issuer}/**")
    await tab.page.goto(await provider.sign_in(tab.page.url))


async def test_pages_have_pictures_in_the_docs(
    browser: Browser,
    application: OauthApplication,
    server: MerganserProcess,
    unreachable_domain: str,
    tmp_path: Path,
) -> None:
    folder = picture_folder(tmp_path)
    client = await create_client(server, redirect_uri="https://webmail.example.com/callback")
    profile = {**PICTURE_PROFILE, "viewport": {"width": 480, "height": 500}}
    async with open_profile(browser, **profile) as context:
        tab = await new_oauth_page(context, replace(application, client=client))
        await tab.open(login_hint="ada@example.org")
        await tab.save_picture(folder / "signin-organization.png")
        await choose_organization(tab, f"ada@{unreachable_domain}")
        await tab.wait_for_title("This does not work")
        await tab.save_picture(folder / "signin-error.png")
