"""Wrong, forged and late answers of identity providers."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from sqlalchemy import update
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from graph.oauth.texts.page_texts import ENGLISH
from models.identity_providers import IdentityProvider
from models.runtime.environment import Environment
from resolvers.identity_providers import provider_metadata
from tests.conftest import ManualClock
from tests.support.case_loop import each_case
from tests.support.identity_providers.scripted_provider import (
    ProviderEndpoint,
    ScriptedProvider,
    run_scripted_provider,
)
from tests.support.identity_providers.scripted_responses import (
    large_response,
    missing_response,
    slow_response,
)
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, set_public_url
from tests.support.oauth.provider_flow import (
    CLIENT_SECRET,
    add_provider,
    come_back,
    open_provider,
    sign_in_at_provider,
    tokens_by_provider,
)
from tests.support.time_limits import HANG_SECONDS

OTHER_ISSUER = "https://other.example"


@pytest.fixture(autouse=True)
async def _provider_of_domain(provider: ScriptedProvider, environment: Environment) -> None:
    await add_provider(environment, provider.issuer)


def forget_provider(environment: Environment, provider: ScriptedProvider) -> None:
    """Let the server ask the provider again, also after a failure."""
    provider_metadata.cache_of_database(environment.database).drop(provider.issuer)


def change_id_token(**claims: Any) -> Callable[[ScriptedProvider], None]:
    return lambda provider: provider.id_token_changes.update(claims)


def change_header(**header: Any) -> Callable[[ScriptedProvider], None]:
    return lambda provider: provider.id_token_header.update(header)


def change_claims(**claims: Any) -> Callable[[ScriptedProvider], None]:
    return lambda provider: provider.claims.update(claims)


def sign_with_unpublished_key(provider: ScriptedProvider) -> None:
    provider.rotate_keys(publish_new=False)


def leave_out_id_token(provider: ScriptedProvider) -> None:
    provider.token_changes["id_token"] = None


def send_other_userinfo(provider: ScriptedProvider) -> None:
    """The ID token lacks the address, so the server asks the userinfo endpoint."""
    provider.id_token_changes["email"] = None
    provider.userinfo_changes |= {"sub": "eve-1", "email": "ada@example.org"}


WRONG_TOKENS: list[Callable[[ScriptedProvider], None]] = [
    change_header(alg="none"),
    change_header(alg="HS256"),
    sign_with_unpublished_key,
    leave_out_id_token,
    send_other_userinfo,
    change_id_token(nonce="another"),
    change_id_token(nonce=None),
    change_id_token(iss=OTHER_ISSUER),
    change_id_token(aud="another-client"),
    change_id_token(aud=["merganser", "another-client"]),
    change_id_token(azp="another-client"),
    change_id_token(exp=None),
    change_id_token(exp=1),
    change_id_token(iat=None),
    change_id_token(iat=1 << 40),
    change_id_token(exp="tomorrow"),
    change_claims(sub=None),
    change_claims(sub=""),
    change_claims(sub="x" * 256),
    change_claims(sub="a\0b"),
    change_claims(sub=7),
]


async def test_wrong_tokens_are_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    for case in each_case(WRONG_TOKENS):
        with case as change:
            provider.reset()
            change(provider)
            page = await sign_in_at_provider(browser, webmail, provider)
            assert page.status_code == 502, page.text
            assert "location" not in page.headers
    provider.reset()
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200


# for each case: the claim, and its distance from now in seconds
CLAIM_OFFSETS: list[tuple[str, int]] = [
    ("exp", -55),
    ("exp", -65),
    ("iat", 55),
    ("iat", 65),
    ("nbf", 55),
    ("nbf", 65),
]


async def test_clocks_can_differ_by_a_minute(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    for case in each_case(CLAIM_OFFSETS):
        with case as (claim, offset):
            provider.id_token_changes = {claim: int(provider.now()) + offset}
            status = 200 if abs(offset) <= 60 else 502
            page = await sign_in_at_provider(browser, webmail, provider)
            assert page.status_code == status


@pytest.mark.parametrize("algorithm", ["RS256", "ES256"])
async def test_keys_can_rotate_during_a_sign_in(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    algorithm: str,
) -> None:
    url = await open_provider(browser, webmail)  # reads the keys
    provider.rotate_keys(algorithm, publish_old=False)
    page = await come_back(browser, await provider.sign_in(url))
    assert page.status_code == 200
    assert len(provider.requests_to(ProviderEndpoint.JWKS)) == 2


async def test_unknown_keys_do_not_cause_requests_without_limit(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    sign_with_unpublished_key(provider)
    for _ in range(4):
        await sign_in_at_provider(browser, webmail, provider)
    assert len(provider.requests_to(ProviderEndpoint.JWKS)) == 2


# for each case: the changed parameters of the redirect, and the status of the page
WRONG_RESPONSES: list[tuple[dict[str, str | None], int]] = [
    ({"iss": OTHER_ISSUER}, 502),
    ({"iss": None}, 502),  # the provider says that it sends it
    ({"code": None}, 502),
    ({"code": None, "error": "access_denied"}, 403),
    ({"code": None, "error": "server_error"}, 502),
    ({"state": None}, 400),
    ({"state": "forged"}, 400),
]


async def test_wrong_responses_are_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    for case in each_case(WRONG_RESPONSES):
        with case as (parameters, status):
            url = await open_provider(browser, webmail)
            page = await come_back(browser, await provider.sign_in(url, "ada", **parameters))
            assert page.status_code == status, page.text
            assert page.headers["cache-control"] == "no-store"
            assert not provider.requests_to(ProviderEndpoint.TOKEN)


async def test_response_needs_the_cookie_of_its_browser(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    callback_url = await provider.sign_in(await open_provider(browser, webmail))
    browser.http.cookies.clear()
    page = await come_back(browser, callback_url)
    assert (page.status_code, ENGLISH.no_cookie in page.text) == (400, True)
    await browser.open(webmail)  # another browser
    assert (await come_back(browser, callback_url)).status_code == 400


async def test_sign_in_expires(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, clock: ManualClock
) -> None:
    url = await open_provider(browser, webmail)
    clock.tick(minutes=15)
    assert (await come_back(browser, await provider.sign_in(url))).status_code == 400


async def test_code_of_a_response_is_used_once(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    """A page that is loaded again sends no code again: a provider would revoke the tokens."""
    callback_url = await provider.sign_in(await open_provider(browser, webmail))
    assert (await come_back(browser, callback_url)).status_code == 200
    assert (await come_back(browser, callback_url)).status_code == 400
    assert len(provider.requests_to(ProviderEndpoint.TOKEN)) == 1


async def test_two_tabs_sign_in_at_the_same_time(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    urls = [await open_provider(browser, webmail, state=f"tab {tab}") for tab in range(2)]
    pages = [await come_back(browser, await provider.sign_in(url)) for url in urls]
    assert [page.status_code for page in pages] == [200, 200]


async def test_form_of_a_page_is_no_response_of_a_provider(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    """The states of pages and of requests to providers can't be exchanged."""
    url = await open_provider(browser, webmail)
    state = dict(parse_qsl(urlsplit(url).query))["state"]
    refused = await browser.http.post(
        "/oauth/authorize", data={"state": state, "choice": "allow"}, headers=browser.headers
    )
    assert refused.status_code == 400
    page = await browser.open(webmail)
    page_state = page.text.split('name="state" value="')[1].split('"')[0]
    callback_url = await provider.sign_in(url, state=page_state)
    assert (await come_back(browser, callback_url)).status_code == 400


