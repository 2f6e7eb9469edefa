"""Unpacking of exported accounts: mailboxes with UIDs, files, limits and bad archives."""

import base64
import hashlib
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from models.users.roles import Role
from resolvers.cache import bundles
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client
from tests.support.accounts.user_exports import export_account, fill_account
from tests.support.case_loop import each_case
from tests.support.operations.message_sources import upload_bytes
from tests.support.operations.platform.blob_operations import load_audit_entries, object_paths
from tests.support.operations.platform.cache_operations import unpack_bundle

UIDS = "{ mailboxes(first: 100) { nodes { path uidValidity uidNext messageCount } } }"
FORMATS = ("EML_ZIP", "MAILDIR_TAR", "JSON")
MESSAGE = b"Subject: Ducks\r\n\r\nHello\r\n"


def in_base64(content: bytes) -> dict[str, Any]:
    return {"bundle": {"text": base64.b64encode(content).decode()}, "encoding": "BASE64"}


def make_zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def make_tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
async def filled_ada(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    await fill_account(ada, clock)
    return ada


@pytest.mark.parametrize("export_format", FORMATS)
async def test_export_is_unpacked_with_uids(
    filled_ada: GraphQLClient, root: GraphQLClient, tmp_path: Path, export_format: str
) -> None:
    export = await export_account(filled_ada, format=export_format)
    mailboxes = (await filled_ada(UIDS))["mailboxes"]["nodes"]
    payload = await unpack_bundle(root, **in_base64(export["content"]))
    assert (payload["errors"], payload["skippedCount"]) == ([], 0)
    unpacked = {node["path"]: node for node in payload["mailboxes"]}
    for node in mailboxes:
        assert unpacked[node["path"]] == node
    folder = tmp_path / "blobs"
    stored = [path for path in object_paths(folder) if path.startswith("admin/")]
    json_file = "admin/restore/ada/account.json"  # `object_paths` leaves it out
    assert sorted([*stored, json_file]) == sorted(payload["files"])
    account = json.loads((folder / "admin/restore/ada/account.json").read_bytes())
    assert account["format"] == "merganser"
    lines = (folder / "admin/restore/ada/messages.jsonl").read_bytes().splitlines()
    assert len(lines) == sum(int(node["messageCount"]) for node in payload["mailboxes"])
    for line in map(json.loads, lines):
        content = (folder / "admin/restore/ada" / line["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == line["sha256"]
    (entry,) = await load_audit_entries(root, "cacheUnpack")
    assert entry["after"]["path"] == "admin/restore/ada"
    assert entry["after"]["fileCount"] == len(payload["files"])


async def test_upload_is_unpacked_and_deleted(ada: GraphQLClient, root: GraphQLClient) -> None:
    boss = await make_client(root.environment, root.http, "boss", role=Role.ROOT)
    await deliver_to(ada, "Report")
    export = await export_account(ada, format="EML_ZIP")
    upload_id = await upload_bytes(boss, export["content"])
    payload = await unpack_bundle(boss, bundle={"upload": upload_id})
    assert payload["errors"] == []
    assert len(payload["files"]) == 3
    (error,) = (await unpack_bundle(boss, bundle={"upload": upload_id}, bundleName="b"))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["bundle"])


async def test_dry_run_stores_nothing(root: GraphQLClient, tmp_path: Path) -> None:
    archive = in_base64(make_zip({"Work/a.eml": MESSAGE}))
    dry_run = await unpack_bundle(root, options={"validateOnly": True}, **archive)
    assert object_paths(tmp_path / "blobs") == []
    payload = await unpack_bundle(root, **archive)
    assert payload == dry_run
    assert payload["mailboxes"] == [
        {"path": "Work", "uidValidity": None, "uidNext": None, "messageCount": 1}
    ]
    assert payload["files"] == [
        "admin/restore/ada/messages.jsonl", "admin/restore/ada/mail/Work/000001.eml",
    ]  # fmt: skip


async def test_folder_with_objects_is_a_conflict(root: GraphQLClient) -> None:
    archive = in_base64(make_zip({"a.eml": MESSAGE}))
    assert (await unpack_bundle(root, **archive))["errors"] == []
    (error,) = (await unpack_bundle(root, **archive))["errors"]
    assert (error["code"], error["path"]) == ("CONFLICT", ["bundleName"])
    assert (await unpack_bundle(root, bundleName="other", **archive))["errors"] == []


async def test_names_of_mailboxes_are_safe_and_different(
    root: GraphQLClient, tmp_path: Path
) -> None:
    names = ["A=B", "A:B", "Ünïcode/x y", ".hidden", "Long" * 60, "Long" * 61, "a%2Fb"]
    archive = make_zip({f"{name}/m.eml": MESSAGE for name in names})
    payload = await unpack_bundle(root, **in_base64(archive))
    assert payload["errors"] == []
    assert [node["path"] for node in payload["mailboxes"]] == names
    assert len(set(payload["files"])) == len(names) + 1
    assert object_paths(tmp_path / "blobs") == sorted(payload["files"])


async def test_entries_with_dangerous_names_are_skipped(
    root: GraphQLClient, tmp_path: Path
) -> None:
    names = ["../../x.eml", "/etc/x.eml", "a//b.eml", "a/../../b.eml", "notes.txt", "ok.eml"]
    for make in (make_zip, make_tar):
        name = make.__name__.replace("_", "-")
        payload = await unpack_bundle(
            root, bundleName=name, **in_base64(make(dict.fromkeys(names, MESSAGE)))
        )
        assert (payload["errors"], payload["skippedCount"]) == ([], 5)
        assert len(payload["files"]) == 2
    assert all(path.startswith("admin/restore/") for path in object_paths(tmp_path / "blobs"))
    assert not (tmp_path / "x.eml").exists()


def zip_bomb() -> bytes:
    return make_zip({f"{number}.eml": bytes(30 << 20) for number in range(8)})


def with_long_path() -> bytes:
    record = {"kind": "account", "format": "merganser", "version": 1,
              "mailboxes": [{"path": "x" * 2000}]}  # fmt: skip
    return json.dumps(record).encode() + b'\n{"kind": "end"}\n'


BAD_ARCHIVES: dict[str, bytes] = {
    "empty": b"",
    "text": b"no archive at all",
    "binary": bytes(range(256)) * 10,
    "gzip": b"\x1f\x8b" + b"x" * 100,
    "cut zip": make_zip({"a.eml": MESSAGE})[:-30],
    "zip without end": b"PK\x03\x04" + b"x" * 1000,
    "cut JSON": b'{"kind": "account", "format": "merganser", "version": 1}\n{"mailbox": "x"',
    "other JSON": b'{"kind": "account", "format": "other", "version": 7}\n',
    "deep JSON": b'{"kind": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "long path": with_long_path(),
}


async def test_bad_archive_has_a_typed_error_and_stores_nothing(
    root: GraphQLClient, tmp_path: Path
) -> None:
    for case in each_case(BAD_ARCHIVES):
        with case as name:
            (error,) = (await unpack_bundle(root, **in_base64(BAD_ARCHIVES[name])))["errors"]
            assert (error["constraint"], error["path"]) == ("ARCHIVE", ["bundle"])
            assert object_paths(tmp_path / "blobs") == []


async def test_zip_bomb_is_refused(root: GraphQLClient, tmp_path: Path) -> None:
    (error,) = (await unpack_bundle(root, **in_base64(zip_bomb())))["errors"]
    assert (error["constraint"], error["path"]) == ("ARCHIVE", ["bundle"])
    assert object_paths(tmp_path / "blobs") == []


async def test_large_bundle_is_refused(
    root: GraphQLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip({f"{number}.eml": MESSAGE for number in range(5)})
    cases: list[tuple[str, int]] = [("MAX_FILES", 3), ("MAX_BYTES", 100)]
    for case in each_case(cases):
        with case as (limit, value):
            with monkeypatch.context() as patched:
                patched.setattr(bundles, limit, value)
                (error,) = (await unpack_bundle(root, **in_base64(archive)))["errors"]
            assert (error["code"], error["path"]) == ("LIMIT_REACHED", ["bundle"])
            assert object_paths(tmp_path / "blobs") == []


BAD_TARGETS: dict[str, tuple[dict[str, Any], str]] = {
    "not admin": ({"path": "ab/x"}, "path"),
    "up": ({"path": "admin/../x"}, "path"),
    "slashes": ({"path": "admin//x"}, "path"),
    "empty": ({"path": ""}, "path"),
    "long": ({"path": "admin/" + "x" * 10**5}, "path"),
    "deep": ({"path": "admin" + "/x" * 14}, "path"),
    "many levels": ({"path": "admin" + "/x" * 10_000}, "path"),
    "name with slash": ({"bundleName": "a/b"}, "bundleName"),
    "hidden name": ({"bundleName": ".a"}, "bundleName"),
    "empty name": ({"bundleName": ""}, "bundleName"),
    "long name": ({"bundleName": "x" * 101}, "bundleName"),
    "unknown store": ({"store": "warm"}, "store"),
}


async def test_bad_target_has_a_typed_error(root: GraphQLClient, tmp_path: Path) -> None:
    archive = in_base64(make_zip({"a.eml": MESSAGE}))
    for case in each_case(BAD_TARGETS):
        with case as name:
            fields, path = BAD_TARGETS[name]
            (error,) = (await unpack_bundle(root, **{**archive, **fields}))["errors"]
            assert (error["code"], error["path"]) == ("VALIDATION", [path])
            assert object_paths(tmp_path / "blobs") == []


async def test_failed_write_leaves_no_object(
    root: GraphQLClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blobs" / "admin" / "restore").mkdir(parents=True)
    store: Any = root.environment.object_store
    put, count = store.put, 0

    async def fail_at_last_object(name: str, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == 12:
            raise OSError(28, "No space left on device")
        await put(name, data)

    monkeypatch.setattr(store, "put", fail_at_last_object)
    archive = make_zip({f"{number}.eml": MESSAGE for number in range(20)})
    response = await root.execute(
        "mutation ($input: CacheUnpackInput!) { cacheUnpack(input: $input) { files } }",
        input={"bundleName": "ada", "path": "admin/restore", **in_base64(archive)},
    )
    assert response["errors"]
    assert count >= 12
    assert object_paths(tmp_path / "blobs") == []
