"""The page and its files, as HTTP sees them."""

import gzip
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph.app import create_app
from mail.storage.blobs.object_stores import FolderStore
from models.runtime.environment import Environment
from models.store.database import Database
from tests.support.stores import store_fixtures

WEBUI = Path(__file__).parents[2] / "webui"


@pytest.fixture
async def http(sqlite_template: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    database = Database(store_fixtures.copied(sqlite_template, tmp_path))
    blobs = FolderStore(tmp_path / "blobs")
    app = create_app(Environment(database, blobs, signing_secret=b"s" * 32), spool_folder=tmp_path)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client
    await blobs.close()
    await database.close()


async def links(http: httpx.AsyncClient) -> list[str]:
    page = await http.get("/graphql", headers={"Accept": "text/html"})
    return re.findall(r'(?:src|href)="(graphiql/[^"]+)"', page.text)


async def test_the_page_allows_no_inline_script_and_no_other_host(http: httpx.AsyncClient) -> None:
    page = await http.get("/graphql", headers={"Accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert "script-src" not in policy
    assert policy.startswith("default-src 'self';")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert not re.search(r"<script(?![^>]* src=)", page.text)
    assert not re.search(r"//[a-z]", page.text)


async def test_what_the_page_links_to_is_kept_for_ever(http: httpx.AsyncClient) -> None:
    found = await links(http)
    assert {link.rsplit("/", 1)[1] for link in found} == {"graphiql.js", "graphiql.css"}
    for link in found:
        answer = await http.get(f"/{link}")
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_an_address_of_another_version_is_answered_but_not_kept(
    http: httpx.AsyncClient,
) -> None:
    answer = await http.get("/graphiql/yesterday/editor.worker.js")
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [("gzip, br", True), ("*", True), ("", False), ("gzip;q=0, *", False), ("br", False)],
)
async def test_files_are_sent_packed_to_those_who_take_it(
    http: httpx.AsyncClient, accepted: str, packed: bool
) -> None:
    headers = {"Accept-Encoding": accepted}
    async with http.stream("GET", "/graphiql/x/graphiql.css", headers=headers) as answer:
        body = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert answer.headers.get("content-encoding") == ("gzip" if packed else None)
    assert answer.headers["vary"] == "Accept-Encoding"
    assert b"merganser-bar" in (gzip.decompress(body) if packed else body)


@pytest.mark.parametrize(
    "name", ["../graphiql.py", "%2e%2e%2fgraphiql.py", "graphiql.js.gz", "nothing.js", ""]
)
async def test_there_is_nothing_else_to_fetch(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/graphiql/x/{name}")).status_code == 404


async def test_the_examples_that_were_built_are_those_of_the_sources(
    http: httpx.AsyncClient,
) -> None:
    built = json.loads((await http.get("/graphiql/x/examples.json")).text)
    shown = [path.read_text() for path in sorted((WEBUI / "operations").glob("*.graphql"))]
    assert [example["query"] for example in built["examples"]] == shown
    own = {path.stem: path.read_text() for path in (WEBUI / "page").glob("*.graphql")}
    assert built["page"] == own