async def test_mix_up_of_two_providers_is_refused(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    root: Any,
) -> None:
    """An answer for one provider is not accepted at the redirect URI of another one."""
    await root('mutation { domainCreate(input: {name: "evil.example"}) { errors { message } } }')
    async with run_scripted_provider(now=provider.now) as evil:
        evil.discovery_changes["authorization_response_iss_parameter_supported"] = False
        await add_provider(environment, evil.issuer, "evil.example")
        url = await open_provider(browser, webmail, "eve@evil.example")
        callback_url = await provider.sign_in(url, iss=None)
        for changed in (
            callback_url.replace("evil.example", "example.org"),
            callback_url.replace("evil.example", "unknown.example"),
        ):
            assert (await come_back(browser, changed)).status_code == 400
        assert not evil.requests_to(ProviderEndpoint.TOKEN)


FAILED_RESPONSES: list[ASGIApp] = [
    large_response(),
    large_response(has_content_length=False),
    Response(status_code=500),
    Response("<html>"),
    Response('["no object"]'),
    Response(status_code=302, headers={"location": "http://127.0.0.1/"}),
    JSONResponse({"error": "invalid_client", "error_description": CLIENT_SECRET}, 401),
]


async def test_failures_of_the_provider_are_named_and_not_repeated(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
) -> None:
    for case in each_case(product(ProviderEndpoint, FAILED_RESPONSES)):
        with case as (endpoint, response):
            forget_provider(environment, provider)
            provider.reset()
            provider.requests.clear()
            provider.id_token_changes["email"] = None  # so that userinfo is read
            provider.responses[endpoint] = response
            page = await browser.open(webmail)
            page = await browser.send(page, username="ada@example.org", choice="organization")
            if page.status_code == 200:
                url = page.headers["refresh"].removeprefix("0; url=")
                page = await come_back(browser, await provider.sign_in(url))
            assert page.status_code == 502
            assert "organization failed" in page.text
            assert CLIENT_SECRET not in page.text
            assert provider.requests_to(endpoint)
    forget_provider(environment, provider)
    provider.reset()
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200


