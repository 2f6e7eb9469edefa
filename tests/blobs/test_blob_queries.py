"""Queries of the objects of the object stores: lists, folders, references and rights."""

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from mail.storage.blobs import tier_move
from mail.storage.blobs.object_stores import FolderStore, new_object_name
from mail.storage.blobs.tiered_store import TieredStore
from models.auth.security_log import SecurityEventAction
from models.events.incarnation import MARK_OBJECT_NAME
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role
from resolvers.blobs import loaders
from resolvers.blobs.loaders import BlobConditions
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.security_events import load_security_events
from tests.support.case_loop import each_case
from tests.support.operations.file_operations import upload_file
from tests.support.operations.platform.blob_operations import (
    BLOB_QUERY,
    TEXT_QUERY,
    deliver_large_message,
    deliver_text_attachment,
    large_body,
    list_blobs,
    load_audit_entries,
    object_paths,
    put_blob,
)
from tests.support.stores.counter_check import select_rows

PREFIXES_QUERY = """query ($filter: BlobFilter, $orderBy: BlobOrder!, $first: Int, $after: String) {
  blobPrefixes(filter: $filter, orderBy: $orderBy, first: $first, after: $after) {
  nodes { store path } totalCount pageInfo { hasNextPage endCursor } } }"""
WRONG_PATHS = (
    "", "/", "..", "../etc/passwd", "admin/../00/x", "/admin/x", "admin//x", "admin/x\0", "ab/",
    "C:\\x", "admin/" + "x/" * 10_000, "admin/" + "x" * 1_000_000, "ab/%2e%2e", "zz/x",
    MARK_OBJECT_NAME, "admin/.part-x", "file:///etc/passwd", "s3://bucket/x",
)  # fmt: skip
TEXT_LIMIT = "From 1 to 1048576 bytes can be read."
NO_STORE = "There is no object store with this name."
WRONG_PREFIXES = ("/", "..", "admin/..", "admin//", "a\0", "x/" * 10_000, "x" * 1_000_000, "a*")
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def boss(root: GraphQLClient) -> GraphQLClient:
    """A client of a user with the role ROOT."""
    return await make_client(root.environment, root.http, "boss", role=Role.ROOT)


@pytest.fixture
async def tiered_root(root: GraphQLClient, tmp_path: Path) -> AsyncIterator[GraphQLClient]:
    """A client with the key of the platform on a server with a second object store."""
    cold_store = FolderStore(tmp_path / "cold")
    environment = replace(
        root.environment, object_store=TieredStore(root.environment.object_store, cold_store)
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=tmp_path))
    http = httpx.AsyncClient(transport=transport, base_url="http://tiers")
    yield replace(root, http=http, environment=environment)
    await cold_store.close()


def error_code_and_message(response: Any) -> tuple[str, str]:
    """The code and the message of the only error of a query."""
    (error,) = response["errors"]
    return error["extensions"]["code"], error["message"]


async def paths_of_pages(client: GraphQLClient, **variables: Any) -> list[str]:
    """The paths of all pages of two objects."""
    is_backward = "last" in variables
    paths: list[str] = []
    cursor: dict[str, Any] = {}
    while True:
        page = await list_blobs(client, **variables, **cursor)
        found = [node["path"] for node in page["nodes"]]
        paths = found + paths if is_backward else paths + found
        info = page["pageInfo"]
        if not info["hasPreviousPage" if is_backward else "hasNextPage"]:
            assert page["totalCount"] == len(paths)
            return paths
        cursor = {"before": info["startCursor"]} if is_backward else {"after": info["endCursor"]}


async def test_objects_of_mail_are_listed_with_their_references(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, tmp_path: Path
) -> None:
    await deliver_large_message(ada, "one")
    await deliver_large_message(ada, "two", seed=8)
    await deliver_to(bob, "small")
    nodes = (await list_blobs(admin_client))["nodes"]
    assert [node["path"] for node in nodes] == object_paths(tmp_path / "blobs")
    assert len(nodes) == 2
    for node in nodes:
        assert node["path"].startswith(f"{node['sha256'][:2]}/{node['sha256']}.")
        assert (node["store"], node["tier"], node["refCount"]) == ("hot", "HOT", 1)
        assert node["compression"] == "ZSTD"
        assert node["size"] < node["contentSize"]
        assert node["size"] == (tmp_path / "blobs" / node["path"]).stat().st_size
    found = (await admin_client(BLOB_QUERY, store="hot", path=nodes[0]["path"]))["blob"]
    assert {**nodes[0], **found} == nodes[0]


