"""Ordered pages of the objects of each kind of store, and the objects of administrators."""

import asyncio
import os
import random
import tracemalloc
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mail.storage.blobs.errors import ObjectNameTaken
from mail.storage.blobs.folder_listing import NAMES_PER_SCAN
from mail.storage.blobs.object_names import (
    INTERNAL_NAMES,
    MAX_LEVELS,
    MAX_NAME_LENGTH,
    is_admin_name,
)
from mail.storage.blobs.object_stores import FolderStore, new_object_name, open_store
from models.store.object_store import BrowsableObjectStore, ObjectRange, StoredObject
from tests.support.time_limits import HANG_SECONDS

ADMIN_NAMES = (
    "admin/a", "admin/a.b", "admin/ab/c", "admin/b/c", "admin/b/d/e", "admin/b0", "admin/z@=+,_-",
)  # fmt: skip
PREFIXES = (
    "", "a", "ad", "admin", "admin/", "admin/b", "admin/b/", "admin/b/d", "admin/z@", "ad/", "ae/",
    "ad/a", "ad/0", "00/", "ff/f", "zz",
)  # fmt: skip


@pytest.fixture(params=["folder", "memory", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BrowsableObjectStore]:
    """An empty store of each kind that a server can use."""
    match request.param:
        case "folder":
            opened_store = open_store(str(tmp_path / "objects"))
        case "memory":
            opened_store = open_store("memory:///")
        case _:
            endpoint = request.getfixturevalue("s3_server")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
            prefix = datetime.now(UTC).timestamp()
            opened_store = open_store(f"s3://bucket/{prefix}?endpoint={endpoint}&region=eu-west-1")
    assert isinstance(opened_store, BrowsableObjectStore)
    yield opened_store
    await opened_store.close()


async def fill_store(store: BrowsableObjectStore) -> list[str]:
    """Store objects in several folders, and marks; return the visible names in order."""
    digests = [f"{shard}{digit * 62}" for shard in ("00", "ad", "ae", "ff") for digit in "05af"]
    names = [*ADMIN_NAMES, *(new_object_name(digest, 7) for digest in digests)]
    await asyncio.gather(*(store.put(name, b"x" * 3) for name in [*names, *INTERNAL_NAMES]))
    return sorted(names)


async def list_names(store: BrowsableObjectStore, object_range: ObjectRange) -> list[str]:
    return [stored.name for stored in await store.list_page(object_range)]


async def test_pages_follow_byte_order_in_both_directions(store: BrowsableObjectStore) -> None:
    names = await fill_store(store)
    for prefix in PREFIXES:
        expected = [name for name in names if name.startswith(prefix)]
        for is_descending in (False, True):
            found: list[str] = []
            cursor = None
            while True:
                page = await list_names(store, ObjectRange(prefix, 3, cursor, is_descending))
                found += page
                if len(page) < 3:
                    break
                cursor = page[-1]
            assert found == (expected[::-1] if is_descending else expected), prefix


async def test_cursor_need_not_be_the_name_of_an_object(store: BrowsableObjectStore) -> None:
    names = await fill_store(store)
    for cursor in ("00/1", "admin/ab", "admin/b/", "ad/zz", "ae", "zz"):
        for is_descending in (False, True):
            beyond = [name for name in names if (name < cursor if is_descending else name > cursor)]
            expected = (beyond[::-1] if is_descending else beyond)[:4]
            assert await list_names(store, ObjectRange("", 4, cursor, is_descending)) == expected


async def test_folders_of_one_level_are_listed(store: BrowsableObjectStore) -> None:
    await fill_store(store)
    expected_by_prefix = {
        "": ["00/", "ad/", "admin/", "ae/", "ff/"],
        "admin/": ["admin/ab/", "admin/b/"],
        "admin/b/": ["admin/b/d/"],
        "admin/b/d/": [],
        "admin/none/": [],
        "ad/": [],
    }
    for prefix, expected in expected_by_prefix.items():
        for is_descending in (False, True):
            ordered = expected[::-1] if is_descending else expected
            assert await store.list_folders(ObjectRange(prefix, 9, None, is_descending)) == ordered
            if ordered:
                page = ObjectRange(prefix, 1, ordered[0], is_descending)
                assert await store.list_folders(page) == ordered[1:2]


async def test_object_is_found_with_a_version_that_changes(store: BrowsableObjectStore) -> None:
    assert await store.find("admin/report") is None
    await store.put("admin/report", b"first")
    before = after = await store.find("admin/report")
    assert before
    async with asyncio.timeout(HANG_SECONDS):  # the clock of a file system can have long steps
        while after and after.version == before.version:
            await store.put("admin/report", b"other")
            after = await store.find("admin/report")
    assert after
    assert (before.size, after.size) == (5, 5)
    assert await store.get("admin/report") == b"other"
    assert await store.find("admin/report/deeper") is None


async def test_objects_of_administrators_are_no_objects_of_mail(
    store: BrowsableObjectStore,
) -> None:
    await fill_store(store)
    names = [stored.name async for stored in store.list()]
    assert not [name for name in names if name.startswith("admin/")]
    await store.delete(ADMIN_NAMES)
    assert await list_names(store, ObjectRange("admin/", 9)) == []
    assert "admin/" not in await store.list_folders(ObjectRange("", 9))


def test_names_of_administrators_are_limited() -> None:
    assert is_admin_name("admin/" + "/".join("x" * (MAX_LEVELS - 1)))
    assert not is_admin_name("admin/" + "/".join("x" * MAX_LEVELS))
    assert is_admin_name("admin/" + "x/" + "y" * 255)
    for name in (
        "", "admin", "admin/", "/admin/a", "admin//a", "admin/a/", "admin/..", "admin/../00/a",
        "admin/.hidden", "admin/a\0", "admin/a\n", "admin/a b", "admin/é", "admin/%2e%2e/a",
        "admin/a\\b", "admin/" + "y" * 256, "admin/" + "x/" * 10_000, "admin/" + "x" * 1_000_000,
        "admin/" + "/".join(["y" * 200] * 3), "Admin/a",
    ):  # fmt: skip
        assert not is_admin_name(name), name[:40]
    assert MAX_NAME_LENGTH == 512


async def test_file_and_folder_with_the_same_name_are_refused(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put("admin/a/b", b"x")
    with pytest.raises(ObjectNameTaken, match="admin/a"):
        await store.put("admin/a", b"x")
    with pytest.raises(ObjectNameTaken):
        await store.put("admin/a/b/c", b"x")
    await store.delete(["admin/a", "admin/a/b/c", "admin/none"])
    assert await store.get("admin/a/b") == b"x"
    assert not list((tmp_path / "00").iterdir())
    await store.close()


async def test_deleted_object_leaves_no_empty_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await asyncio.gather(store.put("admin/a/b/c", b"x"), store.put("admin/a/d", b"x"))
    await store.delete(["admin/a/b/c"])
    assert [path.name for path in (tmp_path / "admin/a").iterdir()] == ["d"]
    await store.delete(["admin/a/d"])
    assert list((tmp_path / "admin").iterdir()) == []
    await store.close()


async def test_put_survives_the_concurrent_deletion_of_its_folder(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    for number in range(100):
        await store.put(f"admin/a/b/{number}", b"x")
        await asyncio.gather(
            store.delete([f"admin/a/b/{number}"]), store.put(f"admin/a/b/{number + 1}", b"y")
        )
        assert await store.get(f"admin/a/b/{number + 1}") == b"y"
        await store.delete([f"admin/a/b/{number + 1}"])
    await store.close()


async def test_links_and_strange_files_in_a_folder_are_not_listed(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "objects")
    await store.put("admin/a", b"x")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    (tmp_path / "objects/admin/link").symlink_to(outside)
    (tmp_path / "objects/admin/.part-x").write_bytes(b"x")
    (tmp_path / "objects/admin/né").write_bytes(b"x")
    (tmp_path / "objects/other").mkdir()
    (tmp_path / "objects/other/x").write_bytes(b"x")
    (tmp_path / "objects/x").write_bytes(b"x")
    (tmp_path / "objects/00").mkdir(exist_ok=True)
    (tmp_path / "objects/00/.part-y").write_bytes(b"x")
    assert await list_names(store, ObjectRange("", 9)) == ["admin/a"]
    assert await store.list_folders(ObjectRange("", 9)) == ["admin/"]
    await store.close()


async def test_a_large_folder_is_read_in_constant_memory(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    count = NAMES_PER_SCAN * 12
    (tmp_path / "admin/many").mkdir(parents=True)
    for number in range(count):
        os.close(os.open(tmp_path / f"admin/many/{number:06d}", os.O_CREAT | os.O_WRONLY))
    await list_names(store, ObjectRange("", 9))
    tracemalloc.start()
    page = await store.list_page(ObjectRange("", 100, f"admin/many/{count - 150:06d}"))
    assert await store.list_folders(ObjectRange("admin/", 9)) == ["admin/many/"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [stored.name for stored in page] == [
        f"admin/many/{count - 149 + number:06d}" for number in range(100)
    ]
    assert peak < 1_000_000
    everything: list[StoredObject] = list(await store.list_page(ObjectRange("admin/", count + 1)))
    assert len({stored.name for stored in everything}) == count
    await store.close()


async def test_a_page_of_a_bucket_needs_few_requests(
    store: BrowsableObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(store, FolderStore):
        pytest.skip("a folder has no requests")
    digests = [f"{shard}{random.randbytes(31).hex()}" for shard in ("0a", "0b") * 20]  # noqa: S311
    names = [new_object_name(digest, 1) for digest in digests]
    await asyncio.gather(*(store.put(name, b"x") for name in names))
    yielded_count = 0
    iterate = store._iterate  # type: ignore[attr-defined]  # noqa: SLF001 # ty: ignore[unresolved-attribute]

    async def counting_iterate(folder: str | None, after: str | None) -> AsyncIterator[object]:
        nonlocal yielded_count
        async for stored in iterate(folder, after):
            yielded_count += 1
            yield stored

    monkeypatch.setattr(store, "_iterate", counting_iterate)
    middle = sorted(names)[20]
    assert await list_names(store, ObjectRange("0b", 5, middle)) == sorted(names)[21:26]
    assert yielded_count <= 6
