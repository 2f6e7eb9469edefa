"""The sign-in, second-factor and consent pages: cookies, tabs, frames, throttling and languages."""

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.app import create_app
from graph.http.graphql_endpoint import EndpointSettings
from graph.oauth.texts.languages import TEXTS_BY_LANGUAGE, texts_for_browser
from graph.oauth.texts.page_texts import ENGLISH
from mail.maintenance import housekeeping
from models.auth.credentials import AccessToken
from models.auth.security_log import SecurityEvent, SecurityEventAction, SecurityEventResult
from models.oauth.tables import OauthClient, OauthGrant, OauthScope
from models.store.columns import core_table
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.auth.second_factors import totp
from resolvers.auth.security_message_texts import TEXTS_BY_LANGUAGE as MESSAGE_LANGUAGES
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts import authenticators
from tests.support.oauth.oauth_flow import (
    ISSUER,
    PASSWORD,
    OauthBrowser,
    TestClient,
    add_client,
    authorization_parameters,
    location_parameters,
    state_of,
)

SECRET = b"k" * 20


async def turn_on_totp(client: GraphQLClient) -> list[str]:
    """Turn on TOTP for a user and return the recovery codes."""
    setup = await client("mutation { totpSetup(input: {}) { secret errors { message } } }")
    secret = totp.decode_secret(setup["totpSetup"]["secret"])
    code = totp.code_at(secret, totp.step_at(client.environment.now()))
    payload = await client(
        "mutation ($code: String!) { totpEnable(input: {token: $code}) { recoveryCodes errors "
        "{ message } } }",
        code=code,
    )
    codes: list[str] = payload["totpEnable"]["recoveryCodes"]
    return [secret.hex(), *codes]


def assert_safe_headers(response: httpx.Response) -> None:
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert response.headers["x-frame-options"] == "DENY"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] in ("same-origin", "no-referrer")


