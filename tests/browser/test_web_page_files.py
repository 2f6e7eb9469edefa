"""Tests of the GraphiQL page and its files over HTTP."""

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
    database = Database(store_fixtures.copy_sqlite_template(sqlite_template, tmp_path))
    blobs = FolderStore(tmp_path / "blobs")
    app = create_app(Environment(database, blobs, signing_secret=b"s" * 32), spool_folder=tmp_path)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=app), base_url="http://test"
    ) as client:
        yield client
    await blobs.close()
    await database.close()


async def list_page_files(http: httpx.AsyncClient) -> list[str]:
    page = await http.get("/graphql", headers={"Accept": "text/html"})
    return re.findall(r'(?:src|href)="(graphiql/[^"]+)"', page.text)


async def test_page_allows_no_inline_script_and_no_other_host(http: httpx.AsyncClient) -> None:
    page = await http.get("/graphql", headers={"Accept": "text/html"})
    policy = page.headers["content-security-policy"]
    assert "script-src" not in policy
    assert policy.startswith("default-src 'self';")
    assert not re.search(r"https?:|\*|unsafe-eval", policy)
    assert not re.search(r"<script(?![^>]* src=)", page.text)
    assert not re.search(r"//[a-z]", page.text)


async def test_linked_files_are_immutable_in_caches(http: httpx.AsyncClient) -> None:
    file_links = await list_page_files(http)
    assert {link.rsplit("/", 1)[1] for link in file_links} == {"graphiql.js", "graphiql.css"}
    for link in file_links:
        response = await http.get(f"/{link}")
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        assert response.headers["x-content-type-options"] == "nosniff"


async def test_file_url_of_other_version_is_not_cached(
    http: httpx.AsyncClient,
) -> None:
    response = await http.get("/graphiql/yesterday/editor.worker.js")
    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["content-type"].startswith("text/javascript")


@pytest.mark.parametrize(
    ("accept_encoding", "compressed"),
    [("gzip, br", True), ("*", True), ("", False), ("gzip;q=0, *", False), ("br", False)],
)
async def test_files_are_compressed_if_client_accepts_gzip(
    http: httpx.AsyncClient, accept_encoding: str, compressed: bool
) -> None:
    headers = {"Accept-Encoding": accept_encoding}
    async with http.stream("GET", "/graphiql/x/graphiql.css", headers=headers) as response:
        body = b"".join([chunk async for chunk in response.aiter_raw()])
    assert response.headers.get("content-encoding") == ("gzip" if compressed else None)
    assert response.headers["vary"] == "Accept-Encoding"
    assert b"merganser-bar" in (gzip.decompress(body) if compressed else body)


@pytest.mark.parametrize(
    "name", ["../graphiql.py", "%2e%2e%2fgraphiql.py", "graphiql.js.gz", "nothing.js", ""]
)
async def test_other_paths_are_not_found(http: httpx.AsyncClient, name: str) -> None:
    assert (await http.get(f"/graphiql/x/{name}")).status_code == 404


async def test_built_examples_equal_their_sources(
    http: httpx.AsyncClient,
) -> None:
    built = json.loads((await http.get("/graphiql/x/examples.json")).text)
    example_texts = [
        path.read_text() for path in sorted((WEBUI / "operations").glob("*/*.graphql"))
    ]
    assert [example["query"] for example in built["examples"]] == example_texts
    page_texts = {path.stem: path.read_text() for path in (WEBUI / "page").glob("*.graphql")}
    assert built["page"] == page_texts
