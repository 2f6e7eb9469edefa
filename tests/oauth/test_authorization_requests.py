"""Wrong authorization requests: shown on a page, or sent to the client."""

from urllib.parse import urlencode

import pytest

from models.runtime.environment import Environment
from tests.support.case_loop import each_case
from tests.support.oauth.oauth_flow import (
    ISSUER,
    OauthBrowser,
    TestClient,
    add_client,
    authorization_parameters,
    location_parameters,
    set_public_url,
    state_of,
)

WRONG_CLIENTS_AND_URIS: list[dict[str, str | None]] = [
    {"client_id": None},
    {"client_id": "unknown"},
    {"client_id": "x" * 1000},
    {"client_id": "client\0"},
    {"redirect_uri": None},
    {"redirect_uri": "https://evil.example/callback"},
    {"redirect_uri": "https://app.example.com/callback/"},
    {"redirect_uri": "https://app.example.com/callback#x"},
    {"redirect_uri": "//app.example.com/callback"},
    {"redirect_uri": "javascript:alert(1)"},
    # the first problem decides: no error is sent to an unchecked URI
    {"redirect_uri": "https://evil.example/", "response_type": "token"},
]


async def test_wrong_client_or_redirect_uri_is_shown_on_a_page(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(WRONG_CLIENTS_AND_URIS):
        with case as changes:
            response = await browser.open(webmail, **changes)
            assert response.status_code == 400
            assert "location" not in response.headers
            assert "set-cookie" not in response.headers
            assert "evil.example" not in response.text


ERRORS_FOR_THE_CLIENT: list[tuple[dict[str, str | None], str]] = [
    ({"response_type": "token"}, "unsupported_response_type"),
    ({"response_type": "code token"}, "unsupported_response_type"),
    ({"response_type": None}, "unsupported_response_type"),
    ({"response_type": '"\\ü'}, "unsupported_response_type"),
    ({"scope": '"\\ü'}, "invalid_scope"),
    ({"code_challenge": '"\\ü' * 20}, "invalid_request"),
    ({"code_challenge_method": '"\\ü'}, "invalid_request"),
    ({"code_challenge": None}, "invalid_request"),
    ({"code_challenge_method": None}, "invalid_request"),
    ({"code_challenge_method": "plain"}, "invalid_request"),
    ({"code_challenge": "short"}, "invalid_request"),
    ({"scope": None}, "invalid_scope"),
    ({"scope": "full"}, "invalid_scope"),
    ({"scope": "FULL admin"}, "invalid_scope"),
    ({"response_mode": "fragment"}, "invalid_request"),
    ({"response_mode": "form_post"}, "invalid_request"),
    ({"response_mode": "web_message"}, "invalid_request"),  # by postMessage
    ({"request": "x.y.z"}, "request_not_supported"),
    ({"request_uri": "https://x.example"}, "request_uri_not_supported"),
    ({"nonce": "n" * 513}, "invalid_request"),
]


async def test_other_errors_are_sent_to_the_client(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(ERRORS_FOR_THE_CLIENT):
        with case as (changes, error):
            response = await browser.open(webmail, **changes)
            assert response.headers["location"].startswith(webmail.redirect_uri + "?")
            parameters = location_parameters(response)
            assert (parameters["error"], parameters["state"], parameters["iss"]) == (
                error,
                "state 1",
                ISSUER,
            )


@pytest.mark.parametrize("changes", [{"code_challenge": None}, {"code_challenge_method": "plain"}])
async def test_public_client_needs_pkce(
    browser: OauthBrowser, environment: Environment, changes: dict[str, str | None]
) -> None:
    client = await add_client(environment, "Phone", is_public=True)
    parameters = location_parameters(await browser.open(client, **changes))
    assert parameters["error"] == "invalid_request"


async def test_scope_that_the_client_does_not_have_is_not_granted(
    browser: OauthBrowser, environment: Environment
) -> None:
    client = await add_client(environment, scopes=["openid", "mail_read"])
    tokens = await browser.get_tokens(client, scope="openid mail_read mail settings")
    assert tokens["scope"] == "openid mail_read"


# for each case: the end of the query, and the status of the response
MALFORMED_QUERIES: list[tuple[str, int]] = [
    ("&scope=mail", 400),  # repeated
    ("&x=" + "x" * 2049, 400),
    ("&x=" + "x" * 7000, 414),
    ("&x=%00", 400),
    ("&x=%0d%0aLocation:%20https://evil.example", 400),
    ("&x=%ff", 400),
    ("".join(f"&x{n}=1" for n in range(60)), 400),
]


async def test_malformed_query_is_refused(browser: OauthBrowser, webmail: TestClient) -> None:
    for case in each_case(MALFORMED_QUERIES):
        with case as (query, status):
            encoded = urlencode(authorization_parameters(webmail)) + query
            response = await browser.http.get(f"/oauth/authorize?{encoded}")
            assert response.status_code == status


async def test_malformed_token_request_is_refused(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for content, content_type, status in (
        ("grant_type=x", "application/json", 415),
        ("grant_type=x", "", 415),
        ("a=" + "x" * 20_000, "application/x-www-form-urlencoded", 413),
        ("a=" + "x" * 3000, "application/x-www-form-urlencoded", 400),
        ("a=1&a=2", "application/x-www-form-urlencoded", 400),
        ("a=%ff", "application/x-www-form-urlencoded", 400),
        ("ä=1", "application/x-www-form-urlencoded", 400),
        ("", "application/x-www-form-urlencoded", 400),
    ):
        for path in ("/oauth/token", "/oauth/revoke", "/oauth/introspect"):
            response = await browser.http.post(
                path,
                content=content.encode(),
                headers={"Content-Type": content_type},
                auth=(webmail.client_id, webmail.secret or ""),
            )
            assert response.status_code == status
            assert response.json()["error"] in ("invalid_request", "unsupported_grant_type")


@pytest.mark.parametrize("url", ["", "http://mail.example.org"])
async def test_oauth_is_off_without_a_public_url(
    browser: OauthBrowser, webmail: TestClient, environment: Environment, url: str
) -> None:
    set_public_url(environment, url)
    assert (await browser.open(webmail)).status_code == 503
    for path in ("/oauth/userinfo", "/.well-known/openid-configuration"):
        assert (await browser.http.get(path)).status_code in (401, 503)


MALFORMED_CREDENTIALS: list[str] = [
    "Basic",
    "Basic !",
    "Basic =",
    "Basic 4oKs",
    "Basic OnM=",
    "Basic YTo=",
    "Bearer x",
    "x",
    "ü",
    "Basic /w==",
    "Basic éé",
    "Basic \u00a0",
]


async def test_malformed_client_credentials_are_refused(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    del webmail
    for case in each_case(MALFORMED_CREDENTIALS):
        with case as credentials:
            for path in ("/oauth/token", "/oauth/revoke", "/oauth/introspect"):
                response = await browser.http.post(
                    path,
                    data={"grant_type": "authorization_code", "code": "x", "token": "x"},
                    headers={b"Authorization": credentials.encode()},
                )
                assert response.status_code in (400, 401), credentials
                assert response.json()["error"] == "invalid_client"


async def test_unknown_values_in_a_token_request_are_refused(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(['"', "\\", "ü", "a b", "x" * 2000]):
        with case as text:
            for name in (
                "grant_type",
                "code",
                "refresh_token",
                "scope",
                "code_verifier",
                "client_id",
            ):
                for grant_type in ("authorization_code", "refresh_token"):
                    form = {"grant_type": grant_type, "code": "x", "refresh_token": "x", name: text}
                    response = await browser.post_as_client("/oauth/token", webmail, **form)
                    assert response.status_code == 400, (name, response.text)
            for hint in (text, "access_token"):
                for path in ("/oauth/revoke", "/oauth/introspect"):
                    fields = {"token": text, "token_type_hint": hint}
                    response = await browser.post_as_client(path, webmail, **fields)
                    assert response.status_code in (200, 400)


@pytest.mark.parametrize("origin", [None, "https://app.example.com", "null"])
async def test_request_by_post_has_the_effect_of_get(
    browser: OauthBrowser, webmail: TestClient, origin: str | None
) -> None:
    """OpenID Connect Core, section 3.1.2.1. Another site sends it, and no cookie comes with it."""
    await browser.open(webmail)
    cookies = dict(browser.http.cookies)
    response = await browser.http.post(
        "/oauth/authorize",
        data=authorization_parameters(webmail, state="by POST"),
        headers={"Sec-Fetch-Site": "cross-site", **({"Origin": origin} if origin else {})},
    )
    assert response.status_code == 303
    assert "set-cookie" not in response.headers
    page = await browser.http.get(response.headers["location"])
    assert dict(browser.http.cookies) == cookies
    consent = await browser.sign_in(page, "ada")
    answer = location_parameters(await browser.send(consent, choice="allow"))
    assert answer["state"] == "by POST"
    assert (await browser.request_tokens(webmail, answer["code"])).status_code == 200


# for each case: the changed parameters, and the status of the response
MALFORMED_PARAMETERS: list[tuple[dict[str, str], int]] = [
    ({"x": "x" * 3000}, 400),
    ({"x": "\0"}, 400),
    ({f"x{n}": "x" * 1500 for n in range(5)}, 413),
]


async def test_malformed_request_by_post_is_refused(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    for case in each_case(MALFORMED_PARAMETERS):
        with case as (changes, status):
            form = authorization_parameters(webmail, **changes)
            response = await browser.http.post("/oauth/authorize", data=form)
            assert response.status_code == status


async def test_request_by_post_is_no_form_of_a_page(
    browser: OauthBrowser, webmail: TestClient
) -> None:
    """A field of the client can't give consent."""
    consent = await browser.sign_in(await browser.open(webmail), "ada")
    form = authorization_parameters(webmail, state=state_of(consent), choice="allow")
    response = await browser.http.post("/oauth/authorize", data=form, headers=browser.headers)
    assert response.headers["location"].startswith("/oauth/authorize?")
    wrong = await browser.http.post("/oauth/authorize", data={"client_id": "unknown"})
    page = await browser.http.get(wrong.headers["location"])
    assert (page.status_code, "location" in page.headers) == (400, False)
