"""The documentation as web pages below `/docs/`, with full-text search.

The Markdown file `api/errors.md` is the web page `/docs/api/errors`. Its Markdown is served at
`/docs/api/errors.md`, for programs. `/llms.txt` lists all Markdown pages.
"""

import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from html import escape, unescape
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from graph.http.admission_control import AdmissionControl
from graph.http.byte_responses import matches_etag
from graph.http.http_errors import client_ip_address, rejection_of_error
from graph.http.pages.documentation_markdown import (
    is_served_link,
    llms_text,
    markdown_twin,
)
from models.errors import RateLimited

_START_PAGE = "README.md"
_MAX_QUERY_LENGTH = 200  # characters
_MAX_QUERY_WORDS = 10
_MAX_RESULTS = 30
SEARCH_POINTS = 1_000  # of the rate budget of the network: a search takes 5 to 20 ms
_IMAGE_SUFFIXES = (".png", ".svg")
_HEADING = re.compile(r"^#{1,6} +(.+)$", re.MULTILINE)
_WORD = re.compile(r"\w+")
_PAGE_LINK = re.compile(r"\.md(?=#|$)")
_CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
_MARK = re.compile(r"</?mark>")
_ALTERNATE_LINK = '<link rel="alternate" type="text/markdown" href="{}">\n'
_HTML = "text/html"
_MARKDOWN = "text/markdown"
_STYLESHEET = Path(__file__).with_name("documentation.css")
_PAGE_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title} · Merganser</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="{root}docs.css">
{alternate}</head>
<body>
<header>
<nav><a href="{root}">Documentation</a> <a href="{root}reference/">Reference</a>
<a href="{root}../graphql">GraphiQL</a></nav>
<form action="{root}search" role="search">
<input type="search" name="q" value="{query}" maxlength="200" required aria-label="Search">
<button>Search</button>
</form>
</header>
<main>
{content}
</main>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """A section that contains the words of a search."""

    path: str  # of the page, with the anchor of the section
    page_title: str
    heading: str
    excerpt: str  # HTML, with the words in <mark>


def heading_anchor(heading: str) -> str:
    """Return the anchor of a heading, by the rule of GitHub."""
    plain = heading.replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def documentation_routes(folder: Path | None, admission: AdmissionControl) -> list[BaseRoute]:
    """Return the routes below `/docs`, or none without a folder."""
    return DocumentationPages(folder, admission).routes() if folder else []


