"""The npm package oidc-provider as an OpenID provider on loopback."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import httpx

from tests.support.clients.npm_programs import node_path, require_installed

PROGRAM = Path(__file__).with_name("oidc_provider.mjs")
REQUEST_TIMEOUT = 60.0  # seconds
MAX_SIGN_IN_REQUESTS = 12
FORM_ACTION = re.compile(r'<form[^>]* action="([^"]*)"')
HIDDEN_FIELD = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)"')
CANCEL_LINK = re.compile(r'href="([^"]*/abort)"')


@dataclass(frozen=True)
class LogoutDelivery:
    """A logout token that the provider posted, with the status of the response.

    The status is None if there was no response.
    """

    token: str
    status: int | None


@dataclass
class OidcProvider:
    """A running provider. Each sign-in is a session of a browser of its own."""

    issuer: str
    cookies_of_sessions: dict[str, list[httpx.Cookies]] = field(default_factory=dict)  # by account

    async def set_claims(self, account: str, claims: Mapping[str, Any]) -> None:
        """Replace the claims of an account, or create the account."""
        await self._run_command("set-claims", account=account, claims=claims)

    async def delete_account(self, account: str) -> None:
        await self._run_command("delete-account", account=account)

    async def rotate_keys(self, *, publish_old: bool = True) -> None:
        """Sign with a new key. `publish_old` keeps the old public keys in the JWKS."""
        await self._run_command("rotate-keys", publishOld=publish_old)

    async def sign_in(self, authorization_url: str, account: str) -> str:
        """Sign in and consent. Returns the URL of the redirect to the client, without fetching it.

        The account can also be one that doesn't exist: the provider then asks again, and this
        fails.
        """
        async with _open_browser() as browser:
            callback_url = await self._submit_forms(browser, authorization_url, account)
            self.cookies_of_sessions.setdefault(account, []).append(browser.cookies)
            return callback_url

    async def cancel_sign_in(self, authorization_url: str) -> str:
        """Follow the cancel link of the sign-in page. Returns the URL of the redirect, with
        `error=access_denied`.
        """
        async with _open_browser() as browser:
            browser.follow_redirects = True
            page = await browser.get(authorization_url)
            browser.follow_redirects = False
            return await self._submit_forms(browser, _match(CANCEL_LINK, page.text), "")

    async def end_session(self, account: str, *, with_sid: bool = True) -> list[LogoutDelivery]:
        """Sign out of all sessions of an account, as the browser does at the provider.

        The provider posts a logout token for each session, with `sub` and `sid`, or with `sub`
        alone.
        """
        await self._run_command("set-sid-in-logout-tokens", enabled=with_sid)
        for cookies in self.cookies_of_sessions.pop(account, []):
            async with _open_browser(cookies) as browser:
                page = await browser.get(f"{self.issuer}/session/end")
                form = {**_hidden_fields(page.text), "logout": "yes"}
                response = await browser.post(_match(FORM_ACTION, page.text), data=form)
                assert response.status_code == 303, response.text
        await self._run_command("set-sid-in-logout-tokens", enabled=True)
        deliveries = await self._run_command("take-logout-deliveries")
        return [LogoutDelivery(**delivery) for delivery in deliveries]

    async def _submit_forms(self, browser: httpx.AsyncClient, url: str, account: str) -> str:
        """Follow redirects and submit forms until a redirect leaves the provider."""
        response = await browser.get(url)
        for _ in range(MAX_SIGN_IN_REQUESTS):
            if response.is_redirect:
                url = urljoin(str(response.url), response.headers["location"])
                if not url.startswith(f"{self.issuer}/"):
                    return url
                response = await browser.get(url)
            else:
                assert response.status_code == 200, response.text
                form = {**_hidden_fields(response.text), "login": account, "password": "any"}
                response = await browser.post(_match(FORM_ACTION, response.text), data=form)
        raise AssertionError(f"the sign-in of {account} does not end: {response.text}")

    async def _run_command(self, name: str, **arguments: Any) -> Any:
        async with _open_browser() as client:
            response = await client.post(f"{self.issuer}/control/{name}", json=arguments)
            return response.raise_for_status().json()


def _open_browser(cookies: httpx.Cookies | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(cookies=cookies, timeout=REQUEST_TIMEOUT, trust_env=False)


def _match(pattern: re.Pattern[str], page: str) -> str:
    match = pattern.search(page)
    assert match, page
    return unescape(match[1])


def _hidden_fields(page: str) -> dict[str, str]:
    return {name: unescape(value) for name, value in HIDDEN_FIELD.findall(page)}


@contextmanager
def run_oidc_provider(  # noqa: PLR0913 - the configuration of a provider
    folder: Path,
    *,
    client_id: str,
    client_secret: str,
    redirect_uris: Sequence[str],
    accounts: Mapping[str, Mapping[str, Any]],
    backchannel_logout_uri: str | None = None,
    client_metadata: Mapping[str, Any] | None = None,
    always_issues_refresh_tokens: bool = False,
) -> Iterator[OidcProvider]:
    """Run a provider with one client. `accounts` has the claims of each account by its `sub`.

    A refresh token is issued if the request has `scope=offline_access` and `prompt=consent`, or
    always. `client_metadata` has more fields of RFC 7591, such as `token_endpoint_auth_method`
    (default: `client_secret_basic`). Skips the test if the npm packages are not installed; fails
    in CI.
    """
    require_installed()
    client: dict[str, Any] = {
        "client_id": client_id,
        "client_secret": client_secret,
        "redirect_uris": list(redirect_uris),
        "grant_types": ["authorization_code", "refresh_token"],
    }
    if backchannel_logout_uri:
        client["backchannel_logout_uri"] = backchannel_logout_uri
        client["backchannel_logout_session_required"] = True
    configuration = {
        "client": {**client, **(client_metadata or {})},
        "accounts": accounts,
        "alwaysIssuesRefreshTokens": always_issues_refresh_tokens,
    }
    folder.mkdir(exist_ok=True)
    log_file = folder / "oidc-provider.log"
    with (
        log_file.open("wb") as log,
        subprocess.Popen(
            [node_path(), PROGRAM, json.dumps(configuration)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        ) as process,
    ):
        assert process.stdout
        try:
            issuer = process.stdout.readline().strip()
            assert issuer, log_file.read_text()
            yield OidcProvider(issuer)
        finally:
            process.kill()
