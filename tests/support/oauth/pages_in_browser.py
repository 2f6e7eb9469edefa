"""The OAuth pages in a browser: a server, an application of another origin, and page actions."""

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import httpx
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.routing import Route

from tests.support.clients.browser_driver import BROWSER_TIMEOUT
from tests.support.clients.plain_http import plain_client
from tests.support.clients.security_keys import plug_in_security_key, register_security_key
from tests.support.oauth.oauth_flow import VERIFIER, TestClient, authorization_parameters
from tests.support.servers.http_server import run_http_server
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess

LOOPBACK_URI = "http://127.0.0.1/callback"
BACK_IN_APPLICATION = "You are back in the application."
# of pictures for the docs
PICTURE_PROFILE = {"viewport": {"width": 480, "height": 440}, "color_scheme": "light"}
MAX_PICTURE_BYTES = 30_000


@contextmanager
def run_oauth_server(folder: Path, *usernames: str) -> Generator[MerganserProcess]:
    """Run a server with these users, until the block ends.

    Browsers reach it as localhost: an address can't have security keys.
    """
    server = MerganserProcess(folder)
    server.extra_settings = {
        "PUBLIC_URL": f"http://localhost:{server.http_port}",
        "COST_BUDGET_ANONYMOUS": "0",  # all tests have one address
        "IDENTITY_PROVIDERS_ALLOW_PRIVATE_NETWORKS": "on",
    }
    server.create_users(*usernames)
    server.start()
    try:
        yield server
    finally:
        server.stop()


async def create_client(
    server: MerganserProcess,
    redirect_uri: str = LOOPBACK_URI,
    scopes: Sequence[str] = ("OPENID", "EMAIL", "MAIL_READ", "SUBMIT"),
) -> TestClient:
    """Create a public client."""
    async with server.open_client("root") as root:
        input_fields = {
            "name": "Webmail",
            "redirectUris": [redirect_uri],
            "hasSecret": False,
            "scopes": scopes,
        }
        payload = await root.run_mutation(
            "oauthClientCreate", input_fields, "oauthClient { clientId }"
        )
    return TestClient(0, payload["oauthClient"]["clientId"], None, redirect_uri)


