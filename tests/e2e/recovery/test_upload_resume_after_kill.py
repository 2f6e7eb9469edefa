"""An upload goes on where it was, also when the server was killed in the middle of it."""

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
from tests.support.servers.merganser_server import Client, Server
from tests.support.stores import store_fixtures

MIB = 1 << 20
SIZE = 24 * MIB
MEMORY = 12 * MIB  # more than at rest; the whole does not fit in


async def _pieces(content: bytes, stuck_after: int) -> AsyncIterator[bytes]:
    """The content, of which no more comes from some byte on."""
    for at in range(0, min(len(content), stuck_after), MIB):
        yield content[at : min(at + MIB, stuck_after)]
    if stuck_after < len(content):
        await asyncio.Event().wait()


async def _add(
    client: Client, path: str, content: bytes, offset: int, stuck: int | None = None
) -> httpx.Response:
    rest = content[offset:]
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": str(offset),
        "Content-Type": tus.OFFSET_MEDIA_TYPE,
        "Content-Length": str(len(rest)),
    }
    body = _pieces(rest, len(rest) if stuck is None else stuck)
    return await client.http.patch(path, content=body, headers=headers, timeout=60)


async def _offset(client: Client, path: str) -> int:
    answer = await client.http.head(path, headers={"Tus-Resumable": "1.0.0"})
    return int(answer.headers["upload-offset"])


def _peak(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) * 1024


async def test_what_was_promised_outlives_a_kill(tmp_path: Path) -> None:
    server, content = Server(tmp_path), os.urandom(SIZE)
    server.make("ada")
    server.start()
    async with server.client("ada") as ada:
        announced = {"Tus-Resumable": "1.0.0", "Upload-Length": str(SIZE)}
        created = await ada.http.post("/rest/uploads", headers=announced)
        path = created.headers["location"]
        before = _peak(server.pid)
        sending = asyncio.create_task(_add(ada, path, content, 0, stuck=20 * MIB))
        async with asyncio.timeout(30):
            while (promised := await _offset(ada, path)) < 16 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert _peak(server.pid) - before < MEMORY
        server.kill()
        sending.cancel()  # it waits for a body that does not go on
        with pytest.raises(asyncio.CancelledError):
            await sending
    server.start()
    async with server.client("ada") as ada:
        offset = await _offset(ada, path)
        assert promised <= offset < SIZE
        before = _peak(server.pid)
        done = await _add(ada, path, content, offset)
        assert done.status_code == 204, done.text
        digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
        assert done.headers["repr-digest"] == f"sha-256=:{digest}:"
        assert _peak(server.pid) - before < MEMORY
    server.stop()
    assert list((tmp_path / "var" / "spool" / "http").iterdir()) == []


TWO_SIZE = 48 * MIB
TWO_MEMORY = 24 * MIB  # parts are in memory while they are stored; the whole does not fit in


def _two_servers(folder: Path, store: str) -> tuple[Server, Server]:
    """Two servers of one platform, whose own folders are apart."""
    more = {"BLOBS": str(folder / "objects"), "RESTORE_WINDOW": "0 s"}
    first = Server(folder / "first", store=store, more=more)
    second = Server(folder / "second", store=store, more=more)
    for server in (first, second):
        (server.folder / "var").mkdir(parents=True)
    first.make("ada")
    for name in ("secret", "vault"):
        shutil.copy2(first.folder / "var" / name, second.folder / "var" / name)
    second.secrets = first.secrets
    return first, second


async def test_an_upload_goes_on_at_any_server(tmp_path: Path, postgres: str) -> None:
    """Requests alternate between two servers. One is killed while it receives."""
    first, second = _two_servers(
        tmp_path, store_fixtures.run(store_fixtures.beside(postgres, "resuming"))
    )
    head = b"From: ada@example.org\r\nSubject: Any server\r\n\r\n"
    content = head + base64.encodebytes(os.urandom(TWO_SIZE * 3 // 4 - 2 * MIB))
    try:
        first.start()
        second.start()
        async with first.client("ada") as one, second.client("ada") as other:
            before = _peak(second.pid)
            path, at = await _alternate(one, other, content)
            sending = asyncio.create_task(_add(one, path, content, at, stuck=9 * MIB))
            async with asyncio.timeout(60):
                while await _offset(other, path) < at + 4 * MIB:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            first.kill()
            sending.cancel()
            with pytest.raises((asyncio.CancelledError, httpx.TransportError)):
                await sending
            at = await _offset(other, path)
            done = await _add(other, path, content, at)
            assert done.status_code == 204, done.text
            digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
            assert done.headers["repr-digest"] == f"sha-256=:{digest}:"
            grown = _peak(second.pid) - before
            assert grown < TWO_MEMORY, grown / MIB
            key = path.rsplit("/", 1)[-1]
            made = await other.do("fileUpload", {"content": {"upload": key}}, "file { size }")
            assert made["file"]["size"] == len(content)
    finally:
        for server in (first, second):
            if server.is_running:
                server.stop()
    assert list((tmp_path / "second/var/spool/http").iterdir()) == []
    objects = [path for path in (tmp_path / "objects").rglob("*") if path.is_file()]
    assert [path.stat().st_size for path in objects if path.stat().st_size > MIB] == [len(content)]


async def _alternate(one: Client, other: Client, content: bytes) -> tuple[str, int]:
    """Begin the upload, and send each of its first pieces to the server that had not the last."""
    announced = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content))}
    created = await one.http.post("/rest/uploads", headers=announced)
    path, at = created.headers["location"], 0
    for turn, size in enumerate((5 * MIB, 3, MIB, 9 * MIB)):
        here, there = (one, other) if turn % 2 else (other, one)
        added = await _add(here, path, content[: at + size], at)
        at += size
        assert (added.status_code, added.headers["upload-offset"]) == (204, str(at)), added.text
        assert await _offset(there, path) == at
        stale = await _add(there, path, content[:3], 0)
        assert (stale.status_code, stale.headers["upload-offset"]) == (409, str(at))
    return path, at
