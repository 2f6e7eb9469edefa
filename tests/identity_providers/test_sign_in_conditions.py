"""The conditions of a client about the sign-in, at an identity provider: `prompt` and `max_age`."""

import json
from base64 import urlsafe_b64decode
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
from sqlalchemy import update

from models.identity_providers import IdentityProvider
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.identity_providers.scripted_provider import ScriptedProvider
from tests.support.oauth.oauth_flow import OauthBrowser, TestClient, location_parameters
from tests.support.oauth.provider_flow import (
    add_provider,
    come_back,
    open_provider,
    provider_url,
    tokens_by_provider,
)


@pytest.fixture(autouse=True)
async def _provider_of_domain(provider: ScriptedProvider, environment: Environment) -> None:
    await add_provider(environment, provider.issuer)


def query_of(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def auth_time_of(id_token: str) -> int:
    payload = id_token.split(".")[1]
    claims = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return int(claims["auth_time"])


async def sign_in_again(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, **parameters: str
) -> httpx.Response:
    """Sign in at the provider with these parameters, and return the next page."""
    url = await open_provider(browser, webmail, **parameters)
    return await come_back(browser, await provider.sign_in(url, "ada"))


# for each case: the parameters of the client, and those that the provider gets
CONDITIONS: list[tuple[dict[str, str], dict[str, str]]] = [
    ({}, {}),
    ({"prompt": "consent"}, {}),
    ({"prompt": "login"}, {"prompt": "login"}),
    ({"prompt": "select_account consent"}, {"prompt": "select_account"}),
    ({"prompt": "select_account login"}, {"prompt": "login select_account"}),
    ({"max_age": "0"}, {"max_age": "0"}),
    ({"prompt": "login", "max_age": "600"}, {"prompt": "login", "max_age": "600"}),
]


async def test_conditions_are_sent_to_the_provider(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(CONDITIONS):
        with case as (sent, forwarded):
            query = query_of(await open_provider(browser, webmail, **sent))
            names = {"prompt", "max_age", "id_token_hint"}
            assert {name: query[name] for name in names & set(query)} == forwarded


async def test_conditions_are_sent_to_a_provider_that_the_domain_requires(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    async with environment.write_session() as session:
        required = update(IdentityProvider).values(password_sign_in_allowed=False)
        await (await session.connection()).execute(required)
    page = await browser.open(webmail, prompt="login", max_age="60")
    query = query_of(provider_url(await browser.sign_in(page, "ada")))
    assert (query["prompt"], query["max_age"]) == ("login", "60")


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [
        ({}, 7200),
        ({"prompt": "select_account"}, 7200),
        ({"max_age": "600"}, 590),
        ({"max_age": "600"}, 659),  # the clocks can differ by a minute
        ({"prompt": "login"}, 0),
    ],
)
async def test_id_token_has_the_time_of_the_sign_in_at_the_provider(
    browser: OauthBrowser,
    webmail: TestClient,
    provider: ScriptedProvider,
    parameters: dict[str, str],
    seconds: int,
) -> None:
    auth_time = int(provider.now()) - seconds
    provider.id_token_changes = {"auth_time": auth_time}
    page = await sign_in_again(browser, webmail, provider, **parameters)
    code = location_parameters(await browser.send(page, choice="allow"))["code"]
    tokens = (await browser.request_tokens(webmail, code)).json()
    assert auth_time_of(tokens["id_token"]) == auth_time


# for each case: the parameters of the client, and the seconds since the sign-in, or no time
OLD_SIGN_INS: list[tuple[dict[str, str], int | None]] = [
    ({"max_age": "600"}, 661),
    ({"max_age": "0"}, 61),
    ({"max_age": "600"}, None),
    ({"prompt": "login"}, 61),
    ({"prompt": "login", "max_age": "600"}, 61),
]


async def test_old_sign_in_at_the_provider_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    for case in each_case(OLD_SIGN_INS):
        with case as (parameters, seconds):
            provider.reset()
            if seconds is not None:
                provider.id_token_changes["auth_time"] = int(provider.now()) - seconds
            page = await sign_in_again(browser, webmail, provider, **parameters)
            assert page.status_code == 502
            assert "sign" in page.text
    provider.id_token_changes = {"auth_time": int(provider.now())}
    page = await sign_in_again(browser, webmail, provider, prompt="login")
    assert page.status_code == 200


async def test_provider_that_tells_no_time_is_trusted_to_ask_again(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, clock: ManualClock
) -> None:
    page = await sign_in_again(browser, webmail, provider, prompt="login")
    code = location_parameters(await browser.send(page, choice="allow"))["code"]
    tokens = (await browser.request_tokens(webmail, code)).json()
    assert auth_time_of(tokens["id_token"]) == int(clock().timestamp())


WRONG_TIMES: list[object] = ["1", True, -1, 1e300, [1], {}, 10**12]


async def test_wrong_sign_in_time_is_refused(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    for case in each_case(WRONG_TIMES):
        with case as auth_time:
            provider.id_token_changes = {"auth_time": auth_time}
            assert (await sign_in_again(browser, webmail, provider)).status_code == 502
    provider.id_token_changes = {"auth_time": int(provider.now())}
    assert (await sign_in_again(browser, webmail, provider)).status_code == 200


async def test_user_of_the_hint_signs_in_at_the_provider(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider
) -> None:
    token = (await tokens_by_provider(browser, webmail, provider))["id_token"]
    consent = await sign_in_again(browser, webmail, provider, id_token_hint=token)
    assert consent.status_code == 200


async def test_other_user_than_that_of_the_hint_is_refused_after_the_provider(
    browser: OauthBrowser, webmail: TestClient, provider: ScriptedProvider, bob: GraphQLClient
) -> None:
    token = (await browser.get_tokens(webmail))["id_token"]
    page = await browser.open(webmail, id_token_hint=token)
    url = provider_url(await browser.send(page, username="ada@example.org", choice="organization"))
    provider.claims |= {"sub": "bob-1", "email": f"{bob.user.username}@example.org"}
    response = await come_back(browser, await provider.sign_in(url, "bob"))
    assert location_parameters(response)["error"] == "login_required"
