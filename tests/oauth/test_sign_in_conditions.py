"""Parameters that say who must sign in: `prompt`, `max_age`, `login_hint`, `id_token_hint`."""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey

from mail.maintenance import housekeeping
from models.runtime.environment import Environment
from resolvers.oauth import signing_keys
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import (
    ISSUER,
    OauthBrowser,
    TestClient,
    add_client,
    location_parameters,
    set_password,
)

SIGN_IN, CONSENT = "Sign in", "Allow access?"


def claims_of(id_token: str) -> dict[str, Any]:
    """The claims of an ID token, without a check of its signature."""
    payload = id_token.split(".")[1]
    claims: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


@pytest.mark.parametrize(
    "prompt",
    [
        "login",
        "consent",
        "select_account",
        "login consent",
        "select_account login consent",
        "consent  consent ",
    ],
)
async def test_every_prompt_asks_for_sign_in_and_consent_although_a_grant_exists(
    browser: OauthBrowser, webmail: TestClient, prompt: str
) -> None:
    await browser.get_tokens(webmail)
    page = await browser.open(webmail, prompt=prompt)
    assert (page.status_code, SIGN_IN in page.text) == (200, True)
    consent = await browser.sign_in(page, "ada")
    assert (consent.status_code, CONSENT in consent.text) == (200, True)
    code = location_parameters(await browser.send(consent, choice="allow"))["code"]
    assert (await browser.request_tokens(webmail, code)).status_code == 200


WRONG_VALUES: list[tuple[dict[str, str | None], str]] = [
    ({"prompt": "none"}, "login_required"),
    ({"prompt": "none", "max_age": "0"}, "login_required"),
    ({"prompt": "none login"}, "invalid_request"),
    ({"prompt": "consent none"}, "invalid_request"),
    ({"prompt": "none none"}, "invalid_request"),
    ({"prompt": "create"}, "invalid_request"),
    ({"prompt": "login create"}, "invalid_request"),
    ({"prompt": "LOGIN"}, "invalid_request"),
    ({"prompt": "none", "max_age": "x"}, "invalid_request"),
    ({"max_age": "-1"}, "invalid_request"),
    ({"max_age": "1.5"}, "invalid_request"),
    ({"max_age": "٣"}, "invalid_request"),
    ({"max_age": "9" * 10}, "invalid_request"),
    ({"id_token_hint": "x"}, "invalid_request"),
    ({"id_token_hint": "a.b.c"}, "invalid_request"),
    ({"id_token_hint": "ü.ü.ü"}, "invalid_request"),
]


async def test_wrong_value_is_an_error_for_the_client(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(WRONG_VALUES):
        with case as (changes, error):
            parameters = location_parameters(await browser.open(webmail, **changes))
            assert (parameters["error"], parameters["state"]) == (error, "state 1")
            assert parameters["iss"] == ISSUER


async def test_discovery_names_the_prompts(browser: OauthBrowser) -> None:
    document = (await browser.http.get("/.well-known/openid-configuration")).json()
    assert document["prompt_values_supported"] == ["none", "login", "consent", "select_account"]


@pytest.mark.parametrize("max_age", ["0", "60", "999999999"])
async def test_id_token_has_the_time_of_the_new_sign_in(
    browser: OauthBrowser, webmail: TestClient, clock: ManualClock, max_age: str
) -> None:
    await browser.get_tokens(webmail)
    clock.tick(hours=2)
    tokens = await browser.get_tokens(webmail, max_age=max_age)
    assert claims_of(tokens["id_token"])["auth_time"] == int(clock().timestamp())


@pytest.mark.parametrize("days", [0, 1, 80, 180])
async def test_user_of_an_old_id_token_signs_in(
    browser: OauthBrowser,
    webmail: TestClient,
    environment: Environment,
    clock: ManualClock,
    days: int,
) -> None:
    """Also after the key that signed it was replaced."""
    token = (await browser.get_tokens(webmail))["id_token"]
    clock.tick(days=days)
    await signing_keys.load_or_create_signing_key(environment)
    await housekeeping.run_housekeeping_round(environment)
    other_client = await add_client(environment, "Other")
    page = await browser.open(other_client, id_token_hint=token)
    assert 'value="ada"' in page.text
    consent = await browser.sign_in(page, "ada")
    assert (consent.status_code, CONSENT in consent.text) == (200, True)


async def test_login_hint_is_shown_before_that_of_the_id_token(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    token = (await browser.get_tokens(webmail))["id_token"]
    page = await browser.open(webmail, id_token_hint=token, login_hint='a"da@example.org')
    assert 'value="a&quot;da@example.org"' in page.text


@pytest.mark.parametrize("begins_with_ada", [False, True])
async def test_other_user_than_that_of_the_id_token_is_refused(
    browser: OauthBrowser, webmail: TestClient, bob: GraphQLClient, begins_with_ada: bool
) -> None:
    await set_password(bob.environment, bob.user.id)
    token = (await browser.get_tokens(webmail))["id_token"]
    page = await browser.open(webmail, id_token_hint=token, prompt="login")
    if begins_with_ada:
        consent = await browser.sign_in(page, "ada")
        page = await browser.send(consent, choice="other")
    response = await browser.sign_in(page, bob.user.username)
    parameters = location_parameters(response)
    assert (parameters["error"], parameters["state"]) == ("login_required", "state 1")
    assert "code" not in parameters


async def test_forged_id_token_is_no_hint(
    browser: OauthBrowser, webmail: TestClient, environment: Environment
) -> None:
    token = (await browser.get_tokens(webmail))["id_token"]
    key = await signing_keys.load_or_create_signing_key(environment)
    claims, header = claims_of(token), {"alg": "ES256", "kid": key.kid}
    unsigned = urlsafe_b64encode(b'{"alg":"none"}').decode().rstrip("=")
    for forged in (
        token[:-8] + "AAAAAAAA",
        f"{unsigned}.{token.split('.')[1]}.",
        jwt.encode(header, claims, ECKey.generate_key("P-256")),
        jwt.encode({**header, "kid": "unknown"}, claims, key.private_key),
        jwt.encode({**header, "kid": "x\0"}, claims, key.private_key),
        jwt.encode({"alg": "ES256"}, claims, key.private_key),
        jwt.encode(header, {**claims, "iss": "https://other.example"}, key.private_key),
        jwt.encode(header, {**claims, "sub": None}, key.private_key),
    ):
        answer = location_parameters(await browser.open(webmail, id_token_hint=forged))
        assert answer["error"] == "invalid_request", forged
