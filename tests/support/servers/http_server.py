"""An HTTP server on loopback for a test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from tests.support.time_limits import HANG_SECONDS


class EmbeddedUvicorn(uvicorn.Server):
    """A uvicorn server that does not handle signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.asynccontextmanager
async def run_http_server(app: Starlette, pem: Path | None = None) -> AsyncIterator[int]:
    """Run a server, with TLS if there is a key and certificate; yield its port."""
    server = EmbeddedUvicorn(
        uvicorn.Config(app, port=0, log_config=None, lifespan="off", ssl_certfile=pem)
    )
    task = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event
        await asyncio.sleep(0.01)
    try:
        yield int(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await task


def _has_files(folder: Path) -> bool:
    return any(folder.iterdir())


async def disconnect_during_upload(app: Starlette, spool_folder: Path, request: bytes) -> None:
    """Send part of a request, and close the connection when it has a spool file.

    Returns when the spool folder is empty.
    """
    async with run_http_server(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(HANG_SECONDS):
            while not _has_files(spool_folder):  # noqa: ASYNC110 - no event for files
                await asyncio.sleep(0.01)
            writer.close()
            while _has_files(spool_folder):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
