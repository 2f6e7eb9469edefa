"""The blob cache: reads without the object store, damage, eviction, several processes, disks."""

import asyncio
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from mail.storage.blob_cache import blob_cache, cache_folder
from mail.storage.blob_cache.cache_file import CHUNK_SIZE, CacheFileReader, content_offset
from mail.storage.blob_cache.cache_folder import BlobCacheFolder, ForeignFolder
from mail.storage.blob_cache.cached_store import (
    blob_cache_of_store,
    forget_object_if_store_has_cache,
    store_without_cache,
)
from mail.storage.blobs.object_stores import BucketStore
from mail.storage.blobs.tiered_store import TieredStore, browsable_stores_by_name
from tests.support.case_loop import each_case
from tests.support.stores.blob_caches import MIB, STORE_ID, CachedBucket, content_with_name
from tests.support.stores.small_disk import mount_small_disk

LARGE_SIZE = 3 * MIB + 12_345


def flip_byte(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (value,) = file.read(1)
        file.seek(offset)
        file.write(bytes([value ^ 1]))


def assert_usage_is_exact(folder: BlobCacheFolder) -> None:
    usage, files = folder.file_totals(), folder.list_files()
    assert (usage.count, usage.size) == (len(files), sum(file.size for file in files))


async def test_second_read_needs_no_store(cached: CachedBucket) -> None:
    whole_name, whole = await cached.put(50_000)
    large_name, large = await cached.put(LARGE_SIZE)
    assert await cached.store.get(whole_name) == whole
    assert await cached.read_stream(large_name, 0, LARGE_SIZE) == large
    await cached.bucket.delete([whole_name, large_name])
    assert await cached.store.get(whole_name) == whole
    assert await cached.read_stream(large_name, 0, LARGE_SIZE) == large
    for start, end in (
        (0, 1),
        (MIB - 1, MIB + 1),
        (777_777, 3 * MIB),
        (LARGE_SIZE - 1, LARGE_SIZE),
    ):
        assert await cached.read_stream(large_name, start, end) == large[start:end]
        assert await cached.store.get_range(large_name, start, end) == large[start:end]
    assert await cached.store.size(large_name) is None  # the store itself is asked
    assert_usage_is_exact(cached.store.cache.folder)


async def test_chunks_have_at_most_one_mebibyte(cached: CachedBucket) -> None:
    name, content = await cached.put(LARGE_SIZE)
    for _ in range(2):
        chunks = [chunk async for chunk in cached.store.stream(name, 0, LARGE_SIZE)]
        assert b"".join(chunks) == content
        assert max(map(len, chunks)) <= MIB
        await cached.wait_for_writes()


def open_file_count() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


async def test_cancelled_reads_and_writes_leave_no_file_open(cached: CachedBucket) -> None:
    name, _ = await cached.put(LARGE_SIZE)
    await cached.read_stream(name, 0, LARGE_SIZE)
    await cached.wait_for_writes()
    cache, count = cached.store.cache, open_file_count()
    for number in range(20):
        for opening in (
            cache.open_object(STORE_ID, name, 100),
            cache.begin_adding(STORE_ID, f"{number:064x}", LARGE_SIZE),
        ):
            task = asyncio.create_task(opening)
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    await cache.close()  # waits for the threads
    assert open_file_count() <= count
    assert not list(cached.folder.rglob(".part-*"))


async def test_cache_is_warm_after_restart(cached: CachedBucket) -> None:
    name, content = await cached.put(100_000)
    await cached.store.get(name)
    await cached.bucket.delete([name])
    other = cached.reopen()
    assert await other.store.get(name) == content
    await other.store.cache.close()


async def test_files_are_private(cached: CachedBucket) -> None:
    name, _ = await cached.put(10_000)
    await cached.store.get(name)
    paths = list(cached.folder.rglob("*"))
    assert len(paths) >= 4
    for path in [cached.folder, *paths]:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


DAMAGES: dict[str, Callable[[Path], object]] = {
    "header": lambda path: flip_byte(path, 9),
    "digest": lambda path: flip_byte(path, 40),
    "first byte": lambda path: flip_byte(path, content_offset(LARGE_SIZE)),
    "third chunk": lambda path: flip_byte(path, content_offset(LARGE_SIZE) + 2 * CHUNK_SIZE + 5),
    "last byte": lambda path: flip_byte(path, path.stat().st_size - 1),
    "short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "long": lambda path: os.truncate(path, 1 << 40),
    "foreign": lambda path: path.write_bytes(b"x" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_file_is_removed_and_store_is_read(cached: CachedBucket, damage: str) -> None:
    name, content = await cached.put(LARGE_SIZE)
    await cached.read_stream(name, 0, LARGE_SIZE)
    (path,) = cached.object_files()
    DAMAGES[damage](path)
    before = blob_cache.READS.value("damaged")
    assert await cached.read_stream(name, 0, LARGE_SIZE) == content
    assert blob_cache.READS.value("damaged") == before + 1
    assert await cached.read_stream(name, 0, LARGE_SIZE) == content
    await cached.bucket.delete([name])
    for _ in range(2):  # a damaged file that was not read from its beginning is gone, too
        if cached.object_files():
            assert await cached.read_stream(name, 0, LARGE_SIZE) == content


async def test_file_of_another_object_is_damaged(cached: CachedBucket) -> None:
    first_name, _ = await cached.put(60_000)
    second_name, second = await cached.put(60_000)
    await cached.store.get(first_name)
    await cached.store.get(second_name)
    folder = cached.folder / STORE_ID
    shutil.copyfile(folder / first_name, folder / second_name)
    assert await cached.store.get(second_name) == second


async def test_links_are_not_followed(cached: CachedBucket, tmp_path: Path) -> None:
    name, content = await cached.put(60_000)
    await cached.store.get(name)
    (path,) = cached.object_files()
    moved = path.rename(tmp_path / "elsewhere")
    path.symlink_to(moved)
    assert await cached.store.get(name) == content
    os.mkfifo(tmp_path / "pipe")
    path.unlink()
    (tmp_path / "pipe").rename(path)
    async with asyncio.timeout(120):
        assert await cached.store.get(name) == content


async def test_wrong_bytes_of_store_can_be_forgotten(cached: CachedBucket) -> None:
    name, content = content_with_name(20_000)
    await cached.bucket.put(name, b"wrong")
    assert await cached.store.get(name) == b"wrong"
    await cached.bucket.put(name, content)
    assert await cached.store.get(name) == b"wrong"
    tiered = TieredStore(cached.bucket, cached.store)
    assert blob_cache_of_store(tiered) is cached.store.cache
    assert await forget_object_if_store_has_cache(tiered, name)
    assert await cached.store.get(name) == content
    assert not await forget_object_if_store_has_cache(cached.bucket, name)


async def test_names_are_digests(cached: CachedBucket) -> None:
    names = ("../../../x", "ab/../../x", "ab/x\0", "/etc/passwd", "ab//x", "", "ab/" + "x" * 300)
    for case in each_case(names):
        with case as name:
            for call in (cached.store.get(name), cached.store.get_range(name, 0, 1)):
                with pytest.raises(ValueError, match="is not an object name"):
                    await call
            with pytest.raises(ValueError, match="is not the name"):
                cached.store.cache.folder.open_file_or_none(STORE_ID, name)
            with pytest.raises(ValueError, match="is not the name"):
                cached.store.cache.folder.open_file_or_none("../x", content_with_name(1)[0])


async def test_objects_that_can_change_are_not_kept(cached: CachedBucket) -> None:
    for content in (b"first", b"second"):
        await cached.store.put("admin/report.txt", content)
        assert await cached.store.get("admin/report.txt") == content
        assert await cached.read_stream("admin/report.txt", 0, len(content)) == content
    assert cached.object_files() == []


async def test_missing_object_raises_as_without_cache(cached: CachedBucket) -> None:
    name, _ = content_with_name(10)
    with pytest.raises(KeyError):
        await cached.store.get(name)
    with pytest.raises(KeyError):
        await cached.read_stream(name, 0, 10)
    with pytest.raises(KeyError):
        await cached.store.get_range(name, 0, 10)
    await cached.wait_for_writes()
    assert cached.store.cache.folder.file_totals().size == 0


async def test_delete_removes_from_cache(cached: CachedBucket) -> None:
    name, _ = await cached.put(10_000)
    await cached.store.get(name)
    await cached.store.delete([name, "admin/x", content_with_name(1)[0]])
    assert cached.object_files() == []
    with pytest.raises(KeyError):
        await cached.store.get(name)


class DeletingBucket(BucketStore):
    """A bucket whose objects another process deletes after each read."""

    deleting_process: CachedBucket | None = None

    async def get(self, name: str) -> bytes:
        data = await super().get(name)
        await self._delete_in_other_process(name)
        return data

    async def stream(self, name: str, start: int, end: int) -> AsyncGenerator[bytes]:
        async with aclosing(super().stream(name, start, end)) as chunks:
            async for chunk in chunks:
                yield chunk
        await self._delete_in_other_process(name)

    async def _delete_in_other_process(self, name: str) -> None:
        if self.deleting_process is not None:
            await self.deleting_process.store.delete([name])


async def test_object_that_is_deleted_during_a_read_does_not_return(
    bucket: BucketStore, s3_server: str, tmp_path: Path
) -> None:
    options = {"endpoint": s3_server, "region": "eu-west-1"}
    deleting = DeletingBucket(bucket.url, options)
    cached = CachedBucket.open(deleting, tmp_path / "cache")
    deleting.deleting_process = CachedBucket.open(bucket, tmp_path / "cache")
    name, content = await cached.put(10_000)
    assert await cached.store.get(name) == content
    assert cached.object_files() == []
    name, content = await cached.put(LARGE_SIZE)
    chunks = [chunk async for chunk in cached.store.stream(name, 0, LARGE_SIZE)]
    assert b"".join(chunks) == content
    await cached.store.close()  # waits until the cache is checked
    assert cached.object_files() == []
    assert cached.store.cache.folder.file_totals().size == 0
    await cached.store.cache.close()
    await deleting.deleting_process.store.cache.close()


async def test_interrupted_read_keeps_nothing(cached: CachedBucket) -> None:
    name, content = await cached.put(LARGE_SIZE)
    async with aclosing(cached.store.stream(name, 0, LARGE_SIZE)) as chunks:
        await anext(chunks)
    await cached.wait_for_writes()
    assert cached.object_files() == []
    assert cached.store.cache.folder.file_totals().size == 0
    assert list(cached.folder.glob(".part-*")) == []
    assert await cached.read_stream(name, 0, LARGE_SIZE) == content
    assert len(cached.object_files()) == 1


async def test_beginning_of_object_is_no_whole_object(cached: CachedBucket) -> None:
    name, content = await cached.put(100_000)
    assert await cached.read_stream(name, 0, 60_000) == content[:60_000]
    assert await cached.read_stream(name, 0, 100_000) == content
    assert await cached.store.get(name) == content
    assert len(cached.object_files()) == 1
    assert_usage_is_exact(cached.store.cache.folder)


async def test_least_recently_used_objects_are_removed(bucket: BucketStore, tmp_path: Path) -> None:
    cached = CachedBucket.open(bucket, tmp_path / "cache", 16 * MIB)
    folder = cached.store.cache.folder
    names = []
    for number in range(10):
        name, _ = await cached.put(3 * MIB // 2, number)
        names.append(name)
        await cached.store.get(name)
        used_at = time.time() - 10_000 + number
        os.utime(cached.folder / STORE_ID / name, (used_at, used_at))
    assert len(cached.object_files()) == 10
    await cached.store.get(names[0])  # the oldest one is used again
    newest, _ = await cached.put(3 * MIB // 2, 99)
    await cached.store.get(newest)
    kept = {str(path.relative_to(cached.folder / STORE_ID)) for path in cached.object_files()}
    assert {names[0], newest, names[9]} <= kept
    assert names[1] not in kept
    assert folder.file_totals().size <= 16 * MIB
    assert_usage_is_exact(folder)
    too_large, content = await cached.put(2 * MIB + MIB // 4)  # more than an eighth
    assert await cached.store.get(too_large) == content
    assert not (cached.folder / STORE_ID / too_large).exists()
    await cached.store.cache.close()


async def test_number_of_files_is_limited(
    cached: CachedBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_folder, "MAX_FILES", 5)
    for number in range(12):
        name, _ = content_with_name(100, number)
        await cached.store.cache.try_add_whole(STORE_ID, name, b"x")
        assert len(cached.object_files()) <= 5
    assert_usage_is_exact(cached.store.cache.folder)


WRITER = """
import asyncio, hashlib, random, sys
from pathlib import Path
from mail.storage.blob_cache.blob_cache import BlobCache
from mail.storage.blob_cache.cache_folder import BlobCacheFolder
from tests.support.stores.blob_caches import MIB, STORE_ID
from mail.storage.blobs.object_stores import new_object_name

async def run(folder, seed):
    cache = BlobCache(BlobCacheFolder(Path(folder), 16 * MIB))
    rng = random.Random(seed)
    for _ in range(150):
        number = rng.randrange(40)
        content = random.Random(number).randbytes(700_000)
        name = new_object_name(hashlib.sha256(content).hexdigest(), number)
        data = await cache.read_whole(STORE_ID, name)
        if data is None:
            await cache.try_add_whole(STORE_ID, name, content)
        else:
            assert data == content
        if rng.random() < 0.05:
            await cache.remove_objects(STORE_ID, [name])
        assert cache.folder.file_totals().size <= 16 * MIB
    await cache.close()

asyncio.run(run(sys.argv[1], int(sys.argv[2])))
"""


def test_processes_share_a_folder(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path / "cache"), str(seed)])
        for seed in range(3)
    ]
    assert [process.wait(120) for process in processes] == [0, 0, 0]
    folder = BlobCacheFolder(tmp_path / "cache", 16 * MIB)
    assert 5 <= len(folder.list_files()) <= 24
    assert_usage_is_exact(folder)


async def test_killed_process_leaves_a_cache_that_heals(cached: CachedBucket) -> None:
    folder = cached.store.cache.folder
    name, _ = content_with_name(50_000)
    writer = folder.begin_file_unless_too_large(STORE_ID, name, 50_000, is_whole=True)
    assert writer is not None
    writer.append(b"x" * 1000)  # the process ends here
    (part,) = cached.folder.glob(".part-*")
    assert folder.file_totals().size == part.stat().st_size
    # it can still be written
    assert folder.rescan_and_remove_bad_files("", None, lambda: False).removed.count == 0
    os.utime(part, (time.time() - 4000, time.time() - 4000))
    assert folder.rescan_and_remove_bad_files("", None, lambda: False).removed.count == 1
    assert folder.file_totals().count == folder.file_totals().size == 0
    for usage in ("", "nonsense", "-1 -1", "7 99999999"):
        (cached.folder / ".usage").write_text(usage)
        await cached.store.cache.try_add_whole(STORE_ID, name, b"y")
        await cached.store.cache.remove_objects(STORE_ID, [name])
    assert folder.rescan_and_remove_bad_files("", None, lambda: False).is_complete
    assert_usage_is_exact(folder)


async def test_full_disk_fails_no_read(
    bucket: BucketStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with mount_small_disk(tmp_path / "disk", 4) as disk:
        cached = CachedBucket.open(bucket, disk.folder / "cache")
        small_name, small = await cached.put(100_000)
        assert await cached.store.get(small_name) == small
        disk.fill()
        before = blob_cache.ERRORS.value()
        for number in range(3):
            name, content = await cached.put(MIB, number)
            assert await cached.store.get(name) == content
            assert await cached.read_stream(name, 0, MIB) == content
        assert blob_cache.ERRORS.value() >= before + 6
        assert caplog.text.count("The blob cache can't be used") == 1
        assert await cached.store.get(small_name) == small
        assert list(cached.folder.glob(".part-*")) == []
        disk.remove_ballast()
        assert await cached.store.get(name) == content
        assert len(cached.object_files()) == 2
        await cached.store.cache.close()


async def test_removed_folder_fails_no_read(cached: CachedBucket) -> None:
    name, content = await cached.put(100_000)
    await cached.store.get(name)
    shutil.rmtree(cached.folder)
    cached.folder.write_text("a file in its place")
    assert await cached.store.get(name) == content
    assert await cached.read_stream(name, 0, 100_000) == content
    await cached.store.delete([name])
    cached.folder.unlink()


async def test_rescan_removes_damaged_foreign_and_old_files(cached: CachedBucket) -> None:
    names = [(await cached.put(300_000, number))[0] for number in range(4)]
    for name in names:
        await cached.store.get(name)
    folder, store_folder = cached.store.cache.folder, cached.folder / STORE_ID
    flip_byte(store_folder / names[0], 290_000)
    foreign = [
        cached.folder / "notes.txt", cached.folder / "other" / "deep" / "x",
        store_folder / "x", store_folder / "ab" / "no-digest", store_folder / names[1][:2] / "y",
    ]  # fmt: skip
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("foreign")
    (cached.folder / "link").symlink_to("/etc/passwd")
    other_prefix = next(f"{number:02x}" for number in range(256) if f"{number:02x}" not in
                        {name[:2] for name in names})  # fmt: skip
    assert folder.rescan_and_remove_bad_files(other_prefix, None, lambda: False).removed.count == 0
    stopped = folder.rescan_and_remove_bad_files("", None, lambda: True)
    assert not stopped.is_complete
    result = folder.rescan_and_remove_bad_files("", None, lambda: False)
    assert (result.is_complete, result.removed.count) == (True, 1 + len(foreign) + 1)
    assert os.access("/etc/passwd", os.R_OK)
    assert {path.name for path in cached.object_files()} == {name[3:] for name in names[1:]}
    assert_usage_is_exact(folder)
    assert (
        folder.rescan_and_remove_bad_files(
            names[1][:2], time.time() + 5, lambda: False
        ).removed.count
        >= 1
    )
    assert not (store_folder / names[1]).exists()


async def test_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mail").write_text("precious")
    with pytest.raises(ForeignFolder):
        BlobCacheFolder(tmp_path, MIB)


async def test_store_behind_cache_can_be_browsed(cached: CachedBucket) -> None:
    name, _ = await cached.put(10)
    stores = browsable_stores_by_name(TieredStore(cached.store, cached.bucket))
    assert set(stores) == {"hot", "cold"}
    found = await cached.store.find(name)
    assert found is not None
    assert found.size == 10
    assert [stored.name async for stored in cached.store.list()] == [name]
    plain = store_without_cache(TieredStore(cached.store, cached.bucket))
    assert isinstance(plain, TieredStore)
    assert plain.hot is plain.cold is cached.bucket


async def test_concurrent_reads_share_one_write(cached: CachedBucket) -> None:
    name, content = await cached.put(LARGE_SIZE)
    results = await asyncio.gather(
        *(cached.read_stream(name, 0, LARGE_SIZE) for _ in range(6)),
        *(cached.read_stream(name, 1000, LARGE_SIZE) for _ in range(3)),
    )
    digests = {hashlib.sha256(result).hexdigest() for result in results[:6]}
    assert digests == {hashlib.sha256(content).hexdigest()}
    assert len(cached.object_files()) == 1
    assert list(cached.folder.glob(".part-*")) == []
    assert_usage_is_exact(cached.store.cache.folder)


def test_reader_that_is_closed_reads_nothing(tmp_path: Path) -> None:
    folder = BlobCacheFolder(tmp_path / "cache", 64 * MIB)
    name, content = content_with_name(5000)
    writer = folder.begin_file_unless_too_large(STORE_ID, name, 5000, is_whole=True)
    assert writer is not None
    writer.append(content)
    assert folder.keep_file_if_complete(STORE_ID, writer)
    reader = CacheFileReader(folder.folder / STORE_ID / name, name)
    assert reader.read(0, 5000) == content
    reader.close()
    reader.close()
    assert reader.read(0, 5000) == b""
