"""Object stores in folders, memory and S3 buckets."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mail.storage.blobs.compression import content_digest
from mail.storage.blobs.errors import CorruptBlob
from mail.storage.blobs.object_stores import BucketStore, FolderStore, new_object_name, open_store
from models.store.object_store import ObjectStoreProtocol
from tests.support.case_loop import each_case

MIB = 1024 * 1024

OBJECT_NAME = new_object_name("ab" * 32, 7)
PROGRAM = """
import asyncio, sys
from pathlib import Path
from mail.storage.blobs.object_stores import FolderStore
async def main():
    store = FolderStore(Path(sys.argv[1]))
    await store.put("ab/abcd", b"x" * 20_000)
    print("done", flush=True)
    await store.put_file("cd/cdef", Path(sys.executable))
    print("done", flush=True)
    await store.close()
asyncio.run(main())
"""


@pytest.fixture(params=["folder", "memory", "others", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStoreProtocol]:
    """An empty store of each kind. `others` is a bucket that raises for missing objects."""
    match request.param:
        case "folder":
            opened_store = open_store(f"file://{tmp_path}/a%20folder")
        case "memory":
            opened_store = open_store("memory:///")
        case "others":
            opened_store = BucketStore(f"file://{tmp_path}")
        case _:
            endpoint = request.getfixturevalue("s3_server")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
            prefix = datetime.now(UTC).timestamp()
            opened_store = open_store(f"s3://bucket/{prefix}?endpoint={endpoint}&region=eu-west-1")
    yield opened_store
    await opened_store.close()


async def test_stored_bytes_are_read_unchanged(store: ObjectStoreProtocol) -> None:
    for data in [os.urandom(100_000), b""]:
        await store.put(OBJECT_NAME, data)
        assert await store.get(OBJECT_NAME) == data


async def test_multipart_file_is_read_whole_and_in_ranges(
    store: ObjectStoreProtocol, tmp_path: Path
) -> None:
    data = os.urandom(11 * MIB + 5)
    (tmp_path / "file").write_bytes(data)
    await store.put_file(OBJECT_NAME, tmp_path / "file")
    assert await store.get(OBJECT_NAME) == data
    assert await store.get_range(OBJECT_NAME, 5, 3 * MIB) == data[5 : 3 * MIB]
    assert await store.get_range(OBJECT_NAME, 5, 5) == b""
    chunks = [chunk async for chunk in store.stream(OBJECT_NAME, 3, len(data))]
    assert b"".join(chunks) == data[3:]
    assert max(map(len, chunks)) <= MIB


async def test_missing_object_raises_key_error(store: ObjectStoreProtocol) -> None:
    with pytest.raises(KeyError):
        await store.get(OBJECT_NAME)
    with pytest.raises(KeyError):
        await store.get_range(OBJECT_NAME, 0, 1)
    with pytest.raises(KeyError):
        await anext(store.stream(OBJECT_NAME, 0, 1))


@pytest.mark.parametrize(("start", "end"), [(50, 101), (100, 101), (200, 300)])
async def test_range_beyond_object_end_raises_corrupt_blob(
    store: ObjectStoreProtocol, start: int, end: int
) -> None:
    await store.put(OBJECT_NAME, b"x" * 100)
    with pytest.raises(CorruptBlob):
        await store.get_range(OBJECT_NAME, start, end)
    with pytest.raises(CorruptBlob):
        [chunk async for chunk in store.stream(OBJECT_NAME, start, end)]


async def test_all_objects_are_listed_with_size_and_time(store: ObjectStoreProtocol) -> None:
    sizes_by_name = {
        new_object_name(content_digest(bytes([index])), index): index for index in range(30)
    }
    await asyncio.gather(*(store.put(name, b"x" * size) for name, size in sizes_by_name.items()))
    stored_objects = [stored async for stored in store.list()]
    assert {stored.name: stored.size for stored in stored_objects} == sizes_by_name
    tolerance = timedelta(minutes=5)
    assert all(abs(stored.modified_at - datetime.now(UTC)) < tolerance for stored in stored_objects)


async def test_delete_keeps_other_objects_and_ignores_missing(
    store: ObjectStoreProtocol,
) -> None:
    names = [new_object_name("cd" * 32, key) for key in range(4)]
    for name in names[1:]:
        await store.put(name, b"x")
    await store.delete(names[:3])
    await store.delete([])
    assert [stored.name async for stored in store.list()] == names[3:]


@pytest.mark.parametrize(
    "name", ["", "ab", "ab/", "ab/..", "ab/../cd", "/ab/cd", "xy/cd", "ab/c\n"]
)
async def test_invalid_object_name_is_refused(store: ObjectStoreProtocol, name: str) -> None:
    with pytest.raises(ValueError, match="is not an object name"):
        await store.put(name, b"x")
    with pytest.raises(ValueError, match="is not an object name"):
        await store.delete([name])


def list_open_files(folder: Path) -> list[Path]:
    """Return the files of a folder that this process has open."""
    handles = [Path("/proc/self/fd") / str(number) for number in range(1000)]
    targets = [handle.readlink() for handle in handles if handle.is_symlink()]
    return [target for target in targets if target.is_relative_to(folder)]


def list_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_stream_closed_early_closes_its_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put(OBJECT_NAME, b"x" * 3 * MIB)
    async with aclosing(store.stream(OBJECT_NAME, 0, 3 * MIB)) as chunks:
        await anext(chunks)
        assert list_open_files(tmp_path)
    assert not list_open_files(tmp_path)
    await store.close()


async def test_failed_put_leaves_no_file(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(FileNotFoundError):
        await store.put_file(OBJECT_NAME, tmp_path / "none")
    assert not list_files(tmp_path)
    await store.close()


async def test_partial_files_are_listed_after_one_day(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    old_file, young_file = tmp_path / "ab" / ".part-old", tmp_path / "ab" / ".part-young"
    old_file.parent.mkdir()
    for path, age in [(old_file, 25), (young_file, 23)]:
        path.touch()
        os.utime(path, (time.time() - age * 3600,) * 2)
    names = [stored.name async for stored in store.list()]
    assert names == ["ab/.part-old"]
    await store.delete(names)
    assert (old_file.exists(), young_file.exists()) == (False, True)
    await store.close()


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_files_and_folders_are_synced_before_put_returns(tmp_path: Path) -> None:
    trace, folder = tmp_path / "trace", tmp_path / "blobs"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,write,sendfile,rename", "-o", str(trace)]
    command += [sys.executable, "-c", PROGRAM, str(folder)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[4], stdout=subprocess.PIPE)
    put_trace, put_file_trace, _ = re.split(r".*\"done.*\n", trace.read_text())
    for case in each_case([(put_trace, "ab"), (put_file_trace, "cd")]):
        with case as (text, subfolder):
            lines = [line for line in text.splitlines() if f"blobs/{subfolder}" in line]
            calls = [line.split(" ", 1)[1].strip() for line in lines]
            call_names = [call.partition("(")[0] for call in calls]
            assert call_names[-4:] == ["write", "fsync", "rename", "fsync"]
            assert set(call_names[:-3]) == {"write"}
            assert ".part-" in calls[-3]
            assert calls[-1].partition("<")[2].startswith(f"{folder}/{subfolder}>")
    synced = re.findall(r"fsync\(\d+<(.*?)>\)", put_trace)
    assert {str(tmp_path), str(folder), str(folder / "ab")} <= set(synced)


def test_path_opens_folder_store_and_file_url_must_be_absolute(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "plain"))
    assert isinstance(store, FolderStore)
    assert store.folder == tmp_path / "plain"
    with pytest.raises(ValueError, match="absolute"):
        open_store("file://var/blobs")
