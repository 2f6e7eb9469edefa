"""Tests that an upload continues at its offset, also after the server was killed."""

import asyncio
import base64
import hashlib
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph.http import tus
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.time_limits import HANG_SECONDS

MIB = 1 << 20
UPLOAD_SIZE = 24 * MIB
MAX_MEMORY_GROWTH = 12 * MIB  # more than at rest, less than the whole upload


async def _chunks(content: bytes, stops_at: int) -> AsyncIterator[bytes]:
    """Yield the content up to a position, and then wait forever if more would follow."""
    for position in range(0, min(len(content), stops_at), MIB):
        yield content[position : min(position + MIB, stops_at)]
    if stops_at < len(content):
        await asyncio.Event().wait()


async def _send_part(
    client: HttpClient, path: str, content: bytes, offset: int, stops_at: int | None = None
) -> httpx.Response:
    remaining = content[offset:]
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": str(offset),
        "Content-Type": tus.OFFSET_MEDIA_TYPE,
        "Content-Length": str(len(remaining)),
    }
    body = _chunks(remaining, len(remaining) if stops_at is None else stops_at)
    return await client.http.patch(path, content=body, headers=headers, timeout=HANG_SECONDS)


async def _read_offset(client: HttpClient, path: str) -> int:
    response = await client.http.head(path, headers={"Tus-Resumable": "1.0.0"})
    return int(response.headers["upload-offset"])


def _peak_memory(pid: int) -> int:
    """Return the peak memory of a process in bytes."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) * 1024


async def test_confirmed_upload_offset_survives_kill(tmp_path: Path) -> None:
    server, content = MerganserProcess(tmp_path), os.urandom(UPLOAD_SIZE)
    server.create_users("ada")
    server.start()
    async with server.open_client("ada") as ada:
        length_headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(UPLOAD_SIZE)}
        created = await ada.http.post("/rest/uploads", headers=length_headers)
        path = created.headers["location"]
        memory_before = _peak_memory(server.pid)
        send_task = asyncio.create_task(_send_part(ada, path, content, 0, stops_at=20 * MIB))
        async with asyncio.timeout(HANG_SECONDS):
            while (confirmed_offset := await _read_offset(ada, path)) < 16 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert _peak_memory(server.pid) - memory_before < MAX_MEMORY_GROWTH
        server.kill()
        send_task.cancel()  # it waits for a body that does not continue
        with pytest.raises(asyncio.CancelledError):
            await send_task
    server.start()
    async with server.open_client("ada") as ada:
        offset = await _read_offset(ada, path)
        assert confirmed_offset <= offset < UPLOAD_SIZE
        memory_before = _peak_memory(server.pid)
        response = await _send_part(ada, path, content, offset)
        assert response.status_code == 204, response.text
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert _peak_memory(server.pid) - memory_before < MAX_MEMORY_GROWTH
    server.stop()
    assert list((tmp_path / "var" / "spool" / "http").iterdir()) == []


SECOND_UPLOAD_SIZE = 48 * MIB
# parts are in memory while they are stored; the whole upload does not fit
SECOND_MAX_MEMORY_GROWTH = 24 * MIB


def _two_servers(folder: Path, store: str) -> tuple[MerganserProcess, MerganserProcess]:
    """Create two servers of one platform with separate data folders."""
    settings = {"OBJECT_STORE_URL": str(folder / "objects"), "BACKUP_RESTORE_WINDOW": "0 s"}
    first = MerganserProcess(folder / "first", store_url=store, extra_settings=settings)
    second = MerganserProcess(folder / "second", store_url=store, extra_settings=settings)
    for server in (first, second):
        (server.folder / "var").mkdir(parents=True)
    first.create_users("ada")
    for name in ("secret", "vault"):
        shutil.copy2(first.folder / "var" / name, second.folder / "var" / name)
    second.secrets = first.secrets
    return first, second


async def test_upload_continues_at_other_server_after_kill(tmp_path: Path, postgres: str) -> None:
    """Requests alternate between two servers. One is killed while it receives."""
    first, second = _two_servers(
        tmp_path,
        store_fixtures.create_migrated_database(postgres, "resuming"),
    )
    header = b"From: ada@example.org\r\nSubject: Any server\r\n\r\n"
    content = header + base64.encodebytes(os.urandom(SECOND_UPLOAD_SIZE * 3 // 4 - 2 * MIB))
    try:
        first.start()
        second.start()
        async with (
            first.open_client("ada") as first_client,
            second.open_client("ada") as second_client,
        ):
            memory_before = _peak_memory(second.pid)
            path, offset = await _upload_alternately(first_client, second_client, content)
            send_task = asyncio.create_task(
                _send_part(first_client, path, content, offset, stops_at=9 * MIB)
            )
            async with asyncio.timeout(HANG_SECONDS):
                while await _read_offset(second_client, path) < offset + 4 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            first.kill()
            send_task.cancel()
            with pytest.raises((asyncio.CancelledError, httpx.TransportError)):
                await send_task
            offset = await _read_offset(second_client, path)
            response = await _send_part(second_client, path, content, offset)
            assert response.status_code == 204, response.text
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            assert response.headers["repr-digest"] == f"sha-256=:{digest}:"
            growth = _peak_memory(second.pid) - memory_before
            assert growth < SECOND_MAX_MEMORY_GROWTH, growth / MIB
            upload_id = path.rsplit("/", 1)[-1]
            stored_file = await second_client.run_mutation(
                "fileUpload", {"content": {"upload": upload_id}}, "file { size }"
            )
            assert stored_file["file"]["size"] == len(content)
    finally:
        for server in (first, second):
            if server.is_running:
                server.stop()
    assert list((tmp_path / "second/var/spool/http").iterdir()) == []
    objects = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in objects if path.stat().st_size > MIB] == [len(content)]


async def _upload_alternately(
    first_client: HttpClient, second_client: HttpClient, content: bytes
) -> tuple[str, int]:
    """Create an upload and send its first parts to the two servers in turn."""
    length_headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content))}
    created = await first_client.http.post("/rest/uploads", headers=length_headers)
    path, offset = created.headers["location"], 0
    for number, size in enumerate((5 * MIB, 3, MIB, 9 * MIB)):
        receiving_client, checking_client = (
            (first_client, second_client) if number % 2 else (second_client, first_client)
        )
        response = await _send_part(receiving_client, path, content[: offset + size], offset)
        offset += size
        assert (response.status_code, response.headers["upload-offset"]) == (204, str(offset)), (
            response.text
        )
        assert await _read_offset(checking_client, path) == offset
        stale_response = await _send_part(checking_client, path, content[:3], 0)
        assert (stale_response.status_code, stale_response.headers["upload-offset"]) == (
            409,
            str(offset),
        )
    return path, offset
