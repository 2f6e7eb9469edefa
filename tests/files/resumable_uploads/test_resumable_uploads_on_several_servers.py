"""Resumable uploads by several servers with one PostgreSQL, one object store and separate disks."""

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
from mail.maintenance.housekeeping import delete_orphaned_upload_files, run_housekeeping_round
from mail.storage.blobs.garbage_collector import collect_garbage
from mail.storage.blobs.object_stores import open_store
from models.files.blobs import UploadPart
from models.runtime.environment import Environment
from resolvers.files import resumable_uploads, uploads
from tests.conftest import ManualClock, client_context
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
from tests.support.mail.multipart_message import pseudo_random_bytes
from tests.support.time_limits import HANG_SECONDS

SMALL_CHECKPOINTS = UploadLimits(checkpoint_bytes=MIB)


@dataclass
class ServerPair:
    """Clients of two servers that share the database and the object store only."""

    first: ResumableUploadClient
    second: ResumableUploadClient
    folder: Path

    @property
    def environment(self) -> Environment:
        return self.first.client.environment

    def spool(self, name: str) -> Path:
        return self.folder / name

    async def objects(self) -> list[str]:
        return sorted([stored.name async for stored in self.environment.object_store.list()])

    async def part_count(self) -> int:
        statement = select(func.count()).select_from(UploadPart)
        return int((await self.environment.database.read(statement))[0][0])

    async def content(self, path: str) -> bytes:
        return await uploads.read_and_verify_upload(
            client_context(self.first.client), upload_row_id(path)
        )

    async def sweep(self) -> None:
        """Delete the orphaned files in the spool folders of both servers."""
        for name in ("first", "second"):
            await delete_orphaned_upload_files(self.environment, self.spool(name))


@pytest.fixture
async def servers(
    limited_environment: Environment, connect: UploadClientFactory, tmp_path: Path
) -> ServerPair:
    if limited_environment.database.dialect != "postgresql":
        pytest.skip("SQLite serves one machine")
    return await _connect_servers(connect, tmp_path)


async def _connect_servers(
    connect: UploadClientFactory, folder: Path, environment: Environment | None = None
) -> ServerPair:
    options: dict[str, Any] = {"limits": SMALL_CHECKPOINTS, "environment": environment}
    first = await connect("carol", machine="first", **options)
    second = await connect(first.client, machine="second", **options)
    return ServerPair(first, second, folder)