@dataclass
class OauthApplication:
    """An application of another origin, with its client, that sends users to the server."""

    server: MerganserProcess
    client: TestClient
    origin: str

    @property
    def issuer(self) -> str:
        return self.server.extra_settings["PUBLIC_URL"]

    def authorization_url(self, **changes: str | None) -> str:
        """The URL of an authorization request."""
        parameters = authorization_parameters(self.client, **changes)
        return f"{self.issuer}/oauth/authorize?{urlencode(parameters)}"

    def frame_url(self, framed_url: str) -> str:
        """The URL of a page of the application that shows another page in a frame."""
        return f"{self.origin}/frame?{urlencode({'url': framed_url})}"

    @property
    def post_url(self) -> str:
        """The URL of a page with a form that sends an authorization request by POST."""
        parameters = authorization_parameters(self.client, state="by POST")
        query = urlencode({"url": f"{self.issuer}/oauth/authorize", **parameters})
        return f"{self.origin}/form?{query}"

    async def request_tokens(self, code: str) -> httpx.Response:
        """Exchange a code for tokens."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "client_id": self.client.client_id,
            "redirect_uri": self.client.redirect_uri,
            "code_verifier": VERIFIER,
        }
        async with plain_client(timeout=60) as http:
            return await http.post(f"{self.server.url}/oauth/token", data=form)


async def _show_callback(_request: Request) -> HTMLResponse:
    return HTMLResponse(f"<p>{BACK_IN_APPLICATION}</p>")


async def _show_frame(request: Request) -> HTMLResponse:
    url = escape(request.query_params["url"])
    return HTMLResponse(f'<p>Application</p><iframe name="framed" src="{url}"></iframe>')


async def _show_form(request: Request) -> HTMLResponse:
    parameters = dict(request.query_params)
    action = escape(parameters.pop("url"))
    fields = "".join(
        f'<input type="hidden" name="{escape(name)}" value="{escape(value)}">'
        for name, value in parameters.items()
    )
    return HTMLResponse(
        f'<form method="post" action="{action}">{fields}<button>Sign in by POST</button></form>'
    )


@asynccontextmanager
async def run_application(server: MerganserProcess) -> AsyncGenerator[OauthApplication]:
    """Run an application with a client of the server, until the block ends."""
    client = await create_client(server)
    routes = [
        Route("/callback", _show_callback),
        Route("/frame", _show_frame),
        Route("/form", _show_form),
    ]
    async with run_http_server(Starlette(routes=routes)) as port:
        origin = f"http://127.0.0.1:{port}"
        client.redirect_uri = f"{origin}/callback"
        yield OauthApplication(server, client, origin)


@dataclass
class OauthPage:
    """A page of the browser that shows OAuth pages, with the faults that the browser reports."""

    page: Page
    application: OauthApplication
    faults: list[str] = field(default_factory=list)

    def record_faults(self) -> None:
        """Record errors of scripts, and what the content security policy has blocked."""
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", self._on_console_message)

    def _on_console_message(self, message: ConsoleMessage) -> None:
        if "Content Security Policy" in message.text:
            self.faults.append(message.text)

    async def open(self, **changes: str | None) -> None:
        """Open the authorization endpoint."""
        await self.page.goto(self.application.authorization_url(**changes))

    async def sign_in(self, username: str, password: str = PASSWORD) -> None:
        """Fill in and send the form of the sign-in page."""
        await self.page.get_by_label("Username or email address").fill(username)
        await self.page.get_by_label("Password").fill(password)
        await self.press("Sign in")

    async def enter_code(self, code: str) -> None:
        """Fill in and send the form of the page for the second factor."""
        await self.page.get_by_label("Code").fill(code)
        await self.press("Continue")

    async def press(self, name: str) -> None:
        """Press a button of the page."""
        await self.page.get_by_role("button", name=name, exact=True).click()

    async def wait_for_title(self, title: str) -> None:
        """Wait until the page with this title is shown."""
        await self.page.get_by_role("heading", name=title, exact=True).wait_for()
        assert await self.page.title() == title

    async def wait_for_alert(self, text: str) -> None:
        """Wait until the page shows this problem."""
        await self.page.get_by_role("alert").get_by_text(text).wait_for()

    async def wait_for_callback(self) -> dict[str, str]:
        """Wait until the browser is back in the application; return its parameters."""
        await self.page.get_by_text(BACK_IN_APPLICATION).wait_for()
        return dict(parse_qsl(urlsplit(self.page.url).query))

    async def save_picture(self, path: Path) -> None:
        """Save a picture of the page, of at most MAX_PICTURE_BYTES."""
        await self.page.get_by_role("heading").wait_for()
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = await self.page.screenshot(path=path, caret="hide")
        assert len(picture) <= MAX_PICTURE_BYTES

    async def allow_and_get_tokens(self) -> dict[str, Any]:
        """Allow access on the consent page, and return the tokens of the application."""
        await self.wait_for_title("Allow access?")
        await self.press("Allow")
        parameters = await self.wait_for_callback()
        response = await self.application.request_tokens(parameters["code"])
        assert response.status_code == 200, response.text
        tokens: dict[str, Any] = response.json()
        return tokens

    async def add_authenticator(self) -> None:
        """Plug in a virtual security key, which always confirms."""
        await plug_in_security_key(self.page)

    async def register_security_key(self, username: str) -> None:
        """Register a key of the authenticator for a user. The page must be one of the server."""
        await register_security_key(self.page, self.application.server, username)


@asynccontextmanager
async def open_profile(browser: Browser, **options: Any) -> AsyncGenerator[BrowserContext]:
    """Create an empty browser profile."""
    context = await browser.new_context(
        **{"viewport": {"width": 800, "height": 600}, "locale": "en-GB", **options}
    )
    context.set_default_timeout(BROWSER_TIMEOUT)
    try:
        yield context
    finally:
        await context.close()


async def new_oauth_page(context: BrowserContext, application: OauthApplication) -> OauthPage:
    """Open an empty tab."""
    oauth_page = OauthPage(await context.new_page(), application)
    oauth_page.record_faults()
    return oauth_page