async def test_pages_can_not_be_framed_or_cached(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    page = await browser.open(webmail)
    consent = await browser.sign_in(page, "ada")
    for response in (page, consent, await browser.open(webmail, client_id="unknown")):
        assert_safe_headers(response)
    for response in (page, consent):
        assert "form-action 'self' https://app.example.com;" in (
            response.headers["content-security-policy"] + ";"
        )
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("__Host-merganser_oauth=")
    for attribute in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
        assert attribute in cookie


async def test_names_are_escaped(browser: OauthBrowser, environment: Any) -> None:
    client = await add_client(environment, "Evil")
    async with environment.write_session() as session:
        await (await session.connection()).execute(update(OauthClient).values(name="<b>Evil"))
    page = await browser.open(client, login_hint='"><script>alert(1)</script>')
    assert "<b>Evil" not in page.text
    assert "<script>alert" not in page.text
    assert '"><script>' in unescape(page.text)


async def test_wrong_password_shows_the_page_again(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    page = await browser.open(webmail)
    for username in ("ada", "nobody", "x" * 1000, "ada\0"):
        again = await browser.sign_in(page, username, "wrong")
        assert again.status_code == 403
        assert ENGLISH.wrong_password in again.text
    assert (await browser.sign_in(again, "ada")).status_code == 200
    await authentication.wait_for_background_tasks(ada.environment)
    failures = select(col(SecurityEvent.id)).where(
        col(SecurityEvent.action) == SecurityEventAction.SIGN_IN_ATTEMPTED,
        col(SecurityEvent.result) == SecurityEventResult.FAILURE,
        col(SecurityEvent.user_id) == ada.user.id,
    )
    assert await ada.environment.database.read(failures)


async def test_too_many_attempts_are_throttled(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    page = await browser.open(webmail)
    for _ in range(ada.environment.options.sign_in_max_failures):
        await browser.sign_in(page, "ada", "wrong")
    refused = await browser.sign_in(page, "ada")
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    assert_safe_headers(refused)


async def test_form_needs_the_cookie_of_its_browser(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    page = await browser.open(webmail)
    cookies = dict(browser.http.cookies)
    browser.http.cookies.clear()
    refused = await browser.sign_in(page, "ada")
    assert (refused.status_code, ENGLISH.no_cookie in refused.text) == (400, True)
    await browser.open(webmail)  # another browser
    assert dict(browser.http.cookies) != cookies
    refused = await browser.sign_in(page, "ada")
    assert refused.status_code == 400
    assert "another browser" not in refused.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ISSUER + ".evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": ISSUER},
    ],
)
async def test_form_of_another_site_is_refused(
    browser: OauthBrowser, webmail: TestClient, headers: dict[str, str]
) -> None:
    page = await browser.open(webmail)
    browser.headers = headers
    assert (await browser.sign_in(page, "ada")).status_code == 403


async def test_two_tabs_work_at_the_same_time(browser: OauthBrowser, webmail: TestClient) -> None:
    first = await browser.open(webmail, state="one")
    second = await browser.open(webmail, state="two")
    first_consent = await browser.sign_in(first, "ada")
    second_consent = await browser.sign_in(second, "ada")
    for consent, state in ((first_consent, "one"), (second_consent, "two")):
        answer = location_parameters(await browser.send(consent, choice="allow"))
        assert answer["state"] == state
        assert (await browser.request_tokens(webmail, answer["code"])).status_code == 200


async def test_consent_page_works_once(browser: OauthBrowser, webmail: TestClient) -> None:
    page = await browser.open(webmail)
    consent = await browser.sign_in(page, "ada")
    await browser.send(consent, choice="allow")
    again = await browser.send(consent, choice="allow")  # after the back button
    assert (again.status_code, "location" in again.headers) == (400, False)
    assert unescape(ENGLISH.page_expired) in unescape(again.text)


async def test_page_expires(browser: OauthBrowser, webmail: TestClient, clock: ManualClock) -> None:
    page = await browser.open(webmail)
    clock.tick(minutes=15)
    assert (await browser.sign_in(page, "ada")).status_code == 400


async def test_consent_ends_with_a_new_password(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(auth_version=9)
        await (await session.connection()).execute(statement)
    assert (await browser.send(consent, choice="allow")).status_code == 400


END_OF_TOKENS = {
    "accessTokenRevoke": "mutation { accessTokenRevoke(input: {all: true}) { revokedCount } }",
    "sessionTerminate": 'mutation { sessionTerminate(input: {users: {usernames: ["ada"]}, '
    "revokeTokens: true}) { errors { code } } }",
    "password": 'mutation { userUpdate(input: {users: {usernames: ["ada"]}, '
    'set: {password: "another good pass phrase"}}) { errors { code } } }',
    "suspension": 'mutation { userUpdate(input: {users: {usernames: ["ada"]}, '
    "set: {suspended: true}}) { errors { code } } }",
}


@pytest.mark.parametrize("event", END_OF_TOKENS)
async def test_consent_page_ends_with_the_tokens_of_the_user(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, root: GraphQLClient, event: str
) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    await (ada if event == "accessTokenRevoke" else root)(END_OF_TOKENS[event])
    refused = await browser.send(consent, choice="allow")
    assert (refused.status_code, "location" in refused.headers) == (400, False)
    assert not await ada.environment.database.read(select(core_table(OauthGrant)))


async def test_second_factor_page_ends_with_the_tokens_of_the_user(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    _, first_code, second_code, *_ = await turn_on_totp(ada)
    page = await browser.sign_in(await browser.open(webmail), "ada")
    await ada(END_OF_TOKENS["accessTokenRevoke"])
    assert (await browser.send(page, code=first_code)).status_code == 400
    page = await browser.sign_in(await browser.open(webmail), "ada")
    assert (await browser.send(page, code=second_code)).status_code == 200


async def test_sign_in_on_a_page_ends_after_ten_minutes(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    clock.tick(minutes=10)
    assert (await browser.send(consent, choice="allow")).status_code == 400
    await housekeeping.run_housekeeping_round(ada.environment)
    assert not await ada.environment.database.read(select(core_table(AccessToken)))


async def test_forged_state_is_refused(browser: OauthBrowser, webmail: TestClient) -> None:
    page = await browser.open(webmail)
    text = state_of(page)
    for state in ("", "x", text[:-4] + "AAAA", text[::-1], "x" * 13_000):
        response = await browser.http.post(
            "/oauth/authorize",
            data={"state": state, "choice": "allow"},
            headers=browser.headers,
        )
        assert response.status_code == 400
    response = await browser.send(page, choice="allow")  # a sign-in page gives no consent
    assert response.status_code == 403


async def test_second_factor_is_asked_for(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    secret, *recovery_codes = await turn_on_totp(ada)
    page = await browser.sign_in(await browser.open(webmail), "ada")
    assert ENGLISH.code_hint in page.text
    assert "Allow" not in page.text
    for wrong in ({"code": "000000"}, {}, {"webauthn": "{}"}, {"webauthn": "["}):
        again = await browser.send(page, **wrong)
        assert (again.status_code, ENGLISH.wrong_code in again.text) == (403, True)
    assert (await browser.send(page, choice="allow")).status_code == 403  # no way around it
    clock.tick(seconds=60)
    code = totp.code_at(bytes.fromhex(secret), totp.step_at(clock()))
    consent = await browser.send(page, code=code)
    assert "code" in location_parameters(await browser.send(consent, choice="allow"))
    page = await browser.sign_in(await browser.open(webmail), "ada")
    assert (await browser.send(page, code=code)).status_code == 403  # used
    consent = await browser.send(page, code=recovery_codes[0])
    assert "code" in location_parameters(await browser.send(consent, choice="allow"))


async def test_wrong_second_factors_are_throttled_and_logged(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    _, recovery_code, *_ = await turn_on_totp(ada)
    page = await browser.sign_in(await browser.open(webmail), "ada")
    for _ in range(ada.environment.options.sign_in_max_failures):
        assert (await browser.send(page, code="000000")).status_code == 403
    refused = await browser.send(page, code=recovery_code)
    assert (refused.status_code, int(refused.headers["retry-after"]) > 0) == (429, True)
    failures = select(col(SecurityEvent.id)).where(
        col(SecurityEvent.action) == SecurityEventAction.TOTP_CHECKED,
        col(SecurityEvent.result) == SecurityEventResult.FAILURE,
        col(SecurityEvent.user_id) == ada.user.id,
    )
    assert await ada.environment.database.read(failures)


async def test_security_key_is_a_second_factor(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient
) -> None:
    authenticator = await authenticators.register_security_key(ada)
    page = await browser.sign_in(await browser.open(webmail), "ada")
    assert "<script>" in page.text
    match = re.search(r'data-options="([^"]*)"', page.text)
    assert match is not None
    response = authenticator.create_assertion(json.loads(unescape(match[1])))
    wrong = {**response, "response": {**response["response"], "signature": "AAAA"}}
    again = await browser.send(page, webauthn=json.dumps(wrong))
    assert again.status_code == 403
    match = re.search(r'data-options="([^"]*)"', again.text)
    assert match is not None
    response = authenticator.create_assertion(json.loads(unescape(match[1])))
    consent = await browser.send(again, webauthn=json.dumps(response))
    assert "code" in location_parameters(await browser.send(consent, choice="allow"))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"webmail_access": False}, ENGLISH.access_not_allowed),
        ({"password_change_required": True}, ENGLISH.password_change_required),
    ],
)
async def test_account_that_may_not_get_tokens_is_refused(
    browser: OauthBrowser,
    webmail: TestClient,
    ada: GraphQLClient,
    columns: dict[str, Any],
    text: str,
) -> None:
    async with ada.environment.write_session() as session:
        statement = update(User).where(col(User.id) == ada.user.id).values(columns)
        await (await session.connection()).execute(statement)
    response = await browser.sign_in(await browser.open(webmail), "ada")
    assert (response.status_code, text in unescape(response.text)) == (403, True)


async def test_too_large_form_is_refused(browser: OauthBrowser, webmail: TestClient) -> None:
    page = await browser.open(webmail)
    response = await browser.send(page, username="x" * 17_000)
    assert response.status_code == 413
    assert_safe_headers(response)


async def test_authorization_endpoint_has_no_cors_headers(
    browser: OauthBrowser, webmail: TestClient, ada: GraphQLClient, tmp_path: Path
) -> None:
    page_origin = "https://spa.example"
    settings = EndpointSettings(allowed_origins=(page_origin,))
    app = create_app(ada.environment, spool_folder=tmp_path, settings=settings)
    transport = httpx.ASGITransport(app=app)
    headers = {"Origin": page_origin, "Access-Control-Request-Method": "POST"}
    allow = "access-control-allow-origin"
    async with httpx.AsyncClient(transport=transport, base_url=ISSUER, headers=headers) as http:
        browser.http = http
        assert allow not in (await browser.open(webmail)).headers
        assert allow not in (await http.options("/oauth/authorize")).headers
        assert (await http.options("/oauth/token")).headers[allow] == page_origin
    await app.end_subscriptions()


async def test_redirects_after_a_form_have_status_303(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    """The browser follows with GET, and sends no password to the client."""
    for choice in ("allow", "deny"):
        consent = await browser.sign_in(await browser.open(webmail), "ada")
        response = await browser.send(consent, choice=choice, password=PASSWORD)
        assert response.status_code == 303
        assert response.headers["location"].startswith(webmail.redirect_uri)
    response = await browser.http.post(
        "/oauth/authorize", data=authorization_parameters(webmail, password=PASSWORD)
    )
    assert response.status_code == 303


async def test_other_account_begins_again(browser: OauthBrowser, webmail: TestClient) -> None:
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    page = await browser.send(consent, choice="other")
    assert 'name="password"' in page.text


def test_texts_exist_in_the_languages_of_system_messages() -> None:
    assert set(TEXTS_BY_LANGUAGE) == set(MESSAGE_LANGUAGES)
    placeholder = re.compile(r"{\w+}")
    for texts in TEXTS_BY_LANGUAGE.values():
        assert set(texts.scopes) == set(OauthScope)
        for name in ENGLISH.__slots__:
            value, english = getattr(texts, name), getattr(ENGLISH, name)
            if isinstance(value, str):
                assert value
                assert placeholder.findall(value) == placeholder.findall(english), name


@pytest.mark.parametrize(
    ("header", "user_language", "expected"),
    [
        ("de-AT,en;q=0.5", None, "de"),
        ("en;q=0.5, fr;q=0.9", None, "fr"),
        ("xx, pt-BR;q=x, nl;q=0.1", None, "nl"),
        ("", "it", "it"),
        ("xx", "es-MX", "es"),
        ("xx", None, "en"),
        ("," * 5000, "xx", "en"),
    ],
)
def test_page_is_in_the_language_of_the_browser(
    header: str, user_language: str | None, expected: str
) -> None:
    assert texts_for_browser(header, user_language).language == expected