class DocumentationPages:
    """The Markdown files of a folder as HTML. Files and index are read at the first request."""

    def __init__(self, folder: Path, admission: AdmissionControl) -> None:
        self._folder = folder
        self._admission = admission
        self._lock = Lock()  # one search or rendering at a time
        self._html_by_path: dict[str, str] = {}

    @cached_property
    def _page_and_image_paths(self) -> frozenset[str]:
        return frozenset(
            path.relative_to(self._folder).as_posix()
            for path in self._folder.rglob("*")
            if path.suffix in {".md", *_IMAGE_SUFFIXES}
        )

    def routes(self) -> list[BaseRoute]:
        """Return the routes of the pages, the search, the stylesheet and `/llms.txt`."""
        return [
            Route("/llms.txt", self._serve_llms_text),
            Route("/docs", _redirect_to_start),
            Route("/docs/search", self._serve_search),
            Route("/docs/docs.css", _serve_stylesheet),
            Route("/docs/{path:path}", self._serve_file),
        ]

    async def _serve_file(self, request: Request) -> Response:
        """Serve a page, its Markdown or an image. Raises HTTPException 404 if it doesn't exist."""
        path = request.path_params["path"]
        if path in self._page_and_image_paths:
            if path.endswith(_IMAGE_SUFFIXES):
                return FileResponse(self._folder / path)
            return _text_response(
                request, await run_in_threadpool(self.page_markdown, path), _MARKDOWN
            )
        page = f"{path}{_START_PAGE}" if path.endswith("/") or not path else f"{path}.md"
        if page not in self._page_and_image_paths:
            raise HTTPException(404)
        return _text_response(request, await run_in_threadpool(self.page_html, page), _HTML)

    async def _serve_llms_text(self, request: Request) -> Response:
        return _text_response(request, await run_in_threadpool(self.llms_text), "text/plain")

    async def _serve_search(self, request: Request) -> Response:
        """Serve the results of a search.

        Raises HTTPException 400 if the query is too long, 429 after too many searches.
        """
        query = request.query_params.get("q", "")
        if len(query) > _MAX_QUERY_LENGTH:
            raise HTTPException(400, f"The search has at most {_MAX_QUERY_LENGTH} characters.")
        self._charge_search_or_refuse(request)
        results = await run_in_threadpool(self.search, query)
        vary = {"Vary": "Accept"}
        if _MARKDOWN in request.headers.get("accept", ""):
            return _text_response(request, _results_markdown(results), _MARKDOWN, vary)
        content = _results_html(query, results)
        page = _PAGE_TEMPLATE.format(
            title="Search", root="./", query=escape(query), content=content, alternate=""
        )
        return _text_response(request, page, _HTML, vary)

    def _charge_search_or_refuse(self, request: Request) -> None:
        """Charge the rate budget of the network. Raises HTTPException 429 if it is used up."""
        try:
            self._admission.charge_anonymous_request(client_ip_address(request), SEARCH_POINTS)
        except RateLimited as error:
            headers = rejection_of_error(error, {}).headers
            raise HTTPException(429, "Too many searches: try again later.", headers) from None

    def llms_text(self) -> str:
        """Return the list of all pages for programs, whose links are relative to `/llms.txt`."""
        return llms_text(self._read_page, self._page_and_image_paths)

    def page_markdown(self, path: str) -> str:
        """Return the Markdown of a page without links to files that aren't served."""
        return markdown_twin(self._read_page(path), path, self._page_and_image_paths)

    def _read_page(self, path: str) -> str:
        return (self._folder / path).read_text(encoding="utf-8")

    def page_html(self, path: str) -> str:
        """Return a page, which is rendered once."""
        with self._lock:
            if path not in self._html_by_path:
                text = self._read_page(path)
                self._html_by_path[path] = _PAGE_TEMPLATE.format(
                    title=escape(_page_title(text)),
                    root="../" * path.count("/") or "./",
                    query="",
                    alternate=_ALTERNATE_LINK.format(Path(path).name),
                    content=_content_html(text, path, self._page_and_image_paths),
                )
            return self._html_by_path[path]

    def search(self, query: str) -> list[SearchResult]:
        """Return the sections that contain all words of a query, the best match first.

        The last word can be incomplete.
        """
        words = _WORD.findall(query)[:_MAX_QUERY_WORDS]
        if not words:
            return []
        pattern = " ".join(f'"{word}"' for word in words) + "*"
        with self._lock:
            rows = self._search_index.execute(
                "SELECT path, title, heading, snippet(sections, 3, char(1), char(2), ' … ', 30)"
                " FROM sections WHERE sections MATCH ? ORDER BY bm25(sections, 0, 5, 10, 1)"
                " LIMIT ?",
                (pattern, _MAX_RESULTS),
            )
            return [
                SearchResult(path, title, heading, _marked_html(excerpt))
                for path, title, heading, excerpt in rows
            ]

    @cached_property
    def _search_index(self) -> sqlite3.Connection:
        connection = sqlite3.connect(":memory:", check_same_thread=False)
        connection.execute(
            "CREATE VIRTUAL TABLE sections USING fts5(path UNINDEXED, title, heading, body,"
            " tokenize = 'porter unicode61', prefix = '2 3')"
        )
        for path in sorted(self._page_and_image_paths):
            if path.endswith(".md"):
                sections = _documentation_sections(path, self._read_page(path))
                connection.executemany("INSERT INTO sections VALUES (?, ?, ?, ?)", sections)
        return connection


def _page_title(text: str) -> str:
    heading = _HEADING.search(text)
    return heading[1].replace("`", "") if heading else "Documentation"


class _DocumentationSection(NamedTuple):
    """A section of a page without markup, as a row of the search index."""

    path_with_anchor: str
    page_title: str
    heading: str
    text: str


