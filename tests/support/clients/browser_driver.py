"""Drives GraphiQL in a real headless Chromium, against any base URL."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    WebSocket,
    async_playwright,
)

from tests.support.run_scope import CI

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 20_000  # ms
LISTENS = 0.5  # seconds from the frame that asks until the server waits for its bell; no frame says
# Monaco keeps only the lines in view in the document; its model has all of them.
ANSWER = """() => globalThis.__MONACO.editor.getModels()
    .find(model => model.uri.path.includes('response')).getValue()"""


def chromium() -> str:
    """Find the browser; without one skip the test, but fail it in CI."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None and CI:
        pytest.fail("no chromium: apt-get install chromium")
    return path or pytest.skip("no chromium")


@dataclass
class GraphiQL:
    """The open page, and what went wrong in it."""

    page: Page
    base: str
    problems: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)  # a subscription was sent

    def watch(self) -> None:
        """Note errors, and requests that leave the host, sockets included."""
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("websocket", self._socket)
        self.page.on("request", self._request)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(message.text)

    def _socket(self, socket: WebSocket) -> None:
        self._went_to(socket.url)
        socket.on("framesent", self._frame)

    def _frame(self, frame: bytes | str) -> None:
        if '"subscribe"' in str(frame):
            self.asked.set()

    def _request(self, request: Request) -> None:
        self._went_to(request.url)

    def _went_to(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"data", "blob"} and parts.netloc != urlsplit(self.base).netloc:
            self.foreign.append(url)

    async def open(self, token: str = "", path: str = "/graphql") -> None:
        """Open the page as the link of `make run` does, and wait for editor and schema."""
        await self.page.goto(self.base + path + (f"#token={quote(token)}" if token else ""))
        await self.page.locator(".graphiql-query-editor .view-line").first.wait_for()
        await self.page.locator(".graphiql-query-editor .graphiql-spinner").wait_for(state="hidden")

    async def example(self, name: str) -> None:
        """Go to the example's tab; open it anew if it was closed."""
        await self.page.get_by_label("Examples").select_option(name)

    async def write(self, document: str) -> None:
        """Paste over the text of the current tab."""
        await self._paste_over(self.page.locator(".graphiql-query-editor"), document)

    async def headers(self, values: dict[str, str]) -> None:
        """Fill in the headers pane of the current tab."""
        await self.page.get_by_role("button", name="Headers", exact=True).click()
        pane = self.page.locator(".graphiql-editor-tool .graphiql-editor:not(.hidden)")
        await self._paste_over(pane, json.dumps(values))

    async def _paste_over(self, editor: Locator, text: str) -> None:
        await editor.locator(".view-lines").click()
        await self.page.keyboard.press("ControlOrMeta+A")
        await self.page.evaluate("text => navigator.clipboard.writeText(text)", text)
        await self.page.keyboard.press("ControlOrMeta+V")

    async def run(self) -> None:
        """Press the button that runs, or that stops a subscription."""
        await self.page.locator(".graphiql-execute-button").click()

    async def listen(self) -> None:
        """Run a subscription, and wait until the server has begun to listen for it."""
        self.asked.clear()
        await self.run()
        async with asyncio.timeout(PATIENCE / 1000):
            await self.asked.wait()
        await asyncio.sleep(LISTENS)

    async def shows(self, text: str) -> None:
        """Wait until `text` is in the visible lines of the answer."""
        answer = self.page.locator(".graphiql-response")
        await answer.get_by_text(text).first.wait_for()

    async def answer(self) -> Any:
        """Wait for an answer and parse it."""
        await self.page.wait_for_function(f"({ANSWER})() !== ''")
        return json.loads(await self.page.evaluate(ANSWER))

    async def marks(self) -> list[str]:
        """Read what Monaco's workers find wrong in the texts."""
        found: list[str] = await self.page.evaluate(
            "() => globalThis.__MONACO.editor.getModelMarkers({}).map(mark => mark.message)"
        )
        return found

    async def sign_in(self, username: str, password: str) -> None:
        """Fill in the dialog."""
        await self.page.get_by_role("button", name="Sign in").click()
        dialog = self.page.get_by_role("dialog")
        await dialog.get_by_label("User name or address").fill(username)
        await dialog.get_by_label("Password").fill(password)
        await dialog.get_by_role("button", name="Sign in").click()

    async def paste(self, token: str) -> None:
        """Put the token into the bar's field."""
        await self.page.get_by_label("Token or API key").fill(token)
        await self.page.get_by_role("button", name="Use").click()

    async def signed_in_as(self, username: str) -> None:
        """Wait until the bar says so."""
        shown = self.page.get_by_label("Signed in as")
        await shown.get_by_text(username, exact=True).wait_for()

    async def stored(self) -> dict[str, dict[str, str]]:
        """Read what the page keeps: `localStorage` and `sessionStorage`."""
        kept: dict[str, dict[str, str]] = await self.page.evaluate(
            "() => ({local: {...localStorage}, session: {...sessionStorage}})"
        )
        return kept

    async def screenshot(self, path: Path) -> None:
        """Save what is seen as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=path)


@asynccontextmanager
async def started_browser() -> AsyncGenerator[Browser]:
    """Start a browser without a page."""
    executable = chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def browse(browser: Browser, base: str, *, dark: bool = False) -> AsyncGenerator[GraphiQL]:
    """Make an empty profile for the server at `base`; the page is not open yet."""
    context = await browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme="dark" if dark else "light"
    )
    try:
        page = await context.new_page()
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
        page.set_default_timeout(PATIENCE)
        graphiql = GraphiQL(page, base)
        graphiql.watch()
        yield graphiql
    finally:
        await context.close()
