"""The pages below /docs and /llms.txt: all are served, links resolve, the search finds sections."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
from starlette.applications import Starlette

from graph.http.admission_control import AdmissionControl
from graph.http.pages.documentation import SEARCH_POINTS, DocumentationPages, heading_anchor
from graph.http.rate_budgets import MIN_CAPACITY, PointRates, RateBudgets
from tests.support.case_loop import each_case

DOCS = Path(__file__).parents[2] / "docs"
LINK = re.compile(r'<a href="([^"]+)"')
MARKDOWN_LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED_BLOCK = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
PATHS = [path.relative_to(DOCS).as_posix() for path in sorted(DOCS.rglob("*.md"))]


@pytest.fixture(scope="module")
def app() -> Starlette:
    """The application of all tests, which renders each page once and has one search index."""
    without_limits = AdmissionControl(RateBudgets(PointRates(0, 0, 0)))
    return Starlette(routes=DocumentationPages(DOCS, without_limits).routes())


@pytest.fixture
async def http(app: Starlette) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://docs") as client:
        yield client


def relative_links(text: str) -> list[str]:
    """Return the links of a Markdown page to pages of the same server."""
    links = MARKDOWN_LINK.findall(FENCED_BLOCK.sub("", text))
    return [link for link in links if not urlsplit(link).scheme]


async def test_every_page_is_served_and_its_links_resolve(http: httpx.AsyncClient) -> None:
    names = [path.removesuffix(".md") for path in PATHS]
    pages = {f"/docs/{name}": await http.get(f"/docs/{name}") for name in names}
    pages |= {"/docs/reference/": pages["/docs/reference/README"]}
    for url, page in pages.items():
        assert page.status_code == 200, url
        assert "<h1" in page.text, url
        for link in LINK.findall(page.text):
            target = urlsplit(urljoin(f"http://docs{url}", link))
            if target.netloc != "docs" or target.path in {"/docs/", "/graphql"}:
                continue
            if target.path.endswith(".png"):
                assert (await http.get(target.path)).status_code == 200, (url, link)
                continue
            assert target.path in pages, (url, link)
            if target.fragment:
                assert f' id="{target.fragment}"' in pages[target.path].text, (url, link)


async def test_every_page_has_a_markdown_twin_with_valid_links(http: httpx.AsyncClient) -> None:
    for path in PATHS:
        twin = await http.get(f"/docs/{path}")
        content_type = twin.headers["content-type"]
        assert (twin.status_code, content_type) == (200, "text/markdown; charset=utf-8"), path
        assert twin.text.startswith("# "), path
        page = (await http.get(f"/docs/{path.removesuffix('.md')}")).text
        assert f'<link rel="alternate" type="text/markdown" href="{Path(path).name}">' in page, path
        for link in relative_links(twin.text):
            target = urlsplit(urljoin(f"http://docs/docs/{path}", link)).path
            is_served = target.removeprefix("/docs/") in PATHS or target.endswith(".png")
            assert is_served, (path, link)
            assert (DOCS / target.removeprefix("/docs/")).exists(), (path, link)


async def test_llms_txt_lists_all_pages(http: httpx.AsyncClient) -> None:
    response = await http.get("/llms.txt")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    lines = response.text.splitlines()
    assert (lines[0], lines[2][:2]) == ("# Merganser", "> ")  # as https://llmstxt.org says
    reached = set[str]()
    for link in relative_links(response.text):
        target = urlsplit(urljoin("http://docs/llms.txt", link)).path
        listed = await http.get(target)
        assert (listed.status_code, listed.headers["content-type"][:13]) == (200, "text/markdown")
        reached.add(target)
        if "/reference/" in target:  # the lists of the areas have the other pages
            reached |= {
                urlsplit(urljoin(f"http://docs{target}", below)).path
                for below in relative_links(listed.text)
            }
    assert {f"/docs/{path}" for path in PATHS} <= reached | {
        "/docs/README.md", "/docs/reference/README.md"
    }  # fmt: skip


async def test_unchanged_text_is_not_sent_again(http: httpx.AsyncClient) -> None:
    cases: list[str] = [
        "/llms.txt",
        "/docs/",
        "/docs/api/errors",
        "/docs/api/errors.md",
        "/docs/search?q=dkim",
    ]
    for case in each_case(cases):
        with case as path:
            first = await http.get(path)
            headers = {"If-None-Match": first.headers["etag"]}
            again = await http.get(path, headers=headers)
            assert (again.status_code, again.text) == (304, "")
            for name in ("etag", "cache-control", "content-security-policy"):
                assert again.headers[name] == first.headers[name]
            assert (await http.get(path, headers={"If-None-Match": '"other"'})).text == first.text
            assert (await http.head(path)).headers["etag"] == first.headers["etag"]


def test_markdown_twin_keeps_code_and_drops_links_to_other_folders(tmp_path: Path) -> None:
    code = "```python\nitems[0](../x.md)\n```\n"
    (tmp_path / "README.md").write_text(
        f"# A\n\n[a [b]](../x.md) [c](README.md#a) [d](https://example.com) ![e](x.png)\n\n{code}"
    )
    twin = DocumentationPages(tmp_path, AdmissionControl()).page_markdown("README.md")
    text = "a [b] [c](README.md#a) [d](https://example.com) ![e](x.png)"
    assert twin == f"# A\n\n{text}\n\n{code}"


async def test_start_page_is_the_table_of_contents(http: httpx.AsyncClient) -> None:
    redirect = await http.get("/docs")
    assert redirect.headers["location"] == "docs/"
    start, contents = await http.get("/docs/"), await http.get("/docs/README")
    assert (start.status_code, start.text) == (200, contents.text)
    assert (await http.get("/docs/reference/")).text.count("<h1") == 1


async def test_search_finds_sections_by_all_words(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs/search", params={"q": "messageSend"})).text
    assert '"reference/submission/messageSend#messagesend"' in page
    assert '<a href="./">' in page  # an empty link would lead to the search itself
    incomplete = (await http.get("/docs/search", params={"q": "messageSe"})).text
    assert '"reference/submission/messageSend#messagesend"' in incomplete
    for link in LINK.findall(page):
        target = urlsplit(urljoin("http://docs/docs/search", link))
        if target.path != "/graphql":
            assert (await http.get(target.path)).status_code == 200, link


async def test_search_answers_markdown_to_programs(http: httpx.AsyncClient) -> None:
    response = await http.get(
        "/docs/search", params={"q": "undo send"}, headers={"Accept": "text/markdown"}
    )
    assert response.headers["content-type"] == "text/markdown; charset=utf-8"
    assert response.headers["vary"] == "Accept"
    assert "<mark>" not in response.text
    links = relative_links(response.text)
    assert links
    for link in links:
        target = urlsplit(urljoin("http://docs/docs/search", link))
        assert (await http.get(target.path)).headers["content-type"].startswith("text/markdown")


def test_search_shows_text_without_markup(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(
        "# A `b`\n\nSee [the *quota*](x.md).\n\n```sh\n# no heading\n```\n\n"
        "| name | meaning |\n|---|---|\n| `quota` | size |\n"
    )
    (result,) = DocumentationPages(tmp_path, AdmissionControl()).search("quota")
    assert (result.heading, result.path) == ("A b", "README.md#a-b")
    text = "See the <mark>quota</mark>. # no heading\n name meaning <mark>quota</mark> size"
    assert result.excerpt == text


async def test_search_takes_any_characters_as_text(http: httpx.AsyncClient) -> None:
    cases: list[str] = [
        "",
        "  ",
        '"',
        "'; DROP TABLE sections --",
        "AND OR NOT",
        "path:x",
        "*",
        "NEAR(a b)",
    ]
    for case in each_case(cases):
        with case as query:
            response = await http.get("/docs/search", params={"q": query})
            assert response.status_code == 200


async def test_search_result_has_no_markup_of_the_query(http: httpx.AsyncClient) -> None:
    page = (await http.get("/docs/search", params={"q": "<script>alert(1)</script>"})).text
    assert "<script" not in page


async def test_too_long_search_is_refused(http: httpx.AsyncClient) -> None:
    assert (await http.get("/docs/search", params={"q": "a" * 201})).status_code == 400


async def test_searches_of_a_network_are_limited(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# Start\n")
    seconds = 0.0
    budgets = RateBudgets(PointRates(anonymous=100), clock=lambda: seconds)
    app = Starlette(routes=DocumentationPages(tmp_path, AdmissionControl(budgets)).routes())

    async def search_from(ip_address: str) -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=(ip_address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://docs") as client:
            return await client.get("/docs/search", params={"q": "start"})

    for _ in range(MIN_CAPACITY // SEARCH_POINTS):
        assert (await search_from("192.0.2.1")).status_code == 200
    refused = await search_from("192.0.2.1")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    assert (await search_from("192.0.2.2")).status_code == 200
    seconds += 10
    assert (await search_from("192.0.2.1")).status_code == 200


async def test_files_outside_the_folder_are_not_found(http: httpx.AsyncClient) -> None:
    cases: list[str] = [
        "../README.md",
        "%2e%2e/README.md",
        "api/../../README.md",
        "nothing.md",
        "%00",
    ]
    for case in each_case(cases):
        with case as path:
            response = await http.get(httpx.URL(f"http://docs/docs/{path}"))
            assert response.status_code == 404


async def test_pages_allow_no_script(http: httpx.AsyncClient) -> None:
    page = await http.get("/docs/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src")
    assert "<script" not in page.text


def test_raw_html_in_a_page_is_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("# A\n\n<script>x</script> [b](javascript:alert(1))\n")
    page = DocumentationPages(tmp_path, AdmissionControl()).page_html("README.md")
    assert "&lt;script&gt;" in page
    assert 'href="javascript' not in page


def test_anchor_of_heading_follows_the_rule_of_github() -> None:
    assert heading_anchor("`DKIM` keys: create, rotate") == "dkim-keys-create-rotate"
