"""Drive a headless Chromium, and GraphiQL in it."""

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
    BrowserContext,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    WebSocket,
    async_playwright,
)

from tests.support.run_scope import CI
from tests.support.time_limits import HANG_SECONDS

CHROMIUM_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
BROWSER_TIMEOUT = HANG_SECONDS * 1000  # ms
BLOCKED = 2  # value of a content setting of Chromium
SUBSCRIPTION_START = 0.5  # seconds until the server has begun a subscription; no frame confirms it
# The DOM contains only the visible lines of the Monaco editor; its model contains all lines.
READ_RESPONSE_SCRIPT = """() => globalThis.__MONACO.editor.getModels()
    .find(model => model.uri.path.includes('response')).getValue()"""
FOCUSED_EDITOR_HAS_TEXT_SCRIPT = """text => globalThis.__MONACO.editor.getEditors().some(
    editor => editor.hasTextFocus() && editor.getValue() === text
)"""


def find_chromium() -> str:
    """Find the browser. Without one, skip the test, or fail it in CI."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None and CI:
        pytest.fail("no chromium: apt-get install chromium")
    return path or pytest.skip("no chromium")


@dataclass
class GraphiQLPage:
    """A GraphiQL page, with the errors and foreign requests of the page."""

    page: Page
    base_url: str
    problems: list[str] = field(default_factory=list)
    foreign_urls: list[str] = field(default_factory=list)
    # set when a subscription is sent
    subscription_sent: asyncio.Event = field(default_factory=asyncio.Event)

    def record_problems(self) -> None:
        """Record errors, and the requests and sockets to other hosts."""
        self.page.on("console", self._on_console_message)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("websocket", self._on_websocket)
        self.page.on("request", self._on_request)

    def _on_console_message(self, message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"}:
            self.problems.append(message.text)

    def _on_websocket(self, socket: WebSocket) -> None:
        self._record_foreign_url(socket.url)
        socket.on("framesent", self._on_frame_sent)

    def _on_frame_sent(self, frame: bytes | str) -> None:
        if '"subscribe"' in str(frame):
            self.subscription_sent.set()

    def _on_request(self, request: Request) -> None:
        self._record_foreign_url(request.url)

    def _record_foreign_url(self, url: str) -> None:
        target = urlsplit(url)
        if (
            target.scheme not in {"data", "blob"}
            and target.netloc != urlsplit(self.base_url).netloc
        ):
            self.foreign_urls.append(url)

    async def open(self, token: str = "", path: str = "/graphql") -> None:
        """Open the page as the link of `make run` does, and wait for the editor and the schema."""
        await self.page.goto(self.base_url + path + (f"#token={quote(token)}" if token else ""))
        await self.page.locator(".graphiql-query-editor .view-line").first.wait_for()
        await self.page.locator(".graphiql-query-editor .graphiql-spinner").wait_for(state="hidden")

    async def select_example(self, name: str) -> None:
        """Select the tab of an example; open it again if it is closed."""
        await self.page.get_by_label("Examples").select_option(name)

    async def paste_document(self, document: str) -> None:
        """Replace the document of the current tab by pasting."""
        await self._paste_over(self.page.locator(".graphiql-query-editor"), document)

    async def paste_headers(self, values: dict[str, str]) -> None:
        """Set the headers of the current tab."""
        await self.page.get_by_role("button", name="Headers", exact=True).click()
        pane = self.page.locator(".graphiql-editor-tool .graphiql-editor:not(.hidden)")
        await self._paste_over(pane, json.dumps(values))

    async def _paste_over(self, editor: Locator, text: str) -> None:
        await editor.locator(".view-lines").click()
        await self.page.keyboard.press("ControlOrMeta+A")
        await self.page.evaluate("text => navigator.clipboard.writeText(text)", text)
        await self.page.keyboard.press("ControlOrMeta+V")
        # The key press can end before the editor has the text.
        await self.page.wait_for_function(FOCUSED_EDITOR_HAS_TEXT_SCRIPT, arg=text)

    async def click_run(self) -> None:
        """Click the button that runs the document or stops a subscription."""
        await self.page.locator(".graphiql-execute-button").click()

    async def start_subscription(self) -> None:
        """Run a subscription, and wait until the server has started it."""
        self.subscription_sent.clear()
        await self.click_run()
        async with asyncio.timeout(BROWSER_TIMEOUT / 1000):
            await self.subscription_sent.wait()
        await asyncio.sleep(SUBSCRIPTION_START)

    async def stop_subscription(self) -> None:
        """Stop the running subscription."""
        stop = self.page.get_by_label("Stop query")
        await stop.click()
        await stop.wait_for(state="hidden")

    async def wait_for_text(self, text: str) -> None:
        """Wait until the visible lines of the response contain `text`."""
        response = self.page.locator(".graphiql-response")
        await response.get_by_text(text).first.wait_for()

    async def read_response(self) -> Any:
        """Wait for a response and parse it."""
        await self.page.wait_for_function(f"({READ_RESPONSE_SCRIPT})() !== ''")
        return json.loads(await self.page.evaluate(READ_RESPONSE_SCRIPT))

    async def read_problem_markers(self) -> list[str]:
        """Read the messages of the problem markers in the editors."""
        messages: list[str] = await self.page.evaluate(
            "() => globalThis.__MONACO.editor.getModelMarkers({}).map(mark => mark.message)"
        )
        return messages

    async def sign_in(self, username: str, password: str) -> None:
        """Sign in by the dialog."""
        await self.page.get_by_role("button", name="Sign in").click()
        dialog = self.page.get_by_role("dialog")
        await dialog.get_by_label("Username or address").fill(username)
        await dialog.get_by_label("Password").fill(password)
        await dialog.get_by_role("button", name="Sign in").click()

    async def sign_out_if_signed_in(self) -> None:
        """Sign out, unless no user is signed in."""
        sign_out = self.page.get_by_role("button", name="Sign out")
        if await sign_out.is_visible():
            await sign_out.click()
            await self.page.get_by_role("button", name="Sign in").wait_for()

    async def enter_token(self, token: str) -> None:
        """Enter a token or API key in the toolbar."""
        await self.page.get_by_label("Token or API key").fill(token)
        await self.page.get_by_role("button", name="Use").click()

    async def wait_for_viewer(self, username: str) -> None:
        """Wait until the toolbar shows this user as signed in."""
        label = self.page.get_by_label("Signed in as")
        await label.get_by_text(username, exact=True).wait_for()

    async def read_storage(self) -> dict[str, dict[str, str]]:
        """Read `localStorage` and `sessionStorage` of the page."""
        storage: dict[str, dict[str, str]] = await self.page.evaluate(
            "() => ({local: {...localStorage}, session: {...sessionStorage}})"
        )
        return storage

    async def save_screenshot(self, path: Path) -> None:
        """Save a screenshot as PNG."""
        path.parent.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=path)


@asynccontextmanager
async def start_browser() -> AsyncGenerator[Browser]:
    """Start a browser without a page."""
    executable = find_chromium()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_FLAGS)
        try:
            yield browser
        finally:
            await browser.close()


@asynccontextmanager
async def start_browser_without_cookies(folder: Path) -> AsyncGenerator[BrowserContext]:
    """Start a browser that accepts no cookies; its profile is in this folder."""
    preferences = {"profile": {"default_content_setting_values": {"cookies": BLOCKED}}}
    preferences_file = folder / "Default" / "Preferences"
    preferences_file.parent.mkdir(parents=True)
    preferences_file.write_text(json.dumps(preferences))
    executable = find_chromium()
    async with async_playwright() as playwright:
        context = await playwright.chromium.launch_persistent_context(
            folder, executable_path=executable, args=CHROMIUM_FLAGS, locale="en-GB"
        )
        context.set_default_timeout(BROWSER_TIMEOUT)
        try:
            yield context
        finally:
            await context.close()


def picture_folder(temporary_folder: Path) -> Path:
    """The folder for pictures: the environment variable PICTURES, or a temporary folder."""
    return Path(os.environ.get("PICTURES") or temporary_folder)


@asynccontextmanager
async def open_browser_profile(
    browser: Browser, base: str, *, dark: bool = False
) -> AsyncGenerator[BrowserContext]:
    """Create an empty browser profile whose pages of the server at `base` can use the clipboard."""
    context = await browser.new_context(
        viewport={"width": 1280, "height": 800}, color_scheme="dark" if dark else "light"
    )
    try:
        await context.grant_permissions(["clipboard-read", "clipboard-write"], origin=base)
        context.set_default_timeout(BROWSER_TIMEOUT)
        yield context
    finally:
        await context.close()


@asynccontextmanager
async def open_tab(context: BrowserContext, base: str) -> AsyncGenerator[GraphiQLPage]:
    """Open a tab for GraphiQL of the server at `base`. The tab is still empty."""
    page = await context.new_page()
    try:
        graphiql = GraphiQLPage(page, base)
        graphiql.record_problems()
        yield graphiql
    except Exception as failure:
        text = await page.locator("body").inner_text()
        failure.add_note(f"Problems of the page: {graphiql.problems}. Its text: {text:.2000}")
        raise
    finally:
        await page.close()