@pytest.fixture
async def servers_on_s3(
    limited_environment: Environment,
    connect: UploadClientFactory,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[ServerPair]:
    if limited_environment.database.dialect != "postgresql":
        pytest.skip("SQLite serves one machine")
    s3_endpoint = request.getfixturevalue("s3_server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "something")
    prefix = datetime.now(UTC).timestamp()
    bucket = open_store(f"s3://bucket/{prefix}?endpoint={s3_endpoint}&region=eu-west-1")
    connected = await _connect_servers(
        connect, tmp_path, replace(limited_environment, object_store=bucket)
    )
    connected.first.client.environment = connected.second.client.environment = replace(
        limited_environment, object_store=bucket
    )
    yield connected
    await bucket.close()


async def _check_alternating_requests(servers: ServerPair) -> None:
    content = pseudo_random_bytes(5 * MIB + 3)
    path = await servers.first.create_upload(len(content))
    offset = 0
    senders = [servers.first, servers.second, servers.second, servers.first, servers.second]
    for sender, size in zip(senders, (MIB + 5, 100, 2 * MIB, 7, MIB), strict=True):
        response = await sender.append_chunk(path, offset, content[offset : offset + size])
        offset += size
        assert (response.status_code, response.headers["upload-offset"]) == (204, str(offset))
        assert [await server.load_offset(path) for server in (servers.first, servers.second)] == [
            offset,
            offset,
        ]
    completed = await servers.first.append_chunk(path, offset, content[offset:])
    assert completed.status_code == 204, completed.text
    assert completed.headers["repr-digest"] == sha256_digest(content)
    assert [await server.load_offset(path) for server in (servers.first, servers.second)] == [
        len(content)
    ] * 2
    assert await servers.content(path) == content
    await servers.sweep()
    assert file_names(servers.spool("first")) == file_names(servers.spool("second")) == []
    (row,) = await load_upload_rows(servers.environment)
    assert await servers.objects() == [row.blob_name], "no part is left"
    assert await servers.part_count() == 0


async def test_requests_of_an_upload_can_reach_any_server(servers: ServerPair) -> None:
    await _check_alternating_requests(servers)


async def test_requests_of_an_upload_can_reach_any_server_on_s3(servers_on_s3: ServerPair) -> None:
    await _check_alternating_requests(servers_on_s3)


async def test_other_server_completes_upload_of_lost_machine(servers: ServerPair) -> None:
    content = pseudo_random_bytes(4 * MIB)
    path = await servers.first.create_upload(len(content))
    _, writer = await servers.first.start_append(path, 0, len(content), content[: 3 * MIB + 9])
    await servers.first.wait_for_offset(path, 2 * MIB)
    shutil.rmtree(servers.spool("first"))
    offset = await servers.second.load_offset(path)
    completed = await servers.second.append_chunk(path, offset, content[offset:])
    assert completed.headers["repr-digest"] == sha256_digest(content)
    assert await servers.content(path) == content
    writer.transport.abort()


async def test_unacknowledged_bytes_of_crashed_server_are_not_used(servers: ServerPair) -> None:
    content = pseudo_random_bytes(MIB)
    path = await servers.first.create_upload(len(content))
    await servers.first.append_chunk(path, 0, content[:1000])
    file = resumable_file.file_path(servers.spool("first"), upload_row_id(path))
    file.write_bytes(content[:900] + bytes(100) + b"never acknowledged")  # a power cut
    assert await servers.second.load_offset(path) == 1000
    await servers.second.append_chunk(path, 1000, content[1000:1005])
    completed = await servers.first.append_chunk(path, 1005, content[1005:])
    assert completed.headers["repr-digest"] == sha256_digest(content)
    assert await servers.content(path) == content


@pytest.mark.parametrize("size", [10, 20], ids=["completed", "unfinished"])
async def test_one_of_two_concurrent_requests_succeeds(servers: ServerPair, size: int) -> None:
    path = await servers.first.create_upload(size)
    contents = {"first": b"1" * 10, "second": b"2" * 10}
    senders = {"first": servers.first, "second": servers.second}
    connections = {}
    for name, sender in senders.items():
        connections[name] = await sender.start_append(path, 0, 10, contents[name][:5])
    for name in senders:
        async with asyncio.timeout(HANG_SECONDS):
            while not resumable_file.file_path(servers.spool(name), upload_row_id(path)).exists():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    for name, (_, writer) in connections.items():
        writer.write(contents[name][5:])
    answers = {}
    async with asyncio.timeout(HANG_SECONDS):
        for name, (reader, writer) in connections.items():
            answers[name] = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            writer.close()
    accepted = [name for name, answer in answers.items() if answer.startswith("http/1.1 204")]
    refused = [name for name, answer in answers.items() if answer.startswith("http/1.1 409")]
    assert len(accepted) == len(refused) == 1, answers
    assert "upload-offset: 10\r\n" in answers[refused[0]]
    refused_sender = senders[refused[0]]
    if size > 10:  # the loser's disk has other bytes than the store
        assert (await refused_sender.append_chunk(path, 10, b"3" * 10)).status_code == 204
    assert await servers.content(path) == contents[accepted[0]] + b"3" * (size - 10)
    (row,) = await load_upload_rows(servers.environment)
    assert await servers.objects() == [row.blob_name]


async def test_mutation_on_another_server_reads_upload(servers: ServerPair) -> None:
    path = await servers.first.create_upload(10)
    await servers.first.append_chunk(path, 0, b"12345")
    await servers.second.append_chunk(path, 5, b"67890")
    (row,) = await uploads.load_own_complete_uploads_by_id(
        client_context(servers.first.client), [upload_row_id(path)]
    )
    assert row
    assert row.size == 10
    stale = await servers.first.append_chunk(path, 5, b"67890")
    assert (stale.status_code, stale.headers["upload-offset"]) == (409, "10")


async def test_limits_apply_across_servers(
    servers: ServerPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "MAX_TOTAL_BYTES", 100)
    path = await servers.first.create_upload(60)
    refused = await servers.second.request_upload(41)
    assert (refused.status_code, error_code(refused)) == (413, "LIMIT_REACHED")
    assert (await servers.second.request("DELETE", path)).status_code == 204
    assert (await servers.first.request_upload(41)).status_code == 201


async def test_upload_has_maximum_number_of_parts(
    servers: ServerPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resumable_uploads, "MOST_PARTS", 2)
    path = await servers.first.create_upload(10)
    await servers.first.append_chunk(path, 0, b"1")
    await servers.second.append_chunk(path, 1, b"2")
    refused = await servers.first.append_chunk(path, 2, b"3")
    assert (refused.status_code, error_code(refused)) == (413, "LIMIT_REACHED")
    assert await servers.second.load_offset(path) == 2
    assert len(await servers.objects()) == await servers.part_count() == 2
    assert (await servers.second.append_chunk(path, 2, b"34567890")).status_code == 204


async def test_cancelled_upload_leaves_no_object(servers: ServerPair) -> None:
    path = await servers.first.create_upload(3 * MIB)
    await servers.first.append_chunk(path, 0, pseudo_random_bytes(MIB + 1))
    reader, writer = await servers.first.start_append(path, MIB + 1, 10, b"12345")
    assert len(await servers.objects()) == await servers.part_count() > 0
    assert (await servers.second.request("DELETE", path)).status_code == 204
    writer.write(b"67890")
    async with asyncio.timeout(HANG_SECONDS):
        assert (await reader.readline()).startswith(b"HTTP/1.1 404")
    writer.close()
    for name in ("first", "second"):
        await assert_nothing_left(servers.environment, servers.spool(name))
    assert await servers.part_count() == 0


async def test_expired_upload_leaves_no_object(servers: ServerPair, clock: ManualClock) -> None:
    path = await servers.first.create_upload(10)
    await servers.first.append_chunk(path, 0, b"123")
    await servers.second.append_chunk(path, 3, b"45")
    clock.tick(hours=24)
    assert (await run_housekeeping_round(servers.environment, sweep=False)).uploads == 1
    await servers.sweep()
    for name in ("first", "second"):
        await assert_nothing_left(servers.environment, servers.spool(name))
    assert await servers.part_count() == 0


async def test_garbage_collection_keeps_parts_of_unfinished_upload(servers: ServerPair) -> None:
    environment, content = servers.environment, pseudo_random_bytes(3 * MIB)
    path = await servers.first.create_upload(len(content))
    await servers.first.append_chunk(path, 0, content[: 2 * MIB + 1])
    before = await servers.objects()
    await environment.object_store.put("ab/abc.1", b"of no row")
    report = await check_consistency(environment)
    assert report.findings == []
    assert report.figures["garbage_objects"] == 1
    assert (
        await collect_garbage(environment, environment.object_store, grace_period=timedelta(0))
    ).object_count == 1
    assert await servers.objects() == before
    assert len(before) == await servers.part_count() > 1
    await servers.sweep()
    shutil.rmtree(servers.spool("first"))
    (servers.spool("first")).mkdir()
    completed = await servers.first.append_chunk(path, 2 * MIB + 1, content[2 * MIB + 1 :])
    assert completed.headers["repr-digest"] == sha256_digest(content)


async def test_damaged_or_lost_part_is_reported_and_not_used(servers: ServerPair) -> None:
    path = await servers.first.create_upload(10)
    await servers.first.append_chunk(path, 0, b"12345")
    (name,) = await servers.objects()
    for damage in (b"54321", b"123", None):
        if damage is None:
            await servers.environment.object_store.delete([name])
        else:
            await servers.environment.object_store.put(name, damage)
        refused = await servers.second.append_chunk(path, 5, b"67890")
        assert (refused.status_code, error_code(refused)) == (404, "NOT_FOUND")
    assert {
        finding.rule for finding in (await check_consistency(servers.environment)).findings
    } == {"object"}
    completed = await servers.first.append_chunk(path, 5, b"67890")
    assert completed.headers["repr-digest"] == sha256_digest(b"1234567890"), (
        "its own disk has the bytes"
    )


async def test_bytes_refused_by_object_store_are_not_acknowledged(
    servers: ServerPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    content = pseudo_random_bytes(3 * MIB)
    path = await servers.first.create_upload(len(content))
    await servers.first.append_chunk(path, 0, content[:100])
    with monkeypatch.context() as full_disk:
        full_disk.setattr(servers.environment.object_store, "put", raise_disk_full)
        assert (await servers.first.append_chunk(path, 100, content[100:])).status_code == 507
    assert await servers.second.load_offset(path) == 100
    completed = await servers.second.append_chunk(path, 100, content[100:])
    assert completed.headers["repr-digest"] == sha256_digest(content)
    assert await servers.content(path) == content
