"""An upload goes on where it was, also when the server was killed in the middle of it."""

import asyncio
import base64
import hashlib
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from graph import tus
from tests.e2e.server import Client, Server

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
    client: Client, path: str, content: bytes, offset: int, stuck: int = SIZE
) -> httpx.Response:
    rest = content[offset:]
    headers = {
        "Tus-Resumable": "1.0.0",
        "Upload-Offset": str(offset),
        "Content-Type": tus.KIND,
        "Content-Length": str(len(rest)),
    }
    body = _pieces(rest, stuck)
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
