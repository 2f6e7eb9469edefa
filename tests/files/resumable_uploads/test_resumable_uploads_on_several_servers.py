"""Uploads whose requests reach several servers: one PostgreSQL, one object store, two disks."""

import asyncio
import errno
import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func
from sqlmodel import select

from graph.http.upload_body import UploadLimits
from mail.consistency.all_checks import check_consistency
from mail.files import resumable_file
from mail.maintenance.housekeeping import delete_orphaned_uploads, run_round
from mail.storage.blobs.garbage_collector import collect_garbage
from mail.storage.blobs.object_stores import open_store
from models.files.blobs import UploadPart
from models.runtime.environment import Environment
from resolvers.files import resumable_uploads, uploads
from tests.conftest import Clock, context
from tests.support.clients.resumable_upload_client import (
    ResumableUploadClient,
    UploadClientFactory,
    sha256_digest,
    upload_row_id,
)
from tests.support.clients.upload_client import (
    MIB,
    assert_nothing_left,
    error_code,
    file_names,
    load_upload_rows,
)
from tests.support.mail.multipart_message import noise

SMALL_STEPS = UploadLimits(checkpoint_bytes=MIB)


@dataclass
class Pair:
    """One user's program, as it reaches two servers that share nothing but their stores."""

    first: ResumableUploadClient
    second: ResumableUploadClient
    folder: Path

    @property
    def world(self) -> Environment:
        return self.first.client.world

    def spool(self, name: str) -> Path:
        return self.folder / name

    async def objects(self) -> list[str]:
        return sorted([stored.name async for stored in self.world.object_store.list()])

    async def part_count(self) -> int:
        asked = select(func.count()).select_from(UploadPart)
        return int((await self.world.database.read(asked))[0][0])

    async def content(self, path: str) -> bytes:
        return await uploads.read_upload(context(self.first.client), upload_row_id(path))

    async def sweep(self) -> None:
        """What the housekeeping of both servers does with their folders."""
        for name in ("first", "second"):
            await delete_orphaned_uploads(self.world, self.spool(name))


@pytest.fixture
async def pair(small: Environment, connect: UploadClientFactory, tmp_path: Path) -> Pair:
    if small.database.dialect != "postgresql":
        pytest.skip("SQLite serves one machine")
    return await _pair(connect, tmp_path)


async def _pair(
    connect: UploadClientFactory, folder: Path, world: Environment | None = None
) -> Pair:
    more: dict[str, Any] = {"limits": SMALL_STEPS, "world": world}
    first = await connect("carol", machine="first", **more)
    second = await connect(first.client, machine="second", **more)
    return Pair(first, second, folder)


