"""A client of resumable uploads (tus and RFC 9530 digests), over real connections."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from graph.http import tus
from graph.types import global_ids
from tests.conftest import GraphQLClient
from tests.support.clients.upload_client import MIB
from tests.support.time_limits import HANG_SECONDS

UPLOAD_MAX = 6 * MIB
UPLOADS_PATH = "/rest/uploads"
CHUNK_HEADERS = {"Content-Type": tus.OFFSET_MEDIA_TYPE}
UploadClientFactory = Callable[..., Awaitable["ResumableUploadClient"]]


@dataclass
class ResumableUploadClient:
    """A client of a user that sends uploads in chunks."""

    client: GraphQLClient
    port: int

    async def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request with the headers of tus."""
        headers = {**self.client.headers, "Tus-Resumable": "1.0.0", **options.pop("headers", {})}
        return await self.client.http.request(method, path, headers=headers, **options)

    async def request_upload(self, size: int, **headers: str) -> httpx.Response:
        """Request a new upload of this size and return the response."""
        return await self.request(
            "POST", UPLOADS_PATH, headers={"Upload-Length": str(size), **headers}
        )

    async def create_upload(self, size: int, **headers: str) -> str:
        """Create an upload of this size and return its path."""
        response = await self.request_upload(size, **headers)
        assert response.status_code == 201, response.text
        return response.headers["location"]

    async def append_chunk(
        self, path: str, offset: int, content: Any, **headers: str
    ) -> httpx.Response:
        """Append a chunk to an upload and return the response."""
        chunk_headers = {**CHUNK_HEADERS, "Upload-Offset": str(offset), **headers}
        return await self.request("PATCH", path, content=content, headers=chunk_headers)

    async def load_offset(self, path: str) -> int:
        """The number of bytes that the server has stored."""
        response = await self.request("HEAD", path)
        assert response.status_code == 200
        assert response.headers["cache-control"] == "no-store"
        return int(response.headers["upload-offset"])

    async def wait_for_offset(self, path: str, offset: int) -> None:
        """Wait until the server has stored at least `offset` bytes."""
        async with asyncio.timeout(HANG_SECONDS):
            while await self.load_offset(path) < offset:  # noqa: ASYNC110 - the server sends no event
                await asyncio.sleep(0.01)

    async def start_append(
        self, path: str, offset: int, length: int, first_bytes: bytes
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection and send the beginning of a PATCH on it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = (
            f"PATCH {path} HTTP/1.1\r\nHost: test\r\nTus-Resumable: 1.0.0\r\n"
            f"Authorization: {self.client.headers['Authorization']}\r\n"
            f"Content-Type: {tus.OFFSET_MEDIA_TYPE}\r\nUpload-Offset: {offset}\r\n"
            f"Content-Length: {length}\r\n\r\n"
        )
        writer.write(head.encode() + first_bytes)
        await writer.drain()
        return reader, writer


def upload_metadata(**pairs: str) -> str:
    """The value of Upload-Metadata with these pairs."""
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in pairs.items()
    )


def upload_row_id(path: str) -> int:
    """The id of the row of an upload by the upload's path."""
    return global_ids.decode("Upload", path.rsplit("/", 1)[-1])


def sha256_digest(content: bytes) -> str:
    """The SHA-256 digest of content as a digest field (RFC 9530)."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


async def iterate_chunks(*contents: bytes) -> AsyncIterator[bytes]:
    """A request body of these chunks."""
    for content in contents:
        yield content


def spool_folder(sender: ResumableUploadClient) -> Path:
    """The folder of incomplete uploads of a client's server."""
    blobs: Any = sender.client.environment.object_store
    folder: Path = blobs.folder
    return folder.parent / "spool"


async def is_silent(reader: asyncio.StreamReader) -> bool:
    """True if nothing is received for 0.2 seconds."""
    try:
        async with asyncio.timeout(0.2):
            await reader.readline()
    except TimeoutError:
        return True
    return False
