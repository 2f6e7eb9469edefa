"""Mutations of the objects of the object stores: put, copy, delete and collect."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.app import create_app
from mail.maintenance import housekeeping
from mail.storage.blobs.object_stores import FolderStore, new_object_name
from mail.storage.blobs.tiered_store import TieredStore
from models.auth.security_log import SecurityEventAction
from models.runtime.environment import Environment
from models.users.roles import Role
from resolvers.blobs import deletion
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.security_events import load_security_events
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.platform.blob_operations import (
    BLOB_FIELDS,
    TEXT_QUERY,
    deliver_text_attachment,
    large_body,
    list_blobs,
    load_audit_entries,
    object_paths,
    put_blob,
)
from tests.support.operations.task_operations import run_task
from tests.support.stores.counter_check import select_rows

DELETE_FIELDS = "deletedCount task { id kind }"
HELLO_SHA256 = hashlib.sha256(b"hello").hexdigest()
WRONG_TARGETS = {
    "ab/x": "RESERVED", "": "PATTERN", "admin": "PATTERN", "admin/../ab/x": "PATTERN",
    "admin//x": "PATTERN", "/admin/x": "PATTERN", "admin/.x": "PATTERN",
    "admin/" + "x/" * 10_000: "LENGTH", "admin/" + "y/" * 20: "DEPTH",
    "admin/" + "x" * 10**6: "LENGTH",
    "ab/" + "x" * 256: "PATTERN", "admin/" + "x" * 256: "PATTERN",
    new_object_name("ab" * 32, 7): "RESERVED",
}  # fmt: skip
pytestmark = pytest.mark.usefixtures("verify_consistency")


@pytest.fixture
async def boss(root: GraphQLClient) -> GraphQLClient:
    """A client of a user with the role ROOT."""
    return await make_client(root.environment, root.http, "boss", role=Role.ROOT)


def client_on_server(
    client: GraphQLClient, environment: Environment, tmp_path: Path
) -> GraphQLClient:
    """The client on another server, with this environment."""
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=tmp_path))
    http = httpx.AsyncClient(transport=transport, base_url="http://other")
    return replace(client, http=http, environment=environment)


@pytest.fixture
async def tiered_root(root: GraphQLClient, tmp_path: Path) -> AsyncIterator[GraphQLClient]:
    """A client with the key of the platform on a server with a second object store."""
    cold_store = FolderStore(tmp_path / "cold")
    stores = TieredStore(root.environment.object_store, cold_store)
    yield client_on_server(root, replace(root.environment, object_store=stores), tmp_path)
    await cold_store.close()


async def delete_blobs(client: GraphQLClient, *paths: str, **fields: Any) -> Any:
    """Run blobDelete and return its payload."""
    fields = {"paths": list(paths), **fields}
    return await execute_mutation(client, "blobDelete", DELETE_FIELDS, **fields)


def error_codes(payload: Any) -> list[tuple[str, str | None, list[str]]]:
    return [(error["code"], error.get("constraint"), error["path"]) for error in payload["errors"]]


async def test_put_stores_and_replaces_an_object(root: GraphQLClient, tmp_path: Path) -> None:
    payload = await put_blob(root, "admin/a/b", sha256=HELLO_SHA256.upper())
    assert payload["errors"] == []
    blob = {"store": "hot", "path": "admin/a/b", "size": 5, "refCount": 0, "sha256": HELLO_SHA256}
    assert payload["blob"] == blob
    assert (tmp_path / "blobs/admin/a/b").read_bytes() == b"hello"
    assert (await put_blob(root, "admin/a/b", "bye"))["blob"]["size"] == 3
    assert (tmp_path / "blobs/admin/a/b").read_bytes() == b"bye"
    entries = await load_audit_entries(root, "blobPut")
    bye_sha256 = hashlib.sha256(b"bye").hexdigest()
    assert [entry["after"]["sha256"] for entry in entries] == [bye_sha256, HELLO_SHA256]
    assert entries[0]["after"]["path"] == "admin/a/b"


async def test_put_takes_over_an_upload(boss: GraphQLClient, tmp_path: Path) -> None:
    content = large_body(1).encode()
    response = await boss.http.post("/rest/uploads", content=content, headers=boss.headers)
    upload = {"upload": response.json()["id"]}
    digest = hashlib.sha256(content).hexdigest()
    wrong = await put_blob(boss, "admin/u", content=upload, sha256=HELLO_SHA256)
    assert error_codes(wrong) == [("VALIDATION", "MISMATCH", ["sha256"])]
    payload = await put_blob(boss, "admin/u", content=upload, sha256=digest)
    assert payload["blob"]["sha256"] == digest
    assert object_paths(tmp_path / "blobs") == ["admin/u"]
    assert await select_rows(boss.environment, "SELECT id FROM uploads") == []
    again = await put_blob(boss, "admin/u", content=upload)
    assert error_codes(again) == [("NOT_FOUND", None, ["content"])]


async def test_put_of_another_users_upload_is_not_found(
    ada: GraphQLClient, boss: GraphQLClient
) -> None:
    response = await ada.http.post("/rest/uploads", content=b"x", headers=ada.headers)
    payload = await put_blob(boss, "admin/u", content={"upload": response.json()["id"]})
    assert error_codes(payload) == [("NOT_FOUND", None, ["content"])]


async def test_objects_outside_admin_are_not_written(root: GraphQLClient, tmp_path: Path) -> None:
    await put_blob(root, "admin/source")
    for case in each_case(WRONG_TARGETS):
        with case as path:
            payload = await put_blob(root, path)
            assert error_codes(payload) == [("VALIDATION", WRONG_TARGETS[path], ["path"])]
            fields = {"from": "admin/source", "to": path}
            payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
            assert error_codes(payload) == [("VALIDATION", WRONG_TARGETS[path], ["to"])]
            assert object_paths(tmp_path / "blobs") == ["admin/source"]


async def test_wrong_content_is_not_stored(root: GraphQLClient, tmp_path: Path) -> None:
    wrong: dict[str, dict[str, Any]] = {
        "MISMATCH": {"sha256": "0" * 64},
        "PATTERN": {"sha256": "no digest"},
        "ENCODING": {"content": {"text": "?"}, "encoding": "BASE64"},
        "UNKNOWN": {"store": "cold"},
    }
    for constraint, fields in wrong.items():
        payload = await put_blob(root, "admin/x", **fields)
        assert [error["constraint"] for error in payload["errors"]] == [constraint]
    small = replace(root.environment, options=replace(root.environment.options, upload_max_size=4))
    payload = await put_blob(client_on_server(root, small, tmp_path), "admin/x")
    assert error_codes(payload) == [("LIMIT_REACHED", None, ["content"])]
    assert object_paths(tmp_path / "blobs") == []
    assert await load_audit_entries(root, "blobPut") == []


async def test_dry_run_stores_and_deletes_nothing(root: GraphQLClient, tmp_path: Path) -> None:
    options = {"validateOnly": True}
    payload = await put_blob(root, "admin/x", options=options)
    assert (payload["blob"], payload["errors"]) == (None, [])
    await put_blob(root, "admin/x")
    fields = {"from": "admin/x", "to": "admin/y", "options": options}
    payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
    assert (payload["blob"], payload["errors"]) == (None, [])
    payload = await delete_blobs(root, "admin/x", options=options)
    assert (payload["deletedCount"], payload["errors"]) == (1, [])
    assert object_paths(tmp_path / "blobs") == ["admin/x"]
    assert await select_rows(root.environment, "SELECT id FROM tasks") == []


async def test_folder_and_object_of_the_same_path_are_a_conflict(root: GraphQLClient) -> None:
    await put_blob(root, "admin/a/b")
    assert error_codes(await put_blob(root, "admin/a")) == [("CONFLICT", None, ["path"])]
    assert error_codes(await put_blob(root, "admin/a/b/c")) == [("CONFLICT", None, ["path"])]
    fields = {"from": "admin/a/b", "to": "admin/a"}
    payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
    assert error_codes(payload) == [("CONFLICT", None, ["to"])]


async def test_copy_stores_the_decompressed_content_and_tells_its_owner(
    ada: GraphQLClient, boss: GraphQLClient, tmp_path: Path
) -> None:
    content = large_body(2)
    await deliver_text_attachment(ada, content)
    (source,) = (await list_blobs(boss))["nodes"]
    fields = {"from": source["path"], "to": "admin/copy"}
    wrong = await execute_mutation(boss, "blobCopy", BLOB_FIELDS, **fields, sha256="0" * 64)
    assert error_codes(wrong) == [("VALIDATION", "MISMATCH", ["sha256"])]
    assert len(object_paths(tmp_path / "blobs")) == 1
    payload = await execute_mutation(
        boss, "blobCopy", BLOB_FIELDS, **fields, sha256=source["sha256"]
    )
    assert payload["blob"]["sha256"] == source["sha256"]
    assert (tmp_path / "blobs/admin/copy").read_bytes() == content.encode()
    (entry,) = await load_audit_entries(boss, "blobCopy")
    assert (entry["after"]["path"], entry["after"]["to"]) == (source["path"], "admin/copy")
    events = [
        (event.user_id, event.by)
        for event in await load_security_events(ada.environment)
        if event.action is SecurityEventAction.MESSAGES_READ
    ]
    assert events == [(ada.user.id, "boss")]


async def test_copy_of_a_damaged_blob_stores_nothing(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    await deliver_text_attachment(ada, large_body(2))
    (source,) = (await list_blobs(root))["nodes"]
    path = tmp_path / "blobs" / source["path"]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + b"different")
    fields = {"from": source["path"], "to": "admin/copy"}
    payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
    assert [error["code"] for error in payload["errors"]] == ["DAMAGED"]
    assert not (tmp_path / "blobs/admin").exists()
    path.write_bytes(whole)


async def test_copy_goes_to_another_store(tiered_root: GraphQLClient, tmp_path: Path) -> None:
    await put_blob(tiered_root, "admin/a")
    fields = {"from": "admin/a", "to": "admin/a.cold", "toStore": "cold"}
    payload = await execute_mutation(tiered_root, "blobCopy", BLOB_FIELDS, **fields)
    assert payload["blob"]["store"] == "cold"
    assert object_paths(tmp_path / "cold") == ["admin/a.cold"]
    found = await tiered_root(TEXT_QUERY, store="cold", path="admin/a.cold", maxBytes=9)
    assert found["blob"]["text"] == "hello"
    assert (await delete_blobs(tiered_root, "admin/a.cold", store="cold"))["deletedCount"] == 1
    assert (await delete_blobs(tiered_root, "admin/a"))["deletedCount"] == 1


async def test_copy_needs_a_source_and_another_target(root: GraphQLClient) -> None:
    await put_blob(root, "admin/a")
    errors_by_fields = {
        ("admin/none", "admin/b", None): ("NOT_FOUND", None, ["from"]),
        ("admin/a", "admin/a", None): ("VALIDATION", "SAME", ["to"]),
        ("../a", "admin/b", None): ("VALIDATION", "PATTERN", ["from"]),
        ("admin/a", "admin/b", "none"): ("VALIDATION", "UNKNOWN", ["toStore"]),
    }
    for (source, target, store), error in errors_by_fields.items():
        fields = {"from": source, "to": target} | ({"toStore": store} if store else {})
        payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
        assert error_codes(payload) == [error]


async def test_used_and_young_blobs_are_a_conflict(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> None:
    await deliver_text_attachment(ada, large_body(2))
    (used,) = (await list_blobs(root))["nodes"]
    await put_blob(root, "admin/a")
    payload = await delete_blobs(root, "admin/a", used["path"])
    assert error_codes(payload) == [("CONFLICT", None, ["paths", "1"])]
    name = new_object_name("cd" * 32, 5)
    await root.environment.object_store.put(name, b"x")
    now = clock.time.timestamp()
    os.utime(tmp_path / "blobs" / name, (now, now))  # as a running delivery stores it
    payload = await delete_blobs(root, name)
    assert error_codes(payload) == [("CONFLICT", None, ["paths", "0"])]
    clock.tick(hours=25)
    assert (await delete_blobs(root, name))["deletedCount"] == 1
    assert object_paths(tmp_path / "blobs") == sorted(["admin/a", used["path"]])


async def test_blob_of_the_restore_window_is_a_conflict(
    root: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> None:
    options = replace(root.environment.options, backup_restore_window=timedelta(days=7))
    client = client_on_server(root, replace(root.environment, options=options), tmp_path)
    name = new_object_name("cd" * 32, 5)
    await root.environment.object_store.put(name, b"x")
    assert error_codes(await delete_blobs(client, name)) == [("CONFLICT", None, ["paths", "0"])]
    payload = await execute_mutation(client, "blobCollect", "task { id kind }")
    await run_task(client, payload["task"])
    assert error_codes(await delete_blobs(client, name)) == [("CONFLICT", None, ["paths", "0"])]
    clock.tick(days=8)
    assert (await delete_blobs(client, name))["deletedCount"] == 1


async def test_delete_removes_all_or_none(root: GraphQLClient, tmp_path: Path) -> None:
    for name in "abc":
        await put_blob(root, f"admin/{name}")
    payload = await delete_blobs(root, "admin/a", "admin/none", "admin/b")
    assert error_codes(payload) == [("NOT_FOUND", None, ["paths", "1"])]
    for wrong, constraint in (("..", "PATTERN"), ("00/merganser.mark", "PATTERN")):
        payload = await delete_blobs(root, "admin/a", wrong)
        assert error_codes(payload) == [("VALIDATION", constraint, ["paths", "1"])]
    assert error_codes(await delete_blobs(root)) == [("VALIDATION", "MIN", ["paths"])]
    too_many = await delete_blobs(root, *["admin/a"] * 1001)
    assert error_codes(too_many) == [("LIMIT_REACHED", None, ["paths"])]
    assert len(object_paths(tmp_path / "blobs")) == 3
    payload = await delete_blobs(root, "admin/a", "admin/a", "admin/b")
    assert (payload["deletedCount"], payload["task"]) == (2, None)
    assert object_paths(tmp_path / "blobs") == ["admin/c"]
    entries = await load_audit_entries(root, "blobDelete")
    assert {entry["before"]["path"] for entry in entries} == {"admin/a", "admin/b"}


async def test_recursive_delete_is_a_task_that_keeps_used_blobs(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deletion, "BLOBS_PER_STEP", 2)
    await deliver_text_attachment(ada, large_body(2))
    (used,) = (await list_blobs(root))["nodes"]
    shard = used["path"][:2]
    unused = new_object_name(shard + "0" * 62, 5)
    await root.environment.object_store.put(unused, b"xyz")
    for name in ("a", "a.b", "d/e", "d/f", "d/g/h", "d/g/i", "d/j", "dd"):
        await put_blob(root, f"admin/{name}")
    for wrong in ("", "../x", "admin//", "a\\b"):
        payload = await delete_blobs(root, wrong, recursive=True)
        assert [error["code"] for error in payload["errors"]] == ["VALIDATION"]
    payload = await delete_blobs(root, "admin/d", "admin/a", f"{shard}/", recursive=True)
    assert (payload["deletedCount"], payload["task"]["kind"]) == (0, "BLOB_DELETE")
    assert len(object_paths(tmp_path / "blobs")) == 10
    task = await run_task(root, payload["task"])
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert task["result"] == {
        "changedCount": 7, "deletedCount": 7, "freedBytes": 6 * 5 + 3, "refusedCount": 1
    }  # fmt: skip
    expected = ["admin/a.b", "admin/dd", used["path"]]
    assert object_paths(tmp_path / "blobs") == sorted(expected)
    entries = await load_audit_entries(root, "blobDelete")
    assert {entry["before"]["path"] for entry in entries} == {"admin/d", "admin/a", f"{shard}/"}


async def test_recursive_delete_below_paths_that_no_object_has(root: GraphQLClient) -> None:
    paths = ("xyz/a", "admin/.a", "00/merganser.mark", "ab/c/d", "ab/" + "x" * 255, "admin")
    payload = await delete_blobs(root, *paths, recursive=True)
    task = await run_task(root, payload["task"])
    assert (task["state"], task["result"]["deletedCount"]) == ("SUCCEEDED", 0)
    payload = await delete_blobs(root, "ab/" + "x" * 256, recursive=True)
    assert error_codes(payload) == [("VALIDATION", "PATTERN", ["paths", "0"])]


async def test_copy_with_idempotency_key_is_refused(root: GraphQLClient) -> None:
    await put_blob(root, "admin/a")
    fields = {"from": "admin/a", "to": "admin/b", "options": {"idempotencyKey": "once"}}
    payload = await execute_mutation(root, "blobCopy", BLOB_FIELDS, **fields)
    assert error_codes(payload) == [("VALIDATION", "UNSUPPORTED", ["options", "idempotencyKey"])]


async def test_copy_keeps_the_disk_reserve(root: GraphQLClient, tmp_path: Path) -> None:
    await put_blob(root, "admin/a")
    options = replace(root.environment.options, disk_reserve=1 << 60)
    client = client_on_server(root, replace(root.environment, options=options), tmp_path)
    document = 'mutation { blobCopy(input: {from: "admin/a", to: "admin/b"}) { replayed } }'
    (error,) = (await client.execute(document))["errors"]
    assert error["extensions"]["code"] == "UNAVAILABLE"
    assert object_paths(tmp_path / "blobs") == ["admin/a"]


async def test_delete_with_idempotency_key_is_a_task(root: GraphQLClient, tmp_path: Path) -> None:
    await put_blob(root, "admin/a")
    options = {"idempotencyKey": "once"}
    payload = await delete_blobs(root, "admin/a", options=options)
    again = await delete_blobs(root, "admin/a", options=options)
    assert payload["task"] == again["task"]
    task = await run_task(root, payload["task"])
    assert (task["result"]["deletedCount"], task["totalCount"]) == (1, 1)
    assert object_paths(tmp_path / "blobs") == []


async def test_two_simultaneous_deletions_leave_one_state(
    root: GraphQLClient, tmp_path: Path
) -> None:
    await put_blob(root, "admin/a")
    payloads = await asyncio.gather(*(delete_blobs(root, "admin/a") for _ in range(4)))
    codes = [[error["code"] for error in payload["errors"]] for payload in payloads]
    assert [] in codes
    assert all(code in ([], ["NOT_FOUND"]) for code in codes)
    assert object_paths(tmp_path / "blobs") == []


async def test_simultaneous_puts_store_one_whole_content(
    root: GraphQLClient, tmp_path: Path
) -> None:
    contents = [letter * 100_000 for letter in "abcd"]
    payloads = await asyncio.gather(*(put_blob(root, "admin/a", text) for text in contents))
    assert all(payload["errors"] == [] for payload in payloads)
    assert (tmp_path / "blobs/admin/a").read_text() in contents
    assert len(await load_audit_entries(root, "blobPut")) == 4


async def test_collect_reports_what_it_removes_and_keeps_admin_objects(
    ada: GraphQLClient, root: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> None:
    await deliver_text_attachment(ada, large_body(2))
    await put_blob(root, "admin/kept")
    name = new_object_name("cd" * 32, 5)
    await root.environment.object_store.put(name, b"xyz")
    payload = await execute_mutation(root, "blobCollect", "task { id kind }")
    assert payload["task"]["kind"] == "BLOB_COLLECT"
    task = await run_task(root, payload["task"])
    assert task["state"] == "SUCCEEDED"
    assert (task["result"]["deletedCount"], task["result"]["freedBytes"]) == (1, 3)
    clock.tick(days=30)
    await housekeeping.run_housekeeping_round(root.environment)
    paths = object_paths(tmp_path / "blobs")
    assert len(paths) == 2
    assert "admin/kept" in paths
    assert len(await load_audit_entries(root, "blobCollect")) == 1


async def test_other_roles_change_nothing(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient, tmp_path: Path
) -> None:
    await put_blob(root, "admin/a")
    calls: dict[str, dict[str, Any]] = {
        "blobPut": {"path": "admin/b", "content": {"text": "x"}},
        "blobCopy": {"from": "admin/a", "to": "admin/b"},
        "blobDelete": {"paths": ["admin/a"]},
        "blobCollect": {},
    }
    for client in (ada, admin_client):
        for name, fields in calls.items():
            payload = await execute_mutation(client, name, "replayed", **fields)
            assert [error["code"] for error in payload["errors"]] == ["FORBIDDEN"]
    assert object_paths(tmp_path / "blobs") == ["admin/a"]
    assert await select_rows(root.environment, "SELECT id FROM tasks") == []


async def test_changes_of_a_store_are_not_atomic(root: GraphQLClient, tmp_path: Path) -> None:
    document = """mutation ($put: BlobPutInput!, $collect: BlobCollectInput!) @atomic {
      blobPut(input: $put) { errors { code } } blobCollect(input: $collect) { errors { code } } }"""
    put = {"path": "admin/a", "content": {"text": "x"}}
    data = await root(document, put=put, collect={})
    assert data["blobPut"]["errors"] == [{"code": "FORBIDDEN_OPERATION"}]
    assert data["blobCollect"]["errors"] == [{"code": "ABORTED"}]
    assert object_paths(tmp_path / "blobs") == []