@pytest.fixture
async def pair_on_s3(
    small: Environment,
    connect: UploadClientFactory,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Pair]:
    if small.database.dialect != "postgresql":
        pytest.skip("SQLite serves one machine")
    place = request.getfixturevalue("s3_server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    prefix = datetime.now(UTC).timestamp()
    bucket = open_store(f"s3://bucket/{prefix}?endpoint={place}&region=eu-west-1")
    made = await _pair(connect, tmp_path, replace(small, object_store=bucket))
    made.first.client.world = made.second.client.world = replace(small, object_store=bucket)
    yield made
    await bucket.close()


async def _takes_turns(pair: Pair) -> None:
    content = noise(5 * MIB + 3)
    path = await pair.first.create_upload(len(content))
    at = 0
    turns = [pair.first, pair.second, pair.second, pair.first, pair.second]
    for sender, size in zip(turns, (MIB + 5, 100, 2 * MIB, 7, MIB), strict=True):
        added = await sender.append_chunk(path, at, content[at : at + size])
        at += size
        assert (added.status_code, added.headers["upload-offset"]) == (204, str(at))
        assert [await each.load_offset(path) for each in (pair.first, pair.second)] == [at, at]
    done = await pair.first.append_chunk(path, at, content[at:])
    assert done.status_code == 204, done.text
    assert done.headers["repr-digest"] == sha256_digest(content)
    assert [await each.load_offset(path) for each in (pair.first, pair.second)] == [
        len(content)
    ] * 2
    assert await pair.content(path) == content
    await pair.sweep()
    assert file_names(pair.spool("first")) == file_names(pair.spool("second")) == []
    (row,) = await load_upload_rows(pair.world)
    assert await pair.objects() == [row.blob_name], "no part is left"
    assert await pair.part_count() == 0


async def test_requests_of_an_upload_can_reach_any_server(pair: Pair) -> None:
    await _takes_turns(pair)


async def test_requests_of_an_upload_can_reach_any_server_on_s3(pair_on_s3: Pair) -> None:
    await _takes_turns(pair_on_s3)


async def test_another_server_completes_what_a_lost_machine_acknowledged(pair: Pair) -> None:
    content = noise(4 * MIB)
    path = await pair.first.create_upload(len(content))
    _, writer = await pair.first.start_append(path, 0, len(content), content[: 3 * MIB + 9])
    await pair.first.wait_for_offset(path, 2 * MIB)
    shutil.rmtree(pair.spool("first"))
    at = await pair.second.load_offset(path)
    done = await pair.second.append_chunk(path, at, content[at:])
    assert done.headers["repr-digest"] == sha256_digest(content)
    assert await pair.content(path) == content
    writer.transport.abort()


async def test_what_a_dead_server_has_not_acknowledged_is_not_used(pair: Pair) -> None:
    content = noise(MIB)
    path = await pair.first.create_upload(len(content))
    await pair.first.append_chunk(path, 0, content[:1000])
    file = resumable_file.file_path(pair.spool("first"), upload_row_id(path))
    file.write_bytes(content[:900] + bytes(100) + b"never acknowledged")  # a power cut
    assert await pair.second.load_offset(path) == 1000
    await pair.second.append_chunk(path, 1000, content[1000:1005])
    done = await pair.first.append_chunk(path, 1005, content[1005:])
    assert done.headers["repr-digest"] == sha256_digest(content)
    assert await pair.content(path) == content


@pytest.mark.parametrize("size", [10, 20], ids=["completed", "unfinished"])
async def test_of_two_concurrent_requests_one_wins(pair: Pair, size: int) -> None:
    path = await pair.first.create_upload(size)
    contents = {"first": b"1" * 10, "second": b"2" * 10}
    senders = {"first": pair.first, "second": pair.second}
    lines = {}
    for name, sender in senders.items():
        lines[name] = await sender.start_append(path, 0, 10, contents[name][:5])
    for name in senders:
        async with asyncio.timeout(10):
            while not resumable_file.file_path(pair.spool(name), upload_row_id(path)).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    for name, (_, writer) in lines.items():
        writer.write(contents[name][5:])
    answers = {}
    async with asyncio.timeout(10):
        for name, (reader, writer) in lines.items():
            answers[name] = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            writer.close()
    won = [name for name, said in answers.items() if said.startswith("http/1.1 204")]
    lost = [name for name, said in answers.items() if said.startswith("http/1.1 409")]
    assert len(won) == len(lost) == 1, answers
    assert "upload-offset: 10\r\n" in answers[lost[0]]
    loser = senders[lost[0]]
    if size > 10:  # the loser's disk has other bytes than the store
        assert (await loser.append_chunk(path, 10, b"3" * 10)).status_code == 204
    assert await pair.content(path) == contents[won[0]] + b"3" * (size - 10)
    (row,) = await load_upload_rows(pair.world)
    assert await pair.objects() == [row.blob_name]


async def test_a_mutation_on_another_server_takes_the_upload(pair: Pair) -> None:
    path = await pair.first.create_upload(10)
    await pair.first.append_chunk(path, 0, b"12345")
    await pair.second.append_chunk(path, 5, b"67890")
    (row,) = await uploads.load_uploads_by_id(context(pair.first.client), [upload_row_id(path)])
    assert row
    assert row.size == 10
    stale = await pair.first.append_chunk(path, 5, b"67890")
    assert (stale.status_code, stale.headers["upload-offset"]) == (409, "10")


async def test_limits_hold_over_all_servers(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    path = await pair.first.create_upload(60)
    refused = await pair.second.request_upload(41)
    assert (refused.status_code, error_code(refused)) == (413, "LIMIT_REACHED")
    assert (await pair.second.request("DELETE", path)).status_code == 204
    assert (await pair.first.request_upload(41)).status_code == 201


async def test_an_upload_has_a_bounded_number_of_parts(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable_uploads, "MOST_PARTS", 2)
    path = await pair.first.create_upload(10)
    await pair.first.append_chunk(path, 0, b"1")
    await pair.second.append_chunk(path, 1, b"2")
    refused = await pair.first.append_chunk(path, 2, b"3")
    assert (refused.status_code, error_code(refused)) == (413, "LIMIT_REACHED")
    assert await pair.second.load_offset(path) == 2
    assert len(await pair.objects()) == await pair.part_count() == 2
    assert (await pair.second.append_chunk(path, 2, b"34567890")).status_code == 204


async def test_a_cancelled_upload_leaves_no_object(pair: Pair) -> None:
    path = await pair.first.create_upload(3 * MIB)
    await pair.first.append_chunk(path, 0, noise(MIB + 1))
    reader, writer = await pair.first.start_append(path, MIB + 1, 10, b"12345")
    assert len(await pair.objects()) == await pair.part_count() > 0
    assert (await pair.second.request("DELETE", path)).status_code == 204
    writer.write(b"67890")
    async with asyncio.timeout(10):
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    for name in ("first", "second"):
        await assert_nothing_left(pair.world, pair.spool(name))
    assert await pair.part_count() == 0


async def test_an_expired_upload_leaves_no_object(pair: Pair, clock: Clock) -> None:
    path = await pair.first.create_upload(10)
    await pair.first.append_chunk(path, 0, b"123")
    await pair.second.append_chunk(path, 3, b"45")
    clock.tick(hours=24)
    assert (await run_round(pair.world, sweep=False)).uploads == 1
    await pair.sweep()
    for name in ("first", "second"):
        await assert_nothing_left(pair.world, pair.spool(name))
    assert await pair.part_count() == 0


async def test_the_collector_keeps_the_parts_of_an_unfinished_upload(pair: Pair) -> None:
    world, content = pair.world, noise(3 * MIB)
    path = await pair.first.create_upload(len(content))
    await pair.first.append_chunk(path, 0, content[: 2 * MIB + 1])
    before = await pair.objects()
    await world.object_store.put("ab/abc.1", b"of no row")
    report = await check_consistency(world)
    assert report.findings == []
    assert report.figures["garbage_objects"] == 1
    assert (
        await collect_garbage(world, world.object_store, grace_period=timedelta(0))
    ).object_count == 1
    assert await pair.objects() == before
    assert len(before) == await pair.part_count() > 1
    await pair.sweep()
    shutil.rmtree(pair.spool("first"))
    (pair.spool("first")).mkdir()
    done = await pair.first.append_chunk(path, 2 * MIB + 1, content[2 * MIB + 1 :])
    assert done.headers["repr-digest"] == sha256_digest(content)


async def test_a_lost_part_is_found_and_never_replaced_by_other_bytes(pair: Pair) -> None:
    path = await pair.first.create_upload(10)
    await pair.first.append_chunk(path, 0, b"12345")
    (name,) = await pair.objects()
    for damage in (b"54321", b"123", None):
        if damage is None:
            await pair.world.object_store.delete([name])
        else:
            await pair.world.object_store.put(name, damage)
        refused = await pair.second.append_chunk(path, 5, b"67890")
        assert (refused.status_code, error_code(refused)) == (404, "NOT_FOUND")
    assert {finding.rule for finding in (await check_consistency(pair.world)).findings} == {
        "object"
    }
    done = await pair.first.append_chunk(path, 5, b"67890")
    assert done.headers["repr-digest"] == sha256_digest(b"1234567890"), "its own disk has the bytes"


async def test_what_the_object_store_does_not_take_is_not_acknowledged(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = noise(3 * MIB)
    path = await pair.first.create_upload(len(content))
    await pair.first.append_chunk(path, 0, content[:100])
    with monkeypatch.context() as full:
        full.setattr(pair.world.object_store, "put", broken)
        assert (await pair.first.append_chunk(path, 100, content[100:])).status_code == 507
    assert await pair.second.load_offset(path) == 100
    done = await pair.second.append_chunk(path, 100, content[100:])
    assert done.headers["repr-digest"] == sha256_digest(content)
    assert await pair.content(path) == content
