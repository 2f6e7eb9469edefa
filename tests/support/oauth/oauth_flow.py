"""Authorizations through the pages of the server, as a browser and an OAuth client do them."""

import hashlib
import re
from base64 import urlsafe_b64encode
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from argon2 import PasswordHasher
from sqlalchemy import insert, update
from sqlmodel import col

from graph.app import create_app
from models.oauth.tables import OauthClient, OauthGrantType, OauthScope
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.auth.credential_status import secret_digest

ISSUER = "https://mail.example.org"
REDIRECT_URI = "https://app.example.com/callback"
PASSWORD = "correct horse battery staple"  # noqa: S105 - of test accounts
VERIFIER = "v" * 43
USER_SCOPES = " ".join(scope for scope in OauthScope if scope is not OauthScope.DOMAIN_ADMIN)
STATE_FIELD = re.compile(r'name="state" value="([^"]*)"')


def set_public_url(environment: Environment, url: str = ISSUER, **options: Any) -> None:
    """Set the public URL of an environment, and other options."""
    object.__setattr__(
        environment, "options", replace(environment.options, public_url=url, **options)
    )


async def set_password(environment: Environment, user_id: int, password: str = PASSWORD) -> None:
    """Give a user a password."""
    hashed = PasswordHasher(1, 8, 1).hash(password)
    async with environment.write_session() as session:
        statement = update(User).where(col(User.id) == user_id).values(password=hashed)
        await (await session.connection()).execute(statement)


@dataclass(slots=True)
class TestClient:
    """A registered client with its secret."""

    __test__ = False

    row_id: int
    client_id: str
    secret: str | None
    redirect_uri: str = REDIRECT_URI

    @property
    def credentials(self) -> dict[str, Any]:
        """The authentication of a request to the token endpoint."""
        if self.secret is None:
            return {"data": {"client_id": self.client_id}}
        return {"data": {}, "auth": (self.client_id, self.secret)}


async def add_client(
    environment: Environment,
    name: str = "Webmail",
    *,
    is_public: bool = False,
    redirect_uris: Sequence[str] = (REDIRECT_URI,),
    scopes: Sequence[str] = tuple(OauthScope),
    **columns: Any,
) -> TestClient:
    """Add the row of a client."""
    row_id, client_id = environment.new_id(), f"client-{name.lower().replace(' ', '-')}"
    secret = None if is_public else f"mgs_{name}".ljust(47, "s")
    values = {
        "id": row_id,
        "client_id": client_id,
        "name": name,
        "secret_digest": secret and secret_digest(secret),
        "redirect_uris": list(redirect_uris),
        "grant_types": list(OauthGrantType),
        "scopes": list(scopes),
        "created_at": environment.now(),
        **columns,
    }
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(OauthClient).values(values))
    return TestClient(row_id, client_id, secret, redirect_uris[0])


def code_challenge(verifier: str = VERIFIER) -> str:
    """Return the S256 challenge of a verifier."""
    return urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).decode().rstrip("=")


def authorization_parameters(client: TestClient, **changes: str | None) -> dict[str, str]:
    """Return the parameters of a valid authorization request; None removes one."""
    parameters = {
        "response_type": "code",
        "client_id": client.client_id,
        "redirect_uri": client.redirect_uri,
        "scope": USER_SCOPES,
        "state": "state 1",
        "nonce": "nonce-1",
        "code_challenge": code_challenge(),
        "code_challenge_method": "S256",
        **changes,
    }
    return {name: value for name, value in parameters.items() if value is not None}


def location_parameters(response: httpx.Response) -> dict[str, str]:
    """Return the query parameters of the URL that a response redirects to."""
    assert response.status_code == 303, response.text
    return dict(parse_qsl(urlsplit(response.headers["location"]).query))


def state_of(response: httpx.Response) -> str:
    """Return the state in the form of a page."""
    match = STATE_FIELD.search(response.text)
    assert match is not None, response.text
    return unescape(match[1])


@dataclass(slots=True)
class OauthBrowser:
    """A browser that uses the pages, with its own cookies."""

    http: httpx.AsyncClient
    headers: dict[str, str] = field(default_factory=lambda: {"Origin": ISSUER})

    async def open(self, client: TestClient, **changes: str | None) -> httpx.Response:
        """Open the authorization endpoint."""
        query = urlencode(authorization_parameters(client, **changes))
        return await self.http.get(f"/oauth/authorize?{query}")

    async def send(self, page: httpx.Response, **fields: str) -> httpx.Response:
        """Send the form of a page."""
        form = {"state": state_of(page), **fields}
        return await self.http.post("/oauth/authorize", data=form, headers=self.headers)

    async def sign_in(
        self, page: httpx.Response, username: str, password: str = PASSWORD
    ) -> httpx.Response:
        """Send the form of the sign-in page."""
        return await self.send(page, username=username, password=password)

    async def authorize(
        self, client: TestClient, username: str = "ada", **changes: str | None
    ) -> str:
        """Sign in, allow access, and return the code."""
        page = await self.open(client, **changes)
        consent = await self.sign_in(page, username)
        assert consent.status_code == 200, consent.text
        return location_parameters(await self.send(consent, choice="allow"))["code"]

    async def request_tokens(
        self, client: TestClient, code: str, **changes: str | None
    ) -> httpx.Response:
        """Exchange a code for tokens."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": client.redirect_uri,
            "code_verifier": VERIFIER,
        }
        return await self.post_as_client("/oauth/token", client, **{**form, **changes})

    async def refresh(
        self, client: TestClient, refresh_token: str, **changes: str | None
    ) -> httpx.Response:
        """Use a refresh token."""
        form = {"grant_type": "refresh_token", "refresh_token": refresh_token}
        return await self.post_as_client("/oauth/token", client, **{**form, **changes})

    async def post_as_client(
        self, path: str, client: TestClient, **fields: str | None
    ) -> httpx.Response:
        """Send a form with the credentials of a client."""
        credentials = client.credentials
        data = {**credentials.pop("data"), **fields}
        form = {name: value for name, value in data.items() if value is not None}
        return await self.http.post(path, data=form, **credentials)

    async def get_tokens(
        self, client: TestClient, username: str = "ada", **changes: str | None
    ) -> dict[str, Any]:
        """Authorize a client and return its tokens."""
        code = await self.authorize(client, username, **changes)
        response = await self.request_tokens(client, code)
        assert response.status_code == 200, response.text
        tokens: dict[str, Any] = response.json()
        return tokens

    async def is_accepted(self, access_token: str) -> bool:
        """True if GraphQL accepts an access token."""
        response = await self.http.post(
            "/graphql",
            json={"query": "{ viewer { user { username } } }"},
            headers={"Authorization": f"Bearer {access_token}"},
        )
        return response.status_code == 200 and "errors" not in response.json()


@asynccontextmanager
async def open_oauth_browser(
    environment: Environment, spool_folder: Path, **options: Any
) -> AsyncGenerator[OauthBrowser]:
    """Open a browser at the public URL of a server with these options."""
    set_public_url(environment, **options)
    app = create_app(environment, spool_folder=spool_folder)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=ISSUER) as http:
        yield OauthBrowser(http)
    await app.end_subscriptions()
