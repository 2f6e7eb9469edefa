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
from mail.storage.blobs.object_stores import BucketStore, FolderStore, object_name, open_store
from models.store.object_store import ObjectStoreProtocol

MIB = 1024 * 1024
NAME = object_name("ab" * 32, 7)
PUTS = {
    "put": "await store.put(name, b'x' * 20_000)",
    "put_file": "await store.put_file(name, Path(sys.executable))",
}
PROGRAM = """
import asyncio, sys
from pathlib import Path
from mail.storage.blobs.object_stores import FolderStore
async def main():
    store, name = FolderStore(Path(sys.argv[1])), sys.argv[2]
    {put}
    print("done", flush=True)
    await store.close()
asyncio.run(main())
"""


@pytest.fixture(params=["folder", "memory", "others", "s3"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[ObjectStoreProtocol]:
    """An empty store of each kind; `others` is a keeper that complains of missing objects."""
    match request.param:
        case "folder":
            found = open_store(f"file://{tmp_path}/a%20folder")
        case "memory":
            found = open_store("memory:///")
        case "others":
            found = BucketStore(f"file://{tmp_path}")
        case _:
            place = request.getfixturevalue("s3_server")
            monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
            monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
            prefix = datetime.now(UTC).timestamp()
            found = open_store(f"s3://bucket/{prefix}?endpoint={place}&region=eu-west-1")
    yield found
    await found.close()


async def test_bytes_come_back_as_they_went(store: ObjectStoreProtocol) -> None:
    for data in [os.urandom(100_000), b""]:
        await store.put(NAME, data)
        assert await store.get(NAME) == data


async def test_a_file_of_many_parts_comes_back_whole_and_in_ranges(
    store: ObjectStoreProtocol, tmp_path: Path
) -> None:
    data = os.urandom(11 * MIB + 5)
    (tmp_path / "file").write_bytes(data)
    await store.put_file(NAME, tmp_path / "file")
    assert await store.get(NAME) == data
    assert await store.get_range(NAME, 5, 3 * MIB) == data[5 : 3 * MIB]
    assert await store.get_range(NAME, 5, 5) == b""
    chunks = [chunk async for chunk in store.stream(NAME, 3, len(data))]
    assert b"".join(chunks) == data[3:]
    assert max(map(len, chunks)) <= MIB


async def test_what_is_not_there_is_a_key_error(store: ObjectStoreProtocol) -> None:
    with pytest.raises(KeyError):
        await store.get(NAME)
    with pytest.raises(KeyError):
        await store.get_range(NAME, 0, 1)
    with pytest.raises(KeyError):
        await anext(store.stream(NAME, 0, 1))


@pytest.mark.parametrize(("start", "end"), [(50, 101), (100, 101), (200, 300)])
async def test_an_object_that_ends_too_soon_is_corrupt(
    store: ObjectStoreProtocol, start: int, end: int
) -> None:
    await store.put(NAME, b"x" * 100)
    with pytest.raises(CorruptBlob):
        await store.get_range(NAME, start, end)
    with pytest.raises(CorruptBlob):
        [chunk async for chunk in store.stream(NAME, start, end)]


async def test_all_objects_are_listed_with_size_and_time(store: ObjectStoreProtocol) -> None:
    names = {object_name(content_digest(bytes([index])), index): index for index in range(30)}
    await asyncio.gather(*(store.put(name, b"x" * size) for name, size in names.items()))
    found = [stored async for stored in store.list()]
    assert {stored.name: stored.size for stored in found} == names
    soon = timedelta(minutes=5)
    assert all(abs(stored.modified_at - datetime.now(UTC)) < soon for stored in found)


async def test_deleting_leaves_the_others_and_does_not_mind_the_missing(
    store: ObjectStoreProtocol,
) -> None:
    names = [object_name("cd" * 32, key) for key in range(4)]
    for name in names[1:]:
        await store.put(name, b"x")
    await store.delete(names[:3])
    await store.delete([])
    assert [stored.name async for stored in store.list()] == names[3:]


@pytest.mark.parametrize(
    "name", ["", "ab", "ab/", "ab/..", "ab/../cd", "/ab/cd", "xy/cd", "ab/c\n"]
)
async def test_a_name_cannot_lead_elsewhere(store: ObjectStoreProtocol, name: str) -> None:
    with pytest.raises(ValueError, match="does not name"):
        await store.put(name, b"x")
    with pytest.raises(ValueError, match="does not name"):
        await store.delete([name])


def files_held(folder: Path) -> list[Path]:
    """Files of `folder` that we have open."""
    handles = [Path("/proc/self/fd") / str(number) for number in range(1000)]
    targets = [handle.readlink() for handle in handles if handle.is_symlink()]
    return [target for target in targets if target.is_relative_to(folder)]


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


async def test_a_stream_left_early_lets_its_file_go(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    await store.put(NAME, b"x" * 3 * MIB)
    async with aclosing(store.stream(NAME, 0, 3 * MIB)) as chunks:
        await anext(chunks)
        assert files_held(tmp_path)
    assert not files_held(tmp_path)
    await store.close()


async def test_a_put_that_fails_leaves_nothing(tmp_path: Path) -> None:
    store = FolderStore(tmp_path / "store")
    with pytest.raises(FileNotFoundError):
        await store.put_file(NAME, tmp_path / "none")
    assert not files(tmp_path)
    await store.close()


async def test_leftovers_are_listed_after_a_day_and_can_be_deleted(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    old, young = tmp_path / "ab" / ".part-old", tmp_path / "ab" / ".part-young"
    old.parent.mkdir()
    for path, age in [(old, 25), (young, 23)]:
        path.touch()
        os.utime(path, (time.time() - age * 3600,) * 2)
    found = [stored.name async for stored in store.list()]
    assert found == ["ab/.part-old"]
    await store.delete(found)
    assert (old.exists(), young.exists()) == (False, True)
    await store.close()


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("put", PUTS)
def test_file_and_folder_are_synced_before_put_returns(tmp_path: Path, put: str) -> None:
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,write,sendfile,rename", "-o", str(trace)]
    command += [sys.executable, "-c", PROGRAM.format(put=PUTS[put])]
    command += [str(tmp_path / "blobs"), NAME]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[4], stdout=subprocess.PIPE)
    lines = trace.read_text().splitlines()
    done = next(index for index, line in enumerate(lines) if '"done' in line)
    calls = [line.split(" ", 1)[1].strip() for line in lines[:done] if "blobs/ab" in line]
    kinds = [call.partition("(")[0] for call in calls]
    assert kinds[-4:] == ["write", "fsync", "rename", "fsync"]
    assert set(kinds[:-3]) == {"write"}
    assert ".part-" in calls[-3]
    assert calls[-1].partition("<")[2].startswith(f"{tmp_path}/blobs/ab>")


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
def test_a_new_store_syncs_its_folders(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync", "-o", str(trace)]
    command += [sys.executable, "-c", PROGRAM.format(put=next(iter(PUTS.values())))]
    command += [str(tmp_path / "blobs"), NAME]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[4], stdout=subprocess.PIPE)
    synced = re.findall(r"fsync\(\d+<(.*?)>\)", trace.read_text())
    assert {str(tmp_path), str(tmp_path / "blobs"), str(tmp_path / "blobs" / "ab")} <= set(synced)


def test_a_path_is_a_folder_and_a_file_url_must_be_absolute(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "plain"))
    assert isinstance(store, FolderStore)
    assert store.folder == tmp_path / "plain"
    with pytest.raises(ValueError, match="absolute"):
        open_store("file://var/blobs")
