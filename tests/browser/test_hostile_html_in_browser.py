"""HTML of strangers in a real browser: nothing runs, nothing is asked for, all stays in its place.

The vectors are in hostile_html.txt. They are shown as an application shows them, and as a page of
their own; then everything in them is clicked, hovered and told whatever may start a script.
"""

import base64
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
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
from tests.conftest import Client, receive
from tests.support.clients.browser_driver import PATIENCE, started_browser

SHARED = pytest.mark.asyncio(loop_scope="module")  # runs in the loop of the shared browser
LEAST = 200
PAGE = "https://judge.invalid/"
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|([tnr\\]))")
LETTERS = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
SPY = """
window.hit = (...said) => { console.error('HIT', ...said) }
for (const name of ['alert', 'confirm', 'prompt', 'print', 'open']) window[name] = window.hit
"""
# A link to the web may be followed, which leaves the page; all others are followed to the end.
PROVOKE = r"""async () => {
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
LOOK = r"""() => [...document.querySelectorAll('#letters *')].map(each => {
    const style = getComputedStyle(each)
    return {
        tag: each.localName, space: each.namespaceURI, protocol: each.href ? each.protocol : '',
        attributes: [...each.attributes].map(one => one.name), target: each.target || '',
        rel: each.rel || '', position: style.position, image: style.backgroundImage,
        text: each.outerHTML.slice(0, 200),
    }
})"""
SCRIPTED = re.compile("on|form|xlink|srcdoc|action|ping")
WEB = {"http:", "https:", "mailto:", "tel:", ""}
NEVER = word_set(
    "script style iframe frame frameset object embed applet base link meta form input button select"
    " textarea option template slot svg math video audio source track portal dialog marquee"
    " noscript xmp plaintext title head body html picture map area image xss"
)


@cache
def families() -> dict[str, list[str]]:
    """The vectors, by family."""
    found: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("hostile_html.txt").read_text().split("\n"):
        if heading := re.fullmatch(r"\[(\w+)\]", line):
            found[heading[1]] = vectors = []
        elif line and not line.startswith("# "):
            vectors.append(ESCAPE.sub(_plain, line))
    return found


def _plain(found: re.Match[str]) -> str:
    short, long, letter = found.groups()
    return LETTERS[letter] if letter else chr(int(short or long, 16))


FAMILIES = ("handlers", "urls", "markup", "drawings", "styles", "pixels")


@dataclass
class Judge:
    """A browser in which letters are shown, and what they did there."""

    page: Page
    hits: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    async def begin(self) -> None:
        """Watch."""
        self.page.on("console", self._said)
        self.page.set_default_timeout(PATIENCE)
        await self.page.add_init_script(SPY)
        await self.page.context.route("**/*", self._asked)

    def _said(self, message: ConsoleMessage) -> None:
        if message.text.startswith("HIT"):
            self.hits.append(message.text)

    async def _asked(self, route: Route) -> None:
        if route.request.url == PAGE:
            body = "<!DOCTYPE html><body><div id=letters></div>"
            await route.fulfill(content_type="text/html", body=body)
        else:
            self.asked.append(route.request.url)
            await route.abort()

    async def show(self, letters: list[str]) -> list[Any]:
        """Put letters into a page, each into an element of its own; what is there then."""
        await self.page.goto(PAGE)
        await self.page.evaluate(
            """letters => {
                for (const letter of letters) {
                    const frame = document.createElement('div')
                    document.getElementById('letters').append(frame)
                    frame.innerHTML = letter
                }
            }""",
            letters,
        )
        there: list[Any] = await self.page.evaluate(LOOK)
        await self.page.evaluate(PROVOKE)
        return there

    async def open(self, letters: list[str]) -> list[Any]:
        """The same with a page that is made of them."""
        await self.page.goto(PAGE)
        page = "".join(f"<div>{letter}</div>" for letter in letters)
        await self.page.set_content(f"<!DOCTYPE html><body><div id=letters>{page}</div>")
        there: list[Any] = await self.page.evaluate(LOOK)
        await self.page.evaluate(PROVOKE)
        return there


@asynccontextmanager
async def judging(browser: Browser) -> AsyncGenerator[Judge]:
    """A judge with an empty profile."""
    context = await browser.new_context(viewport={"width": 800, "height": 600})
    try:
        judge = Judge(await context.new_page())
        await judge.begin()
        yield judge
    finally:
        await context.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with started_browser() as browser:
        yield browser


@pytest_asyncio.fixture(loop_scope="module")
async def judge(browser: Browser) -> AsyncIterator[Judge]:
    async with judging(browser) as judge:
        yield judge


def sound(there: list[Any]) -> None:
    """Nothing is there that could do more than be read."""
    assert there
    for each in there:
        text = each["text"]
        assert each["tag"] not in NEVER, text
        assert each["space"] == "http://www.w3.org/1999/xhtml", text
        assert each["protocol"] in WEB, text
        assert not [
            name for name in each["attributes"] if re.match(r"on|form|xlink|srcdoc", name)
        ], text
        assert each["position"] == "static", text
        assert each["image"] == "none", text
        if "href" in each["attributes"]:
            assert (each["target"], each["rel"]) == ("_blank", "noopener noreferrer"), text


def test_there_are_enough_of_them_and_none_twice() -> None:
    found = families()
    assert tuple(found) == FAMILIES
    every = [vector for vectors in found.values() for vector in vectors]
    assert len(every) >= LEAST
    assert len(set(every)) >= len(every) - 2


@SHARED
@pytest.mark.parametrize("family", ["handlers", "urls", "markup", "drawings"])
async def test_the_judge_sees_scripts_that_run(judge: Judge, family: str) -> None:
    for vector in families()[family][:6]:
        await judge.page.goto(PAGE)
        await judge.page.set_content(f"<body>{vector}", wait_until="commit")
        try:
            await judge.page.evaluate(PROVOKE.replace("300", "20"))
        except Error:  # the page went elsewhere meanwhile
            assert judge.asked or judge.hits
    assert judge.hits


@SHARED
@pytest.mark.parametrize("family", ["styles", "pixels"])
async def test_the_judge_sees_what_is_asked_for(judge: Judge, family: str) -> None:
    await judge.show(families()[family][:25])
    assert len(set(judge.asked)) > 10


@SHARED
@pytest.mark.parametrize("family", FAMILIES)
async def test_nothing_in_a_letter_runs_or_loads(judge: Judge, family: str) -> None:
    letters = [
        sanitize_html(vector, allow_remote_images=False, url_for_content_id=lambda _: None).html
        for vector in families()[family]
    ]
    for way in (judge.show, judge.open):
        sound(await way(letters))
    assert judge.hits == []
    assert judge.asked == []


@SHARED
@pytest.mark.parametrize("family", FAMILIES)
async def test_with_images_from_elsewhere_nothing_but_images_comes(
    judge: Judge, family: str
) -> None:
    letters = [
        sanitize_html(vector, allow_remote_images=True, url_for_content_id=lambda _: None).html
        for vector in families()[family]
    ]
    for way in (judge.show, judge.open):
        for each in await way(letters):
            assert each["tag"] not in NEVER, each["text"]
            assert each["protocol"] in WEB, each["text"]
    assert judge.hits == []
    assert all(re.search(r"\.(gif|png)|[jv]a?[vs]", url) for url in judge.asked), judge.asked


async def test_by_way_of_a_message_they_do_no_more(ada: Client) -> None:
    every = [vector for vectors in families().values() for vector in vectors]
    part = (
        "--x\r\nContent-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
    )
    body = "\r\n".join(part + base64.b64encode(vector.encode()).decode() for vector in every)
    raw = f"Subject: All\r\nContent-Type: multipart/mixed; boundary=x\r\n\r\n{body}\r\n--x--\r\n"
    key = (await receive(ada, raw.encode())).message_id
    document = "query ($id: ID!) { message(by: {id: $id}) { html remoteImageCount text } }"
    found = (await ada(document, id=global_ids.encode("Message", key)))["message"]
    assert len(found["html"]) == len(every)
    assert found["remoteImageCount"] > 30
    async with started_browser() as browser, judging(browser) as judge:
        sound(await judge.show(found["html"]))
        sound(await judge.open(found["html"]))
        assert judge.hits == []
        assert judge.asked == []


@SHARED
async def test_what_is_nested_beyond_all_bounds_is_shown_as_text(judge: Judge) -> None:
    before = time.process_time()
    found = sanitize_html(
        "<div><b>" * 50_000 + "deep", allow_remote_images=True, url_for_content_id=lambda _: None
    )
    assert time.process_time() - before < 2
    assert found.too_complex
    (frame, one) = await judge.show([found.html])
    assert (frame["tag"], one["tag"], one["attributes"]) == ("div", "div", ["style"])