@pytest.mark.parametrize("response", [missing_response(), slow_response(b"{}" * 5000)])
async def test_silent_provider_is_given_up(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    monkeypatch: pytest.MonkeyPatch,
    response: ASGIApp,
) -> None:
    policy = provider_metadata.network_policy

    def impatient_policy(environment: Environment) -> Any:
        return replace(policy(environment), timeout_seconds=0.5)

    monkeypatch.setattr(provider_metadata, "network_policy", impatient_policy)
    provider.responses[ProviderEndpoint.DISCOVERY] = response
    async with asyncio.timeout(HANG_SECONDS):
        page = await browser.open(webmail)
        page = await browser.send(page, username="ada@example.org", choice="organization")
    assert page.status_code == 502
    assert "did not respond" in page.text


async def test_signed_in_users_stay_signed_in_if_the_provider_is_down(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    clock: ManualClock,
) -> None:
    tokens = await tokens_by_provider(browser, webmail, provider)
    clock.tick(minutes=11)
    provider.responses = dict.fromkeys(ProviderEndpoint, Response(status_code=503))
    page = await sign_in_at_provider(browser, webmail, provider)  # the metadata is still cached
    assert page.status_code == 502
    provider_metadata.cache_of_database(environment.database).by_issuer.clear()
    provider.requests.clear()
    clock.tick(seconds=16)
    for _ in range(3):  # the failure is remembered for a moment
        page = await browser.open(webmail)
        page = await browser.send(page, username="ada@example.org", choice="organization")
        assert (page.status_code, "status 503" in page.text) == (502, True)
    assert len(provider.requests) == 1
    assert await browser.is_accepted(tokens["access_token"])
    assert (await browser.refresh(webmail, tokens["refresh_token"])).status_code == 200


WRONG_METADATA: list[dict[str, object]] = [
    {"issuer": OTHER_ISSUER},
    {"issuer": None},
    {"authorization_endpoint": "javascript:alert(1)"},
    {"authorization_endpoint": None},
    {"token_endpoint": "ftp://127.0.0.1/token"},
    {"token_endpoint": 5},
    {"jwks_uri": "http://[::1"},
    {"jwks_uri": "/jwks"},
]


async def test_wrong_metadata_is_refused(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
) -> None:
    for case in each_case(WRONG_METADATA):
        with case as changes:
            forget_provider(environment, provider)
            provider.discovery_changes = changes
            page = await browser.open(webmail)
            page = await browser.send(page, username="ada@example.org", choice="organization")
            assert (page.status_code, "javascript" in page.text) == (502, False)
    forget_provider(environment, provider)
    provider.reset()
    assert (await sign_in_at_provider(browser, webmail, provider)).status_code == 200


def forbid_private_networks(environment: Environment) -> None:
    set_public_url(environment, identity_providers_allow_private_networks=False)


async def test_discovery_in_private_networks_is_refused(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
) -> None:
    forbid_private_networks(environment)
    page = await browser.open(webmail)
    page = await browser.send(page, username="ada@example.org", choice="organization")
    assert (page.status_code, "private network" in page.text) == (502, True)
    assert not provider.requests


@pytest.mark.parametrize("endpoint", [ProviderEndpoint.TOKEN, ProviderEndpoint.JWKS])
async def test_endpoints_in_private_networks_are_refused(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    environment: Environment,
    endpoint: ProviderEndpoint,
) -> None:
    """The metadata is cached when the setting changes, so only later requests are refused."""
    url = await open_provider(browser, webmail)
    if endpoint is ProviderEndpoint.JWKS:
        provider_metadata.cache_of_database(environment.database).by_issuer.clear()
    count = len(provider.requests)
    forbid_private_networks(environment)
    page = await come_back(browser, await provider.sign_in(url))
    assert (page.status_code, "private network" in page.text) == (502, True)
    assert len(provider.requests) == count


async def test_concurrent_requests_read_the_metadata_once(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    pages = [await browser.open(webmail) for _ in range(10)]
    sent = (browser.send(page, username="ada@example.org", choice="organization") for page in pages)
    assert {page.status_code for page in await asyncio.gather(*sent)} == {200}
    assert len(provider.requests_to(ProviderEndpoint.DISCOVERY)) == 1


async def test_provider_that_was_replaced_during_a_sign_in_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, environment: Environment
) -> None:
    callback_url = await provider.sign_in(await open_provider(browser, webmail))
    async with environment.write_session() as session:
        statement = update(IdentityProvider).values(client_id="another")
        await (await session.connection()).execute(statement)
    assert (await come_back(browser, callback_url)).status_code == 400
    assert not provider.requests_to(ProviderEndpoint.TOKEN)