async def test_pages_of_objects_go_in_both_directions(
    root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    paths = [f"admin/{name}" for name in ("a/b", "a.b", "a/c/d", "b", "c")]
    for path in paths:
        assert (await put_blob(root, path))["errors"] == []
    expected = sorted(paths)
    for conditions in ({}, {"prefix": "admin/"}):
        variables: dict[str, Any] = {"filter": {"store": "hot", **conditions}}
        assert await paths_of_pages(admin_client, **variables, first=2) == expected
        assert await paths_of_pages(admin_client, **variables, last=2) == expected
        variables["orderBy"] = "PATH_DESC"
        assert await paths_of_pages(admin_client, **variables, first=2) == expected[::-1]
        assert await paths_of_pages(admin_client, **variables, last=2) == expected[::-1]
    variables = {"filter": {"prefix": "admin/a/"}, "first": 1}
    assert await paths_of_pages(admin_client, **variables) == ["admin/a/b", "admin/a/c/d"]


async def test_folders_of_one_level_are_listed(
    root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    for path in ("admin/a/b", "admin/a.b", "admin/a/c/d", "admin/e/f"):
        await put_blob(root, path)

    async def folders(**variables: Any) -> tuple[list[str], bool]:
        result = (await admin_client(PREFIXES_QUERY, **{"orderBy": "PATH_ASC", **variables}))[
            "blobPrefixes"
        ]
        return [node["path"] for node in result["nodes"]], result["pageInfo"]["hasNextPage"]

    assert await folders() == (["admin/"], False)
    for prefix in ("admin", "admin/"):
        assert await folders(filter={"prefix": prefix}) == (["admin/a/", "admin/e/"], False)
        last = await folders(filter={"prefix": prefix}, orderBy="PATH_DESC", first=1)
        assert last == (["admin/e/"], True)
    assert await folders(filter={"prefix": "admin/a"}) == (["admin/a/c/"], False)
    assert await folders(filter={"prefix": "admin/none"}) == ([], False)


async def test_total_count_is_bounded(root: GraphQLClient, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        await put_blob(root, f"admin/{number}")
    monkeypatch.setattr(loaders, "OBJECTS_PER_REQUEST", 2)
    assert (await list_blobs(root, first=1))["totalCount"] == 5
    monkeypatch.setattr(loaders, "MAX_COUNTED_BLOBS", 4)
    assert (await list_blobs(root, first=1))["totalCount"] == 4


async def test_list_costs_the_same_statements_for_any_number_of_objects(
    ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str]
) -> None:
    counts = []
    await list_blobs(admin_client)
    for seeds in (range(1), range(1, 20)):
        for seed in seeds:
            await deliver_large_message(ada, f"message {seed}", seed=seed)
        del statements[:]
        nodes = (await list_blobs(admin_client))["nodes"]
        assert [node["refCount"] for node in nodes] == [1] * (seeds[-1] + 1)
        counts.append(len(statements))
    assert counts[0] == counts[1]


async def test_uploads_and_objects_without_a_row_are_listed(
    boss: GraphQLClient, root: GraphQLClient
) -> None:
    store = root.environment.object_store
    response = await boss.http.post("/rest/uploads", content=b"uploaded", headers=boss.headers)
    assert response.status_code == 201
    digest = hashlib.sha256(b"orphan").hexdigest()
    await store.put(new_object_name(digest, 9), b"orphan")
    await store.put("00/strange", b"strange")
    await put_blob(root, "admin/x", "by hand")
    nodes = {
        (node["sha256"], node["size"], node["contentSize"], node["compression"], node["refCount"])
        for node in (await list_blobs(root))["nodes"]
    }
    assert nodes == {
        (hashlib.sha256(b"uploaded").hexdigest(), 8, 8, "NONE", 1),
        (digest, 6, None, None, 0),
        (None, 7, None, None, 0),
        (hashlib.sha256(b"by hand").hexdigest(), 7, 7, "NONE", 0),
    }
    await store.delete(["00/strange", new_object_name(digest, 9)])


async def test_text_is_decompressed_and_each_access_is_logged(
    ada: GraphQLClient, bob: GraphQLClient, boss: GraphQLClient
) -> None:
    content = large_body(7)
    await deliver_text_attachment(ada, content)
    await deliver_to(bob, "other")
    (node,) = (await list_blobs(boss))["nodes"]
    assert (node["compression"], node["contentSize"]) == ("ZSTD", len(content))
    for max_bytes in (9, 65536, 1_048_576):
        found = (await boss(TEXT_QUERY, path=node["path"], maxBytes=max_bytes))["blob"]
        assert found["text"] == content[:max_bytes]
    entries = await load_audit_entries(boss, "Blob.text")
    values = {"store": "hot", "path": node["path"], "size": node["size"]}
    assert [(entry["actor"], entry["after"]) for entry in entries] == [("boss", values)] * 3
    events = [
        (event.user_id, event.by, event.count)
        for event in await load_security_events(ada.environment)
        if event.action is SecurityEventAction.MESSAGES_READ
    ]
    assert events == [(ada.user.id, "boss", 3)]


async def test_text_is_null_for_other_bytes_and_cut_between_characters(
    root: GraphQLClient,
) -> None:
    await put_blob(root, "admin/binary", "00ff", encoding="HEX")
    await put_blob(root, "admin/nul", "6100", encoding="HEX")
    await put_blob(root, "admin/empty", "")
    await put_blob(root, "admin/euro", "a€€")

    async def text(path: str, max_bytes: int = 100) -> Any:
        return (await root(TEXT_QUERY, path=path, maxBytes=max_bytes))["blob"]["text"]

    assert await text("admin/binary") is None
    assert await text("admin/nul") is None
    assert await text("admin/empty") == ""
    assert [await text("admin/euro", size) for size in (1, 2, 3, 4, 6, 7)] == [
        "a", "a", "a", "a€", "a€", "a€€"
    ]  # fmt: skip
    for wrong in (0, -1, 1_048_577):
        response = await root.execute(TEXT_QUERY, path="admin/euro", maxBytes=wrong)
        assert error_code_and_message(response) == ("BAD_USER_INPUT", TEXT_LIMIT)


async def test_roles_below_root_read_no_bytes(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_large_message(ada, "secret")
    (node,) = (await list_blobs(admin_client))["nodes"]
    response = await admin_client.execute(TEXT_QUERY, path=node["path"], maxBytes=10)
    assert response["data"]["blob"] == {"url": None, "text": None}
    assert {error["extensions"]["code"] for error in response["errors"]} == {"FORBIDDEN"}
    domain_admin = await make_domain_admin(ada.environment, ada.http, "chief")
    for client in (ada, domain_admin):
        for document in (
            "{ blobs { totalCount } }",
            "{ blobPrefixes { totalCount } }",
            f'{{ blob(path: "{node["path"]}") {{ size }} }}',
        ):
            response = await client.execute(document)
            assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
            assert set(response["data"].values()) == {None}
    assert await load_audit_entries(root, "Blob.text", "Blob.url") == []


async def test_wrong_path_is_a_typed_error(admin_client: GraphQLClient) -> None:
    for case in each_case(WRONG_PATHS):
        with case as path:
            response = await admin_client.execute(BLOB_QUERY, store="hot", path=path)
            code, message = error_code_and_message(response)
            assert code == "BAD_USER_INPUT"
            assert message.startswith(("A path ", "A text must not contain the character NUL"))
            assert len(str(response)) < 2000


async def test_wrong_prefix_is_a_typed_error(admin_client: GraphQLClient) -> None:
    for case in each_case(WRONG_PREFIXES):
        with case as prefix:
            for document in (
                "query ($filter: BlobFilter) { blobs(filter: $filter) { totalCount } }",
                "query ($filter: BlobFilter) { blobPrefixes(filter: $filter) { totalCount } }",
            ):
                response = await admin_client.execute(document, filter={"prefix": prefix})
                code, message = error_code_and_message(response)
                assert code == "BAD_USER_INPUT"
                assert message.startswith(
                    ("A prefix ", "A path has at most ", "A text must not contain")
                )


async def test_unknown_store_and_forged_cursor_are_typed_errors(
    admin_client: GraphQLClient,
) -> None:
    for store in ("cold", "", "HOT", "s3://bucket", "../blobs", "x" * 1_000_000):
        response = await admin_client.execute(BLOB_QUERY, store=store, path="admin/x")
        assert error_code_and_message(response) == ("BAD_USER_INPUT", NO_STORE)
        if store:
            response = await admin_client.execute(
                "query ($filter: BlobFilter) { blobs(filter: $filter) { totalCount } }",
                filter={"store": store},
            )
            assert error_code_and_message(response) == ("BAD_USER_INPUT", NO_STORE)
    page = await list_blobs(admin_client, filter={"prefix": "admin/"})
    assert page["nodes"] == []
    ordering = ordering_name("blobs-PATH_ASC", BlobConditions())
    for cursor in ("x", *(Cursor(ordering, path, 0) for path in ("../x", "a" * 900, 7, "ab/\0"))):
        response = await admin_client.execute(
            "query ($after: String) { blobs(first: 1, after: $after) { totalCount } }",
            after=str(cursor),
        )
        assert error_code_and_message(response) == ("BAD_CURSOR", "Not a cursor of this list.")


async def test_path_of_no_object_is_null(admin_client: GraphQLClient) -> None:
    other_digest = hashlib.sha256(b"another tenant").hexdigest()
    for path in ("admin/none", new_object_name(other_digest, 1)):
        assert await admin_client(BLOB_QUERY, store="hot", path=path) == {"blob": None}


async def test_objects_of_the_cold_store_have_their_own_list(
    ada: GraphQLClient, tiered_root: GraphQLClient
) -> None:
    await deliver_text_attachment(ada, large_body(7))
    ((message_id,),) = await select_rows(ada.environment, "SELECT id FROM messages")
    environment = tiered_root.environment
    moved = await tier_move.copy_blobs_to_tier(environment, [message_id], cold=True)
    await environment.run_transaction(
        lambda transaction: tier_move.update_rows_of_moved_blobs(transaction, moved)
    )
    (hot,) = (await list_blobs(tiered_root, filter={"store": "hot"}))["nodes"]
    cold_blobs = (await list_blobs(tiered_root, filter={"store": "cold"}))["nodes"]
    (cold,) = [node for node in cold_blobs if node["sha256"] == hot["sha256"]]
    assert (cold["tier"], cold["refCount"], cold["compression"]) == ("COLD", 1, "ZSTD")
    assert (hot["tier"], hot["refCount"], hot["compression"]) == ("HOT", 0, None)
    found = (await tiered_root(TEXT_QUERY, store="cold", path=cold["path"], maxBytes=50))["blob"]
    assert len(found["text"]) == 50
    await environment.object_store.put(f"{hot['path']}.cold", b"x")
    swapped = (await tiered_root(BLOB_QUERY, store="hot", path=cold["path"]))["blob"]
    assert swapped is None
    moved_back = await tier_move.copy_blobs_to_tier(environment, [message_id], cold=False)
    await environment.run_transaction(
        lambda transaction: tier_move.update_rows_of_moved_blobs(transaction, moved_back)
    )


async def test_file_and_message_of_two_users_are_both_told(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_large_message(ada, "first")
    await upload_file(bob, large_body(3))
    paths = [node["path"] for node in (await list_blobs(root))["nodes"]]
    document = " ".join(
        f'b{number}: blob(path: "{path}") {{ text(maxBytes: 10) }}'
        for number, path in enumerate(paths)
    )
    await root(f"{{ {document} }}")
    readers = {
        event.user_id
        for event in await load_security_events(root.environment)
        if event.action is SecurityEventAction.MESSAGES_READ
    }
    assert readers == {ada.user.id, bob.user.id}
