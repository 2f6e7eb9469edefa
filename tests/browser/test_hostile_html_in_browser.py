"""Tests that hostile HTML in a real browser runs no script and loads nothing.

The vectors are in hostile_html.txt. They are shown inside a page, as an application shows them, and
as a page of their own. Then every element receives the events that can start a script.
"""

import base64
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, ConsoleMessage, Error, Page, Route

from graph.types import global_ids
from mail.mime import sanitize_html
from mail.mime.html_content.tokenizer import word_set
from tests.conftest import GraphQLClient, deliver_to
from tests.support.clients.browser_driver import BROWSER_TIMEOUT

SHARED_LOOP = pytest.mark.asyncio(loop_scope="module")  # runs in the loop of the shared browser
MIN_VECTOR_COUNT = 200
PAGE = "https://judge.invalid/"
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([tnr\\]))")
ESCAPED_CHARACTERS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
REPORT_CALLS_SCRIPT = """
window.hit = (...said) => { console.error('HIT', ...said) }
for (const name of ['alert', 'confirm', 'prompt', 'print', 'open']) window[name] = window.hit
"""
# Links to the web are not followed, because that leaves the page. All other links are followed.
TRIGGER_EVENTS_SCRIPT = r"""async () => {
    document.addEventListener('click', event => {
        const link = event.composedPath().find(each => each.href)
        if (link && /^(https?|mailto|tel):/.test(link.protocol)) event.preventDefault()
    }, true)
    const names = ['load', 'error', 'focus', 'blur', 'mouseover', 'mouseenter', 'pointerenter',
        'wheel', 'copy', 'paste', 'dragstart', 'contextmenu', 'keydown', 'animationstart',
        'transitionend', 'toggle', 'begin', 'submit', 'scroll', 'input', 'change', 'click']
    for (const each of document.querySelectorAll('body, body *'))
        for (const name of names)
            each.dispatchEvent(name === 'click'
                ? new MouseEvent(name, {bubbles: true, cancelable: true, composed: true})
                : new Event(name, {bubbles: true, cancelable: true}))
    await new Promise(done => setTimeout(done, 300))
}"""
DESCRIBE_ELEMENTS_SCRIPT = r"""() => [...document.querySelectorAll('#letters *')].map(each => {
    const style = getComputedStyle(each)
    return {
        tag: each.localName, space: each.namespaceURI, protocol: each.href ? each.protocol : '',
        attributes: [...each.attributes].map(one => one.name), target: each.target || '',
        rel: each.rel || '', position: style.position, image: style.backgroundImage,
        text: each.outerHTML.slice(0, 200),
    }
})"""
SCRIPTED = re.compile("on|form|xlink|srcdoc|action|ping")
SAFE_PROTOCOLS = {"http:", "https:", "mailto:", "tel:", ""}
FORBIDDEN_TAGS = word_set(
    "script style iframe frame frameset object embed applet base link meta form input button select"
    " textarea option template slot svg math video audio source track portal dialog marquee"
    " noscript xmp plaintext title head body html picture map area image xss"
)


@cache
def vectors_by_family() -> dict[str, list[str]]:
    """Return the vectors by family."""
    vectors_by_name: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("hostile_html.txt").read_text().split("\n"):
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            vectors_by_name[heading[1]] = vectors = []
        elif line and not line.startswith("# "):
            vectors.append(ESCAPE.sub(_unescape, line))
    return vectors_by_name


def _unescape(match: re.Match[str]) -> str:
    two_digit_code, four_digit_code, letter_name = match.groups()
    return (
        ESCAPED_CHARACTERS[letter_name]
        if letter_name
        else chr(int(two_digit_code or four_digit_code, 16))
    )


FAMILIES = ("handlers", "urls", "markup", "drawings", "styles", "pixels")


@dataclass
class HtmlInspector:
    """A browser page that shows messages and records the scripts and requests they cause."""

    page: Page
    hits: list[str] = field(default_factory=list)
    requested_urls: list[str] = field(default_factory=list)

    async def start(self) -> None:
        """Start to record."""
        self.page.on("console", self._record_console)
        self.page.set_default_timeout(BROWSER_TIMEOUT)
        await self.page.add_init_script(REPORT_CALLS_SCRIPT)
        await self.page.context.route("**/*", self._record_request)

    def _record_console(self, message: ConsoleMessage) -> None:
        if message.text.startswith("HIT"):
            self.hits.append(message.text)

    async def _record_request(self, route: Route) -> None:
        if route.request.url == PAGE:
            body = "<!DOCTYPE html><body><div id=letters></div>"
            await route.fulfill(content_type="text/html", body=body)
        else:
            self.requested_urls.append(route.request.url)
            await route.abort()

    async def show(self, messages: list[str]) -> list[Any]:
        """Put each message into an element of one page and describe all elements."""
        await self.page.goto(PAGE)
        await self.page.evaluate(
            """letters => {
                for (const letter of letters) {
                    const frame = document.createElement('div')
                    document.getElementById('letters').append(frame)
                    frame.innerHTML = letter
                }
            }""",
            messages,
        )
        elements: list[Any] = await self.page.evaluate(DESCRIBE_ELEMENTS_SCRIPT)
        await self.page.evaluate(TRIGGER_EVENTS_SCRIPT)
        return elements

    async def open(self, messages: list[str]) -> list[Any]:
        """Load a page that consists of the messages and describe all elements."""
        await self.page.goto(PAGE)
        page = "".join(f"<div>{message}</div>" for message in messages)
        await self.page.set_content(f"<!DOCTYPE html><body><div id=letters>{page}</div>")
        elements: list[Any] = await self.page.evaluate(DESCRIBE_ELEMENTS_SCRIPT)
        await self.page.evaluate(TRIGGER_EVENTS_SCRIPT)
        return elements


