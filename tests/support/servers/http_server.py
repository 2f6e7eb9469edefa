"""A real server for a test."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Generator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette


class Quiet(uvicorn.Server):
    """Leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


@contextlib.asynccontextmanager
async def served(app: Starlette, pem: Path | None = None) -> AsyncIterator[int]:
    """A real server, with TLS where there is a key and certificate; its port."""
    server = Quiet(uvicorn.Config(app, port=0, log_config=None, lifespan="off", ssl_certfile=pem))
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - it tells nobody
        await asyncio.sleep(0.01)
    yield int(server.servers[0].sockets[0].getsockname()[1])
    server.should_exit = True
    await running


def _filled(folder: Path) -> bool:
    return any(folder.iterdir())


async def vanishing(app: Starlette, spool: Path, request: bytes) -> None:
    """Send part of a request, and vanish when there is a file of it; until there is none."""
    async with served(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        await writer.drain()
        async with asyncio.timeout(10):
            while not _filled(spool):  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
            writer.close()
            while _filled(spool):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
