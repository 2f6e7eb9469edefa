"""Programs that send uploads in pieces, over real connections."""

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.http import tus
from graph.http.upload_body import Limits
from graph.types import global_ids
from models.runtime.environment import World
from tests.conftest import Client
from tests.files.test_uploads import app_of, client_of
from tests.support.servers.http_server import served

MIB = 1 << 20
MOST = 6 * MIB
PATH = "/rest/uploads"
PIECE = {"Content-Type": tus.KIND}


@pytest.fixture
def small(world: World) -> World:
    """A world in which uploads have at most 6 MiB."""
    return replace(world, options=replace(world.options, upload_max=MOST))


@dataclass
class Sender:
    """A program of a user that sends in pieces."""

    client: Client
    port: int

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {**self.client.headers, "Tus-Resumable": "1.0.0", **more.pop("headers", {})}
        return await self.client.http.request(method, path, headers=headers, **more)

    async def announce(self, size: int, **headers: str) -> httpx.Response:
        return await self.ask("POST", PATH, headers={"Upload-Length": str(size), **headers})

    async def begin(self, size: int, **headers: str) -> str:
        """The path of a new upload."""
        answer = await self.announce(size, **headers)
        assert answer.status_code == 201, answer.text
        return answer.headers["location"]

    async def add(self, path: str, offset: int, content: Any, **headers: str) -> httpx.Response:
        named = {**PIECE, "Upload-Offset": str(offset), **headers}
        return await self.ask("PATCH", path, content=content, headers=named)

    async def offset(self, path: str) -> int:
        answer = await self.ask("HEAD", path)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        return int(answer.headers["upload-offset"])

    async def until(self, path: str, offset: int) -> None:
        """Wait until HEAD tells of so many bytes."""
        async with asyncio.timeout(10):
            while await self.offset(path) < offset:  # noqa: ASYNC110 - nobody is told
                await asyncio.sleep(0.01)

    async def connect(
        self, path: str, offset: int, length: int, sent: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which a PATCH has begun."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            f"PATCH {path} HTTP/1.1\r\nHost: test\r\nTus-Resumable: 1.0.0\r\n"
            f"Authorization: {self.client.headers['Authorization']}\r\n"
            f"Content-Type: {tus.KIND}\r\nUpload-Offset: {offset}\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        writer.write(head.encode() + sent)
        await writer.drain()
        return reader, writer


Connect = Callable[..., Any]


@pytest.fixture
async def connect(small: World, tmp_path: Path) -> AsyncIterator[Connect]:
    """Makes senders, each by a server of its own.

    All of them share the store, and the folder of arriving bytes unless `machine` names one.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def sender(
            client: Client | str,
            limits: Limits | None = None,
            machine: str = "spool",
            world: World | None = None,
            **more: Any,
        ) -> Sender:
            app = app_of(world or small, tmp_path / machine, limits)
            port = await stack.enter_async_context(served(app))
            url = f"http://127.0.0.1:{port}"
            http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30))
            if isinstance(client, str):
                return Sender(await client_of(small, http, client, **more), port)
            return Sender(replace(client, http=http), port)

        yield sender


@pytest.fixture
async def carol(connect: Connect) -> Sender:
    made: Sender = await connect("carol")
    return made


def told(**pairs: str) -> str:
    return ",".join(f"{k} {base64.b64encode(v.encode()).decode()}" for k, v in pairs.items())


def key_of(path: str) -> int:
    return global_ids.decode("Upload", path.rsplit("/", 1)[-1])


def digested(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def pieces(*contents: bytes) -> AsyncIterator[bytes]:
    for content in contents:
        yield content


def carol_spool(carol: Sender) -> Path:
    blobs: Any = carol.client.world.blobs
    folder: Path = blobs.folder
    return folder.parent / "spool"


async def still(reader: asyncio.StreamReader) -> bool:
    """Whether nothing comes for a while."""
    try:
        async with asyncio.timeout(0.2):
            await reader.readline()
    except TimeoutError:
        return True
    return False