@pytest_asyncio.fixture(loop_scope="module")
async def inspector(browser: Browser) -> AsyncIterator[HtmlInspector]:
    """An inspector with an empty browser profile."""
    context = await browser.new_context(viewport={"width": 800, "height": 600})
    try:
        inspector = HtmlInspector(await context.new_page())
        await inspector.start()
        yield inspector
    finally:
        await context.close()


def assert_elements_are_harmless(elements: list[Any]) -> None:
    """Assert that no element can do more than be read."""
    assert elements
    for element in elements:
        text = element["text"]
        assert element["tag"] not in FORBIDDEN_TAGS, text
        assert element["space"] == "http://www.w3.org/1999/xhtml", text
        assert element["protocol"] in SAFE_PROTOCOLS, text
        assert not [
            name for name in element["attributes"] if re.match(r"on|form|xlink|srcdoc", name)
        ], text
        assert element["position"] == "static", text
        assert element["image"] == "none", text
        if "href" in element["attributes"]:
            assert (element["target"], element["rel"]) == ("_blank", "noopener noreferrer"), text


def test_vectors_are_enough_and_almost_all_distinct() -> None:
    vector_lists = vectors_by_family()
    assert tuple(vector_lists) == FAMILIES
    all_vectors = [vector for vectors in vector_lists.values() for vector in vectors]
    assert len(all_vectors) >= MIN_VECTOR_COUNT
    assert len(set(all_vectors)) >= len(all_vectors) - 2


@SHARED_LOOP
@pytest.mark.parametrize("family", ["handlers", "urls", "markup", "drawings"])
async def test_inspector_detects_scripts_that_run(inspector: HtmlInspector, family: str) -> None:
    for vector in vectors_by_family()[family][:6]:
        await inspector.page.goto(PAGE)
        await inspector.page.set_content(f"<body>{vector}", wait_until="commit")
        try:
            await inspector.page.evaluate(TRIGGER_EVENTS_SCRIPT.replace("300", "20"))
        except Error:  # the page has navigated away
            assert inspector.requested_urls or inspector.hits
    assert inspector.hits


@SHARED_LOOP
@pytest.mark.parametrize("family", ["styles", "pixels"])
async def test_inspector_detects_requests(inspector: HtmlInspector, family: str) -> None:
    await inspector.show(vectors_by_family()[family][:25])
    assert len(set(inspector.requested_urls)) > 10


@SHARED_LOOP
@pytest.mark.parametrize("family", FAMILIES)
async def test_sanitized_message_runs_and_loads_nothing(
    inspector: HtmlInspector, family: str
) -> None:
    messages = [
        sanitize_html(vector, allow_remote_images=False, url_for_content_id=lambda _: None).html
        for vector in vectors_by_family()[family]
    ]
    for show_messages in (inspector.show, inspector.open):
        assert_elements_are_harmless(await show_messages(messages))
    assert inspector.hits == []
    assert inspector.requested_urls == []


@SHARED_LOOP
@pytest.mark.parametrize("family", FAMILIES)
async def test_sanitized_message_with_remote_images_loads_only_images(
    inspector: HtmlInspector, family: str
) -> None:
    messages = [
        sanitize_html(vector, allow_remote_images=True, url_for_content_id=lambda _: None).html
        for vector in vectors_by_family()[family]
    ]
    for show_messages in (inspector.show, inspector.open):
        for element in await show_messages(messages):
            assert element["tag"] not in FORBIDDEN_TAGS, element["text"]
            assert element["protocol"] in SAFE_PROTOCOLS, element["text"]
    assert inspector.hits == []
    assert all(re.search(r"\.(gif|png)|[jv]a?[vs]", url) for url in inspector.requested_urls), (
        inspector.requested_urls
    )


@pytest.fixture
async def received_message(ada: GraphQLClient) -> dict[str, Any]:
    """The fields with HTML of a message with all vectors, in the loop of its server."""
    all_vectors = [vector for vectors in vectors_by_family().values() for vector in vectors]
    part = (
        "--x\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    body = "\r\n".join(part + base64.b64encode(vector.encode()).decode() for vector in all_vectors)
    raw = f"Subject: All\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n{body}\r\n--x--\r\n"
    message_id = (await deliver_to(ada, raw.encode())).message_id
    document = """query ($id: ID!) { message(by: {id: $id}) {
      html bodyParts { content } remoteImageCount text } }"""
    message: dict[str, Any] = (await ada(document, id=global_ids.encode("Message", message_id)))[
        "message"
    ]
    assert len(message["bodyParts"]) == len(all_vectors)
    return message


@SHARED_LOOP
async def test_html_of_received_message_is_harmless(
    received_message: dict[str, Any], inspector: HtmlInspector
) -> None:
    parts = [part["content"] for part in received_message["bodyParts"]]
    assert received_message["remoteImageCount"] > 30
    for documents in (parts, [received_message["html"]]):
        assert_elements_are_harmless(await inspector.show(documents))
        assert_elements_are_harmless(await inspector.open(documents))
    assert inspector.hits == []
    assert inspector.requested_urls == []


@SHARED_LOOP
async def test_html_nested_too_deeply_is_shown_as_text(inspector: HtmlInspector) -> None:
    started_at = time.process_time()
    sanitized = sanitize_html(
        "<div><b>" * 50_000 + "deep", allow_remote_images=True, url_for_content_id=lambda _: None
    )
    assert time.process_time() - started_at < 2
    assert sanitized.too_complex
    (frame, inner) = await inspector.show([sanitized.html])
    assert (frame["tag"], inner["tag"], inner["attributes"]) == ("div", "div", ["style"])