def _documentation_sections(path: str, text: str) -> Iterator[_DocumentationSection]:
    """Yield the sections of a Markdown page."""
    title, heading, parts = _page_title(text), "", list[str]()
    is_heading = False
    for token in _markdown_parser().parse(text):
        if token.type == "heading_open":
            if heading or parts:
                location = f"{path}#{heading_anchor(heading)}"
                yield _DocumentationSection(location, title, heading, " ".join(parts))
            parts = []
        elif is_heading:
            heading = _plain_text(token)
        elif token.content:
            parts.append(_plain_text(token))
        is_heading = token.type == "heading_open"
    location = f"{path}#{heading_anchor(heading)}"
    yield _DocumentationSection(location, title, heading, " ".join(parts))


def _plain_text(token: Token) -> str:
    """Return the text of a block without its markup."""
    if not token.children:
        return token.content
    return "".join(" " if child.type == "softbreak" else child.content for child in token.children)


def _content_html(text: str, path: str, files: frozenset[str]) -> str:
    """Render Markdown without raw HTML. Links to files outside the folder become text."""
    parser = _markdown_parser()
    tokens = parser.parse(text)
    for number, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", heading_anchor(tokens[number + 1].content))
        if token.children:
            token.children = [*_without_links_to_unserved_files(token.children, path, files)]
    html: str = parser.renderer.render(tokens, parser.options, {})
    return html


@cache
def _markdown_parser() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": False}).enable("table")


def _without_links_to_unserved_files(
    tokens: list[Token], path: str, files: frozenset[str]
) -> Iterator[Token]:
    """Yield the tokens without links to files that are not served; the text of the links stays.

    Other relative links are changed in place, to the HTML page of their file.
    """
    is_dropped = False
    for token in tokens:
        if token.type == "link_open":
            href = str(token.attrGet("href"))
            is_dropped = not is_served_link(href, path, files)
            if "://" not in href:
                token.attrSet("href", _html_path(href))
        if not (is_dropped and token.type in {"link_open", "link_close"}):
            yield token


def _html_path(path: str) -> str:
    """Return the path of the web page of a Markdown file. An anchor is kept."""
    return _PAGE_LINK.sub("", path, count=1)


def _marked_html(excerpt: str) -> str:
    return escape(excerpt).replace("\x01", "<mark>").replace("\x02", "</mark>")


def _results_html(query: str, results: list[SearchResult]) -> str:
    count = f"{len(results)} results" if len(results) < _MAX_RESULTS else "The first 30 results"
    items = "".join(
        f'<li><a href="{escape(_html_path(result.path))}">{escape(result.page_title)}'
        f"{f': {escape(result.heading)}' if result.heading != result.page_title else ''}</a>"
        f"<p>{result.excerpt}</p></li>"
        for result in results
    )
    return f"<h1>Search</h1><p>{count} for “{escape(query)}”.</p><ol class=results>{items}</ol>"


def _results_markdown(results: list[SearchResult]) -> str:
    items = [
        f"- [{result.page_title}{f': {result.heading}' if result.heading else ''}]({result.path}): "
        f"{' '.join(unescape(_MARK.sub('', result.excerpt)).split())}"
        for result in results
    ]
    return "\n".join(["# Search", "", *(items or ["Nothing was found."]), ""])


def _text_response(
    request: Request, text: str, media_type: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a text with an ETag, or 304 if the client has it already (RFC 9110)."""
    body = text.encode()
    tag = f'"{sha256(body).hexdigest()}"'
    headers = {
        "Content-Security-Policy": _CONTENT_SECURITY_POLICY,
        "Cache-Control": "no-cache",
        "ETag": tag,
        "X-Content-Type-Options": "nosniff",
        **(headers or {}),
    }
    if matches_etag(request.headers.get("if-none-match", ""), tag, is_weak_comparison=True):
        return Response(status_code=304, headers=headers)
    return Response(body, headers=headers, media_type=media_type)


async def _redirect_to_start(_request: Request) -> Response:
    return RedirectResponse("docs/")


async def _serve_stylesheet(_request: Request) -> Response:
    return FileResponse(_STYLESHEET, headers={"Cache-Control": "no-cache"})
